"""Control: random tokens of the video."""

from dataclasses import dataclass

import torch

from ..compression.validation import setting
from .compression_method import Signals, TokenScoring


@dataclass(frozen=True, kw_only=True)
class RandomTokens(TokenScoring):
    """Tokens drawn at random from the whole video, unchanged; a control, without a source.

    The draw depends only on the seed and the size (T, N). Videos of equal size thus lose the same places, on every
    device.
    """

    name = "random"
    signals = ()

    seed: int = setting(0, "seed of the draw", least=0, integer=True)

    def score(self, features: torch.Tensor, signals: Signals) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.seed)  # on the CPU, so that every device draws the same
        return torch.rand(features.shape[:2], generator=generator, dtype=torch.float32).to(features.device)
