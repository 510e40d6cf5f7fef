"""Reading a video into frames, together with where in time each frame stands.

    clip = read_video("talk.mp4", num_frames=16)
    processor(text=..., videos=[clip.frames], video_metadata=[clip.metadata], do_sample_frames=False)

What always holds: the frames are those that `metadata.frames_indices` names, or an error says why not; what the decoder
notices to be damaged or cut short is an error. PyAV comes first: it decodes only what lies between a wanted frame and
the keyframe before it, and lets each frame's timestamp and damage flag be checked. The others are tried where it cannot
read a file. decord is exact in MP4 and QuickTime, in one pass from the start. After a seek, decord and torchcodec
return neighbouring frames in MPEG-TS, MPEG-PS and AVI (decord also in open-GOP video, which x265 writes by default),
and OpenCV trusts the frame count in the header.

Not every format lets damage be noticed. Damaged picture data that decodes to some other picture passes with every
decoder: seldom in H.264, AV1, MPEG-2 and MPEG-4 of plain pictures, more often in noisy ones and in HEVC, VP9 and Motion
JPEG, mostly in VP8 and GIF.

A frame's time is index / fps, as in transformers: exact for a constant frame rate, based on the mean rate otherwise.
"""

import importlib
import importlib.util
import math
import os
import re
import shutil
import tempfile
import urllib.request
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, islice
from numbers import Integral, Real
from typing import Any
from urllib.parse import urlparse

import numpy as np
import torch
from transformers.image_utils import is_pil_image
from transformers.utils import logging
from transformers.video_utils import VideoMetadata, load_video

logger = logging.get_logger(__name__)

DEFAULT_NUM_FRAMES = 32
MAX_FRAMES_IN_ONE_PASS = 3000
DOWNLOAD_TIMEOUT = 30.0  # seconds without an answer of the server

Choose = Callable[[int, float | None], list[int]]  # frames in the source, its fps -> ascending indices of those wanted
Decoded = tuple[Any, list[int], int, float | None]  # wanted frames, each (H, W, 3) uint8; their indices; total; fps


@dataclass(frozen=True)
class VideoClip:
    """Frames with shape (T, H, W, 3), uint8 RGB, and the source's metadata (None for frames that came without any)."""

    frames: np.ndarray
    metadata: VideoMetadata | None


class _DamagedVideo(ValueError):
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
            raise _DamagedVideo(f"it is damaged: {error}") from error


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
        raise _DamagedVideo(f"it is damaged or cut short, found {found}")
    times = [time for time, _, is_hidden in packets if not is_hidden]
    if None not in times and len(set(times)) == len(times):
        indices = choose(len(times), fps)
        frames = _seek_pyav(container, stream, np.sort(times)[indices].tolist(), packets)
        if frames is not None:
            return frames, indices, len(times), fps
    # The packets' timestamps are missing or not those of the frames (raw streams, AVI): decode to count, then to keep.
    total = sum(1 for _ in _iterate_pyav(av, path))
    # Where each packet is a frame; VP8 has some that are only drawn from. Matroska gives frames before a cut no time.
    timed = sum(time is not None for time in times)
    if total < timed and _container(path) and stream.codec_context.name != "vp8":
        raise _DamagedVideo(f"it is damaged: {timed} packets hold {total} frames")
    indices = choose(total, fps)
    decoded = islice(_iterate_pyav(av, path), indices[-1] + 1)
    return [_pyav_array(frame) for i, frame in enumerate(decoded) if i in indices], indices, total, fps


