"""Qwen3-VL with FlashVID, inside vLLM.

Every frame of a video has a timestamp before its tokens, and marks around them. The number of kept tokens of a frame is
known only after the video is encoded, so the text between the frames enters as rows of the video.
"""

from typing import Any

import torch
import torch.nn.functional as F
from vllm.model_executor.models.qwen3_vl import (
    Qwen3VLDummyInputsBuilder,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMultiModalProcessor,
    Qwen3VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from ..compression.compressed_video import CompressedVideo
from ..methods.compression_method import CompressionMethod
from .positions import append_positions
from .processing import CompressedVideoProcessorMixin
from .qwen import FlashVIDQwenMixin
from .qwen_positions import uncompressed_positions


def uncompressed_ids(timestamps: Any, tokens_per_frame: int, tokenizer: Any, config: Any) -> torch.Tensor:
    """Token ids of a whole video, the text between its frames included."""
    replacement = Qwen3VLMultiModalProcessor.get_video_repl(
        tokens_per_frame=[tokens_per_frame] * len(timestamps),
        timestamps=timestamps,
        tokenizer=tokenizer,
        vision_start_token_id=config.vision_start_token_id,
        vision_end_token_id=config.vision_end_token_id,
        video_token_id=config.video_token_id,
    )
    return torch.tensor(replacement.full)


class FlashVIDQwen3VLProcessor(CompressedVideoProcessorMixin, Qwen3VLMultiModalProcessor):
    def num_rows(self, method: CompressionMethod, video: Any) -> int:
        config = self.info.get_hf_config()
        frames, height, width = video["video_grid_thw"].data.tolist()
        side = config.vision_config.spatial_merge_size
        text = uncompressed_ids(video["timestamps"].data, 0, self.info.get_tokenizer(), config)
        return len(text) + method.exact_num_tokens(frames, (height // side) * (width // side))


@MULTIMODAL_REGISTRY.register_processor(
    FlashVIDQwen3VLProcessor, info=Qwen3VLProcessingInfo, dummy_inputs=Qwen3VLDummyInputsBuilder
)
class FlashVIDQwen3VL(FlashVIDQwenMixin, Qwen3VLForConditionalGeneration):
    """vLLM's Qwen3-VL with compressed videos. A kept token has the deepstack features of its own place."""

    supported_video_pruning_methods = ("evs",)  # for every method of ours: vLLM has no other name that turns pruning on

    def lay_out(
        self, rows: torch.Tensor, video: CompressedVideo, grid: list[int], video_input: Any, index: int
    ) -> torch.Tensor:
        _, height, width = self.merged_grid(grid)
        ids = uncompressed_ids(video_input["timestamps"][index], height * width, self._tokenizer, self.config)
        is_video = ids == self.config.video_token_id
        positions = uncompressed_positions(is_video, height, width).to(rows.device)
        text_places, video_places = (mask.nonzero()[:, 0].to(rows.device) for mask in (~is_video, is_video))

        text = self.get_language_model().embed_input_ids(ids[~is_video].to(rows.device))
        levels = rows[video.indices, video.tokens.shape[1] :]
        kept = torch.cat([F.pad(text, (0, levels.shape[1])), torch.cat([video.tokens, levels], dim=1)])
        places, order = torch.cat([text_places, video_places[video.indices]]).sort()
        return append_positions(kept[order], positions[:, places])

    def num_positions(self, feature: Any) -> int:
        frames, height, width = self.merged_grid(feature.data[f"{feature.modality}_grid_thw"].data.tolist())
        if feature.modality == "image":
            return max(height, width)
        num_text = feature.mm_position.length - self.method.exact_num_tokens(frames, height * width)
        return num_text + frames * max(height, width)
