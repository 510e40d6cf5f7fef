"""The record of LLaVA-Video: the record of LLaVA-OneVision with other classes, its own processor and other sizes."""

import dataclasses
from typing import Any

from transformers import ProcessorMixin, Qwen2Tokenizer

from ..family import PaperSetup, PublishedSize
from .configuration_flashvid_llava_video import FlashVIDLlavaVideoConfig
from .family_llava_onevision import FAMILY as LLAVA_ONEVISION
from .modeling_flashvid_llava_video import FlashVIDLlavaVideoForConditionalGeneration, FlashVIDLlavaVideoModel
from .processing_flashvid_llava_video import FlashVIDLlavaVideoProcessor


def build_original_processor(config: Any, source: str, revision: str | None) -> ProcessorMixin:
    """The family's processor. An original checkpoint has only a tokenizer."""
    tokenizer = Qwen2Tokenizer.from_pretrained(source, revision=revision)
    return FlashVIDLlavaVideoProcessor.from_config(config, tokenizer)


FAMILY = dataclasses.replace(
    LLAVA_ONEVISION,
    config=FlashVIDLlavaVideoConfig,
    base_model=FlashVIDLlavaVideoModel,
    generative_model=FlashVIDLlavaVideoForConditionalGeneration,
    processor=FlashVIDLlavaVideoProcessor,
    title="LLaVA-Video",
    # transformers has no LLaVA-Video. Its LLaVA-OneVision pools frames and places newlines in this way.
    upstream_settings={"mm_spatial_pool_mode": "bilinear", "mm_newline_position": "one_token"},
    published_sizes=(
        # config.json of the language models that these start from: Qwen/Qwen2-7B and -72B.
        PublishedSize("lmms-lab/LLaVA-Video-7B-Qwen2", 28),
        PublishedSize("lmms-lab/LLaVA-Video-72B-Qwen2", 80),
    ),
    paper_setup=PaperSetup("lmms-lab/LLaVA-Video-7B-Qwen2", 64, "videomme_llava_vid"),
    vllm=None,
    original=dataclasses.replace(
        LLAVA_ONEVISION.original, build_processor=build_original_processor, serves_weightless=True
    ),
    small=dataclasses.replace(LLAVA_ONEVISION.small, make_processor=FlashVIDLlavaVideoProcessor.from_config),
)
