"""Control: whole frames at even distances."""

from dataclasses import dataclass

import torch

from .compression_method import CompressionMethod, Kept, Signals


@dataclass(frozen=True, kw_only=True)
class FrameDropping(CompressionMethod):
    """Whole frames at even distances; a control, without a source.

    It keeps as many frames as the budget needs. The last of them keeps only as many tokens as are left of the budget,
    at even distances, so that the budget is met exactly.
    """

    name = "frame_dropping"
    signals = ()

    def keep(self, features: torch.Tensor, signals: Signals, num_tokens: int) -> Kept:
        num_frames, tokens_per_frame = features.shape[:2]
        num_kept = -(-num_tokens // tokens_per_frame)
        num_left = num_tokens - (num_kept - 1) * tokens_per_frame  # tokens that the last kept frame keeps
        frames = torch.arange(num_kept, device=features.device)
        frames = (2 * frames + 1) * num_frames // (2 * num_kept)  # the middle of each of `num_kept` equal parts
        whole = torch.arange(tokens_per_frame, device=features.device)
        last = torch.arange(num_left, device=features.device) * tokens_per_frame // num_left
        indices = torch.cat(
            [(frames[:-1, None] * tokens_per_frame + whole).flatten(), frames[-1] * tokens_per_frame + last]
        )
        return Kept(features.flatten(0, 1)[indices], indices)
