"""The record of Qwen2.5-VL."""

from transformers import Qwen2VLVideoProcessor

from ..family import Family, PaperSetup, PublishedSize
from .configuration_flashvid_qwen2_5_vl import FlashVIDQwen2_5_VLConfig
from .family_qwen import PROCESSING, ROPE, QwenGeometry, small_shape, tiny_shape
from .modeling_flashvid_qwen2_5_vl import FlashVIDQwen2_5_VLForConditionalGeneration, FlashVIDQwen2_5_VLModel
from .processing_flashvid_qwen2_5_vl import FlashVIDQwen2_5_VLProcessor

FAMILY = Family(
    FlashVIDQwen2_5_VLConfig,
    FlashVIDQwen2_5_VLModel,
    FlashVIDQwen2_5_VLForConditionalGeneration,
    FlashVIDQwen2_5_VLProcessor,
    title="Qwen2.5-VL",
    geometry=QwenGeometry(),
    published_vision={"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2},
    is_exact=True,
    published_sizes=(
        # A public copy of the base's config.json.
        PublishedSize("Qwen/Qwen2.5-VL-3B-Instruct", 36),
        # FlashVID's paper and scripts (K = 20 of L = 28).
        PublishedSize("Qwen/Qwen2.5-VL-7B-Instruct", 28),
        # The model cards of the language models that these two start from, Qwen/Qwen2.5-32B and Qwen/Qwen2.5-72B.
        PublishedSize("Qwen/Qwen2.5-VL-32B-Instruct", 64),
        PublishedSize("Qwen/Qwen2.5-VL-72B-Instruct", 80),
    ),
    paper_setup=PaperSetup("Qwen/Qwen2.5-VL-7B-Instruct", 32),
    processing=PROCESSING,
    vllm="flashvid_hf.vllm_plugin.qwen2_5_vl:FlashVIDQwen2_5_VL",
    # The last of four vision blocks sees whole frames, the others windows of 2 x 2 tokens.
    tiny=tiny_shape(
        text={"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}},
        vision={"window_size": 16, "fullatt_block_indexes": [1, 3]},
    ),
    small=small_shape(
        FlashVIDQwen2_5_VLProcessor,
        Qwen2VLVideoProcessor,
        text={"rope_parameters": {**ROPE, "mrope_section": [2, 3, 3]}},
        vision={"patch_size": 14, "fullatt_block_indexes": [1, 3]},
    ),
)
