"""The language modeling head: logits and loss on the columns that are left."""

from dataclasses import fields
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from .outputs import FlashVIDCausalLMOutput


class FlashVIDLanguageModelingMixin:
    """Logits and loss on the columns that are left."""

    config: Any
    lm_head: Any
    loss_function: Any

    # The class of the outputs: upstream's fields and those of `FlashVIDCausalLMOutput`.
    output_class: type[FlashVIDCausalLMOutput]

    def language_modeling_output(
        self,
        outputs: BaseModelOutputWithPast,
        labels: torch.Tensor | None,
        logits_to_keep: int | torch.Tensor,
        **kwargs: Any,
    ) -> FlashVIDCausalLMOutput:
        """Compute the logits from the output of the base model, and with labels the loss.

        Args:
            outputs: output of the base model.
            labels: with shape (B, S). Labels of dropped columns, of padding and of the first token of a sample do not
                count.
            logits_to_keep: how many of the last rows get logits, 0 for all; or the indices of these rows.
            kwargs: what the loss function takes.

        Raises:
            ValueError: `labels` with `logits_to_keep`.
        """
        rows = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, rows])
        token_index = getattr(outputs, "token_index", None)
        loss = None
        if labels is not None:
            if token_index is not None:
                if logits.shape[1] != token_index.shape[1]:
                    raise ValueError(
                        f"`logits_to_keep` is {logits_to_keep!r} and `labels` are given: the loss of a compressed "
                        "prompt needs the logits of all rows. Leave `logits_to_keep` at 0."
                    )
                kept = token_index.to(labels.device)
                is_padding = kept < 0
                # The row before the first token of a sample may be padding. Padding must not predict that token.
                uncounted = is_padding | nn.functional.pad(is_padding[:, :-1], (1, 0))
                labels = labels.gather(1, kept.clamp(min=0)).masked_fill(uncounted, -100)
            vocab_size = self.config.get_text_config().vocab_size
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=vocab_size, **kwargs)
        own = {field.name for field in fields(self.output_class)}
        passed_on = {name: value for name, value in outputs.items() if name in own}
        report = getattr(outputs, "report", None)  # upstream's outputs have no such field
        return self.output_class(**{**passed_on, "loss": loss, "logits": logits, "report": report})
