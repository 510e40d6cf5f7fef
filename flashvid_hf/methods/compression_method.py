"""What a compression method is: features and signals in, tokens and indices out, and perhaps a step at layer K.

A method is one file beside this one, and one line in `methods/__init__.py`:

    @dataclass(frozen=True, kw_only=True)
    class Newest(CompressionMethod):
        '''Keep the last tokens of the video. Source: ...'''

        name = "newest"
        signals = ()  # what it wants to know of the vision tower: nothing

        def keep(self, features, signals, num_tokens):
            tokens = features.flatten(0, 1)
            indices = torch.arange(len(tokens), device=features.device)[-num_tokens:]
            return Kept(tokens[indices], indices)

By default a method is told the attention that the tokens receive in the last layer of the vision tower,
`signals.attention`. Its fields are its settings, see `setting`.

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


# What a method may ask of a layer of the vision tower. Of a token that several patches make, their mean; where the
# family pools its features, pooled like them.
SIGNAL_KINDS = (
    "attention",  # that the token receives, mean over heads and queries, with shape (T, N)
    "keys",  # of the layer's attention before any rotary embedding, all heads side by side, with shape (T, N, width)
    "hidden_states",  # that the layer returns, with shape (T, N, width)
)


# A tuple, because remote code has this module twice: once for the configuration and once for the model.
class Signal(NamedTuple):
    """Something about the tokens of a video that a method wants to know of the vision tower.

    Args:
        kind: one of `SIGNAL_KINDS`.
        layer: which layer of the vision tower, counted from 0; a negative one counts back from the layer whose output
            makes the features, which is -1.
    """

    kind: str
    layer: int = -1


RECEIVED_ATTENTION = Signal("attention")


class Signals(dict[Signal, torch.Tensor]):
    """What a vision tower told about the tokens of one video: a tensor (T, N) or (T, N, width) for each `Signal`."""

    @property
    def attention(self) -> torch.Tensor:
        """Attention that each token receives in the last layer, with shape (T, N)."""
        return self[RECEIVED_ATTENTION]

    def __missing__(self, signal: Signal):
        raise ValueError(
            f"There is no {signal!r} among the signals of the video, which are {list(self)}. Name it in `signals` of "
            "the method, and pass it to `compress`."
        )


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
    # What `keep` is told of the vision tower. Nothing else is computed.
    signals: ClassVar[tuple[Signal, ...]] = (RECEIVED_ATTENTION,)

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

    def compress(self, video_features: torch.Tensor, signals: Signals | torch.Tensor) -> CompressedVideo:
        """Keep part of the tokens of one video. Deterministic; the inputs stay as they are.

        Args:
            video_features: tokens as they would enter the language model, with shape (T, N, D).
            signals: what the method asks for in its `signals`; others are not looked at. A tensor is the attention that
                each token receives in the last layer of the vision tower, with shape (T, N).

        Raises:
            ValueError: a signal is missing; the shapes do not fit together; a feature or an attention of the last layer
                is not finite, or beyond 1e12 in magnitude, see `compress_video`.
        """
        if isinstance(signals, torch.Tensor):
            signals = Signals({RECEIVED_ATTENTION: signals})
        check_features(video_features, signals.get(RECEIVED_ATTENTION))
        asked = Signals({signal: signals[signal] for signal in self.signals})
        for signal, values in asked.items():
            if values.shape[:2] != video_features.shape[:2]:
                raise ValueError(
                    f"{signal!r} has shape {tuple(values.shape)} and `video_features` {tuple(video_features.shape)}: "
                    "both must begin with frames and tokens per frame. Pass the signals of this video."
                )
        extremes = check_finite(video_features, asked.get(RECEIVED_ATTENTION))
        num_frames, tokens_per_frame, _ = video_features.shape
        num_tokens = self.exact_num_tokens(num_frames, tokens_per_frame)
        if num_tokens >= num_frames * tokens_per_frame:
            return CompressedVideo.whole(video_features, prunable=self.pruning is not None, extremes=extremes)
        with torch.autocast(video_features.device.type, enabled=False):
            told = Signals({signal: values.float().contiguous() for signal, values in asked.items()})
            kept = self.keep(video_features.float().contiguous(), told, num_tokens)
        return CompressedVideo.of_tokens(
            kept.tokens.to(video_features.dtype),
            kept.indices,
            (num_frames, tokens_per_frame),
            selected=kept.selected,
            slots=None if kept.slots is None else kept.slots.flatten(),
            starts=kept.starts,
            extremes=extremes,
        )

    def keep(self, features: torch.Tensor, signals: Signals, num_tokens: int) -> Kept:
        """Decide which tokens of a video are kept, and what becomes of them.

        Args:
            features: with shape (T, N, D), float32, contiguous.
            signals: those that the method asks for, float32, contiguous: `signals.attention`, `signals[Signal(...)]`.
            num_tokens: how many to keep, M; below T * N.
        """
        raise NotImplementedError


# What every method takes beside its own settings.
SHARED_SETTINGS = frozenset(field.name for field in fields(CompressionMethod))


class TokenScoring(CompressionMethod):
    """A method that keeps the tokens with the highest scores of the whole video, unchanged."""

    def score(self, features: torch.Tensor, signals: Signals) -> torch.Tensor:
        """Scores with shape (T, N), see `keep` for the arguments. Ties go to the lower index."""
        raise NotImplementedError

    def keep(self, features: torch.Tensor, signals: Signals, num_tokens: int) -> Kept:
        order = self.score(features, signals).flatten().argsort(descending=True, stable=True)
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
