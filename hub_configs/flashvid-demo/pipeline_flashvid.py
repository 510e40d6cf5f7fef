"""The pipeline `video-text-to-text`: videos and questions in, answers out.

Generated from flashvid_hf 0.1.0: do not edit. The sections are its modules:

    video/batching.py
    video/decoders.py
    video/reading.py
    video/pipeline_flashvid.py
"""

import importlib
import importlib.util
import math
import os
import re
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import accumulate, islice
from numbers import Integral, Real
from typing import Any
from urllib.parse import unquote, urlparse

import torch
from transformers import BatchFeature, GenerationConfig, Pipeline
from transformers.image_utils import is_pil_image, load_image
from transformers.utils import logging
from transformers.video_utils import VideoMetadata

logger = logging.get_logger(__name__)


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


# video/decoders.py ----------------------------------------------------------------------------------------------------

"""The decoders of video files: each returns exactly the wanted frames of a file, or raises an error.

PyAV comes first. It decodes only from the keyframe before a wanted frame up to that frame, and it gives each frame's
timestamp and damage flag, which are checked here. decord is tried where PyAV cannot read a file. decord is exact in
MP4 and QuickTime, in one pass from the start. After a seek it returns neighbouring frames in MPEG-TS, MPEG-PS, AVI and
open-GOP video, which x265 writes by default.

Some damage stays unnoticed: no decoder rejects damaged picture data that decodes to a wrong picture. This is rare in
H.264, AV1, MPEG-2 and MPEG-4 of plain pictures, more common in noisy pictures and in HEVC, VP9 and Motion JPEG, and
usual in VP8 and GIF.
"""

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


# video/reading.py -----------------------------------------------------------------------------------------------------

"""Reading a video into frames, with the position of each frame in the source.

    clip = read_video("talk.mp4", num_frames=16)
    processor(text=..., videos=[clip.frames], video_metadata=[clip.metadata], do_sample_frames=False)

The returned frames are always exactly those that `metadata.frames_indices` names; otherwise an error says why. Damage
that the decoder notices, and a missing end, are errors (`decoders.py` says what each decoder can notice).

A frame's time is index / fps, as in transformers: exact for a constant frame rate, based on the mean rate otherwise.

Legend: T frames, H and W height and width of a frame in pixels.
"""

# Frames of a video file if neither `num_frames` nor `fps` is given. The paper evaluates LLaVA-OneVision with 32 too.
DEFAULT_NUM_FRAMES = 32
# Functions that provide a video as a local file, by the scheme of its URL, or by "bytes" for the bytes of a file. The
# package adds `fetch_video`. The code of a model's folder reads local files only: there this stays empty.
FETCHERS: dict[str, Callable[[Any, str], AbstractContextManager[str]]] = {}


@dataclass(frozen=True)
class VideoClip:
    """Frames as an array with shape (T, H, W, 3), uint8 RGB, and the metadata of the source (None if it is unknown)."""

    frames: Any
    metadata: VideoMetadata | None


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
        video: a path, a `file://` URL, or decoded frames. The package also reads an `http(s)://` or
            `data:video/...;base64,` URL and the bytes of a file; the code of a model's folder does not. Decoded frames
            are an array or tensor with shape (T, H, W, 3) or (T, 3, H, W), uint8 or float in [0, 1], or a list of
            equally large PIL images or of such arrays without the T axis.
        num_frames: number of frames, spread evenly from the first to the last; all frames if the clip has fewer.
        fps: frames for each second of the clip; at least one frame, at most all. With neither `num_frames` nor `fps`,
            a file gives up to `DEFAULT_NUM_FRAMES` evenly spread frames, and decoded frames are all kept.
        backend: the decoder for a file, one of `available_backends()`. Without it each is tried until one succeeds.
        video_metadata: for decoded frames only: `fps` (which sampling by `fps` needs) and, if the frames are themselves
            a sample, `frames_indices` and `total_num_frames` of the source.

    Returns:
        `VideoClip`. Its metadata describes the source: `fps`, `total_num_frames`, `duration` (seconds), and in
        `frames_indices` the index of each returned frame.

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
        hint = f"`pip install {MODULES[backend]}` provides it" if backend in BACKENDS else f"known are {[*BACKENDS]}"
        raise ValueError(f"`backend` must be one of the installed {available_backends()}, got {backend!r}; {hint}")

    text = f"<{len(video)} bytes>" if is_bytes else os.fspath(video)
    label = repr(text if len(text) <= 300 else text[:60] + "...")
    scheme = "bytes" if is_bytes else text.partition(":")[0]
    if scheme in FETCHERS:
        with FETCHERS[scheme](video, label) as path:
            return _decode_file(path, label, choose, backend)
    if scheme in ("bytes", "data", "http", "https"):
        raise ValueError(
            f"`video` is {label}: code that a model's folder brings along reads files and decoded frames only. Save "
            "the video as a file and pass its path, or `import flashvid_hf` (the package), which reads this too."
        )
    path = _file_of_url(text) if scheme == "file" else text
    if not os.path.isfile(path):
        problem = "is a directory" if os.path.isdir(path) else "does not exist"
        raise ValueError(f"`video` must be a video file, but {label} {problem}")
    return _decode_file(os.path.abspath(path), label, choose, backend)


