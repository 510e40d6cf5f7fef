"""Exact numbers of tokens: shared out over frames, segments or sets of tokens, and found again in a mask."""

import torch

# Below any weight that matters: entries without weight get something only where all others are full.
_LEAST_WEIGHT = 1e-30
# Remainders are compared to this precision, so that equal ones stay equal whatever the rounding.
_STEPS = 2.0**32


def share_out(total: int | torch.Tensor, weights: torch.Tensor, capacity: int | torch.Tensor) -> torch.Tensor:
    """Integers in proportion to `weights`, each at most its capacity, that add up to `total`, by largest remainder.

    What does not fit into an entry goes to the others, in proportion too. Ties go to the lower index. Never waits for
    the device.

    Args:
        total: at most the sum of `capacity`.
        weights: at least 0, with shape (E,).
        capacity: integers, with shape (E,), or one for all.

    Returns:
        int64 tensor with shape (E,).
    """
    weights = weights.double().clamp(min=_LEAST_WEIGHT)
    capacity = torch.zeros_like(weights) + capacity
    # Where everybody is given in proportion, an entry is the sooner full the smaller its capacity is for its weight.
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
    """The flat indices of the `count` true values of a mask, ascending: `nonzero` for a count that is known."""
    return mask.flatten().view(torch.uint8).argsort(descending=True, stable=True)[:count]
