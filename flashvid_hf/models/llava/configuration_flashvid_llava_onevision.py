"""Configuration of LLaVA-OneVision with FlashVID."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import LlavaOnevisionConfig

from ..configuration import FlashVIDConfigMixin
from .original_checkpoints import convert_original, is_original, original_layout


@strict
class FlashVIDLlavaOnevisionConfig(FlashVIDConfigMixin, LlavaOnevisionConfig):
    """LLaVA-OneVision's configuration with FlashVID's fields.

    Frames are pooled bilinearly to half their width and height, rounded up. One newline follows the video.
    """

    model_type = "flashvid_llava_onevision"
    base_model_type = "llava_onevision"
    accepted_checkpoints = "'llava_onevision' and original LLaVA-OneVision checkpoints"
    auto_classes = {
        "AutoConfig": "configuration_flashvid_llava_onevision.FlashVIDLlavaOnevisionConfig",
        "AutoModel": "modeling_flashvid_llava_onevision.FlashVIDLlavaOnevisionModel",
        "AutoModelForImageTextToText": (
            "modeling_flashvid_llava_onevision.FlashVIDLlavaOnevisionForConditionalGeneration"
        ),
        "AutoModelForMultimodalLM": "modeling_flashvid_llava_onevision.FlashVIDLlavaOnevisionForConditionalGeneration",
    }

    # Fields in the configuration of LLaVA-Video. Here their values are fixed.
    mm_spatial_pool_mode: ClassVar[Any] = "bilinear"
    mm_newline_position: ClassVar[Any] = "one_token"

    @classmethod
    def accepts(cls, config_dict: dict[str, Any]) -> bool:
        if is_original(config_dict):
            layout = original_layout(config_dict)
            return all(getattr(cls, name) == value for name, value in layout.items())
        return super().accepts(config_dict)

    @classmethod
    def adopt(cls, config_dict: dict[str, Any]) -> dict[str, Any]:
        return super().adopt(convert_original(config_dict) if is_original(config_dict) else config_dict)


__all__ = ["FlashVIDLlavaOnevisionConfig"]
