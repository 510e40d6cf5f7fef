"""Pruning inside the language model: from one layer on, only the best video tokens are left, see `LayerPruning`.

Upstream's language models pass unknown keyword arguments on to their layers. One such argument carries the decision of
the call. Hooks on the layers of a model instance apply the decision. In calls without the argument they do nothing.

Letters of this file: Q queries, that is columns whose attention ranks the video tokens.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.masking_utils import create_causal_mask

from ..compression.weighted_rows import weighted_sums
from ..methods.compression_method import LayerPruning
from .cache import FlashVIDCache
from .columns import find_columns, gather_columns
from .hooks import add_pre_hook
from .tensor_parallel import mean_over_heads
from .upstream import CACHE
from .vision_signals import rotate

# Name of the keyword argument that carries the decision through the language model.
PRUNING = "pruning"
# Most bytes of the float32 attention weights of text tokens that exist at once. It bounds the memory for long prompts.
_MAX_SCORE_BYTES = 64 * 2**20


class UpperLayers:
    """What the pruning layer and the layers above it see in one call: their attention mask and their columns.

    Args:
        config: configuration of the language model.
        layer: the first layer that sees fewer tokens.
        cache: cache of the call; `None` if it uses none.
        past_mask: which of the columns that these layers have cached are real, with shape (B, cached columns); `None`
            if all are.
        new_mask: which of the new columns are real, with shape (B, M); `None` if all are.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        layer: int,
        cache: FlashVIDCache | None,
        past_mask: torch.Tensor | None,
        new_mask: torch.Tensor | None,
    ):
        self.config, self.layer, self.cache = config, layer, cache
        self.past_mask, self.new_mask = past_mask, new_mask
        self.mask: torch.Tensor | None = None  # over cached and new columns
        self.attention_mask: Any = None  # the same mask in the form that the attention implementation takes
        self.entered = False

    def start_layer(self, layer_idx: int, hidden_states: torch.Tensor, kwargs: dict[str, Any]) -> torch.Tensor:
        """Adapt the inputs of `layer` or of a layer above it.

        Args:
            layer_idx: index of that layer.
            hidden_states: its input, with shape (B, columns, D).
            kwargs: its keyword arguments, which are changed.

        Returns:
            The hidden states that the layer gets.
        """
        if not self.entered:
            self.entered = True
            past = self.cache.num_cached(self.layer) if self.cache is not None else 0
            self.mask = join_masks(self.past_mask, past, self.new_mask, hidden_states)
            self.attention_mask = create_causal_mask(
                config=self.config,
                inputs_embeds=hidden_states,
                attention_mask=self.mask,
                layer_idx=self.layer,
                **{CACHE: self.cache},
            )
        mask = self.attention_mask
        kwargs["attention_mask"] = mask.to(hidden_states.device) if isinstance(mask, torch.Tensor) else mask
        return hidden_states


