"""Processor of Qwen3-VL: upstream's, which reads videos too."""

from transformers import Qwen3VLProcessor

from ...hub.processing_flashvid import FlashVIDProcessor


class FlashVIDQwen3VLProcessor(FlashVIDProcessor, Qwen3VLProcessor):
    """Upstream's processor. In addition it reads video files, see `FlashVIDProcessor`."""


__all__ = ["FlashVIDQwen3VLProcessor"]
