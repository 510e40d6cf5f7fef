"""The models of all families: what they keep, and that all forms of a call give the same. See also `scenarios.py`."""

import copy
import math
import pickle

import pytest
import torch
from families import FAMILIES, IMAGE, VIDEO, VISION_END, VISION_START

from flashvid_hf import FlashVIDCache
from flashvid_hf.compression import finite_checks as finite
from flashvid_hf.models.upstream import CACHE

# Grids in patches; 4 patches make a token.
SMALL, LARGE, WIDE = (2, 8, 4), (4, 8, 8), (3, 4, 8)
# Batches, each a list of prompts, by the name of their content.
BATCHES = {
    "one video": [["text", LARGE, "text"]],
    "videos of different length": [["text", LARGE, "text"], ["text", SMALL, "text"]],
    "several videos in a prompt": [["text", SMALL, "text", WIDE, "text"], ["text", LARGE, "text"]],
    "text beside videos": [["text", LARGE, "text"], ["text", "text"], ["text", SMALL, "text"]],
    "image beside a video": [["text", "image", (1, 8, 8), "text", LARGE, "text"], [SMALL, "image", (1, 4, 8), "text"]],
    "video at the end": [["text", LARGE], ["text", SMALL]],
}
NO_VIDEO = {
    "text": [["text", "text"], ["text"]],
    "image": [["text", "image", (1, 8, 8), "text"], ["image", (1, 4, 8), "text", "text"]],
}

pytestmark = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


