"""The engine of `serve`: answers written together equal those written alone, and none of them can stop the others."""

import asyncio
import functools
import threading
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checkpoints import build_flashvid_folder, moving_frames, once
from transformers import GenerationConfig

from flashvid_hf.loading import load_model
from flashvid_hf.serving import engine as engines
from flashvid_hf.serving.engine import Answer, Engine, EngineUnavailable, GenerationFailed
from flashvid_hf.serving.rows import Rows

# The number of frames, 0 for text alone, and the question. No two prompts are equally long.
QUESTIONS = [(8, "What moves?"), (0, "Tell a long story."), (3, "Why?"), (12, "Who is it, and where?"), (0, "Hi")]


@pytest.fixture(scope="module", params=["qwen2_5_vl", "llava_onevision"])
def loaded(request, tmp_path_factory) -> SimpleNamespace:
    """A small model and its processor, and `inputs(...)` of a question."""
    return load(tmp_path_factory, request.param)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory) -> SimpleNamespace:
    """For tests that do not depend on the family."""
    return load(tmp_path_factory, "qwen2_5_vl")


def load(tmp_path_factory: Any, family: str) -> SimpleNamespace:
    folder = once(tmp_path_factory, f"pipeline-{family}", lambda folder: build_flashvid_folder(folder, family))
    model, processor = load_model(str(folder), device="cpu")

    @functools.cache
    def inputs(number: int) -> dict[str, Any]:
        num_frames, question = QUESTIONS[number]
        content = [{"type": "video"}] * bool(num_frames) + [{"type": "text", "text": question}]
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        metadata = {"total_num_frames": num_frames, "fps": 4.0, "frames_indices": list(range(num_frames))}
        media: dict[str, Any] = {}
        if num_frames:
            media = {"videos": [moving_frames(num_frames)], "video_metadata": [metadata], "do_sample_frames": False}
        made = processor(text=[prompt], return_tensors="pt", **media)
        return {name: torch.as_tensor(value) for name, value in made.items()}

    return SimpleNamespace(model=model, processor=processor, inputs=inputs)


def config_of(loaded: SimpleNamespace, **settings: Any) -> GenerationConfig:
    settings = {"do_sample": False, "max_new_tokens": 8, **settings}
    return GenerationConfig(**{**loaded.model.generation_config.to_dict(), **settings})


def ask(loaded: SimpleNamespace, number: int = 0, seed: int | None = None, **settings: Any) -> Answer:
    ratio = {name: settings.pop(name) for name in ("retention_ratio",) if name in settings}
    return Answer({**loaded.inputs(number), **ratio}, config_of(loaded, **settings), seed)


def run(loaded: SimpleNamespace, test: Callable[[Engine], Awaitable[Any]], **options: Any) -> Any:
    """The result of a test with an engine."""

    async def with_engine() -> Any:
        engine = Engine(loaded.model, loaded.processor, **{"max_num_seqs": 8, "step_timeout": 60.0, **options})
        engine.start()
        try:
            return await asyncio.wait_for(test(engine), 120)
        finally:
            await engine.stop()

    return asyncio.run(with_engine())


def write(loaded: SimpleNamespace, *asked: dict[str, Any], **options: Any) -> list[list[int] | Exception]:
    """The tokens of questions that wait at the same time, or the error of each."""

    async def together(engine: Engine) -> Any:
        answers = [ask(loaded, **arguments) for arguments in asked]
        for answer in answers:
            engine.submit(answer)
        found = await asyncio.gather(*(answer.whole() for answer in answers), return_exceptions=True)
        lengths = [len(tokens) for tokens in found if isinstance(tokens, list)]
        if len(lengths) > 1:  # they did share steps
            assert engine.counts.steps["writing tokens"] < sum(lengths) - len(lengths)
        assert engine.counts.generated_tokens == sum(lengths)
        return found

    return run(loaded, together, **options)


async def until(condition: Callable[[], Any]) -> None:
    while not condition():
        await asyncio.sleep(0.002)


def test_answers_written_together_equal_those_of_generate(loaded):
    lengths, ratios = [12, 9, 5, 15, 12], [0.25, 0.25, 1.0, 0.25, 0.25]
    asked, expected = [], []
    for number, (length, ratio) in enumerate(zip(lengths, ratios, strict=True)):
        asked.append({"number": number, "max_new_tokens": length, "retention_ratio": ratio})
        inputs, config = loaded.inputs(number), config_of(loaded, max_new_tokens=length)
        ids = loaded.model.generate(**inputs, generation_config=config, retention_ratio=ratio)
        expected.append(ids[0, inputs["input_ids"].shape[1] :].tolist())
    assert write(loaded, *asked) == expected
    assert write(loaded, *asked, max_num_seqs=3) == expected  # rows leave, and others join the rest


