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
        num_samples: samples of the batch that ran, beams and returned sequences included.
    """

    videos: tuple[CompressedVideo, ...]
    tokens: tuple[int, ...]
    entered: tuple[int, ...]
    num_samples: int
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

    def of_sample(self, sample: int) -> tuple[int, ...]:
        """Video tokens of one sample of the batch at the three stages: before, entered, remained."""
        videos = [i for i, s in enumerate(self.samples) if s == sample]
        return tuple(sum(stage[i] for i in videos) for stage in (self.tokens, self.entered, self.remained))

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
