"""LLaVA-OneVision with FlashVID, inside vLLM."""

import re
from typing import Any

import torch
from vllm.model_executor.models.llava_onevision import (
    LlavaOnevisionDummyInputsBuilder,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionMultiModalProcessor,
    LlavaOnevisionProcessingInfo,
)
from vllm.model_executor.models.utils import WeightsMapper
from vllm.multimodal import MULTIMODAL_REGISTRY

from ..methods.compression_method import CompressionMethod
from ..models.llava.newlines import pooled_side
from .processing import CompressedVideoProcessorMixin
from .received_attention import recorded
from .settings import engine_method


class FlashVIDLlavaOnevisionProcessor(CompressedVideoProcessorMixin, LlavaOnevisionMultiModalProcessor):
    def num_rows(self, method: CompressionMethod, video: Any) -> int:
        vision = self.info.get_hf_config().vision_config
        side = pooled_side("bilinear", vision.image_size // vision.patch_size)
        return method.exact_num_tokens(len(video["pixel_values_videos"].data), side**2) + 1  # 1 for the newline


@MULTIMODAL_REGISTRY.register_processor(
    FlashVIDLlavaOnevisionProcessor, info=LlavaOnevisionProcessingInfo, dummy_inputs=LlavaOnevisionDummyInputsBuilder
)
class FlashVIDLlavaOnevision(LlavaOnevisionForConditionalGeneration):
    """vLLM's LLaVA-OneVision with compressed videos. Positions are consecutive."""

    # Names of the vision tower's weights: transformers 5 writes them without "vision_model", older checkpoints with it.
    hf_to_vllm_mapper = LlavaOnevisionForConditionalGeneration.hf_to_vllm_mapper | WeightsMapper(
        orig_to_new_regex={re.compile(r"^(model\.)?vision_tower\.(?!vision_model\.)"): "vision_tower.vision_model."}
    )
    supports_multimodal_pruning = True  # makes vLLM encode one video at a time

    def __init__(self, *, vllm_config: Any, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.method = engine_method(self.config)

    def _process_video_pixels(self, inputs: Any) -> Any:
        if self.method is None:
            return super()._process_video_pixels(inputs)
        videos = list(inputs["pixel_values_videos"])
        num_frames = [len(video) for video in videos]
        layer = self.vision_tower.vision_model.encoder.layers[-1]
        with recorded(layer.self_attn.attn if self.method.signals else None) as recording:
            features = self._video_pixels_to_features(self.vision_tower, torch.cat(videos))
        if self.method.signals:
            patches = recording.query.shape[1]
            received = recording.received([patches] * len(features)).view(len(features), patches, 1)
            attention = self.apply_pooling(received)[..., 0]
        else:
            attention = features.new_zeros(features.shape[:2])
        newline = self.image_newline[None].to(features)
        compressed = [*map(self.method.compress, features.split(num_frames), attention.split(num_frames))]
        for video in compressed:  # waits for the device, so only after all videos were given to it
            video.check()
        return [torch.cat([video.tokens, newline]) for video in compressed]