def test_rows_of_one_length_go_on_where_a_shorter_one_left(loaded):
    """Then no column is padding any more, and another row leaves."""
    rows, single = Rows(loaded.model), Rows(loaded.model)
    for number, token in ((4, 5), (1, 17), (1, 40)):
        rows.add(engines.Row(loaded.model, loaded.inputs(number), config_of(loaded)), token)
    single.add(engines.Row(loaded.model, loaded.inputs(1), config_of(loaded)), 40)
    for row in (*rows.rows, *single.rows):
        row.position += 1  # as `choose` does
    rows.keep([1, 2])
    rows.keep([1])
    rows.step()
    single.step()
    torch.testing.assert_close(rows.rows[0].logits, single.rows[0].logits, rtol=1e-4, atol=1e-5)


def test_logits_of_rows_equal_those_alone(loaded):
    # Greedy answers of a small model could be equal by chance.
    tokens = [5, 17, 40, 8]
    rows, alone = Rows(loaded.model), []
    made = {number: engines.Row(loaded.model, loaded.inputs(number), config_of(loaded)) for number in (0, 1, 3)}
    singles = {number: engines.Row(loaded.model, loaded.inputs(number), config_of(loaded)) for number in (0, 1, 3)}
    for place, number in enumerate((0, 1, 3)):
        made[number].position += 1  # as `choose` does
        rows.add(made[number], tokens[place])
        rows.step()
        rows.keep(range(place + 1), [7] * (place + 1))
        for row in rows.rows:
            row.position += 1
    rows.step()
    for place, number in enumerate((0, 1, 3)):
        single = Rows(loaded.model)
        singles[number].position += 1
        single.add(singles[number], tokens[place])
        for _ in range(3 - place):
            single.step()
            single.keep([0], [7])
            single.rows[0].position += 1
        single.step()
        alone.append(single.rows[0].logits)
    torch.testing.assert_close(torch.cat([row.logits for row in rows.rows]), torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_each_answer_has_its_own_settings(qwen):
    greedy, _ = write(qwen, {}, {"number": 1})
    text = qwen.processor.decode(greedy)
    asked = [
        {"seed": 1, "do_sample": True, "temperature": 1.0},
        {"seed": 2, "do_sample": True, "temperature": 1.0},
        {"stop_strings": [text[2]]},
        {"repetition_penalty": 3.0},
        {"sequence_bias": {(9,): 1e4}, "number": 1},
        {"max_new_tokens": 1},
        {"eos_token_id": greedy[1]},
    ]
    alone = [write(qwen, arguments)[0] for arguments in asked]
    assert write(qwen, *asked) == alone
    first, second, stopped, penalised, biased, shortest, ended = alone
    assert first != second
    assert text.index(text[2]) < len(qwen.processor.decode(stopped)) <= text.index(text[2]) + 1
    assert penalised != greedy and biased == [9] * 8 and shortest == greedy[:1] and ended == greedy[:2]


def test_a_stop_string_may_lie_across_tokens(qwen):
    (greedy,) = write(qwen, {"max_new_tokens": 8})
    text = qwen.processor.decode(greedy)
    (stopped,) = write(qwen, {"stop_strings": ["no such text", text[3:6]]})
    assert qwen.processor.decode(stopped).endswith(text[3:6]) and len(stopped) < len(greedy)


def test_a_finished_answer_does_not_wait_for_the_others(qwen):
    async def test(engine: Engine) -> None:
        long, short = ask(qwen, 1, max_new_tokens=400), ask(qwen, 4, max_new_tokens=3)
        engine.submit(long)
        engine.submit(short)
        await short.whole()
        assert not long.is_over and engine.num_running == 1
        late = ask(qwen, 0, max_new_tokens=3)  # and one that comes later need not wait either
        engine.submit(late)
        await late.whole()
        assert not long.is_over
        assert (await long.more(0))[0] == long.tokens[0]
        engine.drop(long)

    run(qwen, test)


def test_one_client_does_not_take_the_last_place(qwen):
    async def test(engine: Engine) -> None:
        long = [ask(qwen, 1, max_new_tokens=2000) for _ in range(3)]
        other = ask(qwen)
        other.client = "other"
        for answer in (*long, other):
            engine.submit(answer)
        await other.whole()
        assert engine.num_running == 2 and len(engine._waiting) == 1
        engine.drop(long[0])
        await long[2].read()
        for answer in long:
            engine.drop(answer)

    run(qwen, test, max_num_seqs=3)


def test_an_answer_that_nobody_waits_for_ends(qwen):
    async def test(engine: Engine) -> None:
        written, waiting, other = ask(qwen, 1, max_new_tokens=2000), ask(qwen), ask(qwen, 4, max_new_tokens=30)
        other.client = "other"
        engine.submit(written)
        engine.submit(other)
        await asyncio.gather(written.read(), other.read())
        engine.submit(waiting)  # there are two places
        engine.drop(waiting)
        assert not engine._waiting and waiting.inputs is None
        engine.drop(written)
        seen = len(written.tokens)
        assert len(await other.whole()) == 30
        assert engine.num_running == 0 and len(written.tokens) == seen
        assert await asyncio.wait_for(finish(engine), 60) == 8

    async def finish(engine: Engine) -> int:
        engine.submit(answer := ask(qwen))
        return len(await answer.whole())

    run(qwen, test, max_num_seqs=2)


def test_a_request_that_fails_does_not_disturb_the_others(qwen):
    vocabulary = qwen.model.config.get_text_config().vocab_size
    (expected,) = write(qwen, {"number": 1})
    found = write(
        qwen,
        {"number": 1},
        {"sequence_bias": {(vocabulary + 5,): 1.0}},
        {"do_sample": True, "temperature": 1e-45},
        {"number": 1},
    )
    assert found[0] == found[3] == expected
    assert isinstance(found[1], ValueError) and isinstance(found[2], ValueError)
    assert str(found[2]).startswith("The scores of the next token are not finite")


def test_a_prompt_that_does_not_fit_memory_fails_alone(qwen, monkeypatch):
    original = qwen.model.prepare_inputs_for_generation

    def prepare(input_ids: torch.Tensor, **kwargs: Any) -> Any:
        if input_ids.shape[1] == qwen.inputs(3)["input_ids"].shape[1]:
            raise torch.OutOfMemoryError("no memory")
        return original(input_ids, **kwargs)

    monkeypatch.setattr(qwen.model, "prepare_inputs_for_generation", prepare)
    found = write(qwen, {"number": 0}, {"number": 3}, {"number": 4})
    assert isinstance(found[1], GenerationFailed) and "no memory" not in str(found[1])
    assert len(found[0]) == len(found[2]) == 8


def test_a_step_that_fails_ends_its_answers_and_the_engine_goes_on(qwen, monkeypatch):
    original, fails = Rows.step, [True]

    def step(self: Rows) -> None:
        if len(self.rows) == 2 and fails.pop():
            raise RuntimeError("the device failed")
        original(self)

    async def test(engine: Engine) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Rows, "step", step)
            answers = [ask(qwen, number) for number in (0, 1)]
            for answer in answers:
                engine.submit(answer)
            found = await asyncio.gather(*(answer.whole() for answer in answers), return_exceptions=True)
            assert [type(error) for error in found] == [GenerationFailed] * 2
        engine.submit(answer := ask(qwen))
        assert len(await answer.whole()) == 8
        assert engine.counts.failures == 1 and engine.num_running == 0

    run(qwen, test)