def _seek_pyav(
    container: Any, stream: Any, wanted: list[int], packets: list[tuple[int | None, bool, bool]]
) -> list[np.ndarray] | None:
    """Frames at the ascending timestamps `wanted`, or None if seeking does not lead to them and all that precede them.

    The next keyframe before a frame is where its decoding starts.
    """
    shown = sorted(time for time, _, is_hidden in packets if not is_hidden and time is not None)
    keys = sorted(time for time, is_key, _ in packets if is_key and time is not None)
    # A frame may be drawn from later ones that are decoded before it: those must be undamaged too.
    coded = [time for time, *_ in packets if time is not None]
    sources = dict(zip(coded, accumulate(coded, max), strict=True))
    stream.thread_type = "AUTO"
    frames: dict[int, np.ndarray] = {}
    targets, seen = set(wanted), set()
    decoder: Iterator[Any] = iter(())
    now: float = -math.inf
    for time in wanted:
        key = keys[max(bisect_right(keys, time) - 1, 0)] if keys else time
        if key > now:  # a keyframe lies between: jump to it instead of decoding up to it
            container.seek(key, stream=stream)
            decoder, now = container.decode(stream), -math.inf
        while now < sources[time]:
            frame = next(decoder, None)
            if frame is None:
                break
            now = -math.inf if frame.pts is None else frame.pts
            if now < key:  # from before the jump, and drawn from what was jumped over
                continue
            if frame.is_corrupt:
                raise _DamagedVideo(f"it is damaged at {frame.time:.2f} s")
            seen.add(now)
            if now in targets:
                frames[int(now)] = _pyav_array(frame)
        if now < sources[time] or not seen.issuperset(shown[bisect_left(shown, key) : bisect_right(shown, time)]):
            return None
    return [frames[time] for time in wanted]


def _iterate_pyav(av: Any, path: str) -> Iterator[Any]:
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for index, frame in enumerate(container.decode(stream)):
            if frame.is_corrupt:
                raise _DamagedVideo(f"it is damaged at frame {index}")
            yield frame


def _pyav_array(frame: Any) -> np.ndarray:
    # Phones store portrait video lying on its side, with the turn beside it (degrees, counter-clockwise; av >= 14.1).
    return np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))


def _read_torchcodec(path: str, choose: Choose) -> Decoded:
    if _container(path) is None:
        raise ValueError("this decoder finds the right frames only in MP4, QuickTime, Matroska and WebM")
    frames, *rest = _read_with_transformers("torchcodec", path, choose)
    return frames.permute(0, 2, 3, 1).numpy(), *rest


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


def _read_with_transformers(name: str, path: str, choose: Choose) -> Decoded:
    def sample(metadata: VideoMetadata, **_: Any) -> list[int]:
        return choose(int(metadata.total_num_frames or 0), metadata.fps)

    frames, metadata = load_video(path, backend=name, sample_indices_fn=sample)
    return frames, metadata.frames_indices, metadata.total_num_frames, metadata.fps or None


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
    "torchcodec": _read_torchcodec,
    "opencv": partial(_read_with_transformers, "opencv"),
}
_MODULES = {"pyav": "av", "torchcodec": "torchcodec", "decord": "decord", "opencv": "cv2"}
_PACKAGES = _MODULES | {"opencv": "opencv-python-headless"}


def available_backends() -> list[str]:
    """Names of the installed decoders in the order in which they are tried: pyav, decord, torchcodec, opencv."""
    return [name for name in BACKENDS if importlib.util.find_spec(_MODULES[name]) is not None]


