"""The decoders of video files: which frames of a file are wanted, and how each decoder gets exactly those.

PyAV comes first: it decodes only what lies between a wanted frame and the keyframe before it, and lets each frame's
timestamp and damage flag be checked. decord is tried where PyAV cannot read a file. decord is exact in MP4 and
QuickTime, in one pass from the start. After a seek it returns neighbouring frames in MPEG-TS, MPEG-PS, AVI and
open-GOP video, which x265 writes by default.

Not every format lets damage be noticed. Damaged picture data that decodes to some other picture passes with every
decoder: seldom in H.264, AV1, MPEG-2 and MPEG-4 of plain pictures, more often in noisy ones and in HEVC, VP9 and Motion
JPEG, mostly in VP8 and GIF.
"""

import importlib
import importlib.util
import math
import os
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from itertools import accumulate, islice
from typing import Any

import torch

MAX_FRAMES_IN_ONE_PASS = 3000

Choose = Callable[[int, float | None], list[int]]  # frames in the source, its fps -> ascending indices of those wanted
# Wanted frames, each an array or tensor with shape (H, W, 3), uint8; their indices; frames in the source; its fps.
Decoded = tuple[Any, list[int], int, float | None]


class DamagedVideo(ValueError):
    """The file opens but is damaged. Another decoder would only hide that, so none is tried."""


def _read_pyav(path: str, choose: Choose) -> Decoded:
    # Not transformers' reader: that takes the frame count from the header (0 in Matroska, WebM, MPEG-TS, fragmented
    # MP4), ignores rotation and decodes every frame. Here the packets' timestamps tell which frames exist, without
    # decoding; each wanted frame is reached from the keyframe before it, and must carry its timestamp.
    av = importlib.import_module("av")
    with av.open(path) as container:
        if not container.streams.video:
            raise ValueError("no video stream can be found in it")
        try:
            return _decode_pyav(av, container, path, choose)
        except av.error.InvalidDataError as error:  # after the opening: what stands inside
            raise DamagedVideo(f"it is damaged: {error}") from error


def _decode_pyav(av: Any, container: Any, path: str, choose: Choose) -> Decoded:
    stream = container.streams.video[0]
    fps = float(stream.average_rate or stream.guessed_rate or 0) or None
    packets, end, is_intact = [], 0.0, True  # packets: timestamp, starts a decoding, is not shown (edit list)
    for packet in container.demux():
        if packet.size == 0 and packet.dts is None:  # end-of-stream marker
            continue
        if packet.pts is not None and packet.time_base:  # of all streams: the header's duration is the longest's
            end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream.index == stream.index:
            packets.append((packet.pts, packet.is_keyframe, packet.is_discard))
            is_intact = is_intact and not packet.is_corrupt
    expected, duration = stream.frames, (container.duration or 0) / 1e6  # microseconds
    is_short = len(packets) < expected or end + 1 < duration or os.path.getsize(path) < _announced_size(path)
    if is_short or not is_intact:
        found = f"{len(packets)} of {expected or '?'} packets, {end:.1f} of {duration:.1f} seconds"
        raise DamagedVideo(f"it is damaged or cut short, found {found}")
    times = [time for time, _, is_hidden in packets if not is_hidden]
    if None not in times and len(set(times)) == len(times):
        indices, shown = choose(len(times), fps), sorted(times)
        frames = _seek_pyav(container, stream, [shown[i] for i in indices], packets)
        if frames is not None:
            return frames, indices, len(times), fps
    # The packets' timestamps are missing or not those of the frames (raw streams, AVI): decode to count, then to keep.
    total = sum(1 for _ in _iterate_pyav(av, path))
    # Where each packet is a frame; VP8 has some that are only drawn from. Matroska gives frames before a cut no time.
    timed = sum(time is not None for time in times)
    if total < timed and _container(path) and stream.codec_context.name != "vp8":
        raise DamagedVideo(f"it is damaged: {timed} packets hold {total} frames")
    indices = choose(total, fps)
    decoded = islice(_iterate_pyav(av, path), indices[-1] + 1)
    return [_pyav_frame(frame) for i, frame in enumerate(decoded) if i in indices], indices, total, fps


