"""Encode videos a few frames at a time, so that the memory of the vision tower does not grow with the video."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch


def split_frames(num_frames: list[int], size: int | None) -> list[list[tuple[int, int]]]:
    """Split the frames of all videos, in order, into chunks that go through the vision tower together.

    Args:
        num_frames: number of frames of every video.
        size: most frames of a chunk; `None` for all frames at once.

    Returns:
        For every chunk, its pieces: pairs of the index of a video and a number of its frames.
    """
    if size is None:
        return [list(enumerate(num_frames))]
    chunks: list[list[tuple[int, int]]] = []
    room = 0
    for video, left in enumerate(num_frames):
        while left:
            if not room:
                chunks.append([])
                room = size
            piece = min(left, room)
            chunks[-1].append((video, piece))
            left, room = left - piece, room - piece
    return chunks


def tower_device(tower: Any, pixels: torch.Tensor) -> torch.device:
    """The device that chunks of the pixels go to: the device of the tower's weights.

    If the weights are offloaded until they are used, they show as "meta", and the pixels stay where they are.
    """
    return pixels.device if tower.device.type == "meta" else tower.device


def join_rows(chunks: Iterable[Sequence[torch.Tensor]], length: int) -> list[torch.Tensor]:
    """Join several tensors that come in chunks of rows. Only one chunk is in memory beside the joined tensors.

    Args:
        chunks: for each chunk, the rows of every tensor. To save memory, it may be a generator.
        length: number of rows in all.

    Returns:
        The joined tensors, with shape (length, ...) each.
    """
    joined: list[torch.Tensor] = []
    start = 0
    for parts in chunks:
        if len(parts[0]) == length:
            return list(parts)
        joined = joined or [part.new_empty(length, *part.shape[1:]) for part in parts]
        end = start + len(parts[0])
        for whole, part in zip(joined, parts, strict=True):
            whole[start:end] = part
        start = end
    return joined