def read_video(
    video: Any,
    *,
    num_frames: int | None = None,
    fps: float | None = None,
    backend: str | None = None,
    video_metadata: VideoMetadata | Mapping[str, Any] | None = None,
) -> VideoClip:
    """Reads and samples a video file or decoded frames.

    Args:
        video: a path; a `file://`, `http(s)://` or `data:video/...;base64,` URL; the bytes of a file; or decoded
            frames: array or tensor with shape (T, H, W, 3) or (T, 3, H, W), uint8 or float in [0, 1], or a list of
            equally large PIL images or of such arrays without the T axis.
        num_frames: this many frames, spread evenly from the first to the last; all frames if the clip has fewer.
        fps: this many frames a second of the clip, at least one, at most all. With neither argument, a file gives up
            to `DEFAULT_NUM_FRAMES` evenly spread frames, and decoded frames are all kept.
        backend: the decoder for a file, one of `available_backends()`. Without it each is tried until one succeeds.
        video_metadata: of decoded frames only: `fps` (which sampling by `fps` needs) and, if the frames are themselves
            a sample, `frames_indices` and `total_num_frames` of the source.

    Returns:
        `VideoClip`. Its metadata describes the source: `fps`, `total_num_frames`, `duration` (seconds), and with
        `frames_indices` the place of each returned frame in it.

    Raises:
        ValueError: an argument is out of range, or the file is missing, empty, damaged or not a video.
    """
    if num_frames is not None and fps is not None:
        raise ValueError(f"`num_frames` ({num_frames!r}) and `fps` ({fps!r}) are two ways to sample: pass only one")
    if num_frames is not None and (not isinstance(num_frames, Integral) or num_frames < 1):
        raise ValueError(f"`num_frames` must be an integer >= 1, got {num_frames!r}; leave it out for the default")
    if fps is not None and (not isinstance(fps, Real) or not 0 < fps < math.inf):
        raise ValueError(f"`fps` must be a number > 0 (frames a second), got {fps!r}; leave it out for the default")

    def choose(total: int, source_fps: float | None) -> list[int]:
        return _choose_frames(total, source_fps, num_frames, fps)

    is_bytes = isinstance(video, (bytes, bytearray, memoryview))
    if not is_bytes and not isinstance(video, (str, os.PathLike)):
        keep_all = num_frames is None and fps is None
        return _take_frames(video, video_metadata, (lambda total, _: list(range(total))) if keep_all else choose)
    if video_metadata is not None:
        raise ValueError("`video_metadata` describes decoded frames; a video file carries its own: leave it out")
    if backend is not None and backend not in available_backends():
        hint = f"`pip install {_PACKAGES[backend]}` provides it" if backend in BACKENDS else f"known are {[*BACKENDS]}"
        raise ValueError(f"`backend` must be one of the installed {available_backends()}, got {backend!r}; {hint}")

    text = f"<{len(video)} bytes>" if is_bytes else os.fspath(video)
    label = repr(text if len(text) <= 300 else text[:60] + "...")
    if not is_bytes and not text.startswith(("http://", "https://", "data:")):
        path = urllib.request.url2pathname(urlparse(text).path) if text.startswith("file:") else text
        if not os.path.isfile(path):
            problem = "is a directory" if os.path.isdir(path) else "does not exist"
            raise ValueError(f"`video` must be a video file, but {label} {problem}")
        return _decode_file(os.path.abspath(path), label, choose, backend)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = os.path.join(folder, "video")
        with open(path, "wb") as file:
            if is_bytes:
                file.write(video)
            else:
                _download(text, label, file)
        return _decode_file(path, label, choose, backend)


