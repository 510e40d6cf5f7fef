"""The record of Qwen3-VL."""

from transformers import Qwen3VLVideoProcessor

from ..family import Family, PaperSetup, PublishedSize
from .configuration_flashvid_qwen3_vl import FlashVIDQwen3VLConfig
from .family_qwen import PROCESSING, ROPE, QwenGeometry, small_shape, tiny_shape
from .modeling_flashvid_qwen3_vl import FlashVIDQwen3VLForConditionalGeneration, FlashVIDQwen3VLModel
from .processing_flashvid_qwen3_vl import FlashVIDQwen3VLProcessor

FAMILY = Family(
    FlashVIDQwen3VLConfig,
    FlashVIDQwen3VLModel,
    FlashVIDQwen3VLForConditionalGeneration,
    FlashVIDQwen3VLProcessor,
    title="Qwen3-VL",
    geometry=QwenGeometry(runs_per_grid=True),
    published_vision={"patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2},
    is_exact=True,
    published_sizes=(
        # Public code that loads the checkpoint (28 blocks of width 2048, as in Qwen/Qwen3-1.7B).
        PublishedSize("Qwen/Qwen3-VL-2B-Instruct", 28),
        # Public notes taken from the base's config.json (width 2560, 36 layers).
        PublishedSize("Qwen/Qwen3-VL-4B-Instruct", 36),
        # FlashVID's scripts (K = 28 of L = 36).
        PublishedSize("Qwen/Qwen3-VL-8B-Instruct", 36),
        # Public notes taken from the base's config.json (width 5120, 64 layers).
        PublishedSize("Qwen/Qwen3-VL-32B-Instruct", 64),
    ),
    paper_setup=PaperSetup("Qwen/Qwen3-VL-8B-Instruct", 32, "videomme_qwen3_vl"),
    processing=PROCESSING,
    vllm="flashvid_hf.vllm_plugin.qwen3_vl:FlashVIDQwen3VL",
    # The first three language layers take in deepstack features.
    tiny=tiny_shape(
        text={
            "head_dim": 8,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [2, 1, 1],
                "mrope_interleaved": True,
            },
        },
        vision={"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1, 2]},
    ),
    small=small_shape(
        FlashVIDQwen3VLProcessor,
        Qwen3VLVideoProcessor,
        text={"head_dim": 16, "rope_parameters": {**ROPE, "mrope_section": [3, 3, 2], "mrope_interleaved": True}},
        vision={"patch_size": 16, "deepstack_visual_indexes": [0, 1, 2]},
    ),
)