def _seek_pyav(
    container: Any, stream: Any, wanted: list[int], packets: list[tuple[int | None, bool, bool]]
) -> list[torch.Tensor] | None:
    """Frames at the ascending timestamps `wanted`, or None if seeking does not lead to them and all that precede them.

    The next keyframe before a frame is where its decoding starts.
    """
    shown = sorted(time for time, _, is_hidden in packets if not is_hidden and time is not None)
    keys = sorted(time for time, is_key, _ in packets if is_key and time is not None)
    # A frame may be drawn from later ones that are decoded before it: those must be undamaged too.
    coded = [time for time, *_ in packets if time is not None]
    sources = dict(zip(coded, accumulate(coded, max), strict=True))
    stream.thread_type = "AUTO"
    frames: dict[int, torch.Tensor] = {}
    targets, seen = set(wanted), set()
    decoder: Iterator[Any] = iter(())
    now: float = -math.inf
    for moment in wanted:
        key = keys[max(bisect_right(keys, moment) - 1, 0)] if keys else moment
        if key > now:  # a keyframe lies between: jump to it instead of decoding up to it
            container.seek(key, stream=stream)
            decoder, now = container.decode(stream), -math.inf
        while now < sources[moment]:
            frame = next(decoder, None)
            if frame is None:
                break
            now = -math.inf if frame.pts is None else frame.pts
            if now < key:  # from before the jump, and drawn from what was jumped over
                continue
            if frame.is_corrupt:
                raise DamagedVideo(f"it is damaged at {frame.time:.2f} s")
            seen.add(now)
            if now in targets:
                frames[int(now)] = _pyav_frame(frame)
        if now < sources[moment] or not seen.issuperset(shown[bisect_left(shown, key) : bisect_right(shown, moment)]):
            return None
    return [frames[moment] for moment in wanted]


def _iterate_pyav(av: Any, path: str) -> Iterator[Any]:
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for index, frame in enumerate(container.decode(stream)):
            if frame.is_corrupt:
                raise DamagedVideo(f"it is damaged at frame {index}")
            yield frame


def _pyav_frame(frame: Any) -> torch.Tensor:
    # Phones store portrait video lying on its side, with the turn beside it (degrees, counter-clockwise; av >= 14.1).
    return torch.rot90(torch.as_tensor(frame.to_ndarray(format="rgb24")), round(frame.rotation / 90))


def _read_decord(path: str, choose: Choose) -> Decoded:
    # Not transformers' reader: its `get_batch` seeks, and misses by some frames in open-GOP video. One pass is exact.
    if _container(path) != "quicktime":
        raise ValueError("this decoder finds the right frames only in MP4 and QuickTime")
    if any(kind == b"moof" for kind, _ in _boxes(path)):
        raise ValueError("it is fragmented, and decord may lose its first frames")
    decord = importlib.import_module("decord")
    # Without `fault_tol` decord puts a copy of the nearest frame in the place of one that it cannot decode.
    reader = decord.VideoReader(path, ctx=decord.cpu(0), fault_tol=1e-9)
    if len(reader) and reader.get_frame_timestamp(0)[0] < 0:  # decord counts what the edit list discards
        raise ValueError("its edit list drops frames, which decord miscounts")
    fps = float(reader.get_avg_fps()) or None
    indices = choose(len(reader), fps)
    if indices[-1] >= MAX_FRAMES_IN_ONE_PASS:
        raise ValueError(f"this decoder is exact only in one pass, which is slow after {MAX_FRAMES_IN_ONE_PASS} frames")
    frames = (reader.next() for _ in range(indices[-1] + 1))
    # A program that has set one of decord's bridges gets tensors instead of decord's own arrays.
    arrays = (frame.asnumpy if hasattr(frame, "asnumpy") else frame.numpy for frame in frames)
    return [array() for i, array in enumerate(arrays) if i in indices], indices, len(reader), fps


def _container(path: str) -> str | None:
    """ "quicktime" (MP4 and MOV), "matroska" (MKV and WebM) or None, by the first bytes."""
    with open(path, "rb") as file:
        head = file.read(8)
    if head[4:] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return "quicktime"
    return "matroska" if head.startswith(b"\x1aE\xdf\xa3") else None


def _boxes(path: str) -> Iterator[tuple[bytes, int]]:
    """The kind of every box of an MP4 or QuickTime file, and where the file says that it ends."""
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


def _announced_size(path: str) -> int:
    """The least bytes that a file has by its own headers; 0 where they do not say.

    A header's duration shows only what is missing by seconds, and a frame count is not there in every container.
    """
    container = _container(path)
    if container == "quicktime":
        return max((end for kind, end in _boxes(path) if kind in (b"moov", b"moof", b"mdat")), default=0)
    if container is None:
        return 0
    with open(path, "rb") as file:  # Matroska: a header element, and the segment that is all the rest
        size = 0
        for _ in range(2):
            file.seek(size + 4, os.SEEK_CUR)  # what the element holds, and the name of the next one
            first = file.read(1)
            num_bytes = 9 - (first[0].bit_length() if first else 0)
            if num_bytes == 9:
                return 0
            digits = 7 * num_bytes
            size = int.from_bytes(first + file.read(num_bytes - 1), "big") & ((1 << digits) - 1)
        is_known = size != (1 << digits) - 1  # all ones in a recording that was not finished
        return file.tell() + size if is_known else 0


BACKENDS: dict[str, Callable[[str, Choose], Decoded]] = {  # in the order in which they are tried
    "pyav": _read_pyav,
    "decord": _read_decord,
}
MODULES = {"pyav": "av", "decord": "decord"}  # the module of each decoder; pip has it under the same name


def available_backends() -> list[str]:
    """Names of the installed decoders in the order in which they are tried: pyav, decord."""
    return [name for name in BACKENDS if importlib.util.find_spec(MODULES[name]) is not None]
