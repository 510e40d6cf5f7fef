"""What a compression method is: features and attention in, tokens and indices out, and perhaps a step at layer K.

A method is one file beside this one, `method_NAME.py`, and one line in `methods.py`:

    @dataclass(frozen=True, kw_only=True)
    class Newest(CompressionMethod):
        '''Keep the last tokens of the video. Source: ...'''

        name = "newest"
        needs_attention = False

        def keep(self, features, attention, num_tokens):
            indices = torch.arange(attention.numel() - num_tokens, attention.numel(), device=features.device)
            return Kept(features.flatten(0, 1)[indices], indices)

Its fields are its settings, flat numbers and strings with defaults; `check` validates them.

Legend of the compression core: T frames (for Qwen: temporal grids), N tokens a frame, D width, M kept tokens, L layers
of the language model. A flat index is t * N + n.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, NamedTuple

import torch

from ..compression.compress_video import CompressionConfig
from ..compression.compressed_video import CompressedVideo, check_features
from ..compression.finite_checks import check_finite
from ..compression.validation import check_number, check_settings, same_setting, setting


@dataclass(frozen=True)
class LayerPruning:
    """A step inside the language model: which video tokens the layers from `layer` on see.

    Args:
        layer: the first layer that sees less; at least 1.
        ratio: share of the tokens that entered which it sees; above 0, at most 1.
        scored_by: whose attention in the layer below ranks the tokens: that of the "last_token" of the prompt, or of
            all "text_tokens", of which the largest counts.
        merges: average every dropped token into the kept one that it is most similar to.
    """

    layer: int
    ratio: float
    scored_by: str = "last_token"
    merges: bool = False


class Kept(NamedTuple):
    """What a method keeps of one video, in any order.

    Args:
        tokens: with shape (M, D).
        indices: flat index of each, unique, with shape (M,).
        selected: which tokens were kept unchanged, with shape (T, N); all of `indices` by default.
        slots: the row of `tokens` that each token went into, with shape (T, N), -1 if into none; by default only the
            kept tokens are in their rows.
        starts: True at the first frame of every segment, with shape (T,); by default one segment.
    """

    tokens: torch.Tensor
    indices: torch.Tensor
    selected: torch.Tensor | None = None
    slots: torch.Tensor | None = None
    starts: torch.Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class CompressionMethod:
    """A training-free way to keep part of the tokens of a video, with its settings.

    Its fields are its settings, flat numbers and strings. `setting` says their defaults, meanings and ranges.

    Raises:
        ValueError: a field is outside of its range, or no pruning brings the average to `retention_ratio`.
    """

    # How `compression_method` names it.
    name: ClassVar[str]
    # Whether `keep` looks at the attention; otherwise it need not be computed.
    needs_attention: ClassVar[bool] = True

    retention_ratio: float = same_setting(CompressionConfig, "retention_ratio")
    num_layers: int = setting(28, "L, layers of the language model", least=1, integer=True)
    # Families whose lower layers take in features of the vision tower set it.
    first_pruning_layer: int = setting(
        1, "the first layer that may see less than all that entered", least=1, integer=True
    )

    def __post_init__(self):
        check_settings(self)
        self.check()
        pruning = self.pruning if self.compresses else None
        if pruning is not None and pruning.layer < min(self.first_pruning_layer, self.num_layers):
            raise ValueError(
                f"`pruning_layer` is {pruning.layer}: the first {self.first_pruning_layer} layers take in features of "
                f"all tokens that entered, so it must be at least {self.first_pruning_layer}. Set it to such a value."
            )

    def check(self) -> None:
        """Raise a `ValueError` for settings that do not go together; each by itself is in its range by then."""

    @classmethod
    def settings(cls) -> dict[str, Any]:
        """The settings of this method and their defaults."""
        return {field.name: field.default for field in fields(cls) if field.name not in SHARED_SETTINGS}

    @property
    def compresses(self) -> bool:
        """Whether the settings leave anything to compress; otherwise the model is the upstream model."""
        return self.retention_ratio < 1

    @property
    def pruning(self) -> LayerPruning | None:
        """The step inside the language model, if there is one."""
        return None

    @property
    def entering_ratio(self) -> float:
        """Share of the tokens that enters the language model, so that `retention_ratio` is the average of its layers.

        With pruning to the share r from layer K on, it is R * L / (K + r * (L - K)).
        """
        pruning = self.pruning
        if pruning is None:
            return self.retention_ratio
        layer = min(pruning.layer, self.num_layers)
        average = (layer + pruning.ratio * (self.num_layers - layer)) / self.num_layers
        return min(1.0, self.retention_ratio / average)

    def without_pruning(self) -> "CompressionMethod":
        """This method where nothing can be dropped inside the language model: `retention_ratio` is what enters.

        Raises:
            ValueError: the method acts inside the language model alone.
        """
        if self.pruning is not None:
            raise ValueError(
                f"`compression_method` is {self.name!r}: it drops tokens inside the language model alone, and here all "
                "layers have to see the same tokens. Choose a method that compresses before the language model."
            )
        return self

    def exact_num_tokens(self, num_frames: int, tokens_per_frame: int) -> int:
        """How many tokens `compress` keeps, from the sizes alone.

        Args:
            num_frames: T, at least 1.
            tokens_per_frame: N, at least 1.

        Raises:
            ValueError: a size is not a positive integer.
        """
        check_number("num_frames", num_frames, least=1, integer=True)
        check_number("tokens_per_frame", tokens_per_frame, least=1, integer=True)
        return max(1, round(num_frames * tokens_per_frame * self.entering_ratio))

    def compress(self, video_features: torch.Tensor, attention: torch.Tensor) -> CompressedVideo:
        """Keep part of the tokens of one video. Deterministic; the inputs stay as they are.

        Args:
            video_features: tokens as they would enter the language model, with shape (T, N, D).
            attention: attention that each token receives in the last vision block, averaged over heads and queries,
                with shape (T, N); anything where `needs_attention` is False.

        Raises:
            ValueError: the shapes do not fit together; a value is not finite, or beyond 1e12 in magnitude, see
                `compress_video`.
        """
        check_features(video_features, attention)
        extremes = check_finite(video_features, attention if self.needs_attention else None)
        num_frames, tokens_per_frame = attention.shape
        num_tokens = self.exact_num_tokens(num_frames, tokens_per_frame)
        if num_tokens >= attention.numel():
            return CompressedVideo.whole(video_features, prunable=self.pruning is not None, extremes=extremes)
        with torch.autocast(video_features.device.type, enabled=False):
            kept = self.keep(video_features.float().contiguous(), attention.float().contiguous(), num_tokens)
        return CompressedVideo.of_tokens(
            kept.tokens.to(video_features.dtype),
            kept.indices,
            (num_frames, tokens_per_frame),
            selected=kept.selected,
            slots=None if kept.slots is None else kept.slots.flatten(),
            starts=kept.starts,
            extremes=extremes,
        )

    def keep(self, features: torch.Tensor, attention: torch.Tensor, num_tokens: int) -> Kept:
        """Decide which tokens of a video are kept, and what becomes of them.

        Args:
            features: with shape (T, N, D), float32, contiguous.
            attention: with shape (T, N), float32, contiguous.
            num_tokens: how many to keep, M; below T * N.
        """
        raise NotImplementedError


# What every method takes beside its own settings.
SHARED_SETTINGS = frozenset(field.name for field in fields(CompressionMethod))


class TokenScoring(CompressionMethod):
    """A method that keeps the tokens with the highest scores of the whole video, unchanged."""

    def score(self, features: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
        """Scores with shape (T, N), of features (T, N, D) and attention (T, N). Ties go to the lower index."""
        raise NotImplementedError

    def keep(self, features: torch.Tensor, attention: torch.Tensor, num_tokens: int) -> Kept:
        order = self.score(features, attention).flatten().argsort(descending=True, stable=True)
        indices = order[:num_tokens]
        return Kept(features.flatten(0, 1)[indices], indices)


@dataclass(frozen=True, kw_only=True)
class LatePruning(CompressionMethod):
    """A method with a step at a certain depth of the language model that keeps a certain share of what entered.

    By default the step is at the layer nearest to `pruning_depth` of the layers, and not below `first_pruning_layer`.
    The layers above see more than `llm_retention_ratio` where all tokens enter and `retention_ratio` would not be
    reached.
    """

    pruning_depth: ClassVar[float]
    # The fields of `LayerPruning` beside the layer and the share.
    pruning_rule: ClassVar[dict[str, Any]] = {}

    pruning_layer: int | None = setting(
        None, "K, the first layer that sees less; from {layers} on none does", least=1, integer=True, optional=True
    )
    llm_retention_ratio: float = setting(
        0.5, "share of the tokens that entered which the layers from K on see; at 1 nothing is pruned", above=0, most=1
    )

    @property
    def pruning(self) -> LayerPruning | None:
        layer, depth = self.pruning_layer, self.num_layers
        if layer is None:
            layer = max(self.first_pruning_layer, round(depth * self.pruning_depth))
        if layer >= depth:
            return None
        # With all tokens entering, the layers above have to see this much.
        least = (self.retention_ratio * depth - layer) / (depth - layer)
        ratio = max(self.llm_retention_ratio, least)
        return LayerPruning(layer, ratio, **self.pruning_rule) if ratio < 1 else None

    def without_pruning(self) -> CompressionMethod:
        return replace(self, pruning_layer=self.num_layers)
