"""Qwen3-VL with experts (mixture of experts) with FlashVID: in each layer the router sees the tokens of that layer."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import Qwen3VLMoeForConditionalGeneration, Qwen3VLMoeModel
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import (
    Qwen3VLMoeTextSparseMoeBlock,
    load_balancing_loss_func,
)
from transformers.utils import can_return_tuple

from ...hub.loading import FlashVIDPreTrainedMixin
from ..columns import gather_columns, rows_of_columns
from ..language_modeling import FlashVIDLanguageModelingMixin
from ..outputs import FlashVIDCausalLMOutput, FlashVIDModelOutput
from ..prompt import Prompt
from ..upstream import default_router_logits, output_class, takes_arguments_of
from .configuration_flashvid_qwen3_vl_moe import FlashVIDQwen3VLMoeConfig
from .modeling_flashvid_qwen3_vl import FlashVIDQwen3VLModelMixin
from .modeling_qwen import FlashVIDQwenGenerationMixin

# Published checkpoints hold the weights of the experts transposed. Upstream corrects that for its own classes, and for
# other classes if their model type is registered.
register_checkpoint_conversion_mapping(
    FlashVIDQwen3VLMoeConfig.model_type,
    get_checkpoint_conversion_mapping(FlashVIDQwen3VLMoeConfig.base_model_type),
    overwrite=True,
)


@dataclass
class FlashVIDQwen3VLMoeModelOutput(FlashVIDModelOutput, output_class(Qwen3VLMoeModel)):
    """Upstream's fields, those of `FlashVIDModelOutput`, and `router_masks`.

    Args:
        router_logits: for every layer with experts, with shape (B * M, experts) below the pruning layer and
            (B * L, experts) from it on. If `last_hidden_state` has all columns, with shape (B * S, experts): a dropped
            column repeats the row of the last column before it that the layer saw.
        router_masks: for each of `router_logits`, which rows are tokens rather than padding, with shape (B * M,) or
            (B * L,). `None` if `last_hidden_state` has all columns.
    """

    # Upstream's class of outputs, as the annotation of `forward` names it, lacks this field.
    router_logits: tuple[torch.Tensor, ...] | None = None
    router_masks: tuple[torch.Tensor, ...] | None = None


@dataclass
class FlashVIDQwen3VLMoeCausalLMOutput(FlashVIDCausalLMOutput, output_class(Qwen3VLMoeForConditionalGeneration)):
    """Upstream's fields and those of `FlashVIDCausalLMOutput`.

    Args:
        loss: over the labels of the columns that are left, plus the weighted `aux_loss` if there is one.
        aux_loss: load balancing loss of the router, over the tokens that each layer saw.
        router_logits: see `FlashVIDQwen3VLMoeModelOutput`.
    """


class FlashVIDExpertsMixin:
    """Lets `experts_implementation` be set.

    Upstream allows that only if it finds experts in the source code of the module that defines the class.
    """

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return True


class FlashVIDQwen3VLMoeModel(
    FlashVIDPreTrainedMixin, FlashVIDExpertsMixin, FlashVIDQwen3VLModelMixin, Qwen3VLMoeModel
):
    """Qwen3-VL-MoE's base model, compressing its videos. Other inputs run as upstream runs them."""

    config: FlashVIDQwen3VLMoeConfig
    config_class = FlashVIDQwen3VLMoeConfig
    output_class = FlashVIDQwen3VLMoeModelOutput

    def run_language_model(
        self, inputs_embeds: torch.Tensor, prompt: Prompt, settings: Any, *, full_length: bool, **kwargs: Any
    ) -> FlashVIDModelOutput:
        outputs = super().run_language_model(inputs_embeds, prompt, settings, full_length=full_length, **kwargs)
        if outputs.router_logits is None:
            return outputs
        lower = prompt.mask
        if lower is None:
            lower = torch.ones(inputs_embeds.shape[:2], dtype=torch.bool, device=inputs_embeds.device)
        upper = lower if outputs.token_index is None else outputs.token_index >= 0
        pruning = settings.pruning
        first_upper = len(self.language_model.layers) if pruning is None else pruning.layer
        is_lower = [
            layer.self_attn.layer_idx < first_upper
            for layer in self.language_model.layers
            if isinstance(layer.mlp, Qwen3VLMoeTextSparseMoeBlock)
        ]
        if full_length and outputs.token_index is not None:  # trainers compute the loss of the router themselves
            entered = prompt.columns.masked_fill(~lower.to(prompt.columns.device), -1)
            rows = [rows_of_columns(index, prompt.num_columns) for index in (entered, outputs.token_index)]
            outputs.router_logits = tuple(
                gather_columns(logits.unflatten(0, (len(lower), -1)), rows[0 if below else 1]).flatten(0, 1)
                for logits, below in zip(outputs.router_logits, is_lower, strict=True)
            )
            return outputs
        masks = tuple((lower if below else upper).flatten() for below in is_lower)
        return self.output_class(**outputs, router_masks=masks)


