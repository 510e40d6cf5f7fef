"""VidCom2: more tokens for frames unlike the rest of the video, and in each frame those unlike the others."""

from dataclasses import dataclass

import torch

from ..compression.budget import indices_of, share_out
from ..compression.frame_chunks import frames_per_chunk, map_frames
from ..compression.similarity import inverse_norms
from ..compression.validation import setting
from .compression_method import CompressionMethod, Kept, Signals

# Variances of the Gaussians whose sum measures similarity.
_SCALES = (1 / 8, 1 / 4, 1 / 2, 1, 2)


@dataclass(frozen=True, kw_only=True)
class VidCom2(CompressionMethod):
    """Video Compression Commander (arXiv 2505.14454).

    With x a token, reduced to the half of the channels that vary least over the video and then brought to norm 1:

    1. Similarity to a mean m is G(x, m) = sum over a in {1/8, 1/4, 1/2, 1, 2} of exp(-|x - m|^2 / (2 a)). A token has
       v = G to the mean of the video and f = G to the mean of its frame.
    2. Frames: p_t = softmax over t of (-mean of v in frame t) / `temperature`; frame t is kept at the ratio
       R * (1 + p_t - mean of p).
    3. Tokens: of every frame those with the lowest v + f, unchanged.

    Differs from the source:

    - The budget is met exactly. A frame gets one token, and of what is left a part in proportion to what its ratio
      comes to above that, by largest remainder; a frame that is kept whole leaves the rest of its part to the others.
      There the ratio is capped at 1, and every frame rounds to at least one token, so the sum varies with the video.
      Where there are fewer tokens than frames, they go by the ratios alone, and frames may get none.
    - Position ids: consecutive in the LLaVA families; families with time and space in them keep those of the kept
      tokens.
    """

    name = "vidcom2"
    signals = ()

    temperature: float = setting(
        0.01, "of the softmax over the frames, 0.01 in the source; the larger, the more even are the frames", above=0
    )

    def keep(self, features: torch.Tensor, signals: Signals, num_tokens: int) -> Kept:
        to_video, to_frame = _similarities(features)
        budget = self._frame_budgets(to_video, num_tokens)
        rank = (to_video + to_frame).argsort(dim=-1, stable=True).argsort(dim=-1)
        indices = indices_of(rank < budget[:, None], num_tokens)
        return Kept(features.flatten(0, 1)[indices], indices)

    def _frame_budgets(self, to_video: torch.Tensor, num_tokens: int) -> torch.Tensor:
        """How many tokens each frame keeps, with shape (T,), given v with shape (T, N)."""
        num_frames, tokens_per_frame = to_video.shape
        mean = to_video.double().mean(-1)
        share = ((mean.min() - mean) / self.temperature).softmax(0)
        weights = 1 + share - share.mean()
        if num_tokens < num_frames:
            return share_out(num_tokens, weights, tokens_per_frame)
        above_one = (weights * (num_tokens / num_frames) - 1).clamp(min=0)
        return 1 + share_out(num_tokens - num_frames, above_one, tokens_per_frame - 1)


@torch.no_grad()
def _similarities(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of every token to the mean of the video and to that of its frame, v and f, with shape (T, N) each."""
    num_channels = max(1, features.shape[-1] // 2)
    channels = features.flatten(0, 1).var(0, correction=0).argsort(stable=True)[:num_channels].sort().values

    def units(features: torch.Tensor) -> torch.Tensor:
        chosen = features[..., channels]
        return chosen.mul_(inverse_norms(chosen.norm(dim=-1, keepdim=True).square()))

    def similarities(features: torch.Tensor, frame_mean: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        unit = units(features)
        return _gaussians(unit, video_mean), _gaussians(unit, frame_mean[:, None])

    size = frames_per_chunk(features)
    frame_means = map_frames(lambda chunk: units(chunk).mean(1), size, features)
    video_mean = frame_means.mean(0)
    return map_frames(similarities, size, features, frame_means)


def _gaussians(unit: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """G, with shape (T, N), of tokens (T, N, C) and a mean that broadcasts with them."""
    squared = (unit - mean).square_().sum(-1)
    return torch.stack([(squared / (-2 * scale)).exp_() for scale in _SCALES]).sum(0)
