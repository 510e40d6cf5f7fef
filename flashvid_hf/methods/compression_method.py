"""What a compression method is: features and signals in, tokens and indices out, and perhaps pruning at layer K.

A method is one file beside this one, and one line in `methods/__init__.py`:

    @dataclass(frozen=True, kw_only=True)
    class Newest(CompressionMethod):
        '''Keep the last tokens of the video. Source: ...'''

        name = "newest"
        signals = ()  # what it needs from the vision tower: nothing

        def keep(self, features, signals, num_tokens):
            tokens = features.flatten(0, 1)
            indices = torch.arange(len(tokens), device=features.device)[-num_tokens:]
            return Kept(tokens[indices], indices)

By default a method gets the attention that the tokens receive in the last layer of the vision tower, as
`signals.attention`. The fields of the dataclass are the settings of the method, see `setting`.

Letters of this file, in addition to those of the compression: L layers of the language model, K the layer from which a
method prunes, R `retention_ratio`.
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
    """Pruning inside the language model: which video tokens the layers from `layer` on see.

    Args:
        layer: the first layer that sees fewer tokens; at least 1.
        ratio: share of the entered tokens that `layer` and the layers above it see; above 0, at most 1.
        scored_by: whose attention in the layer below `layer` ranks the video tokens. "last_token" is the last token of
            the prompt. "text_tokens" are all text tokens behind the last video; the largest attention counts.
        merges: whether every dropped token is averaged into the kept token that it is most similar to.
    """

    layer: int
    ratio: float
    scored_by: str = "last_token"
    merges: bool = False


# What a method may ask of a layer of the vision tower. If several patches make a token, its signal is their mean. If
# the family pools its features, the signal is pooled in the same way.
SIGNAL_KINDS = (
    "attention",  # received by the token, mean over heads and queries, with shape (T, N)
    "keys",  # of the layer's attention before any rotary embedding, all heads side by side, with shape (T, N, width)
    "hidden_states",  # output of the layer, with shape (T, N, width)
)


# A tuple, so that equal signals compare equal in remote code too, which loads this module twice: once for the
# configuration and once for the model.
class Signal(NamedTuple):
    """Something that a method needs from the vision tower about the tokens of a video.

    Args:
        kind: one of `SIGNAL_KINDS`.
        layer: index of a layer of the vision tower, from 0. A negative index counts back from the layer whose output
            makes the features: -1 is that layer itself.
    """

    kind: str
    layer: int = -1


RECEIVED_ATTENTION = Signal("attention")


class Signals(dict[Signal, torch.Tensor]):
    """What the vision tower gave for the tokens of one video: a tensor (T, N) or (T, N, width) for each `Signal`.

    Raises:
        ValueError: a signal is looked up that is not there.
    """

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
        selected: which tokens were kept unchanged, with shape (T, N). Default: all tokens of `indices`.
        slots: the row of `tokens` that each token went into, with shape (T, N), -1 if it was dropped. Default: every
            kept token went into its own row, and all others were dropped.
        starts: True at the first frame of every segment, with shape (T,). Default: one segment.
    """

    tokens: torch.Tensor
    indices: torch.Tensor
    selected: torch.Tensor | None = None
    slots: torch.Tensor | None = None
    starts: torch.Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class CompressionMethod:
    """A training-free way to keep part of the tokens of a video, with its settings.

    The fields are the settings: single numbers and strings. `setting` states their defaults, meanings and ranges.

    Raises:
        ValueError: a field is outside of its range, or no pruning brings the average to `retention_ratio`.
    """

    # The value of `compression_method` that chooses this method.
    name: ClassVar[str]
    # The signals that `keep` gets. The vision tower records nothing else.
    signals: ClassVar[tuple[Signal, ...]] = (RECEIVED_ATTENTION,)

    retention_ratio: float = same_setting(CompressionConfig, "retention_ratio")
    num_layers: int = setting(28, "L, layers of the language model", least=1, integer=True)
    # Set by families whose lower layers take in features of the vision tower (deepstack).
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
        """Raise a `ValueError` for settings that do not go together. Each setting has been checked by itself before."""

    @classmethod
    def settings(cls) -> dict[str, Any]:
        """The method's own settings and their defaults, without those that all methods share."""
        return {field.name: field.default for field in fields(cls) if field.name not in SHARED_SETTINGS}

    @property
    def compresses(self) -> bool:
        """Whether these settings compress anything. If not, the model runs as the upstream model."""
        return self.retention_ratio < 1

    @property
    def pruning(self) -> LayerPruning | None:
        """The pruning inside the language model; `None` if there is none."""
        return None

    @property
    def entering_ratio(self) -> float:
        """Share of the tokens that enters the language model.

        It makes `retention_ratio` the average over the layers: R * L / (K + r * (L - K)), with pruning to the share r
        of the entered tokens from layer K on. At most 1.
        """
        pruning = self.pruning
        if pruning is None:
            return self.retention_ratio
        layer = min(pruning.layer, self.num_layers)
        average = (layer + pruning.ratio * (self.num_layers - layer)) / self.num_layers
        return min(1.0, self.retention_ratio / average)

    def without_pruning(self) -> "CompressionMethod":
        """This method without pruning inside the language model: the share `retention_ratio` enters.

        It is for programs such as vLLM, in which all layers see the same tokens.

        Raises:
            ValueError: the method compresses only inside the language model.
        """
        if self.pruning is not None:
            raise ValueError(
                f"`compression_method` is {self.name!r}: it drops tokens inside the language model alone, and here all "
                "layers have to see the same tokens. Choose a method that compresses before the language model."
            )
        return self

    def exact_num_tokens(self, num_frames: int, tokens_per_frame: int) -> int:
        """How many tokens `compress` keeps. The number depends only on the sizes.

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
        """Keep part of the tokens of one video. Deterministic; the inputs are not changed.

        Args:
            video_features: tokens as they would enter the language model, with shape (T, N, D).
            signals: the signals that the method names in its own `signals`; others are ignored. A tensor stands for
                the attention that each token receives in the last layer of the vision tower, with shape (T, N).

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
            recorded = Signals({signal: values.float().contiguous() for signal, values in asked.items()})
            kept = self.keep(video_features.float().contiguous(), recorded, num_tokens)
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
            signals: the signals that the method names, float32, contiguous. Read them as `signals.attention` or
                `signals[Signal(...)]`.
            num_tokens: how many tokens to keep, M; below T * N.
        """
        raise NotImplementedError


# The settings that all methods share.
SHARED_SETTINGS = frozenset(field.name for field in fields(CompressionMethod))


class TokenScoring(CompressionMethod):
    """A method that keeps the tokens with the highest scores of the whole video, unchanged."""

    def score(self, features: torch.Tensor, signals: Signals) -> torch.Tensor:
        """Score every token, with shape (T, N). Ties go to the lower index. The arguments are those of `keep`."""
        raise NotImplementedError

    def keep(self, features: torch.Tensor, signals: Signals, num_tokens: int) -> Kept:
        order = self.score(features, signals).flatten().argsort(descending=True, stable=True)
        indices = order[:num_tokens]
        return Kept(features.flatten(0, 1)[indices], indices)


@dataclass(frozen=True, kw_only=True)
class LatePruning(CompressionMethod):
    """A method that prunes at a certain depth of the language model, to a certain share of the entered tokens.

    By default it prunes at the layer nearest to `pruning_depth` * L, but not below `first_pruning_layer`. The layers
    above see more than `llm_retention_ratio` if even with all tokens entering the average would be below
    `retention_ratio`.
    """

    # Default depth of the pruning, as a share of the layers.
    pruning_depth: ClassVar[float]
    # The fields of `LayerPruning` other than `layer` and `ratio`.
    pruning_rule: ClassVar[dict[str, Any]] = {}

    pruning_layer: int | None = setting(
        None,
        "K, the first layer that sees less; at {layers} or more, no layer does",
        least=1,
        integer=True,
        optional=True,
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
        # If all tokens enter, the layers above must see this share for the average to reach `retention_ratio`.
        least = (self.retention_ratio * depth - layer) / (depth - layer)
        ratio = max(self.llm_retention_ratio, least)
        return LayerPruning(layer, ratio, **self.pruning_rule) if ratio < 1 else None

    def without_pruning(self) -> CompressionMethod:
        return replace(self, pruning_layer=self.num_layers)
