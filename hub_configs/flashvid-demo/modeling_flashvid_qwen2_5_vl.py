"""The models of Qwen2.5-VL with FlashVID.

Generated from flashvid_hf 0.1.0: do not edit. The sections are its modules:

    models/qwen/modeling_qwen.py
    models/qwen/modeling_flashvid_qwen2_5_vl.py
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLModel
from transformers.utils import can_return_tuple
from transformers.vision_utils import get_vision_window_index

from .configuration_flashvid_qwen2_5_vl import FlashVIDQwen2_5_VLConfig
from .modeling_flashvid import (
    CACHE,
    RECORD,
    TAKES_ENCODED_VIDEOS,
    FlashVIDCausalLMOutput,
    FlashVIDGenerationMixin,
    FlashVIDLanguageModelingMixin,
    FlashVIDModelMixin,
    FlashVIDModelOutput,
    FlashVIDPreTrainedMixin,
    FlashVIDVideoOutput,
    Prompt,
    Stopwatch,
    VisionRecord,
    find_sources,
    install_packed_recording,
    join_rows,
    output_class,
    split_frames,
    takes_arguments_of,
    tower_device,
)

# models/qwen/modeling_qwen.py -----------------------------------------------------------------------------------------

"""Shared code of the Qwen families: packed frames in the vision tower, three-axis positions."""

# Names of weights in the published checkpoints of Qwen2-VL and Qwen2.5-VL, and their names in the model since
# transformers 4.52.
CHECKPOINT_KEY_MAPPING = {
    r"^visual": "model.visual",
    r"^model(?!\.(language_model|visual))": "model.language_model",
}


class FlashVIDQwenGenerationMixin(FlashVIDGenerationMixin):
    """`generate` of a Qwen family."""

    def _prepare_position_ids_for_generation(self, inputs_tensor: torch.Tensor, model_kwargs: dict[str, Any]):
        rope_deltas = getattr(model_kwargs.get(CACHE), "rope_deltas", None)
        if rope_deltas is not None:
            self.model.rope_deltas = rope_deltas  # the value on the model may belong to another prompt by now
        return super()._prepare_position_ids_for_generation(inputs_tensor, model_kwargs)


class FlashVIDQwenModelMixin(FlashVIDModelMixin):
    """Base model of a Qwen family, compressing its videos. Other inputs run as upstream runs them."""

    visual: Any
    compute_3d_position_ids: Any

    encoder_inputs = {
        "image": ("pixel_values", "image_grid_thw"),
        "video": ("pixel_values_videos", "video_grid_thw"),
    }
    tower_arguments = ("output_hidden_states", "output_attentions")
    released_code_overwrites_repeats = True
    positions_need_grids = True
    upstream_takes_encoded = TAKES_ENCODED_VIDEOS
    position_inputs: tuple[str, ...] = (  # arguments of upstream's `compute_3d_position_ids`
        "image_grid_thw",
        "video_grid_thw",
        "mm_token_type_ids",
    )

    def __init__(self, config: Any):
        super().__init__(config)  # type: ignore[call-arg]  # upstream's, which this is mixed into
        self.install_hooks()

    def install_hooks(self) -> None:
        super().install_hooks()
        install_packed_recording(self.visual.blocks)

    @property
    def patches_per_token(self) -> int:
        """How many patches of a temporal grid the merger joins to a token: a square of them."""
        return self.config.vision_config.spatial_merge_size**2

    def get_video_features(
        self,
        pixel_values_videos: torch.Tensor,
        video_grid_thw: torch.Tensor | None = None,
        settings: Any = None,
        **kwargs: Any,
    ) -> tuple | FlashVIDVideoOutput:
        """Encode the videos and compress each of them.

        Args:
            pixel_values_videos: patches of all videos, with shape (patches, patch width). If the videos are compressed,
                the patches may be on the CPU: they are moved to the device of the vision tower chunk by chunk.
            video_grid_thw: for every video the number of temporal grids, and the height and width in patches, with
                shape (V, 3).
            settings: a configuration whose settings of the compression replace the model's.
            kwargs: single fields of FlashVID that replace those of `settings` (`retention_ratio=0.2`), and what
                upstream takes.

        Raises:
            ValueError: a tensor among upstream's keyword arguments covers all frames, but the frames are encoded in
                several chunks.
        """
        settings = self.take_settings(settings, kwargs)
        return_dict = kwargs.pop("return_dict", None)
        if not settings.compresses:
            outputs = super().get_video_features(pixel_values_videos, video_grid_thw, return_dict=True, **kwargs)
            outputs = FlashVIDVideoOutput.uncompressed(outputs, settings)
            return outputs if return_dict is not False else outputs.to_tuple()
        stopwatch = Stopwatch()
        grids = video_grid_thw.tolist()
        sizes = [math.prod(grid) // self.patches_per_token for grid in grids]
        with stopwatch.stage("vision", tower_device(self.visual, pixel_values_videos)):
            chunks = self._encode_chunks(pixel_values_videos, video_grid_thw, grids, settings, **kwargs)
            joined = [rows.split(sizes) for rows in join_rows(chunks, sum(sizes))]
        num_rows = 1 + len(settings.method.signals)
        features, *recorded = (
            [rows.unflatten(0, (grid[0], -1)) for rows, grid in zip(of_videos, grids, strict=True)]
            for of_videos in joined[:num_rows]
        )
        compressed = self.compress_videos(features, recorded, settings, stopwatch)
        # Deepstack features are not merged: a kept token takes the features of its own place.
        compressed.deepstack_features = [
            tuple(rows[video.indices.to(rows.device)] for rows, video in zip(level, compressed.videos, strict=True))
            for level in joined[num_rows:]
        ] or None
        return compressed if return_dict is not False else compressed.to_tuple()

    def _encode_chunks(
        self,
        pixel_values_videos: torch.Tensor,
        video_grid_thw: torch.Tensor,
        grids: list[list[int]],
        settings: Any,
        **kwargs: Any,
    ) -> Iterator[tuple[torch.Tensor, ...]]:
        """Encode the videos in chunks.

        Args:
            pixel_values_videos, video_grid_thw, settings, kwargs: see `get_video_features`.
            grids: `video_grid_thw` as a list.

        Yields:
            For each chunk its features (tokens, D), then each signal that the method asks for, then each deepstack
            level.
        """
        chunks = split_frames([frames for frames, _, _ in grids], settings.vision_chunk_size)
        whole = sorted(name for name, value in kwargs.items() if isinstance(value, torch.Tensor))
        if len(chunks) > 1 and whole:
            raise ValueError(
                f"`{whole[0]}` belongs to all frames of the videos, and `vision_chunk_size` is "
                f"{settings.vision_chunk_size}: pass `vision_chunk_size=None` with it, or leave it out."
            )
        device, start = tower_device(self.visual, pixel_values_videos), 0
        sources = find_sources(settings.method.signals, self.visual.blocks, self.visual.blocks[-1])
        for chunk in chunks:
            shapes = [(frames, *grids[video][1:]) for video, frames in chunk]
            grid, end = video_grid_thw.new_tensor(shapes), start + sum(math.prod(shape) for shape in shapes)
            record = VisionRecord(sources.values())
            outputs = super().get_video_features(
                pixel_values_videos[start:end].to(device), grid, return_dict=True, **{RECORD: record}, **kwargs
            )
            start = end
            features = torch.cat(outputs.pooler_output)
            signals = []
            for source in sources.values():  # a token's signal is the mean over the patches that the merger joins
                patches = record.found[source].detach().float().unflatten(0, (-1, self.patches_per_token))
                signals.append(self.restore_order(patches.mean(1), grid).to(features.device))
            yield features, *signals, *self.deepstack_levels(outputs)

    def deepstack_levels(self, outputs: Any) -> list[torch.Tensor]:
        """The deepstack features of each level, with shape (tokens, D) each. Default: none."""
        return []

    def restore_order(self, rows: torch.Tensor, video_grid_thw: torch.Tensor) -> torch.Tensor:
        """Put rows from the order of the tokens inside the vision tower into the order of its output.

        Default: both orders are equal.
        """
        return rows

    def find_positions(self, prompt: Prompt, inputs: dict[str, Any]) -> torch.Tensor:
        """Upstream's three-axis positions of the whole prompt. A kept token keeps its position."""
        position_ids, inputs_embeds, cache, attention_mask = (
            inputs[name] for name in ("position_ids", "inputs_embeds", "cache", "attention_mask")
        )
        like = inputs["input_ids"] if inputs_embeds is None else inputs_embeds[..., 0]
        seen = 0 if cache is None else cache.get_seq_length()
        if position_ids is None:
            if seen and cache.rope_deltas is not None:
                self.rope_deltas = cache.rope_deltas  # the value on the model may belong to another prompt by now
            position_ids = self.compute_3d_position_ids(
                input_ids=inputs["input_ids"],
                inputs_embeds=like[..., None] if inputs_embeds is None else inputs_embeds,  # only the shape is read
                attention_mask=attention_mask,
                **{CACHE: cache},
                **{name: inputs[name] for name in self.position_inputs},
            )
        if position_ids is None:  # upstream's fallback, applied before columns are dropped
            position_ids = torch.arange(seen, seen + prompt.num_columns, device=like.device).expand(like.shape)
        if position_ids.ndim == 3:
            # A fourth row is for packed sequences. It is left out, because gaps would look like packed sequences.
            position_ids = position_ids[-3:]
        if prompt.videos and cache is not None and position_ids.ndim == 3:
            end = position_ids.amax((0, 2)) + 1
            tokens = seen + prompt.num_columns if attention_mask is None else attention_mask.sum(-1)
            cache.rope_deltas = (end - tokens)[:, None]
        position_ids = position_ids[..., -prompt.num_columns :]
        return prompt.gather(position_ids, position_ids.ndim - 1)

    def placeholder_counts(self, kind: str, inputs: dict[str, Any]) -> torch.Tensor:
        return inputs[f"{kind}_grid_thw"].prod(-1) // self.patches_per_token


