"""Converts checkpoints of the original LLaVA code, such as lmms-lab's LLaVA-OneVision and LLaVA-Video, for upstream.

Their `config.json` is flat: it holds the Qwen2 fields of the language model beside the fields of the vision part.
`model_type` is "llava_qwen", or "llava" with the architecture `LlavaQwenForCausalLM`.
"""

from dataclasses import fields
from typing import Any

from transformers import PreTrainedConfig, Qwen2Config
from transformers.utils import logging

logger = logging.get_logger(__name__)

# The vision tower of all these checkpoints. Upstream's default describes it without its last layer, which the original
# code removes.
VISION_TOWER = "google/siglip-so400m-patch14-384"
# Fields that change what the model computes, with the only values that upstream's LLaVA-OneVision supports.
_REQUIRED: dict[str, tuple[Any, ...]] = {
    "mm_projector_type": ("mlp2x_gelu",),
    "mm_patch_merge_type": ("spatial_unpad",),
    "mm_resampler_type": (None,),
    "mm_spatial_pool_stride": (2, None),
    "mm_use_im_start_end": (None, False),
    "add_faster_video": (None, False),
}
# How the original code writes all grids of up to 6 x 6 tiles of an image. These grids are upstream's default.
_ALL_GRIDS = "(1x1),...,(6x6)"
# Defaults of the original code for fields that `config.json` lacks.
_LAYOUT = {"mm_spatial_pool_mode": "bilinear", "mm_newline_position": "one_token"}
# Names of weights in these checkpoints, and their names in upstream's LLaVA-OneVision.
ORIGINAL_KEY_MAPPING = {
    r"^model\.vision_tower\.vision_tower": "model.vision_tower",
    r"^model\.mm_projector\.0": "model.multi_modal_projector.linear_1",
    r"^model\.mm_projector\.2": "model.multi_modal_projector.linear_2",
    r"^model\.embed_tokens": "model.language_model.embed_tokens",
    r"^model\.layers": "model.language_model.layers",
    r"^model\.norm": "model.language_model.norm",
}
_TEXT_FIELDS = {field.name for field in fields(Qwen2Config)} - {field.name for field in fields(PreTrainedConfig)}


def is_original(config_dict: dict[str, Any]) -> bool:
    """Whether this is the configuration of an original checkpoint with a Qwen2 language model."""
    architectures = config_dict.get("architectures") or ()
    return config_dict.get("model_type") == "llava_qwen" or "LlavaQwenForCausalLM" in architectures


def original_layout(config_dict: dict[str, Any]) -> dict[str, str]:
    """How an original checkpoint pools frames (`mm_spatial_pool_mode`) and places newlines (`mm_newline_position`)."""
    return {name: config_dict.get(name) or default for name, default in _LAYOUT.items()}


def convert_original(config_dict: dict[str, Any]) -> dict[str, Any]:
    """Convert the configuration of an original checkpoint to one of upstream's LLaVA-OneVision.

    The placeholders take the first two rows of the embedding that no token of Qwen2 uses, 151646 and 151647, as in the
    conversions of llava-hf.

    Args:
        config_dict: `config.json` as a dictionary. It may also have `vision_config`, for another SigLIP tower, and
            `image_token_index` and `video_token_index`, for other placeholders.

    Raises:
        ValueError: a field has a value that upstream does not support, or the vocabulary is too small.
    """
    tower = config_dict.get("mm_vision_tower")
    if tower != VISION_TOWER and config_dict.get("vision_config") is None:
        raise ValueError(
            f"`mm_vision_tower` is {tower!r}: FlashVID reads original LLaVA checkpoints with {VISION_TOWER!r}. For "
            "another SigLIP tower, add its configuration without its last layer to `config.json` as `vision_config`."
        )
    for name, values in _REQUIRED.items():
        if config_dict.get(name) not in values:
            raise ValueError(
                f"`{name}` is {config_dict.get(name)!r}: FlashVID reads only original LLaVA checkpoints with "
                f"{values[0]!r}. Choose such a checkpoint."
            )
    text_fields = (_TEXT_FIELDS | {"rope_theta", "rope_scaling"}) & config_dict.keys()
    text = {name: config_dict[name] for name in text_fields if config_dict[name] is not None}
    converted = {
        "model_type": "llava_onevision",
        "text_config": {**text, "model_type": "qwen2"},
        "vision_config": config_dict.get("vision_config"),
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "image_token_index": config_dict.get("image_token_index", 151646),
        "video_token_index": config_dict.get("video_token_index", 151647),
        "tie_word_embeddings": config_dict.get("tie_word_embeddings", False),
        "dtype": config_dict.get("dtype", config_dict.get("torch_dtype")),
    }
    vocab_size = text.get("vocab_size", Qwen2Config.vocab_size)
    for name in ("image_token_index", "video_token_index"):
        if converted[name] >= vocab_size:
            raise ValueError(
                f"`{name}` is {converted[name]} and `vocab_size` is {vocab_size}: the placeholder needs a row "
                f"of the embedding. Set `{name}` in `config.json` to one that no token has."
            )
    pinpoints = config_dict.get("image_grid_pinpoints")
    if isinstance(pinpoints, list):
        converted["image_grid_pinpoints"] = pinpoints
    elif pinpoints not in (None, _ALL_GRIDS):
        raise ValueError(
            f"`image_grid_pinpoints` is {pinpoints!r}: it must be a list of heights and widths in pixels, or "
            f"{_ALL_GRIDS!r}. Write it out in `config.json`."
        )
    if str(config_dict.get("image_aspect_ratio")).startswith("anyres_max_"):
        converted["vision_aspect_ratio"] = config_dict["image_aspect_ratio"]
    else:
        logger.warning_once(
            f"`image_aspect_ratio` is {config_dict.get('image_aspect_ratio')!r}: upstream cuts images (not "
            "videos) as with 'anyres_max_9' instead."
        )
    return converted
