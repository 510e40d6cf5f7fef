"""`stop`: an answer ends before the stop text that begins first, streamed or not."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from checkpoints import build_flashvid_folder, once
from serving_client import RESPONSES, Client, question, run, text_of
from tokenizers import Tokenizer

from flashvid_hf.serving.app import ServedModel
from flashvid_hf.serving.stops import AnswerText, cut_at_stop

DEMO = Path(__file__).parents[1] / "hub_configs" / "flashvid-demo" / "tokenizer.json"
# A parser that leaves the text as it is. The parser of a model with tools reads the text with its special tokens.
TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "assistant",
    "fields": {"content": {"content": "text"}},
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Of bytes: one token has whole words, another a part of a character."""
    return Tokenizer.from_file(str(DEMO))


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> ServedModel:
    folder = once(tmp_path_factory, "pipeline-qwen2_5_vl", lambda folder: build_flashvid_folder(folder, "qwen2_5_vl"))
    return ServedModel.load(str(folder), device="cpu")


def read(tokenizer: Tokenizer, tokens: list[int], stops: Any) -> tuple[list[str], bool]:
    """The pieces of a text, up to the token with which the engine would end it."""
    text = AnswerText(tokenizer, stops)
    pieces = []
    for token in tokens:
        pieces.append(text.take(token))
        if text.is_stopped:
            break
    return [*pieces, text.finish()], text.is_stopped


@pytest.mark.parametrize(
    "written, stops, expected",
    [
        ("one two three", [" two"], "one"),
        ("one two three", ["three", "wo th", "ne t"], "o"),  # the one that begins first
        ("one two three", ["e three", "t"], "one "),
        ("one two", ["one"], ""),
        ("one two", "two", "one "),  # a text alone
        ("one two", ["two more"], None),
        ("aaab", ["aab"], "a"),
        ("a€b😀c", ["😀"], "a€b"),
        ("a€b😀c", ["b"], "a€"),
        ("the moving square", ["uare"], "the moving sq"),  # inside a token
        ("one", None, None),
        ("one", [], None),
    ],
)
def test_a_text_ends_before_the_first_stop_text(tokenizer, written, stops, expected):
    tokens = tokenizer.encode(written, add_special_tokens=False).ids
    pieces, is_stopped = read(tokenizer, tokens, stops)
    assert ("".join(pieces), is_stopped) == (written if expected is None else expected, expected is not None)
    assert cut_at_stop(written, stops) == ("".join(pieces), is_stopped)


def test_random_texts_end_where_the_whole_text_would(tokenizer):
    random.seed(0)
    for _ in range(500):
        written = "".join(random.choices("abc€😀", k=12))
        stops = ["".join(random.choices("abc€😀", k=random.randint(1, 4))) for _ in range(3)]
        tokens = tokenizer.encode(written, add_special_tokens=False).ids
        text, given = AnswerText(tokenizer, stops), []
        while tokens and not text.is_stopped:
            given.append(tokens.pop(0))
            assert not any(stop in text.take(given[-1]) for stop in stops)
        read_again, is_stopped = read(tokenizer, given, stops)
        whole = tokenizer.decode(given)
        assert ("".join(read_again), is_stopped) == cut_at_stop(whole, stops)
        places = [whole.index(stop) for stop in stops if stop in whole]
        assert is_stopped == bool(places) and "".join(read_again) == whole[: min(places, default=len(whole))]


def test_only_what_could_begin_a_stop_text_is_held_back(tokenizer):
    tokens = [token for letter in "xaab" for token in tokenizer.encode(letter, add_special_tokens=False).ids]
    assert read(tokenizer, tokens, ["aac"])[0] == ["x", "", "", "aab", ""]
    assert read(tokenizer, tokens[:3], ["aac"])[0] == ["x", "", "", "aa"]


def test_an_answer_that_ends_inside_a_character_is_the_same_in_pieces(tokenizer):
    tokens = tokenizer.encode("a😀", add_special_tokens=False).ids[:-1]
    assert "".join(read(tokenizer, tokens, None)[0]) == tokenizer.decode(tokens) == "a\ufffd"


def finish_of(answered: Any) -> str:
    if not answered.text.startswith("data: "):
        return json.loads(answered.text)["choices"][0]["finish_reason"]
    events = [json.loads(line[6:]) for line in answered.text.splitlines() if line.startswith("data: {")]
    return next(choice["finish_reason"] for e in events for choice in e["choices"] if choice.get("finish_reason"))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("is_parsed", [False, True])
def test_answers_end_before_their_stop_text(served, monkeypatch, stream, is_parsed):
    if is_parsed:
        monkeypatch.setattr(served.processor.tokenizer, "response_template", TEMPLATE, raising=False)

    async def test(app: Any) -> None:
        async def ask(**fields: Any) -> tuple[str, str]:
            answered = await Client(app).post(question(served, **{"stream": stream, **fields})).done
            assert answered.status == 200, answered.text
            return text_of(answered), finish_of(answered)

        whole, reason = await ask(max_tokens=8)
        assert reason == "length" and len(whole) >= 8
        for stop in (whole[3], whole[3:6], whole[-3:], whole[-1]):
            expected = whole[: whole.index(stop)], "stop"
            assert await ask(max_tokens=8, stop=[stop]) == expected
            assert await ask(max_tokens=8, stop=["no such text", stop]) == expected
            assert await ask(max_tokens=8, stop=stop) == expected
            settings = json.dumps({"max_new_tokens": 8, "do_sample": False, "stop_strings": [stop]})
            assert await ask(max_tokens=None, temperature=None, generation_config=settings) == expected
        assert await ask(max_tokens=8, stop=[whole[-2:] + "more"]) == (whole, "length")

    run(served, test)


@pytest.mark.parametrize("stream", [False, True])
def test_responses_end_before_their_stop_text(served, stream):
    async def test(app: Any) -> None:
        async def ask(**settings: Any) -> str:
            settings = json.dumps({"max_new_tokens": 8, "do_sample": False, **settings})
            body = {"model": served.name, "input": "What happens?", "stream": stream, "generation_config": settings}
            text = (await Client(app).post(body, RESPONSES).done).text
            body = json.loads(text.strip().splitlines()[-1].removeprefix("data: "))
            body = body.get("response", body)
            return body["output"][0]["content"][0]["text"]

        whole = await ask()
        assert await ask(stop_strings=[whole[4:6]]) == whole[: whole.index(whole[4:6])]

    run(served, test)