def generate(model, inputs, **kwargs):
    settings = {"max_new_tokens": 6, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    # Random weights may answer with a placeholder. Upstream, too, takes it for one of a video when it reads it again.
    settings["suppress_tokens"] = [IMAGE, VIDEO]
    return model.generate(**inputs, **{**settings, **kwargs})


def logits(outputs) -> torch.Tensor:
    return torch.stack(outputs.logits, dim=1)


def assert_same(first, second):
    """Assert equal tokens, and logits equal within the rounding of another order of summation."""
    assert torch.equal(first.sequences, second.sequences)
    torch.testing.assert_close(logits(first), logits(second), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("batch", NO_VIDEO)
def test_without_videos_is_upstream_bit_for_bit(family, batch):
    model = family.model()
    upstream = family.upstream(model)
    inputs = family.inputs(*NO_VIDEO[batch])
    ours, theirs = generate(model, inputs), generate(upstream, inputs)
    assert torch.equal(ours.sequences, theirs.sequences)
    assert torch.equal(logits(ours), logits(theirs))
    (report,) = ours[CACHE].reports
    assert report is ours.report and report.tokens == () and not report.compressed
    assert str(report) == "no video tokens, nothing was compressed"


@pytest.mark.parametrize("behavior", ["paper", "released"])
@pytest.mark.parametrize("batch", BATCHES)
def test_batch_equals_singles_and_cache_equals_none(family, batch, behavior):
    model = family.model(behavior=behavior)
    prompts = BATCHES[batch]
    together = generate(model, family.inputs(*prompts))
    assert_same(together, generate(model, family.inputs(*prompts), use_cache=False))
    for row, prompt in enumerate(prompts):
        alone = generate(model, family.inputs(prompt, seed=row))
        torch.testing.assert_close(logits(alone)[0], logits(together)[row], atol=2e-5, rtol=1e-5)
        assert torch.equal(alone.sequences[0, -6:], together.sequences[row, -6:])


def test_padding_beside_an_image_takes_nothing_of_it(family):
    """A prompt that begins with an image is the longest, and is padded once its video is compressed.

    The padding holds a copy of the first column, which is a placeholder of the image in the LLaVA families.
    """
    model = family.model()
    prompt = ["image", (1, 8, 8), (8, 8, 8), "text"]
    columns = family.inputs(prompt)["input_ids"].shape[1]
    prompts = [prompt, ["text"] * ((columns - 1) // 5)]
    inputs = family.inputs(*prompts)
    assert inputs["attention_mask"][0].all() and not inputs["attention_mask"][1].all()
    with torch.no_grad():
        assert (model(**inputs).token_index[0] < 0).any(), "it is padded"
    together = generate(model, inputs)
    for row, prompt in enumerate(prompts):
        alone = generate(model, family.inputs(prompt, seed=row))
        torch.testing.assert_close(logits(alone)[0], logits(together)[row], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_what_enters_is_padded_on_the_side_of_the_inputs(family, padding_side):
    inputs = family.inputs(*BATCHES["text beside videos"], padding_side=padding_side)
    with torch.no_grad():
        is_real = family.model()(**inputs).token_index >= 0
    shortest = is_real.sum(-1).argmin()
    assert is_real[:, -1 if padding_side == "left" else 0].all()
    assert not is_real[shortest, 0 if padding_side == "left" else -1]


@pytest.mark.parametrize("batch", ["one video", "text beside videos"])
def test_eager_equals_sdpa(family, batch):
    inputs = family.inputs(*BATCHES[batch])
    assert_same(generate(family.model("sdpa"), inputs), generate(family.model("eager"), inputs))


def test_compression_changes_the_answer(family):
    # A compression that does nothing would pass every test of equality.
    inputs = family.inputs(*BATCHES["one video"])
    full, vision_only, both = (
        logits(generate(family.model(**settings), inputs))[:, 0]
        for settings in ({"retention_ratio": 1.0}, {"llm_retention_ratio": 1.0}, {})
    )
    assert (full - vision_only).abs().max() > 0.1
    assert (vision_only - both).abs().max() > 0.01


def test_counts_and_cache_lengths(family):
    model = family.model()
    inputs = family.inputs(*BATCHES["several videos in a prompt"])
    outputs = generate(model, inputs)
    (report,) = outputs[CACHE].reports
    parts = (SMALL, WIDE, LARGE)
    entered = [family.entered(part, model.config) for part in parts]
    newlines = [family.newlines(part) for part in parts]
    assert report.tokens == tuple(family.placeholders(part) for part in parts)
    assert report.entered == tuple(entered)
    assert report.samples == (0, 0, 1)
    assert [sum(lengths) for lengths in report.segment_lengths] == [part[0] for part in parts]
    first = math.ceil(0.5 * (entered[0] + entered[1] - newlines[0] - newlines[1])) + newlines[0] + newlines[1]
    of_sample = [first, math.ceil(0.5 * (entered[2] - newlines[2])) + newlines[2]]
    assert [report.remained[0] + report.remained[1], report.remained[2]] == of_sample
    # The cache holds the text, the tokens of the longer sample that entered or remained, and the 5 tokens fed back.
    dropped = inputs["input_ids"].shape[1] - (inputs["attention_mask"] * (inputs["input_ids"] != VIDEO)).sum(1)
    text = inputs["input_ids"].shape[1] - dropped
    lower = max(int(text[0]) + entered[0] + entered[1], int(text[1]) + entered[2]) + 5
    upper = max(int(text[0]) + of_sample[0], int(text[1]) + of_sample[1]) + 5
    assert [layer.get_seq_length() for layer in outputs[CACHE].layers] == [lower] * 3 + [upper] * 3
    assert outputs[CACHE].get_seq_length() == inputs["input_ids"].shape[1] + 5


def test_positions_and_columns_of_what_is_kept(family):
    """In the Qwen families kept tokens keep their positions; in the LLaVA families positions are counted anew."""
    model = family.model()
    inputs = family.inputs(*BATCHES["one video"])
    seen = {}
    hook = model.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.update(kwargs), with_kwargs=True
    )
    with torch.no_grad():
        outputs = model(**inputs)
    hook.remove()
    video = outputs.report.videos[0]
    columns = (inputs["input_ids"][0] != VIDEO).nonzero()[:, 0].tolist()
    placeholders = (inputs["input_ids"][0] == VIDEO).nonzero()[:, 0]
    kept = family.kept_placeholders(video.indices.tolist(), LARGE)
    columns = sorted(columns + placeholders[kept].tolist())
    assert torch.equal(seen["position_ids"], family.entered_positions(model, inputs, columns))
    # Rows of the output: all text, all newlines, and the best half of the kept tokens.
    left = outputs.token_index[0].tolist()
    assert set(left) <= set(columns) and left == sorted(left)
    assert len(left) == len(columns) - len(video.indices) + math.ceil(0.5 * len(video.indices))


def test_inner_pruning_keeps_what_the_query_attends_to(family):
    """The kept tokens are those with the largest attention of the last row, as eager attention computes it."""
    pruned, whole = family.model("eager"), family.model("eager", llm_retention_ratio=1.0)
    inputs = family.inputs(*BATCHES["one video"])
    with torch.no_grad():
        kept = pruned(**inputs).token_index[0]
        outputs = whole(**inputs, output_attentions=True)
    entered = outputs.token_index[0]
    attention = outputs.attentions[2][0, :, -1].mean(0)  # attention of the layer below the pruning layer
    is_token = family.is_token(inputs, LARGE)[entered]
    best = attention.masked_fill(~is_token, -1).topk(math.ceil(0.5 * int(is_token.sum()))).indices
    expected = torch.cat([entered[~is_token], entered[best]]).sort().values
    assert torch.equal(kept, expected)


@pytest.mark.parametrize("behavior", ["paper", "released"])
def test_a_model_that_writes_the_beginning_of_a_video(family, behavior):
    """Without a cache the model reads its own answer again, and must not drop tokens of the answer."""
    model, inputs = family.model(behavior=behavior), family.inputs(["text", LARGE, "text", SMALL])
    for token in (VISION_START, VISION_END):
        settings = {"prefix_allowed_tokens_fn": lambda batch, ids, token=token: [token], "suppress_tokens": None}
        cached, whole = (generate(model, inputs, use_cache=use, **settings) for use in (True, False))
        assert cached.sequences[0, -6:].tolist() == [token] * 6
        assert_same(cached, whole)


def test_right_padding_and_loss(family):
    """The loss counts the labels of the columns that are left, whichever side is padded."""
    model = family.model()
    prompts = BATCHES["text beside videos"]
    losses = []
    for side in ("left", "right"):
        inputs = family.inputs(*prompts, padding_side=side)
        mask = inputs["attention_mask"]
        # The first token has no row before it, so left padding alone would predict it, from a padding row.
        unseen = (inputs["input_ids"] == VIDEO) | (mask == 0) | (mask.cumsum(-1) == 1)
        labels = inputs["input_ids"].masked_fill(unseen, -100)
        outputs = model(**inputs, labels=labels)
        losses.append(outputs.loss)
        kept = outputs.token_index
        assert outputs.logits.shape[:2] == labels.shape
        with torch.no_grad():
            assert kept.shape == model(**inputs, labels=labels, full_length=False).logits.shape[:2]
        for row in range(len(prompts)):
            assert (kept[row] >= 0).sum() == mask[row].sum() - sum(
                tokens - remained
                for tokens, remained, sample in zip(
                    outputs.report.tokens, outputs.report.remained, outputs.report.samples, strict=True
                )
                if sample == row
            )
    torch.testing.assert_close(losses[0], losses[1])
    losses[0].backward()
    gradients = [parameter.grad for parameter in family.tower(model).parameters() if parameter.grad is not None]
    assert sum(gradient.abs().sum() for gradient in gradients) > 0


def test_loss_refuses_part_of_the_logits(family):
    inputs = family.inputs(*BATCHES["one video"])
    with pytest.raises(ValueError, match="`logits_to_keep` is 1"):
        family.model()(**inputs, labels=inputs["input_ids"], logits_to_keep=1)


def test_hidden_states_and_attentions_of_all_layers(family):
    model = family.model("eager")
    inputs = family.inputs(*BATCHES["one video"])
    with torch.no_grad():
        outputs = model(**inputs, output_hidden_states=True, output_attentions=True)
    lower = inputs["input_ids"].shape[1] - outputs.report.tokens[0] + outputs.report.entered[0]
    upper = lower - outputs.report.entered[0] + outputs.report.remained[0]
    assert [h.shape[1] for h in outputs.hidden_states] == [lower] * 4 + [upper] * 3
    assert [a.shape[2:] for a in outputs.attentions] == [(lower, lower)] * 3 + [(upper, upper)] * 3
    for attention in outputs.attentions:  # every row is causal and a distribution
        assert attention.triu(1).abs().max() == 0
        torch.testing.assert_close(attention.sum(-1), torch.ones_like(attention[..., 0]))


def test_low_precision(family):
    inputs = family.inputs(*BATCHES["text beside videos"])
    for dtype in (torch.bfloat16, torch.float16):
        outputs = generate(family.model().to(dtype), inputs)
        assert outputs.logits[0].isfinite().all()
        entered = tuple(family.entered(part, family.model().config) for part in (LARGE, SMALL))
        assert outputs[CACHE].reports[0].entered == entered


def test_copies_and_other_models_of_the_class(family):
    family = family.as_upstream()
    inputs = family.inputs(*BATCHES["one video"])
    model = family.model()
    upstream = family.upstream(model)
    before = generate(upstream, inputs)
    expected = generate(model, inputs)
    assert torch.equal(logits(generate(upstream, inputs)), logits(before))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(generate(other, inputs)), logits(expected))
    assert not any(module._forward_pre_hooks for module in upstream.modules())


def test_a_video_that_its_budget_leaves_whole(family):
    # With at most 80 tokens a frame ceil(N * 0.79 * 1.25) = N: nothing is dropped, not even in the language model.
    family = family.as_upstream()
    model = family.model(retention_ratio=0.79)
    inputs = family.inputs(["text", (2, 4, 6), "text"])
    outputs = generate(model, inputs)
    (report,) = outputs[CACHE].reports
    whole = (family.placeholders((2, 4, 6)),)
    assert (report.tokens, report.entered, report.remained) == (whole, whole, whole)
    torch.testing.assert_close(logits(outputs), logits(generate(family.upstream(model), inputs)), atol=2e-5, rtol=1e-5)


def test_wrong_number_of_placeholders_is_refused_before_encoding(family):
    model = family.model()
    inputs = family.inputs(*BATCHES["one video"])
    more, fewer = inputs["input_ids"].clone(), inputs["input_ids"].clone()
    more[0, 0] = VIDEO
    fewer[0, fewer[0].tolist().index(VIDEO)] = 5
    family.remove_tower(model)
    count = family.placeholders(LARGE)
    for ids, found in ((more, count + 1), (fewer, count - 1)):
        for call in (lambda **kw: generate(model, kw), model):
            with pytest.raises(ValueError, match=f"`input_ids` has {found} video placeholders.*need exactly {count}"):
                call(**{**inputs, "input_ids": ids})


def test_the_cache_can_be_cropped_reordered_and_reset(family):
    model = family.model()
    inputs = family.inputs(*BATCHES["text beside videos"])
    with torch.no_grad():
        cache = model(**inputs, use_cache=True)[CACHE]
    assert isinstance(cache, FlashVIDCache) and cache.compressed
    length = cache.get_seq_length()
    masks = cache.lower_mask.clone(), cache.upper_mask.clone()
    cache.reorder_cache(torch.tensor([2, 0, 1]))
    assert torch.equal(cache.lower_mask, masks[0][[2, 0, 1]]) and torch.equal(cache.upper_mask, masks[1][[2, 0, 1]])
    cache.crop(-2)
    assert cache.get_seq_length() == length - 2
    assert cache.lower_mask.shape[1] == cache.num_cached(0) and cache.upper_mask.shape[1] == cache.num_cached(5)
    cache.batch_repeat_interleave(2)
    assert len(cache.lower_mask) == 6
    cache.batch_select_indices(torch.tensor([0, 2]))
    assert len(cache.upper_mask) == 2
    cache.reset()
    assert cache.get_seq_length() == cache.num_cached() and not cache.compressed and cache.lower_mask is None


@torch.no_grad()
@pytest.mark.parametrize("waits", [False, True])
def test_videos_that_cannot_be_computed_with_are_named(family, monkeypatch, waits):
    """Also on a device for which the code waits only after the compression."""
    model, inputs = family.model(), family.inputs(["text", LARGE, "text"], ["text", SMALL, "text"])
    name = "pixel_values_videos"
    broken = [video.clone() for video in inputs[name]] if isinstance(inputs[name], list) else inputs[name].clone()
    (broken[0] if isinstance(broken, list) else broken)[0, 0] = float("nan")
    monkeypatch.setattr(finite, "must_wait", lambda device: waits)
    assert model(**inputs).report.compressed
    with pytest.raises(ValueError, match="`video_features` has the value nan: all of its values must be finite"):
        model(**{**inputs, name: broken})
