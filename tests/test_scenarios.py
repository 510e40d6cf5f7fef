"""A compressed model can do what upstream can do: the table of `scenarios.py`, for every family."""

import pytest
import torch
from families import FAMILIES
from scenarios import (
    CALLS,
    LARGE,
    PICTURE,
    REFUSALS,
    SCENARIOS,
    Answer,
    conversation,
    generate,
    plain,
    replayed,
    uncached,
)

from flashvid_hf.models.upstream import CACHE

pytestmark = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
by_name = {"ids": lambda scenario: scenario.name}
ANSWERS_ALONE: dict[str, Answer] = {}
ROUNDING = {"atol": 2e-5, "rtol": 1e-5}


@pytest.mark.parametrize("scenario", SCENARIOS, **by_name)
def test_ratio_one_is_upstream(family, scenario, monkeypatch):
    """Bit for bit for the Qwen families, within float32 rounding for the LLaVA families."""
    device = find_device(scenario, monkeypatch)
    family = family.as_upstream()
    model = family.model(retention_ratio=1.0).to(device)
    upstream = family.upstream(model).to(device)
    inputs = to(family.inputs(*scenario.prompts), device)
    theirs = scenario.run(upstream, family, inputs if same_form(inputs) else with_ids(family, upstream, inputs))
    ours = scenario.run(model, family, inputs)
    assert torch.equal(ours.tokens, theirs.tokens)
    exact = {"rtol": 0, "atol": family.upstream_atol}
    for name in ("logits", "scores", "states"):
        if getattr(ours, name) is not None:
            torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), **exact)


@pytest.mark.parametrize("scenario", SCENARIOS, **by_name)
def test_compressed_is_one_sample_without_a_cache(family, scenario, monkeypatch):
    reason = scenario.upstream_is_wrong(family)
    if reason is not None:
        pytest.skip(reason)
    device = find_device(scenario, monkeypatch)
    model = family.model(retention_ratio=0.25, **scenario.settings).to(device)
    answer = scenario.run(model, family, to(family.inputs(*scenario.prompts), device))
    repeats = len(answer.tokens) // len(scenario.prompts)
    model.to("cpu")
    for row, (tokens, logits) in enumerate(rows_of(answer)):
        sample = row // repeats
        single, is_whole = family.inputs(scenario.prompts[sample], seed=sample), answer.prompt is None
        if answer.prompt is not None and len(scenario.prompts) == 1:
            single = answer.prompt
        elif answer.prompt is not None:
            single = continued(single, answer.prompt, sample)
        columns = single["input_ids" if "input_ids" in single else "inputs_embeds"].shape[1]
        query = columns - 1
        if answer.query_index is not None:  # counted from the end, so padding does not matter
            whole = answer.prompt["input_ids" if "input_ids" in answer.prompt else "inputs_embeds"].shape[1]
            query -= whole - 1 - answer.query_index
        arguments = (model, single, scenario.choose, tokens, query, scenario.states)
        # Scenarios that differ in nothing but the call share the answer to the sample alone.
        settings = (sorted(scenario.settings.items()), scenario.prompts[sample], model.config._attn_implementation)
        key = repr((family.name, sample, settings, scenario.choose, tokens.tolist(), query, scenario.states))
        expected = ANSWERS_ALONE.get(key) if is_whole else None
        if expected is None:
            expected = uncached(*arguments)
        if is_whole:
            ANSWERS_ALONE[key] = expected
        assert expected.tokens[0].tolist() == tokens.tolist()
        if logits is not None:
            torch.testing.assert_close(logits, expected.logits[0], **ROUNDING)
        if answer.scores is not None:
            likelihoods = expected.logits[0].log_softmax(-1).gather(1, tokens[:, None])
            torch.testing.assert_close(answer.scores[row].cpu(), likelihoods.mean(), **ROUNDING)
        if scenario.states:
            torch.testing.assert_close(answer.states, expected.states, **ROUNDING)


@pytest.mark.parametrize("scenario", [s for s in SCENARIOS if s.run is not plain and not s.needs_cache], **by_name)
def test_no_cache_gives_the_same_tokens(family, scenario):
    """The same as `test_model.py` asserts for plain answers."""
    model = family.model(retention_ratio=0.25, **scenario.settings)
    inputs = family.inputs(*scenario.prompts)
    cached, plainly = scenario.run(model, family, inputs), scenario.run(model, family, inputs, use_cache=False)
    assert torch.equal(cached.tokens, plainly.tokens)


@pytest.mark.parametrize("scenario", CALLS, **by_name)
def test_forward_at_ratio_one_is_upstream(family, scenario):
    family = family.as_upstream()
    model = family.model(retention_ratio=1.0)
    upstream = family.upstream(model)
    inputs = family.inputs(*scenario.prompts, padding_side=scenario.padding_side)
    with torch.no_grad():
        theirs = family.upstream_inputs(upstream, inputs)
        ours, theirs = scenario.run(model, family, inputs), scenario.run(upstream, family, theirs)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=family.upstream_atol)


@pytest.mark.parametrize("scenario", CALLS, **by_name)
def test_compressed_forward_is_one_sample_without_a_cache(family, scenario):
    model = family.model(retention_ratio=0.25, **scenario.settings)
    inputs = family.inputs(*scenario.prompts, padding_side=scenario.padding_side)
    singles = [family.inputs(prompt, seed=row) for row, prompt in enumerate(scenario.prompts)]
    with torch.no_grad():
        ours = scenario.run(model, family, inputs)
        torch.testing.assert_close(ours, scenario.reference(model, family, singles), **ROUNDING)


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(family, name):
    run, message, before_encoding = REFUSALS[name]
    model, inputs = family.model(), family.inputs(["text", LARGE, "text"])
    if before_encoding:
        family.remove_tower(model)  # encoding would raise another error
    with pytest.raises(ValueError, match=message):
        run(model, family, inputs)


