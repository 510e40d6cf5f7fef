"""The attention that every patch receives in the last block of a vision tower, whatever its attention implementation.

Blocks return no attention weights, so queries and keys of the last block are computed once more, from its own input.
The hooks belong to one model instance and do nothing unless a call brings a list to record into, so calls from several
threads do not meet.
"""

from typing import Any

import torch
from torch import nn

# Name of the keyword argument that carries the list through the vision tower.
RECORD = "received_attention"


def install_recording(attentions: list[nn.Module]) -> None:
    """Let calls with a `received_attention` list record the last of the attention modules of a vision tower.

    The modules take packed sequences (`cu_seqlens`) and project with a joint `qkv`, as those of the Qwen families do.
    """
    for attention in attentions[:-1]:
        attention.register_forward_pre_hook(_ignore, with_kwargs=True)
    attentions[-1].register_forward_pre_hook(_record, with_kwargs=True)


def mean_received_attention(query: torch.Tensor, key: torch.Tensor, lengths: list[int], scaling: float) -> torch.Tensor:
    """Attention that each position receives: softmax over the keys, mean over heads and queries.

    Goes frame by frame, as no attention matrix of more than one frame should exist.

    Args:
        query, key: with shape (heads, sequence, head width).
        lengths: positions of every frame; no frame sees another.

    Returns:
        float32 tensor with shape (sequence,), summing to 1 over every frame.
    """
    frames = zip(query.split(lengths, dim=1), key.split(lengths, dim=1), strict=True)
    with torch.autocast(query.device.type, enabled=False):
        return torch.cat([(q.float() @ k.float().mT * scaling).softmax(-1).mean((0, 1)) for q, k in frames])


def rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding in the half-split layout; the tables broadcast against `states`."""
    first, second = states.chunk(2, dim=-1)
    return states * cos + torch.cat((-second, first), dim=-1) * sin


def _ignore(attention: nn.Module, args: tuple, kwargs: dict[str, Any]):
    kwargs.pop(RECORD, None)
    return args, kwargs


@torch.no_grad()
def _record(attention: Any, args: tuple, kwargs: dict[str, Any]):
    record = kwargs.pop(RECORD, None)
    if record is not None:
        hidden_states = args[0] if args else kwargs["hidden_states"]
        cos, sin = (table.float() for table in kwargs["position_embeddings"])
        heads = (len(hidden_states), 3, attention.num_heads, -1)
        query, key, _ = attention.qkv(hidden_states).view(heads).permute(1, 2, 0, 3)
        lengths = kwargs["cu_seqlens"].diff().tolist()
        query, key = rotate(query.float(), cos, sin), rotate(key.float(), cos, sin)
        record.append(mean_received_attention(query, key, lengths, attention.scaling))
    return args, kwargs
