"""Qwen3-VL with experts and FlashVID, inside vLLM."""

from vllm.model_executor.models.qwen3_vl import Qwen3VLDummyInputsBuilder
from vllm.model_executor.models.qwen3_vl_moe import Qwen3VLMoeForConditionalGeneration, Qwen3VLMoeProcessingInfo
from vllm.multimodal import MULTIMODAL_REGISTRY

from .qwen3_vl import FlashVIDQwen3VL, FlashVIDQwen3VLProcessor


@MULTIMODAL_REGISTRY.register_processor(
    FlashVIDQwen3VLProcessor, info=Qwen3VLMoeProcessingInfo, dummy_inputs=Qwen3VLDummyInputsBuilder
)
class FlashVIDQwen3VLMoe(FlashVIDQwen3VL, Qwen3VLMoeForConditionalGeneration):
    """vLLM's Qwen3-VL with experts, with videos compressed as in Qwen3-VL."""
