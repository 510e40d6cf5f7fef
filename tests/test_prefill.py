"""The oracle of every family: its compressed prefill, computed once more, plainly and with upstream's modules alone.

One sample, no cache. Features and attention come from upstream's vision tower, one video at a time. The public
`compress_video` compresses them. The layers of upstream's language model then run on the kept rows in two parts, below
the pruning layer and from it on. Nothing of `models/` takes part.
"""

import math
from typing import Any, NamedTuple

import pytest
import torch
from families import FAMILIES, VIDEO
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from flashvid_hf import CompressionConfig, compress_video

# Ours runs sdpa and upstream's layers run eager attention, both in float32. Upstream's own logits, of size 5 at most,
# differ by up to 1.5e-5 between the two on these prompts without compression, measured over all families.
ATOL = 3e-5
PROMPTS = {
    "one video": ["text", (4, 8, 8), "text"],
    "two videos": [(3, 4, 8), "text", (5, 8, 4), "text"],
}
SETTINGS = {
    "default": {},
    "few tokens": {"retention_ratio": 0.2, "pruning_layer": 4, "llm_retention_ratio": 0.3, "alpha": 0.5},
    "no inner pruning": {"llm_retention_ratio": 1.0, "token_selection_method": "attn_div_v2"},
}


class Encoded(NamedTuple):
    """What upstream's vision tower makes of a video.

    Args:
        features: with shape (T, N, D).
        attention: what each token receives, with shape (T, N).
        deepstack: for each level, with shape (T * N, D).
    """

    features: torch.Tensor
    attention: torch.Tensor
    deepstack: list[torch.Tensor]


@pytest.fixture
def seen(monkeypatch):
    """For every attention module of a tower, in the order of the calls: the attention that each patch receives."""
    received: dict[Any, list[torch.Tensor]] = {}

    def plain(module, query, key, value, attention_mask=None, scaling=None, **kwargs):
        weights = (query @ key.mT * scaling).softmax(-1)  # (frames, heads, queries, keys)
        received.setdefault(module, []).append(weights.mean((1, 2)).flatten())
        return (weights @ value).transpose(1, 2).contiguous(), weights

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "plain", plain)
    return received


def encode(family: Any, upstream: Any, part: tuple, video: dict[str, torch.Tensor], seen: dict) -> Encoded:
    """Encode one video.

    Args:
        part: its grid.
        video: its inputs in the order of upstream's `get_video_features`: pixels, and the grid in the Qwen families.
        seen: see the fixture.
    """
    family.tower(upstream).set_attn_implementation("plain")
    seen.clear()
    projected = []
    projector = getattr(upstream.model, "multi_modal_projector", None)
    hook = projector and projector.register_forward_hook(lambda module, args, output: projected.append(output))
    outputs = upstream.model.get_video_features(*video.values(), return_dict=True)  # 5.17 names LLaVA's otherwise
    features = outputs.pooler_output[0]
    if projector is not None:
        # LLaVA: pooled here, channel by channel, because upstream's class has the pooling of LLaVA-OneVision alone.
        hook.remove()
        channels = projected[0].flatten(0, 1).unbind(-1)  # of frames and patches
        features = torch.stack([family.pooled_attention(channel, video) for channel in channels], dim=-1)
    layer = list(seen)[getattr(upstream.config, "vision_feature_layer", -1)]
    attention = family.pooled_attention(torch.cat(seen[layer]), video)
    deepstack = getattr(outputs, "deepstack_features", None) or []
    deepstack = [level if isinstance(level, torch.Tensor) else torch.cat(tuple(level)) for level in deepstack]
    shape = family.tokens(part)
    return Encoded(features.unflatten(0, shape), attention.view(shape), deepstack)


def single_videos(inputs: dict[str, Any]) -> list[dict[str, torch.Tensor]]:
    """The inputs of each video alone."""
    pixels, grids = inputs["pixel_values_videos"], inputs.get("video_grid_thw")
    if grids is None:
        return [{"pixel_values_videos": video[None]} for video in pixels]
    parts = pixels.split(grids.prod(-1).tolist())
    return [
        {"pixel_values_videos": part, "video_grid_thw": grid[None]} for part, grid in zip(parts, grids, strict=True)
    ]


