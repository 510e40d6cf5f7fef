"""The decoders of video files: each returns exactly the wanted frames of a file, or raises an error.

PyAV comes first. It decodes only from the keyframe before a wanted frame up to that frame, and it gives each frame's
timestamp and damage flag, which are checked here. decord is tried where PyAV cannot read a file. decord is exact in
MP4 and QuickTime, in one pass from the start. After a seek it returns neighbouring frames in MPEG-TS, MPEG-PS, AVI and
open-GOP video, which x265 writes by default.

Some damage stays unnoticed: no decoder rejects damaged picture data that decodes to a wrong picture. This is rare in
H.264, AV1, MPEG-2 and MPEG-4 of plain pictures, more common in noisy pictures and in HEVC, VP9 and Motion JPEG, and
usual in VP8 and GIF.
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

# decord decodes every frame from the start, which takes too long for later frames. 3000 are 2 minutes at 25 fps.
MAX_FRAMES_IN_ONE_PASS = 3000

Choose = Callable[[int, float | None], list[int]]  # frames in the source, its fps -> ascending indices of wanted frames
# Wanted frames, each an array or tensor with shape (H, W, 3), uint8; their indices; frames in the source; its fps.
Decoded = tuple[Any, list[int], int, float | None]


class DamagedVideo(ValueError):
    """The file opens but is damaged. Another decoder would only hide that, so none is tried."""


def _read_pyav(path: str, choose: Choose) -> Decoded:
    # transformers' reader is not used: it takes the frame count from the header (0 in Matroska, WebM, MPEG-TS,
    # fragmented MP4), ignores rotation and decodes every frame. Here the packets' timestamps say which frames exist,
    # without decoding. Each wanted frame is decoded from the keyframe before it, and must carry its timestamp.
    av = importlib.import_module("av")
    with av.open(path) as container:
        if not container.streams.video:
            raise ValueError("no video stream can be found in it")
        try:
            return _decode_pyav(av, container, path, choose)
        except av.error.InvalidDataError as error:  # the file opens, so its content is at fault
            raise DamagedVideo(f"it is damaged: {error}") from error


def _decode_pyav(av: Any, container: Any, path: str, choose: Choose) -> Decoded:
    stream = container.streams.video[0]
    fps = float(stream.average_rate or stream.guessed_rate or 0) or None
    packets, end, is_intact = [], 0.0, True  # packets: timestamp, is a keyframe, is hidden (edit list)
    for packet in container.demux():
        if packet.size == 0 and packet.dts is None:  # end-of-stream marker
            continue
        if packet.pts is not None and packet.time_base:  # every stream: the header states the longest duration
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
    # The packets' timestamps are missing or are not those of the frames (raw streams, AVI): decode once to count the
    # frames, and once more to keep the wanted ones.
    total = sum(1 for _ in _iterate_pyav(av, path))
    # In these containers each packet is a frame, but VP8 also has packets that are never shown. Matroska gives frames
    # before a cut no timestamp, so only packets with a timestamp are counted.
    timed = sum(time is not None for time in times)
    if total < timed and _container(path) and stream.codec_context.name != "vp8":
        raise DamagedVideo(f"it is damaged: {timed} packets hold {total} frames")
    indices = choose(total, fps)
    decoded = islice(_iterate_pyav(av, path), indices[-1] + 1)
    return [_pyav_frame(frame) for i, frame in enumerate(decoded) if i in indices], indices, total, fps


def _seek_pyav(
    container: Any, stream: Any, wanted: list[int], packets: list[tuple[int | None, bool, bool]]
) -> list[torch.Tensor] | None:
    """The frames at the ascending timestamps `wanted`, each decoded from the nearest keyframe before it.

    Returns None if the decoder leaves out a wanted frame, or a shown frame between the keyframe and a wanted one.
    """
    shown = sorted(time for time, _, is_hidden in packets if not is_hidden and time is not None)
    keys = sorted(time for time, is_key, _ in packets if is_key and time is not None)
    # A frame may refer to later frames that are decoded before it: those must be undamaged too.
    coded = [time for time, *_ in packets if time is not None]
    sources = dict(zip(coded, accumulate(coded, max), strict=True))
    stream.thread_type = "AUTO"
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
    # Phones store portrait video on its side, with the rotation in degrees, counter-clockwise (av >= 14.1 has it).
    return torch.rot90(torch.as_tensor(frame.to_ndarray(format="rgb24")), round(frame.rotation / 90))


def _read_decord(path: str, choose: Choose) -> Decoded:
    # transformers' reader is not used: its `get_batch` seeks, and returns neighbouring frames in open-GOP video. One
    # pass is exact.
    if _container(path) != "quicktime":
        raise ValueError("this decoder finds the right frames only in MP4 and QuickTime")
    if any(kind == b"moof" for kind, _ in _boxes(path)):
        raise ValueError("it is fragmented, and decord may lose its first frames")
    decord = importlib.import_module("decord")
    # Without `fault_tol` decord replaces a frame that it cannot decode by a copy of the nearest one. The value is the
    # share of the frames that may be replaced: so small that none may.
    reader = decord.VideoReader(path, ctx=decord.cpu(0), fault_tol=1e-9)
    if len(reader) and reader.get_frame_timestamp(0)[0] < 0:  # decord counts frames that the edit list drops
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
    """The container by the first bytes of the file: "quicktime" (MP4, MOV), "matroska" (MKV, WebM) or None."""
    with open(path, "rb") as file:
        head = file.read(8)
    if head[4:] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return "quicktime"
    return "matroska" if head.startswith(b"\x1aE\xdf\xa3") else None


def _boxes(path: str) -> Iterator[tuple[bytes, int]]:
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


def _announced_size(path: str) -> int:
    """The least size of a file in bytes by its own headers; 0 if they do not state it.

    This finds losses that are shorter than a second, which the header's duration does not show, and it works in
    containers without a frame count.
    """
    container = _container(path)
    if container == "quicktime":
        return max((end for kind, end in _boxes(path) if kind in (b"moov", b"moof", b"mdat")), default=0)
    if container is None:
        return 0
    with open(path, "rb") as file:  # Matroska: a header element, then one segment with all the rest
        size = 0
        for _ in range(2):
            file.seek(size + 4, os.SEEK_CUR)  # the content of the element, and the name of the next one
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
