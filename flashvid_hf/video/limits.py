"""How large videos and images may be. Everything is checked before it is decoded.

read_video("clip.mp4", limits=MediaLimits(max_frame_pixels=2**27))
"""

import math
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any

from .decoder_types import Refused


class TooLarge(Refused):
    """A video or an image exceeds one of the `MediaLimits`."""


@dataclass(frozen=True)
class MediaLimits:
    """Bounds on every video and image that is read from a file, a URL or bytes. No honest one meets the defaults.

    Decoded frames that a program passes are not bounded: they are in memory already. `math.inf` turns a bound off.

    Args:
        max_frame_pixels: height x width of a video's frames, at any place of the stream. Default: the largest picture
            of any level up to 6.2 of H.264, HEVC and AV1, such as 8192 x 4352.
        max_image_pixels: height x width of an image, and of each picture in a list of frames. Default: where Pillow
            refuses a picture as a decompression bomb.
        max_file_frames: frames that a video file has, and frames that are taken from it. Default: 38 hours of 30 frames
            a second.
        max_seconds: duration of a video. Default: a week.
        max_file_bytes: size of a file. Default: 128 GiB; the largest discs with films have 100 GB.
        max_decoded_bytes: 8-bit frames that are taken from one video, after they were resized. Default: 16 GiB, that is
            2,700 frames of 1920 x 1080.

    Raises:
        ValueError: a bound is not above 0.
    """

    max_frame_pixels: float = 35_651_584
    max_image_pixels: float = 178_956_970
    max_file_frames: float = 2**22
    max_seconds: float = 7 * 24 * 3600
    max_file_bytes: float = 2**37
    max_decoded_bytes: float = 2**34

    def __post_init__(self):
        for name, value in vars(self).items():
            if not isinstance(value, Real) or isinstance(value, bool) or not value > 0:
                raise ValueError(f"`{name}` must be a number > 0, got {value!r}; `math.inf` turns the limit off")

    def check(self, name: str, value: float, what: str) -> None:
        """Compare a value with the limit of this name.

        Args:
            what: the value in words, such as "its frames have 8192 x 8192 pixels".

        Raises:
            TooLarge: the value is above the limit.
        """
        limit = getattr(self, name)
        if value > limit:
            raise TooLarge(
                f"`{name}` is {_plain(limit)}, and {what} ({_plain(value)}): it must be at most the limit. Use a "
                f"smaller one or fewer frames, or raise the limit: `limits=MediaLimits({name}=...)`, in `serve` "
                f"`--{name.replace('_', '-')}`"
            )

    def check_frame(self, width: int, height: int) -> None:
        """Check the size of a video's frames; sizes of 0 are not known yet.

        Raises:
            TooLarge: a frame has too many pixels.
        """
        self.check("max_frame_pixels", width * height, f"its frames have {width} x {height} pixels")


def _plain(value: float) -> str:
    return f"{value:.10g}" if isinstance(value, float) else str(value)


# For decoded frames that a program passes.
NO_LIMITS = MediaLimits(*[math.inf] * len(fields(MediaLimits)))
DEFAULT_LIMITS = MediaLimits()


def limits_or_default(limits: Any) -> MediaLimits:
    """The limits of a call, or the default ones for `None`.

    Raises:
        ValueError: they are something else.
    """
    if limits is None:
        return DEFAULT_LIMITS
    if not hasattr(limits, "check_frame"):  # not `isinstance`: a published folder has a copy of the class
        raise ValueError(f"`limits` must be `MediaLimits`, got {type(limits).__name__}; leave it out for the default")
    return limits
