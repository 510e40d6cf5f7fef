"""Configuration of Qwen2.5-VL with FlashVID."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import Qwen2_5_VLConfig

from ..configuration import FlashVIDConfigMixin


@strict
class FlashVIDQwen2_5_VLConfig(FlashVIDConfigMixin, Qwen2_5_VLConfig):
    """Qwen2.5-VL's configuration with FlashVID's fields and the reference's defaults for this family."""

    model_type = "flashvid_qwen2_5_vl"
    base_model_type = "qwen2_5_vl"

    auto_classes = {
        "AutoConfig": "configuration_flashvid_qwen2_5_vl.FlashVIDQwen2_5_VLConfig",
        "AutoModel": "modeling_flashvid_qwen2_5_vl.FlashVIDQwen2_5_VLModel",
        "AutoModelForImageTextToText": "modeling_flashvid_qwen2_5_vl.FlashVIDQwen2_5_VLForConditionalGeneration",
        "AutoModelForMultimodalLM": "modeling_flashvid_qwen2_5_vl.FlashVIDQwen2_5_VLForConditionalGeneration",
    }

    token_selection_method: Any = "attn_div"
    min_segment_num: Any = 4


__all__ = ["FlashVIDQwen2_5_VLConfig"]
