"""One row for each model family: tiny models and inputs that the shared tests run on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    set_seed,
)
from transformers.vision_utils import get_vision_window_index

from flashvid_hf import (
    FlashVIDQwen2_5_VLConfig,
    FlashVIDQwen2_5_VLForConditionalGeneration,
    FlashVIDQwen3VLConfig,
    FlashVIDQwen3VLForConditionalGeneration,
)

IMAGE, VIDEO, VISION_START, VISION_END = 90, 91, 92, 93
FLASHVID = {"retention_ratio": 0.4, "pruning_layer": 3, "llm_retention_ratio": 0.5}


IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
}
TEXT = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
VISION = {
    "depth": 4,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "patch_size": 4,
    "out_hidden_size": 32,
}


def qwen2_5_vl_config(config_class: type, **overrides: Any):
    """Six language layers, four vision blocks of which the last sees whole frames, windows of 2x2 tokens."""
    text = {**TEXT, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
    vision = {**VISION, "window_size": 16, "fullatt_block_indexes": [1, 3]}
    return config_class(text_config=text, vision_config=vision, **IDS, **overrides)


def qwen3_vl_config(config_class: type, **overrides: Any):
    """Six language layers of which the first three take in deepstack features."""
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    text = {**TEXT, "head_dim": 8, "rope_parameters": rope}
    vision = {**VISION, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1, 2]}
    return config_class(text_config=text, vision_config=vision, **IDS, **overrides)


def qwen_prompt(
    parts: Sequence[str | tuple[int, int, int]], seed: int, runs: bool = False
) -> tuple[list[int], list[int], dict]:
    """Token ids, token types and media of one prompt.

    Args:
        parts: "text", or the grid (T, height, width in patches) of a video, or that of an image (T = 1) after "image".
        runs: whether every frame of a video is a run of placeholders of its own, after a timestamp.
    """
    generator = torch.Generator().manual_seed(seed)
    ids, types, media = [], [], {"image": [], "video": []}
    kind = "video"
    for part in parts:
        if part == "image":
            kind = "image"
        elif part == "text":
            words = torch.randint(1, 90, (5,), generator=generator).tolist()
            ids, types = ids + words, types + [0] * 5
        else:
            frames, tokens = part[0], part[1] * part[2] // 4
            token, token_type = (IMAGE, 1) if kind == "image" else (VIDEO, 2)
            repeat, length = (frames, tokens) if runs else (1, frames * tokens)
            for _ in range(repeat):
                stamp = torch.randint(1, 90, (2,), generator=generator).tolist() if runs and kind == "video" else []
                ids += stamp + [VISION_START] + [token] * length + [VISION_END]
                types += [0] * len(stamp) + [0] + [token_type] * length + [0]
            media[kind].append((part, torch.randn(4 * frames * tokens, 3 * 2 * 4 * 4, generator=generator)))
            kind = "video"
    return ids, types, media


def qwen3_vl_prompt(parts: Sequence[str | tuple[int, int, int]], seed: int):
    return qwen_prompt(parts, seed, runs=True)


def qwen2_5_vl_order(attention: torch.Tensor, video_grid_thw: torch.Tensor) -> torch.Tensor:
    """From the window order of the vision tower to the order of its output."""
    window, _ = get_vision_window_index(video_grid_thw, spatial_merge_size=2, window_size=16, patch_size=4)
    return attention[window.argsort()]


@dataclass(frozen=True)
class TinyFamily:
    """A family's classes and how to make tiny models and inputs of it."""

    name: str
    model_class: type
    config_class: type
    upstream_class: type
    upstream_config_class: type
    make_config: Any
    make_prompt: Any
    vision_order: Any
    position_inputs: tuple[str, ...]

    def model(self, attn_implementation: str = "sdpa", **flashvid: Any):
        """A FlashVID model with random weights, the same for the same family."""
        set_seed(0)
        config = self.make_config(self.config_class, **{**FLASHVID, **flashvid})
        config._attn_implementation = attn_implementation
        return scramble(self.model_class(config))

    def upstream(self, like: torch.nn.Module):
        """The upstream model with the weights of `like`."""
        model = self.upstream_class(self.make_config(self.upstream_config_class)).eval()
        model.load_state_dict(like.state_dict())
        return model

    def inputs(self, *prompts: Sequence[Any], padding_side: str = "left", seed: int = 0) -> dict[str, torch.Tensor]:
        """A padded batch, see `make_prompt` for the parts of a prompt."""
        made = [self.make_prompt(parts, seed + i) for i, parts in enumerate(prompts)]
        length = max(len(ids) for ids, _, _ in made)

        def pad(rows: list[list[int]]) -> torch.Tensor:
            fill = [[0] * (length - len(row)) for row in rows]
            padded = [f + r if padding_side == "left" else r + f for f, r in zip(fill, rows, strict=True)]
            return torch.tensor(padded)

        batch = {
            "input_ids": pad([ids for ids, _, _ in made]),
            "attention_mask": pad([[1] * len(ids) for ids, _, _ in made]),
            "mm_token_type_ids": pad([types for _, types, _ in made]),
        }
        for kind, pixels, grid in (
            ("image", "pixel_values", "image_grid_thw"),
            ("video", "pixel_values_videos", "video_grid_thw"),
        ):
            media = [m for _, _, of_prompt in made for m in of_prompt[kind]]
            if media:
                batch[grid] = torch.tensor([shape for shape, _ in media])
                batch[pixels] = torch.cat([values for _, values in media])
                if (
                    kind == "video" and "second_per_grid_ts" in self.position_inputs
                ):  # a quarter of a second between grids: neighbouring positions
                    batch["second_per_grid_ts"] = torch.full((len(media),), 0.25)
        return batch


def scramble(model: torch.nn.Module) -> torch.nn.Module:
    """Weights large enough that tokens differ and attention is far from uniform."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2)
    return model.eval()


FAMILIES = (
    TinyFamily(
        "qwen2_5_vl",
        FlashVIDQwen2_5_VLForConditionalGeneration,
        FlashVIDQwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLConfig,
        qwen2_5_vl_config,
        qwen_prompt,
        qwen2_5_vl_order,
        ("input_ids", "mm_token_type_ids", "video_grid_thw", "attention_mask", "second_per_grid_ts"),
    ),
    TinyFamily(
        "qwen3_vl",
        FlashVIDQwen3VLForConditionalGeneration,
        FlashVIDQwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLConfig,
        qwen3_vl_config,
        qwen3_vl_prompt,
        lambda attention, video_grid_thw: attention,
        ("input_ids", "mm_token_type_ids", "video_grid_thw", "attention_mask"),
    ),
)
