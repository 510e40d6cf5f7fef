"""The vision towers: received attention, deepstack features, chunks of frames, memory."""

import itertools
from contextlib import nullcontext

import pytest
import torch
from families import FAMILIES
from measuring import PeakMemory
from transformers import Qwen2_5_VLConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLVisionBlock

from flashvid_hf.models import vision_signals
from flashvid_hf.models.columns import gather_columns
from flashvid_hf.models.vision_chunks import join_rows, split_frames
from flashvid_hf.models.vision_signals import (
    RECORD,
    Source,
    VisionRecord,
    install_packed_recording,
    mean_received_attention,
)

SMALL, LARGE = (2, 8, 4), (4, 8, 8)  # grids in patches

each_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


@each_family
def test_received_attention_equals_that_of_the_used_block(family):
    """Recomputed scores, compared with the weights that our own attention function sees."""
    model = family.model()
    seen, compressed = {}, []

    def probe(module, query, key, value, attention_mask=None, scaling=None, **kwargs):
        weights = (query @ key.mT * scaling).softmax(-1)
        seen.setdefault(module, []).append(weights.mean((1, 2)).flatten())
        return (weights @ value).transpose(1, 2).contiguous(), weights

    ALL_ATTENTION_FUNCTIONS.register("probe", probe)
    try:
        family.tower(model).set_attn_implementation("probe")
        original = model.model.compress_videos
        model.model.compress_videos = lambda *args: compressed.append(args) or original(*args)
        inputs = family.inputs(["text", LARGE, "text"], ["text", SMALL, "text"])
        with torch.no_grad():
            family.video_features(model, inputs)
    finally:
        ALL_ATTENTION_FUNCTIONS._global_mapping.pop("probe", None)
    features, (scores,), *_ = compressed[0]
    used = list(seen)[getattr(model.config, "vision_feature_layer", -1)]
    received = family.pooled_attention(torch.cat(seen[used]), inputs)
    torch.testing.assert_close(torch.cat([s.flatten() for s in scores]), received, atol=1e-7, rtol=1e-5)
    for video, of_video, part in zip(features, scores, (LARGE, SMALL), strict=True):
        assert video.shape[:2] == of_video.shape == family.tokens(part)


@torch.no_grad()
def test_received_attention_is_in_the_order_of_the_output():
    """Qwen2.5-VL's tower sorts its tokens by windows, but its output is not sorted. The order here is no mere swap.

    The order is read from upstream's tower: for each row of its output, the row of the merger's output, which is still
    sorted.
    """
    family = next(family for family in FAMILIES if family.name == "qwen2_5_vl")
    part = (2, 8, 12)
    model, inputs = family.model(), family.inputs(["text", part, "text"])
    upstream = family.upstream(model)
    weights, merged = {}, []

    def probe(module, query, key, value, attention_mask=None, scaling=None, **kwargs):
        weights.setdefault(module, []).append((query @ key.mT * scaling).softmax(-1))
        return (weights[module][-1] @ value).transpose(1, 2).contiguous(), None

    ALL_ATTENTION_FUNCTIONS.register("probe", probe)
    try:
        upstream.model.visual.set_attn_implementation("probe")
        upstream.model.visual.merger.register_forward_hook(lambda module, args, output: merged.append(output))
        (features,) = family.video_features(upstream, inputs, return_dict=True).pooler_output
    finally:
        ALL_ATTENTION_FUNCTIONS._global_mapping.pop("probe", None)
    is_row = (features[:, None] == merged[0][None]).all(-1)
    assert (is_row.sum(0) == 1).all() and (is_row.sum(1) == 1).all()
    order = is_row.long().argmax(1)
    assert not torch.equal(order, order.argsort())
    of_patches = torch.cat([frame.mean((1, 2)).flatten() for frame in weights[upstream.model.visual.blocks[-1].attn]])
    expected = of_patches.view(-1, 4).mean(-1)[order]

    given, original = [], model.model.compress_videos
    model.model.compress_videos = lambda *args: given.append(args) or original(*args)
    family.video_features(model, inputs)
    ((_, ((received,),), *_),) = given
    assert received.shape == family.tokens(part)
    torch.testing.assert_close(received.flatten(), expected, atol=1e-7, rtol=1e-5)


def with_deepstack() -> list:
    return [family for family in FAMILIES if family.name.startswith("qwen3_vl")]


