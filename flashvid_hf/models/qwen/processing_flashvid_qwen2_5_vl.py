"""Processor of Qwen2.5-VL: upstream's, which reads videos too."""

from transformers import Qwen2_5_VLProcessor

from ...hub.processing_flashvid import FlashVIDProcessor


class FlashVIDQwen2_5_VLProcessor(FlashVIDProcessor, Qwen2_5_VLProcessor):
    """Upstream's processor. In addition it reads video files, see `FlashVIDProcessor`."""


__all__ = ["FlashVIDQwen2_5_VLProcessor"]
