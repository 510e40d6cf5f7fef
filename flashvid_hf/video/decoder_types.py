"""What all decoders of video files have in common."""

from collections.abc import Callable
from typing import Any

# Indices of the source, its indices a second (`timing.py`) -> the ascending indices that are wanted.
Choose = Callable[[int, float | None], list[int]]
# Wanted frames, each an array or tensor with shape (H, W, 3), uint8; their indices; indices of the source; its fps.
Decoded = tuple[Any, list[int], int, float | None]


class NoVideo(ValueError):
    """The file has nothing that could be read as a video. Another decoder would find none either, so none is tried."""


class DamagedVideo(ValueError):
    """The file opens but is damaged. Another decoder would only hide that, so none is tried."""