@pytest.mark.parametrize("chunk", [None, 3])
@pytest.mark.parametrize("family", with_deepstack(), ids=lambda family: family.name)
@torch.no_grad()
def test_deepstack_rows_of_a_kept_token_are_those_of_its_own_place(family, chunk):
    """Deepstack features are not merged: they are upstream's rows at the kept indices of every video."""
    model, inputs = family.model(), family.inputs(["text", LARGE, "text", (3, 4, 8)], ["text", SMALL, "text"])
    ours = family.video_features(model, inputs, vision_chunk_size=chunk)
    whole = family.video_features(family.upstream(model), inputs, return_dict=True)
    sizes = [len(video) for video in whole.pooler_output]
    assert len(ours.deepstack_features) == len(whole.deepstack_features) == 3
    for level, expected in zip(ours.deepstack_features, whole.deepstack_features, strict=True):
        # Before transformers 5.18 a level has one tensor for all videos.
        expected = expected if isinstance(expected, torch.Tensor) else torch.cat(tuple(expected))
        for rows, video, of_video in zip(level, ours.videos, expected.split(sizes), strict=True):
            assert 0 < len(video.indices) < len(of_video)
            torch.testing.assert_close(rows, of_video[video.indices], atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("family", with_deepstack(), ids=lambda family: family.name)
@torch.no_grad()
def test_deepstack_rows_are_added_to_the_columns_of_their_tokens(family, padding_side):
    """The language model gets upstream's rows beside the embeddings, at every column that entered."""
    prompts = [
        ["text", "image", (1, 8, 8), "text", LARGE, "text"],
        [SMALL, "image", (1, 4, 8), "text", (3, 4, 8)],
        ["text"],
    ]
    model, inputs = family.model(llm_retention_ratio=1.0), family.inputs(*prompts, padding_side=padding_side)
    added = {}
    for of in (model, family.upstream(model)):

        def note(module, args, kwargs, of=of):
            where, levels = kwargs["visual_pos_masks"], kwargs["deepstack_visual_embeds"]
            nothing = levels[0].new_zeros(*where.shape, levels[0].shape[-1])
            added[of] = torch.stack([nothing.masked_scatter(where[..., None], level) for level in levels])

        of.model.language_model.register_forward_pre_hook(note, with_kwargs=True)
        outputs = of(**inputs)
        if of is model:
            columns = outputs.token_index
    ours, whole = added.values()
    assert len(ours) == len(whole) == 3 and ours.shape[2] < whole.shape[2]
    expected = gather_columns(whole.flatten(0, 1), columns.clamp(min=0).repeat(3, 1)).view_as(ours)
    expected = expected * (columns >= 0)[..., None]
    torch.testing.assert_close(ours, expected, atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("budget", [1, 500, 3 * 4 * 16**2, 10**9])
def test_received_attention_in_pieces(monkeypatch, budget):
    """Some queries of a frame, one frame or several frames at once give the same, and stay within the budget."""
    lengths = [16, 16, 16, 4, 16, 1]
    query, key = torch.randn(2, 3, sum(lengths), 8).unbind()
    frames = zip(query.split(lengths, dim=1), key.split(lengths, dim=1), strict=True)
    expected = torch.cat([(q @ k.mT * 0.3).softmax(-1).mean((0, 1)) for q, k in frames])
    monkeypatch.setattr(vision_signals, "_WEIGHT_BYTES", budget)
    sizes, softmax = [], torch.Tensor.softmax
    monkeypatch.setattr(torch.Tensor, "softmax", lambda x, dim: sizes.append(4 * x.numel()) or softmax(x, dim))
    found = mean_received_attention(query, key, lengths, 0.3)
    torch.testing.assert_close(found, expected)
    assert found.sum() == pytest.approx(len(lengths))
    assert sum(sizes) == 4 * 3 * sum(length**2 for length in lengths)
    assert max(sizes) <= max(budget, 4 * 3 * 16)  # the weights of one query are the minimum


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_recording_attention_takes_no_memory_worth_mentioning(monkeypatch, dtype):
    """The last block of Qwen2.5-VL on 160 frames of 1,024 patches, all at once, with and without the record.

    Nothing is computed, because "meta" tensors have sizes only. The attention function of the test needs no memory,
    which is less than any real one needs.
    """
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())  # it does not know "meta"
    monkeypatch.setitem(
        ALL_ATTENTION_FUNCTIONS, "free", lambda module, query, *args, **kwargs: (query.transpose(1, 2), None)
    )
    config = Qwen2_5_VLConfig(vision_config={"hidden_size": 1280, "num_heads": 16, "intermediate_size": 3420})
    config.vision_config._attn_implementation = "free"
    with torch.device("meta"):
        block = Qwen2_5_VLVisionBlock(config.vision_config).to(dtype)
        states = torch.empty(160 * 1024, 1280, dtype=dtype)
        tables = (torch.empty(160 * 1024, 80), torch.empty(160 * 1024, 80))
    install_packed_recording([block])
    seqlens = torch.arange(0, 160 * 1024 + 1, 1024, dtype=torch.int32)
    source, peaks = Source("attention", block.attn), []
    for record in (None, VisionRecord([source])):
        with torch.no_grad(), PeakMemory("meta") as memory:
            block(states, cu_seqlens=seqlens, max_seqlen=1024, position_embeddings=tables, **{RECORD: record})
        peaks.append(memory.bytes)
    assert record.found[source].shape == (160 * 1024,)
    assert peaks[0] > 2**30 and peaks[1] - peaks[0] < 2**20


@pytest.mark.parametrize("size", [None, 1, 2, 3, 5, 100])
@pytest.mark.parametrize("num_frames", [[1], [7], [3, 2], [5, 1, 6], [2, 2, 2]])
def test_every_frame_is_in_one_chunk(num_frames, size):
    chunks = split_frames(num_frames, size)
    pieces = [piece for chunk in chunks for piece in chunk]
    frames = [(video, frame) for video, count in enumerate(num_frames) for frame in range(count)]
    assert [video for video, count in pieces for _ in range(count)] == [video for video, _ in frames]
    sizes = [sum(count for _, count in chunk) for chunk in chunks]
    assert sum(sizes) == len(frames) and min(sizes) > 0
    if size is not None:
        assert set(sizes[:-1]) <= {size} and sizes[-1] <= size
    numbers, pairs = torch.arange(len(frames)), torch.randn(len(frames), 2)
    joined = join_rows(zip(numbers.split(sizes), pairs.split(sizes), strict=True), len(frames))
    assert torch.equal(joined[0], numbers) and torch.equal(joined[1], pairs)


@each_family
@torch.no_grad()
def test_chunks_change_nothing(family):
    """Chunks that end inside videos, and chunks that hold several videos."""
    model = family.model()
    calls = []
    family.tower(model).register_forward_pre_hook(lambda tower, args: calls.append(args))
    inputs = family.inputs(["text", LARGE, "text", (3, 4, 8)], ["text", SMALL, "text"])
    for size, num_calls in ((None, 1), (32, 1), (4, 3), (3, 3), (1, 9)):
        calls.clear()
        outputs = model(**inputs, vision_chunk_size=size)
        assert len(calls) == num_calls
        if size is None:
            expected = outputs
            continue
        assert torch.equal(outputs.token_index, expected.token_index)
        torch.testing.assert_close(outputs.logits, expected.logits, atol=2e-5, rtol=1e-5)
        for ours, theirs in zip(outputs.report.videos, expected.report.videos, strict=True):
            assert torch.equal(ours.slots, theirs.slots)
            torch.testing.assert_close(ours.tokens, theirs.tokens, atol=2e-6, rtol=1e-6)


@each_family
@torch.no_grad()
@pytest.mark.slow
def test_memory_does_not_grow_with_the_chunks(family):
    """Apart from features and pixels, which grow with every video, memory holds only one chunk."""
    model = family.model()
    peaks = {}
    for size, num_frames in itertools.product((4, None), (16, 64)):
        inputs = family.inputs([(num_frames, 16, 16), "text"])
        with PeakMemory() as memory:
            family.video_features(model, inputs, vision_chunk_size=size)
        peaks[size, num_frames] = memory.bytes
    grown = {size: peaks[size, 64] - peaks[size, 16] for size in (4, None)}
    assert grown[4] < grown[None] / 3
    assert peaks[4, 64] < peaks[None, 64] / 3


@each_family
def test_bad_chunks_are_refused(family):
    inputs = family.inputs([LARGE, "text"])
    for value in (0, -1, 1.5, "4", True):
        with pytest.raises(ValueError, match="`vision_chunk_size` is .*: .*at least 1"):
            family.video_features(family.model(), inputs, vision_chunk_size=value)


def test_what_belongs_to_all_frames_needs_them_at_once():
    family = FAMILIES[0]
    inputs = family.inputs([LARGE, "text"])
    positions = torch.zeros(256, 2, dtype=torch.long)
    with pytest.raises(ValueError, match="`video_position_ids` belongs to all frames of the videos, .*`vision_chunk"):
        family.video_features(family.model(), inputs, vision_chunk_size=2, video_position_ids=positions)


@each_family
@torch.no_grad()
def test_the_report_tells_the_seconds_of_every_stage(family):
    model = family.model()
    inputs = family.inputs(["text", LARGE, "text"])
    outputs = model(**inputs)
    assert list(outputs.report.seconds) == ["vision", "compression", "prefill"]
    assert all(seconds > 0 for seconds in outputs.report.seconds.values())
    # Videos that are encoded once keep the time of their encoding. The time of the language model belongs to each call.
    encoded = {"video": family.video_features(model, inputs)}
    media = {name for names in model.model.encoder_inputs.values() for name in names if name.startswith("pixel")}
    inputs = {name: value for name, value in inputs.items() if name not in media}
    first, second = (model(**inputs, mm_encoder_outputs=encoded).report.seconds for _ in range(2))
    assert first["vision"] == second["vision"] == encoded["video"].stopwatch.seconds["vision"]
    assert "prefill" not in encoded["video"].stopwatch.seconds and first["prefill"] != second["prefill"]
    assert model(**family.inputs(["text", "text"])).report.seconds == {}
