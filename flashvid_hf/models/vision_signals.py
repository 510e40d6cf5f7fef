"""The attention that every patch receives in one block of a vision tower, whatever its attention implementation.

Blocks return no attention weights, so queries and keys of that block are computed once more, from its own input.
The hooks belong to one model instance and do nothing unless a call brings a `VisionRecord`, so calls from several
threads do not meet.
"""

from itertools import groupby
from typing import Any

import torch
from torch import nn

from .hooks import add_hook, add_pre_hook
from .tensor_parallel import mean_over_heads

# Name of the keyword argument that carries the record through the vision tower.
RECORD = "vision_record"
# Most bytes of the attention weights (float32) that exist at once; a frame of SigLIP's 729 patches has 34 million.
# Where there are few frames, at most this many times the bytes of the queries: so much the block's own MLP takes too.
_WEIGHT_BYTES = 64 * 2**20
_WEIGHTS_PER_QUERY = 2


class VisionRecord:
    """What a call wants to know of the inside of a vision tower.

    Args:
        attention: the attention module whose received attention is recorded; `None` for none.
        layers: the encoder layers whose outputs are recorded.
    """

    def __init__(self, attention: nn.Module | None, layers: tuple[nn.Module, ...] = ()):
        self.attention, self.layers = attention, layers
        self.received: torch.Tensor | None = None  # (positions,), float32, all frames one after the other
        self.hidden_states: dict[nn.Module, torch.Tensor] = {}


def install_packed_recording(attentions: list[nn.Module]) -> None:
    """For attention modules that take packed sequences (`cu_seqlens`) and project with a joint `qkv`, as Qwen's do."""
    for attention in attentions:
        add_pre_hook(attention, _record_packed)


def install_layer_recording(layers: nn.ModuleList) -> None:
    """For encoder layers that take a batch of frames and project with `q_proj` and `k_proj`, as SigLIP's do."""
    layer: Any
    for layer in layers:
        add_pre_hook(layer.self_attn, _record_frames)
        add_hook(layer, _record_output)


def mean_received_attention(query: torch.Tensor, key: torch.Tensor, lengths: list[int], scaling: float) -> torch.Tensor:
    """Attention that each position receives: softmax over the keys, mean over heads and queries.

    Args:
        query, key: with shape (heads, sequence, head width).
        lengths: positions of every frame; no frame sees another.

    Returns:
        float32 tensor with shape (sequence,), summing to 1 over every frame.
    """
    received, start = [], 0
    for length, frames in groupby(lengths):  # as a rule all frames of a video are equally long
        shape = (len(query), len(list(frames)), length, -1)
        end = start + shape[1] * length
        q, k = (states[:, start:end].reshape(shape).transpose(0, 1) for states in (query, key))
        received.append(_received_in_frames(q, k, scaling).flatten())
        start = end
    return torch.cat(received)


def _received_in_frames(query: torch.Tensor, key: torch.Tensor, scaling: float) -> torch.Tensor:
    """`mean_received_attention` of frames of one length: (T, heads, length, head width) to (T, length).

    Goes over as many frames at once as the budget allows, and over some queries of a frame if it is too large.
    """
    _, num_heads, length, _ = query.shape
    budget = min(_WEIGHT_BYTES, _WEIGHTS_PER_QUERY * query.nbytes)
    row = 4 * num_heads * length  # bytes of the weights of one query
    num_frames, num_queries = max(1, budget // (row * length)), max(1, budget // row)
    received = query.new_zeros(len(query), length, dtype=torch.float32)
    with torch.autocast(query.device.type, enabled=False):
        for total, q, k in zip(*(states.split(num_frames) for states in (received, query, key)), strict=True):
            k = k.float().mT
            for part in q.split(num_queries, dim=2):
                total += (part.float() @ k).mul_(scaling).softmax(-1).sum((1, 2))
    return received.div_(num_heads * length)


def rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding in the half-split layout; the tables broadcast against `states`."""
    first, second = states.chunk(2, dim=-1)
    return states * cos + torch.cat((-second, first), dim=-1) * sin


@torch.no_grad()
def _record_packed(attention: Any, args: tuple, kwargs: dict[str, Any]):
    record = kwargs.pop(RECORD, None)
    if record is not None and record.attention is attention:
        hidden_states = args[0] if args else kwargs["hidden_states"]
        cos, sin = (table.float() for table in kwargs["position_embeddings"])
        heads = (len(hidden_states), 3, attention.num_heads, -1)
        query, key, _ = attention.qkv(hidden_states).view(heads).permute(1, 2, 0, 3)
        lengths = kwargs["cu_seqlens"].diff().tolist()
        query, key = rotate(query.float(), cos, sin), rotate(key.float(), cos, sin)
        record.received = mean_received_attention(query, key, lengths, attention.scaling)
    return args, kwargs


@torch.no_grad()
def _record_frames(attention: Any, args: tuple, kwargs: dict[str, Any]):
    record = kwargs.pop(RECORD, None)
    if record is not None and record.attention is attention:
        hidden_states = args[0] if args else kwargs["hidden_states"]
        frames, length, _ = hidden_states.shape
        heads = (frames * length, -1, attention.head_dim)  # those of this rank
        query = attention.q_proj(hidden_states).view(heads).transpose(0, 1)
        key = attention.k_proj(hidden_states).view(heads).transpose(0, 1)
        received = mean_received_attention(query, key, [length] * frames, attention.scale)
        record.received = mean_over_heads(received, len(query), attention.num_heads, attention.q_proj)
    return args, kwargs


def _record_output(layer: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
    record = kwargs.get(RECORD)
    if record is not None and layer in record.layers:
        record.hidden_states[layer] = output[0] if isinstance(output, tuple) else output