def run_layers(layers: Any, states: torch.Tensor, tables: tuple, visual: torch.Tensor, deepstack: list) -> torch.Tensor:
    """Run layers of a language model on the rows of one sample, causally.

    Args:
        layers: some of its layers, in order.
        states: with shape (1, rows, D).
        tables: rotary tables of the rows.
        visual: which rows are video tokens, with shape (rows,).
        deepstack: what is added to these rows behind the first layers, one tensor a layer.
    """
    length = states.shape[1]
    mask = torch.full((length, length), float("-inf")).triu(1)[None, None]
    for place, layer in enumerate(layers):
        states = layer(states, attention_mask=mask, position_embeddings=tables, position_ids=None)
        if place < len(deepstack):
            states = states.clone()
            states[0, visual] += deepstack[place]
    return states


@torch.no_grad()
def plain_prefill(family: Any, upstream: Any, prompt: list, inputs: dict[str, Any], config: Any, seen: dict) -> tuple:
    """Logits, the columns that are left, and the columns that entered."""
    parts = [part for part in prompt if part != "text"]
    names = CompressionConfig.__dataclass_fields__
    settings = CompressionConfig(**{name: getattr(config, name) for name in names})
    encoded, compressed = [], []
    for part, video in zip(parts, single_videos(inputs), strict=True):
        encoded.append(encode(family, upstream, part, video, seen))
        compressed.append(compress_video(encoded[-1].features, encoded[-1].attention, settings))

    # Every column of text, and of each video the placeholders of the kept tokens and of the newlines.
    ids = inputs["input_ids"][0]
    placeholders = (ids == VIDEO).nonzero().flatten().split([family.placeholders(part) for part in parts])
    left = (ids != VIDEO).nonzero().flatten().tolist()
    for columns, part, video in zip(placeholders, parts, compressed, strict=True):
        left += columns[family.kept_placeholders(video.indices.tolist(), part)].tolist()
    entered = sorted(left)
    is_token = family.is_token(inputs, *parts)[entered]
    is_newline = (ids == VIDEO)[entered] & ~is_token
    states = upstream.get_input_embeddings()(ids[entered])
    states[is_token] = torch.cat([video.tokens for video in compressed])
    if is_newline.any():
        states[is_newline] = upstream.model.image_newline
    levels = [
        torch.cat([level[video.indices] for level, video in zip(of_videos, compressed, strict=True)])
        for of_videos in zip(*(video.deepstack for video in encoded), strict=True)
    ]

    model, layer = upstream.model.language_model, config.pruning_layer
    model.set_attn_implementation("eager")
    states = states[None]
    tables = model.rotary_emb(states, family.entered_positions(upstream, inputs, entered))
    weights = []
    hook = model.layers[layer - 1].self_attn.register_forward_hook(lambda module, args, out: weights.append(out[1]))
    states = run_layers(model.layers[:layer], states, tables, is_token, levels)
    hook.remove()

    # The attention from the last token in the layer below the pruning layer ranks the video tokens.
    scores = weights[0][0].mean(0)[-1]  # (rows,)
    ranked = sorted(is_token.nonzero().flatten().tolist(), key=lambda row: (-scores[row], row))
    dropped = set(ranked[math.ceil(len(ranked) * config.llm_retention_ratio) :])
    rows = [row for row in range(len(entered)) if row not in dropped]
    tables = tuple(table[:, rows] for table in tables)
    states = run_layers(model.layers[layer:], states[:, rows], tables, is_token[rows], [])
    return upstream.lm_head(model.norm(states)), [entered[row] for row in rows], entered


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_prefill_is_what_upstreams_modules_give(family, prompt, settings, seen):
    model = family.model(**SETTINGS[settings])
    inputs = family.inputs(PROMPTS[prompt])
    upstream = family.upstream(model)
    logits, columns, entered = plain_prefill(family, upstream, PROMPTS[prompt], inputs, model.config, seen)
    with torch.no_grad():
        found = model(**inputs)
    assert found.token_index[0].tolist() == columns
    assert sum(found.report.entered) == len(entered) - int((inputs["input_ids"] != VIDEO).sum())
    assert len(entered) < inputs["input_ids"].shape[1]
    assert (len(columns) < len(entered)) == (settings != "no inner pruning")
    torch.testing.assert_close(found.logits, logits, atol=ATOL, rtol=1e-5)
