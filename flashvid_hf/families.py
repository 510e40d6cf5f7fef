"""The model families: one line each, beside its configuration and its modeling file."""

import os
from typing import Any, NamedTuple

from transformers import AutoProcessor, PreTrainedConfig, ProcessorMixin

from .models.llava.configuration_flashvid_llava_onevision import FlashVIDLlavaOnevisionConfig
from .models.llava.configuration_flashvid_llava_video import FlashVIDLlavaVideoConfig
from .models.llava.modeling_flashvid_llava_onevision import (
    FlashVIDLlavaOnevisionForConditionalGeneration,
    FlashVIDLlavaOnevisionModel,
)
from .models.llava.modeling_flashvid_llava_video import (
    FlashVIDLlavaVideoForConditionalGeneration,
    FlashVIDLlavaVideoModel,
)
from .models.llava.original_checkpoints import is_original
from .models.llava.processing_flashvid_llava_video import FlashVIDLlavaVideoProcessor
from .models.qwen.configuration_flashvid_qwen2_5_vl import FlashVIDQwen2_5_VLConfig
from .models.qwen.configuration_flashvid_qwen3_vl import FlashVIDQwen3VLConfig
from .models.qwen.configuration_flashvid_qwen3_vl_moe import FlashVIDQwen3VLMoeConfig
from .models.qwen.modeling_flashvid_qwen2_5_vl import (
    FlashVIDQwen2_5_VLForConditionalGeneration,
    FlashVIDQwen2_5_VLModel,
)
from .models.qwen.modeling_flashvid_qwen3_vl import FlashVIDQwen3VLForConditionalGeneration, FlashVIDQwen3VLModel
from .models.qwen.modeling_flashvid_qwen3_vl_moe import (
    FlashVIDQwen3VLMoeForConditionalGeneration,
    FlashVIDQwen3VLMoeModel,
)


class Family(NamedTuple):
    """The classes of a model family; `processor` where upstream's does not serve."""

    config: Any
    base_model: Any
    generative_model: Any
    processor: Any = None


FAMILIES = (
    # One line for each family.
    Family(FlashVIDQwen2_5_VLConfig, FlashVIDQwen2_5_VLModel, FlashVIDQwen2_5_VLForConditionalGeneration),
    Family(FlashVIDQwen3VLConfig, FlashVIDQwen3VLModel, FlashVIDQwen3VLForConditionalGeneration),
    Family(FlashVIDQwen3VLMoeConfig, FlashVIDQwen3VLMoeModel, FlashVIDQwen3VLMoeForConditionalGeneration),
    Family(
        FlashVIDLlavaOnevisionConfig,
        FlashVIDLlavaOnevisionModel,
        FlashVIDLlavaOnevisionForConditionalGeneration,
    ),
    Family(
        FlashVIDLlavaVideoConfig,
        FlashVIDLlavaVideoModel,
        FlashVIDLlavaVideoForConditionalGeneration,
        FlashVIDLlavaVideoProcessor,
    ),
)


def family_of_type(model_type: str | None) -> Family | None:
    """The family with this `model_type` of ours ("flashvid_..."); `None` if there is none."""
    return next((family for family in FAMILIES if family.config.model_type == model_type), None)


def find_family(pretrained_model_name_or_path: str | os.PathLike, **hub_kwargs: Any) -> Family:
    """The family of a FlashVID folder, an upstream checkpoint or an original LLaVA checkpoint, by its configuration.

    Raises:
        ValueError: no family reads it.
    """
    config_dict, _ = PreTrainedConfig.get_config_dict(pretrained_model_name_or_path, **hub_kwargs)
    for family in FAMILIES:
        if config_dict.get("model_type") is not None and family.config.accepts(config_dict):
            return family
    known = ", ".join(repr(family.config.base_model_type) for family in FAMILIES)
    raise ValueError(
        f"`model_type` of {str(pretrained_model_name_or_path)!r} is {config_dict.get('model_type')!r}: FlashVID has "
        f"models for {known}. Choose a checkpoint of one of them."
    )


def load_processor(pretrained_model_name_or_path: str | os.PathLike, **hub_kwargs: Any) -> ProcessorMixin:
    """The processor of any checkpoint that `find_family` knows; original LLaVA checkpoints bring only a tokenizer."""
    config_dict, _ = PreTrainedConfig.get_config_dict(pretrained_model_name_or_path, **hub_kwargs)
    loader = FlashVIDLlavaVideoProcessor if is_original(config_dict) else AutoProcessor
    return loader.from_pretrained(pretrained_model_name_or_path, **hub_kwargs)
