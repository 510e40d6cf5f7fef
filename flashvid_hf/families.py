"""The model families: one line each, beside its configuration and its modeling file."""

from typing import Any, NamedTuple

from transformers import AutoConfig

from .configuration_flashvid_qwen2_5_vl import FlashVIDQwen2_5_VLConfig
from .configuration_flashvid_qwen3_vl import FlashVIDQwen3VLConfig
from .modeling_flashvid_qwen2_5_vl import FlashVIDQwen2_5_VLForConditionalGeneration, FlashVIDQwen2_5_VLModel
from .modeling_flashvid_qwen3_vl import FlashVIDQwen3VLForConditionalGeneration, FlashVIDQwen3VLModel


class Family(NamedTuple):
    """The classes of a model family."""

    config: Any
    base_model: Any
    generative_model: Any


FAMILIES = (
    # One line for each family.
    Family(FlashVIDQwen2_5_VLConfig, FlashVIDQwen2_5_VLModel, FlashVIDQwen2_5_VLForConditionalGeneration),
    Family(FlashVIDQwen3VLConfig, FlashVIDQwen3VLModel, FlashVIDQwen3VLForConditionalGeneration),
)


def find_family(pretrained_model_name_or_path: str, **hub_kwargs: Any) -> Family:
    """The family of a FlashVID folder or of an upstream checkpoint, by the `model_type` of its configuration.

    Raises:
        ValueError: no family reads it.
    """
    model_type = AutoConfig.from_pretrained(pretrained_model_name_or_path, **hub_kwargs).model_type
    for family in FAMILIES:
        if model_type in (family.config.model_type, family.config.base_model_type):
            return family
    known = ", ".join(repr(family.config.base_model_type) for family in FAMILIES)
    raise ValueError(
        f"`model_type` of {pretrained_model_name_or_path!r} is {model_type!r}: FlashVID has models for {known}. Choose "
        "a checkpoint of one of them."
    )