def test_a_stuck_step_is_reported_and_its_requests_are_answered(qwen, monkeypatch):
    monkeypatch.setattr(engines, "_WATCH_SECONDS", 0.01)
    original, goes_on = Rows.step, threading.Event()

    def step(self: Rows) -> None:
        goes_on.wait(60)
        original(self)

    async def test(engine: Engine) -> None:
        monkeypatch.setattr(Rows, "step", step)
        written, waiting = ask(qwen), ask(qwen, 1)
        engine.submit(written)
        await written.read()
        await until(lambda: engine.step_seconds)
        engine.submit(waiting)
        for answer in (written, waiting):
            with pytest.raises(EngineUnavailable, match=r"stuck: it has been writing tokens for \d+ seconds"):
                await answer.whole()
        assert "stuck" in engine.find_trouble()
        with pytest.raises(EngineUnavailable, match="stuck"):
            engine.submit(ask(qwen))
        goes_on.set()
        await until(lambda: engine.find_trouble() is None)
        engine.submit(late := ask(qwen))
        assert len(await late.whole()) == 8

    run(qwen, test, step_timeout=2.0, max_num_seqs=1)  # a busy machine reads a prompt in less


def test_the_end_of_the_engine_ends_its_answers(qwen):
    async def test(engine: Engine) -> Answer:
        engine.submit(answer := ask(qwen, 1, max_new_tokens=2000))
        await answer.read()
        await engine.stop()
        with pytest.raises(EngineUnavailable, match="The server stops"):
            engine.submit(ask(qwen))
        assert not engine._thread.is_alive()
        return answer

    assert isinstance(run(qwen, test)._error, EngineUnavailable)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"num_beams": 2}, "`num_beams` = 2"),
        ({"num_return_sequences": 2, "do_sample": True}, "`num_return_sequences` = 2"),
        ({"use_cache": False}, "`use_cache` = False"),
        ({"cache_implementation": "static"}, "`cache_implementation` = 'static'"),
        ({"prompt_lookup_num_tokens": 2}, "asks for assisted_generation"),
        ({"penalty_alpha": 0.5, "top_k": 4}, "asks for contrastive_search"),
        ({"guidance_scale": 2.0}, "`guidance_scale` = 2.0"),
    ],
)
def test_generation_that_cannot_share_steps_is_refused(qwen, settings, message):
    with pytest.raises(ValueError, match=message):
        ask(qwen, **settings)


def test_a_model_without_full_attention_answers_one_at_a_time(qwen, monkeypatch):
    text_config = qwen.model.config.get_text_config()
    monkeypatch.setattr(text_config, "layer_types", ["sliding_attention", *text_config.layer_types[1:]])

    async def test(engine: Engine) -> int:
        return engine.max_num_seqs

    assert run(qwen, test) == 1
