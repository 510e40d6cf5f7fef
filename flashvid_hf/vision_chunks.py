"""Encoding videos some frames at a time, so that the memory of a vision tower does not grow with the video."""

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


def join_pieces(pieces: list[torch.Tensor], videos: list[int]) -> list[torch.Tensor]:
    """One tensor for each video from its pieces, which come in order; `videos` says whose each is."""
    of_videos: list[list[torch.Tensor]] = [[] for _ in range(videos[-1] + 1)]
    for piece, video in zip(pieces, videos, strict=True):
        of_videos[video].append(piece)
    return [parts[0] if len(parts) == 1 else torch.cat(parts) for parts in of_videos]
