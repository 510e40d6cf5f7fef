"""The record of Qwen3-VL with experts (mixture of experts): the record of Qwen3-VL with other classes and sizes."""

import dataclasses
from typing import Any

from transformers import ProcessorMixin, Qwen3VLVideoProcessor

from ..family import PublishedSize
from .configuration_flashvid_qwen3_vl_moe import FlashVIDQwen3VLMoeConfig
from .family_qwen import make_small_processor
from .family_qwen3_vl import FAMILY as QWEN3_VL
from .modeling_flashvid_qwen3_vl_moe import FlashVIDQwen3VLMoeForConditionalGeneration, FlashVIDQwen3VLMoeModel
from .processing_flashvid_qwen3_vl_moe import FlashVIDQwen3VLMoeProcessor


def _make_small_processor(config: Any, tokenizer: Any) -> ProcessorMixin:
    return make_small_processor(FlashVIDQwen3VLMoeProcessor, Qwen3VLVideoProcessor, config, tokenizer)


def _with_experts(shape: Any, width: int) -> Any:
    """Add experts to a shape: eight in every layer. Each token goes to two of them.

    Args:
        shape: the shape without experts.
        width: width of an expert.
    """
    experts = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": width}
    return dataclasses.replace(shape, text={**shape.text, **experts})


FAMILY = dataclasses.replace(
    QWEN3_VL,
    config=FlashVIDQwen3VLMoeConfig,
    base_model=FlashVIDQwen3VLMoeModel,
    generative_model=FlashVIDQwen3VLMoeForConditionalGeneration,
    processor=FlashVIDQwen3VLMoeProcessor,
    title="Qwen3-VL with experts",
    published_sizes=(
        # Public tests that quote the base's config.json (128 experts, 48 layers).
        PublishedSize("Qwen/Qwen3-VL-30B-A3B-Instruct", 48),
    ),
    paper_setup=None,
    vllm="flashvid_hf.vllm_plugin.qwen3_vl_moe:FlashVIDQwen3VLMoe",
    tiny=_with_experts(QWEN3_VL.tiny, 24),
    small=dataclasses.replace(_with_experts(QWEN3_VL.small, 48), make_processor=_make_small_processor),
)
