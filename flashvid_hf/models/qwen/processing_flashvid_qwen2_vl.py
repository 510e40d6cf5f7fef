"""Processor of Qwen2-VL: upstream's, which reads videos too."""

from transformers import Qwen2VLProcessor

from ...hub.processing_flashvid import FlashVIDProcessor


class FlashVIDQwen2VLProcessor(FlashVIDProcessor, Qwen2VLProcessor):
    """Upstream's processor. In addition it reads video files, see `FlashVIDProcessor`."""


__all__ = ["FlashVIDQwen2VLProcessor"]
