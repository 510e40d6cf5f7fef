"""Attention heads that tensor parallelism spreads over processes. The score of a token is the mean over all heads."""

from typing import Any

import torch
from torch import distributed


def mean_over_heads(mean: torch.Tensor, num_local: int, num_heads: int, projection: Any) -> torch.Tensor:
    """The mean over all heads of an attention module, equal on every rank.

    If every rank scored tokens by its own heads, the ranks would keep different tokens.

    Args:
        mean: float32 mean over the heads of this process. It is returned as it is if these are all heads.
        num_local: number of heads of this process.
        num_heads: number of heads of the module, over all ranks.
        projection: the linear layer that makes the heads. If `tp_plan` shards it, its weight is a DTensor.

    Raises:
        ValueError: some heads are on other processes, and the projection does not say on which.
    """
    if num_local == num_heads:
        return mean
    weight = getattr(projection, "weight", None)
    mesh = getattr(weight, "device_mesh", None)
    if mesh is None:
        raise ValueError(
            f"`num_attention_heads` is {num_heads}, and this process has {num_local} of them in a "
            f"{type(projection).__name__} that is no DTensor: FlashVID ranks tokens by all heads, and cannot tell "
            "where the others are. Shard the model by transformers' `tp_plan`, or turn the compression off by "
            "`retention_ratio=1.0`."
        )
    total = mean * num_local
    for dim, placement in enumerate(weight.placements):
        if not placement.is_replicate():
            distributed.all_reduce(total, group=mesh.get_group(dim))
    return total / num_heads


def all_heads(states: torch.Tensor, width: int) -> torch.Tensor:
    """Return `states` if they hold all heads of an attention module.

    Args:
        states: the heads of this process, side by side in the last dimension.
        width: width of all heads together.

    Raises:
        ValueError: some heads are on other processes.
    """
    if states.shape[-1] != width:
        raise ValueError(
            f"`signals` of the method names keys, and this process has {states.shape[-1]} of their {width} values: the "
            "attention of the vision tower is split over processes. Load the model without tensor parallelism, or "
            "choose a `compression_method` that asks for no keys."
        )
    return states
