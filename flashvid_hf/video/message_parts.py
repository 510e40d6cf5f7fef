"""Reading the videos and images of a chat, with the settings that stand beside them.

The pipeline, `serve` and the processors all read the parts of messages here.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers.video_utils import VideoMetadata

from .limits import MediaLimits, limits_or_default
from .model_size import resizing_of
from .reading import VideoClip, read_video
from .sources import is_file, load_picture, unpack_source
from .video_settings import (
    FRAME_SETTINGS,
    IMAGE_SETTINGS,
    PIXEL_SETTINGS,
    VIDEO_SETTINGS,
    check_media_settings,
    fit_size,
    resizing_by,
)

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