class FlashVIDQwen3VLMoeForConditionalGeneration(
    FlashVIDPreTrainedMixin,
    FlashVIDExpertsMixin,
    FlashVIDQwenGenerationMixin,
    FlashVIDLanguageModelingMixin,
    Qwen3VLMoeForConditionalGeneration,
):
    """Qwen3-VL-MoE with a language modeling head, compressing its videos."""

    config: FlashVIDQwen3VLMoeConfig
    config_class = FlashVIDQwen3VLMoeConfig
    output_class = FlashVIDQwen3VLMoeCausalLMOutput

    def __init__(self, config: FlashVIDQwen3VLMoeConfig):
        # Upstream's `__init__` is skipped, because it would build upstream's base model.
        super(Qwen3VLMoeForConditionalGeneration, self).__init__(config)
        self.model = FlashVIDQwen3VLMoeModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    @takes_arguments_of(Qwen3VLMoeForConditionalGeneration)
    def forward(
        self,
        inputs: dict[str, Any],
        labels: torch.Tensor | None = None,
        output_router_logits: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        query_index: int | torch.Tensor | None = None,
        full_length: bool | None = None,
        **kwargs: Any,
    ) -> tuple | FlashVIDQwen3VLMoeCausalLMOutput:
        """Upstream's `forward`, on the kept video tokens.

        See `forward_flashvid` for `query_index`, and `language_modeling_output` for `full_length`.
        """
        if output_router_logits is None:
            output_router_logits = default_router_logits(self.config.text_config)
        outputs = self.model(
            **inputs,
            query_index=query_index,
            full_length=False,
            output_router_logits=output_router_logits,
            **kwargs,
        )
        output = self.language_modeling_output(outputs, inputs, labels, logits_to_keep, full_length, **kwargs)
        if output_router_logits:
            loss, aux_loss = output.loss, self.load_balancing_loss(outputs, inputs["attention_mask"])
            if loss is not None:
                loss = loss + self.config.text_config.router_aux_loss_coef * aux_loss.to(loss.device)
            # A new output keeps its values in the order of the fields.
            output = self.output_class(**{**output, "loss": loss, "aux_loss": aux_loss})
        return output

    def load_balancing_loss(
        self, outputs: BaseModelOutputWithPast, attention_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Upstream's auxiliary loss. With videos, in each layer it covers the rows that are tokens rather than padding.

        Args:
            outputs: outputs of the base model, with router logits.
            attention_mask: as the caller passed it. Without videos, upstream weights the rows of all layers with it.
        """
        config, router_logits = self.config.text_config, outputs.router_logits
        masks = getattr(outputs, "router_masks", None)
        if masks is not None:  # the layers have different numbers of rows, so one mask does not fit all of them
            rows = zip(router_logits, masks, strict=True)
            router_logits, attention_mask = tuple(logits[mask.to(logits.device)] for logits, mask in rows), None
        return load_balancing_loss_func(router_logits, config.num_experts, config.num_experts_per_tok, attention_mask)


__all__ = ["FlashVIDQwen3VLMoeForConditionalGeneration", "FlashVIDQwen3VLMoeModel"]
