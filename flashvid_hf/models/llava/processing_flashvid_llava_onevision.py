"""Processor of LLaVA-OneVision: upstream's, which reads videos too."""

from transformers import LlavaOnevisionProcessor

from ...hub.processing_flashvid import FlashVIDProcessor


class FlashVIDLlavaOnevisionProcessor(FlashVIDProcessor, LlavaOnevisionProcessor):
    """Upstream's processor. In addition it reads video files, see `FlashVIDProcessor`."""


__all__ = ["FlashVIDLlavaOnevisionProcessor"]
