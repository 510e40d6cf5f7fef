"""Control: tokens at even distances in every frame."""

from dataclasses import dataclass

import torch

from .compression_method import CompressionMethod, Kept, Signals

# 1 / golden ratio. The fractional parts of its multiples are spread evenly over the unit interval, for any number of
# them.
_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True, kw_only=True)
class UniformTokens(CompressionMethod):
    """Tokens at even distances in every frame, unchanged; a control, without a source.

    From frame to frame the places move on by 0.618 of the distance, so that a video is not seen through a fixed grid.
    """

    name = "uniform"
    signals = ()

    def keep(self, features: torch.Tensor, signals: Signals, num_tokens: int) -> Kept:
        num_frames, tokens_per_frame = features.shape[:2]
        # The m-th kept token lies in frame m * T // M, so every frame keeps M / T tokens, rounded up or down.
        order = torch.arange(num_tokens, device=features.device)
        frame = order * num_frames // num_tokens
        first = -(-frame * num_tokens // num_frames)  # the first m of the frame, rounded up
        count = -(-(frame + 1) * num_tokens // num_frames) - first
        phase = (frame.double() * _GOLDEN).frac()
        place = ((order - first + phase) * tokens_per_frame / count).floor().long()
        indices = frame * tokens_per_frame + place.clamp(max=tokens_per_frame - 1)
        return Kept(features.flatten(0, 1)[indices], indices)
