"""Shared by the Qwen families inside vLLM: positions travel with the rows of images and videos."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from ..compression.compressed_video import CompressedVideo
from .positions import append_positions, place_positions, text_positions
from .qwen_positions import grid_positions
from .received_attention import recorded
from .settings import engine_method


class FlashVIDQwenMixin:
    """Makes a Qwen model of vLLM compress its videos.

    A family defines the layout of a video's rows (`lay_out`), and the order of the tokens inside its vision tower
    (`restore_order`).
    """

    config: Any
    visual: Any

    def __init__(self, *, vllm_config: Any, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        self.method = engine_method(self.config)

    def restore_order(self, attention: torch.Tensor, grid: list[int]) -> torch.Tensor:
        """Reorder a video's tokens from the order inside the vision tower to that of its output, if they differ."""
        return attention

    def lay_out(
        self, rows: torch.Tensor, video: CompressedVideo, grid: list[int], video_input: Any, index: int
    ) -> torch.Tensor:
        """The rows of a compressed video that enter, with their positions appended.

        Args:
            rows: the rows of all its tokens, with shape (T * N, width).
            video: the compressed video.
            grid: its temporal grids, and its height and width in patches.
            video_input: vLLM's description of all videos of the call.
            index: the number of this video among them.
        """
        raise NotImplementedError

    def num_positions(self, feature: Any) -> int:
        """Number of positions by which the text after an image or a video moves on, given vLLM's description of it."""
        raise NotImplementedError

    def merged_grid(self, grid: list[int]) -> tuple[int, int, int]:
        """Temporal grids, and height and width in tokens (`grid` has them in patches)."""
        frames, height, width = grid
        side = self.visual.spatial_merge_size
        return frames, height // side, width // side

    def _process_video_input(self, video_input: Any) -> tuple[torch.Tensor, ...]:
        if self.method is None:
            return super()._process_video_input(video_input)  # type: ignore[misc]
        grids = video_input["video_grid_thw"].tolist()
        with recorded(self.visual.blocks[-1].attn.attn if self.method.signals else None) as recording:
            videos = super()._process_video_input(video_input)  # type: ignore[misc]
        if self.method.signals:
            unit = self.visual.spatial_merge_size**2
            lengths = [height * width for frames, height, width in grids for _ in range(frames)]
            received = recording.received(lengths).view(-1, unit).mean(-1)
            attention = received.split([math.prod(grid) // unit for grid in grids])
            attention = [self.restore_order(part, grid) for part, grid in zip(attention, grids, strict=True)]
        else:
            attention = [rows.new_zeros(len(rows)) for rows in videos]
        width, compressed, checks = self.config.vision_config.out_hidden_size, [], []
        for index, (rows, received, grid) in enumerate(zip(videos, attention, grids, strict=True)):
            features, of_frames = (part.unflatten(0, (grid[0], -1)) for part in (rows[:, :width], received))
            video = self.method.compress(features, of_frames)
            compressed.append(self.lay_out(rows, video, grid, video_input, index))
            checks.append(video.check)
        for check in checks:  # waits for the device, so only after all videos were given to it
            check()
        return tuple(compressed)

    def _postprocess_video_embeds_evs(self, videos: tuple[torch.Tensor, ...], video_input: Any) -> Any:
        return videos  # their rows are complete already

    def _postprocess_image_embeds_evs(self, images: tuple[torch.Tensor, ...], image_input: Any) -> Any:
        if self.method is None:
            return images
        grids = image_input["image_grid_thw"].tolist()
        return tuple(
            append_positions(rows, grid_positions(self.merged_grid(grid)).to(rows.device))
            for rows, grid in zip(images, grids, strict=True)
        )

    def get_mrope_input_positions(
        self, input_tokens: list[int], mm_features: Sequence[Any]
    ) -> tuple[torch.Tensor, int]:
        if self.method is None:
            return super().get_mrope_input_positions(input_tokens, mm_features)  # type: ignore[misc]
        return text_positions(len(input_tokens), mm_features, self.num_positions)

    def recompute_mrope_positions(
        self,
        input_ids: Sequence[int] | torch.Tensor,
        multimodal_embeddings: Sequence[torch.Tensor],
        mrope_positions: torch.Tensor,
        num_computed_tokens: int,
    ) -> tuple[list[torch.Tensor], torch.Tensor, int]:
        media = (self.config.image_token_id, self.config.video_token_id)
        return place_positions(input_ids, multimodal_embeddings, mrope_positions, num_computed_tokens, media)