def test_a_second_video_on_the_cache(family):
    """In the Qwen families `generate` of upstream has no positions for it."""
    model = family.model(retention_ratio=0.25, llm_retention_ratio=1.0)
    inputs = family.inputs(["text", LARGE, "text"])
    if family.name.startswith("qwen"):
        with pytest.raises(ValueError, match=f"`{CACHE}` holds a video and the call brings another"):
            conversation(model, family, inputs, turn=("text", LARGE, "text"))
        return
    answer = conversation(model, family, inputs, turn=("text", LARGE, "text"))
    (tokens,) = answer.tokens
    expected = uncached(model, answer.prompt, replayed, tokens, answer.query_index)
    torch.testing.assert_close(answer.logits, expected.logits, **ROUNDING)


@pytest.mark.parametrize(
    ("prompt", "turn"),
    [(["image", PICTURE, "text"], ["text"]), (["image", PICTURE], [LARGE, "text"]), ([LARGE, "text"], ["text"])],
    ids=["image", "image beside a new video", "video"],
)
def test_media_of_an_earlier_turn_are_refused(family, prompt, turn):
    """The cache already has them."""
    model = family.model(retention_ratio=0.25)
    inputs = family.inputs(prompt)
    whole = conversation(model, family, inputs, turn).prompt
    cache = generate(model, inputs)[CACHE]
    with pytest.raises(ValueError, match=f"placeholders|do not match|`{CACHE}` holds a video"):
        generate(model, whole, cache=cache)


@pytest.mark.parametrize("prompt", [["text", "text"], ["text", "image", PICTURE, "text"]], ids=["text", "image"])
def test_upstream_assists_prompts_without_videos(family, prompt):
    family = family.as_upstream()
    model = family.model()
    inputs = family.inputs(prompt)
    assistant = family.upstream(model)
    assert torch.equal(
        plain(model, family, inputs, assistant_model=assistant).tokens, plain(assistant, family, inputs).tokens
    )


def test_upstream_assists_where_nothing_is_compressed(family):
    family = family.as_upstream()
    model = family.model()
    inputs = family.inputs(["text", LARGE, "text"])
    assistant = family.upstream(model)
    ours = plain(model, family, inputs, assistant_model=assistant, retention_ratio=1.0)
    assert torch.equal(ours.tokens, plain(assistant, family, inputs).tokens)


def test_encoded_videos_say_how_they_are_ranked(family):
    """Also without a cache, and for every configuration of the model that takes them."""
    model = family.model(retention_ratio=0.25)
    whole = family.model(retention_ratio=1.0)
    inputs = family.inputs(["text", LARGE, "text"])
    names = [name for name in model.model.encoder_inputs["video"] if name in inputs]
    with torch.no_grad():
        video = model.get_video_features(**{name: inputs[name] for name in names}, return_dict=True)
    rest = {name: value for name, value in inputs.items() if name != "pixel_values_videos"}
    expected = plain(model, family, inputs)
    for use_cache in (True, False):
        ours = plain(whole, family, rest, mm_encoder_outputs={"video": video}, use_cache=use_cache)
        assert torch.equal(ours.tokens, expected.tokens)
        torch.testing.assert_close(ours.logits, expected.logits, **ROUNDING)
    with pytest.raises(ValueError, match="`retention_ratio` is 0.5 and `mm_encoder_outputs` has videos"):
        plain(whole, family, rest, mm_encoder_outputs={"video": video}, retention_ratio=0.5)


def test_static_cache_where_nothing_is_compressed(family):
    family = family.as_upstream()
    model = family.model()
    inputs = family.inputs(["text", LARGE, "text"])
    ours = plain(model, family, inputs, cache_implementation="static", retention_ratio=1.0)
    theirs = plain(family.upstream(model), family, inputs, cache_implementation="static")
    assert torch.equal(ours.tokens, theirs.tokens)
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=0, atol=family.upstream_atol)


class NoStream:
    """Takes the place of a stream on devices where everything runs in order."""

    def wait_stream(self, stream):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass


def find_device(scenario, monkeypatch):
    if scenario.on_accelerator and torch.cuda.is_available():
        return "cuda"
    if scenario.on_accelerator:
        monkeypatch.setattr(torch, "Stream", NoStream)
        monkeypatch.setattr(torch.cuda, "Stream", NoStream)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
        monkeypatch.setattr(torch.cuda, "default_stream", lambda device=None: NoStream())
    return "cpu"


def to(inputs, device):
    moved = {}
    for name, value in inputs.items():
        moved[name] = [v.to(device) for v in value] if isinstance(value, list) else value.to(device)
    return moved


def same_form(inputs):
    """Whether upstream takes the videos in this form."""
    return not isinstance(inputs.get("pixel_values_videos"), list)


def with_ids(family, upstream, inputs):
    """Upstream's LLaVA takes videos of different length as embeddings."""
    with torch.no_grad():
        return {**family.upstream_inputs(upstream, inputs), "input_ids": inputs["input_ids"]}


def rows_of(answer: Answer):
    for row, tokens in enumerate(answer.tokens.cpu()):
        yield tokens, None if answer.logits is None else answer.logits[row].cpu()


def continued(single, whole, sample):
    """The inputs of a single sample, and the text that the later turn of the batch has added to it."""
    mask = whole["attention_mask"][sample].bool()
    ids = whole["input_ids"][sample][mask][None]
    inputs = {**single, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "mm_token_type_ids" in single:
        inputs["mm_token_type_ids"] = whole["mm_token_type_ids"][sample][mask][None]
    return inputs
