"""Qwen3-VL with FlashVID: deepstack features follow the kept tokens."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import Qwen3VLForConditionalGeneration, Qwen3VLModel
from transformers.utils import can_return_tuple

from ...hub.loading import FlashVIDPreTrainedMixin
from ..language_modeling import FlashVIDLanguageModelingMixin
from ..outputs import FlashVIDCausalLMOutput, FlashVIDModelOutput
from ..prompt import Prompt
from ..upstream import join_level, output_class, takes_arguments_of
from .configuration_flashvid_qwen3_vl import FlashVIDQwen3VLConfig
from .modeling_qwen import FlashVIDQwenGenerationMixin, FlashVIDQwenModelMixin


@dataclass
class FlashVIDQwen3VLModelOutput(FlashVIDModelOutput, output_class(Qwen3VLModel)):
    """Upstream's fields and those of `FlashVIDModelOutput`."""


@dataclass
class FlashVIDQwen3VLCausalLMOutput(FlashVIDCausalLMOutput, output_class(Qwen3VLForConditionalGeneration)):
    """Upstream's fields and those of `FlashVIDCausalLMOutput`."""


class FlashVIDQwen3VLModelMixin(FlashVIDQwenModelMixin):
    """Base model of Qwen3-VL, dense or with experts, compressing its videos.

    Every temporal grid of a video has its own run of placeholders, between timestamps. The compression covers the whole
    video. A kept token keeps its column, so it stays in its run.
    """

    def deepstack_levels(self, outputs: Any) -> list[torch.Tensor]:
        return [join_level(level) for level in outputs.deepstack_features]

    def dropped_columns(
        self, input_ids: torch.Tensor | None, video_mask: torch.Tensor, settings: Any
    ) -> torch.Tensor | None:
        # The released code drops every vision_start and vision_end token. Here only those around videos are dropped.
        # Those around images stay, and so do those that the model itself wrote and reads again if it has no cache.
        if settings.behavior != "released" or input_ids is None:
            return None
        is_video = nn.functional.pad(video_mask, (1, 1))
        starts = (input_ids == self.config.vision_start_token_id) & is_video[:, 2:]
        ends = (input_ids == self.config.vision_end_token_id) & is_video[:, :-2]
        return starts | ends

    def language_model_inputs(
        self, prompt: Prompt, image_mask: torch.Tensor, video_mask: torch.Tensor, encoded: dict[str, Any]
    ) -> dict[str, Any]:
        masks = {"image": prompt.gather(image_mask), "video": prompt.find_video_columns(video_mask)}
        if prompt.mask is not None:
            masks = {kind: mask & prompt.mask for kind, mask in masks.items()}
        outputs = {kind: output for kind, output in encoded.items() if output is not None}
        if not outputs:
            return {}
        visual = torch.stack([masks[kind] for kind in outputs]).any(0)  # (B, M)
        deepstack = []
        for level in zip(*(output.deepstack_features for output in outputs.values()), strict=True):
            rows = [join_level(part) for part in level]
            joint = rows[0].new_zeros(int(visual.sum()), rows[0].shape[-1])
            for kind, of_kind in zip(outputs, rows, strict=True):
                joint[masks[kind][visual].to(joint.device)] = of_kind
            deepstack.append(joint)
        return {"visual_pos_masks": visual, "deepstack_visual_embeds": deepstack}

    @can_return_tuple
    @takes_arguments_of(Qwen3VLModel)
    def forward(
        self,
        inputs: dict[str, Any],
        query_index: int | torch.Tensor | None = None,
        full_length: bool | None = None,
        **kwargs: Any,
    ) -> tuple | FlashVIDModelOutput:
        """Upstream's `forward`, on the kept video tokens; see `forward_flashvid` for the other arguments."""
        return self.forward_flashvid(super().forward, inputs, query_index, full_length, **kwargs)


class FlashVIDQwen3VLModel(FlashVIDPreTrainedMixin, FlashVIDQwen3VLModelMixin, Qwen3VLModel):
    """Qwen3-VL's base model, compressing its videos. Other inputs run as upstream runs them."""

    config: FlashVIDQwen3VLConfig
    config_class = FlashVIDQwen3VLConfig
    output_class = FlashVIDQwen3VLModelOutput


class FlashVIDQwen3VLForConditionalGeneration(
    FlashVIDPreTrainedMixin,
    FlashVIDQwenGenerationMixin,
    FlashVIDLanguageModelingMixin,
    Qwen3VLForConditionalGeneration,
):
    """Qwen3-VL with a language modeling head, compressing its videos."""

    config: FlashVIDQwen3VLConfig
    config_class = FlashVIDQwen3VLConfig
    output_class = FlashVIDQwen3VLCausalLMOutput

    def __init__(self, config: FlashVIDQwen3VLConfig):
        # Upstream's `__init__` is skipped, because it would build upstream's base model.
        super(Qwen3VLForConditionalGeneration, self).__init__(config)
        self.model = FlashVIDQwen3VLModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    @takes_arguments_of(Qwen3VLForConditionalGeneration)
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


__all__ = ["FlashVIDQwen3VLForConditionalGeneration", "FlashVIDQwen3VLModel", "FlashVIDQwen3VLModelMixin"]
