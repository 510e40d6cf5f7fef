"""Processor of Qwen3-VL with experts: that of Qwen3-VL."""

from .processing_flashvid_qwen3_vl import FlashVIDQwen3VLProcessor


class FlashVIDQwen3VLMoeProcessor(FlashVIDQwen3VLProcessor):
    """The processor of Qwen3-VL."""


__all__ = ["FlashVIDQwen3VLMoeProcessor"]
