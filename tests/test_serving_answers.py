"""How long the answers of `serve` may be, and how their streams end."""

import json
from typing import Any

import pytest
from checkpoints import build_flashvid_folder, once
from serving_client import CHAT, RESPONSES, Client, question, run

from flashvid_hf.serving.app import ServedModel

LIMITS = {"max_tokens": CHAT, "max_completion_tokens": CHAT, "max_output_tokens": RESPONSES}


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> ServedModel:
    folder = once(tmp_path_factory, "pipeline-qwen2_5_vl", lambda folder: build_flashvid_folder(folder, "qwen2_5_vl"))
    return ServedModel.load(str(folder), device="cpu")


async def ask(app: Any, served: ServedModel, path: str = CHAT, **fields: Any) -> Any:
    """The JSON of an answer or of its error."""
    body = question(served, max_tokens=None) if path == CHAT else {"model": served.name, "input": "What happens?"}
    fields = {"stream": False, **fields}
    return json.loads((await Client(app).post(body, path, **fields).done).text)


def shorten(monkeypatch: pytest.MonkeyPatch, served: ServedModel, context: int) -> None:
    monkeypatch.setattr(served.model.config.get_text_config(), "max_position_embeddings", context)


def test_an_answer_that_does_not_fit_the_context_is_refused(served, monkeypatch):
    async def test(app: Any) -> None:
        prompt = (await ask(app, served, max_tokens=1))["usage"]["prompt_tokens"]
        shorten(monkeypatch, served, prompt + 5)
        monkeypatch.setattr(served.model, "generate", lambda *_, **__: pytest.fail("the model ran"))
        for name, path in LIMITS.items():
            for stream in (False, True):
                error = (await ask(app, served, path, **{name: 6}, stream=stream))["error"]
                assert error["param"] == name and error["type"] == "invalid_request_error"
                assert f"`{name}` is 6: with this prompt it must be an integer from 1 to 5" in error["message"]
        both = await ask(app, served, max_completion_tokens=6, max_tokens=6)
        assert both["error"]["param"] == "max_tokens"
        for name, least, most in (("max_new_tokens", 1, 5), ("max_length", prompt + 1, prompt + 5)):
            error = (await ask(app, served, generation_config=json.dumps({name: most + 1})))["error"]
            assert error["param"] == f"generation_config.{name}"
            assert f"` is {most + 1}: with this prompt it must be an integer from {least} to {most}" in error["message"]
        shorten(monkeypatch, served, prompt)  # no answer fits at all
        assert (await ask(app, served, max_tokens=1))["error"]["param"] == "messages"

    run(served, test)


def test_an_answer_may_fill_the_context(served, monkeypatch):
    async def test(app: Any) -> None:
        prompt = (await ask(app, served, max_tokens=1))["usage"]["prompt_tokens"]
        shorten(monkeypatch, served, prompt + 5)
        for name, path in LIMITS.items():
            assert "usage" in await ask(app, served, path, **{name: 5})
        assert "usage" in await ask(app, served, generation_config=json.dumps({"max_length": prompt + 5}))
        for path in (CHAT, RESPONSES):  # the default is as long as there is room
            usage = (await ask(app, served, path))["usage"]
            assert usage.get("completion_tokens", usage.get("output_tokens")) == 5

    run(served, test)


@pytest.mark.parametrize("options", [None, {}, {"include_usage": False}, {"include_usage": True}])
def test_a_chat_stream_ends_with_its_mark_and_has_usage_if_asked(served, options):
    async def test(app: Any) -> None:
        body = question(served, stream=True, stream_options=options)
        *lines, end = (await Client(app).post(body).done).text.rstrip("\n").split("\n\n")
        assert end == "data: [DONE]"
        events = [json.loads(line.removeprefix("data: ")) for line in lines]
        if options and options.get("include_usage"):
            usage = events.pop()
            assert usage["choices"] == [] and usage["object"] == "chat.completion.chunk"
            assert usage["id"] == events[0]["id"] and usage["model"] == served.name
            assert usage["usage"] == (await ask(app, served, max_tokens=4))["usage"]
        assert all("usage" not in event and event["choices"] for event in events)
        reasons = [event["choices"][0].get("finish_reason") for event in events]
        assert reasons == [None] * (len(events) - 1) + ["length"]

    run(served, test)


def test_a_stream_of_responses_ends_with_its_usage(served):
    async def test(app: Any) -> None:
        body = {"model": served.name, "input": "What happens?", "max_output_tokens": 4, "stream": True}
        last = (await Client(app).post(body, RESPONSES).done).text.rstrip("\n").split("\n\n")[-1]
        event = json.loads(last.removeprefix("data: "))
        assert event["type"] == "response.completed" and event["response"]["usage"]["output_tokens"] == 4

    run(served, test)
