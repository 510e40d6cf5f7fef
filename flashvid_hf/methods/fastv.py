"""FastV: drop the video tokens that the end of the prompt attends to least, at an early layer of the language model."""

from dataclasses import dataclass

from ..compression.validation import setting
from .compression_method import CompressionMethod, LayerPruning


@dataclass(frozen=True, kw_only=True)
class FastV(CompressionMethod):
    """FastV (arXiv 2403.06764), written from the paper.

    All video tokens enter. At layer K they are ranked by the attention that they get from the last token of the prompt
    in layer K - 1, averaged over the heads. The best tokens are kept with their positions.

    Differs from the paper: the share that is kept follows from `retention_ratio`, the average over the L layers, as
    (R * L - K) / (L - K). The paper fixes the share at 0.5. The K layers that see all tokens add K / L to the average,
    so R must be larger than K / L.

    K is 2 by default, as in the paper. It is 1 if two layers with all tokens exceed R, and `first_pruning_layer` if
    that is deeper.

    Raises:
        ValueError: the layers that see all tokens exceed `retention_ratio` by themselves.
    """

    name = "fastv"
    signals = ()

    pruning_layer: int | None = setting(None, "K", least=1, integer=True, optional=True)

    def check(self) -> None:
        if self.compresses and self._kept_share <= 0:
            least = self._layer / self.num_layers
            raise ValueError(
                f"`retention_ratio` is {self.retention_ratio}: with 'fastv' the first {self._layer} of "
                f"{self.num_layers} layers see all video tokens, so it must be above {least:g}. Raise it, or choose "
                "a smaller `pruning_layer` or a method that compresses before the language model."
            )

    @property
    def pruning(self) -> LayerPruning | None:
        return LayerPruning(self._layer, self._kept_share) if self.compresses else None

    @property
    def entering_ratio(self) -> float:
        return 1.0

    @property
    def _layer(self) -> int:
        if self.pruning_layer is not None:
            return self.pruning_layer
        return max(self.first_pruning_layer, 2 if self.retention_ratio * self.num_layers > 2 else 1)

    @property
    def _kept_share(self) -> float:
        upper = self.num_layers - self._layer
        return (self.retention_ratio * self.num_layers - self._layer) / upper if upper > 0 else 0.0
