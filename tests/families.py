"""Tiny models and inputs of every family, for the shared tests.

The models come from `flashvid_hf.tiny_models` and the families' records. This file says how a test makes inputs for
them, and what the test expects, with one class for each kind of geometry.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.vision_utils import get_vision_window_index

from flashvid_hf import FAMILIES as RECORDS
from flashvid_hf import Family
from flashvid_hf.models.llava.family_llava_onevision import LlavaGeometry
from flashvid_hf.models.qwen.family_qwen import QwenGeometry
from flashvid_hf.tiny_models import build_tiny_config, build_tiny_model

# Ids of the special tokens in the tiny models.
IMAGE, VIDEO, VISION_START, VISION_END = 90, 91, 92, 93
FLASHVID = {"retention_ratio": 0.4, "pruning_layer": 3, "llm_retention_ratio": 0.5}


@dataclass(frozen=True)
class TinyFamily:
    """A family, with its tiny models and inputs.

    A part of a prompt is "text", the grid of a video (T, height and width in patches), or "image" with the grid of an
    image (T = 1).
    """

    record: Family

    # The attribute of the base model that holds the vision tower.
    vision_tower = ""

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def model_class(self) -> Any:
        return self.record.generative_model

    @property
    def config_class(self) -> Any:
        return self.record.config

    @property
    def upstream_class(self) -> Any:
        return self.record.upstream_model

    @property
    def upstream_config_class(self) -> Any:
        return self.record.upstream_model.config_class

    @property
    def upstream_atol(self) -> float:
        """Tolerance for upstream's results at ratio 1; 0 means bit for bit."""
        return 0 if self.record.is_exact else 2e-5

    def make_config(self, config_class: Any, **overrides: Any) -> Any:
        """A tiny configuration of this class, which is the family's or upstream's."""
        return build_tiny_config(self.record, config_class, **overrides)

    def model(self, attn_implementation: str = "sdpa", **flashvid: Any):
        """A FlashVID model with random weights, the same for the same family."""
        return build_tiny_model(self.record, attn_implementation, **{**FLASHVID, **flashvid})

    def upstream(self, like: torch.nn.Module):
        """The upstream model with the weights of `like`."""
        model = self.upstream_class(self.make_config(self.upstream_config_class)).eval()
        model.load_state_dict(like.state_dict())
        return model

    def upstream_inputs(self, upstream: torch.nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
        """These inputs in the form that the upstream model takes."""
        return inputs

    def as_upstream(self) -> "TinyFamily":
        """The family with the settings for which upstream has a model."""
        return self

    def inputs(self, *prompts: Sequence[Any], padding_side: str = "left", seed: int = 0) -> dict[str, Any]:
        """A padded batch of prompts."""
        made = [self.make_prompt(parts, seed + i) for i, parts in enumerate(prompts)]
        length = max(len(ids) for ids, _ in made)

        def pad(rows: list[list[int]]) -> torch.Tensor:
            fill = [[0] * (length - len(row)) for row in rows]
            padded = [f + r if padding_side == "left" else r + f for f, r in zip(fill, rows, strict=True)]
            return torch.tensor(padded)

        media = {kind: [m for _, of_prompt in made for m in of_prompt[kind]] for kind in ("image", "video")}
        ids = pad([ids for ids, _ in made])
        return {
            "input_ids": ids,
            "attention_mask": pad([[1] * len(ids) for ids, _ in made]),
            **self.media_inputs(ids, **media),
        }

    def make_prompt(self, parts: Sequence[Any], seed: int) -> tuple[list[int], dict[str, list]]:
        """Token ids of a prompt, and its images and videos, each as a pair of its part and its pixels."""
        generator = torch.Generator().manual_seed(seed)
        ids, media = [], {"image": [], "video": []}
        kind = "video"
        for part in parts:
            if part == "image":
                kind = "image"
            elif part == "text":
                ids += torch.randint(1, 90, (5,), generator=generator).tolist()
            else:
                ids += self.placeholder_run(kind, part, generator)
                media[kind].append((part, self.pixels(kind, part, generator)))
                kind = "video"
        return ids, media

    # Defined by each geometry.

    def placeholder_run(self, kind: str, part: tuple[int, int, int], generator: torch.Generator) -> list[int]:
        raise NotImplementedError

    def pixels(self, kind: str, part: tuple[int, int, int], generator: torch.Generator) -> torch.Tensor:
        raise NotImplementedError

    def media_inputs(self, input_ids: torch.Tensor, image: list, video: list) -> dict[str, Any]:
        """The inputs other than ids and mask."""
        raise NotImplementedError

    def tokens(self, part: tuple[int, int, int]) -> tuple[int, int]:
        """Number of frames of a video, and number of tokens of a frame."""
        raise NotImplementedError

    def newlines(self, part: tuple[int, int, int]) -> int:
        """Number of placeholders of a video that are no tokens."""
        return 0

    def kept_placeholders(self, indices: Sequence[int], part: tuple[int, int, int]) -> list[int]:
        """The placeholders of a video that enter if the tokens with these indices are kept."""
        return list(indices)

    def is_token(self, inputs: dict[str, Any], *parts: tuple[int, int, int]) -> torch.Tensor:
        """Which columns of the only sample are placeholders of video tokens, with shape (S,)."""
        return inputs["input_ids"][0] == VIDEO

    def positions(self, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor | None:
        """Position ids of the whole prompt; `None` if the model makes them itself."""
        return None

    def entered_positions(self, model: torch.nn.Module, inputs: dict[str, Any], columns: list[int]) -> torch.Tensor:
        """Position ids of those columns of the only sample that enter."""
        raise NotImplementedError

    def video_features(self, model: torch.nn.Module, inputs: dict[str, Any], **kwargs: Any):
        """The features that the model makes of the videos."""
        raise NotImplementedError

    def pooled_attention(self, received: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
        """Attention received by the tokens, flat, from that received by the patches, flat."""
        raise NotImplementedError

    # Used by the shared tests.

    def placeholders(self, part: tuple[int, int, int]) -> int:
        frames, tokens = self.tokens(part)
        return frames * tokens + self.newlines(part)

    def entered(self, part: tuple[int, int, int], config: Any) -> int:
        """Number of rows of a compressed video that enter the language model."""
        return config.method.exact_num_tokens(*self.tokens(part)) + self.newlines(part)

    def tower(self, model: torch.nn.Module) -> torch.nn.Module:
        return getattr(model.model, self.vision_tower)

    def remove_tower(self, model: torch.nn.Module) -> None:
        """Make every attempt to encode something fail."""
        setattr(model.model, self.vision_tower, None)


@dataclass(frozen=True)
class QwenFamily(TinyFamily):
    """Four patches of a grid make a token; the inputs have token types; positions have three axes."""

    vision_tower = "visual"

    @property
    def runs(self) -> bool:
        """Whether every frame of a video has its own run of placeholders, after a timestamp."""
        return self.record.geometry.num_runs(2) == 2

    @property
    def windows(self) -> bool:
        """Whether the vision tower sorts its tokens by attention windows."""
        return "window_size" in self.record.tiny.vision

    @property
    def timed(self) -> bool:
        """Whether positions depend on the time between frames."""
        return "second_per_grid_ts" in self.record.base_model.position_inputs

    def placeholder_run(self, kind, part, generator):
        frames, tokens = self.tokens(part)
        token = IMAGE if kind == "image" else VIDEO
        repeat, length = (frames, tokens) if self.runs else (1, frames * tokens)
        ids = []
        for _ in range(repeat):
            is_stamped = self.runs and kind == "video"
            stamp = torch.randint(1, 90, (2,), generator=generator).tolist() if is_stamped else []
            ids += stamp + [VISION_START] + [token] * length + [VISION_END]
        return ids

    def pixels(self, kind, part, generator):
        frames, tokens = self.tokens(part)
        return torch.randn(4 * frames * tokens, 3 * 2 * 4 * 4, generator=generator)

    def media_inputs(self, input_ids, image, video):
        inputs = {"mm_token_type_ids": (input_ids == IMAGE) + 2 * (input_ids == VIDEO)}
        for media, pixels, grid in (
            (image, "pixel_values", "image_grid_thw"),
            (video, "pixel_values_videos", "video_grid_thw"),
        ):
            if media:
                inputs[grid] = torch.tensor([shape for shape, _ in media])
                inputs[pixels] = torch.cat([values for _, values in media])
        if video and self.timed:  # a quarter of a second between grids gives neighbouring positions
            inputs["second_per_grid_ts"] = torch.full((len(video),), 0.25)
        return inputs

    def tokens(self, part):
        frames, height, width = part
        return frames, height * width // 4

    def positions(self, model, inputs):
        names = ["input_ids", "mm_token_type_ids", "video_grid_thw", "attention_mask"]
        names += ["second_per_grid_ts"] if self.timed else []
        return model.model.get_rope_index(**{name: inputs[name] for name in names})[0]

    def entered_positions(self, model, inputs, columns):
        return self.positions(model, inputs)[:, :, columns]

    def video_features(self, model, inputs, **kwargs):
        return model.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"], **kwargs)

    def pooled_attention(self, received, inputs):
        attention = received.view(-1, 4).mean(-1)
        if not self.windows:
            return attention
        window, _ = get_vision_window_index(
            inputs["video_grid_thw"], spatial_merge_size=2, window_size=16, patch_size=4
        )
        return attention[window.argsort()]


@dataclass(frozen=True)
class LlavaFamily(TinyFamily):
    """Frames of 5 x 5 patches. Only the number of frames is taken from the grid of a part.

    Args:
        layout: pooling and newlines; `None` for those of the family's configuration.
    """

    layout: tuple[str, str] | None = None

    vision_tower = "vision_tower"

    def __post_init__(self):
        if self.layout is None:
            layout = (self.config_class.mm_spatial_pool_mode, self.config_class.mm_newline_position)
            object.__setattr__(self, "layout", layout)

    def as_upstream(self):
        return dataclasses.replace(self, layout=("bilinear", "one_token"))

    def model(self, attn_implementation="sdpa", **flashvid):
        if "mm_newline_position" in self.config_class.method_fields:
            pool, newline = self.layout
            flashvid = {"mm_spatial_pool_mode": pool, "mm_newline_position": newline, **flashvid}
        return super().model(attn_implementation, **flashvid)

    def upstream_inputs(self, upstream, inputs):
        """Upstream takes one tensor, so videos of different length are encoded one by one and put in their places."""
        videos = inputs.get("pixel_values_videos")
        if not isinstance(videos, list):
            return inputs
        features = []
        for video in videos:
            output = upstream.model.get_video_features(video[None]).pooler_output[0]
            if len(output) % 9 == 0:  # before transformers 5.18 there is no newline
                output = torch.cat([output, upstream.model.image_newline[None]])
            features.append(output)
        ids = inputs["input_ids"]
        embeds = upstream.get_input_embeddings()(ids)
        embeds = embeds.masked_scatter((ids == VIDEO)[..., None], torch.cat(features))
        if "pixel_values" in inputs:
            images = upstream.model.get_image_features(inputs["pixel_values"], inputs["image_sizes"]).pooler_output
            embeds = embeds.masked_scatter((ids == IMAGE)[..., None], torch.cat(images))
        return {"inputs_embeds": embeds, "attention_mask": inputs["attention_mask"]}

    def placeholder_run(self, kind, part, generator):
        if kind == "image":
            rows, columns = (5, 10) if part[1] != part[2] else (5, 5)
            return [IMAGE] * (25 + rows * (columns + 1))  # the whole picture first, then its parts with newlines
        return [VIDEO] * self.placeholders(part)

    def pixels(self, kind, part, generator):
        if kind == "image":
            return torch.randn(3 if part[1] != part[2] else 2, 3, 20, 20, generator=generator)
        return torch.randn(part[0], 3, 20, 20, generator=generator)

    def media_inputs(self, input_ids, image, video):
        inputs = {}
        if image:
            most = max(len(pixels) for _, pixels in image)
            padded = [torch.nn.functional.pad(p, (0, 0) * 3 + (0, most - len(p))) for _, p in image]
            inputs["pixel_values"] = torch.stack(padded)
            inputs["image_sizes"] = torch.tensor([(20, 40) if part[1] != part[2] else (20, 20) for part, _ in image])
        if video:
            videos = [pixels for _, pixels in video]
            same = len({len(pixels) for pixels in videos}) == 1
            inputs["pixel_values_videos"] = torch.stack(videos) if same else videos
        return inputs

    def tokens(self, part):
        return part[0], 9 if self.layout[0] == "bilinear" else 4

    def newlines(self, part):
        frames, tokens = self.tokens(part)
        side = math.isqrt(tokens)
        return {"frame": frames, "grid": frames * side, "one_token": 1, "no_token": 0}[self.layout[1]]

    def _slots(self, part) -> list[int | None]:
        """The token of every placeholder, `None` for a newline."""
        frames, tokens = self.tokens(part)
        side = math.isqrt(tokens)
        every = {"frame": tokens, "grid": side, "one_token": frames * tokens, "no_token": None}[self.layout[1]]
        slots = []
        for token in range(frames * tokens):
            slots.append(token)
            if every and (token + 1) % every == 0:
                slots.append(None)
        return slots

    def kept_placeholders(self, indices, part):
        kept = set(indices)
        return [place for place, token in enumerate(self._slots(part)) if token is None or token in kept]

    def is_token(self, inputs, *parts):
        flags = torch.tensor([token is not None for part in parts for token in self._slots(part)])
        is_video = inputs["input_ids"][0] == VIDEO
        return torch.zeros_like(is_video).masked_scatter(is_video, flags)

    def entered_positions(self, model, inputs, columns):
        return torch.arange(len(columns))[None]

    def video_features(self, model, inputs, **kwargs):
        return model.get_video_features(inputs["pixel_values_videos"], **kwargs)

    def pooled_attention(self, received, inputs):
        maps = received.view(-1, 1, 5, 5)
        if self.layout[0] == "bilinear":
            return torch.nn.functional.interpolate(maps, size=(3, 3), mode="bilinear").flatten()
        return torch.stack([maps[..., i : i + 4 : 2, j : j + 4 : 2] for i in (0, 1) for j in (0, 1)]).mean(0).flatten()


# The class that makes the inputs for the families of a geometry. A new geometry needs a class of its own above.
KINDS = {QwenGeometry: QwenFamily, LlavaGeometry: LlavaFamily}
FAMILIES = tuple(
    kind(record) for record in RECORDS for geometry, kind in KINDS.items() if isinstance(record.geometry, geometry)
)
