"""Weighted sums of rows by group, in a fixed order and with little memory.

Legend: T frames (for Qwen: temporal grids), N tokens a frame, D width, E entries, S slots.
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F

from .frame_chunks import join_chunks

# Into how many blocks of columns the sums cut features that are not float32, at least, and what the width of a block is
# a multiple of, for the vector instructions of CPUs.
_BLOCKS, _BLOCK_STEP = 8, 32


def count_by_slot(slot: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """How many entries that are `counted` (1, else 0; float32) share the slot of each entry, with shape (E,).

    A slot is below E. Integers of this size are exact in float32.
    """
    return torch.zeros_like(counted).index_add_(0, slot, counted)[slot]


def weighted_sums(
    features: torch.Tensor,
    source: torch.Tensor | None,
    slot: torch.Tensor,
    weight: torch.Tensor,
    slots: torch.Tensor,
    *,
    per_chunk: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """For every s in `slots`, the sum of `weight[e] * features[source[e]]` over the entries e with `slot[e] == s`.

    The entries are sorted by slot and summed in order, so the result does not depend on a race between threads.

    Args:
        features: with shape (T * N, D), any floating dtype.
        source, slot, weight: one entry each per summand, with shape (E,). Without `source`, 0, 1, 2 ...
        slots: 0, 1, 2 ..., with shape (S,).
        per_chunk: slots to sum at once, in float32; all by default.
        dtype: what the sums are rounded to.

    Returns:
        Tensor with shape (S, D); a slot without entries is zero.
    """
    return join_chunks([sums.to(dtype) for sums in iterate_sums(features, source, slot, weight, slots, per_chunk)])


def iterate_sums(
    features: torch.Tensor,
    source: torch.Tensor | None,
    slot: torch.Tensor,
    weight: torch.Tensor,
    slots: torch.Tensor,
    per_chunk: int | None,
    *,
    overwrites: bool = False,
) -> Iterator[torch.Tensor]:
    """`weighted_sums` in float32, chunk by chunk, with shape (per_chunk, D) each.

    Args:
        overwrites: a single chunk may take the place of the features, which are float32 then.
    """
    ordered, order = slot.sort(stable=True)
    offsets = torch.searchsorted(ordered, slots)
    rows, weight = order if source is None else source[order], weight[order]
    per_chunk = per_chunk or len(slots)
    if len(slots) <= per_chunk:
        yield _sum_bags(features, rows, offsets, weight, len(features), overwrites)
        return
    starts = offsets[::per_chunk].tolist()  # waits: the sizes of the chunks depend on the video
    for first, (start, end) in zip(range(0, len(slots), per_chunk), pairwise([*starts, len(rows)]), strict=True):
        of_chunk = offsets[first : first + per_chunk] - start
        yield _sum_bags(features, rows[start:end], of_chunk, weight[start:end], per_chunk)


def _sum_bags(
    features: torch.Tensor,
    rows: torch.Tensor,
    offsets: torch.Tensor,
    weight: torch.Tensor,
    most: int,
    overwrites: bool = False,
) -> torch.Tensor:
    """Weighted sums of the runs of `rows` that begin at `offsets`, float32, with shape (S, D).

    Where features are overwritten or not float32, a block of columns at a time is copied, with no more values than an
    eighth of `most` rows have.
    """
    if features.dtype == torch.float32 and not overwrites:
        return F.embedding_bag(rows, features, offsets, mode="sum", per_sample_weights=weight)
    width, gathers = features.shape[1], most < len(features)  # of a chunk only the rows that are summed
    places = torch.arange(len(rows), device=rows.device) if gathers else rows

    def sum_columns(start: int, end: int) -> torch.Tensor:
        block = features[:, start:end]
        block = (block[rows] if gathers else block).float().contiguous()
        return F.embedding_bag(places, block, offsets, mode="sum", per_sample_weights=weight)

    columns = width * most // (_BLOCKS * max(most, len(rows)))
    columns = max(1, -(-columns // _BLOCK_STEP)) * _BLOCK_STEP
    if columns >= width:
        return sum_columns(0, width)
    sums = features if overwrites else features.new_empty(len(offsets), width, dtype=torch.float32)
    for start in range(0, width, columns):
        sums[:, start : start + columns] = sum_columns(start, start + columns)
    return sums
