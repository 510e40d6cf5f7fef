"""Weighted sums of rows, grouped by slot, in a fixed order and with little memory.

Letters of this file: E entries (summands), S slots (sums).
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F

from .frame_chunks import join_chunks

# If features have to be copied for a sum, one block of columns is copied at a time, which bounds the memory. The sums
# aim at `_BLOCKS` blocks or more. The width of a block is a multiple of `_BLOCK_STEP`, for the vector instructions of
# CPUs.
_BLOCKS, _BLOCK_STEP = 8, 32


def count_by_slot(slot: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """For each entry, count the entries of its slot.

    Args:
        slot: slot of each entry, below E, with shape (E,).
        counted: 1 for the entries that count, 0 for the others, float32, with shape (E,).

    Returns:
        The counts, float32, with shape (E,). Integers of this size are exact in float32.
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
        source: row of `features` of each entry, with shape (E,). `None` stands for 0, 1, 2 ...
        slot: slot that each entry is added to, with shape (E,).
        weight: weight of each entry, with shape (E,).
        slots: 0, 1, 2 ..., with shape (S,).
        per_chunk: how many slots to sum at once, in float32. Default: all.
        dtype: dtype of the result.

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
    """`weighted_sums` in float32, chunk by chunk.

    Args:
        features, source, slot, weight, slots, per_chunk: see `weighted_sums`.
        overwrites: whether the sums may overwrite `features`, which are float32 then. Applies if there is only one
            chunk.

    Yields:
        Sums with shape (per_chunk, D); the last chunk may have fewer.
    """
    ordered, order = slot.sort(stable=True)
    offsets = torch.searchsorted(ordered, slots)
    rows, weight = order if source is None else source[order], weight[order]
    per_chunk = per_chunk or len(slots)
    if len(slots) <= per_chunk:
        yield _sum_bags(features, rows, offsets, weight, len(features), overwrites)
        return
    starts = offsets[::per_chunk].tolist()  # waits for the device: the sizes of the chunks depend on the video
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

    If `features` are overwritten or not float32, one block of columns is copied at a time.

    Args:
        features: with shape (T * N, D).
        rows: rows of `features` to sum, with shape (E,).
        offsets: where the rows of each slot begin, with shape (S,).
        weight: weight of each of `rows`, with shape (E,).
        most: a block has about 1 / `_BLOCKS` as many values as this many rows of `features`.
        overwrites: see `iterate_sums`.
    """
    if features.dtype == torch.float32 and not overwrites:
        return F.embedding_bag(rows, features, offsets, mode="sum", per_sample_weights=weight)
    width, gathers = features.shape[1], most < len(features)  # a chunk copies only the rows that it sums
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
