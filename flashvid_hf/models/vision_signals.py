"""Record signals in the layers of a vision tower, for every patch and with any attention implementation.

The layers return no attention weights. If a method asks for the attention of a layer, its queries and keys are
computed once more from the input of the layer. The hooks do nothing unless a call passes a `VisionRecord`. All results
go to that record, so calls from several threads do not disturb each other.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import nn

from ..methods.compression_method import Signal
from .hooks import add_hook, add_pre_hook
from .tensor_parallel import all_heads, mean_over_heads

# Name of the keyword argument that carries the record through the vision tower.
RECORD = "vision_record"
# The float32 attention weights that exist at once take at most `_WEIGHT_BYTES`. For comparison: one frame of SigLIP's
# 729 patches takes 34 million bytes. They also take at most `_WEIGHTS_PER_QUERY` times the bytes of the queries, which
# is the smaller bound if there are few frames: the block's own MLP needs that much memory anyway.
_WEIGHT_BYTES = 64 * 2**20
_WEIGHTS_PER_QUERY = 2


class Source(NamedTuple):
    """Where in a vision tower a signal is recorded.

    Args:
        kind: one of `SIGNAL_KINDS`.
        module: the layer for "hidden_states", the attention module of the layer for the other kinds.
    """

    kind: str
    module: nn.Module


class VisionRecord:
    """What a call asks for from the inside of a vision tower, and what the hooks recorded.

    Args:
        wanted: what is recorded.

    Attributes:
        found: the records by their source, with all frames one after the other. "attention" has shape (positions,), in
            float32. "keys" and "hidden_states" have the shape of the hidden states of the tower.
    """

    def __init__(self, wanted: Iterable[Source]):
        self.wanted = frozenset(wanted)
        self.found: dict[Source, torch.Tensor] = {}


def find_sources(signals: Iterable[Signal], layers: Sequence[Any], last: Any) -> dict[Signal, Source]:
    """Find where in a vision tower each signal is recorded.

    Args:
        signals: the signals that a method asks for.
        layers: all layers of the tower, from the bottom.
        last: the layer whose output makes the features.

    Raises:
        ValueError: a signal names a layer that the tower does not have.
    """
    sources, layers = {}, list(layers)
    num_used = layers.index(last) + 1
    for signal in signals:
        index = signal.layer if signal.layer >= 0 else num_used + signal.layer
        if not 0 <= index < len(layers):
            raise ValueError(
                f"`layer` of {signal!r} is {signal.layer}: the vision tower has {len(layers)} layers, of which number "
                f"{num_used - 1} makes the features, so it must lie in -{num_used} ... {len(layers) - 1}. Choose such "
                "a layer in `signals` of the method."
            )
        of_layer = signal.kind == "hidden_states"
        sources[signal] = Source(signal.kind, layers[index] if of_layer else _attention_of(layers[index]))
    return sources


def install_packed_recording(layers: Iterable[nn.Module]) -> None:
    """Install hooks on layers that take packed sequences (`cu_seqlens`) and have a joint `qkv`, like Qwen's."""
    for layer in layers:
        add_pre_hook(_attention_of(layer), _record_packed)
        add_hook(layer, _record_output)


def install_frame_recording(layers: Iterable[nn.Module]) -> None:
    """Install hooks on layers that take a batch of frames and have `q_proj` and `k_proj`, like SigLIP's."""
    for layer in layers:
        add_pre_hook(_attention_of(layer), _record_frames)
        add_hook(layer, _record_output)


def _attention_of(layer: Any) -> nn.Module:
    return layer.attn if hasattr(layer, "attn") else layer.self_attn


