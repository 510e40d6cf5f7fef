"""The key/value cache of a compressed prompt."""

from collections.abc import Callable

import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache

from .report import CompressionReport
from .upstream import CACHE


class FlashVIDCache(DynamicCache):
    """A `DynamicCache` that holds fewer tokens than the prompt had, and even fewer from the pruning layer on.

    `get_seq_length()` counts the tokens of the original sequence, because `generate` slices its inputs by this length,
    and positions continue from it.

    Args:
        lower_mask: which columns that the layers below the pruning layer have cached are real tokens, with shape
            (B, cached columns); `None` if nothing is padded.
        upper_mask: the same for the pruning layer and the layers above it.
        num_dropped: how many columns of the original sequence the lower layers do not hold.
        pruning_layer: the first layer that holds fewer columns; `None` if all layers hold the same.
        rope_deltas: how far positions are ahead of columns after the prompt, with shape (B, 1), in families whose
            videos take fewer positions than tokens. Upstream stores the value of the last prompt on the model.
        compressed: whether the cache holds a compressed prompt. If so, `lower_mask`, `upper_mask` and its lengths apply
            instead of the caller's mask.
        reports: one report of the compression for every prefill, and for every later call that had videos.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._clear()

    def _clear(self) -> None:
        self.lower_mask: torch.Tensor | None = None
        self.upper_mask: torch.Tensor | None = None
        self.num_dropped = 0
        self.pruning_layer: int | None = None
        self.rope_deltas: torch.Tensor | None = None
        self.compressed = False
        self.reports: tuple[CompressionReport, ...] = ()

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return super().get_seq_length(layer_idx) + self.num_dropped

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self.num_cached(layer_idx)

    def num_cached(self, layer_idx: int = 0) -> int:
        """How many columns a layer actually holds."""
        return super().get_seq_length(layer_idx)

    def account(
        self,
        lower_mask: torch.Tensor | None,
        upper_mask: torch.Tensor | None,
        num_dropped: int,
        pruning_layer: int | None,
    ) -> None:
        """Record what a call on a compressed prompt added to the cache.

        Args:
            lower_mask, upper_mask: see the class; they cover all cached columns.
            num_dropped: how many columns of this call did not enter the language model.
            pruning_layer: the first layer that holds fewer columns; `None` leaves it as it was.
        """
        self.compressed = True
        self.lower_mask, self.upper_mask = lower_mask, upper_mask
        self.num_dropped += num_dropped
        if pruning_layer is not None:
            self.pruning_layer = pruning_layer

    def crop(self, tokens_to_remove: int) -> None:
        super().crop(tokens_to_remove)
        if tokens_to_remove:
            self._update_masks(lambda mask: mask[:, : -abs(tokens_to_remove)])

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        super().reorder_cache(beam_idx)
        self._update_rows(lambda rows: rows.index_select(0, beam_idx.to(rows.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self._update_rows(lambda rows: rows.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)
        self._update_rows(lambda rows: rows[indices])

    def reset(self) -> None:
        super().reset()
        self._clear()

    def _update_rows(self, update: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._update_masks(update)
        if self.rope_deltas is not None:
            self.rope_deltas = update(self.rope_deltas)

    def _update_masks(self, update: Callable[[torch.Tensor], torch.Tensor]) -> None:
        if self.lower_mask is not None:
            self.lower_mask = update(self.lower_mask)
        if self.upper_mask is not None:
            self.upper_mask = update(self.upper_mask)


def is_compressed(cache: Cache | None) -> bool:
    """Whether a cache holds a compressed prompt."""
    return isinstance(cache, FlashVIDCache) and cache.compressed


def check_cache(cache: Cache | None) -> None:
    """Raise a `ValueError` if the cache cannot hold a compressed prompt."""
    if cache is not None and not isinstance(cache, FlashVIDCache):
        raise ValueError(
            f"`{CACHE}` is a `{type(cache).__name__}`: a compressed prompt needs a `FlashVIDCache`. Pass none, "
            "or the cache that an earlier call of this model returned."
        )


def past_masks(
    cache: FlashVIDCache | None, attention_mask: torch.Tensor | None
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Which cached columns are real rather than padding.

    Args:
        cache: the cache of the call, if it uses one.
        attention_mask: 2D mask of the whole sequence, earlier turns included; `None` if nothing is padded.

    Returns:
        Tuple of the mask below the pruning layer and the mask from it on, with shape (B, cached columns) each; `None`
        if all columns are real.
    """
    if cache is None:
        return None, None
    if cache.compressed:
        return cache.lower_mask, cache.upper_mask
    seen = cache.num_cached()
    if attention_mask is None or not seen:
        return None, None
    past = attention_mask[:, :seen].bool()
    return past, past
