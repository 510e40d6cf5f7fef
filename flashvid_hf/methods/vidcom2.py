"""VidCom2: frames unlike the rest of the video keep more tokens, and each frame keeps its most unusual tokens."""

from dataclasses import dataclass

import torch

from ..compression.budget import indices_of, share_out
from ..compression.frame_chunks import frames_per_chunk, map_frames
from ..compression.similarity import inverse_norms
from ..compression.validation import setting
from .compression_method import CompressionMethod, Kept, Signals

# The values of a in G (see `VidCom2`): variances of the Gaussians whose sum measures similarity, as in the source.
_SCALES = (1 / 8, 1 / 4, 1 / 2, 1, 2)


@dataclass(frozen=True, kw_only=True)
class VidCom2(CompressionMethod):
    """Video Compression Commander (arXiv 2505.14454).

    A token x is first reduced to the half of the channels that vary least over the video, then scaled to norm 1.

    1. Similarity to a mean m: G(x, m) = sum over a in {1/8, 1/4, 1/2, 1, 2} of exp(-|x - m|^2 / (2 a)). Each token has
       v = G(x, mean of the video) and f = G(x, mean of its frame).
    2. Frames: p_t = softmax over t of (-mean of v in frame t) / `temperature`. Frame t keeps the share
       R * (1 + p_t - mean of p) of its tokens.
    3. Tokens: every frame keeps its tokens with the lowest v + f, unchanged.

    Differs from the source:

    - Budget: it is met exactly. Every frame gets one token. The rest is shared out, by largest remainder, in proportion
      to the number of tokens above one that the share of a frame comes to. If a frame is full, the other frames get the
      excess. If M is below T, the tokens are shared out in proportion to the shares alone, and frames may get none. The
      source caps the share at 1 and rounds every frame to at least one token, so the sum varies with the video.
    - Position ids: consecutive in the LLaVA families. In families whose position ids encode time and space, a kept
      token keeps its own.
    """

    name = "vidcom2"
    signals = ()

    temperature: float = setting(
        0.01,
        "temperature of the softmax over the frames (0.01 in the source); more gives the frames more even shares",
        above=0,
    )

    def keep(self, features: torch.Tensor, signals: Signals, num_tokens: int) -> Kept:
        to_video, to_frame = _similarities(features)
        budget = self._frame_budgets(to_video, num_tokens)
        rank = (to_video + to_frame).argsort(dim=-1, stable=True).argsort(dim=-1)
        indices = indices_of(rank < budget[:, None], num_tokens)
        return Kept(features.flatten(0, 1)[indices], indices)

    def _frame_budgets(self, to_video: torch.Tensor, num_tokens: int) -> torch.Tensor:
        """How many tokens each frame keeps, with shape (T,).

        Args:
            to_video: v, with shape (T, N).
            num_tokens: M.
        """
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
    """Similarity of every token to the mean of the video (v) and to the mean of its frame (f), with shape (T, N) each.

    Args:
        features: with shape (T, N, D).
    """
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
    """G of tokens and a mean, with shape (T, N).

    Args:
        unit: tokens of norm 1, reduced to C channels, with shape (T, N, C).
        mean: broadcasts with `unit`.
    """
    squared = (unit - mean).square_().sum(-1)
    return torch.stack([(squared / (-2 * scale)).exp_() for scale in _SCALES]).sum(0)