def mean_received_attention(query: torch.Tensor, key: torch.Tensor, lengths: list[int], scaling: float) -> torch.Tensor:
    """Attention that each position receives: softmax over the keys, mean over heads and queries.

    Args:
        query, key: with shape (heads, sequence, head width).
        lengths: number of positions of every frame. Each frame attends only to itself.
        scaling: factor of the inner products.

    Returns:
        float32 tensor with shape (sequence,). Each frame sums to 1.
    """
    received, start = [], 0
    for length, frames in groupby(lengths):  # usually all frames of a video have the same length
        shape = (len(query), len(list(frames)), length, -1)
        end = start + shape[1] * length
        q, k = (states[:, start:end].reshape(shape).transpose(0, 1) for states in (query, key))
        received.append(_received_in_frames(q, k, scaling).flatten())
        start = end
    return torch.cat(received)


def _received_in_frames(query: torch.Tensor, key: torch.Tensor, scaling: float) -> torch.Tensor:
    """`mean_received_attention` of frames of equal length, from (T, heads, length, head width) to (T, length).

    Processes as many frames at once as the memory bound allows, or some queries of a frame if a whole frame exceeds it.
    """
    _, num_heads, length, _ = query.shape
    budget = min(_WEIGHT_BYTES, _WEIGHTS_PER_QUERY * query.nbytes)
    row = 4 * num_heads * length  # bytes of the attention weights of one query
    num_frames, num_queries = max(1, budget // (row * length)), max(1, budget // row)
    received = query.new_zeros(len(query), length, dtype=torch.float32)
    with torch.autocast(query.device.type, enabled=False):
        for total, q, k in zip(*(states.split(num_frames) for states in (received, query, key)), strict=True):
            k = k.float().mT
            for part in q.split(num_queries, dim=2):
                total += (part.float() @ k).mul_(scaling).softmax(-1).sum((1, 2))
    return received.div_(num_heads * length)


def rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Apply rotary position embeddings in the half-split layout. The tables broadcast against `states`."""
    first, second = states.chunk(2, dim=-1)
    return states * cos + torch.cat((-second, first), dim=-1) * sin


@torch.no_grad()
def _record_packed(attention: Any, args: tuple, kwargs: dict[str, Any]):
    record = kwargs.pop(RECORD, None)
    received, keys = Source("attention", attention), Source("keys", attention)
    if record is not None and not record.wanted.isdisjoint((received, keys)):
        hidden_states = args[0] if args else kwargs["hidden_states"]
        heads = (len(hidden_states), 3, attention.num_heads, -1)
        query, key, _ = attention.qkv(hidden_states).view(heads).permute(1, 2, 0, 3)
        if keys in record.wanted:
            record.found[keys] = key.transpose(0, 1).flatten(1)
        if received in record.wanted:
            cos, sin = (table.float() for table in kwargs["position_embeddings"])
            lengths = kwargs["cu_seqlens"].diff().tolist()
            query, key = rotate(query.float(), cos, sin), rotate(key.float(), cos, sin)
            record.found[received] = mean_received_attention(query, key, lengths, attention.scaling)
    return args, kwargs


@torch.no_grad()
def _record_frames(attention: Any, args: tuple, kwargs: dict[str, Any]):
    record = kwargs.pop(RECORD, None)
    received, keys = Source("attention", attention), Source("keys", attention)
    if record is not None and not record.wanted.isdisjoint((received, keys)):
        hidden_states = args[0] if args else kwargs["hidden_states"]
        frames, length, _ = hidden_states.shape
        heads = (frames * length, -1, attention.head_dim)  # -1: the heads of this rank
        key = attention.k_proj(hidden_states)
        if keys in record.wanted:
            record.found[keys] = all_heads(key, attention.num_heads * attention.head_dim)
        if received in record.wanted:
            query = attention.q_proj(hidden_states).view(heads).transpose(0, 1)
            key = key.view(heads).transpose(0, 1)
            mean = mean_received_attention(query, key, [length] * frames, attention.scale)
            record.found[received] = mean_over_heads(mean, len(query), attention.num_heads, attention.q_proj)
    return args, kwargs


def _record_output(layer: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
    record, states = kwargs.get(RECORD), Source("hidden_states", layer)
    if record is not None and states in record.wanted:
        record.found[states] = output[0] if isinstance(output, tuple) else output
