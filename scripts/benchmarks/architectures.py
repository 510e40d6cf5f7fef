"""The models that the benchmarks measure: upstream's classes in published sizes, with random weights.

Speed does not depend on the values of the weights, so nothing is downloaded. The sizes are meant to be those of
`config.json` and of the processor's configuration in the named repository on the Hub. They were written by hand, and
have not been compared with these files.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from transformers import (
    AutoModelForImageTextToText,
    LlavaOnevisionConfig,
    LlavaOnevisionVideoProcessor,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLVideoProcessor,
    set_seed,
)

from flashvid_hf import FAMILIES, Family, FlashVIDLlavaVideoConfig
from flashvid_hf.tiny_models import build_processor, build_tokenizer, upstream_fields


class Architecture(NamedTuple):
    """A model to measure.

    Args:
        source: the repository whose sizes these are, or another description of them.
        config: makes upstream's configuration. transformers has no LLaVA-Video; for that family "upstream" is this
            package's class with `retention_ratio=1.0`, which runs upstream's code on all tokens.
        video_processor: makes the family's video processor with the published settings.
    """

    source: str
    config: Callable[[], Any]
    video_processor: Callable[[], Any]


ROPE = {"rope_type": "default", "rope_theta": 1e6}


def text(hidden: int, intermediate: int, layers: int, heads: int, key_heads: int, **fields: Any) -> dict[str, Any]:
    """Configuration fields of a language model like Qwen2."""
    sizes = {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
    }
    return {**sizes, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_parameters": ROPE, **fields}


def siglip(hidden: int, intermediate: int, layers: int, heads: int) -> dict[str, Any]:
    """Fields of a SigLIP vision tower on 384 pixels: 27 x 27 patches, pooled to 14 x 14 or 13 x 13 tokens."""
    sizes = {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }
    return {"model_type": "siglip_vision_model", **sizes, "patch_size": 14, "image_size": 384, "vision_use_head": False}


SO400M = siglip(1152, 4304, 26, 16)  # google/siglip-so400m-patch14-384 without its last layer, which LLaVA does not use
QWEN2 = {"model_type": "qwen2", "vocab_size": 152000}  # llava-hf pads the vocabulary to this size
QWEN2_5_VISION = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
}
QWEN3_VISION = {
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_heads": 16,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "num_position_embeddings": 2304,
    "deepstack_visual_indexes": [8, 16, 24],
}
MROPE = {"rope_parameters": {**ROPE, "mrope_section": [16, 24, 24]}, "max_position_embeddings": 128000}

HALF = [0.5, 0.5, 0.5]
llava_pixels = partial(
    LlavaOnevisionVideoProcessor, size={"height": 384, "width": 384}, image_mean=HALF, image_std=HALF
)
# `cap_pixels_per_frame` is set explicitly, because upstream's default is going to change.
qwen2_5_pixels = partial(
    Qwen2VLVideoProcessor, size={"shortest_edge": 3136, "longest_edge": 12845056}, cap_pixels_per_frame=False
)
qwen3_pixels = partial(
    Qwen3VLVideoProcessor,
    size={"shortest_edge": 4096, "longest_edge": 25165824},
    image_mean=HALF,
    image_std=HALF,
    cap_pixels_per_frame=False,
)


def tiny(family: Family) -> Architecture:
    """The shape of the small models of `flashvid_hf.tiny_models`, to try the benchmarks. Their numbers mean nothing."""

    def config() -> Any:
        fields = upstream_fields(build_tokenizer(family), family)
        if family.has_upstream_checkpoints:
            return family.upstream_model.config_class(**fields)
        return family.config(**fields, retention_ratio=1.0)

    return Architecture("flashvid_hf/tiny_models.py", config, lambda: build_processor(family).video_processor)


def llava(
    source: str,
    text_config: dict[str, Any],
    vision_config: dict[str, Any],
    config_class: Callable[..., Any] = LlavaOnevisionConfig,
) -> Architecture:
    fields = {"tie_word_embeddings": text_config.get("tie_word_embeddings", False)}
    config = partial(config_class, text_config=text_config, vision_config=vision_config, **fields)
    return Architecture(source, config, llava_pixels)


def qwen(
    source: str,
    config_class: Any,
    text_config: dict[str, Any],
    vision_config: dict[str, Any],
    video_processor: Callable[[], Any],
    **fields: Any,
) -> Architecture:
    vision_config = {**vision_config, "out_hidden_size": text_config["hidden_size"]}
    return Architecture(
        source, partial(config_class, text_config=text_config, vision_config=vision_config, **fields), video_processor
    )


ARCHITECTURES = {
    "llava-onevision-7b": llava(
        "llava-hf/llava-onevision-qwen2-7b-ov-hf", text(3584, 18944, 28, 28, 4, **QWEN2), SO400M
    ),
    "llava-onevision-0.5b": llava(
        "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
        text(896, 4864, 24, 14, 2, **QWEN2, tie_word_embeddings=True),
        SO400M,
    ),
    "llava-onevision-small": llava(
        "made up for the CPU: the shape and the token counts of LLaVA-OneVision",
        text(320, 1280, 14, 5, 1, **QWEN2, tie_word_embeddings=True),
        siglip(192, 768, 4, 3),
    ),
    "llava-video-7b": llava(
        "lmms-lab/LLaVA-Video-7B-Qwen2",
        text(3584, 18944, 28, 28, 4, **{**QWEN2, "vocab_size": 152064}),
        SO400M,
        partial(FlashVIDLlavaVideoConfig, retention_ratio=1.0),
    ),
    "qwen2.5-vl-3b": qwen(
        "Qwen/Qwen2.5-VL-3B-Instruct",
        Qwen2_5_VLConfig,
        text(2048, 11008, 36, 16, 2, vocab_size=151936, tie_word_embeddings=True, **MROPE),
        QWEN2_5_VISION,
        qwen2_5_pixels,
        tie_word_embeddings=True,
    ),
    "qwen2.5-vl-7b": qwen(
        "Qwen/Qwen2.5-VL-7B-Instruct",
        Qwen2_5_VLConfig,
        text(3584, 18944, 28, 28, 4, vocab_size=152064, **MROPE),
        QWEN2_5_VISION,
        qwen2_5_pixels,
    ),
    "qwen3-vl-8b": qwen(
        "Qwen/Qwen3-VL-8B-Instruct",
        Qwen3VLConfig,
        text(
            4096,
            12288,
            36,
            32,
            8,
            head_dim=128,
            vocab_size=151936,
            max_position_embeddings=262144,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 5e6,
                "mrope_section": [24, 20, 20],
                "mrope_interleaved": True,
            },
        ),
        QWEN3_VISION,
        qwen3_pixels,
    ),
    **{f"tiny-{family.name.replace('_', '-')}": tiny(family) for family in FAMILIES},
}


def build_upstream(architecture: Architecture, device: str, dtype: Any, attn_implementation: str) -> PreTrainedModel:
    """Upstream's model with its own random initialization, made on the device."""
    set_seed(0)
    # The weights are created on the device itself, so a 7B model never passes through the CPU's memory.
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(
            architecture.config(), dtype=dtype, attn_implementation=attn_implementation
        )
    model.generation_config.eos_token_id = None  # answers always have the requested length
    model.generation_config.pad_token_id = 0
    return model.eval()
