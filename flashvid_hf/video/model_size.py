"""The size that a model's processor gives the frames of a video, made while the video is read."""

from typing import Any

import torch
from transformers.image_utils import SizeDict
from transformers.video_processing_utils import BaseVideoProcessor

from .frame_plan import Resizing

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
