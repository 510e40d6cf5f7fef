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

    A frame is resized before the next one is decoded, into memory that is taken once for all of them. So the memory is
    that of the kept frames in their final size, and of a few frames in the size of the source.

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
        self._number = self._kept = 0  # frames to keep, and kept until now
        self._frames = torch.empty(0)  # with shape (T, H, W, 3), once the first frame is there

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
        self._number, self._kept, self.source_size = len(indices), 0, None
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
        if self.source_size is None:
            self.source_size = tuple(frame.shape[:2])
            self._frames = self._take_memory(*self.source_size)
        size = tuple(self._frames.shape[1:3])
        if self._resizing is not None and frame.shape[:2] != size:
            frame = self._resizing.resize(frame, *size)
        if self._kept == len(self._frames) or frame.shape[:2] != size:
            return frame
        self._frames[self._kept] = frame
        self._kept += 1
        return self._frames[self._kept - 1]

    def collect(self, frames: Any) -> torch.Tensor:
        """The chosen frames together, with shape (T, H, W, 3).

        Args:
            frames: the chosen frames in their order; a pause repeats a frame.
        """
        frames = [torch.as_tensor(frame) for frame in frames]
        if [frame.data_ptr() for frame in frames] == [row.data_ptr() for row in self._frames[: self._kept]]:
            return self._frames[: self._kept]
        return torch.stack(frames)

    def _take_memory(self, height: int, width: int) -> torch.Tensor:
        if self._resizing is not None:
            try:
                height, width = self._resizing.size_of(self._number, height, width)
            except ValueError as error:
                raise Refused(str(error)) from error
        what = f"{self._number} frames of {height} x {width} pixels take more bytes"
        self.limits.check("max_decoded_bytes", self._number * height * width * 3, what)
        return torch.empty(self._number, height, width, 3, dtype=torch.uint8)