class TokenPruning(UpperLayers):
    """The decision of one call which video tokens the pruning layer and the layers above it see.

    The score of a token is the attention that it gets in the layer below the pruning layer, in float32: softmax over
    all visible keys, mean over the heads of all ranks. It is the attention from the query, or the largest attention
    from any token behind the last video up to the query. In every sample the best `ceil(ratio * prunable tokens)`
    prunable tokens stay, and so do all other tokens.

    Args:
        upper: the arguments of `UpperLayers`.
        rule: which share of the prunable tokens stays, how tokens are ranked, and whether dropped tokens are merged
            into those that stay.
        prunable: which of the new columns may be dropped, with shape (B, M).
        query: column of the token that ranks the others, the end of the prompt, with shape (B,).
        past_lower_mask: which of the columns that the layers below have cached are real, with shape
            (B, cached columns); `None` if all are.
        padding_side: the side on which shorter samples are padded, "left" or "right".
        is_video: which of the new columns belong to videos, newlines included, with shape (B, M). Default: `prunable`.
    """

    def __init__(
        self,
        *upper: Any,
        rule: LayerPruning,
        prunable: torch.Tensor,
        query: torch.Tensor,
        past_lower_mask: torch.Tensor | None,
        padding_side: str,
        is_video: torch.Tensor | None = None,
    ):
        super().__init__(*upper)
        self.rule, self.prunable, self.query = rule, prunable, query
        self.past_lower_mask, self.padding_side = past_lower_mask, padding_side
        self.is_video = prunable if is_video is None else is_video
        self.scores: torch.Tensor | None = None  # (B, M)
        self.keep: torch.Tensor | None = None  # (B, M)
        self.columns: torch.Tensor | None = None  # (B, L): which of the columns that entered stay

    @torch.no_grad()
    def score(self, layer: Any, hidden_states: torch.Tensor, position_embeddings: tuple) -> None:
        """Score the columns by the self-attention of the layer below the pruning layer.

        Args:
            layer: that layer.
            hidden_states: its input, with shape (B, M, D).
            position_embeddings: its rotary tables, cosine and sine.
        """
        if self.scores is not None:  # gradient checkpointing runs a layer twice
            return
        attention, hidden_states = layer.self_attn, layer.input_layernorm(hidden_states)
        cos, sin = position_embeddings
        batch, length, _ = hidden_states.shape
        rows, is_row = self._find_queries(hidden_states.device)  # (B, Q)
        query = attention.q_proj(gather_columns(hidden_states, rows)).view(batch, rows.shape[1], -1, attention.head_dim)
        key = attention.k_proj(hidden_states).view(batch, length, -1, attention.head_dim)
        if hasattr(attention, "q_norm"):
            query, key = attention.q_norm(query), attention.k_norm(key)
        query = rotate(query.transpose(1, 2), gather_columns(cos, rows)[:, None], gather_columns(sin, rows)[:, None])
        key = rotate(key.transpose(1, 2), cos[:, None], sin[:, None])
        past = self.cache.num_cached(self.layer - 1) if self.cache is not None else 0
        if self.cache is not None and past:  # the keys of earlier turns are part of the softmax
            key = torch.cat([self.cache.layers[self.layer - 1].keys.to(key), key], dim=2)
        real = join_masks(self.past_lower_mask, past, self.new_mask, hidden_states)
        real = None if real is None else real.to(key.device)

        num_local, num_heads = query.shape[1], self.config.num_attention_heads
        size = max(1, _MAX_SCORE_BYTES // (4 * batch * num_local * key.shape[2]))
        most = None
        with torch.autocast(key.device.type, enabled=False):
            key = key.float().mT
            for part, at, is_part in zip(query.split(size, 2), rows.split(size, 1), is_row.split(size, 1), strict=True):
                visible = torch.arange(past + length, device=key.device) <= at[..., None] + past  # (B, Q, past + M)
                if real is not None:
                    visible = visible & real[:, None]
                # (B, key heads, query heads per key head * Q, head width) @ (B, key heads, head width, past + M)
                logits = part.float().reshape(batch, key.shape[1], -1, key.shape[2]) @ key * attention.scaling
                logits = logits.unflatten(2, (-1, at.shape[1])).masked_fill(~visible[:, None, None], float("-inf"))
                weights = logits.softmax(-1).mean((1, 2))[..., past:]
                weights = mean_over_heads(weights, num_local, num_heads, attention.q_proj)
                scores = weights.masked_fill(~is_part[..., None], 0).amax(1)
                most = scores if most is None else torch.maximum(most, scores)
        self.scores = most

    def _find_queries(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """The columns whose attention counts, and which of them are real and not padding, with shape (B, Q) each."""
        last = self.query.to(device)[:, None]
        if self.rule.scored_by == "last_token":
            return last, torch.ones_like(last, dtype=torch.bool)
        is_video = self.is_video.to(device)
        place = torch.arange(is_video.shape[1], device=device)
        behind = (place > (is_video * place).amax(-1, keepdim=True)) & (place < last)
        if self.new_mask is not None:
            behind = behind & self.new_mask.to(device)
        rows, is_row = find_columns(behind | (place == last), self.padding_side)
        return rows, torch.ones_like(rows, dtype=torch.bool) if is_row is None else is_row

    def start_layer(self, layer_idx: int, hidden_states: torch.Tensor, kwargs: dict[str, Any]) -> torch.Tensor:
        if self.columns is None:
            self._select()
        if layer_idx == self.layer:
            if self.rule.merges:
                prunable = self.prunable.to(hidden_states.device)
                hidden_states = merge_dropped(hidden_states, prunable, self.keep.to(hidden_states.device))
            hidden_states = gather_columns(hidden_states, self.columns)
        kwargs["position_embeddings"] = tuple(
            gather_columns(table, self.columns) for table in kwargs["position_embeddings"]
        )
        # Layers read position ids only to detect packed sequences. Gaps in them would look like packed sequences.
        kwargs["position_ids"] = None
        return super().start_layer(layer_idx, hidden_states, kwargs)

    def _select(self) -> None:
        assert self.scores is not None, "the layer below the pruning layer has scored the tokens"
        prunable = self.prunable.to(self.scores.device)
        scores = self.scores.masked_fill(~prunable, float("-inf"))
        rank = scores.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        budget = (prunable.sum(-1, keepdim=True).double() * self.rule.ratio).ceil()
        self.keep = ~prunable | (rank < budget)
        if self.new_mask is not None:
            self.keep = self.keep & self.new_mask.to(self.keep.device)
        self.columns, self.new_mask = find_columns(self.keep, self.padding_side)


def merge_dropped(hidden_states: torch.Tensor, prunable: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Average every dropped token into the kept video token that it is most similar to.

    The dropped tokens y of a kept token x are averaged into it one after the other: x becomes (x + y) / 2. Of m dropped
    tokens the last thus has weight 1/2, the one before it 1/4, and x itself has 2**-m.

    Args:
        hidden_states: with shape (B, M, D).
        prunable: which columns are video tokens that may be dropped, with shape (B, M).
        keep: which columns stay, with shape (B, M).

    Returns:
        Hidden states with shape (B, M, D). They are meaningless in columns that do not stay.
    """
    batch, length, width = hidden_states.shape
    column = torch.arange(batch * length, device=hidden_states.device).view(batch, length)
    states = hidden_states.float()
    unit = nn.functional.normalize(states, dim=-1)
    is_target = keep & prunable
    dropped = prunable & ~keep & is_target.any(-1, keepdim=True)
    # One sample at a time: the similarities of a long video take as much memory as the weights of an attention head.
    nearest = torch.stack(
        [(u @ u.mT).masked_fill_(~target, float("-inf")).argmax(-1) for u, target in zip(unit, is_target, strict=True)]
    )
    slot = torch.where(dropped, nearest + column[:, :1], column).flatten()
    # In this order every kept token is followed by the tokens that are averaged into it.
    counted = (dropped | keep).flatten()
    order = (slot * 2 + dropped.flatten()).argsort(stable=True)
    ends = torch.searchsorted(slot[order], slot, right=True)
    behind = ends - 1 - order.argsort()  # how many tokens of the same slot come after each token
    is_first = ~dropped.flatten()
    weight = torch.where(is_first, 0.5 ** behind.float(), 0.5 ** (behind + 1).float()) * counted
    merged = weighted_sums(states.view(-1, width), None, slot, weight, column.flatten())
    return merged.view(batch, length, width).to(hidden_states.dtype)


def join_masks(
    past: torch.Tensor | None, num_past: int, new: torch.Tensor | None, like: torch.Tensor
) -> torch.Tensor | None:
    """Mask over cached and new columns, with shape (B, num_past + M); `None` if every column is real.

    Args:
        past: mask of the cached columns, with shape (B, num_past); `None` if all are real.
        num_past: number of cached columns.
        new: mask of the new columns, with shape (B, M); `None` if all are real.
        like: a tensor with shape (B, M, ...) on the device of the result, such as the hidden states.
    """
    if past is None and new is None:
        return None
    batch, length = like.shape[:2]
    past = torch.ones(batch, num_past, dtype=torch.bool, device=like.device) if past is None else past
    new = torch.ones(batch, length, dtype=torch.bool, device=like.device) if new is None else new
    return torch.cat([past.to(like.device), new.to(like.device)], dim=-1)


def install_pruning(layers: nn.ModuleList) -> None:
    """Install hooks on the layers of a language model that prune in calls with the argument `pruning`."""
    for layer in layers:
        add_pre_hook(layer, _enter_layer)


def _enter_layer(layer: Any, args: tuple, kwargs: dict[str, Any]):
    decision = kwargs.pop(PRUNING, None)
    if decision is None:
        return args, kwargs
    layer_idx, hidden_states = layer.self_attn.layer_idx, args[0]
    if layer_idx == decision.layer - 1 and isinstance(decision, TokenPruning):
        decision.score(layer, hidden_states, kwargs["position_embeddings"])
    if layer_idx >= decision.layer:
        args = (decision.start_layer(layer_idx, hidden_states, kwargs), *args[1:])
    return args, kwargs
