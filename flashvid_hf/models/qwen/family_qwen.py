"""Shared parts of the records of the Qwen families: the geometry of their videos, and parts of their small models."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from transformers import ProcessorMixin, Qwen2VLImageProcessor

from ..family import SmallShape, TinyShape, VideoGeometry

# For small models: how the families write a conversation, their special tokens, and the vision tower.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string -%}
{{ message.content }}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'video' -%}<|vision_start|><|video_pad|><|vision_end|>
{%- elif part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>
{%- elif part.type == 'text' -%}{{ part.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""
TOKENS = {
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
}
ROPE = {"rope_type": "default", "rope_theta": 1e6}
# Upstream warns if a processor does not set this, because its default is going to change.
PROCESSING = {"video_processor": {"cap_pixels_per_frame": False}}
_TINY_IDS = {"image_token_id": 90, "video_token_id": 91, "vision_start_token_id": 92, "vision_end_token_id": 93}


class QwenGeometry(VideoGeometry):
    """Two frames make a temporal grid of patches. A square of patches, usually 2 x 2, makes a token.

    Args:
        runs_per_grid: whether every temporal grid has its own run of placeholders, after a timestamp.
    """

    run_marks = ("vision_start_token_id", "vision_end_token_id")

    def __init__(self, runs_per_grid: bool = False):
        self.runs_per_grid = runs_per_grid

    def frames_per_grid(self, config: Any) -> int:
        return config.vision_config.temporal_patch_size

    def grid_of_pixels(self, config: Any, height: int, width: int) -> tuple[int, int]:
        vision = config.vision_config
        side = vision.patch_size * vision.spatial_merge_size
        return round(height / side), round(width / side)

    def grids_of_call(self, config: Any, inputs: Mapping[str, Any], num_videos: int) -> list[tuple[int, int]]:
        merge = config.vision_config.spatial_merge_size
        patches = torch.as_tensor(inputs["video_grid_thw"]).tolist()
        return [(height // merge, width // merge) for _, height, width in patches]

    def num_runs(self, num_grids: int) -> int:
        return num_grids if self.runs_per_grid else 1

    def describe(self, config: Any, height: int, width: int) -> str:
        rows, columns = self.grid_of_pixels(config, height, width)
        return (
            f"Below for frames of {height} x {width} pixels, of which two make {rows * columns} tokens; the base's "
            "processor chooses the size by the video."
        )


def tower_widths(width: int) -> dict[str, int]:
    """The fields of a vision tower that hold widths, if its blocks and its output have this width."""
    return {"hidden_size": width, "intermediate_size": 2 * width, "out_hidden_size": width}


def tiny_shape(
    text: dict[str, Any], vision: dict[str, Any], widths: Callable[[int], dict[str, int]] = tower_widths
) -> TinyShape:
    """A tiny shape with tokens of 8 x 8 pixels and four vision blocks.

    Args:
        text: the family's fields of the language model.
        vision: the family's fields of the vision tower.
        widths: see `tower_widths`.
    """
    tower = {"depth": 4, "num_heads": 2, "patch_size": 4, **widths(32)}
    return TinyShape(text=text, vision={**tower, **vision}, fields=_TINY_IDS)


def small_shape(
    processor: type,
    video_processor: type,
    text: dict[str, Any],
    vision: dict[str, Any],
    widths: Callable[[int], dict[str, int]] = tower_widths,
) -> SmallShape:
    """A small shape with four vision blocks.

    Args:
        processor, video_processor: the family's classes of transformers.
        text: the family's fields of the language model.
        vision: the family's fields of the vision tower, with the `patch_size` of the published models.
        widths: see `tower_widths`.
    """
    return SmallShape(
        text=text,
        vision={"depth": 4, "num_heads": 4, **widths(64), **vision},
        tokens=TOKENS,
        make_processor=partial(make_small_processor, processor, video_processor),
    )


def make_small_processor(processor: type, video_processor: type, config: Any, tokenizer: Any) -> ProcessorMixin:
    """The processor of a small model.

    Args:
        processor, video_processor: the family's classes of transformers.
        config: the model's configuration.
        tokenizer: the model's tokenizer.
    """
    patch_size = config.vision_config.patch_size
    patches = {"patch_size": patch_size, "temporal_patch_size": 2, "merge_size": 2}
    token = (2 * patch_size) ** 2  # pixels of a token
    size = {"shortest_edge": 4 * token, "longest_edge": 256 * token}
    videos = video_processor(
        size={**size, "longest_edge": 16 * size["longest_edge"]},
        do_sample_frames=False,
        cap_pixels_per_frame=False,  # see `PROCESSING`
        **patches,
    )
    return processor(
        # vLLM normalises videos like images.
        image_processor=Qwen2VLImageProcessor(
            size=size, image_mean=videos.image_mean, image_std=videos.image_std, **patches
        ),
        video_processor=videos,
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
    )
