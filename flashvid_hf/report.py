"""What was compressed in a call."""

from dataclasses import dataclass

import torch

from .compression import CompressedVideo


@dataclass(frozen=True)
class CompressionReport:
    """Video tokens of a prompt at every stage, one entry for each video in the order of the prompts.

    Nothing is copied from the device before it is asked for.

    Args:
        videos: how each video was compressed.
        tokens: video tokens before the compression.
        entered: video tokens that entered the language model.
    """

    videos: tuple[CompressedVideo, ...]
    tokens: tuple[int, ...]
    entered: tuple[int, ...]
    _remained: torch.Tensor  # (V,)
    _samples: torch.Tensor  # (V,)

    @property
    def remained(self) -> tuple[int, ...]:
        """Video tokens that the layers from the pruning layer on see."""
        return tuple(self._remained.tolist())

    @property
    def samples(self) -> tuple[int, ...]:
        """Which sample of the batch each video belongs to."""
        return tuple(self._samples.tolist())

    @property
    def segment_lengths(self) -> tuple[tuple[int, ...], ...]:
        """Frames of every segment of every video."""
        return tuple(tuple(video.segment_lengths.tolist()) for video in self.videos)

    def __str__(self) -> str:
        rows = zip(self.tokens, self.entered, self.remained, strict=True)
        return "; ".join(
            f"video {i}: {tokens} tokens, {entered} entered, {remained} remained"
            for i, (tokens, entered, remained) in enumerate(rows)
        )
