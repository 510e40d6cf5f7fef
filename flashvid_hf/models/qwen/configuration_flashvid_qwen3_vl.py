"""Configuration of Qwen3-VL with FlashVID."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import Qwen3VLConfig

from ..configuration import FlashVIDConfigMixin


class FlashVIDQwen3VLConfigMixin(FlashVIDConfigMixin):
    """FlashVID's fields with the reference's defaults for Qwen3-VL, whose lower layers take in deepstack features."""

    vision_config: ClassVar[Any]  # a field of upstream's configuration
    pruning_depth = 7 / 9  # 28 of 36 layers, as in FlashVID's scripts

    @property
    def first_pruning_layer(self) -> int:
        return max(1, len(self.vision_config.deepstack_visual_indexes))


@strict
class FlashVIDQwen3VLConfig(FlashVIDQwen3VLConfigMixin, Qwen3VLConfig):
    """Qwen3-VL's configuration with FlashVID's fields."""

    model_type = "flashvid_qwen3_vl"
    base_model_type = "qwen3_vl"
    auto_classes = {
        "AutoConfig": "configuration_flashvid_qwen3_vl.FlashVIDQwen3VLConfig",
        "AutoModel": "modeling_flashvid_qwen3_vl.FlashVIDQwen3VLModel",
        "AutoModelForImageTextToText": "modeling_flashvid_qwen3_vl.FlashVIDQwen3VLForConditionalGeneration",
        "AutoModelForMultimodalLM": "modeling_flashvid_qwen3_vl.FlashVIDQwen3VLForConditionalGeneration",
    }

    token_selection_method: Any = "attn_div"
    min_segment_num: Any = 4


__all__ = ["FlashVIDQwen3VLConfig", "FlashVIDQwen3VLConfigMixin"]
