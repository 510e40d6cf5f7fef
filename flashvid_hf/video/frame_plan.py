"""What a decoder is asked for: which frames of a video, in which size, and within which limits."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from .decoder_types import Refused
from .limits import DEFAULT_LIMITS, MediaLimits


class Resizing(NamedTuple):
    """How to resize the frames of a video, one by one.

    Args:
        size_of: takes the number of frames that are kept, their height and width; returns the new height and width.
        resize: takes a frame with shape (H, W, 3), uint8, and the new height and width; returns the resized frame.
    """

    size_of: Callable[[int, int, int], tuple[int, int]]
    resize: Callable[[torch.Tensor, int, int], torch.Tensor]


class FramePlan:
    """One reading of a video. A decoder first asks which frames to keep, and then hands over each frame to keep.

    A frame is resized before the next one is decoded. So the memory is that of the kept frames in their final size,
    and of a few frames in the size of the source.

    Args:
        choose: takes the number of frames of the video and their rate; returns the ascending indices to keep.
        limits: what the video must not exceed.
        resizing: how the frames are resized; `None` keeps their size.
    """

    def __init__(
        self,
        choose: Callable[..., list[int]],
        limits: MediaLimits = DEFAULT_LIMITS,
        resizing: Resizing | None = None,
    ):
        self._choose, self._resizing = choose, resizing
        self.limits = limits
        self.source_size: tuple[int, int] | None = None  # height and width of the first frame before it was resized
        self._size: tuple[int, int] = (0, 0)  # and after
        self._number = 0  # of frames to keep

    @property
    def resizes(self) -> bool:
        """Whether the frames get another size than that of the source, or would if it differed."""
        return self._resizing is not None

    def choose(self, total: int, fps: float | None, *times: Any) -> list[int]:
        """The indices of the frames to keep.

        Args:
            total: indices of the video.
            fps: indices a second; `None` if it is unknown.
            times: further arguments of the function that chooses.

        Raises:
            TooLarge: the video lasts too long.
            ValueError: the settings fit no frame of this video.
        """
        if fps:
            self.limits.check("max_seconds", total / fps, "the duration of the video in seconds is greater")
        indices = self._choose(total, fps, *times)
        self._number = len(indices)
        return indices

    def keep(self, frame: Any) -> torch.Tensor:
        """A frame to keep, with shape (H, W, 3), in its final size.

        Args:
            frame: an array or tensor with shape (H, W, 3), uint8. All frames of a video are equally large.

        Raises:
            TooLarge: the frames to keep would take too much memory together.
            Refused: there is no size for these frames.
        """
        frame = torch.as_tensor(frame)
        height, width = frame.shape[:2]
        if self.source_size is None:
            self.source_size = self._size = (height, width)
            if self._resizing is not None:
                try:
                    self._size = self._resizing.size_of(self._number, height, width)
                except ValueError as error:
                    raise Refused(str(error)) from error
            height, width = self._size
            what = f"{self._number} frames of {height} x {width} pixels take more bytes"
            self.limits.check("max_decoded_bytes", self._number * height * width * 3, what)
        if self._resizing is None or frame.shape[:2] == self._size:
            return frame
        return self._resizing.resize(frame, *self._size)
