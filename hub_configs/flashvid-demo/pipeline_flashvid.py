"""The pipeline `video-text-to-text`: videos and questions in, answers out.

Generated from flashvid_hf 0.1.0: do not edit. The sections are its modules:

    video/decoder_types.py
    video/limits.py
    video/frame_plan.py
    video/timing.py
    video/whole_files.py
    video/animated_pictures.py
    video/batching.py
    video/sample_counts.py
    video/decord_decoder.py
    video/pyav_decoder.py
    video/decoders.py
    video/model_size.py
    video/sources.py
    video/video_settings.py
    video/reading.py
    video/message_parts.py
    video/pipeline_flashvid.py
"""

import base64
import errno
import importlib
import importlib.util
import io
import math
import os
import re
import struct
import time
import zlib
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, fields, replace
from itertools import accumulate, pairwise
from numbers import Integral, Real
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import unquote

import torch
from transformers import BatchFeature, GenerationConfig, Pipeline
from transformers.image_utils import SizeDict, is_pil_image, load_image
from transformers.utils import logging
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoMetadata

logger = logging.get_logger(__name__)


# video/decoder_types.py -----------------------------------------------------------------------------------------------

"""What all decoders of video files have in common."""

# Wanted frames, each with shape (H, W, 3), uint8, as `FramePlan.keep` returned it; their indices; indices of the source
# (`timing.py`); its indices a second.
Decoded = tuple[Any, list[int], int, float | None]


class NoVideo(ValueError):
    """The file has nothing that could be read as a video. Another decoder would find none either, so none is tried."""


class DamagedVideo(ValueError):
    """The file opens but is damaged. Another decoder would only hide that, so none is tried."""


class Refused(ValueError):
    """The frames cannot be given as they are asked for. Another decoder could not either, so none is tried."""


# video/limits.py ------------------------------------------------------------------------------------------------------

"""How large videos and images may be. Everything is checked before it is decoded.

read_video("clip.mp4", limits=MediaLimits(max_frame_pixels=2**27))
"""


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


# video/frame_plan.py --------------------------------------------------------------------------------------------------

"""What a decoder is asked for: which frames of a video, in which size, and within which limits."""


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


# video/timing.py ------------------------------------------------------------------------------------------------------

"""When each frame of a video is shown.

Constant rate: every frame is shown close to index / fps (`_LARGEST_ERROR` says how close). Indices then count the
frames of the file, and its header's rate applies.

Variable rate (recordings of screens, browsers and television; animated pictures): the video is described as the
constant-rate video that a player would show. Its indices are places on a regular grid of `fps` places a second, from
the first shown frame to the end of the last one. At the place k the player shows the last frame that has started by
k / fps seconds: a pause repeats a frame. So index / fps is the real time in either case, and everything that is
computed from it: `VideoMetadata.timestamps`, the seconds in the prompt of Qwen3-VL, `second_per_grid_ts` of Qwen2.5-VL.

The grid's rate is the header's, if that lies within `_GRID_RATES` and is high enough for the shortest interval between
two frames. Otherwise it follows from the shortest interval. A few very short intervals do not count. Every rate
below the range is multiplied by a whole number, so that a frame is at most 1/24 s late.
"""

# Seconds by which a frame of a constant rate may be early or late, at most half a frame. Qwen3-VL writes tenths of a
# second into the prompt: 0.05 s is what rounding to them loses.
_LARGEST_ERROR = 0.05
# Places a second of the grid. The lowest is the lowest rate of films. Above the highest there are only slow-motion
# recordings of a constant rate, and headers that state the unit of time (1000 in Matroska, 90000 in MPEG) as the rate.
_GRID_RATES = (24.0, 240.0)
_SHORT_INTERVALS = 0.1  # the share of the intervals that may be shorter than the step of the grid
# Seconds by which the last frame of a constant rate may be shown longer than the others. Programs often give the last
# frame a length of their own.
_HELD = 0.5
_ROUNDING = 1e-6  # seconds that the arithmetic may be off after many hours
_ONLY_FRAME = 0.04  # seconds that a video of one frame lasts if nothing says so: 25 frames a second


class Timeline(NamedTuple):
    """Which frame is shown at which index.

    Args:
        total: indices of the video, at least 1.
        fps: indices a second; None if nothing in the file says so.
        starts: for a variable rate, the seconds from the first frame to each frame, ascending. None for a constant
            rate, where an index is the number of a frame.
        tolerance: seconds by which a frame may start after its index, because the file rounds times.
    """

    total: int
    fps: float | None
    starts: Sequence[float] | None = None
    tolerance: float = 0.0

    def frame_at(self, index: int) -> int:
        """The number of the frame that is shown at an index; frames are counted in the order in which they appear."""
        if self.starts is None:
            return index
        return max(bisect_right(self.starts, index / self.fps + self.tolerance) - 1, 0)


