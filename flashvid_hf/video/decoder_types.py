"""What all decoders of video files have in common."""

from typing import Any

# Wanted frames, each with shape (H, W, 3), uint8, as `FramePlan.keep` returned it; their indices; indices of the source
# (`timing.py`); its indices a second.
Decoded = tuple[Any, list[int], int, float | None]


class NoVideo(ValueError):
    """The file has nothing that could be read as a video. Another decoder would find none either, so none is tried."""


class DamagedVideo(ValueError):
    """The file opens but is damaged. Another decoder would only hide that, so none is tried."""


class Refused(ValueError):
    """The frames cannot be given as they are asked for. Another decoder could not either, so none is tried."""
