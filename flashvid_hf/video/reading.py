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

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch
from transformers.image_utils import is_pil_image
from transformers.utils import logging
from transformers.video_utils import VideoMetadata

from .animated_pictures import is_animated_webp, read_animated_webp
from .decoder_types import DamagedVideo, NoVideo, Refused
from .decoders import BACKENDS, MODULES, available_backends
from .frame_plan import FramePlan, Resizing
from .limits import NO_LIMITS, MediaLimits, TooLarge, limits_or_default
from .sources import FETCHERS, file_of_url, is_file, is_list_of_files, label_of, load_picture, scheme_of, unpack_source
from .video_settings import PartOfVideo, check_media_settings

logger = logging.get_logger(__name__)

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
