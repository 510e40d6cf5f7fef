"""The model families. Each has a configuration, models, a processor and a record, and one line here."""

import os
from importlib import import_module
from typing import Any

from transformers import AutoProcessor, PreTrainedConfig, ProcessorMixin

from .compression.validation import check_choice
from .models.family import Family, OriginalFormat

# The modules of the records. A new family needs its own files and one line here, and no change elsewhere.
RECORDS = (
    "models.qwen.family_qwen2_5_vl",
    "models.qwen.family_qwen2_vl",
    "models.qwen.family_qwen3_vl",
    "models.qwen.family_qwen3_vl_moe",
    "models.llava.family_llava_onevision",
    "models.llava.family_llava_video",
)
FAMILIES: tuple[Family, ...] = tuple(import_module(f".{name}", __package__).FAMILY for name in RECORDS)
# The families by their `model_type` without "flashvid_", such as "qwen2_5_vl".
FAMILIES_BY_NAME = {family.name: family for family in FAMILIES}


def family_of_type(model_type: str | None) -> Family | None:
    """The family with this FlashVID `model_type` ("flashvid_..."); `None` if there is none."""
    return next((family for family in FAMILIES if family.config.model_type == model_type), None)


def family_of_config(config: PreTrainedConfig) -> Family:
    """The family of a FlashVID configuration: of this package, of remote code, or of a subclass of one.

    Raises:
        ValueError: the configuration belongs to no family.
    """
    for ancestor in type(config).__mro__:
        family = family_of_type(getattr(ancestor, "model_type", None))
        if family is not None:
            return family
    known = ", ".join(repr(family.config.model_type) for family in FAMILIES)
    raise ValueError(
        f"`config` has the `model_type` {config.model_type!r}: FlashVID's configurations have {known}. Pass the "
        "configuration of a FlashVID model."
    )


def family_named(name: str) -> Family:
    """The family with this name, one of `FAMILIES_BY_NAME`.

    Raises:
        ValueError: there is no such family.
    """
    check_choice("family", name, FAMILIES_BY_NAME)
    return FAMILIES_BY_NAME[name]


def families_that_accept(config_dict: dict[str, Any]) -> list[Family]:
    """The families that read a checkpoint with this `config.json`, in order of preference."""
    if config_dict.get("model_type") is None:
        return []
    return [family for family in FAMILIES if family.config.accepts(config_dict)]


def find_family(pretrained_model_name_or_path: str | os.PathLike, **hub_kwargs: Any) -> Family:
    """The family of a FlashVID folder, an upstream checkpoint or an original LLaVA checkpoint, by its configuration.

    Raises:
        ValueError: no family reads the checkpoint.
    """
    config_dict, _ = PreTrainedConfig.get_config_dict(pretrained_model_name_or_path, **hub_kwargs)
    for family in families_that_accept(config_dict):
        return family
    known = ", ".join(repr(family.config.base_model_type) for family in FAMILIES)
    raise ValueError(
        f"`model_type` of {str(pretrained_model_name_or_path)!r} is {config_dict.get('model_type')!r}: FlashVID has "
        f"models for {known}. Choose a checkpoint of one of them."
    )


def find_original_format(config_dict: dict[str, Any]) -> OriginalFormat | None:
    """The `OriginalFormat` of a checkpoint with this `config.json`; `None` if the checkpoint has no original format.

    Families that read the same checkpoints may build different processors for them. Use `family.original` for those.
    """
    formats = (family.original for family in FAMILIES if family.original is not None)
    return next((found for found in formats if found.matches(config_dict)), None)


def load_processor(pretrained_model_name_or_path: str | os.PathLike, **hub_kwargs: Any) -> ProcessorMixin:
    """The processor of any checkpoint that `find_family` knows; original LLaVA checkpoints have only a tokenizer."""
    config_dict, _ = PreTrainedConfig.get_config_dict(pretrained_model_name_or_path, **hub_kwargs)
    original = find_original_format(config_dict)
    load = AutoProcessor.from_pretrained if original is None else original.load_processor
    return load(pretrained_model_name_or_path, **hub_kwargs)
