"""Attention heads that tensor parallelism spreads over processes: a token's score is the mean over all of them."""

from typing import Any

import torch
from torch import distributed


def mean_over_heads(mean: torch.Tensor, num_local: int, num_heads: int, projection: Any) -> torch.Tensor:
    """The mean over all heads of an attention module, the same on every rank.

    Ranks that scored tokens by their own heads would keep different tokens.

    Args:
        mean: float32 mean over the heads that this process computed; itself returned if these are all.
        num_local: how many these are.
        num_heads: how many the module has, over all ranks.
        projection: the linear layer that makes them. Where `tp_plan` shards it, its weight is a DTensor.

    Raises:
        ValueError: heads are missing, and the projection does not say which processes have them.
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
    """`states` with the heads of an attention module side by side, unless some of them are on other processes.

    Args:
        states: with the heads of this process in the last dimension.
        width: of all heads together.

    Raises:
        ValueError: heads are missing.
    """
    if states.shape[-1] != width:
        raise ValueError(
            f"`signals` of the method names keys, and this process has {states.shape[-1]} of their {width} values: the "
            "vision tower's attention is shared out. Load the model without tensor parallelism, or choose a "
            "`compression_method` that asks for no keys."
        )
    return states
