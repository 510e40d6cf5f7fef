"""Qwen2.5-VL with FlashVID."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLModel
from transformers.utils import can_return_tuple
from transformers.vision_utils import get_vision_window_index

from ...hub.loading import FlashVIDPreTrainedMixin
from ..language_modeling import FlashVIDLanguageModelingMixin
from ..outputs import FlashVIDCausalLMOutput, FlashVIDModelOutput
from ..upstream import output_class, takes_arguments_of
from .configuration_flashvid_qwen2_5_vl import FlashVIDQwen2_5_VLConfig
from .modeling_qwen import CHECKPOINT_KEY_MAPPING, FlashVIDQwenGenerationMixin, FlashVIDQwenModelMixin


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


__all__ = ["FlashVIDQwen2_5_VLForConditionalGeneration", "FlashVIDQwen2_5_VLModel"]
