"""Configuration of LLaVA-Video with FlashVID."""

from typing import Any

from huggingface_hub.dataclasses import strict

from ...compression.validation import setting
from ..configuration import FlashVIDConfigMixin
from .configuration_flashvid_llava_onevision import FlashVIDLlavaOnevisionConfig
from .original_checkpoints import is_original, original_layout

# The names are those of the original LLaVA code; `FlashVIDLlavaVideoConfig` says what they mean.
POOL_MODES = ("average", "bilinear", "max")
NEWLINE_POSITIONS = ("frame", "grid", "one_token", "no_token")


@strict
class FlashVIDLlavaVideoConfig(FlashVIDLlavaOnevisionConfig):
    """LLaVA-OneVision's configuration with FlashVID's fields, and two fields for what LLaVA-Video does differently.

    `mm_spatial_pool_mode` says how frames are pooled to half their width and height: "average" and "max" round down,
    "bilinear" rounds up. `mm_newline_position` says after what a newline follows: each "frame", each row of a frame
    ("grid"), the whole video ("one_token") or nothing ("no_token").

    Both fields are read from an original checkpoint, unless it was trained with "grid", as LLaVA-Video was. Such a
    checkpoint runs with "average" and "frame", as in FlashVID's scripts, unless the caller passes other values.

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

    mm_spatial_pool_mode: Any = setting("average", "how a frame's patches are pooled", choices=POOL_MODES)
    mm_newline_position: Any = setting("frame", "what each newline follows", choices=NEWLINE_POSITIONS)

    @classmethod
    def accepts(cls, config_dict: dict[str, Any]) -> bool:
        return is_original(config_dict) or config_dict.get("model_type") in (None, cls.model_type)

    @classmethod
    def adopt(cls, config_dict: dict[str, Any]) -> dict[str, Any]:
        adopted = super().adopt(config_dict)
        if is_original(config_dict) and config_dict.get("mm_newline_position") != "grid":
            adopted.update(original_layout(config_dict))
        return adopted


__all__ = ["FlashVIDLlavaVideoConfig"]
