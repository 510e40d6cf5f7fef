"""The record of Qwen2-VL."""

from transformers import Qwen2VLVideoProcessor

from ..family import Family, PublishedSize
from .configuration_flashvid_qwen2_vl import FlashVIDQwen2VLConfig
from .family_qwen import PROCESSING, ROPE, QwenGeometry, small_shape, tiny_shape
from .modeling_flashvid_qwen2_vl import FlashVIDQwen2VLForConditionalGeneration, FlashVIDQwen2VLModel
from .processing_flashvid_qwen2_vl import FlashVIDQwen2VLProcessor


def _tower_widths(width: int) -> dict[str, int]:
    """See `tower_widths`; here `hidden_size` is the width of the output alone."""
    return {"embed_dim": width, "mlp_ratio": 2, "hidden_size": width}


FAMILY = Family(
    FlashVIDQwen2VLConfig,
    FlashVIDQwen2VLModel,
    FlashVIDQwen2VLForConditionalGeneration,
    FlashVIDQwen2VLProcessor,
    title="Qwen2-VL",
    geometry=QwenGeometry(),
    published_vision={"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2},
    is_exact=True,
    published_sizes=(
        # Public copies of the bases' config.json.
        PublishedSize("Qwen/Qwen2-VL-2B-Instruct", 28),
        PublishedSize("Qwen/Qwen2-VL-7B-Instruct", 28),
        PublishedSize("Qwen/Qwen2-VL-72B-Instruct", 80),
    ),
    processing=PROCESSING,
    tiny=tiny_shape(
        text={"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}},
        vision={},
        widths=_tower_widths,
    ),
    small=small_shape(
        FlashVIDQwen2VLProcessor,
        Qwen2VLVideoProcessor,
        text={"rope_parameters": {**ROPE, "mrope_section": [2, 3, 3]}},
        vision={"patch_size": 14},
        widths=_tower_widths,
    ),
)