def _choose_frames(total: int, source_fps: float | None, num_frames: int | None, fps: float | None) -> list[int]:
    if total < 1:
        raise ValueError("it has no video frames")
    wanted = num_frames or min(DEFAULT_NUM_FRAMES, total)
    if fps is not None:
        if not source_fps:
            raise ValueError("`fps` needs the source's frame rate: give it in `video_metadata`, or pass `num_frames`")
        wanted = max(1, int(total / source_fps * fps))
    if wanted > total:
        logger.warning_once(f"{wanted} frames were asked for, but the video has {total}: all of them are taken")
        wanted = total
    if fps is not None:  # transformers' spacing, starts of `wanted` equal parts: step = source_fps / fps
        return (np.arange(wanted) * total // wanted).tolist()
    return np.linspace(0, total - 1, wanted).round().astype(int).tolist()


def _decode_file(path: str, label: str, choose: Choose, backend: str | None) -> VideoClip:
    if os.path.getsize(path) == 0:
        raise ValueError(f"the video {label} is empty (0 bytes)")
    reasons = []
    for name in [backend] if backend else available_backends():
        try:
            frames, indices, total, fps = BACKENDS[name](path, choose)
            if len(frames) != len(indices):
                raise ValueError(f"{len(indices)} frames were asked for, {len(frames)} could be decoded")
            frames = np.ascontiguousarray(frames)
            height, width = frames.shape[1:3]
        except Exception as error:  # each decoder raises its own kinds
            reason = re.sub(r"\[[\d:]+\] \S+:\d+: ", "", str(error))  # decord puts the place in its sources first
            reasons.append(f"{name}: {' '.join(reason.split())[:160] or type(error).__name__}")
            if isinstance(error, _DamagedVideo):
                reasons[-1] += "; repair the file, or name another, less strict `backend`"
                break
        else:
            fps = float(fps) if fps else None
            duration = total / fps if fps else None
            return VideoClip(frames, VideoMetadata(total, fps, width, height, duration, name, indices))
    why = "; ".join(reasons) or "no decoder is installed; `pip install av` provides one"
    raise ValueError(f"the video {label} cannot be read: {why}")


def _download(url: str, label: str, file: Any) -> None:
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "flashvid-hf"})
        with urllib.request.urlopen(request, timeout=DOWNLOAD_TIMEOUT) as response:
            shutil.copyfileobj(response, file)
            announced = int(response.headers.get("Content-Length") or 0)
        if file.tell() < announced:  # urllib takes a lost connection for the end of the file
            raise OSError(f"the connection ended after {file.tell()} of {announced} bytes")
    except Exception as error:
        raise ValueError(f"the video {label} cannot be downloaded: {error or type(error).__name__}") from error


def _take_frames(video: Any, video_metadata: Mapping[str, Any] | None, choose: Choose) -> VideoClip:
    frames = _as_uint8(video)
    total, height, width = frames.shape[:3]
    if video_metadata is None:
        return VideoClip(frames[choose(total, None)], None)
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
    indices = choose(total, source.fps and source.sampled_fps)
    source.update({"height": height, "width": width, "frames_indices": [int(places[i]) for i in indices]})
    if source.fps and source.duration is None:
        source.duration = source.total_num_frames / source.fps
    return VideoClip(frames[indices], source)


def _as_uint8(video: Any) -> np.ndarray:
    """Decoded frames in any accepted form, as an array with shape (T, H, W, 3), uint8."""
    if isinstance(video, (list, tuple)) and len(video) > 0:
        arrays = [_as_array(frame) for frame in video]
        shapes = sorted({array.shape for array in arrays})
        if len(shapes) > 1:
            raise ValueError(f"the frames of `video` must be equally large, got shapes {shapes}: resize them first")
        array = np.stack(arrays)
    else:
        array = _as_array(video)
    if array.ndim == 4 and array.shape[1] == 3 and array.shape[3] != 3:
        array = array.transpose(0, 2, 3, 1)
    if array.ndim != 4 or array.shape[3] != 3 or array.size == 0:
        raise ValueError(
            f"`video` must have shape (T, H, W, 3) or (T, 3, H, W) and at least one frame, got {array.shape}; "
            "add the time axis to a single frame with `frame[None]`"
        )
    if np.issubdtype(array.dtype, np.floating):
        low, high = array.min(), array.max()
        if not (low >= 0 and high <= 1):  # also where one is NaN
            raise ValueError(f"float frames in `video` must lie in [0, 1], got [{low}, {high}]: rescale, or pass uint8")
        array = (array * 255).round().astype(np.uint8)
    if array.dtype != np.uint8:
        raise ValueError(f"`video` must be uint8 or float in [0, 1], got {array.dtype}: convert it to uint8")
    return np.ascontiguousarray(array)


def _as_array(frames: Any) -> np.ndarray:
    if isinstance(frames, torch.Tensor):
        frames = frames.detach().cpu()
        return (frames.float() if frames.is_floating_point() else frames).numpy()
    if is_pil_image(frames):
        return np.asarray(frames.convert("RGB"))
    if not isinstance(frames, np.ndarray):
        raise ValueError(
            "`video` must be a path, a URL, bytes, an array, a tensor, or a list of PIL images or arrays, "
            f"got {type(frames).__name__}: decode or convert it first"
        )
    return frames
