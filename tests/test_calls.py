"""Settings of a single call, and its report."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from families import FAMILIES
from test_model import BATCHES, LARGE, SMALL, assert_same, generate, logits

from flashvid_hf.models.upstream import CACHE

pytestmark = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)

SETTINGS = [
    {"retention_ratio": 0.2},
    {"retention_ratio": 1.0},
    {"pruning_layer": 4, "llm_retention_ratio": 0.25},
    {"behavior": "released", "alpha": 0.5},
    {"expansion": 1.0},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("stored", [0.4, 1.0])
def test_settings_of_a_call_equal_those_of_the_configuration(family, settings, stored):
    model, configured = family.model(retention_ratio=stored), family.model(retention_ratio=stored)
    configured.config = configured.model.config = configured.config.override(**settings)
    inputs = family.inputs(*BATCHES["text beside videos"])
    ours, theirs = generate(model, inputs, **settings), generate(configured, inputs)
    assert_same(ours, theirs)
    assert str(ours.report) == str(theirs.report)
    assert_same(generate(model, inputs, **settings, use_cache=False), theirs)
    assert model.config.retention_ratio == stored
    with torch.no_grad():
        ours, theirs = model(**inputs, **settings), configured(**inputs)
        torch.testing.assert_close(ours.logits, theirs.logits, atol=2e-5, rtol=1e-5)
        assert str(ours.report) == str(theirs.report)
        assert str(model(**inputs).report) == str(family.model(retention_ratio=stored)(**inputs).report)


def test_the_next_turn_follows_the_cache(family):
    """Tokens that the first turn pruned stay pruned, even if the configuration has changed."""
    model = family.model()
    inputs = family.inputs(*BATCHES["one video"])
    settings = {"pruning_layer": 4, "llm_retention_ratio": 0.25}
    first = generate(model, inputs, **settings)
    ids = torch.cat([first.sequences, torch.tensor([[20, 21, 22]])], dim=1)
    following = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "mm_token_type_ids" in inputs:
        types = inputs["mm_token_type_ids"]
        following["mm_token_type_ids"] = torch.nn.functional.pad(types, (0, ids.shape[1] - types.shape[1]))
    second = generate(model, following, cache=first[CACHE])
    with torch.no_grad():
        whole = model(**{**inputs, **following}, query_index=inputs["input_ids"].shape[1] - 1, **settings)
    torch.testing.assert_close(logits(second)[:, 0], whole.logits[:, -1], atol=2e-5, rtol=1e-5)
    assert second.report.tokens == () and not second.report.compressed
    assert [report.compressed for report in second[CACHE].reports] == [True]


def continued(inputs, *more):
    """The inputs of a prompt and more text after it, without the pixels of the videos."""
    ids = torch.cat([inputs["input_ids"], *more], dim=1)
    grown = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "mm_token_type_ids" in inputs:
        types = inputs["mm_token_type_ids"]
        grown["mm_token_type_ids"] = torch.nn.functional.pad(types, (0, ids.shape[1] - types.shape[1]))
    return grown


def test_one_prefill_and_many_questions(family):
    """Each answer equals that of a run from scratch that prunes by the same query, the end of the shared part."""
    model = family.model()
    shared, other = family.inputs(["text", LARGE]), family.inputs([SMALL, "text", "text"], seed=5)
    with torch.no_grad():
        cache = model(**shared, logits_to_keep=1)[CACHE]
    held = [layer.keys.clone() for layer in cache.layers]
    for question in ([20, 21], [30, 31, 32, 33], [40]):
        generate(model, other)  # another conversation in between
        prompt = continued(shared, torch.tensor([question]))
        answer = generate(model, prompt, cache=copy.deepcopy(cache))
        scratch = generate(model, {**shared, **prompt}, query_index=shared["input_ids"].shape[1] - 1)
        assert_same(answer, scratch)
        with torch.no_grad():
            forward = model(**{**prompt, "input_ids": torch.tensor([question])}, cache=copy.deepcopy(cache))
        torch.testing.assert_close(forward.logits[:, -1], logits(scratch)[:, 0], atol=2e-5, rtol=1e-5)
    assert all(torch.equal(layer.keys, keys) for layer, keys in zip(cache.layers, held, strict=True))


def test_conversations_take_turns(family):
    model = family.model()
    first, second = family.inputs(["text", LARGE, "text"]), family.inputs([SMALL, "text"], seed=3)
    answers = [generate(model, inputs) for inputs in (first, second)]
    for inputs, answer in ((first, answers[0]), (second, answers[1])):
        more = [answer.sequences[:, inputs["input_ids"].shape[1] :], torch.tensor([[20, 21, 22]])]
        prompt = continued(inputs, *more)
        following = generate(model, prompt, cache=answer[CACHE])
        scratch = generate(model, {**inputs, **prompt}, query_index=inputs["input_ids"].shape[1] - 1)
        assert_same(following, scratch)


def test_a_cache_has_one_pruning_layer(family):
    model = family.model()
    inputs = family.inputs(*BATCHES["one video"])
    with torch.no_grad():
        cache = model(**inputs, use_cache=True)[CACHE]
        if "mm_token_type_ids" in inputs:  # upstream computes the positions of a second video
            grown = [inputs["input_ids"]] * 2
            inputs["position_ids"] = torch.arange(len(torch.cat(grown, 1)[0]))[None, None].expand(4, 1, -1)
        inputs["attention_mask"] = torch.ones(1, 2 * inputs["input_ids"].shape[1], dtype=torch.long)
        with pytest.raises(ValueError, match="`pruning_layer` is 4, and the cache was pruned from layer 3 on"):
            model(**inputs, cache=cache, pruning_layer=4)


@pytest.mark.slow
def test_threads_with_different_settings_do_not_meet(family):
    model = family.model()
    inputs = family.inputs(*BATCHES["videos of different length"])
    ratios = [0.2, 0.4, 0.6, 1.0]
    alone = [generate(model, inputs, retention_ratio=ratio) for ratio in ratios]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda ratio: generate(model, inputs, retention_ratio=ratio), ratios * 3))
    for result, expected in zip(together, alone * 3, strict=True):
        assert_same(result, expected)
        assert str(result.report) == str(expected.report)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"retention_ratio": 0}, "`retention_ratio` is 0"),
        ({"pruning_layer": 0}, "`pruning_layer` is 0"),
        ({"behavior": "best"}, "`behavior` is 'best'"),
    ],
)
def test_settings_out_of_range_are_refused_before_encoding(family, settings, message):
    model = family.model()
    family.remove_tower(model)
    inputs = family.inputs(*BATCHES["one video"])
    for call in (lambda **kw: generate(model, kw), model):
        with pytest.raises(ValueError, match=message):
            call(**inputs, **settings)


@pytest.mark.parametrize("ratio", [0.2, 1.0])
def test_encoded_videos_keep_their_settings(family, ratio):
    model = family.model()
    inputs = family.inputs(*BATCHES["one video"])
    names = [name for name in model.model.encoder_inputs["video"] if name in inputs]
    with torch.no_grad():
        video = model.get_video_features(**{name: inputs[name] for name in names}, retention_ratio=ratio)
        rest = {name: value for name, value in inputs.items() if name != "pixel_values_videos"}
        encoded = model(**rest, mm_encoder_outputs={"video": video})
        assert torch.equal(encoded.logits, model(**inputs, retention_ratio=ratio).logits)
        with pytest.raises(ValueError, match="`retention_ratio` is 0.5 and `mm_encoder_outputs` has videos"):
            model(**rest, mm_encoder_outputs={"video": video}, retention_ratio=0.5)


@pytest.mark.parametrize(
    "kwargs", [{}, {"use_cache": False}, {"num_beams": 2}, {"prompt_lookup_num_tokens": 2}], ids=str
)
def test_every_call_reports(family, kwargs):
    model = family.model()
    prompts = BATCHES["text beside videos"]
    if "prompt_lookup_num_tokens" in kwargs:  # a batch of one
        prompts = prompts[:1]
    inputs = family.inputs(*prompts)
    report = generate(model, inputs, **kwargs).report
    beams = kwargs.get("num_beams", 1)
    assert report.compressed and len(report.videos) == len(report.tokens) == beams * min(2, len(prompts))
    for row, part in ((0, LARGE), (2, SMALL)):
        if row < len(prompts):
            total, entered, remained = report.of_sample(row * beams)
            assert (total, entered) == (family.placeholders(part), family.entered(part, model.config))
            assert remained < entered
    if len(prompts) > 1:
        assert report.of_sample(beams) == (0, 0, 0)


@torch.no_grad()
@pytest.mark.parametrize("padded_by", ["the compression", "the pruning"])
def test_padding_is_no_token_of_a_video_that_comes_first(family, padded_by):
    """Padding stands for no column. So nothing of the first column enters, is counted or is reported for it."""
    model = family.model(llm_retention_ratio=0.1)
    most = family.placeholders(LARGE) if padded_by == "the compression" else family.entered(LARGE, model.config)
    prompts = [[LARGE, "text"], ["text"] * ((most + 4) // 5)]
    together = model(**family.inputs(*prompts))
    alone = model(**family.inputs(prompts[0]))
    is_real = together.token_index[0] >= 0
    assert not is_real.all()
    torch.testing.assert_close(together.logits[0, is_real], alone.logits[0], atol=2e-5, rtol=1e-5)
    assert together.report.remained == alone.report.remained
    (ours,), (theirs,) = together.report.kept_tokens_remained, alone.report.kept_tokens_remained
    assert torch.equal(ours, theirs) and not theirs[0]  # the token of the first column is dropped


def test_a_call_that_compresses_nothing_says_so(family):
    model = family.model()
    inputs = family.inputs(*BATCHES["videos of different length"])
    outputs = generate(model, inputs, retention_ratio=1.0)
    whole = tuple(family.placeholders(part) for part in (LARGE, SMALL))
    assert outputs.report.tokens == outputs.report.entered == outputs.report.remained == whole
    assert outputs.report.samples == (0, 1)
    assert not outputs.report.compressed and str(outputs.report).endswith("nothing was compressed")
    with torch.no_grad():
        outputs = model(**family.inputs(["text"]))
    assert outputs.report.tokens == ()