def make_timeline(
    times: Sequence[float],
    rates: Iterable[float | None],
    last: Iterable[float] = (),
    tick: float = 0.0,
    held: float = 0.0,
) -> Timeline:
    """The timeline of a video from the times of its frames.

    Args:
        times: seconds at which the frames appear, ascending; at least one.
        rates: frames a second by the file's headers, the most trustworthy first; None or 0 where one is missing.
        last: seconds for which the last frame is shown, by the file, the most trustworthy first. The first that is
            not far too short counts, otherwise the usual interval between two frames does.
        tick: the file's unit of time in seconds, to which it rounds times.
        held: seconds for which the last frame itself says that it is shown; 0 if it does not. A rate is not constant if
            the last frame is held, as at the end of many animations and recordings of screens.
    """
    lowest, highest = _GRID_RATES
    starts = [time - times[0] for time in times]
    rates = [float(rate) for rate in rates if rate and rate > 0]
    intervals = sorted(after - before for before, after in zip(starts, starts[1:], strict=False) if after > before)
    if not intervals:  # one frame
        length = next((float(length) for length in last if length > 0), 0.0)
        if rates and rates[0] <= highest:
            return Timeline(len(starts), rates[0])
        return Timeline(1, 1 / max(length, _ONLY_FRAME)) if len(starts) == 1 and rates else Timeline(len(starts), None)
    shortest = intervals[int(_SHORT_INTERVALS * len(intervals))]
    usual = intervals[len(intervals) // 2]
    # Shorter than that is what a wrong rate in the header makes of the last frame.
    length = next((float(length) for length in last if length >= min(shortest / 2, 0.5 / lowest)), usual)

    mean = (len(starts) - 1) / starts[-1]
    for rate in rates:
        if _is_constant(starts, rate) and held <= max(2 / rate, 1 / rate + _HELD):
            return Timeline(len(starts), rate)
    # The header may be wrong about a constant rate. It is one only if the last frame is shown as long as the others.
    if abs(length - 1 / mean) <= max(0.55 / mean, _LARGEST_ERROR) + tick and _is_constant(starts, mean):
        return Timeline(len(starts), mean)

    fine = [rate for rate in rates[:1] if rate <= highest and 1 / rate <= shortest + tick]
    fps = fine[0] if fine else round(min(1 / shortest, highest), 2)
    fps *= math.ceil(lowest / fps - 1e-9) if fps < lowest else 1
    tolerance = min(max(tick, _ROUNDING), 0.5 / fps)
    total = max(round((starts[-1] + length) * fps), math.ceil((starts[-1] - tolerance) * fps) + 1)
    return Timeline(total, fps, starts, tolerance)


def _is_constant(starts: Sequence[float], rate: float) -> bool:
    error = min(0.5 / rate, _LARGEST_ERROR)
    return all(abs(start - index / rate) <= error for index, start in enumerate(starts))


# video/whole_files.py -------------------------------------------------------------------------------------------------

"""Whether a file is whole, by the marks of its format: sizes in headers, end marks, packets of a fixed size."""

_EBML = b"\x1aE\xdf\xa3"  # the beginning of every Matroska file


def container_of(path: str) -> str | None:
    """The container by the first bytes of the file, or None.

    "quicktime" (MP4, MOV), "matroska" (MKV, WebM), "riff" (AVI, WebP), "gif", "png", "y4m" or "transport" (MPEG-TS).
    """
    with open(path, "rb") as file:
        head = file.read(4 * 204)
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return "quicktime"
    marks = {_EBML: "matroska", b"RIFF": "riff", b"GIF8": "gif", b"\x89PNG": "png", b"YUV4": "y4m"}
    return marks.get(head[:4]) or ("transport" if _transport_packets(head) else None)


def quicktime_boxes(path: str) -> Iterator[tuple[bytes, int]]:
    """The kind of every top-level box of an MP4 or QuickTime file, and the byte at which it ends by its own header."""
    end = 0
    with open(path, "rb") as file:
        while len(head := file.read(16)) >= 8:
            size = int.from_bytes(head[:4], "big")
            size = int.from_bytes(head[8:], "big") if size == 1 else size
            if size < 8:  # the last box may have size 0, up to the end of the file
                return
            end += size
            yield head[4:8], end
            file.seek(end)


def announced_size(path: str) -> int:
    """The least size of a file in bytes by its own headers; 0 if they do not state it.

    This finds losses that are shorter than a second, which the header's duration does not show, and it works in
    containers without a frame count.
    """
    container = container_of(path)
    if container == "quicktime":
        return max((end for kind, end in quicktime_boxes(path) if kind in (b"moov", b"moof", b"mdat")), default=0)
    if container not in ("matroska", "riff"):
        return 0
    with open(path, "rb") as file:
        return _riff_size(file) if container == "riff" else _matroska_size(file)


def announced_picture(path: str) -> tuple[int, int] | None:
    """Width and height of each picture by the header of a Y4M file; None in other formats, whose streams state them.

    FFmpeg refuses to open a Y4M file of very large pictures, and does not say why.
    """
    if container_of(path) != "y4m":
        return None
    with open(path, "rb") as file:
        tags = {tag[:1]: tag[1:] for tag in file.readline(1024).split()[1:]}
    try:
        return int(tags[b"W"]), int(tags[b"H"])
    except (KeyError, ValueError):
        return None


def missing_end(path: str, frame_bytes: int = 0) -> str | None:
    """What the end of a file lacks, in a format whose headers state no size; None if nothing is known to be missing.

    Args:
        frame_bytes: bytes of each picture, for Y4M.
    """
    container = container_of(path)
    with open(path, "rb") as file:
        if container == "gif":
            return None if _reaches_end_of_gif(file) else "the end mark of the GIF is missing"
        if container == "png":
            return None if _reaches_end_of_png(file) else "the end mark of the PNG is missing"
        if container == "y4m" and frame_bytes:
            return None if _has_whole_pictures(file, frame_bytes) else "the last picture is not complete"
        if container == "transport":
            return None if _has_whole_packets(file) else "the last packet of the MPEG transport stream is not complete"
    return None


def has_another_recording(path: str, place: int) -> bool:
    """Whether a recording that was joined byte by byte is left over, which FFmpeg and players do not read.

    Args:
        place: the byte in the file at which the last packet ends.
    """
    container = container_of(path)
    if container == "quicktime":
        return [kind for kind, _ in quicktime_boxes(path)].count(b"moov") > 1
    with open(path, "rb") as file:
        if container == "riff":
            forms = [form for form, _ in _riff_chunks(file)]
            return b"AVI " in forms[1:]  # the other chunks of a long AVI file are called AVIX
        if container == "matroska":
            file.seek(place)
            before = b""
            while block := file.read(2**20):
                if _EBML in before + block:
                    return True
                before = block[-3:]
    return False


def ends_in_zeros(path: str) -> bool:
    """Whether the last 4 KiB are zero, as in a download that reserved the space but did not finish."""
    with open(path, "rb") as file:
        file.seek(-min(4096, os.path.getsize(path)), os.SEEK_END)
        return not any(file.read())


def _matroska_size(file: BinaryIO) -> int:
    size = 0
    for _ in range(2):  # a header element, then one segment with all the rest
        file.seek(size + 4, os.SEEK_CUR)  # the content of the element, and the name of the next one
        first = file.read(1)
        num_bytes = 9 - (first[0].bit_length() if first else 0)
        if num_bytes == 9:
            return 0
        digits = 7 * num_bytes
        size = int.from_bytes(first + file.read(num_bytes - 1), "big") & ((1 << digits) - 1)
    is_known = size != (1 << digits) - 1  # all ones in a recording that was not finished
    return file.tell() + size if is_known else 0


def _riff_size(file: BinaryIO) -> int:
    end = max((end for _, end in _riff_chunks(file)), default=0)
    return max(end - 9, 0)  # some programs count the 8 bytes of the header or leave out the last byte, which is padding


def _riff_chunks(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """The form of each chunk on the top level, and where it ends. Long AVI files have several."""
    end = 0
    while (head := file.read(12))[:4] == b"RIFF" and len(head) >= 8:
        size = int.from_bytes(head[4:8], "little")
        if size in (0, 0xFFFFFFFF):  # a recording that was not finished
            break
        end += 8 + size + size % 2
        yield head[8:], end
        file.seek(end)


def _reaches_end_of_gif(file: BinaryIO) -> bool:
    file.seek(10)
    _skip_colours(file, file.read(3)[:1])
    while kind := file.read(1):
        if kind == b";":
            return True
        if kind == b",":  # a picture: place and size, colours, the size of a code
            _skip_colours(file, file.read(9)[8:])
            file.seek(1, os.SEEK_CUR)
        elif kind == b"!":
            file.seek(1, os.SEEK_CUR)
        else:  # not a GIF's block: the decoder has to judge it
            return True
        while size := file.read(1):  # blocks of up to 255 bytes, the last one is empty
            if size == b"\0":
                break
            file.seek(size[0], os.SEEK_CUR)
    return False


def _skip_colours(file: BinaryIO, flags: bytes) -> None:
    if flags and flags[0] & 0x80:
        file.seek(3 << (flags[0] & 7) + 1, os.SEEK_CUR)


def _reaches_end_of_png(file: BinaryIO) -> bool:
    file.seek(8)
    while len(head := file.read(8)) == 8:
        file.seek(int.from_bytes(head[:4], "big") + 3, os.SEEK_CUR)  # the content, and all but one byte of its checksum
        if not file.read(1):
            return False
        if head[4:] == b"IEND":
            return True
    return False


def _has_whole_pictures(file: BinaryIO, frame_bytes: int) -> bool:
    end = os.fstat(file.fileno()).st_size
    file.readline(1024)
    while file.tell() < end:
        if not file.readline(1024).endswith(b"\n") or file.tell() + frame_bytes > end:
            return False
        file.seek(frame_bytes, os.SEEK_CUR)
    return True


def _transport_packets(head: bytes) -> tuple[int, int] | None:
    """Where the first packet of an MPEG transport stream starts, and the bytes of each packet."""
    for size, start in ((188, 0), (192, 4), (204, 0)):  # plain; with times (M2TS); with error correction
        if len(head) > start + 3 * size and all(head[start + i * size] == 0x47 for i in range(4)):
            return start, size
    return None


def _has_whole_packets(file: BinaryIO) -> bool:
    start, size = _transport_packets(file.read(4 * 204)) or (0, 1)
    end = os.fstat(file.fileno()).st_size
    rest = end % size
    file.seek(end - rest + start)
    return rest <= start or file.read(1) != b"\x47"  # other bytes there are no packet, but were added at the end


# video/animated_pictures.py -------------------------------------------------------------------------------------------

"""Animated WebP by Pillow: FFmpeg reads only pictures that stand still. PyAV reads GIF and animated PNG."""

_TICK = 0.001  # WebP states durations in milliseconds
# Browsers show a frame that is to last at most 10 ms for 100 ms: files state 0 where their maker did not care.
_TOO_SHORT, _INSTEAD = 0.01, 0.1


def is_animated_webp(path: str) -> bool:
    """Whether the file is a WebP whose header says that it has several frames."""
    with open(path, "rb") as file:
        head = file.read(21)
    return head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and len(head) == 21 and bool(head[20] & 2)


def read_animated_webp(path: str, plan: FramePlan) -> Decoded:
    """The wanted frames of an animated WebP, each shown for as long as the file says. Transparency is left out.

    Raises:
        DamagedVideo: the file is cut short.
        TooLarge: the file exceeds a limit.
    """
    with open(path, "rb") as file:
        head = file.read(30)
    width, height = (int.from_bytes(head[start : start + 3], "little") + 1 for start in (24, 27))
    plan.limits.check_frame(width, height)  # Pillow takes the memory of the canvas when it opens the file
    durations = _webp_durations(path, plan.limits)
    pictures = importlib.import_module("PIL.Image")
    with pictures.open(path, formats=["WEBP"]) as picture:
        if len(durations) != picture.n_frames:
            raise DamagedVideo(f"it is damaged: {picture.n_frames} frames, {len(durations)} durations")
        timeline = make_timeline([0.0, *accumulate(durations[:-1])], [], durations[-1:], _TICK, durations[-1])
        indices = plan.choose(timeline.total, timeline.fps)
        numbers = [timeline.frame_at(index) for index in indices]
        frames: dict[int, torch.Tensor] = {}
        for number in sorted(set(numbers)):
            picture.seek(number)
            pixels = bytearray(picture.convert("RGB").tobytes())
            frame = torch.frombuffer(pixels, dtype=torch.uint8).view(picture.height, picture.width, 3)
            frames[number] = plan.keep(frame)
    return [frames[number] for number in numbers], indices, timeline.total, timeline.fps


def _webp_durations(path: str, limits: MediaLimits) -> list[float]:
    """For how many seconds each frame is shown."""
    durations = []
    with open(path, "rb") as file:
        end = file.seek(0, 2)
        if end < announced_size(path):
            raise DamagedVideo("it is cut short: the file is smaller than its header says")
        place = 12
        while place + 8 <= end:
            file.seek(place)
            head = file.read(24)  # name and size; then for a frame: place and size (12 bytes), duration (3 bytes)
            if head[:4] == b"ANMF":
                duration = int.from_bytes(head[20:23], "little") * _TICK
                durations.append(duration if duration > _TOO_SHORT else _INSTEAD)
                limits.check("max_file_frames", len(durations), "the picture has more frames")
            size = int.from_bytes(head[4:8], "little")
            place += 8 + size + size % 2
    return durations


# video/batching.py ----------------------------------------------------------------------------------------------------

"""Batches of videos with different numbers of frames."""


def convert_to_tensors(inputs: BatchFeature, tensor_type: Any) -> BatchFeature:
    """Convert the output of a processor that ran without `return_tensors`; tensors of different shapes stay a list.

    Some upstream processors stack the videos themselves, and raise an error where the shapes differ.
    """
    if tensor_type is None:
        return inputs
    ragged = [
        name
        for name, values in inputs.items()
        if isinstance(values, list) and len({v.shape for v in values if isinstance(v, torch.Tensor)}) > 1
    ]
    return inputs.convert_to_tensors(tensor_type, skip_tensor_conversion=ragged)


# video/sample_counts.py -----------------------------------------------------------------------------------------------

"""How many samples an MP4 or QuickTime file announces.

A few bytes can announce any number, and FFmpeg takes memory for all of them when it opens the file: 5 GB for 80
million.
"""

# Boxes in which FFmpeg looks for other boxes.
_NESTED = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf", b"mvex", b"edts", b"tref", b"udta", b"cmov")
_MOVED = (b"hoov", b"free")  # some programs hide the header so
_DEEPEST = 10  # levels of boxes, as in FFmpeg
# Where tables state a number: of all samples, and of the samples of a fragment.
_NUMBERS = {b"stsz": 8, b"stz2": 8, b"trun": 4}
_RUNS = (b"stts", b"ctts")  # tables of pairs: a number of samples, and the time of each
_LARGEST_HEADER = 2**26  # bytes of a header that is stored compressed, which only files from before 2001 have
# How many samples of uncompressed sound a byte of the file may have. Chunks may be of different sizes, and old formats
# compress a little. FFmpeg takes 24 bytes for 1024 of these samples.
_SLACK = 64


@dataclass
class _Track:
    """The tables of a track, or of all fragments.

    Args:
        share: how many times the limit on frames its samples may be. Sound has up to twice as many as a video.
    """

    share: int = 2
    handlers: set[bytes] = field(default_factory=set)
    numbers: list[int] = field(default_factory=list)
    in_fragments: int = 0
    durations: list[tuple[int, int]] = field(default_factory=list)  # number of samples, and the duration of each
    chunks: int = 0
    most_in_a_chunk: int = 0

    @property
    def is_plain_sound(self) -> bool:
        """Uncompressed sound has a sample for each moment, so there are very many. FFmpeg reads them in chunks."""
        is_sound = b"soun" in self.handlers and b"vide" not in self.handlers
        return is_sound and len(self.durations) == 1 and self.durations[0][1] == 1

    def check(self, size: int, limits: MediaLimits) -> None:
        most, is_sound = max([*self.numbers, self.in_fragments]), self.is_plain_sound
        if not is_sound:
            share = 1 if b"vide" in self.handlers else self.share
            limits.check("max_file_frames", most / share, "a track of the file has more frames")
        bytes_of = _SLACK * size if is_sound else size
        if max(most, self.chunks * self.most_in_a_chunk if is_sound else 0) > bytes_of:
            raise DamagedVideo(f"it is damaged or cut short: a track has {most} samples, and the file {size} bytes")


def check_sample_counts(path: str, limits: MediaLimits) -> None:
    """Compare the numbers of samples that the tables of a file state with the limit; other formats have no such tables.

    Raises:
        TooLarge: a track has too many samples.
        DamagedVideo: the numbers are impossible.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        others = _Track(share=3)  # the fragments have video and sound
        _walk(file, 0, size, 0, others, size, limits)
        others.check(size, limits)


def _walk(file: BinaryIO, start: int, end: int, depth: int, track: _Track, size: int, limits: MediaLimits) -> None:
    """Go through the boxes between two places of the file.

    Args:
        track: where the numbers go. A box of its own for a track is checked as soon as it has been read.
        size: of the whole file.
    """
    while start + 8 <= end:
        file.seek(start)
        head = file.read(16)
        length, kind, content = int.from_bytes(head[:4], "big"), head[4:8], 8
        if length == 1:
            length, content = int.from_bytes(head[8:], "big"), 16
        elif length == 0:  # up to the end
            length = end - start
        if length < content:
            return
        first, last = start + content, min(start + length, end)
        if kind in (*_NESTED, *_MOVED) and depth < _DEEPEST:
            inner = _Track() if kind == b"trak" else track
            _walk(file, first, last, depth + 1, inner, size, limits)
            if inner is not track:
                inner.check(size, limits)
        elif kind == b"cmvd" and depth < _DEEPEST:
            file.seek(first + 4)
            unpacked = zlib.decompressobj().decompress(file.read(min(last - first, _LARGEST_HEADER)), _LARGEST_HEADER)
            _walk(io.BytesIO(unpacked), 0, len(unpacked), depth + 1, track, size, limits)
        else:
            file.seek(first)
            _read_table(file, kind, last - first, track)
        start += length


def _read_table(file: BinaryIO, kind: bytes, length: int, track: _Track) -> None:
    """Add what a table says to the numbers of its track."""
    if kind == b"hdlr":
        track.handlers.add(file.read(12)[8:])
    elif kind in _NUMBERS:
        number = int.from_bytes(file.read(_NUMBERS[kind] + 4)[-4:], "big")
        if kind == b"trun":
            track.in_fragments += number
        else:
            track.numbers.append(number)
    elif kind in (b"stco", b"co64"):
        track.chunks += int.from_bytes(file.read(8)[4:], "big")
    elif kind in _RUNS:
        numbers = _entries(file, length, 2)
        track.numbers.append(sum(numbers[::2]))
        if kind == b"stts":
            track.durations += zip(numbers[:4:2], numbers[1:4:2], strict=True)  # two say that there are several
    elif kind == b"stsc":
        track.most_in_a_chunk = max([track.most_in_a_chunk, *_entries(file, length, 3)[1::3]])


def _entries(file: BinaryIO, length: int, width: int) -> array:
    """The numbers of a table, `width` in each of its entries."""
    count = int.from_bytes(file.read(8)[4:], "big")
    count = min(count, max(length - 8, 0) // (4 * width))
    numbers = array("I", file.read(4 * width * count))
    if struct.pack("=H", 1) != struct.pack(">H", 1):
        numbers.byteswap()
    return numbers


# video/decord_decoder.py ----------------------------------------------------------------------------------------------

"""Video files by decord."""

# decord decodes every frame from the start, which takes too long for later frames. 3000 are 2 minutes at 25 fps.
MAX_FRAMES_IN_ONE_PASS = 3000
_TIME_ERROR = 0.001  # seconds; decord states times with 24 bits of precision, which is about this after some hours


def read_decord(path: str, plan: FramePlan) -> Decoded:
    """The wanted frames of an MP4 or QuickTime file, in one pass from the start.

    transformers' reader is not used: its `get_batch` seeks, and returns neighbouring frames in open-GOP video. One pass
    is exact.

    Raises:
        ValueError: decord may not find the right frames in this file.
        TooLarge: the file exceeds a limit.
    """
    if container_of(path) != "quicktime":
        raise ValueError("this decoder finds the right frames only in MP4 and QuickTime")
    check_sample_counts(path, plan.limits)
    if any(kind == b"moof" for kind, _ in quicktime_boxes(path)):
        raise ValueError("it is fragmented, and decord may lose its first frames")
    header = _header(path)
    for found in re.finditer(rb"tkhd", header):
        plan.limits.check_frame(*_frame_size(header, found.end()))
    if header and not re.search(rb"hdlr.{8}vide", header, re.DOTALL):
        raise NoVideo("it has no video, at most a cover picture")
    if any(_is_mirrored(header, found.end()) for found in re.finditer(b"tkhd", header)):
        raise ValueError("its pictures are stored mirrored, which decord ignores")
    decord = importlib.import_module("decord")
    # Without `fault_tol` decord replaces a frame that it cannot decode by a copy of the nearest one. The value is the
    # share of the frames that may be replaced: so small that none may.
    reader = decord.VideoReader(path, ctx=decord.cpu(0), fault_tol=1e-9)
    if len(reader) and reader.get_frame_timestamp(0)[0] < 0:  # decord counts frames that the edit list drops
        raise ValueError("its edit list drops frames, which decord miscounts")
    fps = float(reader.get_avg_fps()) or None
    starts = [float(reader.get_frame_timestamp(i)[0]) for i in range(len(reader))]  # seconds
    if starts != sorted(starts) or not starts:
        raise ValueError("decord does not know when its frames are shown")
    timeline = make_timeline(starts, [fps], tick=_TIME_ERROR)
    plan.limits.check("max_file_frames", len(starts), "the video has more frames")
    indices = plan.choose(timeline.total, timeline.fps)
    numbers = [timeline.frame_at(index) for index in indices]
    if numbers[-1] >= MAX_FRAMES_IN_ONE_PASS:
        raise ValueError(f"this decoder is exact only in one pass, which is slow after {MAX_FRAMES_IN_ONE_PASS} frames")
    frames, wanted = {}, set(numbers)
    for number in range(numbers[-1] + 1):
        frame = reader.next()
        if number in wanted:
            # A program that has set one of decord's bridges gets tensors instead of decord's own arrays.
            picture = frame.asnumpy() if hasattr(frame, "asnumpy") else frame.numpy()
            plan.limits.check_frame(picture.shape[1], picture.shape[0])
            frames[number] = plan.keep(picture)
    return [frames[number] for number in numbers], indices, timeline.total, timeline.fps


def _header(path: str) -> bytes:
    """The box with all headers; empty if there is none."""
    start = 0
    for kind, end in quicktime_boxes(path):
        if kind == b"moov":
            with open(path, "rb") as file:
                file.seek(start)
                return file.read(end - start)
        start = end
    return b""


def _is_mirrored(header: bytes, place: int) -> bool:
    """Whether a track's display matrix mirrors its pictures; `place` is where the content of its `tkhd` box starts."""
    start = _matrix_place(header, place)
    a, b, _, c, d = (int.from_bytes(header[i : i + 4], "big", signed=True) for i in range(start, start + 20, 4))
    return a * d - b * c < 0


def _frame_size(header: bytes, place: int) -> tuple[int, int]:
    """Width and height of a track's pictures in pixels, from the same box."""
    start = _matrix_place(header, place) + 36
    width, height = (int.from_bytes(header[i : i + 2], "big") for i in (start, start + 4))  # 16 bits, then a fraction
    return width, height


def _matrix_place(header: bytes, place: int) -> int:
    """Where the display matrix starts in the content of a `tkhd` box, which starts at `place`."""
    return place + (52 if header[place : place + 1] == b"\1" else 40)  # times have 8 bytes in version 1


# video/pyav_decoder.py ------------------------------------------------------------------------------------------------

"""Video files by PyAV."""

# FFmpeg chooses the demuxer by the content of a file. Some demuxers read lists, and open every file or address that
# the list names: its own name without end, or a file that the user may not read. These here read one file. image2 would
# read other files for a name like `a%d.jpg`: `pattern_type` forbids it.
_DEMUXERS = (
    *("3gp", "apng", "asf", "avi", "av1", "dhav", "dirac", "dv", "flv", "gif", "gxf", "h261", "h263", "h264", "hevc"),
    *("ivf", "live_flv", "m4v", "matroska", "mjpeg", "mov", "mp4", "mpeg", "mpegts", "mpegvideo", "mpjpeg", "mxf"),
    *("nsv", "nut", "nuv", "obu", "ogg", "rm", "swf", "vc1", "vvc", "webm", "wtv", "yuv4mpegpipe"),
    *("avs2", "avs3", "cavsvideo", "dnxhd", "evc", "flic", "kux", "moflex", "pva", "ty", "vivo"),
    *("bink", "dxa", "ipmovie", "roq", "smk", "smush", "thp", "wc3movie"),  # films of games
    "image2",  # single pictures, by the name of the file, and by its content
    *("bmp_pipe", "dpx_pipe", "exr_pipe", "gif_pipe", "j2k_pipe", "jpeg_pipe", "jpegls_pipe", "jpegxl_pipe"),
    *("pam_pipe", "pbm_pipe", "pcx_pipe", "pgm_pipe", "png_pipe", "ppm_pipe", "qoi_pipe", "tiff_pipe", "webp_pipe"),
    *("aac", "aiff", "ape", "flac", "mp3", "wav"),  # songs, which get an error that says so
)
_OPENING = {"format_whitelist": ",".join(_DEMUXERS), "protocol_whitelist": "file", "pattern_type": "none"}
_QUARTERS = ((1, 0), (0, 1), (-1, 0), (0, -1))  # cosine and sine of quarter turns, counterclockwise
_NO_TIME = -(2**63)  # FFmpeg's AV_NOPTS_VALUE
_DEFAULT, _COVER_PICTURE = 0x1, 0x400  # FFmpeg's AV_DISPOSITION_DEFAULT and AV_DISPOSITION_ATTACHED_PIC
# Seconds. Where time falls back by more, a second recording begins: files that were joined, a recorder that was started
# again. Frames of the same recording that are stored out of order are closer together.
_RESTART = 1.0
# Each thread of a decoder keeps about two frames. So many pixels at once: 16 threads (FFmpeg's most) for 1920 x 1080,
# 4 for 3840 x 2160, and 1 for the largest frames.
_PIXELS_OF_THREADS, _MOST_THREADS = 2**25, 16


class _Packet(NamedTuple):
    """One packet of the video stream. Times are in the stream's unit, None where the file has none.

    Args:
        hidden: whether the edit list says that its frame is decoded, but not shown.
    """

    pts: int | None
    dts: int | None
    duration: int
    is_key: bool
    hidden: bool


class _Packets(Sequence[_Packet]):
    """The packets of the video stream, kept in arrays: a video of a day has millions of them."""

    def __init__(self):
        self._times, self._flags = array("q"), bytearray()

    def append(self, packet: _Packet) -> None:
        self._times.extend(_NO_TIME if time is None else time for time in packet[:3])
        self._flags.append(packet.is_key | packet.hidden << 1)

    def __len__(self) -> int:
        return len(self._flags)

    def __getitem__(self, place):
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        flags = self._flags[place]
        first = 3 * (place % len(self))
        pts, dts, duration = (None if time == _NO_TIME else time for time in self._times[first : first + 3])
        return _Packet(pts, dts, duration or 0, bool(flags & 1), bool(flags & 2))


def read_pyav(path: str, plan: FramePlan) -> Decoded:
    """The wanted frames of a video file, each decoded from the keyframe before it.

    transformers' reader is not used: it takes the frame count from the header (0 in Matroska, WebM, MPEG-TS, fragmented
    MP4), ignores rotation and decodes every frame. Here the packets' timestamps say which frames exist and when they
    are shown, without decoding. Each wanted frame must carry its timestamp.

    Raises:
        NoVideo: the file has only a cover picture.
        DamagedVideo: the file is damaged or cut short.
        TooLarge: the file exceeds a limit.
    """
    av = importlib.import_module("av")
    check_sample_counts(path, plan.limits)
    picture = announced_picture(path)
    if picture is not None:
        plan.limits.check_frame(*picture)
        if min(picture) < 1:
            raise DamagedVideo(f"it is damaged: by its header each picture has {picture[0]} x {picture[1]} pixels")
    try:
        with _open(av, path, plan.limits) as (container, stream):
            try:
                return _decode(av, container, stream, path, plan)
            except av.error.FFmpegError as error:
                if not isinstance(error, ValueError):  # PyAV's errors of data and arguments, whose names change
                    raise
                # The file opens, so its content is at fault. A frame that is larger than the header says ends here too.
                bound = f"or a frame has more than {plan.limits.max_frame_pixels} pixels (`max_frame_pixels`)"
                raise DamagedVideo(f"it is damaged: {_words(error)}, {bound}") from error
    except av.error.FFmpegError as error:
        raise ValueError(f"it is damaged, or of a kind that FFmpeg cannot read: {_words(error)}") from error


def _words(error: Any) -> str:
    """FFmpeg's error without its number and the path, which may be that of a copy."""
    if error.errno in (errno.EBUSY, errno.EPERM):  # no device and no permission is meant
        return "it refuses the header"
    return error.strerror or type(error).__name__


@contextmanager
def _open(av: Any, path: str, limits: MediaLimits) -> Iterator[tuple[Any, Any]]:
    """The container and its video stream, whose decoder refuses frames that are larger than the limit."""
    # FFmpeg checks each frame before it takes memory for it, also while it opens the file. It counts rows filled up to
    # 64 pixels, which are at most a quarter more where rows have 256. Its own limit is 2**31.
    bound = {"max_pixels": str(int(min(1.25 * limits.max_frame_pixels + 2**16, 2**31 - 1)))}
    # Before PyAV 17.1, options for streams that are found while a file opens (as in MPEG-PS) crash the process.
    version = tuple(map(int, re.findall(r"\d+", av.__version__)[:2]))
    early = bound if version >= (17, 1) else {}
    with av.open(path, options=early, container_options=_OPENING) as container:
        stream = _find_stream(container)
        limits.check_frame(stream.width, stream.height)
        stream.codec_context.options = bound
        stream.thread_type = "AUTO"
        threads = max(_PIXELS_OF_THREADS // max(stream.width * stream.height, 1), 1)
        if threads < _MOST_THREADS:
            stream.codec_context.thread_count = min(threads, (os.cpu_count() or 1) + 1)
        yield container, stream


def _find_stream(container: Any) -> Any:
    if not container.streams.video:
        raise ValueError("no video stream can be found in it")
    found = []
    for stream in container.streams.video:
        flags = getattr(stream.disposition, "value", stream.disposition)  # an enumeration before PyAV 15
        if not flags & _COVER_PICTURE:
            # Several streams are cameras, sizes, or the still of an animated AVIF. Players take the default one.
            found.append((stream.frames != 1, bool(flags & _DEFAULT), stream))
    if not found:
        raise NoVideo("it has no video, only a cover picture")
    return max(found, key=lambda rank: rank[:2])[2]  # the first of equal ones


def _decode(av: Any, container: Any, stream: Any, path: str, plan: FramePlan) -> Decoded:
    packets = _read_packets(container, stream, path, plan.limits)
    times = [packet.pts for packet in packets if not packet.hidden]
    if not times:
        raise ValueError("it is damaged or cut short: it has no frames")
    shown = sorted(times) if None not in times else []
    restart = _RESTART / float(stream.time_base)
    is_one = all(before - after < restart for before, after in pairwise(p.dts for p in packets if p.dts is not None))
    if is_one and len(shown) == len(times) and all(before < after for before, after in pairwise(shown)):
        timeline = _make_timeline(container, stream, packets, shown, container_of(path))
        indices = plan.choose(timeline.total, timeline.fps)
        moments = [shown[timeline.frame_at(index)] for index in indices]
        frames = _seek(container, stream, sorted(set(moments)), packets, plan)
        if frames is not None:
            return [frames[moment] for moment in moments], indices, timeline.total, timeline.fps
    # The packets' timestamps are missing or are not those of the frames (raw streams, AVI): decode once to count the
    # frames, and once more to keep the wanted ones.
    clock = [(frame.pts, frame.dts) for frame in _iterate(av, path, plan.limits)]
    # In these containers each packet is a frame, but VP8 also has packets that are never shown. Matroska gives frames
    # before a cut no timestamp, so only packets with a timestamp are counted.
    timed = sum(time is not None for time in times)
    frame_per_packet = container_of(path) in ("quicktime", "matroska") and stream.codec_context.name != "vp8"
    if len(clock) < timed and frame_per_packet:
        raise DamagedVideo(f"it is damaged: {timed} packets hold {len(clock)} frames")
    moments = _frame_times(clock, packets, restart)
    if moments is None:  # no times at all: the header's rate is all that is known
        timeline = Timeline(len(clock), float(stream.average_rate or stream.guessed_rate or 0) or None)
    else:
        timeline = _make_timeline(container, stream, packets, moments, container_of(path))
    indices = plan.choose(timeline.total, timeline.fps)
    numbers = [timeline.frame_at(index) for index in indices]
    found, wanted = {}, set(numbers)
    for number, frame in enumerate(_iterate(av, path, plan.limits, stop=numbers[-1])):
        if number in wanted:
            found[number] = plan.keep(_to_picture(frame, plan.source_size))
    return [found[number] for number in numbers if number in found], indices, timeline.total, timeline.fps


def _read_packets(container: Any, stream: Any, path: str, limits: MediaLimits) -> _Packets:
    """All packets of the stream in the order of the file.

    Raises:
        DamagedVideo: packets are missing or incomplete.
        TooLarge: there are too many.
    """
    packets, start, end, num_damaged, size, place = _Packets(), 0.0, 0.0, 0, 0, 0
    for packet in container.demux():
        if packet.size == 0 and packet.dts is None:  # end-of-stream marker
            continue
        if packet.pts is not None and packet.time_base:  # every stream: the header states the longest duration
            start = min(start, float(packet.pts * packet.time_base))  # below 0 if the clock of MPEG-TS starts anew
            end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream.index == stream.index:
            times = (packet.pts, packet.dts, packet.duration or 0)
            packets.append(_Packet(*times, packet.is_keyframe, packet.is_discard))
            limits.check("max_file_frames", len(packets), "the video has more frames")
            num_damaged, size = num_damaged + packet.is_corrupt, packet.size
            place = max(place, (packet.pos or 0) + size)
    counted, duration = stream.frames, (container.duration or 0) / 1e6  # microseconds
    # A frame may be shown for long: 10 s in a video of 0.1 frames a second.
    shown = sorted(packet.pts for packet in packets if packet.pts is not None)
    longest = max((float((b - a) * stream.time_base) for a, b in pairwise(shown)), default=0.0)
    ends_early = end - start + 1 + longest < duration
    announced = announced_size(path)
    if announced:
        # The header may count more than there is to show: samples that the edit list leaves out, frames that were
        # dropped. Then the index says what the demuxer has to find (PyAV of these days has it, 14 has not).
        expected = len(getattr(stream, "index_entries", None) or ()) if counted else 0
        is_short = os.path.getsize(path) < announced or len(packets) < expected
        is_short = is_short or (ends_early and ends_in_zeros(path))
    else:
        is_short = len(packets) < counted or ends_early
    if is_short:
        found = f"{len(packets)} of {counted or '?'} packets, {end - start:.1f} of {duration:.1f} seconds"
        raise DamagedVideo(f"it is damaged or cut short, found {found}")
    if num_damaged:
        raise DamagedVideo(
            f"it is damaged, or recordings were joined byte by byte: {num_damaged} of {len(packets)} packets have lost "
            "data; `ffmpeg -i a.ts -c copy b.mkv` saves the others"
        )
    if has_another_recording(path, place):
        raise DamagedVideo("recordings were joined byte by byte, and not all of them can be read: read one by one")
    missing = missing_end(path, size)
    if missing:
        raise DamagedVideo(f"it is cut short: {missing}")
    return packets


def _make_timeline(
    container: Any, stream: Any, packets: Sequence[_Packet], shown: Sequence[int], kind: str | None
) -> Timeline:
    """The timeline of frames that are shown at these ascending times in the stream's unit."""
    unit = float(stream.time_base)
    last: list[float] = []  # seconds for which the last frame is shown, by different parts of the file
    if kind == "quicktime":
        # Its headers count what the edit list leaves out. A packet lasts up to the next one in the file, so only the
        # length of the last packet is the file's own. It counts if that is the frame that is shown last.
        timed = [packet for packet in packets if not packet.hidden and packet.pts is not None]
        is_known = bool(timed) and len(timed) >= stream.frames and timed[-1].pts == shown[-1]
        lengths = [timed[-1].duration] if is_known else []
    else:
        end = (stream.start_time or 0) + stream.duration if stream.duration else shown[-1]
        lengths = [end - shown[-1], max((p.duration for p in packets if p.pts == shown[-1]), default=0)]
        if len(container.streams) == 1 and container.duration:  # from time 0, or from the first frame
            ends = [container.duration / 1e6, container.duration / 1e6 + shown[0] * unit]
            last = sorted(end - shown[-1] * unit for end in ends)
    last = [length * unit for length in lengths] + last
    rates = [stream.average_rate, stream.guessed_rate, stream.base_rate]
    held = lengths[-1] * unit if lengths else 0.0  # by the packet itself
    return make_timeline([time * unit for time in shown], rates, last, unit, held)


def _frame_times(
    clock: Sequence[tuple[int | None, int | None]], packets: Sequence[_Packet], restart: float
) -> list[int] | None:
    """When each decoded frame is shown, in the stream's unit; None if that is unknown.

    Args:
        clock: `pts` and `dts` of every frame in the order in which the decoder gives them.
        restart: where time falls back by more, a second recording begins, and its time goes on from there.
    """
    times = [pts for pts, _ in clock if pts is not None]
    if clock and len(times) == len(clock):
        usual = sorted(after - before for before, after in pairwise(times))[len(times) // 2] if len(times) > 2 else 1
        added, joined = 0, times[:1]
        for before, after in pairwise(times):
            if before - after > restart:
                added += before + usual - after
            joined.append(after + added)
        if joined == sorted(joined):
            return joined
    # AVI has no times of presentation, but an empty packet in place of each dropped frame.
    decoded = [packet.dts for packet in packets if packet.dts is not None]
    return sorted(decoded) if clock and len(decoded) == len(clock) else None


def _seek(
    container: Any, stream: Any, wanted: list[int], packets: Sequence[_Packet], plan: FramePlan
) -> dict[int, torch.Tensor] | None:
    """The frames at the ascending timestamps `wanted`, each decoded from the nearest keyframe before it.

    Returns None if the decoder leaves out a wanted frame, or a shown frame between the keyframe and a wanted one.
    """
    shown = sorted(packet.pts for packet in packets if not packet.hidden and packet.pts is not None)
    keys = sorted(packet.pts for packet in packets if packet.is_key and packet.pts is not None)
    # A frame may refer to later frames that are decoded before it: those must be undamaged too.
    coded = [packet.pts for packet in packets if packet.pts is not None]
    sources = dict(zip(coded, accumulate(coded, max), strict=True))
    frames: dict[int, torch.Tensor] = {}
    targets, seen = set(wanted), set()
    decoder: Iterator[Any] = iter(())
    now: float = -math.inf
    for moment in wanted:
        key = keys[max(bisect_right(keys, moment) - 1, 0)] if keys else moment
        if key > now:  # a keyframe lies ahead: jump to it instead of decoding all frames up to it
            container.seek(key, stream=stream)
            decoder, now = container.decode(stream), -math.inf
        while now < sources[moment]:
            frame = next(decoder, None)
            if frame is None:
                break
            now = -math.inf if frame.pts is None else frame.pts
            if now < key:  # precedes the keyframe, and refers to frames that the jump left out
                continue
            if frame.is_corrupt:
                raise DamagedVideo(f"it is damaged at {frame.time:.2f} s")
            plan.limits.check_frame(frame.width, frame.height)
            seen.add(now)
            if now in targets:
                frames[int(now)] = plan.keep(_to_picture(frame, plan.source_size))
        if now < sources[moment] or not seen.issuperset(shown[bisect_left(shown, key) : bisect_right(shown, moment)]):
            return None
    return frames


def _iterate(av: Any, path: str, limits: MediaLimits, stop: int | None = None) -> Iterator[Any]:
    """All frames in the order in which they are shown, up to the one with the number `stop`."""
    with _open(av, path, limits) as (container, stream):
        for number, frame in enumerate(container.decode(stream)):
            if frame.is_corrupt:
                raise DamagedVideo(f"it is damaged at frame {number}")
            limits.check_frame(frame.width, frame.height)
            yield frame
            if number == stop:
                return


def _to_picture(frame: Any, size: tuple[int, int] | None) -> torch.Tensor:
    """The picture as it is to be seen, with shape (H, W, 3).

    Args:
        size: height and width of the first picture; None for the first one itself. A stream may change its size, which
            players hide: they scale every picture to the size of the window.
    """
    a, b, c, d = _display_matrix(frame)
    is_turned = abs(b) + abs(c) > abs(a) + abs(d)
    height, width = size or ((frame.width, frame.height) if is_turned else (frame.height, frame.width))
    stored = (height, width) if is_turned else (width, height)
    picture = torch.as_tensor(frame.to_ndarray(format="rgb24", width=stored[0], height=stored[1]))
    if is_turned:
        picture = picture.transpose(0, 1)
    flips = [axis for axis, sign in enumerate((b, c) if is_turned else (d, a)) if sign < 0]
    return picture.flip(flips)


def _display_matrix(frame: Any) -> tuple[int, int, int, int]:
    """How a stored picture is to be seen: the point (x, y), right and down, moves to (a x + c y, b x + d y).

    Phones store upright video on its side, and front cameras mirror it. Other angles than quarter turns are rounded.
    """
    # `frame.side_data` would make a cycle, in which the frame stays in memory until garbage is collected. In a forked
    # process that hangs, because the frame's threads are not there.
    try:
        data = importlib.import_module("av").sidedata.sidedata.SideDataContainer(frame).get("DISPLAYMATRIX")
    except ValueError:  # a kind of data that PyAV does not know, such as EXIF. Then only the angle can be read
        x, y = _QUARTERS[round(frame.rotation / 90) % 4]
        return x, -y, y, x
    if data is None:
        return 1, 0, 0, 1
    values = torch.frombuffer(bytearray(bytes(data)), dtype=torch.int32).tolist()
    return values[0], values[1], values[3], values[4]


# video/decoders.py ----------------------------------------------------------------------------------------------------

"""The decoders of video files: each returns exactly the wanted frames of a file, or raises an error.

PyAV comes first. It decodes only from the keyframe before a wanted frame up to that frame, and it gives each frame's
timestamp and damage flag, which are checked here. decord is tried where PyAV cannot read a file. decord is exact in
MP4 and QuickTime, in one pass from the start. After a seek it returns neighbouring frames in MPEG-TS, MPEG-PS, AVI and
open-GOP video, which x265 writes by default.

Some damage stays unnoticed: no decoder rejects damaged picture data that decodes to a wrong picture. This is rare in
H.264, AV1, MPEG-2 and MPEG-4 of plain pictures, more common in noisy pictures and in HEVC, VP9 and Motion JPEG, and
usual in VP8 and GIF. A missing end is noticed where the format says how long the file is, or marks its end
(`whole_files.py`): not in raw streams, and in MPEG-TS and MPEG-PS only if the cut divides a packet.
"""

BACKENDS: dict[str, Callable[[str, FramePlan], Decoded]] = {  # in the order in which they are tried
    "pyav": read_pyav,
    "decord": read_decord,
}
MODULES = {"pyav": "av", "decord": "decord"}  # the module of each decoder; pip has it under the same name


def available_backends() -> list[str]:
    """Names of the installed decoders in the order in which they are tried: pyav, decord."""
    return [name for name in BACKENDS if importlib.util.find_spec(MODULES[name]) is not None]


# video/model_size.py --------------------------------------------------------------------------------------------------

"""The size that a model's processor gives the frames of a video, made while the video is read."""

# The video processors whose way to a size is known, and the arguments that `resize` gets besides those of the base
# class. Any other processor resizes by itself.
_QWEN = ("Qwen2VLVideoProcessor", "Qwen3VLVideoProcessor")
_ONE_SIZE = "LlavaOnevisionVideoProcessor"


def resizing_of(processor: Any) -> Resizing | None:
    """How the processor of a model resizes videos; `None` if it does not, or in a way that is not known here.

    The results are those of the processor, bit for bit. It resizes every frame by itself, and from 8-bit to 8-bit
    numbers (`BaseVideoProcessor.resize`), so it makes no difference whether the frames come one by one. Its own
    `resize` says the size, for a tensor without data: Qwen3-VL's depends on the number of frames. A processor that gets
    such frames must be told not to resize again (`do_resize=False`), because a size need not be its own result.
    """
    video = getattr(processor, "video_processor", None)
    names = {ancestor.__name__ for ancestor in type(video).__mro__}
    if not names & {*_QWEN, _ONE_SIZE} or not video.do_resize:
        return None
    if any(getattr(video, name, None) is not None for name in ("min_pixels", "max_pixels")):  # they replace `size`
        return None
    size, more, least = SizeDict(**dict(video.size)), {}, 1
    if names & {*_QWEN}:
        more = {
            "factor": video.patch_size * video.merge_size,
            "temporal_factor": video.temporal_patch_size,
            "cap_pixels_per_frame": video.cap_pixels_per_frame or False,
        }
        least = video.temporal_patch_size  # fewer frames are filled up before the processor gets them

    def size_of(num_frames: int, height: int, width: int) -> tuple[int, int]:
        frames = torch.empty(1, max(num_frames, least), 3, height, width, dtype=torch.uint8, device="meta")
        height, width = video.resize(frames, size=size, resample=video.resample, **more).shape[-2:]
        return height, width

    def resize(frame: torch.Tensor, height: int, width: int) -> torch.Tensor:
        pixels = frame.permute(2, 0, 1).contiguous()
        made = BaseVideoProcessor.resize(video, pixels, SizeDict(height=height, width=width), resample=video.resample)
        return made.permute(1, 2, 0)

    return Resizing(size_of, resize)


# video/sources.py -----------------------------------------------------------------------------------------------------

"""Where a video or a picture comes from: paths, URLs, lists of pictures, and rows of a data set."""

FILE_TYPES = (str, bytes, os.PathLike)
# Functions that provide the content of a URL as a local file, by its scheme, or by "bytes" for the bytes of a file.
# Their arguments are the source, its name in errors, and what it is ("video" or "image"). The package adds
# `fetch_file`. The code of a model's folder has no such functions: it reads videos from local files only.
FETCHERS: dict[str, Callable[..., AbstractContextManager[str]]] = {}
# The beginning of a picture in base64. A shorter text, and one with other characters, is the path of a picture.
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]{80}")
# Formats of pictures that Pillow may read, those that people exchange. Others are rare and their readers large; that of
# EPS starts another program. HEIF needs a plugin of Pillow.
_FORMATS = (
    *("AVIF", "BMP", "DIB", "GIF", "HEIF", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "QOI", "SGI"),
    *("TGA", "TIFF", "WEBP"),
)


_WORD = re.compile(r"[^\s'\"`(<]+")
_SCHEME = re.compile(r"(?:https?|ftp|file):[/\\\s]*", re.IGNORECASE)


def hide_user(text: str) -> str:
    """A text in which URLs, also malformed ones, have `...` for the user and the password before their host."""
    return _WORD.sub(lambda word: hide_user_of(word[0]), text)


def hide_user_of(address: str) -> str:
    """The same for a single address, in which spaces and new lines may stand before the host."""
    at = max(address.rfind("@"), address.rfind("\uff20"))
    if at < 0:
        return address
    scheme = _SCHEME.match(address)
    user = address[scheme.end() if scheme else 0 : at]
    if ":" not in user and (not scheme or re.search(r"[/?#]", user)):
        return address  # the `@` stands in a path
    return f"{scheme[0].strip() if scheme else ''}...@{address[at + 1 :]}"


def label_of(source: Any) -> str:
    """A source as errors show it: a path or a URL is quoted, not too long, and without a user."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"<{len(source)} bytes>"
    if not isinstance(source, (str, os.PathLike)):
        return f"{source!r:.60}"
    text = hide_user_of(os.fspath(source))
    return repr(text if len(text) <= 300 else f"{text[:60]}...")


def scheme_of(address: str) -> str:
    """The scheme of a URL in lower case; of a path whatever stands before its first colon."""
    return address.partition(":")[0].lower()


def file_of_url(url: str) -> str:
    """The path that a `file:` URL names.

    `#` and `?` belong to the name, because a file has neither a fragment nor a query. Percent signs are decoded if a
    file of the decoded name exists, or none of the literal name. `file://name`, without a host or with
    `file://localhost/`, is the file `name`, as qwen-vl-utils has it.
    """
    path = url.partition(":")[2]
    if path.startswith("//"):
        path = path[2:].removeprefix("localhost") if path[2:].startswith("localhost/") else path[2:]
    if re.match(r"/[A-Za-z]:", path):  # "/C:/talk.mp4"
        path = path[1:]
    decoded = unquote(path)
    return path if os.path.exists(path) and not os.path.exists(decoded) else decoded


def unpack_source(source: Any) -> Any:
    """The content of an open file, the file in a row of a data set (`{"path": ..., "bytes": ...}`), or the source."""
    if isinstance(source, io.IOBase):
        source = source.read()
    if isinstance(source, Mapping) and source and source.keys() <= {"path", "bytes"}:
        return source.get("bytes") or source.get("path")
    return source


def is_file(video: Any) -> bool:
    """Whether this is a file: a path, a URL or bytes; anything else is decoded frames or a list of pictures."""
    return isinstance(video, (*FILE_TYPES, bytearray, memoryview))


def is_list_of_files(video: Any) -> bool:
    """Whether this is a list of files or URLs; as one video these are pictures, its frames."""
    return isinstance(video, (list, tuple)) and len(video) > 0 and all(isinstance(file, FILE_TYPES) for file in video)


def load_picture(source: Any, limits: MediaLimits = DEFAULT_LIMITS) -> Any:
    """A PIL image, RGB and upright.

    Args:
        source: a path, an `http(s)://`, `file://` or `data:image/...;base64,` URL, the bytes of a file, base64, or a
            PIL image.
        limits: what a picture must not exceed, checked before it is decoded. In the code of a model's folder, Pillow's
            own limit, which is the default, comes first for `http(s)`.

    Raises:
        ValueError: it cannot be read, or exceeds a limit.
    """
    source = unpack_source(source)
    label = label_of(source)
    if isinstance(source, str) and (scheme := scheme_of(source)) in FETCHERS and scheme in ("http", "https"):
        with FETCHERS[scheme](source, label, "image") as path:
            return _load_picture(path, label, limits)
    return _load_picture(source, label, limits)


def _load_picture(source: Any, label: str, limits: MediaLimits) -> Any:
    try:
        if isinstance(source, os.PathLike):
            source = os.fspath(source)
        if isinstance(source, str) and ":" in source:
            scheme = scheme_of(source)
            if scheme == "file":
                source = file_of_url(source)
            elif scheme in ("http", "https", "data"):  # transformers knows them in lower case only
                source = scheme + source[len(scheme) :]
        if isinstance(source, str) and re.match("https?://", source):
            source = load_image(source)
            _check_size(source, limits)
        elif isinstance(source, (str, bytes)):
            source = _open_picture(io.BytesIO(source) if isinstance(source, bytes) else _find_content(source), limits)
        return load_image(_as_8_bits(source))
    except Exception as error:  # from the HTTP client, PIL or the file system
        raise ValueError(f"the image {label} cannot be read: {hide_user(str(error))[:500]}") from error


def _as_8_bits(picture: Any) -> Any:
    """A PIL image whose pixels have 8 bits; of 16 bits (depth, X-rays) the upper 8, as FFmpeg does it for videos."""
    mode = getattr(picture, "mode", "")
    if mode in ("I", "F"):
        raise ValueError(f"its pixels are 32-bit numbers (mode {mode!r}), whose range is not known: convert it to 'L'")
    if not mode.startswith("I;16"):
        return picture
    pixels = picture.tobytes()
    upper = pixels[::2] if mode == "I;16B" else pixels[1::2]
    return importlib.import_module("PIL.Image").frombytes("L", picture.size, upper)


def _find_content(text: str) -> Any:
    """The path of a picture, or the content of one in base64."""
    if os.path.isfile(text):
        return text
    if text.startswith("data:"):
        text = text.partition(",")[2]
    elif not _BASE64.match(text):
        raise ValueError("it is a directory" if os.path.isdir(text) else "it does not exist")
    return io.BytesIO(base64.decodebytes(text.encode()))


def _open_picture(file: Any, limits: MediaLimits) -> Any:
    """A PIL image of which only the header was read."""
    size = os.path.getsize(file) if isinstance(file, str) else file.getbuffer().nbytes
    limits.check("max_file_bytes", size, "the file has more bytes")
    pictures = importlib.import_module("PIL.Image")
    pictures.init()
    picture = pictures.open(file, formats=[name for name in _FORMATS if name in pictures.OPEN])
    _check_size(picture, limits)
    return picture


def _check_size(picture: Any, limits: MediaLimits) -> None:
    what = f"the picture has {picture.width} x {picture.height} pixels"
    limits.check("max_image_pixels", picture.width * picture.height, what)


# video/video_settings.py ----------------------------------------------------------------------------------------------

"""The settings beside a video or an image in a chat, under the names of qwen-vl-utils.

    {"type": "video", "video": "talk.mp4", "fps": 2, "video_start": 10, "video_end": 20, "max_pixels": 100352}

Which frames (every family):

- `num_frames` or `nframes`: number of frames, spread evenly. `fps`: frames a second.
- `min_frames`, `max_frames`: bounds on the number of frames that `fps`, the call or the default asks for.
- `video_start`, `video_end`: seconds. Only the frames from the first to the second time, both included, are sampled.
- `video_metadata`: for decoded frames and lists of pictures, see `read_video`. `sample_fps` is short for its `fps`.

How large (families that take frames of any size, that is Qwen's; for images too, but for `total_pixels`):

- `min_pixels`, `max_pixels`: bounds on height x width of a frame. The aspect ratio stays, up to whole tokens.
- `total_pixels`: bound on the pixels of all tokens of the video. A token covers two frames, so a frame has at most
  `total_pixels / num_frames * 2` pixels.
- `resized_height`, `resized_width`: the size itself, rounded to whole tokens; both or none.

The meaning is that of qwen-vl-utils, with three differences: the number of frames is not rounded to an even one, a
bound that is not given is that of the model's processor, and settings that contradict each other are errors.
"""

# The names of `read_video`'s arguments, and of what else says which frames are wanted.
FRAME_SETTINGS = ("num_frames", "nframes", "fps", "min_frames", "max_frames", "video_start", "video_end")
IMAGE_SETTINGS = ("min_pixels", "max_pixels", "resized_height", "resized_width")
PIXEL_SETTINGS = (*IMAGE_SETTINGS, "total_pixels")
VIDEO_SETTINGS = (*FRAME_SETTINGS, "sample_fps", *PIXEL_SETTINGS)
_RATES, _TIMES = ("fps", "sample_fps"), ("video_start", "video_end")
# Settings of which one replaces the other, and what they are.
_ALTERNATIVES = (
    (("num_frames", "nframes"), "the number of frames"),
    (("num_frames", "nframes", "fps"), "how many frames are taken"),
    (("num_frames", "nframes", "min_frames"), "the number of frames"),
    (("num_frames", "nframes", "max_frames"), "the number of frames"),
    *(((side, bound), "the size of a frame") for side in IMAGE_SETTINGS[2:] for bound in IMAGE_SETTINGS[:2]),
    *(((side, "total_pixels"), "the size of a frame") for side in IMAGE_SETTINGS[2:]),
)
_FRAMES_PER_TOKEN = 2  # of qwen-vl-utils, in the meaning of `total_pixels`


def check_media_settings(settings: Mapping[str, Any]) -> None:
    """Check every setting by itself, and that no two contradict each other.

    Raises:
        ValueError: a setting is out of its range, or two exclude each other.
    """
    for name, value in settings.items():
        if name in _RATES:
            is_right = _is_number(value) and 0 < value < math.inf
            allowed = "a number > 0 (frames a second)"
        elif name in _TIMES:
            is_right = _is_number(value) and 0 <= value < math.inf
            allowed = "a number >= 0 (seconds)"
        else:
            is_right = isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1
            allowed = "an integer >= 1"
        if not is_right:
            raise ValueError(f"`{name}` must be {allowed}, got {value!r}; leave it out for the default")
    for names, what in _ALTERNATIVES:
        given = [f"`{name}` ({settings[name]!r})" for name in names if name in settings]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} both say {what}: pass only one")
    for low, high in (("min_frames", "max_frames"), ("min_pixels", "max_pixels"), _TIMES):
        if low in settings and high in settings and settings[low] > settings[high]:
            raise ValueError(
                f"`{low}` is {settings[low]!r} and `{high}` {settings[high]!r}: the first must not be greater"
            )
    sides = IMAGE_SETTINGS[2:]
    for side, other in (sides, sides[::-1]):
        if side in settings and other not in settings:
            raise ValueError(f"`{side}` is {settings[side]!r} without `{other}`: give both, or `max_pixels`")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


class PartOfVideo:
    """Chooses frames in the part of a video between two times; a `Choose` of `decoder_types.py`.

    Args:
        choose: chooses frames of a whole video: takes their number and their rate, returns ascending indices.
        start, end: seconds, both included; `None` is the start or the end of the video.
    """

    def __init__(self, choose: Callable[[int, float | None], list[int]], start: float | None, end: float | None):
        self._choose, self._start, self._end = choose, start, end
        self.share = 1.0  # how much of the video's frames the part has, once it was called

    def __call__(self, total: int, fps: float | None, times: list[float] | None = None) -> list[int]:
        """Indices of the chosen frames.

        Args:
            total: frames of the video.
            fps: their rate; `None` if it is unknown.
            times: seconds of each frame, if they are not index / fps.

        Raises:
            ValueError: the rate is unknown, or no frame lies between the two times.
        """
        if (self._start, self._end) == (None, None) or total < 1:
            return self._choose(total, fps)
        name = "video_start" if self._start is not None else "video_end"
        if not fps:
            raise ValueError(f"`{name}` needs the source's frame rate: give it in `video_metadata`, or leave it out")
        # Rates are fractions of which floats keep 16 digits: a frame at a bound belongs to the part.
        slack = 1e-6 / fps
        first, last = (self._start or 0) - slack, (math.inf if self._end is None else self._end) + slack
        inside: Sequence[int]
        if times is None:  # they ascend, and there may be very many
            places = range(total)
            inside = places[bisect_left(places, first, key=lambda place: place / fps) :]
            inside = inside[: bisect_right(inside, last, key=lambda place: place / fps)]
            ends = (0.0, (total - 1) / fps)
        else:
            inside = [index for index, second in enumerate(times) if first <= second <= last]
            ends = (times[0], times[-1])
        if not inside:
            bounds = f"`video_start` {self._start or 0!r} and `video_end` {self._end!r}"
            raise ValueError(
                f"no frame lies between {bounds} (seconds): the frames are from {ends[0]:.2f} to {ends[1]:.2f} s"
            )
        self.share = len(inside) / total
        return [inside[index] for index in self._choose(len(inside), fps)]

    def describe(self, metadata: Any) -> None:
        """Make the metadata of a video that was read whole those of the part, as qwen-vl-utils does.

        `frames_indices` stay places in the source, so that the frames keep their times. `total_num_frames` and
        `duration` become those of the part, so that `sampled_fps` is the rate of the chosen frames.
        """
        if metadata is not None and self.share != 1.0:
            metadata.total_num_frames = max(round(metadata.total_num_frames * self.share), 1)
            metadata.duration = metadata.total_num_frames / metadata.fps


def fit_size(
    height: int, width: int, settings: Mapping[str, Any], processor: Any, num_frames: int | None = None
) -> tuple[int, int]:
    """The height and width in pixels that frames or an image get by their pixel settings.

    Args:
        height, width: of the frames or the image.
        settings: some of `PIXEL_SETTINGS`, at least one.
        processor: the model's video or image processor.
        num_frames: of the video; `None` for an image.

    Returns:
        A size that the processor leaves as it is.

    Raises:
        ValueError: the processor makes every frame equally large, or allows no size with these settings.
    """
    names = " and ".join(f"`{name}` ({settings[name]!r})" for name in settings)
    kind = "image" if num_frames is None else "frame"
    if not hasattr(processor, "merge_size"):
        raise ValueError(f"{names}: this model gives every {kind} the same size. Leave the setting out.")
    unit = processor.patch_size * processor.merge_size
    least, most = _pixel_limits(processor, unit, num_frames)
    if "resized_height" in settings:
        rows, columns = (max(round(settings[side] / unit), 1) for side in ("resized_height", "resized_width"))
    else:
        low, high = settings.get("min_pixels", least), settings.get("max_pixels", most)
        if "total_pixels" in settings and num_frames:
            share = settings["total_pixels"] / num_frames * _FRAMES_PER_TOKEN
            high = min(high, max(share, low * 1.05))  # a little above `min_pixels`, as in qwen-vl-utils
        rows, columns = _fit(height / unit, width / unit, low / unit**2, high / unit**2)
    if not least <= rows * columns * unit**2 <= most:
        each = "each image" if num_frames is None else f"each of {num_frames} frames"
        raise ValueError(
            f"{names}: {height} x {width} pixels would become {rows * unit} x {columns * unit}. The model's processor "
            f"takes from {math.ceil(least)} to {math.floor(most)} pixels for {each}: choose a setting in these limits."
        )
    return rows * unit, columns * unit


def _pixel_limits(processor: Any, unit: int, num_frames: int | None) -> tuple[float, float]:
    """The least and most pixels of a frame or an image that a processor of Qwen's leaves as they are."""
    least, most = processor.size["shortest_edge"], processor.size["longest_edge"]
    is_capped, share = getattr(processor, "cap_pixels_per_frame", None), getattr(processor, "max_video_tokens", 0)
    if num_frames is None:
        return least, most
    if not any(ancestor.__name__ == "Qwen3VLVideoProcessor" for ancestor in type(processor).__mro__):
        if is_capped:  # qwen-vl-utils leaves a tenth of the context to text
            most = max(min(most, int(share * unit**2 * 0.9) * 2 // num_frames), int(least * 1.05))
        return least, most
    # Qwen3-VL's limits are for the whole video, whose number of frames it rounds to whole tokens.
    counted = max(round(num_frames / processor.temporal_patch_size), 1) * processor.temporal_patch_size
    if is_capped:
        most = max(min(share * unit**2, most // num_frames), int(least * 1.05)) * num_frames
    return least / counted, most / counted


def _fit(height: float, width: float, least: float, most: float) -> tuple[int, int]:
    """Rows and columns of tokens nearest to a size in tokens, of which there must be from `least` to `most`."""
    rows, columns = max(round(height), 1), max(round(width), 1)
    if rows * columns > most:
        scale = math.sqrt(most / (height * width))
        rows, columns = max(math.floor(height * scale), 1), max(math.floor(width * scale), 1)
    elif rows * columns < least:
        scale = math.sqrt(least / (height * width))
        rows, columns = math.ceil(height * scale), math.ceil(width * scale)
    return rows, columns


def resizing_by(settings: Mapping[str, Any], processor: Any) -> Resizing:
    """How the pixel settings of a video resize its frames: bicubic, and without aliasing as the processors do it.

    Args:
        settings: some of `PIXEL_SETTINGS`, at least one.
        processor: the model's video processor.
    """

    def size_of(num_frames: int, height: int, width: int) -> tuple[int, int]:
        return fit_size(height, width, settings, processor, num_frames)

    def resize(frame: torch.Tensor, height: int, width: int) -> torch.Tensor:
        pixels = frame.permute(2, 0, 1)[None].float()
        made = torch.nn.functional.interpolate(pixels, (height, width), mode="bicubic", antialias=True)
        return made[0].clamp(0, 255).round().to(torch.uint8).permute(1, 2, 0)

    return Resizing(size_of, resize)


# video/reading.py -----------------------------------------------------------------------------------------------------

"""Reading a video into frames, with the position of each frame in the source.

    clip = read_video("talk.mp4", num_frames=16)
    processor(text=..., videos=[clip.frames], video_metadata=[clip.metadata], do_sample_frames=False)

The returned frames are always exactly those that `metadata.frames_indices` names; otherwise an error says why. Damage
that the decoder notices, and a missing end, are errors (`decoders.py` says what each decoder can notice).

A frame's time is index / fps, as in transformers. In a file with a variable frame rate the indices are places on a
regular grid of times, so that this is true there too (`timing.py`): the frame at an index is the one that a player
shows then, and a pause repeats a frame.

Legend: T frames, H and W height and width of a frame in pixels.
"""

# Frames of a video file if neither `num_frames` nor `fps` is given. The paper evaluates LLaVA-OneVision with 32 too.
DEFAULT_NUM_FRAMES = 32


@dataclass(frozen=True)
class VideoClip:
    """A video that was read.

    Args:
        frames: an array with shape (T, H, W, 3), uint8 RGB.
        metadata: of the source; `None` if it is unknown.
        sized_by: the settings that chose the size of the frames, such as "max_pixels"; a processor must not change it.
        is_resized: whether the frames were resized to what the model's processor wants; it must not do so again.
    """

    frames: Any
    metadata: VideoMetadata | None
    sized_by: tuple[str, ...] = ()
    is_resized: bool = False


def read_video(
    video: Any,
    *,
    num_frames: int | None = None,
    fps: float | None = None,
    backend: str | None = None,
    video_metadata: VideoMetadata | Mapping[str, Any] | None = None,
    min_frames: int | None = None,
    max_frames: int | None = None,
    video_start: float | None = None,
    video_end: float | None = None,
    limits: MediaLimits | None = None,
    resizing: Resizing | None = None,
) -> VideoClip:
    """Reads and samples a video file or decoded frames.

    Args:
        video: a path, a `file://` URL, or decoded frames. The package also reads an `http(s)://` or
            `data:video/...;base64,` URL and the bytes of a file; the code of a model's folder does not. Decoded frames
            are an array or tensor with shape (T, H, W, 3) or (T, 3, H, W), uint8 or float in [0, 1], or a list of
            equally large PIL images or of such arrays without the T axis. A list of paths or URLs is one video too: its
            files are pictures, the frames.
        num_frames: number of frames, spread evenly from the first to the last; all frames if the clip has fewer. In a
            file with a variable frame rate they are spread evenly over its time.
        fps: frames for each second of the clip; at least one frame, at most all. With neither `num_frames` nor `fps`,
            a file gives up to `DEFAULT_NUM_FRAMES` evenly spread frames, and decoded frames are all kept.
        min_frames, max_frames: bounds on the number that `num_frames`, `fps` or the default gives.
        video_start, video_end: seconds; only frames between them, both included, are sampled. The rate of the source
            must be known.
        backend: the decoder for a file, one of `available_backends()`. Without it each is tried until one succeeds,
            and Pillow reads animated WebP.
        video_metadata: for decoded frames only: `fps` (which sampling by `fps` needs) and, if the frames are themselves
            a sample, `frames_indices` and `total_num_frames` of the source.
        limits: what a file must not exceed, checked before it is decoded; see `MediaLimits` for the default.
        resizing: how to resize each frame as soon as it is decoded, so that large frames take no memory. For a model
            `resizing_of(processor)`, which resizes as the processor would. `None` keeps the size of the source.

    Returns:
        `VideoClip`. Its metadata describes the source: `fps`, `total_num_frames`, `duration` (seconds), and in
        `frames_indices` the index of each returned frame. With `video_start` or `video_end` the number and the duration
        are those of the part between them, as in qwen-vl-utils; the indices stay those of the whole source. A frame is
        shown as a player would: turned or mirrored as the file says, and scaled to the size of the first one if the
        size changes.

    Raises:
        ValueError: an argument is out of range, the file is missing, empty, damaged or not a video, or it exceeds a
            limit.
    """
    limits = limits_or_default(limits)
    if num_frames is not None and fps is not None:
        raise ValueError(f"`num_frames` ({num_frames!r}) and `fps` ({fps!r}) are two ways to sample: pass only one")
    if num_frames is not None and (not isinstance(num_frames, Integral) or num_frames < 1):
        raise ValueError(f"`num_frames` must be an integer >= 1, got {num_frames!r}; leave it out for the default")
    if fps is not None and (not isinstance(fps, Real) or not 0 < fps < math.inf):
        raise ValueError(f"`fps` must be a number > 0 (frames a second), got {fps!r}; leave it out for the default")

    bounds = {"min_frames": min_frames, "max_frames": max_frames, "video_start": video_start, "video_end": video_end}
    check_media_settings({name: value for name, value in bounds.items() if value is not None})
    video = unpack_source(video)
    is_bytes = isinstance(video, (bytes, bytearray, memoryview))
    is_encoded = is_file(video)
    are_files = is_list_of_files(video)
    limits = limits if is_encoded or are_files else NO_LIMITS

    def choose_among(total: int, source_fps: float | None) -> list[int]:
        default = DEFAULT_NUM_FRAMES if is_encoded else total
        return _choose_frames(total, source_fps, num_frames, fps, default, min_frames, max_frames, limits)

    part = PartOfVideo(choose_among, video_start, video_end)
    if not is_encoded:
        plan = FramePlan(part, limits, resizing)
        frames = _Pictures(video, limits) if are_files else _as_uint8(video)
        return _take_frames(frames, video_metadata, plan, part)
    plan = FramePlan(part, limits, resizing)
    if video_metadata is not None:
        raise ValueError("`video_metadata` describes decoded frames; a video file carries its own: leave it out")
    if backend is not None and backend not in available_backends():
        hint = f"`pip install {MODULES[backend]}` provides it" if backend in BACKENDS else f"known are {[*BACKENDS]}"
        raise ValueError(f"`backend` must be one of the installed {available_backends()}, got {backend!r}; {hint}")

    text = f"<{len(video)} bytes>" if is_bytes else os.fspath(video)
    label = label_of(text)
    scheme = "bytes" if is_bytes else scheme_of(text)
    if scheme in FETCHERS:
        with FETCHERS[scheme](video, label, "video") as path:
            return _decode_file(path, label, plan, part, backend)
    if scheme in ("bytes", "data", "http", "https"):
        raise ValueError(
            f"`video` is {label}: code that a model's folder brings along reads files and decoded frames only. Save "
            "the video as a file and pass its path, or `import flashvid_hf` (the package), which reads this too."
        )
    path = file_of_url(text) if scheme == "file" else text
    if not os.path.isfile(path):
        problem = "is a directory" if os.path.isdir(path) else "does not exist"
        raise ValueError(f"`video` must be a video file, but {label} {problem}")
    return _decode_file(os.path.abspath(path), label, plan, part, backend)


def _choose_frames(
    total: int,
    source_fps: float | None,
    num_frames: int | None,
    fps: float | None,
    default: int = DEFAULT_NUM_FRAMES,
    min_frames: int | None = None,
    max_frames: int | None = None,
    limits: MediaLimits = NO_LIMITS,
) -> list[int]:
    if total < 1:
        raise ValueError("it has no video frames")
    wanted = num_frames or min(default, total)
    if fps is not None:
        if not source_fps:
            raise ValueError("`fps` needs the source's frame rate: give it in `video_metadata`, or pass `num_frames`")
        wanted = max(1, int(total / source_fps * fps))
    wanted = max(wanted, min(min_frames or 1, total))
    wanted = min(wanted, max_frames or wanted)
    if wanted > total:
        logger.warning_once(f"{wanted} frames were asked for, but the video has {total}: all of them are taken")
        wanted = total
    limits.check("max_file_frames", wanted, "more frames are to be taken")
    if fps is not None:  # as in transformers: the starts of `wanted` equal parts, step = source_fps / fps
        return [i * total // wanted for i in range(wanted)]
    step = (total - 1) / max(wanted - 1, 1)
    return [round(i * step) for i in range(wanted)]


def _decode_file(path: str, label: str, plan: FramePlan, part: PartOfVideo, backend: str | None) -> VideoClip:
    size = os.path.getsize(path)
    if size == 0:
        raise ValueError(f"the video {label} is empty (0 bytes)")
    try:
        plan.limits.check("max_file_bytes", size, "the file has more bytes")
    except TooLarge as error:
        raise ValueError(f"the video {label} cannot be read: {error}") from error
    readers = {name: BACKENDS[name] for name in ([backend] if backend else available_backends())}
    if is_animated_webp(path):
        if backend:
            raise ValueError(f"the video {label} is an animated WebP, which {backend} cannot read: leave out `backend`")
        readers = {"pillow": read_animated_webp}
    reasons = []
    for name, read in readers.items():
        try:
            frames, indices, total, fps = read(path, plan)
            if len(frames) != len(indices):
                raise ValueError(f"{len(indices)} frames were asked for, {len(frames)} could be decoded")
            frames = plan.collect(frames).numpy()
            height, width = plan.source_size or frames.shape[1:3]
        except Refused as error:
            raise ValueError(f"the video {label} cannot be read: {error}") from error
        except Exception as error:  # each decoder raises exceptions of its own
            reason = str(error).replace(path, "the file")  # the path may be that of a copy
            reason = re.sub(r"\[[\d:]+\] \S+:\d+: ", "", reason)  # decord's text begins with a place in its sources
            reasons.append(f"{name}: {' '.join(reason.split())[:200] or type(error).__name__}")
            if isinstance(error, DamagedVideo):
                reasons[-1] += "; repair the file, or name another, less strict `backend`"
            if isinstance(error, (DamagedVideo, NoVideo)):
                break
        else:
            fps = float(fps) if fps else None
            duration = total / fps if fps else None
            metadata = VideoMetadata(total, fps, width, height, duration, name, indices)
            part.describe(metadata)
            return VideoClip(frames, metadata, is_resized=plan.resizes)
    why = "; ".join(reasons) or "no decoder is installed; `pip install av` provides one"
    raise ValueError(f"the video {label} cannot be read: {why}")


class _Pictures:
    """The frames of a video that are the pictures of some files. Each is read when it is asked for."""

    def __init__(self, files: Sequence[Any], limits: MediaLimits):
        self._files, self._limits = files, limits
        self._shapes: set[tuple[int, ...]] = set()

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> torch.Tensor:
        frame = _as_tensor(load_picture(self._files[index], limits=self._limits))
        self._shapes.add(tuple(frame.shape))
        _check_shapes(self._shapes)
        return frame


def _take_frames(
    frames: Any, video_metadata: Mapping[str, Any] | None, plan: FramePlan, part: PartOfVideo
) -> VideoClip:
    """The chosen ones of some frames, each an array or tensor with shape (H, W, 3), uint8."""

    def take(indices: list[int]) -> Any:
        try:
            return plan.collect([plan.keep(frames[index]) for index in indices]).numpy()
        except Refused as error:
            raise ValueError(str(error)) from error

    total = len(frames)
    if video_metadata is None:
        return VideoClip(take(plan.choose(total, None)), None, is_resized=plan.resizes)
    given = {key: value for key, value in dict(video_metadata).items() if value is not None}
    places = given.get("frames_indices", range(given.get("total_num_frames", total)))
    if len(places) != total:
        raise ValueError(
            f"`video_metadata` speaks of {len(places)} frames, but {total} came: if they are a sample, give the place "
            "of each in its source as `frames_indices`"
        )
    try:
        source = VideoMetadata(**{"total_num_frames": total, **given, "frames_indices": list(places)})
    except TypeError as error:
        raise ValueError(f"`video_metadata` must have the fields of transformers' VideoMetadata: {error}") from error
    times = [place / source.fps for place in places] if source.fps else None
    indices = plan.choose(total, source.fps and source.sampled_fps, times)
    taken = take(indices)
    height, width = plan.source_size
    source.update({"height": height, "width": width, "frames_indices": [int(places[i]) for i in indices]})
    if source.fps and source.duration is None:
        source.duration = source.total_num_frames / source.fps
    part.describe(source)
    return VideoClip(taken, source, is_resized=plan.resizes)


def _as_uint8(video: Any) -> Any:
    """Decoded frames in any accepted form, as an array with shape (T, H, W, 3), uint8."""
    if isinstance(video, (list, tuple)) and len(video) > 0:
        tensors = [_as_tensor(frame) for frame in video]
        _check_shapes({tuple(tensor.shape) for tensor in tensors})
        frames = torch.stack(tensors)
    else:
        frames = _as_tensor(video)
    if frames.ndim == 4 and frames.shape[1] == 3 and frames.shape[3] != 3:
        frames = frames.permute(0, 2, 3, 1)
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.numel() == 0:
        raise ValueError(
            "`video` must have shape (T, H, W, 3) or (T, 3, H, W) and at least one frame, got "
            f"{tuple(frames.shape)}; add the time axis to a single frame with `frame[None]`"
        )
    if frames.is_floating_point():
        low, high = frames.min().item(), frames.max().item()
        if not (low >= 0 and high <= 1):  # also where one is NaN
            raise ValueError(f"float frames in `video` must lie in [0, 1], got [{low}, {high}]: rescale, or pass uint8")
        frames = (frames * 255).round().to(torch.uint8)
    if frames.dtype != torch.uint8:
        raise ValueError(f"`video` must be uint8 or float in [0, 1], got {frames.numpy().dtype}: convert it to uint8")
    return frames.contiguous().numpy()


def _check_shapes(shapes: set[tuple[int, ...]]) -> None:
    if len(shapes) > 1:
        raise ValueError(f"the frames of `video` must be equally large, got shapes {sorted(shapes)}: resize them first")


def _as_tensor(frames: Any) -> torch.Tensor:
    if isinstance(frames, torch.Tensor):
        frames = frames.detach().cpu()
        return frames.float() if frames.is_floating_point() else frames
    if is_pil_image(frames):
        picture = load_picture(frames)
        return torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(picture.height, picture.width, 3)
    if not hasattr(frames, "__array_interface__"):
        raise ValueError(
            "`video` must be a path, a URL, bytes, an array, a tensor, or a list of PIL images or arrays, "
            f"got {type(frames).__name__}: decode or convert it first"
        )
    try:  # torch warns of arrays that are not writeable: copy them
        return torch.from_numpy(frames if frames.flags.writeable else frames.copy())
    except (TypeError, ValueError) as error:  # an array without numbers, or with negative strides
        if frames.dtype.kind in "uif":
            return torch.from_numpy(frames.copy())
        raise ValueError(
            f"`video` must be uint8 or float in [0, 1], got {frames.dtype}: convert it to uint8"
        ) from error


# video/message_parts.py -----------------------------------------------------------------------------------------------

"""Reading the videos and images of a chat, with the settings that stand beside them.

The pipeline, `serve` and the processors all read the parts of messages here.
"""

# Keys beside the source that never change an answer: names that programs give to parts.
LABELS = ("type", "id", "uuid")
_ARTICLES = {"video": "a", "image": "an"}
# Keys under which the source may stand.
IMAGE_SOURCES, VIDEO_SOURCES = ("image", "path", "url", "base64"), ("video", "path", "url")


@dataclass(frozen=True)
class Picture:
    """An image that was read.

    Args:
        image: a PIL image.
        sized_by: the settings that chose its size, such as "max_pixels"; a processor must not change it.
    """

    image: Any
    sized_by: tuple[str, ...] = ()


def read_video_part(
    part: Mapping[str, Any],
    sampling: Mapping[str, Any],
    processor: Any,
    limits: MediaLimits | None = None,
    resize: bool = True,
) -> VideoClip:
    """The video that a part of a message names, with the settings beside it.

    Args:
        part: `{"type": "video", "video": ...}` or with "path" or "url", and any of `VIDEO_SETTINGS` and
            "video_metadata". Keys whose value is `None` are left out, as rows of a data set have them.
        sampling: arguments of `read_video` for all videos. Those beside the video replace them.
        processor: the model's processor, which says how large the frames have to be.
        limits: what a file must not exceed; `None` for the default.
        resize: whether the frames get the size that the processor gives them; a processor that is called with settings
            of its own does so itself. `PIXEL_SETTINGS` beside the video always resize.

    Raises:
        ValueError: the part has no source or two, a key that is unknown, or a setting that is out of range or that the
            model cannot honour; or the video cannot be read.
    """
    source, given = _split(part, "video", VIDEO_SOURCES, (*VIDEO_SETTINGS, "video_metadata"))
    metadata = given.pop("video_metadata", None)
    check_media_settings(given)
    source = unpack_source(source)
    if "sample_fps" in given:
        if is_file(source):
            raise ValueError(
                f"`sample_fps` is {given['sample_fps']!r}: it is the rate of decoded frames or of a list of pictures, "
                "and a video file has its own. Leave it out; `fps` chooses frames."
            )
        if metadata is not None:
            raise ValueError("`sample_fps` and `video_metadata` both say the rate of the frames: pass only one")
        metadata = {"fps": given.pop("sample_fps")}
    own = {"num_frames" if name == "nframes" else name: given[name] for name in FRAME_SETTINGS if name in given}
    if own.keys() & {"num_frames", "fps"}:
        sampling = {}
    pixels = {name: given[name] for name in PIXEL_SETTINGS if name in given}
    if pixels:
        resizing = resizing_by(pixels, _part_of(processor, "video"))
    else:
        resizing = resizing_of(processor) if resize else None
    clip = read_video(source, video_metadata=metadata, limits=limits, resizing=resizing, **{**sampling, **own})
    return replace(clip, sized_by=tuple(pixels))


def read_image_part(part: Mapping[str, Any], processor: Any, limits: MediaLimits | None = None) -> Picture:
    """The image that a part of a message names, with the settings beside it.

    Args:
        part: `{"type": "image", "image": ...}` or with "path", "url" or "base64", and any of `IMAGE_SETTINGS`.
        processor: the model's processor; it is needed for the settings only.
        limits: what a file must not exceed; `None` for the default.

    Raises:
        ValueError: as of `read_video_part`.
    """
    source, pixels = _split(part, "image", IMAGE_SOURCES, IMAGE_SETTINGS)
    check_media_settings(pixels)
    image = load_picture(source, limits_or_default(limits))
    if not pixels:
        return Picture(image)
    height, width = fit_size(image.height, image.width, pixels, _part_of(processor, "image"))
    if (image.height, image.width) != (height, width):
        image = image.resize((width, height), resample=3)  # bicubic, and without aliasing as PIL does it
    return Picture(image, tuple(pixels))


def _split(
    part: Mapping[str, Any], kind: str, sources: tuple[str, ...], settings: Iterable[str]
) -> tuple[Any, dict[str, Any]]:
    """The source of a part, and its settings."""
    given = {key: value for key, value in part.items() if value is not None and key not in LABELS}
    found = {key: given.pop(key) for key in sources if key in given}
    if not found:
        *others, last = (f"'{key}'" for key in sources)
        raise ValueError(
            f"A part of a message has type {kind!r} but no {kind}: give it one under {', '.join(others)} or {last}."
        )
    if len(found) > 1:
        raise ValueError(f"A part of a message has the {kind} twice, under {' and '.join(found)}: give it once.")
    known = tuple(settings)
    for key in sorted(given.keys() - set(known), key=str):
        raise ValueError(
            f"`{key}` beside {_ARTICLES[kind]} {kind} is {given[key]!r:.100}: no such setting is known. Choose from "
            f"{', '.join(known)}, or leave it out."
        )
    return next(iter(found.values())), given


def _part_of(processor: Any, kind: str) -> Any:
    return getattr(processor, f"{kind}_processor", None)


def fill_grids(clips: list[VideoClip], processor: Any) -> list[VideoClip]:
    """The clips for a processor, each with metadata of its own, which upstream's processors change.

    Qwen's processors encode `temporal_patch_size` frames together. A shorter clip repeats its last frame at the same
    time. Qwen2.5-VL's processor does so itself, Qwen3-VL's refuses one frame.
    """
    least = getattr(_part_of(processor, "video"), "temporal_patch_size", None) or 1
    filled = []
    for clip in clips:
        number = len(clip.frames)
        metadata = VideoMetadata(**(clip.metadata or VideoMetadata(number)))
        repeats = max(least - number, 0)
        indices = list(range(number) if metadata.frames_indices is None else metadata.frames_indices)
        metadata.frames_indices = indices + indices[-1:] * repeats
        frames = clip.frames[[*range(number), *[-1] * repeats]] if repeats else clip.frames
        filled.append(replace(clip, frames=frames, metadata=metadata))
    return filled


def check_sizes(inputs: Mapping[str, Any], clips: list[VideoClip], pictures: list[Picture], processor: Any) -> None:
    """Check that the processor left the size of every video and image whose part had pixel settings.

    Args:
        inputs: what the processor made of them.
        clips, pictures: in the order of the prompts.

    Raises:
        ValueError: it resized one, so that the settings were not honoured.
    """
    # Images without settings may be arrays, in any layout that upstream takes: only those with settings are compared.
    sized = {i: (clip.sized_by, clip.frames.shape[1:3]) for i, clip in enumerate(clips) if clip.sized_by}
    _compare("video", sized, inputs.get("video_grid_thw"), _part_of(processor, "video"))
    sized = {i: (p.sized_by, (p.image.height, p.image.width)) for i, p in enumerate(pictures) if p.sized_by}
    _compare("image", sized, inputs.get("image_grid_thw"), _part_of(processor, "image"))


def _compare(kind: str, sized: dict[int, tuple[tuple[str, ...], Any]], grids: Any, processor: Any) -> None:
    for number, (names, size) in sized.items():
        made = [side * processor.patch_size for side in torch.as_tensor(grids[number]).tolist()[1:]]
        if made != list(size):
            raise ValueError(
                f"`{'` and `'.join(names)}` beside {_ARTICLES[kind]} {kind}: it became {size[0]} x {size[1]} "
                f"pixels, and the model's processor made {made[0]} x {made[1]} of them. Choose a size within its "
                "limits."
            )


# video/pipeline_flashvid.py -------------------------------------------------------------------------------------------

"""`pipeline("video-text-to-text")`: ask a model about video files, decoded frames or chats."""

TASK = "video-text-to-text"
# Frames of more bytes are processed on the CPU, because processing takes many times their size in memory.
_MOST_BYTES_ON_GPU = 512 * 2**20
# An entry of the configuration: `pipeline` finds the class below by it in a folder with code.
CUSTOM_PIPELINES = {
    TASK: {
        "impl": "pipeline_flashvid.VideoTextToTextPipeline",
        "pt": ["AutoModelForImageTextToText"],
        "type": "multimodal",
    }
}


@dataclass(frozen=True)
class _Request:
    """One conversation with its videos and images read, and the seconds that reading them took."""

    messages: list[dict[str, Any]]
    clips: list[VideoClip]
    pictures: list[Picture]
    seconds: float


def generate_arguments(pipeline: Any, generate_kwargs: dict[str, Any], **overrides: Any) -> dict[str, Any]:
    """A pipeline's arguments for `generate`: its generation settings, then those of the call, then `overrides`."""
    if hasattr(pipeline, "_prepare_generate_kwargs"):  # transformers 5.20 and later
        return pipeline._prepare_generate_kwargs(generate_kwargs, **overrides)
    return {"generation_config": pipeline.generation_config, **generate_kwargs, **overrides}


class VideoTextToTextPipeline(Pipeline):
    """Answers questions about videos.

    ```python
    pipe = pipeline("video-text-to-text", model="path/or/id", trust_remote_code=True)
    pipe("clip.mp4", text="What happens?", num_frames=32, max_new_tokens=64)
    ```

    Each answer is a list with one dictionary for every returned sequence:

    - `generated_text`: the new text;
    - `video_tokens`: how many video tokens the prompt had (`total`), how many `entered` the language model and how many
      `remained` in its upper layers. The three numbers are equal if the model does not compress;
    - `seconds`: wall-clock time of each stage: `decode` (reading and resizing the videos of this input, and reading its
      images), `preprocess` (template, tokenizer, normalising of the frames) and `generate` (including the conversion of
      the new ids to text). If a video was compressed, `vision`, `compression` and `prefill` stand between them; these
      are stages of `generate`. The inputs of a batch share every stage but `decode`, so each answer has the time of the
      whole batch. A GPU runs asynchronously: work that `preprocess` has only started there counts as `generate`.

    Frames get the size that the model wants as soon as they are decoded. If the model is on a CUDA device, these 8-bit
    frames are copied to the device and normalised there, unless they take more than 512 MiB. Rounding may differ from
    the CPU's.
    """

    _load_processor = True
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False
    _pipeline_calls_generate = True
    _default_generation_config = GenerationConfig(max_new_tokens=256)

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if not hasattr(self.model.config, "retention_ratio"):
            logger.warning_once(
                f"`{type(self.model).__name__}` is no FlashVID model: the pipeline runs it, but nothing is compressed."
            )

    def __call__(self, videos: Any = None, text: str | list | None = None, **kwargs: Any):
        """Answer one question or many.

        Args:
            videos: what `read_video` takes: a path, a URL, or decoded frames; or a list of such videos. Or, without
                `text`, a chat (a list of messages whose content has parts like `{"type": "video", "path": ...}`), a
                list of chats, dictionaries with "video" and "text", or a generator or dataset of any of these. A
                `datasets.Dataset` has rows with "video" and "text"; one that streams counts as a generator.
            text: the question; a list of as many questions as videos; or one or more chats.
            num_frames, fps: how to sample the frames of a file, see `read_video`. Settings beside a video, in its part
                of a chat or in its dictionary, replace them: `fps`, `nframes`, `video_start`, `max_pixels` and the
                others of `video_settings.py`, named as in qwen-vl-utils.
            limits: what a video or an image must not exceed, see `MediaLimits`.
            batch_size: number of inputs that run together.
            num_workers: number of processes that read the videos of the next inputs while the model runs; 1 for a
                generator.
            kwargs: arguments of `generate`, such as `max_new_tokens` or `streamer`.

        Returns:
            The answer, a list of dictionaries; a list of answers for a list of inputs.

        Raises:
            ValueError: a video cannot be read, a setting cannot be honoured, or the inputs do not fit together.
        """
        if videos is None and text is None:
            raise ValueError("`videos` and `text` are both None: pass a video and a question, or a chat.")
        videos, text = _rows(videos), _rows(text)
        if any(isinstance(given, (list, tuple)) and len(given) == 0 for given in (videos, text)):
            raise ValueError("The list of inputs is empty: pass at least one video and question, or one chat.")
        if text is None:
            if isinstance(videos, FILE_TYPES) or _is_list_of_videos(videos):
                raise ValueError(f"`text` is None and `videos` is {videos!r:.200}: pass the question as `text=`.")
            return super().__call__(videos, **kwargs)
        if videos is None:
            return super().__call__(text, **kwargs)
        questions = [text] if isinstance(text, str) else text
        if not isinstance(questions, (list, tuple)) or not all(isinstance(question, str) for question in questions):
            raise ValueError(
                f"`text` is {text!r:.200}: with `videos` it must be a question or a list of questions. Put the video "
                "into the chat to pass a chat."
            )
        if not _is_list_of_videos(videos):
            if isinstance(text, str):
                return super().__call__({"video": videos, "text": text}, **kwargs)
            videos = [videos] * len(questions)
        elif isinstance(text, str):
            questions = [text] * len(videos)
        if len(questions) != len(videos):
            raise ValueError(
                f"`text` has {len(questions)} questions and `videos` {len(videos)} videos: pass as many of one as of "
                "the other, or a single one."
            )
        return super().__call__([{"video": v, "text": t} for v, t in zip(videos, questions, strict=True)], **kwargs)

    def _sanitize_parameters(
        self,
        num_frames: int | None = None,
        fps: float | None = None,
        limits: MediaLimits | None = None,
        generate_kwargs: dict | None = None,
        **kwargs: Any,
    ):
        # `num_frames` in a call replaces an `fps` that the pipeline was made with, and the other way round.
        sampling: dict[str, Any] = {}
        if (num_frames, fps) != (None, None):
            sampling = {"num_frames": num_frames, "fps": fps}
        if limits is not None:
            sampling["limits"] = limits
        twice = sorted(kwargs.keys() & (generate_kwargs or {}).keys())
        if twice:
            raise ValueError(f"`{twice[0]}` is given twice, by itself and in `generate_kwargs`: pass it once.")
        return sampling, {**(generate_kwargs or {}), **kwargs}, {}

    def preprocess(self, inputs: Any, limits: MediaLimits | None = None, **sampling: Any) -> dict[str, _Request]:
        clips, pictures, messages, seconds = [], [], [], 0.0
        for message in _to_messages(inputs):
            content = message["content"]
            if isinstance(content, str):  # some templates read text from parts only, and would drop it
                content = [{"type": "text", "text": content}]
            parts = []
            for part in content:
                if part.get("type") not in ("video", "image", "text"):
                    raise ValueError(
                        f"A part of a message has the type {part.get('type')!r}: it must be 'video', 'image' or "
                        f"'text'. Its keys are {sorted(part)}."
                    )
                start = time.perf_counter()
                if part["type"] == "video":
                    clips.append(read_video_part(part, sampling, self.processor, limits))
                elif part["type"] == "image":
                    pictures.append(read_image_part(part, self.processor, limits=limits))
                seconds += time.perf_counter() - start
                parts.append({"type": part["type"]} if part["type"] in ("video", "image") else part)
            messages.append({**message, "content": parts})
        return {"request": _Request(messages, clips, pictures, seconds)}

    def _forward(self, model_inputs: dict[str, Any], **generate_kwargs: Any) -> dict[str, list]:
        request = model_inputs["request"]
        requests = request if isinstance(request, list) else [request]
        start = time.perf_counter()
        inputs = self._process(requests).to(self.device)
        processed = time.perf_counter()
        generate_kwargs = generate_arguments(self, generate_kwargs, return_dict_in_generate=True)
        outputs = self.model.generate(**inputs, **generate_kwargs)
        new = outputs.sequences[:, inputs["input_ids"].shape[1] :]
        texts = self.processor.batch_decode(new, skip_special_tokens=True)
        generated = time.perf_counter()
        report = getattr(outputs, "report", None)
        stages = {
            "preprocess": processed - start,
            **(report.seconds if report is not None else {}),
            "generate": generated - processed,
        }
        tokens = self._count_tokens(inputs["input_ids"], report, len(new))
        each = len(new) // len(requests)  # `num_return_sequences`
        answers = [
            {
                "generated_text": text,
                "video_tokens": counts,
                "seconds": {"decode": requests[i // each].seconds, **stages},
            }
            for i, (text, counts) in enumerate(zip(texts, tokens, strict=True))
        ]
        grouped = [answers[i * each : (i + 1) * each] for i in range(len(requests))]
        return {"answers": grouped if isinstance(request, list) else grouped[0]}

    def postprocess(self, model_outputs: dict[str, list]) -> list[dict[str, Any]]:
        return model_outputs["answers"]

    def _process(self, requests: list[_Request]):
        """The model's inputs for these conversations, padded on the left."""
        prompts = [
            self.processor.apply_chat_template(request.messages, add_generation_prompt=True, tokenize=False)
            for request in requests
        ]
        clips = [clip for request in requests for clip in request.clips]
        pictures = [picture for request in requests for picture in request.pictures]
        media = media_arguments(clips, [picture.image for picture in pictures], self.device, self.processor)
        inputs = self.processor(text=prompts, padding=True, padding_side="left", **media)
        check_sizes(inputs, clips, pictures, self.processor)
        return convert_to_tensors(inputs, "pt")

    def _count_tokens(self, input_ids: torch.Tensor, report: Any, num_sequences: int) -> list[dict[str, int]]:
        """Video tokens of every returned sequence at each stage. Upstream models have no report and keep all."""
        if report is None:
            totals = (input_ids == self.model.config.video_token_id).sum(-1).tolist()
            stages = [(total, total, total) for total in totals]
        else:
            expanded = report.num_samples // len(input_ids)  # every beam is a row
            stages = [report.of_sample(row * expanded) for row in range(len(input_ids))]
        each = num_sequences // len(input_ids)
        counts = [dict(zip(("total", "entered", "remained"), of_row, strict=True)) for of_row in stages]
        return [counts[i // each] for i in range(num_sequences)]


def media_arguments(clips: list[VideoClip], images: list[Any], device: torch.device, processor: Any) -> dict[str, Any]:
    """The processor's arguments besides the text: videos, images, and the device that resizes them.

    Args:
        device: of the model. It resizes only if it is a CUDA device: others may not support resizing with antialiasing.
        processor: the model's processor, which gets the arguments.
    """
    media: dict[str, Any] = {}
    if clips:
        filled = fill_grids(clips, processor)
        media["videos"] = [clip.frames for clip in filled]
        media["video_metadata"] = [clip.metadata for clip in filled]
        media["do_sample_frames"] = False  # already sampled; without metadata upstream would assume 24 fps
        if all(clip.is_resized for clip in clips):
            media["videos_kwargs"] = {"do_resize": False}
    if images:
        media["images"] = images
    if media:
        fits = sum(clip.frames.nbytes for clip in clips) <= _MOST_BYTES_ON_GPU
        media["device"] = device if device.type == "cuda" and fits else "cpu"
    return media


class _Rows(torch.utils.data.Dataset):
    """The rows of a `datasets.Dataset`, which transformers' pipelines do not take for a data set."""

    def __init__(self, rows: Any):
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        return self._rows[index]


def _rows(inputs: Any) -> Any:
    """A data set of the library `datasets` in a form that transformers goes through, a column of one as a list."""
    if type(inputs).__module__.partition(".")[0] != "datasets":
        return inputs
    if not hasattr(inputs, "column_names"):
        return list(inputs)
    return _Rows(inputs) if hasattr(inputs, "__len__") else (row for row in inputs)


def _is_list_of_videos(videos: Any) -> bool:
    """Whether this is a list of files or of whole clips. A list of frames (pictures or 3D arrays) is one video."""
    if not isinstance(videos, (list, tuple)) or not videos:
        return False
    first = videos[0]
    if isinstance(first, (list, tuple)):  # a list of frames is a video; a list of messages is a chat
        return not (first and isinstance(first[0], dict))
    return isinstance(first, FILE_TYPES) or getattr(first, "ndim", 0) == 4


def _to_messages(inputs: Any) -> list[dict[str, Any]]:
    """The messages of one input, in any form that `__call__` takes."""
    if hasattr(inputs, "messages"):  # upstream's own wrapper of a chat
        return inputs.messages
    if isinstance(inputs, dict):
        inputs = {key: value for key, value in inputs.items() if value is not None}
        known = {"video", "text", "video_metadata", *VIDEO_SETTINGS}
        if isinstance(inputs.get("text"), str) and inputs.keys() <= known:
            video = {key: value for key, value in inputs.items() if key != "text"}
            text = {"type": "text", "text": inputs["text"]}
            return [{"role": "user", "content": [{"type": "video", **video}, text] if video else [text]}]
        if inputs.keys() == {"messages"}:  # a row of a data set of chats
            return _to_messages(inputs["messages"])
    if isinstance(inputs, str):
        return [{"role": "user", "content": [{"type": "text", "text": inputs}]}]
    if isinstance(inputs, (list, tuple)) and inputs and isinstance(inputs[0], dict) and "role" in inputs[0]:
        return list(inputs)
    keys = f" with the keys {sorted(map(str, inputs))}" if isinstance(inputs, dict) else ""
    raise ValueError(
        f"The input is a `{type(inputs).__name__}`{keys}: pass a video with `text=`, a chat, or a dictionary with "
        "'video' and 'text' (of a data set `select_columns(['video', 'text'])`)."
    )
