"""The language modeling head: logits and loss of a compressed prompt."""

from dataclasses import fields
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from .columns import count_columns, gather_columns, rows_of_columns
from .outputs import FlashVIDCausalLMOutput


class FlashVIDLanguageModelingMixin:
    """Logits and loss of a compressed prompt."""

    config: Any
    lm_head: Any
    loss_function: Any
    training: bool

    # Tells trainers that the loss divides by `num_items_in_batch`. Upstream's Qwen classes deny it, although their loss
    # does so too. Here this argument also shows that a trainer computes the loss itself.
    accepts_loss_kwargs = True
    # The class of the outputs: upstream's fields and those of `FlashVIDCausalLMOutput`.
    output_class: type[FlashVIDCausalLMOutput]

    def language_modeling_output(
        self,
        outputs: BaseModelOutputWithPast,
        inputs: dict[str, Any],
        labels: torch.Tensor | None,
        logits_to_keep: int | torch.Tensor,
        full_length: bool | None = None,
        **kwargs: Any,
    ) -> FlashVIDCausalLMOutput:
        """Compute the logits from the output of the base model, and with labels the loss.

        The loss is computed from the rows that are left, before any row is repeated.

        Args:
            outputs: output of the base model, whose rows are the columns that are left.
            inputs: the named arguments of `forward`.
            labels: with shape (B, S). Labels of dropped columns, of padding and of the first token of a sample do not
                count.
            logits_to_keep: how many of the last columns get logits, 0 for all; or the indices of these columns. If the
                logits are not of full length, they count rows that are left.
            full_length: whether the logits have all S columns of a compressed prompt, or only the L that are left. A
                dropped column repeats the logits of the last column before it that is left. `None` stands for
                `full_length` of the configuration. If that is `None` too, the logits have full length in training mode,
                in calls with `labels` or `num_items_in_batch` (a trainer that computes the loss itself), and on the
                replicas of `nn.DataParallel`.
            kwargs: what the loss function takes.

        Raises:
            ValueError: `labels` of a compressed prompt with `logits_to_keep` or `shift_labels`.
        """
        states, token_index = outputs.last_hidden_state, getattr(outputs, "token_index", None)
        is_replica = getattr(self, "_is_replica", False)  # set by `nn.DataParallel`
        if full_length is None:
            full_length = self.config.full_length
        if full_length is None:
            computes_loss = labels is not None or kwargs.get("num_items_in_batch") is not None
            full_length = self.training or computes_loss or is_replica
        keeps_all = isinstance(logits_to_keep, int) and logits_to_keep == 0
        columns = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        if labels is not None and token_index is not None:
            _check_loss_arguments(keeps_all, logits_to_keep, kwargs.get("shift_labels"))
        repeated = None  # the row of each column, if the logits have full length
        if token_index is not None and full_length:
            repeated = rows_of_columns(token_index, count_columns(inputs))[:, columns]
            if not keeps_all:  # the head runs on these columns alone
                states, columns, repeated = gather_columns(states, repeated), slice(None), None
        logits = self.lm_head(states[:, columns])
        loss = None
        if labels is not None:
            if token_index is not None:
                kept = token_index.to(labels.device)
                is_padding = kept < 0
                # The row before the first token of a sample may be padding. Padding must not predict that token.
                uncounted = is_padding | nn.functional.pad(is_padding[:, :-1], (1, 0))
                labels = labels.gather(1, kept.clamp(min=0)).masked_fill(uncounted, -100)
            vocab_size = self.config.get_text_config().vocab_size
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=vocab_size, **kwargs)
        if repeated is not None:
            logits = gather_columns(logits, repeated)
        own = {field.name for field in fields(self.output_class)}
        passed_on = {name: value for name, value in outputs.items() if name in own}
        passed_on["report"] = getattr(outputs, "report", None)  # upstream's outputs have no such field
        if is_replica:  # it can only gather tensors with the same number of columns on every replica
            ignored = self.config.keys_to_ignore_at_inference
            passed_on = {name: value for name, value in passed_on.items() if name not in ignored}
        return self.output_class(**{**passed_on, "loss": loss, "logits": logits})


def _check_loss_arguments(
    keeps_all: bool, logits_to_keep: int | torch.Tensor, shift_labels: torch.Tensor | None
) -> None:
    if not keeps_all:
        raise ValueError(
            f"`logits_to_keep` is {logits_to_keep!r} and `labels` are given: the loss of a compressed prompt needs the "
            "logits of all rows. Leave `logits_to_keep` at 0."
        )
    if shift_labels is not None:
        raise ValueError(
            f"`shift_labels` of shape {tuple(shift_labels.shape)} is given: the columns of a compressed prompt move, "
            "so its labels are shifted after the compression. Pass `labels` alone, and split no sequence over devices."
        )
