"""Qwen2.5-VL with FlashVID, inside vLLM."""

from typing import Any

import torch
from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLDummyInputsBuilder,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from ..compression.compressed_video import CompressedVideo
from ..methods.compression_method import CompressionMethod
from .positions import append_positions
from .processing import CompressedVideoProcessorMixin
from .qwen import FlashVIDQwenMixin
from .qwen_positions import grid_positions


class FlashVIDQwen2_5_VLProcessor(CompressedVideoProcessorMixin, Qwen2_5_VLMultiModalProcessor):
    def num_rows(self, method: CompressionMethod, video: Any) -> int:
        frames, height, width = video["video_grid_thw"].data.tolist()
        side = self.info.get_hf_config().vision_config.spatial_merge_size
        return method.exact_num_tokens(frames, (height // side) * (width // side))


@MULTIMODAL_REGISTRY.register_processor(
    FlashVIDQwen2_5_VLProcessor, info=Qwen2_5_VLProcessingInfo, dummy_inputs=Qwen2_5_VLDummyInputsBuilder
)
class FlashVIDQwen2_5_VL(FlashVIDQwenMixin, Qwen2_5_VLForConditionalGeneration):
    """vLLM's Qwen2.5-VL with compressed videos.

    Positions are vLLM's, which are those of the original model: the text after a video begins after its largest
    position.
    """

    def restore_order(self, attention: torch.Tensor, grid: list[int]) -> torch.Tensor:
        # Inside the vision tower the tokens are sorted by attention windows.
        window_index, _ = self.visual.get_window_index_thw(*grid)
        return attention[window_index.to(attention.device).argsort()]

    def lay_out(
        self, rows: torch.Tensor, video: CompressedVideo, grid: list[int], video_input: Any, index: int
    ) -> torch.Tensor:
        seconds = video_input["second_per_grid_ts"]
        positions = self._video_positions(grid, None if seconds is None else seconds[index])
        return append_positions(video.tokens, positions.to(rows.device)[:, video.indices])

    def num_positions(self, feature: Any) -> int:
        if feature.modality == "image":
            _, height, width = self.merged_grid(feature.data["image_grid_thw"].data.tolist())
            return max(height, width)
        seconds = feature.data.get("second_per_grid_ts")
        positions = self._video_positions(
            feature.data["video_grid_thw"].data.tolist(), None if seconds is None else seconds.data
        )
        return int(positions.max()) + 1

    def _video_positions(self, grid: list[int], seconds: torch.Tensor | None) -> torch.Tensor:
        interval = 1.0 if seconds is None else float(seconds)
        return grid_positions(self.merged_grid(grid), self.config.vision_config.tokens_per_second * interval)
