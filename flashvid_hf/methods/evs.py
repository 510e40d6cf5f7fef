"""EVS: keep the tokens that differ most from those at the same place in the frame before."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .compression_method import Signals, TokenScoring


@dataclass(frozen=True, kw_only=True)
class EVS(TokenScoring):
    """Efficient Video Sampling (arXiv 2510.14624), in the form that vLLM has.

    The first frame is kept whole. In the other frames, the tokens with the largest d_ti = 1 - cos(x_ti, x_(t-1)i) of
    the whole video are kept unchanged.

    Differs from the paper: the tokens are compared as they enter the language model. The paper compares the pixels of
    patches (L1 norm). As in the paper and in vLLM, at least the tokens of one frame are kept, so more than the share R
    is kept if R * T is below 1. In the LLaVA families positions are consecutive.
    """

    name = "evs"
    signals = ()

    def exact_num_tokens(self, num_frames: int, tokens_per_frame: int) -> int:
        return max(tokens_per_frame, super().exact_num_tokens(num_frames, tokens_per_frame))

    def score(self, features: torch.Tensor, signals: Signals) -> torch.Tensor:
        unit = F.normalize(features, dim=-1)
        change = 1 - (unit[1:] * unit[:-1]).sum(-1)
        return F.pad(change, (0, 0, 1, 0), value=float("inf"))
