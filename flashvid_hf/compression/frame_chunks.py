"""Process long videos a few frames at a time, so that the memory for float32 copies and products stays bounded."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

# Most bytes of the float32 features of a chunk: 191 frames of 196 tokens at a width of 3584.
_CHUNK_BYTES = 512 * 2**20

# How many float32 matrices (N, N) a frame needs at once, at most, for its inner products and density scores.
_MATRICES = 2.25
# A step may always take this many bytes of such matrices: splitting less is not worth another step.
_STEP_BYTES = 2**20


def frames_per_chunk(features: torch.Tensor) -> int:
    """How many frames a chunk has, for features with shape (T, N, D)."""
    return max(1, _CHUNK_BYTES // (4 * features.shape[1] * features.shape[2]))


def frames_per_step(num_frames: int, num_tokens: int, width: int) -> int:
    """How many frames have their (N, N) matrices in memory at once.

    The matrices may take a quarter of the bytes of the frames' float32 features, or `_STEP_BYTES` if that is more. If
    D is below N, which no real model has, the matrices are larger than the features anyway. They may then take the
    bytes of a whole chunk.

    Args:
        num_frames: frames that are processed, the largest result.
        num_tokens: N.
        width: D.
    """
    features = 4 * num_frames * num_tokens * width
    most = _CHUNK_BYTES if width < num_tokens else max(_STEP_BYTES, features // 4)
    return max(1, min(num_frames, int(most / (4 * _MATRICES * num_tokens**2))))


def map_frames(function: Callable[..., Any], size: int, *tensors: torch.Tensor) -> Any:
    """Call `function` on `size` frames of all tensors at a time, and join its results.

    Args:
        function: takes as many tensors as there are `tensors`; returns one tensor or a tuple of tensors, whose first
            dimension is the frames.
        size: frames of one call.
        tensors: their first dimension is the frames.
    """
    return join_chunks([function(*chunk) for chunk in zip(*(tensor.split(size) for tensor in tensors), strict=True)])


def join_chunks(results: Sequence[Any]) -> Any:
    """Join the results of all chunks, each one tensor or a tuple of tensors, along the first dimension."""
    if len(results) == 1:
        return results[0]
    if isinstance(results[0], torch.Tensor):
        return torch.cat(tuple(results))
    return tuple(torch.cat(parts) for parts in zip(*results, strict=True))
