"""Long videos some frames at a time, so that float32 copies and products of their features do not grow with them.

Legend of the compression core: T frames (for Qwen: temporal grids), N tokens a frame, D width.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

# Most bytes of the float32 features of a chunk: 191 frames of 196 tokens at a width of 3584.
_CHUNK_BYTES = 512 * 2**20

# Matrices (N, N) in float32 that the inner products and the density scores of a frame have in memory at once, at most.
_MATRICES = 2.25
# Bytes of such matrices that are too few to be worth another step.
_STEP_BYTES = 2**20


def frames_per_chunk(features: torch.Tensor) -> int:
    """How many frames of features with shape (T, N, D) a chunk has."""
    return max(1, _CHUNK_BYTES // (4 * features.shape[1] * features.shape[2]))


def frames_per_step(num_frames: int, num_tokens: int, width: int) -> int:
    """How many of so many frames have their (N, N) matrices in memory at once.

    As many as bring these matrices to a quarter of the frames' float32 features, and to `_STEP_BYTES` at least. Where
    the tokens are narrower than a frame has tokens, which those of real models are not, the matrices dominate anyway:
    there only a chunk limits them.
    """
    features = 4 * num_frames * num_tokens * width
    most = _CHUNK_BYTES if width < num_tokens else max(_STEP_BYTES, features // 4)
    return max(1, min(num_frames, int(most / (4 * _MATRICES * num_tokens**2))))


def map_frames(function: Callable[..., Any], size: int, *tensors: torch.Tensor) -> Any:
    """What `function` makes of `size` frames of all the tensors at a time, joined; it returns one tensor or several."""
    return join_chunks([function(*chunk) for chunk in zip(*(tensor.split(size) for tensor in tensors), strict=True)])


def join_chunks(results: Sequence[Any]) -> Any:
    """The results of all chunks, one tensor or a tuple each, as if there had been a single one."""
    if len(results) == 1:
        return results[0]
    if isinstance(results[0], torch.Tensor):
        return torch.cat(tuple(results))
    return tuple(torch.cat(parts) for parts in zip(*results, strict=True))
