"""Encoding videos some frames at a time, so that the memory of a vision tower does not grow with the video."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch


def split_frames(num_frames: list[int], size: int | None) -> list[list[tuple[int, int]]]:
    """Which frames go through the vision tower together: for every chunk, its pieces (video, frames of it).

    Args:
        num_frames: of every video; the frames of all of them follow each other.
        size: most frames of a chunk; `None` for all at once.
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
    """Where chunks of the pixels belong: with the tower's weights, unless these lie elsewhere until they are used."""
    return pixels.device if tower.device.type == "meta" else tower.device


def join_rows(chunks: Iterable[Sequence[torch.Tensor]], length: int) -> list[torch.Tensor]:
    """Several tensors that come in chunks of rows, `length` rows in all, without holding the chunks beside the whole.

    Args:
        chunks: the rows of every tensor; made one after the other, where it is a generator.
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
