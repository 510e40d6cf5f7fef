"""Exact token budgets: share a number of tokens out over frames, segments or sets, and list the tokens of a mask."""

import torch

# Replaces a weight of zero. It is below any weight that matters, so an entry without weight gets something only if all
# other entries are full.
_LEAST_WEIGHT = 1e-30
# Shares are rounded to 1 / 2**32 before their remainders are compared: rounding errors then break no ties.
_STEPS = 2.0**32


def share_out(total: int | torch.Tensor, weights: torch.Tensor, capacity: int | torch.Tensor) -> torch.Tensor:
    """Share `total` out over E entries in proportion to `weights`, by largest remainder.

    No entry gets more than its capacity. The excess goes to the other entries, in proportion too. Ties go to the lower
    index. Never waits for the device.

    Args:
        total: an integer, at most the sum of `capacity`.
        weights: weight of every entry, at least 0, with shape (E,).
        capacity: largest share of every entry, an integer, with shape (E,), or one integer for all entries.

    Returns:
        The integer shares, which add up to `total`, int64, with shape (E,).
    """
    weights = weights.double().clamp(min=_LEAST_WEIGHT)
    capacity = torch.zeros_like(weights) + capacity
    # As a proportional total grows, entries fill up in the order of capacity / weight.
    rank = (capacity / weights).argsort(stable=True).argsort()
    sooner = rank < rank[:, None]  # (E, E); sums over it are deterministic on GPUs too, which `cumsum` is not
    is_full = weights * (total - (capacity * sooner).sum(1)) >= capacity * (weights * ~sooner).sum(1)
    rest = total - (capacity * is_full).sum()
    ideal = weights * rest / (weights * ~is_full).sum().clamp(min=_LEAST_WEIGHT)
    ideal = (torch.where(is_full, capacity, ideal) * _STEPS).round() / _STEPS
    whole = ideal.floor()
    rank = (ideal - whole).argsort(descending=True, stable=True).argsort()
    return (whole + (rank < total - whole.sum())).long()


def indices_of(mask: torch.Tensor, count: int) -> torch.Tensor:
    """Flat indices of the true values of a mask, ascending. Like `nonzero`, but does not wait for the device.

    Args:
        mask: boolean, of any shape.
        count: how many values are true.

    Returns:
        int64 tensor with shape (count,).
    """
    return mask.flatten().view(torch.uint8).argsort(descending=True, stable=True)[:count]