# models/qwen/modeling_flashvid_qwen2_5_vl.py --------------------------------------------------------------------------

"""Qwen2.5-VL with FlashVID."""


@dataclass
class FlashVIDQwen2_5_VLModelOutput(FlashVIDModelOutput, output_class(Qwen2_5_VLModel)):
    """Upstream's fields and those of `FlashVIDModelOutput`."""


@dataclass
class FlashVIDQwen2_5_VLCausalLMOutput(FlashVIDCausalLMOutput, output_class(Qwen2_5_VLForConditionalGeneration)):
    """Upstream's fields and those of `FlashVIDCausalLMOutput`."""


class FlashVIDQwen2_5_VLModel(FlashVIDPreTrainedMixin, FlashVIDQwenModelMixin, Qwen2_5_VLModel):
    """Qwen2.5-VL's base model, compressing its videos. Other inputs run as upstream runs them."""

    config: FlashVIDQwen2_5_VLConfig
    config_class = FlashVIDQwen2_5_VLConfig
    checkpoint_key_mapping = CHECKPOINT_KEY_MAPPING
    output_class = FlashVIDQwen2_5_VLModelOutput
    position_inputs = (*FlashVIDQwenModelMixin.position_inputs, "second_per_grid_ts")

    def restore_order(self, rows: torch.Tensor, video_grid_thw: torch.Tensor) -> torch.Tensor:
        # Inside the vision tower the tokens are sorted by attention windows.
        window_index, _ = get_vision_window_index(
            video_grid_thw,
            spatial_merge_size=self.visual.spatial_merge_size,
            window_size=self.visual.window_size,
            patch_size=self.visual.patch_size,
        )
        return rows[window_index.to(rows.device).argsort()]

    @can_return_tuple
    @takes_arguments_of(Qwen2_5_VLModel)
    def forward(
        self,
        inputs: dict[str, Any],
        query_index: int | torch.Tensor | None = None,
        full_length: bool | None = None,
        **kwargs: Any,
    ) -> tuple | FlashVIDModelOutput:
        """Upstream's `forward`, on the kept video tokens; see `forward_flashvid` for the other arguments."""
        return self.forward_flashvid(super().forward, inputs, query_index, full_length, **kwargs)


