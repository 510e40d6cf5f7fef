"""Qwen2-VL with FlashVID: its vision tower attends to whole frames in every block."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import Qwen2VLForConditionalGeneration, Qwen2VLModel
from transformers.utils import can_return_tuple

from ...hub.loading import FlashVIDPreTrainedMixin
from ..language_modeling import FlashVIDLanguageModelingMixin
from ..outputs import FlashVIDCausalLMOutput, FlashVIDModelOutput
from ..upstream import output_class, takes_arguments_of
from .configuration_flashvid_qwen2_vl import FlashVIDQwen2VLConfig
from .modeling_qwen import CHECKPOINT_KEY_MAPPING, FlashVIDQwenGenerationMixin, FlashVIDQwenModelMixin


@dataclass
class FlashVIDQwen2VLModelOutput(FlashVIDModelOutput, output_class(Qwen2VLModel)):
    """Upstream's fields and those of `FlashVIDModelOutput`."""


@dataclass
class FlashVIDQwen2VLCausalLMOutput(FlashVIDCausalLMOutput, output_class(Qwen2VLForConditionalGeneration)):
    """Upstream's fields and those of `FlashVIDCausalLMOutput`."""


class FlashVIDQwen2VLModel(FlashVIDPreTrainedMixin, FlashVIDQwenModelMixin, Qwen2VLModel):
    """Qwen2-VL's base model, compressing its videos. Other inputs run as upstream runs them."""

    config: FlashVIDQwen2VLConfig
    config_class = FlashVIDQwen2VLConfig
    checkpoint_key_mapping = CHECKPOINT_KEY_MAPPING
    output_class = FlashVIDQwen2VLModelOutput

    @can_return_tuple
    @takes_arguments_of(Qwen2VLModel)
    def forward(
        self,
        inputs: dict[str, Any],
        query_index: int | torch.Tensor | None = None,
        full_length: bool | None = None,
        **kwargs: Any,
    ) -> tuple | FlashVIDModelOutput:
        """Upstream's `forward`, on the kept video tokens; see `forward_flashvid` for the other arguments."""
        return self.forward_flashvid(super().forward, inputs, query_index, full_length, **kwargs)


class FlashVIDQwen2VLForConditionalGeneration(
    FlashVIDPreTrainedMixin,
    FlashVIDQwenGenerationMixin,
    FlashVIDLanguageModelingMixin,
    Qwen2VLForConditionalGeneration,
):
    """Qwen2-VL with a language modeling head, compressing its videos."""

    config: FlashVIDQwen2VLConfig
    config_class = FlashVIDQwen2VLConfig
    checkpoint_key_mapping = CHECKPOINT_KEY_MAPPING
    output_class = FlashVIDQwen2VLCausalLMOutput

    def __init__(self, config: FlashVIDQwen2VLConfig):
        # Upstream's `__init__` is skipped, because it would build upstream's base model.
        super(Qwen2VLForConditionalGeneration, self).__init__(config)
        self.model = FlashVIDQwen2VLModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    @takes_arguments_of(Qwen2VLForConditionalGeneration)
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


__all__ = ["FlashVIDQwen2VLForConditionalGeneration", "FlashVIDQwen2VLModel"]
