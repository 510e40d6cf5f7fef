"""Configuration of Qwen3-VL with experts (mixture of experts) with FlashVID."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import Qwen3VLMoeConfig

from .configuration_flashvid_qwen3_vl import FlashVIDQwen3VLConfigMixin


@strict
class FlashVIDQwen3VLMoeConfig(FlashVIDQwen3VLConfigMixin, Qwen3VLMoeConfig):
    """Qwen3-VL-MoE's configuration with FlashVID's fields."""

    model_type = "flashvid_qwen3_vl_moe"
    base_model_type = "qwen3_vl_moe"
    auto_classes = {
        "AutoConfig": "configuration_flashvid_qwen3_vl_moe.FlashVIDQwen3VLMoeConfig",
        "AutoModel": "modeling_flashvid_qwen3_vl_moe.FlashVIDQwen3VLMoeModel",
        "AutoModelForImageTextToText": "modeling_flashvid_qwen3_vl_moe.FlashVIDQwen3VLMoeForConditionalGeneration",
        "AutoModelForMultimodalLM": "modeling_flashvid_qwen3_vl_moe.FlashVIDQwen3VLMoeForConditionalGeneration",
    }

    token_selection_method: Any = "attn_div"
    min_segment_num: Any = 4


__all__ = ["FlashVIDQwen3VLMoeConfig"]
