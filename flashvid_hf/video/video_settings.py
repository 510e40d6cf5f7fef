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

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import torch

from .frame_plan import Resizing

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