def _file_of_url(url: str) -> str:
    path = unquote(urlparse(url).path)
    return path[1:] if re.match(r"/[A-Za-z]:", path) else path  # "/C:/talk.mp4"


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
    if fps is not None:  # as in transformers: the starts of `wanted` equal parts, step = source_fps / fps
        return [i * total // wanted for i in range(wanted)]
    step = (total - 1) / max(wanted - 1, 1)
    return [round(i * step) for i in range(wanted)]


def _decode_file(path: str, label: str, choose: Choose, backend: str | None) -> VideoClip:
    if os.path.getsize(path) == 0:
        raise ValueError(f"the video {label} is empty (0 bytes)")
    reasons = []
    for name in [backend] if backend else available_backends():
        try:
            frames, indices, total, fps = BACKENDS[name](path, choose)
            if len(frames) != len(indices):
                raise ValueError(f"{len(indices)} frames were asked for, {len(frames)} could be decoded")
            frames = torch.stack([torch.as_tensor(frame) for frame in frames]).numpy()
            height, width = frames.shape[1:3]
        except Exception as error:  # each decoder raises exceptions of its own
            reason = re.sub(r"\[[\d:]+\] \S+:\d+: ", "", str(error))  # decord's text begins with a place in its sources
            reasons.append(f"{name}: {' '.join(reason.split())[:160] or type(error).__name__}")
            if isinstance(error, DamagedVideo):
                reasons[-1] += "; repair the file, or name another, less strict `backend`"
                break
        else:
            fps = float(fps) if fps else None
            duration = total / fps if fps else None
            return VideoClip(frames, VideoMetadata(total, fps, width, height, duration, name, indices))
    why = "; ".join(reasons) or "no decoder is installed; `pip install av` provides one"
    raise ValueError(f"the video {label} cannot be read: {why}")


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


def _as_uint8(video: Any) -> Any:
    """Decoded frames in any accepted form, as an array with shape (T, H, W, 3), uint8."""
    if isinstance(video, (list, tuple)) and len(video) > 0:
        tensors = [_as_tensor(frame) for frame in video]
        shapes = sorted({tuple(tensor.shape) for tensor in tensors})
        if len(shapes) > 1:
            raise ValueError(f"the frames of `video` must be equally large, got shapes {shapes}: resize them first")
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


def _as_tensor(frames: Any) -> torch.Tensor:
    if isinstance(frames, torch.Tensor):
        frames = frames.detach().cpu()
        return frames.float() if frames.is_floating_point() else frames
    if is_pil_image(frames):
        picture = frames.convert("RGB")
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


# video/pipeline_flashvid.py -------------------------------------------------------------------------------------------

"""`pipeline("video-text-to-text")`: ask a model about video files, decoded frames or chats."""

TASK = "video-text-to-text"
# Decoded frames of more bytes are resized on the CPU: while it runs, resizing takes many times their size in memory.
_MOST_BYTES_ON_GPU = 512 * 2**20
_FILE_TYPES = (str, bytes, os.PathLike)
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
    images: list[Any]
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
    - `seconds`: wall-clock time of each stage: `decode` (reading the videos and images of this input), `preprocess`
      (template, tokenizer, resizing and normalising of the frames) and `generate` (including the conversion of the new
      ids to text). If a video was compressed, `vision`, `compression` and `prefill` stand between them; these are
      stages of `generate`. The inputs of a batch share every stage but `decode`, so each answer has the time of the
      whole batch. A GPU runs asynchronously: work that `preprocess` has only started there counts as `generate`.

    If the model is on a CUDA device, the decoded 8-bit frames are copied to the device, and resized and normalised
    there, unless they take more than 512 MiB. Rounding may differ from the CPU's.
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
                list of chats, dictionaries with "video" and "text", or a generator or dataset of any of these.
            text: the question; a list of as many questions as videos; or one or more chats.
            num_frames, fps: how to sample the frames of a file, see `read_video`.
            batch_size: number of inputs that run together.
            num_workers: number of processes that read the videos of the next inputs while the model runs; 1 for a
                generator.
            kwargs: arguments of `generate`, such as `max_new_tokens` or `streamer`.

        Returns:
            The answer, a list of dictionaries; a list of answers for a list of inputs.

        Raises:
            ValueError: a video cannot be read, or the inputs do not fit together.
        """
        if videos is None and text is None:
            raise ValueError("`videos` and `text` are both None: pass a video and a question, or a chat.")
        if any(isinstance(given, (list, tuple)) and len(given) == 0 for given in (videos, text)):
            raise ValueError("The list of inputs is empty: pass at least one video and question, or one chat.")
        if text is None:
            if isinstance(videos, _FILE_TYPES) or _is_list_of_videos(videos):
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
        generate_kwargs: dict | None = None,
        **kwargs: Any,
    ):
        # `num_frames` in a call replaces an `fps` that the pipeline was made with, and the other way round.
        sampling = {"num_frames": num_frames, "fps": fps} if (num_frames, fps) != (None, None) else {}
        twice = sorted(kwargs.keys() & (generate_kwargs or {}).keys())
        if twice:
            raise ValueError(f"`{twice[0]}` is given twice, by itself and in `generate_kwargs`: pass it once.")
        return sampling, {**(generate_kwargs or {}), **kwargs}, {}

    def preprocess(self, inputs: Any, **sampling: Any) -> dict[str, _Request]:
        clips, images, messages, seconds = [], [], [], 0.0
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
                    metadata = part.get("video_metadata")
                    clips.append(read_video(_source(part), video_metadata=metadata, **sampling))
                elif part["type"] == "image":
                    images.append(load_image(_source(part)))
                seconds += time.perf_counter() - start
                parts.append({"type": part["type"]} if part["type"] in ("video", "image") else part)
            messages.append({**message, "content": parts})
        return {"request": _Request(messages, clips, images, seconds)}

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
        images = [image for request in requests for image in request.images]
        media = media_arguments(clips, images, self.device)
        inputs = self.processor(text=prompts, padding=True, padding_side="left", **media)
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


def media_arguments(clips: list[VideoClip], images: list[Any], device: torch.device) -> dict[str, Any]:
    """The processor's arguments besides the text: videos, images, and the device that resizes them.

    Args:
        device: of the model. It resizes only if it is a CUDA device: others may not support resizing with antialiasing.
    """
    media: dict[str, Any] = {}
    if clips:
        media["videos"] = [clip.frames for clip in clips]
        media["video_metadata"] = [
            clip.metadata or VideoMetadata(len(clip.frames), frames_indices=list(range(len(clip.frames))))
            for clip in clips
        ]
        media["do_sample_frames"] = False  # already sampled; without metadata upstream would assume 24 fps
    if images:
        media["images"] = images
    if media:
        fits = sum(clip.frames.nbytes for clip in clips) <= _MOST_BYTES_ON_GPU
        media["device"] = device if device.type == "cuda" and fits else "cpu"
    return media


def _is_list_of_videos(videos: Any) -> bool:
    """Whether this is a list of files or of whole clips. A list of frames (pictures or 3D arrays) is one video."""
    if not isinstance(videos, (list, tuple)) or not videos:
        return False
    first = videos[0]
    if isinstance(first, (list, tuple)):  # a list of frames is a video; a list of messages is a chat
        return not (first and isinstance(first[0], dict))
    return isinstance(first, _FILE_TYPES) or getattr(first, "ndim", 0) == 4


def _to_messages(inputs: Any) -> list[dict[str, Any]]:
    """The messages of one input, in any form that `__call__` takes."""
    if hasattr(inputs, "messages"):  # upstream's own wrapper of a chat
        return inputs.messages
    if isinstance(inputs, dict) and isinstance(inputs.get("text"), str) and inputs.keys() <= {"video", "text"}:
        video = [{"type": "video", "video": inputs["video"]}] if inputs.get("video") is not None else []
        return [{"role": "user", "content": [*video, {"type": "text", "text": inputs["text"]}]}]
    if isinstance(inputs, str):
        return [{"role": "user", "content": [{"type": "text", "text": inputs}]}]
    if isinstance(inputs, (list, tuple)) and inputs and isinstance(inputs[0], dict) and "role" in inputs[0]:
        return list(inputs)
    keys = f" with the keys {sorted(map(str, inputs))}" if isinstance(inputs, dict) else ""
    raise ValueError(
        f"The input is a `{type(inputs).__name__}`{keys}: pass a video with `text=`, a chat, or a dictionary with "
        "'video' and 'text'."
    )


def _source(part: dict[str, Any]) -> Any:
    """The video or image that a part of a message names."""
    for key in (part["type"], "path", "url"):
        if part.get(key) is not None:
            return part[key]
    raise ValueError(
        f"A part of a message has type {part['type']!r} but no {part['type']}: give it one under "
        f"'{part['type']}', 'path' or 'url'."
    )
