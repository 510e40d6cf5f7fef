"""Animated WebP by Pillow: FFmpeg reads only pictures that stand still. PyAV reads GIF and animated PNG."""

import importlib
from itertools import accumulate

import torch

from .decoder_types import DamagedVideo, Decoded
from .frame_plan import FramePlan
from .limits import MediaLimits
from .timing import make_timeline
from .whole_files import announced_size

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
