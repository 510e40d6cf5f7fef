"""LLaVA-Video with FlashVID: LLaVA-OneVision with other pooling and other newlines."""

import torch
from torch import nn

from .configuration_flashvid_llava_video import FlashVIDLlavaVideoConfig
from .modeling_flashvid_llava_onevision import (
    FlashVIDLlavaOnevisionForConditionalGeneration,
    FlashVIDLlavaOnevisionModel,
)


class FlashVIDLlavaVideoModel(FlashVIDLlavaOnevisionModel):
    """LLaVA-Video's base model, compressing its videos."""

    config: FlashVIDLlavaVideoConfig
    config_class = FlashVIDLlavaVideoConfig

    def apply_pooling(self, image_features: torch.Tensor) -> torch.Tensor:
        """Pool frames (T, patches, D) to half their width and height, as `mm_spatial_pool_mode` says."""
        if self.config.mm_spatial_pool_mode == "bilinear":
            return super().apply_pooling(image_features)
        side = self.config.vision_config.image_size // self.config.vision_config.patch_size
        pool = nn.functional.avg_pool2d if self.config.mm_spatial_pool_mode == "average" else nn.functional.max_pool2d
        planes = image_features.transpose(1, 2).unflatten(-1, (side, side))
        return pool(planes, kernel_size=2).flatten(2).transpose(1, 2)


class FlashVIDLlavaVideoForConditionalGeneration(FlashVIDLlavaOnevisionForConditionalGeneration):
    """LLaVA-Video with a language modeling head, compressing its videos."""

    config: FlashVIDLlavaVideoConfig
    config_class = FlashVIDLlavaVideoConfig
    base_model_class = FlashVIDLlavaVideoModel


__all__ = ["FlashVIDLlavaVideoForConditionalGeneration", "FlashVIDLlavaVideoModel"]
