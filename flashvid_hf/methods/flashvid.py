"""FlashVID as a compression method: DySeg, ADTS and TSTM before the language model, pruning inside it."""

import math
from dataclasses import dataclass, replace

import torch

from ..compression.compress_video import CompressionConfig, compress_video, exact_num_tokens
from ..compression.compressed_video import CompressedVideo
from ..compression.validation import setting
from .compression_method import CompressionMethod, LayerPruning, Signals


@dataclass(frozen=True, kw_only=True)
class FlashVID(CompressionMethod, CompressionConfig):
    """FlashVID (arXiv 2602.08024), see `compress_video`; by default it prunes near 5/7 of the depth."""

    name = "flashvid"

    pruning_layer: int | None = setting(
        None,
        "first layer that sees only part of what entered; at {layers} or more, no layer does; `null`: from the depth",
        least=1,
        integer=True,
        optional=True,
    )
    llm_retention_ratio: float | None = setting(
        None,
        "share of the entered tokens that the layers from `pruning_layer` on see; `null`: the share that makes "
        "`retention_ratio` the average",
        above=0,
        most=1,
        optional=True,
    )

    @property
    def compresses(self) -> bool:
        return self.retention_ratio * self.expansion < 1

    @property
    def entering_ratio(self) -> float:
        return min(1.0, self.retention_ratio * self.expansion)

    @property
    def pruning(self) -> LayerPruning | None:
        layer, ratio = self.pruning_layer, self.llm_retention_ratio
        if layer is None:
            layer = default_pruning_layer(self.num_layers, self.expansion, 5 / 7)
        if ratio is None:
            ratio = default_llm_retention_ratio(self.num_layers, layer, self.expansion)
        return LayerPruning(layer, ratio) if layer < self.num_layers and ratio < 1 else None

    def without_pruning(self) -> CompressionMethod:
        return replace(self, expansion=1.0, pruning_layer=self.num_layers, llm_retention_ratio=1.0)

    def exact_num_tokens(self, num_frames: int, tokens_per_frame: int) -> int:
        return exact_num_tokens(num_frames, tokens_per_frame, self)

    def compress(self, video_features: torch.Tensor, signals: Signals | torch.Tensor) -> CompressedVideo:
        attention = signals if isinstance(signals, torch.Tensor) else signals.attention
        return compress_video(video_features, attention, self)


def default_pruning_layer(num_layers: int, expansion: float, pruning_depth: float) -> int:
    """The default layer to prune at, at least 1.

    It is the layer nearest to `pruning_depth * num_layers`. If that is too deep for pruning to make up for the
    expansion, it is the deepest layer at which pruning still can.

    Args:
        num_layers: layers of the language model.
        expansion: see `CompressionConfig`.
        pruning_depth: depth of the pruning as a share of the layers.
    """
    deepest = math.ceil(num_layers / expansion) - 1
    return max(1, min(round(num_layers * pruning_depth), deepest))


def default_llm_retention_ratio(num_layers: int, pruning_layer: int, expansion: float) -> float:
    """The share of the entered tokens that makes `retention_ratio` the average over the layers.

    It is the r that solves expansion * (pruning_layer + r * (L - pruning_layer)) = L, at most 1, rounded to six digits.
    The layers from `pruning_layer` on see this share.

    Args:
        num_layers: L.
        pruning_layer: the first layer that sees fewer tokens.
        expansion: see `CompressionConfig`.

    Raises:
        ValueError: no r above 0 is a solution.
    """
    if pruning_layer >= num_layers:
        return 1.0
    remaining = num_layers - expansion * pruning_layer
    ratio = round(min(1.0, remaining / (expansion * (num_layers - pruning_layer))), 6)
    if ratio <= 0:
        raise ValueError(
            f"`pruning_layer` is {pruning_layer} and `expansion` is {expansion}: with {num_layers} layers no pruning "
            f"keeps the average at `retention_ratio`. Choose a `pruning_layer` below {num_layers / expansion:g}, a "
            "smaller `expansion`, or set `llm_retention_ratio` yourself."
        )
    return ratio
