"""Configuration of Qwen2-VL with FlashVID."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import Qwen2VLConfig

from ..configuration import FlashVIDConfigMixin


@strict
class FlashVIDQwen2VLConfig(FlashVIDConfigMixin, Qwen2VLConfig):
    """Qwen2-VL's configuration with FlashVID's fields and the reference's defaults for the Qwen families."""

    model_type = "flashvid_qwen2_vl"
    base_model_type = "qwen2_vl"

    auto_classes = {
        "AutoConfig": "configuration_flashvid_qwen2_vl.FlashVIDQwen2VLConfig",
        "AutoModel": "modeling_flashvid_qwen2_vl.FlashVIDQwen2VLModel",
        "AutoModelForImageTextToText": "modeling_flashvid_qwen2_vl.FlashVIDQwen2VLForConditionalGeneration",
        "AutoModelForMultimodalLM": "modeling_flashvid_qwen2_vl.FlashVIDQwen2VLForConditionalGeneration",
    }

    token_selection_method: Any = "attn_div"
    min_segment_num: Any = 4


__all__ = ["FlashVIDQwen2VLConfig"]