class FlashVIDQwen2_5_VLForConditionalGeneration(
    FlashVIDPreTrainedMixin,
    FlashVIDQwenGenerationMixin,
    FlashVIDLanguageModelingMixin,
    Qwen2_5_VLForConditionalGeneration,
):
    """Qwen2.5-VL with a language modeling head, compressing its videos."""

    config: FlashVIDQwen2_5_VLConfig
    config_class = FlashVIDQwen2_5_VLConfig
    checkpoint_key_mapping = CHECKPOINT_KEY_MAPPING
    output_class = FlashVIDQwen2_5_VLCausalLMOutput

    def __init__(self, config: FlashVIDQwen2_5_VLConfig):
        # Upstream's `__init__` is skipped, because it would build upstream's base model.
        super(Qwen2_5_VLForConditionalGeneration, self).__init__(config)
        self.model = FlashVIDQwen2_5_VLModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    @takes_arguments_of(Qwen2_5_VLForConditionalGeneration)
    def forward(
        self,
        inputs: dict[str, Any],
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        query_index: int | torch.Tensor | None = None,
        full_length: bool | None = None,
        **kwargs: Any,
    ) -> tuple | FlashVIDCausalLMOutput:
        """Upstream's `forward`, on the kept video tokens.

        See `forward_flashvid` for `query_index`, and `language_modeling_output` for `full_length`.
        """
        outputs = self.model(**inputs, query_index=query_index, full_length=False, **kwargs)
        return self.language_modeling_output(outputs, inputs, labels, logits_to_keep, full_length, **kwargs)


__all__ = [
    "FlashVIDQwen2_5_VLForConditionalGeneration",
    "FlashVIDQwen2_5_VLModel",
]
