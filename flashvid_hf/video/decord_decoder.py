"""Video files by decord."""

import importlib
import re

from .decoder_types import Decoded, NoVideo
from .frame_plan import FramePlan
from .sample_counts import check_sample_counts
from .timing import make_timeline
from .whole_files import container_of, quicktime_boxes

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
