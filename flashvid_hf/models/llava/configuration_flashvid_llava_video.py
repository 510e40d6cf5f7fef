"""Configuration of LLaVA-Video with FlashVID."""

from typing import Any

from huggingface_hub.dataclasses import strict

from ...compression.validation import check_choice
from ..configuration import FlashVIDConfigMixin
from .configuration_flashvid_llava_onevision import FlashVIDLlavaOnevisionConfig
from .original_checkpoints import is_original, original_layout

POOL_MODES = ("average", "bilinear", "max")
NEWLINE_POSITIONS = ("frame", "grid", "one_token", "no_token")


@strict
class FlashVIDLlavaVideoConfig(FlashVIDLlavaOnevisionConfig):
    """LLaVA-OneVision's configuration with FlashVID's fields, and where LLaVA-Video differs.

    Args:
        mm_spatial_pool_mode: how frames are pooled to half their width and height: "average" and "max" round down,
            "bilinear" rounds up.
        mm_newline_position: a newline after each "frame", after each row of a frame ("grid"), after the whole video
            ("one_token"), or none ("no_token").

    Of an original checkpoint both are read, except where it was trained with "grid", as LLaVA-Video is: that runs with
    "average" and "frame", as in FlashVID's scripts, unless the caller passes others.

    Raises:
        ValueError: a field is outside of its range.
    """

    model_type = "flashvid_llava_video"
    base_model_type = "llava_qwen"
    accepted_checkpoints = "original LLaVA-Video and LLaVA-OneVision checkpoints ('llava_qwen')"
    auto_classes = {
        "AutoConfig": "configuration_flashvid_llava_video.FlashVIDLlavaVideoConfig",
        "AutoModel": "modeling_flashvid_llava_video.FlashVIDLlavaVideoModel",
        "AutoModelForImageTextToText": "modeling_flashvid_llava_video.FlashVIDLlavaVideoForConditionalGeneration",
        "AutoModelForMultimodalLM": "modeling_flashvid_llava_video.FlashVIDLlavaVideoForConditionalGeneration",
    }
    method_fields = FlashVIDConfigMixin.method_fields | {"mm_spatial_pool_mode", "mm_newline_position"}

    mm_spatial_pool_mode: Any = "average"
    mm_newline_position: Any = "frame"

    @classmethod
    def accepts(cls, config_dict: dict[str, Any]) -> bool:
        return is_original(config_dict) or config_dict.get("model_type") in (None, cls.model_type)

    @classmethod
    def adopt(cls, config_dict: dict[str, Any]) -> dict[str, Any]:
        adopted = super().adopt(config_dict)
        if is_original(config_dict) and config_dict.get("mm_newline_position") != "grid":
            adopted.update(original_layout(config_dict))
        return adopted

    def check_flashvid(self) -> None:
        super().check_flashvid()
        check_choice("mm_spatial_pool_mode", self.mm_spatial_pool_mode, POOL_MODES)
        check_choice("mm_newline_position", self.mm_newline_position, NEWLINE_POSITIONS)


__all__ = ["FlashVIDLlavaVideoConfig"]
