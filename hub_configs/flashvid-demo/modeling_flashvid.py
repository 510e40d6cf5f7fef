"""What the models of all families share.

Generated from flashvid_hf 0.1.0: do not edit. The sections are its modules:

    models/stopwatch.py
    models/report.py
    models/upstream.py
    models/cache.py
    models/columns.py
    models/generation.py
    models/hooks.py
    models/outputs.py
    models/language_modeling.py
    models/tensor_parallel.py
    models/vision_signals.py
    models/layer_pruning.py
    models/placeholders.py
    models/prompt.py
    models/pruned_language_model.py
    models/modeling.py
    models/vision_chunks.py
    hub/loading.py
"""

import copy
import functools
import inspect
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from itertools import groupby
from typing import Any, ClassVar, NamedTuple, TypeVar, get_args

import torch
from torch import distributed, nn
from transformers import DynamicCache, GenerationConfig, GenerationMixin, PreTrainedConfig, modeling_outputs
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling
from transformers.utils import ModelOutput

from .compression_flashvid import CompressedVideo, LayerPruning, Signal, Signals, released_repeats, weighted_sums
from .configuration_flashvid_qwen2_5_vl import CALL_FIELDS, follow_base, hub_arguments, read_config, save_code
from .pipeline_flashvid import CUSTOM_PIPELINES

# models/stopwatch.py --------------------------------------------------------------------------------------------------

"""Measures how long the stages of a call take, without waiting for the device."""


class Stopwatch:
    """Records the beginning and the end of stages: by events on a GPU, by the clock on other devices.

    Args:
        before: a stopwatch whose stages are copied, because they belong to the same call; it is not changed.
    """

    def __init__(self, before: "Stopwatch | None" = None):
        self._spans: dict[str, list[tuple[Any, Any]]] = {}
        if before is not None:
            self._spans |= {name: [*spans] for name, spans in before._spans.items()}

    @contextmanager
    def stage(self, name: str, device: torch.device) -> Iterator[None]:
        """Add the time that the `with` block takes on the device. The times of stages of one name add up."""
        if torch.compiler.is_compiling():  # compiled code would keep the clock readings of its compilation
            yield
            return
        start = _now(device)
        yield
        self._spans.setdefault(name, []).append((start, _now(device)))

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of every stage, by its name. Waits until the device has finished the stages."""
        return {name: sum(_between(*span) for span in spans) for name, spans in self._spans.items()}

    def __getstate__(self) -> dict[str, Any]:  # events can be neither copied nor pickled
        return {"_spans": {name: [(0.0, duration)] for name, duration in self.seconds.items()}}


def _now(device: torch.device) -> Any:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def _between(start: Any, end: Any) -> float:
    if isinstance(start, float):
        return end - start
    end.synchronize()
    return start.elapsed_time(end) / 1000


# models/report.py -----------------------------------------------------------------------------------------------------

"""What was compressed in a call."""


@dataclass(frozen=True, repr=False)
class CompressionReport:
    """Video tokens of a call at every stage, with one entry for each video, in the order of the prompts.

    Values are copied from the device only when they are read.

    Args:
        videos: how each video was compressed; empty if none was.
        num_samples: samples of the batch that ran, including beams and returned sequences.
    """

    videos: tuple[CompressedVideo, ...]
    num_samples: int
    # Token counts with an entry for each video: tuples, or tensors that may be on a device.
    _tokens: tuple[int, ...] | torch.Tensor
    _entered: tuple[int, ...] | torch.Tensor
    _placeholders: torch.Tensor  # number of video placeholders of each sample, with shape (B,)
    # For each column that is left in the end, its row, counted through the rows of all compressed videos, with shape
    # (B, L); -1 for other columns.
    _rows_left: torch.Tensor | None = None
    # For each compressed video, which of its rows are tokens rather than newlines, with shape (rows,).
    _is_token: tuple[torch.Tensor, ...] = ()
    # How many layers of the language model see all tokens that entered, and how many layers there are.
    _layers: tuple[int, int] = (1, 1)
    _stopwatch: Stopwatch = field(default_factory=Stopwatch, compare=False)

    @classmethod
    def uncompressed(cls, placeholders: torch.Tensor, tokens: tuple[int, ...] | torch.Tensor) -> "CompressionReport":
        """The report of a call in which every video token entered and remained.

        Args:
            placeholders: number of video placeholders of each sample, with shape (B,).
            tokens: number of video tokens of each video.
        """
        return cls((), len(placeholders), tokens, tokens, placeholders)

    @classmethod
    def without_videos(cls, num_samples: int) -> "CompressionReport":
        """The report of a call that had no video tokens."""
        return cls.uncompressed(torch.zeros(num_samples, dtype=torch.long), ())

    @property
    def tokens(self) -> tuple[int, ...]:
        """Video tokens before the compression, including newlines in families that have them."""
        return _to_tuple(self._tokens)

    @property
    def entered(self) -> tuple[int, ...]:
        """Video tokens that entered the language model."""
        return _to_tuple(self._entered)

    @property
    def remained(self) -> tuple[int, ...]:
        """Video tokens that the pruning layer and the layers above it see."""
        if self._rows_left is None:
            return self.entered
        return tuple(int(rows.sum()) for rows in self._find_rows_left())

    @property
    def retained(self) -> tuple[float, ...]:
        """Share of the video tokens that a layer of the language model saw, averaged over the layers.

        `retention_ratio` asks for this share. The actual share may differ by rounding, and in some methods it depends
        on the video.
        """
        below, depth = self._layers
        stages = zip(self.tokens, self.entered, self.remained, strict=True)
        return tuple((below * entered + (depth - below) * left) / (depth * tokens) for tokens, entered, left in stages)

    @property
    def kept_tokens_remained(self) -> tuple[torch.Tensor, ...]:
        """For each compressed video, which of its kept tokens the pruning layer and the layers above it see.

        Boolean tensors on the CPU, with an entry for each kept token in the order of the video's `indices`. Newlines
        have no entry.
        """
        rows = zip(self._find_rows_left(), self._is_token, strict=True)
        return tuple(left[is_token.cpu()] for left, is_token in rows)

    @property
    def compressed(self) -> bool:
        """Whether some layers of the language model saw fewer than all video tokens."""
        return self.remained != self.tokens

    @property
    def samples(self) -> tuple[int, ...]:
        """For each video, the index of its sample in the batch."""
        ends = torch.as_tensor(self.tokens).cumsum(0)
        return tuple(torch.searchsorted(self._placeholders.cpu().cumsum(0), ends).tolist())

    def of_sample(self, sample: int) -> tuple[int, ...]:
        """Video tokens of one sample of the batch at three stages: before the compression, entered, remained."""
        videos = [i for i, s in enumerate(self.samples) if s == sample]
        return tuple(sum(stage[i] for i in videos) for stage in (self.tokens, self.entered, self.remained))

    @property
    def segment_lengths(self) -> tuple[tuple[int, ...], ...]:
        """Frames of every segment of every compressed video."""
        return tuple(tuple(video.segment_lengths.tolist()) for video in self.videos)

    @property
    def seconds(self) -> dict[str, float]:
        """Wall-clock seconds of the stages "vision", "compression" and "prefill"; empty if nothing was compressed.

        "vision" is the vision tower with its projector, "prefill" is the language model. The first run of a model takes
        longer than later runs.
        """
        return self._stopwatch.seconds

    def _find_rows_left(self) -> tuple[torch.Tensor, ...]:
        """For each compressed video, which of its rows are left in the end, including newlines, with shape (rows,)."""
        if self._rows_left is None:
            return ()
        rows = self._rows_left.cpu()
        left = torch.zeros(sum(self.entered), dtype=torch.bool).index_fill_(0, rows[rows >= 0], True)
        return left.split(self.entered)

    def __repr__(self) -> str:
        stages = (self.tokens, self.entered, self.remained)
        total, entered, remained = map(sum, stages)
        counts = f"{len(self.tokens)} videos, {total} tokens, {entered} entered, {remained} remained"
        return f"<{type(self).__name__}: {counts}>"

    def __str__(self) -> str:
        rows = zip(self.tokens, self.entered, self.remained, strict=True)
        lines = [
            f"video {i}: {tokens} tokens, {entered} entered, {remained} remained"
            for i, (tokens, entered, remained) in enumerate(rows)
        ]
        if not self.compressed:
            lines.append("nothing was compressed" if lines else "no video tokens, nothing was compressed")
        return "; ".join(lines)


def _to_tuple(values: tuple[int, ...] | torch.Tensor) -> tuple[int, ...]:
    return tuple(values.tolist()) if isinstance(values, torch.Tensor) else values


# models/upstream.py ---------------------------------------------------------------------------------------------------

"""The differences between the supported versions of transformers, each detected once from upstream's own code.

The rest of the package is written for the newest version and compares no version numbers. Once a version is no longer
supported, its lines in the table can be deleted together with their code.

=======  ==============================================================================================================
since    difference
=======  ==============================================================================================================
5.18     `generate` encodes images and videos before the first step and hands them to `forward` of the Qwen families as
         `mm_encoder_outputs`: `TAKES_ENCODED_VIDEOS`.
5.18     the features of a video in LLaVA-OneVision end with its newline, which `forward` added before:
         `FEATURES_END_WITH_NEWLINE`.
5.18     a deepstack level of Qwen3-VL is a tuple with the rows of every video; before, one tensor: `join_level`.
5.18     `output_router_logits` is a field of Qwen3-VL-MoE's text configuration: `default_router_logits`.
5.20     pipelines prepare the arguments of `generate` by `_prepare_generate_kwargs`: `generate_arguments` in
         `video/pipeline_flashvid.py`, because the pipeline does not import the models.
5.23     the outputs of the Qwen families no longer have `rope_deltas`: `output_class`, `complete_outputs`.
5.24     the outputs have `image_outputs` and `video_outputs`, the outputs of the vision tower; before, only outputs of
         LLaVA-OneVision have `image_hidden_states` and `video_hidden_states`: `output_class`, `complete_outputs`.
5.24     the cache is called `cache`; before, `past_key_values`, in arguments, outputs and what `generate` passes on:
         `CACHE`, `rename_cache`, `takes_arguments_of`, `CacheAlias`.
=======  ==============================================================================================================
"""

_CACHE_NAMES = ("cache", "past_key_values")
# Inputs of our `forward` that upstream's `forward` does not name in every family and version.
MODEL_INPUTS = ("mm_encoder_outputs", "use_cache")
# What upstream calls the cache: `cache` from 5.24 on, `past_key_values` before.
CACHE = next(name for name in _CACHE_NAMES if name in inspect.signature(create_causal_mask).parameters)

_ENCODES_FIRST = hasattr(GenerationMixin, "_expand_multimodal_outputs")  # from 5.18 on
# Whether upstream's Qwen families take videos that are encoded already.
TAKES_ENCODED_VIDEOS = _ENCODES_FIRST
# Whether the features of a video in upstream's LLaVA-OneVision end with its newline.
FEATURES_END_WITH_NEWLINE = _ENCODES_FIRST

F = TypeVar("F", bound=Callable[..., Any])


def rename_cache(kwargs: dict[str, Any], name: str = CACHE) -> dict[str, Any]:
    """Give the cache in keyword arguments one name.

    Args:
        kwargs: keyword arguments that may hold the cache under either of its names; they are not changed.
        name: the name that the cache gets. Default: upstream's.

    Returns:
        The keyword arguments with the cache under `name`. Without a cache, the same as `kwargs`.

    Raises:
        ValueError: a cache is given under both names.
    """
    given = [alias for alias in _CACHE_NAMES if alias in kwargs]
    if not given or given == [name]:
        return kwargs
    values = [kwargs[alias] for alias in given if kwargs[alias] is not None]
    if len(values) > 1:
        raise ValueError(
            "`cache` and `past_key_values` are both given, and they are two names of one argument. Pass only one."
        )
    others = {key: value for key, value in kwargs.items() if key not in given}
    return {**others, name: values[0] if values else None}


def takes_arguments_of(upstream_class: type) -> Callable[[F], F]:
    """Let a method take the arguments of an upstream model's `forward`, by position or by name.

    Upstream's argument list is then written only in upstream, and an argument that a new version adds is not lost. The
    signature of the decorated method is upstream's, followed by the arguments that the method names itself, because
    `generate` and `Trainer` compare their arguments with it. The cache may have either of its names.

    Args:
        upstream_class: the class whose `forward` has the arguments.

    Returns:
        A decorator for a method `(self, inputs, own=..., **kwargs)`. `inputs` holds all arguments of upstream's
        `forward` by name, with their given or default values, and the cache as `cache`. Arguments that the method names
        itself are passed under their own names.

    Raises:
        TypeError: in a call, an argument is given twice, or too many are given by position.
    """
    theirs = inspect.signature(upstream_class.forward)  # type: ignore[attr-defined]
    parameters = [p for p in theirs.parameters.values() if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD][1:]
    order = ["cache" if parameter.name == CACHE else parameter.name for parameter in parameters]
    defaults = dict.fromkeys(MODEL_INPUTS) | {n: p.default for n, p in zip(order, parameters, strict=True)}

    def decorate(method: F) -> F:
        ours = inspect.signature(method).parameters
        own = {name: p for name, p in ours.items() if p.default is not inspect.Parameter.empty}

        @functools.wraps(method)
        def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
            if len(args) > len(order):
                raise TypeError(f"forward() takes {len(order)} arguments by place, and {len(args)} were given.")
            kwargs, given = rename_cache(kwargs, "cache"), dict(zip(order, args))  # noqa: B905  # the rest by name
            for name in given.keys() & kwargs.keys():
                raise TypeError(f"forward() got `{name}` twice, by place and by name.")
            kwargs = given | kwargs
            inputs = {n: kwargs.pop(n, default) for n, default in defaults.items() if n not in own}
            return method(self, inputs, **kwargs)

        added = [ours[name] if name in ours else _optional(name) for name in (*MODEL_INPUTS, *own)]
        shown = [*theirs.parameters.values()][: len(order) + 1]
        shown += [p for p in added if p.name not in order]
        shown += [p for p in ours.values() if p.kind is inspect.Parameter.VAR_KEYWORD]
        wrapper.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            shown, return_annotation=inspect.signature(method).return_annotation
        )
        return wrapper  # type: ignore[return-value]

    return decorate


def _optional(name: str) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None)


class CacheAlias:
    """Lets the cache of an output be read as `cache` if upstream's field is called `past_key_values`."""

    if CACHE != "cache":

        @property
        def cache(self) -> Cache | None:
            return self.past_key_values  # type: ignore[attr-defined]


def output_class(model_class: type) -> Any:
    """The class of the outputs of an upstream model's `forward`, read from its return annotation.

    In 5.24 the annotation of Qwen2-VL's base model is too general: it names the class that a language model returns.
    """
    annotation = inspect.signature(model_class.forward).return_annotation  # type: ignore[attr-defined]
    (found,) = (part for part in get_args(annotation) if isinstance(part, type) and issubclass(part, ModelOutput))
    # 5.23 lacks the right class: there, the outputs have no fields of the vision tower.
    right = getattr(modeling_outputs, "MultimodalBaseModelOutputWithPast", found)
    return right if found is BaseModelOutputWithPast else found


def complete_outputs(model: Any, outputs: ModelOutput, encoded: dict[str, Any]) -> Any:
    """Fill the fields in the outputs of a base model that its language model leaves empty.

    Args:
        model: the base model.
        outputs: an object of upstream's class, or of a class with its fields.
        encoded: outputs of the vision tower, under "image" and "video".
    """
    known = {field.name for field in fields(outputs)}  # type: ignore[arg-type]  # every subclass is a dataclass
    others = {"rope_deltas": model.rope_deltas} if "rope_deltas" in known else {}
    for kind in ("image", "video"):
        if encoded.get(kind) is None:
            continue
        if f"{kind}_outputs" in known:
            others[f"{kind}_outputs"] = encoded[kind]
        elif f"{kind}_hidden_states" in known:
            others[f"{kind}_hidden_states"] = torch.cat(tuple(encoded[kind].pooler_output))
    return type(outputs)(**{**outputs, **others})


def join_level(level: Any) -> torch.Tensor:
    """Join the rows of one deepstack level of all images or videos, with shape (tokens, D)."""
    return level if isinstance(level, torch.Tensor) else torch.cat(tuple(level))


def default_router_logits(text_config: Any) -> bool:
    """Whether a language model with experts returns its router's logits when the call does not say."""
    return getattr(text_config, "output_router_logits", False)


# models/cache.py ------------------------------------------------------------------------------------------------------

"""The key/value cache of a compressed prompt."""


class FlashVIDCache(DynamicCache):
    """A `DynamicCache` that holds fewer tokens than the prompt had, and even fewer from the pruning layer on.

    `get_seq_length()` counts the tokens of the original sequence, because `generate` slices its inputs by this length,
    and positions continue from it.

    Args:
        lower_mask: which columns that the layers below the pruning layer have cached are real tokens, with shape
            (B, cached columns); `None` if nothing is padded.
        upper_mask: the same for the pruning layer and the layers above it.
        num_dropped: how many columns of the original sequence the lower layers do not hold.
        pruning_layer: the first layer that holds fewer columns; `None` if all layers hold the same.
        rope_deltas: how far positions are ahead of columns after the prompt, with shape (B, 1), in families whose
            videos take fewer positions than tokens. Upstream stores the value of the last prompt on the model.
        compressed: whether the cache holds a compressed prompt. If so, `lower_mask`, `upper_mask` and its lengths apply
            instead of the caller's mask.
        reports: one report of the compression for every prefill, and for every later call that had videos.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._clear()

    def _clear(self) -> None:
        self.lower_mask: torch.Tensor | None = None
        self.upper_mask: torch.Tensor | None = None
        self.num_dropped = 0
        self.pruning_layer: int | None = None
        self.rope_deltas: torch.Tensor | None = None
        self.compressed = False
        self.reports: tuple[CompressionReport, ...] = ()

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return super().get_seq_length(layer_idx) + self.num_dropped

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self.num_cached(layer_idx)

    def num_cached(self, layer_idx: int = 0) -> int:
        """How many columns a layer actually holds."""
        return super().get_seq_length(layer_idx)

    def account(
        self,
        lower_mask: torch.Tensor | None,
        upper_mask: torch.Tensor | None,
        num_dropped: int,
        pruning_layer: int | None,
    ) -> None:
        """Record what a call on a compressed prompt added to the cache.

        Args:
            lower_mask, upper_mask: see the class; they cover all cached columns.
            num_dropped: how many columns of this call did not enter the language model.
            pruning_layer: the first layer that holds fewer columns; `None` leaves it as it was.
        """
        self.compressed = True
        self.lower_mask, self.upper_mask = lower_mask, upper_mask
        self.num_dropped += num_dropped
        if pruning_layer is not None:
            self.pruning_layer = pruning_layer

    def crop(self, tokens_to_remove: int) -> None:
        super().crop(tokens_to_remove)
        if tokens_to_remove:
            self._update_masks(lambda mask: mask[:, : -abs(tokens_to_remove)])

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        super().reorder_cache(beam_idx)
        self._update_rows(lambda rows: rows.index_select(0, beam_idx.to(rows.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self._update_rows(lambda rows: rows.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)
        self._update_rows(lambda rows: rows[indices])

    def reset(self) -> None:
        super().reset()
        self._clear()

    def _update_rows(self, update: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._update_masks(update)
        if self.rope_deltas is not None:
            self.rope_deltas = update(self.rope_deltas)

    def _update_masks(self, update: Callable[[torch.Tensor], torch.Tensor]) -> None:
        if self.lower_mask is not None:
            self.lower_mask = update(self.lower_mask)
        if self.upper_mask is not None:
            self.upper_mask = update(self.upper_mask)


def is_compressed(cache: Cache | None) -> bool:
    """Whether a cache holds a compressed prompt."""
    return isinstance(cache, FlashVIDCache) and cache.compressed


def check_cache(cache: Cache | None) -> None:
    """Raise a `ValueError` if the cache cannot hold a compressed prompt."""
    if cache is not None and not isinstance(cache, FlashVIDCache):
        raise ValueError(
            f"`{CACHE}` is a `{type(cache).__name__}`: a compressed prompt needs a `FlashVIDCache`. Pass none, "
            "or the cache that an earlier call of this model returned."
        )


def past_masks(
    cache: FlashVIDCache | None, attention_mask: torch.Tensor | None
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Which cached columns are real rather than padding.

    Args:
        cache: the cache of the call, if it uses one.
        attention_mask: 2D mask of the whole sequence, earlier turns included; `None` if nothing is padded.

    Returns:
        Tuple of the mask below the pruning layer and the mask from it on, with shape (B, cached columns) each; `None`
        if all columns are real.
    """
    if cache is None:
        return None, None
    if cache.compressed:
        return cache.lower_mask, cache.upper_mask
    seen = cache.num_cached()
    if attention_mask is None or not seen:
        return None, None
    past = attention_mask[:, :seen].bool()
    return past, past


# models/columns.py ----------------------------------------------------------------------------------------------------

"""Drop columns of padded batches, and spread what is left over all columns again."""


def count_columns(inputs: dict[str, Any]) -> int:
    """How many columns the named arguments of `forward` have: S."""
    given = inputs["inputs_embeds"] if inputs["input_ids"] is None else inputs["input_ids"]
    return given.shape[1]


def find_columns(counts: torch.Tensor, padding_side: str = "left") -> tuple[torch.Tensor, torch.Tensor | None]:
    """Which columns to gather so that the kept tokens of every sample stand side by side.

    Waits for the device once, to read the number of columns and whether anything is padded.

    Args:
        counts: how often each column is taken (0 drops it), with shape (B, S), integer or boolean.
        padding_side: the side on which shorter samples are padded, "left" or "right".

    Returns:
        Tuple of the columns, with shape (B, L), and of the mask that says which of them are real rather than padding,
        with shape (B, L); the mask is `None` if nothing is padded.
    """
    ends = counts.long().cumsum(-1)
    lengths = ends[:, -1:]
    shortest, longest = torch.stack([lengths.min(), lengths.max()]).tolist()
    place = torch.arange(longest, device=counts.device).expand(len(counts), -1)
    if padding_side == "left":
        place = place - (longest - lengths)
    valid = None if shortest == longest else (place >= 0) & (place < lengths)
    # The column that holds the p-th token is the first whose running count exceeds p.
    columns = torch.searchsorted(ends, place.contiguous(), right=True).clamp(max=counts.shape[1] - 1)
    return columns, valid


def gather_columns(tensor: torch.Tensor, columns: torch.Tensor, dim: int = 1) -> torch.Tensor:
    """Gather columns of a tensor.

    Args:
        tensor: with shape (..., B, S, ...), or with 1 in place of B if the batch shares it.
        columns: the columns to gather, with shape (B, L).
        dim: the dimension of the columns; the batch is the dimension before it.

    Returns:
        Tensor with shape (..., B, L, ...).
    """
    columns = columns.to(tensor.device)
    batch_dim = dim - 1
    if tensor.shape[batch_dim] != len(columns):  # the batch shares it, for example rotary tables
        tensor = tensor.expand(*(len(columns) if d == batch_dim else -1 for d in range(tensor.ndim)))
    shape = [1] * tensor.ndim
    shape[batch_dim], shape[dim] = columns.shape
    target = list(tensor.shape)
    target[dim] = columns.shape[1]
    return tensor.gather(dim, columns.view(shape).expand(target))


def rows_of_columns(token_index: torch.Tensor, num_columns: int) -> torch.Tensor:
    """For every column of the input, the row that stands for it, with shape (B, num_columns).

    That is the row of the column itself, or of the last column before it that is left. Columns before the first one
    that is left get the first row.

    Args:
        token_index: input column of every row, with shape (B, L), -1 for padding.
        num_columns: number of columns of the input.
    """
    is_row = token_index >= 0
    counts = torch.zeros(len(token_index), num_columns, dtype=torch.long, device=token_index.device)
    counts.scatter_add_(1, token_index.clamp(min=0), is_row.long())
    num_padding = (~is_row).long().cumprod(1).sum(1, keepdim=True)  # rows of padding on the left
    rows = num_padding + (counts.cumsum(1) - 1).clamp(min=0)
    return rows.clamp(max=token_index.shape[1] - 1)  # a sample of nothing but padding


# models/generation.py -------------------------------------------------------------------------------------------------

"""`generate` on a compressed prompt."""

# Values of `cache_implementation` that work with a compressed prompt.
_CACHE_IMPLEMENTATIONS = (None, "dynamic", "offloaded")
# Arguments that our `generate` passes on to `forward` beside the model's inputs.
_CALL_ARGUMENTS = ("settings", "prompt_length")
# The reports of the steps of the `generate` that runs in this context. They are not collected in an argument of
# `forward`, because accelerate's hooks copy arguments.
_REPORTS: ContextVar[list[CompressionReport] | None] = ContextVar("flashvid_reports", default=None)


class FlashVIDGenerationMixin:
    """Lets `generate` run on a compressed prompt: its cache, the token that ranks, and its multimodal inputs."""

    config: Any
    generation_config: GenerationConfig
    model: Any

    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *args: Any,
        **kwargs: Any,
    ):
        """Upstream's `generate`, in which the last token of the prompt ranks the video tokens.

        The same token ranks in every step. Decoding without a cache, with candidates, or on the cache of an earlier
        turn therefore drops the same tokens as plain decoding.

        Args:
            inputs, generation_config, args: as upstream.
            kwargs: as upstream, with the cache under either of its names, and those of FlashVID's fields that shall
                differ from the configuration in this call (`retention_ratio=0.2`; 1.0 is off). An assistant model uses
                its own settings.

        Returns:
            As upstream. With `return_dict_in_generate=True`, the output has a `report` of what was compressed.

        Raises:
            ValueError: a setting is out of range; placeholders and videos do not fit together; the call asks for
                something that a compressed prompt does not support. That is a static, quantized or foreign cache, a
                prefill in chunks, an assistant without FlashVID, and in the Qwen families a second video on the cache
                of a first. A prompt may also have placeholders of images or videos that are not given. The error is
                raised before anything is encoded.
        """
        kwargs = rename_cache(kwargs)
        settings = self.model.find_settings(kwargs.get("mm_encoder_outputs") or {}, kwargs)
        input_ids = inputs if inputs is not None else kwargs.get("input_ids")
        prompt = kwargs.get("inputs_embeds") if input_ids is None else input_ids
        prompt_length = None if prompt is None else prompt.shape[1]
        if settings.compresses:
            if prompt_length is not None:
                kwargs.setdefault("query_index", prompt_length - 1)
            if self.has_videos(kwargs):
                self._check_generation(generation_config or self.generation_config, kwargs)
        self._check_placeholders(input_ids, kwargs)
        reports: list[CompressionReport] = []
        outer = _REPORTS.set(reports)
        try:
            outputs = super().generate(
                inputs, generation_config, *args, **kwargs, settings=settings, prompt_length=prompt_length
            )
        finally:
            _REPORTS.reset(outer)
        if isinstance(outputs, ModelOutput):
            outputs.report = reports[0] if reports else CompressionReport.without_videos(len(outputs.sequences))
        return outputs

    def _validate_model_kwargs(self, model_kwargs: dict[str, Any]) -> None:
        super()._validate_model_kwargs({name: v for name, v in model_kwargs.items() if name not in _CALL_ARGUMENTS})

    def _check_generation(self, generation_config: GenerationConfig, kwargs: dict[str, Any]) -> None:
        def setting(name: str) -> Any:
            return kwargs.get(name, getattr(generation_config, name, None))

        if setting("prefill_chunk_size") is not None:
            raise ValueError(
                f"`prefill_chunk_size` is {setting('prefill_chunk_size')!r}: a compressed prompt is ranked as a whole. "
                "Leave it at None; the compression makes the prefill short."
            )
        if setting("cache_implementation") not in _CACHE_IMPLEMENTATIONS:
            raise ValueError(
                f"`cache_implementation` is {setting('cache_implementation')!r}: a compressed prompt can be cached by "
                f"{', '.join(map(repr, _CACHE_IMPLEMENTATIONS))}. Choose one of them."
            )
        cache = kwargs.get(CACHE)
        check_cache(cache)
        if cache is not None and self.model.positions_need_grids and any(report.tokens for report in cache.reports):
            raise ValueError(
                f"`{CACHE}` holds a video and the call brings another: `generate` of transformers cannot place "
                "it. Pass the whole conversation without a cache, or call the model itself with `position_ids`."
            )
        assistant = kwargs.get("assistant_model")
        if hasattr(assistant, "get_video_features") and not hasattr(assistant.config, "retention_ratio"):
            raise ValueError(
                f"`assistant_model` is a `{type(assistant).__name__}`: it would get videos that are compressed. "
                "Pass a FlashVID model of the family, or `retention_ratio=1.0` to run without compression."
            )

    def _get_candidate_generator(self, *args: Any, model_kwargs: dict[str, Any], **kwargs: Any):
        # Upstream passes these arguments on to the assistant. A FlashVID assistant finds its own settings, and other
        # assistants do not know our arguments.
        if kwargs.get("assistant_model") is not None:
            private = {*_CALL_ARGUMENTS, "query_index"}
            model_kwargs = {name: value for name, value in model_kwargs.items() if name not in private}
        return super()._get_candidate_generator(*args, model_kwargs=model_kwargs, **kwargs)

    def _check_placeholders(self, input_ids: torch.Tensor | None, model_kwargs: dict[str, Any]) -> None:
        if input_ids is None:  # `forward` finds the placeholders in the embeddings
            return
        cache = model_kwargs.get(CACHE)
        seen = cache.get_seq_length() if cache is not None else 0
        masks = self.model.placeholder_masks(input_ids, None)
        missing = self.model.missing_media(model_kwargs, model_kwargs.get("mm_encoder_outputs") or {})
        if seen:  # in later turns `forward` checks the numbers; the first new token may be one that the model wrote
            masks = tuple(mask[:, seen + 1 :] for mask in masks)
        self.model.check_missing_media(missing, masks)
        for kind, mask in zip(("image", "video"), masks, strict=True):
            if not seen and model_kwargs.get(self.model.encoder_inputs[kind][0]) is not None:
                self.model.check_placeholders(kind, mask, model_kwargs)

    def _update_model_kwargs_for_generation(self, outputs: ModelOutput, *args: Any, **kwargs: Any) -> dict[str, Any]:
        # Every decoding method calls this after every step, with the outputs of `forward`.
        report, reports = getattr(outputs, "report", None), _REPORTS.get()
        if report is not None and reports is not None:
            reports.append(report)
        return super()._update_model_kwargs_for_generation(outputs, *args, **kwargs)

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs):
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        cache = model_kwargs.get(CACHE)
        if type(cache) is DynamicCache and not getattr(cache, "_is_user_defined", False):
            config = self.config.get_text_config(decoder=True)
            model_kwargs[CACHE] = FlashVIDCache(config=config, offloading=cache.offloading)

    def prepare_inputs_for_generation(
        self,
        *args: Any,
        inputs_embeds: torch.Tensor | None = None,  # `generate` takes embeddings only if it finds this name here
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ):
        # After the first step the encoded videos are in the cache. Some versions of transformers pass them on in every
        # step.
        if not is_first_iteration and kwargs.get("use_cache", True):
            kwargs.pop("mm_encoder_outputs", None)
        inputs = super().prepare_inputs_for_generation(
            *args, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )
        cache = kwargs.get(CACHE)
        if not is_first_iteration and cache is not None and not cache.get_seq_length():
            inputs["prompt_length"] = 0  # an assistant, to which upstream shows no pixels: all its ids are mere tokens
        return {**inputs, "full_length": False}

    def has_videos(self, model_kwargs: dict[str, Any]) -> bool:
        """Whether the arguments of a call contain videos, as pixels or encoded."""
        return "video" not in self.model.missing_media(model_kwargs, model_kwargs.get("mm_encoder_outputs") or {})

    def _expand_multimodal_outputs(
        self, input_ids: torch.Tensor, mm_encoder_output: dict[str, BaseModelOutputWithPooling], *args, **kwargs
    ):
        video = mm_encoder_output.get("video")
        if getattr(video, "videos", None) is None:
            return super()._expand_multimodal_outputs(input_ids, mm_encoder_output, *args, **kwargs)
        # Upstream orders the features of the expanded batch by their lengths before the compression. It gets stand-ins
        # of those lengths, which hold the index of their video, and the compressed videos are put in the same order.
        tokens, videos = video.pooler_output, video.videos
        settings = video.settings or self.config
        lengths = [len(self.model.lay_out(video, settings).counts) for video in videos]
        video.pooler_output = [torch.full((length, 1), i) for i, length in enumerate(lengths)]
        expanded = super()._expand_multimodal_outputs(input_ids, mm_encoder_output, *args, **kwargs)
        order = [int(stand_in[0, 0]) for stand_in in expanded["video"].pooler_output]
        expanded["video"].pooler_output = tuple(tokens[i] for i in order)
        expanded["video"].videos = tuple(videos[i] for i in order)
        return expanded


# models/hooks.py ------------------------------------------------------------------------------------------------------

"""Hooks on modules. Several models may share a module, so a hook is registered only once."""


def add_pre_hook(module: nn.Module, hook: Callable) -> None:
    """Register a forward pre-hook that takes keyword arguments, unless the module has it already."""
    if hook not in module._forward_pre_hooks.values():
        module.register_forward_pre_hook(hook, with_kwargs=True)


def add_hook(module: nn.Module, hook: Callable) -> None:
    """Register a forward hook that takes keyword arguments, unless the module has it already."""
    if hook not in module._forward_hooks.values():
        module.register_forward_hook(hook, with_kwargs=True)


# models/outputs.py ----------------------------------------------------------------------------------------------------

"""What the models return: upstream's outputs, and how the videos were compressed."""


@dataclass
class FlashVIDVideoOutput(BaseModelOutputWithPooling):
    """Output of `get_video_features`.

    Args:
        pooler_output: for each video, the rows that enter the language model, with shape (rows, D): its kept tokens
            and, in some families, newlines.
        last_hidden_state: patches of the vision tower. `None` for compressed videos, which are encoded in chunks so
            that all patches need not be in memory at once.
        videos: how each video was compressed; `None` if none was.
        settings: the configuration that the videos were encoded with.
        stopwatch: how long encoding and compression took; `None` if no video was compressed.
        deepstack_features: for each deepstack level, the rows of the kept tokens of each video, with shape (M, D); only
            in families with deepstack.
    """

    videos: tuple[CompressedVideo, ...] | None = None
    settings: Any = None
    stopwatch: Stopwatch | None = None
    deepstack_features: list[tuple[torch.Tensor, ...]] | None = None

    @classmethod
    def uncompressed(cls, outputs: ModelOutput, settings: Any) -> "FlashVIDVideoOutput":
        """Convert upstream's output for videos that are not compressed, and add the settings of the encoding."""
        known = {field.name for field in fields(cls)} & outputs.keys()
        return cls(**{name: outputs[name] for name in known}, settings=settings)


@dataclass
class FlashVIDModelOutput(CacheAlias, ModelOutput):
    """FlashVID's fields of the output of a base model. Each family adds the fields of upstream's output.

    Args:
        last_hidden_state: with shape (B, L, D), or (B, S, D) for trainers, see `full_length` of `forward_flashvid`.
            `hidden_states` and `attentions` have M columns below the pruning layer, and L columns from it on.
        token_index: input column of every row that is left, with shape (B, L), -1 for padding. `None` in calls without
            videos, in which all columns are left.
        report: what was compressed; `None` in calls that continue a cache and have no video of their own.
    """

    token_index: torch.Tensor | None = None
    report: CompressionReport | None = None


@dataclass
class FlashVIDCausalLMOutput(CacheAlias, ModelOutput):
    """FlashVID's fields of the output of a generative model. Each family adds the fields of upstream's output.

    Args:
        loss: over the labels of the columns that are left.
        logits: with shape (B, L, vocabulary), for the columns that are left. In calls that compute a loss: with shape
            (B, S, vocabulary), for all columns; a dropped column repeats the logits of the last column before it that
            is left. See `full_length` of `language_modeling_output`.
        token_index, report: see `FlashVIDModelOutput`. On the replicas of `nn.DataParallel` the output has neither of
            them, and no cache.
    """

    token_index: torch.Tensor | None = None
    report: CompressionReport | None = None


# models/language_modeling.py ------------------------------------------------------------------------------------------

"""The language modeling head: logits and loss of a compressed prompt."""


class FlashVIDLanguageModelingMixin:
    """Logits and loss of a compressed prompt."""

    config: Any
    lm_head: Any
    loss_function: Any
    training: bool

    # Tells trainers that the loss divides by `num_items_in_batch`. Upstream's Qwen classes deny it, although their loss
    # does so too. Here this argument also shows that a trainer computes the loss itself.
    accepts_loss_kwargs = True
    # The class of the outputs: upstream's fields and those of `FlashVIDCausalLMOutput`.
    output_class: type[FlashVIDCausalLMOutput]

    def language_modeling_output(
        self,
        outputs: BaseModelOutputWithPast,
        inputs: dict[str, Any],
        labels: torch.Tensor | None,
        logits_to_keep: int | torch.Tensor,
        full_length: bool | None = None,
        **kwargs: Any,
    ) -> FlashVIDCausalLMOutput:
        """Compute the logits from the output of the base model, and with labels the loss.

        The loss is computed from the rows that are left, before any row is repeated.

        Args:
            outputs: output of the base model, whose rows are the columns that are left.
            inputs: the named arguments of `forward`.
            labels: with shape (B, S). Labels of dropped columns, of padding and of the first token of a sample do not
                count.
            logits_to_keep: how many of the last columns get logits, 0 for all; or the indices of these columns. If the
                logits are not of full length, they count rows that are left.
            full_length: whether the logits have all S columns of a compressed prompt, or only the L that are left. A
                dropped column repeats the logits of the last column before it that is left. `None` stands for
                `full_length` of the configuration. If that is `None` too, the logits have full length in training mode,
                in calls with `labels` or `num_items_in_batch` (a trainer that computes the loss itself), and on the
                replicas of `nn.DataParallel`.
            kwargs: what the loss function takes.

        Raises:
            ValueError: `labels` of a compressed prompt with `logits_to_keep` or `shift_labels`.
        """
        states, token_index = outputs.last_hidden_state, getattr(outputs, "token_index", None)
        is_replica = getattr(self, "_is_replica", False)  # set by `nn.DataParallel`
        if full_length is None:
            full_length = self.config.full_length
        if full_length is None:
            computes_loss = labels is not None or kwargs.get("num_items_in_batch") is not None
            full_length = self.training or computes_loss or is_replica
        keeps_all = isinstance(logits_to_keep, int) and logits_to_keep == 0
        columns = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        if labels is not None and token_index is not None:
            _check_loss_arguments(keeps_all, logits_to_keep, kwargs.get("shift_labels"))
        repeated = None  # the row of each column, if the logits have full length
        if token_index is not None and full_length:
            repeated = rows_of_columns(token_index, count_columns(inputs))[:, columns]
            if not keeps_all:  # the head runs on these columns alone
                states, columns, repeated = gather_columns(states, repeated), slice(None), None
        logits = self.lm_head(states[:, columns])
        loss = None
        if labels is not None:
            if token_index is not None:
                kept = token_index.to(labels.device)
                is_padding = kept < 0
                # The row before the first token of a sample may be padding. Padding must not predict that token.
                uncounted = is_padding | nn.functional.pad(is_padding[:, :-1], (1, 0))
                labels = labels.gather(1, kept.clamp(min=0)).masked_fill(uncounted, -100)
            vocab_size = self.config.get_text_config().vocab_size
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=vocab_size, **kwargs)
        if repeated is not None:
            logits = gather_columns(logits, repeated)
        own = {field.name for field in fields(self.output_class)}
        passed_on = {name: value for name, value in outputs.items() if name in own}
        passed_on["report"] = getattr(outputs, "report", None)  # upstream's outputs have no such field
        if is_replica:  # it can only gather tensors with the same number of columns on every replica
            ignored = self.config.keys_to_ignore_at_inference
            passed_on = {name: value for name, value in passed_on.items() if name not in ignored}
        return self.output_class(**{**passed_on, "loss": loss, "logits": logits})


def _check_loss_arguments(
    keeps_all: bool, logits_to_keep: int | torch.Tensor, shift_labels: torch.Tensor | None
) -> None:
    if not keeps_all:
        raise ValueError(
            f"`logits_to_keep` is {logits_to_keep!r} and `labels` are given: the loss of a compressed prompt needs the "
            "logits of all rows. Leave `logits_to_keep` at 0."
        )
    if shift_labels is not None:
        raise ValueError(
            f"`shift_labels` of shape {tuple(shift_labels.shape)} is given: the columns of a compressed prompt move, "
            "so its labels are shifted after the compression. Pass `labels` alone, and split no sequence over devices."
        )


# models/tensor_parallel.py --------------------------------------------------------------------------------------------

"""Attention heads that tensor parallelism spreads over processes. The score of a token is the mean over all heads."""


def mean_over_heads(mean: torch.Tensor, num_local: int, num_heads: int, projection: Any) -> torch.Tensor:
    """The mean over all heads of an attention module, equal on every rank.

    If every rank scored tokens by its own heads, the ranks would keep different tokens.

    Args:
        mean: float32 mean over the heads of this process. It is returned as it is if these are all heads.
        num_local: number of heads of this process.
        num_heads: number of heads of the module, over all ranks.
        projection: the linear layer that makes the heads. If `tp_plan` shards it, its weight is a DTensor.

    Raises:
        ValueError: some heads are on other processes, and the projection does not say on which.
    """
    if num_local == num_heads:
        return mean
    weight = getattr(projection, "weight", None)
    mesh = getattr(weight, "device_mesh", None)
    if mesh is None:
        raise ValueError(
            f"`num_attention_heads` is {num_heads}, and this process has {num_local} of them in a "
            f"{type(projection).__name__} that is no DTensor: FlashVID ranks tokens by all heads, and cannot tell "
            "where the others are. Shard the model by transformers' `tp_plan`, or turn the compression off by "
            "`retention_ratio=1.0`."
        )
    total = mean * num_local
    for dim, placement in enumerate(weight.placements):
        if not placement.is_replicate():
            distributed.all_reduce(total, group=mesh.get_group(dim))
    return total / num_heads


def all_heads(states: torch.Tensor, width: int) -> torch.Tensor:
    """Return `states` if they hold all heads of an attention module.

    Args:
        states: the heads of this process, side by side in the last dimension.
        width: width of all heads together.

    Raises:
        ValueError: some heads are on other processes.
    """
    if states.shape[-1] != width:
        raise ValueError(
            f"`signals` of the method names keys, and this process has {states.shape[-1]} of their {width} values: the "
            "attention of the vision tower is split over processes. Load the model without tensor parallelism, or "
            "choose a `compression_method` that asks for no keys."
        )
    return states


# models/vision_signals.py ---------------------------------------------------------------------------------------------

"""Record signals in the layers of a vision tower, for every patch and with any attention implementation.

The layers return no attention weights. If a method asks for the attention of a layer, its queries and keys are
computed once more from the input of the layer. The hooks do nothing unless a call passes a `VisionRecord`. All results
go to that record, so calls from several threads do not disturb each other.
"""

# Name of the keyword argument that carries the record through the vision tower.
RECORD = "vision_record"
# The float32 attention weights that exist at once take at most `_WEIGHT_BYTES`. For comparison: one frame of SigLIP's
# 729 patches takes 34 million bytes. They also take at most `_WEIGHTS_PER_QUERY` times the bytes of the queries, which
# is the smaller bound if there are few frames: the block's own MLP needs that much memory anyway.
_WEIGHT_BYTES = 64 * 2**20
_WEIGHTS_PER_QUERY = 2


class Source(NamedTuple):
    """Where in a vision tower a signal is recorded.

    Args:
        kind: one of `SIGNAL_KINDS`.
        module: the layer for "hidden_states", the attention module of the layer for the other kinds.
    """

    kind: str
    module: nn.Module


class VisionRecord:
    """What a call asks for from the inside of a vision tower, and what the hooks recorded.

    Args:
        wanted: what is recorded.

    Attributes:
        found: the records by their source, with all frames one after the other. "attention" has shape (positions,), in
            float32. "keys" and "hidden_states" have the shape of the hidden states of the tower.
    """

    def __init__(self, wanted: Iterable[Source]):
        self.wanted = frozenset(wanted)
        self.found: dict[Source, torch.Tensor] = {}


def find_sources(signals: Iterable[Signal], layers: Sequence[Any], last: Any) -> dict[Signal, Source]:
    """Find where in a vision tower each signal is recorded.

    Args:
        signals: the signals that a method asks for.
        layers: all layers of the tower, from the bottom.
        last: the layer whose output makes the features.

    Raises:
        ValueError: a signal names a layer that the tower does not have.
    """
    sources, layers = {}, list(layers)
    num_used = layers.index(last) + 1
    for signal in signals:
        index = signal.layer if signal.layer >= 0 else num_used + signal.layer
        if not 0 <= index < len(layers):
            raise ValueError(
                f"`layer` of {signal!r} is {signal.layer}: the vision tower has {len(layers)} layers, of which number "
                f"{num_used - 1} makes the features, so it must lie in -{num_used} ... {len(layers) - 1}. Choose such "
                "a layer in `signals` of the method."
            )
        of_layer = signal.kind == "hidden_states"
        sources[signal] = Source(signal.kind, layers[index] if of_layer else _attention_of(layers[index]))
    return sources


def install_packed_recording(layers: Iterable[nn.Module]) -> None:
    """Install hooks on layers that take packed sequences (`cu_seqlens`) and have a joint `qkv`, like Qwen's."""
    for layer in layers:
        add_pre_hook(_attention_of(layer), _record_packed)
        add_hook(layer, _record_output)


def install_frame_recording(layers: Iterable[nn.Module]) -> None:
    """Install hooks on layers that take a batch of frames and have `q_proj` and `k_proj`, like SigLIP's."""
    for layer in layers:
        add_pre_hook(_attention_of(layer), _record_frames)
        add_hook(layer, _record_output)


def _attention_of(layer: Any) -> nn.Module:
    return layer.attn if hasattr(layer, "attn") else layer.self_attn


def mean_received_attention(query: torch.Tensor, key: torch.Tensor, lengths: list[int], scaling: float) -> torch.Tensor:
    """Attention that each position receives: softmax over the keys, mean over heads and queries.

    Args:
        query, key: with shape (heads, sequence, head width).
        lengths: number of positions of every frame. Each frame attends only to itself.
        scaling: factor of the inner products.

    Returns:
        float32 tensor with shape (sequence,). Each frame sums to 1.
    """
    received, start = [], 0
    for length, frames in groupby(lengths):  # usually all frames of a video have the same length
        shape = (len(query), len(list(frames)), length, -1)
        end = start + shape[1] * length
        q, k = (states[:, start:end].reshape(shape).transpose(0, 1) for states in (query, key))
        received.append(_received_in_frames(q, k, scaling).flatten())
        start = end
    return torch.cat(received)


def _received_in_frames(query: torch.Tensor, key: torch.Tensor, scaling: float) -> torch.Tensor:
    """`mean_received_attention` of frames of equal length, from (T, heads, length, head width) to (T, length).

    Processes as many frames at once as the memory bound allows, or some queries of a frame if a whole frame exceeds it.
    """
    _, num_heads, length, _ = query.shape
    budget = min(_WEIGHT_BYTES, _WEIGHTS_PER_QUERY * query.nbytes)
    row = 4 * num_heads * length  # bytes of the attention weights of one query
    num_frames, num_queries = max(1, budget // (row * length)), max(1, budget // row)
    received = query.new_zeros(len(query), length, dtype=torch.float32)
    with torch.autocast(query.device.type, enabled=False):
        for total, q, k in zip(*(states.split(num_frames) for states in (received, query, key)), strict=True):
            k = k.float().mT
            for part in q.split(num_queries, dim=2):
                total += (part.float() @ k).mul_(scaling).softmax(-1).sum((1, 2))
    return received.div_(num_heads * length)


def rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Apply rotary position embeddings in the half-split layout. The tables broadcast against `states`."""
    first, second = states.chunk(2, dim=-1)
    return states * cos + torch.cat((-second, first), dim=-1) * sin


@torch.no_grad()
def _record_packed(attention: Any, args: tuple, kwargs: dict[str, Any]):
    record = kwargs.pop(RECORD, None)
    received, keys = Source("attention", attention), Source("keys", attention)
    if record is not None and not record.wanted.isdisjoint((received, keys)):
        hidden_states = args[0] if args else kwargs["hidden_states"]
        heads = (len(hidden_states), 3, attention.num_heads, -1)
        query, key, _ = attention.qkv(hidden_states).view(heads).permute(1, 2, 0, 3)
        if keys in record.wanted:
            record.found[keys] = key.transpose(0, 1).flatten(1)
        if received in record.wanted:
            cos, sin = (table.float() for table in kwargs["position_embeddings"])
            lengths = kwargs["cu_seqlens"].diff().tolist()
            query, key = rotate(query.float(), cos, sin), rotate(key.float(), cos, sin)
            record.found[received] = mean_received_attention(query, key, lengths, attention.scaling)
    return args, kwargs


@torch.no_grad()
def _record_frames(attention: Any, args: tuple, kwargs: dict[str, Any]):
    record = kwargs.pop(RECORD, None)
    received, keys = Source("attention", attention), Source("keys", attention)
    if record is not None and not record.wanted.isdisjoint((received, keys)):
        hidden_states = args[0] if args else kwargs["hidden_states"]
        frames, length, _ = hidden_states.shape
        heads = (frames * length, -1, attention.head_dim)  # -1: the heads of this rank
        key = attention.k_proj(hidden_states)
        if keys in record.wanted:
            record.found[keys] = all_heads(key, attention.num_heads * attention.head_dim)
        if received in record.wanted:
            query = attention.q_proj(hidden_states).view(heads).transpose(0, 1)
            key = key.view(heads).transpose(0, 1)
            mean = mean_received_attention(query, key, [length] * frames, attention.scale)
            record.found[received] = mean_over_heads(mean, len(query), attention.num_heads, attention.q_proj)
    return args, kwargs


def _record_output(layer: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
    record, states = kwargs.get(RECORD), Source("hidden_states", layer)
    if record is not None and states in record.wanted:
        record.found[states] = output[0] if isinstance(output, tuple) else output


# models/layer_pruning.py ----------------------------------------------------------------------------------------------

"""Pruning inside the language model: from one layer on, only the best video tokens are left, see `LayerPruning`.

Upstream's language models pass unknown keyword arguments on to their layers. One such argument carries the decision of
the call. Hooks on the layers of a model instance apply the decision. In calls without the argument they do nothing.

Letters of this file: Q queries, that is columns whose attention ranks the video tokens.
"""

# Name of the keyword argument that carries the decision through the language model.
PRUNING = "pruning"
# Most bytes of the float32 attention weights of text tokens that exist at once. It bounds the memory for long prompts.
_MAX_SCORE_BYTES = 64 * 2**20


class UpperLayers:
    """What the pruning layer and the layers above it see in one call: their attention mask and their columns.

    Args:
        config: configuration of the language model.
        layer: the first layer that sees fewer tokens.
        cache: cache of the call; `None` if it uses none.
        past_mask: which of the columns that these layers have cached are real, with shape (B, cached columns); `None`
            if all are.
        new_mask: which of the new columns are real, with shape (B, M); `None` if all are.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        layer: int,
        cache: FlashVIDCache | None,
        past_mask: torch.Tensor | None,
        new_mask: torch.Tensor | None,
    ):
        self.config, self.layer, self.cache = config, layer, cache
        self.past_mask, self.new_mask = past_mask, new_mask
        self.mask: torch.Tensor | None = None  # over cached and new columns
        self.attention_mask: Any = None  # the same mask in the form that the attention implementation takes
        self.entered = False

    def start_layer(self, layer_idx: int, hidden_states: torch.Tensor, kwargs: dict[str, Any]) -> torch.Tensor:
        """Adapt the inputs of `layer` or of a layer above it.

        Args:
            layer_idx: index of that layer.
            hidden_states: its input, with shape (B, columns, D).
            kwargs: its keyword arguments, which are changed.

        Returns:
            The hidden states that the layer gets.
        """
        if not self.entered:
            self.entered = True
            past = self.cache.num_cached(self.layer) if self.cache is not None else 0
            self.mask = join_masks(self.past_mask, past, self.new_mask, hidden_states)
            self.attention_mask = create_causal_mask(
                config=self.config,
                inputs_embeds=hidden_states,
                attention_mask=self.mask,
                layer_idx=self.layer,
                **{CACHE: self.cache},
            )
        mask = self.attention_mask
        kwargs["attention_mask"] = mask.to(hidden_states.device) if isinstance(mask, torch.Tensor) else mask
        return hidden_states


class TokenPruning(UpperLayers):
    """The decision of one call which video tokens the pruning layer and the layers above it see.

    The score of a token is the attention that it gets in the layer below the pruning layer, in float32: softmax over
    all visible keys, mean over the heads of all ranks. It is the attention from the query, or the largest attention
    from any token behind the last video up to the query. In every sample the best `ceil(ratio * prunable tokens)`
    prunable tokens stay, and so do all other tokens.

    Args:
        upper: the arguments of `UpperLayers`.
        rule: which share of the prunable tokens stays, how tokens are ranked, and whether dropped tokens are merged
            into those that stay.
        prunable: which of the new columns may be dropped, with shape (B, M).
        query: column of the token that ranks the others, the end of the prompt, with shape (B,).
        past_lower_mask: which of the columns that the layers below have cached are real, with shape
            (B, cached columns); `None` if all are.
        padding_side: the side on which shorter samples are padded, "left" or "right".
        is_video: which of the new columns belong to videos, newlines included, with shape (B, M). Default: `prunable`.
    """

    def __init__(
        self,
        *upper: Any,
        rule: LayerPruning,
        prunable: torch.Tensor,
        query: torch.Tensor,
        past_lower_mask: torch.Tensor | None,
        padding_side: str,
        is_video: torch.Tensor | None = None,
    ):
        super().__init__(*upper)
        self.rule, self.prunable, self.query = rule, prunable, query
        self.past_lower_mask, self.padding_side = past_lower_mask, padding_side
        self.is_video = prunable if is_video is None else is_video
        self.scores: torch.Tensor | None = None  # (B, M)
        self.keep: torch.Tensor | None = None  # (B, M)
        self.columns: torch.Tensor | None = None  # (B, L): which of the columns that entered stay

    @torch.no_grad()
    def score(self, layer: Any, hidden_states: torch.Tensor, position_embeddings: tuple) -> None:
        """Score the columns by the self-attention of the layer below the pruning layer.

        Args:
            layer: that layer.
            hidden_states: its input, with shape (B, M, D).
            position_embeddings: its rotary tables, cosine and sine.
        """
        if self.scores is not None:  # gradient checkpointing runs a layer twice
            return
        attention, hidden_states = layer.self_attn, layer.input_layernorm(hidden_states)
        cos, sin = position_embeddings
        batch, length, _ = hidden_states.shape
        rows, is_row = self._find_queries(hidden_states.device)  # (B, Q)
        query = attention.q_proj(gather_columns(hidden_states, rows)).view(batch, rows.shape[1], -1, attention.head_dim)
        key = attention.k_proj(hidden_states).view(batch, length, -1, attention.head_dim)
        if hasattr(attention, "q_norm"):
            query, key = attention.q_norm(query), attention.k_norm(key)
        query = rotate(query.transpose(1, 2), gather_columns(cos, rows)[:, None], gather_columns(sin, rows)[:, None])
        key = rotate(key.transpose(1, 2), cos[:, None], sin[:, None])
        past = self.cache.num_cached(self.layer - 1) if self.cache is not None else 0
        if self.cache is not None and past:  # the keys of earlier turns are part of the softmax
            key = torch.cat([self.cache.layers[self.layer - 1].keys.to(key), key], dim=2)
        real = join_masks(self.past_lower_mask, past, self.new_mask, hidden_states)
        real = None if real is None else real.to(key.device)

        num_local, num_heads = query.shape[1], self.config.num_attention_heads
        size = max(1, _MAX_SCORE_BYTES // (4 * batch * num_local * key.shape[2]))
        most = None
        with torch.autocast(key.device.type, enabled=False):
            key = key.float().mT
            for part, at, is_part in zip(query.split(size, 2), rows.split(size, 1), is_row.split(size, 1), strict=True):
                visible = torch.arange(past + length, device=key.device) <= at[..., None] + past  # (B, Q, past + M)
                if real is not None:
                    visible = visible & real[:, None]
                # (B, key heads, query heads per key head * Q, head width) @ (B, key heads, head width, past + M)
                logits = part.float().reshape(batch, key.shape[1], -1, key.shape[2]) @ key * attention.scaling
                logits = logits.unflatten(2, (-1, at.shape[1])).masked_fill(~visible[:, None, None], float("-inf"))
                weights = logits.softmax(-1).mean((1, 2))[..., past:]
                weights = mean_over_heads(weights, num_local, num_heads, attention.q_proj)
                scores = weights.masked_fill(~is_part[..., None], 0).amax(1)
                most = scores if most is None else torch.maximum(most, scores)
        self.scores = most

    def _find_queries(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """The columns whose attention counts, and which of them are real and not padding, with shape (B, Q) each."""
        last = self.query.to(device)[:, None]
        if self.rule.scored_by == "last_token":
            return last, torch.ones_like(last, dtype=torch.bool)
        is_video = self.is_video.to(device)
        place = torch.arange(is_video.shape[1], device=device)
        behind = (place > (is_video * place).amax(-1, keepdim=True)) & (place < last)
        if self.new_mask is not None:
            behind = behind & self.new_mask.to(device)
        rows, is_row = find_columns(behind | (place == last), self.padding_side)
        return rows, torch.ones_like(rows, dtype=torch.bool) if is_row is None else is_row

    def start_layer(self, layer_idx: int, hidden_states: torch.Tensor, kwargs: dict[str, Any]) -> torch.Tensor:
        if self.columns is None:
            self._select()
        if layer_idx == self.layer:
            if self.rule.merges:
                prunable = self.prunable.to(hidden_states.device)
                hidden_states = merge_dropped(hidden_states, prunable, self.keep.to(hidden_states.device))
            hidden_states = gather_columns(hidden_states, self.columns)
        kwargs["position_embeddings"] = tuple(
            gather_columns(table, self.columns) for table in kwargs["position_embeddings"]
        )
        # Layers read position ids only to detect packed sequences. Gaps in them would look like packed sequences.
        kwargs["position_ids"] = None
        return super().start_layer(layer_idx, hidden_states, kwargs)

    def _select(self) -> None:
        assert self.scores is not None, "the layer below the pruning layer has scored the tokens"
        prunable = self.prunable.to(self.scores.device)
        scores = self.scores.masked_fill(~prunable, float("-inf"))
        rank = scores.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        budget = (prunable.sum(-1, keepdim=True).double() * self.rule.ratio).ceil()
        self.keep = ~prunable | (rank < budget)
        if self.new_mask is not None:
            self.keep = self.keep & self.new_mask.to(self.keep.device)
        self.columns, self.new_mask = find_columns(self.keep, self.padding_side)


def merge_dropped(hidden_states: torch.Tensor, prunable: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Average every dropped token into the kept video token that it is most similar to.

    The dropped tokens y of a kept token x are averaged into it one after the other: x becomes (x + y) / 2. Of m dropped
    tokens the last thus has weight 1/2, the one before it 1/4, and x itself has 2**-m.

    Args:
        hidden_states: with shape (B, M, D).
        prunable: which columns are video tokens that may be dropped, with shape (B, M).
        keep: which columns stay, with shape (B, M).

    Returns:
        Hidden states with shape (B, M, D). They are meaningless in columns that do not stay.
    """
    batch, length, width = hidden_states.shape
    column = torch.arange(batch * length, device=hidden_states.device).view(batch, length)
    states = hidden_states.float()
    unit = nn.functional.normalize(states, dim=-1)
    is_target = keep & prunable
    dropped = prunable & ~keep & is_target.any(-1, keepdim=True)
    # One sample at a time: the similarities of a long video take as much memory as the weights of an attention head.
    nearest = torch.stack(
        [(u @ u.mT).masked_fill_(~target, float("-inf")).argmax(-1) for u, target in zip(unit, is_target, strict=True)]
    )
    slot = torch.where(dropped, nearest + column[:, :1], column).flatten()
    # In this order every kept token is followed by the tokens that are averaged into it.
    counted = (dropped | keep).flatten()
    order = (slot * 2 + dropped.flatten()).argsort(stable=True)
    ends = torch.searchsorted(slot[order], slot, right=True)
    behind = ends - 1 - order.argsort()  # how many tokens of the same slot come after each token
    is_first = ~dropped.flatten()
    weight = torch.where(is_first, 0.5 ** behind.float(), 0.5 ** (behind + 1).float()) * counted
    merged = weighted_sums(states.view(-1, width), None, slot, weight, column.flatten())
    return merged.view(batch, length, width).to(hidden_states.dtype)


def join_masks(
    past: torch.Tensor | None, num_past: int, new: torch.Tensor | None, like: torch.Tensor
) -> torch.Tensor | None:
    """Mask over cached and new columns, with shape (B, num_past + M); `None` if every column is real.

    Args:
        past: mask of the cached columns, with shape (B, num_past); `None` if all are real.
        num_past: number of cached columns.
        new: mask of the new columns, with shape (B, M); `None` if all are real.
        like: a tensor with shape (B, M, ...) on the device of the result, such as the hidden states.
    """
    if past is None and new is None:
        return None
    batch, length = like.shape[:2]
    past = torch.ones(batch, num_past, dtype=torch.bool, device=like.device) if past is None else past
    new = torch.ones(batch, length, dtype=torch.bool, device=like.device) if new is None else new
    return torch.cat([past.to(like.device), new.to(like.device)], dim=-1)


def install_pruning(layers: nn.ModuleList) -> None:
    """Install hooks on the layers of a language model that prune in calls with the argument `pruning`."""
    for layer in layers:
        add_pre_hook(layer, _enter_layer)


def _enter_layer(layer: Any, args: tuple, kwargs: dict[str, Any]):
    decision = kwargs.pop(PRUNING, None)
    if decision is None:
        return args, kwargs
    layer_idx, hidden_states = layer.self_attn.layer_idx, args[0]
    if layer_idx == decision.layer - 1 and isinstance(decision, TokenPruning):
        decision.score(layer, hidden_states, kwargs["position_embeddings"])
    if layer_idx >= decision.layer:
        args = (decision.start_layer(layer_idx, hidden_states, kwargs), *args[1:])
    return args, kwargs


# models/placeholders.py -----------------------------------------------------------------------------------------------

"""The placeholders of images and videos in a prompt: which columns they are, and whether they fit what was given."""


class FlashVIDPlaceholdersMixin:
    """Finds and checks the placeholders of a call of `forward`."""

    config: Any
    get_placeholder_mask: Any

    # For "image" and "video": the inputs of `forward` that `get_image_features` and `get_video_features` take. The
    # pixels come first.
    encoder_inputs: ClassVar[dict[str, tuple[str, ...]]]

    def placeholder_counts(self, kind: str, inputs: dict[str, Any]) -> tuple[int, ...] | torch.Tensor | None:
        """How many placeholders each image or video in the inputs of `forward` needs, before it is encoded.

        `None` if this is known only after the encoding.

        Args:
            kind: "image" or "video".
            inputs: the named arguments of `forward`.
        """
        raise NotImplementedError

    def check_placeholders(self, kind: str, mask: torch.Tensor, inputs: dict[str, Any]) -> bool:
        """Raise a `ValueError` if the number of placeholders does not fit the pixels.

        Args:
            kind: "image" or "video".
            mask: which columns are placeholders of this kind, with shape (B, S).
            inputs: the named arguments of `forward`.

        Returns:
            Whether the check was possible. If not, it must be made after the encoding.
        """
        counts = self.placeholder_counts(kind, inputs)
        if counts is not None:
            check_placeholders(kind, mask, int(torch.as_tensor(counts).sum()))
        return counts is not None

    def placeholder_masks(
        self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Which columns are placeholders of images and of videos, with shape (B, S) each."""
        if input_ids is not None:
            return input_ids == self.config.image_token_id, input_ids == self.config.video_token_id
        image_mask, video_mask = self.get_placeholder_mask(None, inputs_embeds=inputs_embeds)
        return image_mask[..., 0], video_mask[..., 0]

    def find_placeholders(self, inputs: dict[str, Any], num_prompt: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Which columns of a call are placeholders of images and of videos, with shape (B, S) each.

        Args:
            inputs: the named arguments of `forward`.
            num_prompt: how many columns of this call belong to the prompt of `generate`; `None` if all of them do. The
                model itself wrote the others, in which the ids of placeholders are mere tokens.
        """
        length = count_columns(inputs)
        if num_prompt is not None and num_prompt <= 0:
            given = inputs["inputs_embeds"] if inputs["input_ids"] is None else inputs["input_ids"]
            none = torch.zeros(given.shape[:2], dtype=torch.bool, device=given.device)
            return none, none
        masks = self.placeholder_masks(inputs["input_ids"], inputs["inputs_embeds"])
        if num_prompt is None or num_prompt >= length:
            return masks
        is_prompt = torch.arange(length, device=masks[0].device) < num_prompt
        return masks[0] & is_prompt, masks[1] & is_prompt

    def missing_media(self, inputs: Mapping[str, Any], encoded: Mapping[str, Any]) -> tuple[str, ...]:
        """Which of "image" and "video" a call does not have, neither as pixels nor encoded.

        Args:
            inputs: the named arguments of the call.
            encoded: outputs of the vision tower, under "image" and "video".
        """
        return tuple(
            kind
            for kind, (pixels, *_) in self.encoder_inputs.items()
            if inputs.get(pixels) is None and encoded.get(kind) is None
        )

    def check_missing_media(self, missing: Sequence[str], masks: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Raise a `ValueError` if a prompt has placeholders of images or videos that the call does not have.

        Waits for the device once. Code that is being compiled is not checked.

        Args:
            missing: see `missing_media`.
            masks: which columns are placeholders of images and of videos, with shape (B, S) each.
        """
        if not missing or torch.compiler.is_compiling():
            return
        of_kind = dict(zip(("image", "video"), masks, strict=True))
        counts = torch.stack([of_kind[kind].sum() for kind in missing]).tolist()
        for kind, found in zip(missing, counts, strict=True):
            if found:
                pixels = self.encoder_inputs[kind][0]
                raise ValueError(
                    f"`input_ids` has {found} {kind} placeholders and the call has no {kind}: the model would read the "
                    f"placeholders as text. Pass `{pixels}` and all other outputs of the processor, or leave the "
                    f"{kind} out of the prompt."
                )


def check_placeholders(kind: str, mask: torch.Tensor, expected: int) -> None:
    """Raise a `ValueError` unless the prompt has one placeholder for every feature of its videos or images.

    Args:
        kind: "image" or "video".
        mask: which columns are placeholders of this kind, with shape (B, S).
        expected: number of features.
    """
    found = int(mask.sum())
    if found != expected:
        raise ValueError(
            f"`input_ids` has {found} {kind} placeholders: the {kind} inputs need exactly {expected}. Make both with "
            "one call of the processor, and cut neither; on a cache, pass only those of the new turn."
        )


# models/prompt.py -----------------------------------------------------------------------------------------------------

"""The prompt of one call after the compression: which input columns enter the language model."""


@dataclass(frozen=True)
class VideoLayout:
    """How the entering rows of a video lie in its placeholders. A row is a kept token or a newline.

    Args:
        counts: how often each placeholder enters, with shape (placeholders,): 0 or 1, or more if the released code
            repeats a token.
        prunable: which of the entering rows the language model may drop, with shape (rows,).
        is_token: which of the entering rows are kept tokens rather than newlines, with shape (rows,).
    """

    counts: torch.Tensor
    prunable: torch.Tensor
    is_token: torch.Tensor


@dataclass(frozen=True)
class Prompt:
    """The decision which columns enter. It is applied to embeddings, positions, masks and labels alike.

    Args:
        num_columns: S.
        columns: input column of each column that enters, with shape (B, M); `None` if all columns enter.
        mask: which of the entering columns are real rather than padding, with shape (B, M); `None` if all are.
        padding_side: the side on which shorter samples are padded, "left" or "right".
        videos: the compressed videos, in the order of their placeholders.
        layouts: for each video, how it lies in its placeholders.
        row_index: for each entering column, its row, counted through the rows of all videos, with shape (B, M); -1 for
            columns of other tokens. `None` without videos.
        prunable: which entering columns the language model may drop, with shape (B, M). `None` without videos.
        placeholders: how many video placeholders each sample has, with shape (B,). `None` without videos.
    """

    num_columns: int
    columns: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    padding_side: str = "left"
    videos: tuple[CompressedVideo, ...] = ()
    layouts: tuple[VideoLayout, ...] = ()
    row_index: torch.Tensor | None = None
    prunable: torch.Tensor | None = None
    placeholders: torch.Tensor | None = None

    @classmethod
    def uncompressed(cls, num_columns: int, attention_mask: torch.Tensor | None) -> "Prompt":
        """The prompt of a call without videos, in which all columns enter.

        A single new column is never padding, so decoding reads no mask and does not wait for the device.

        Args:
            num_columns: S.
            attention_mask: 2D mask whose last S columns are these. Masks of other forms are ignored: `generate`
                prepares them for the language model if the cache is static.
        """
        mask = None
        if num_columns > 1 and isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
            mask = attention_mask[:, -num_columns:].bool()
            mask = None if bool(mask.all()) else mask
        return cls(num_columns, mask=mask)

    @classmethod
    def compressed(
        cls,
        video_mask: torch.Tensor,
        videos: tuple[CompressedVideo, ...],
        layouts: tuple[VideoLayout, ...],
        attention_mask: torch.Tensor | None,
        dropped: torch.Tensor | None = None,
    ) -> "Prompt":
        """The prompt of a call in which only the kept tokens of the videos enter.

        Args:
            video_mask: which columns are placeholders of the videos, with shape (B, S).
            videos: the compressed videos, in the order of their placeholders.
            layouts: for each video, how it lies in its placeholders.
            attention_mask: 2D mask whose last S columns are these; columns before them belong to earlier turns.
            dropped: which other columns do not enter, with shape (B, S); `None` if all of them enter.

        Raises:
            ValueError: a video was not finite, see `CompressedVideo.check`.
        """
        device, num_columns = video_mask.device, video_mask.shape[1]
        # A column of a video is taken as often as its layout says; every other column is taken once.
        counts = torch.cat([layout.counts.to(device) for layout in layouts])
        counts = torch.ones_like(video_mask, dtype=torch.long).masked_scatter_(video_mask, counts)
        if dropped is not None:
            counts = counts * ~dropped
        padding_side = "left"
        if attention_mask is not None:
            valid = attention_mask[:, -num_columns:].to(device).bool()
            padding_side = "left" if bool(valid[:, -1].all()) else "right"
            counts = counts * valid
        columns, mask = find_columns(counts, padding_side)
        for video in videos:  # `find_columns` has just waited for the device, so this costs no further wait
            video.check()
        is_video = gather_columns(video_mask, columns)
        is_video = is_video if mask is None else is_video & mask
        flags = torch.cat([layout.prunable.to(device) for layout in layouts])
        rows = torch.arange(len(flags), device=device)
        row_index = torch.full_like(columns, -1).masked_scatter_(is_video, rows)
        prunable = torch.zeros_like(is_video).masked_scatter_(is_video, flags)
        placeholders = video_mask.sum(-1)
        return cls(num_columns, columns, mask, padding_side, videos, layouts, row_index, prunable, placeholders)

    def gather(self, tensor: torch.Tensor, dim: int = 1) -> torch.Tensor:
        """The entering columns of a tensor (..., B, S, ...). `dim` is the dimension of the columns."""
        return tensor if self.columns is None else gather_columns(tensor, self.columns, dim)

    def find_video_columns(self, video_mask: torch.Tensor) -> torch.Tensor:
        """Which entering columns hold rows of videos, with shape (B, M).

        Args:
            video_mask: which input columns are placeholders of videos, with shape (B, S).
        """
        return video_mask if self.row_index is None else self.row_index >= 0

    def scatter(self, embeddings: torch.Tensor, where: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Write features to entering columns.

        Args:
            embeddings: embeddings of the entering columns, with shape (B, M, D).
            where: which entering columns to write to, with shape (B, M). Padding is never written to.
            features: the features in the order of these columns, with shape (features, D).

        Returns:
            The new embeddings, with shape (B, M, D).
        """
        where = where if self.mask is None else where & self.mask
        return embeddings.masked_scatter(where[..., None].to(embeddings.device), features.to(embeddings))

    def find_query(self, query_index: int | torch.Tensor | None, num_seen: int) -> torch.Tensor:
        """For each sample, the entering column of the token that ranks the video tokens, with shape (B,).

        If that token does not enter, it is the last entering column before it.

        Args:
            query_index: column of the token in the whole sequence, an integer or one for each sample; `None` stands for
                the last real column.
            num_seen: columns of the whole sequence before this call.
        """
        assert self.columns is not None
        eligible = torch.ones_like(self.columns, dtype=torch.bool) if self.mask is None else self.mask
        if query_index is not None:
            limit = torch.as_tensor(query_index, device=self.columns.device).view(-1, 1) - num_seen
            eligible = eligible & (self.columns <= limit)
        place = torch.arange(1, self.columns.shape[1] + 1, device=self.columns.device)
        return (eligible * place).argmax(-1)

    def report(self, rows_left: torch.Tensor, stopwatch: Stopwatch, layers: tuple[int, int]) -> CompressionReport:
        """The report of the call.

        Args:
            rows_left: the `row_index` of every column that is left in the end, with shape (B, L).
            stopwatch: measured the stages of the call.
            layers: how many layers saw all columns that entered, and how many layers there are.
        """
        return CompressionReport(
            videos=self.videos,
            num_samples=len(rows_left),
            _tokens=tuple(len(layout.counts) for layout in self.layouts),
            _entered=tuple(len(layout.prunable) for layout in self.layouts),
            _placeholders=self.placeholders,
            _rows_left=rows_left,
            _is_token=tuple(layout.is_token for layout in self.layouts),
            _layers=layers,
            _stopwatch=stopwatch,
        )


def count_occurrences(indices: torch.Tensor, length: int) -> torch.Tensor:
    """How often each of 0 ... length - 1 occurs in `indices`, with shape (length,)."""
    counts = torch.zeros(length, dtype=torch.long, device=indices.device)
    return counts.index_add_(0, indices, torch.ones_like(indices))


# models/pruned_language_model.py --------------------------------------------------------------------------------------

"""The language model on a compressed prompt: its masks, its cache, and the pruning inside it."""


class FlashVIDPrunedLanguageModelMixin:
    """Runs the `language_model` of a multimodal model on the columns that are left of a prompt."""

    config: Any
    language_model: Any
    training: bool

    # The class of the outputs: upstream's fields and those of `FlashVIDModelOutput`.
    output_class: type[FlashVIDModelOutput]

    def prepare_cache(self, cache: Cache | None, use_cache: bool | None) -> tuple[Cache | None, bool]:
        """The cache of a call, and whether to use it. If the caller wants a cache and passed none, one is made."""
        config = self.config.get_text_config()
        use_cache = config.use_cache if use_cache is None else use_cache
        if self.training and self.language_model.gradient_checkpointing:
            use_cache = False
        if cache is None and use_cache:
            cache = FlashVIDCache(config=config)
        return cache, use_cache

    def run_language_model(
        self,
        inputs_embeds: torch.Tensor,
        prompt: Prompt,
        settings: Any,
        *,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        cache: FlashVIDCache | None,
        use_cache: bool,
        query_index: int | torch.Tensor | None,
        stopwatch: Stopwatch,
        full_length: bool,
        **kwargs: Any,
    ) -> FlashVIDModelOutput:
        """Run the language model on the columns that entered, prune inside it, and record both in the cache.

        Args:
            inputs_embeds: embeddings of the columns that entered, with shape (B, M, D).
            prompt: which columns entered.
            settings: the configuration with the settings of the call.
            attention_mask: 2D mask of the whole sequence, earlier turns included, as the caller passed it.
            position_ids: positions of the columns that entered, with shape (..., B, M).
            cache: the cache of the call, if it uses one.
            use_cache: whether the language model writes to the cache.
            query_index: see `forward_flashvid`.
            stopwatch: measures the language model, as the stage "prefill".
            full_length: whether `last_hidden_state` has all S columns of a compressed prompt.
            kwargs: what else the language model takes.

        Raises:
            ValueError: the language model has sliding-window layers, or the cache was pruned from another layer on.
        """
        if not prompt.videos and not is_compressed(cache):  # run as upstream does, with the caller's mask and any cache
            outputs = self.language_model(
                inputs_embeds=inputs_embeds,
                position_ids=position_ids,
                attention_mask=attention_mask,
                use_cache=use_cache,
                **{CACHE: cache},
                **kwargs,
            )
            return self.output_class(**outputs)
        config = self.config.get_text_config()
        if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
            raise ValueError(
                "`layer_types` of the language model has sliding-window layers: FlashVID needs full attention. "
                "Set `use_sliding_window=False`, or `retention_ratio=1.0` to run without compression."
            )
        seen = cache.get_seq_length() if cache is not None else 0
        past_lower, past_upper = past_masks(cache, attention_mask)
        lower_mask = join_masks(past_lower, cache.num_cached() if cache is not None else 0, prompt.mask, inputs_embeds)

        upper: UpperLayers | None = None
        pruning_layer = cache.pruning_layer if cache is not None else None
        pruning = settings.pruning if prompt.videos else None
        if pruning is not None:
            if pruning_layer not in (None, pruning.layer):
                raise ValueError(
                    f"`pruning_layer` is {pruning.layer}, and the cache was pruned from layer {pruning_layer} "
                    f"on. Keep `pruning_layer={pruning_layer}`, or start a new cache."
                )
            pruning_layer = pruning.layer
        upper_args = (config, pruning_layer, cache, past_upper, prompt.mask)
        if pruning is not None:
            upper = TokenPruning(
                *upper_args,
                rule=pruning,
                prunable=prompt.prunable,
                query=prompt.find_query(query_index, seen),
                past_lower_mask=past_lower,
                padding_side=prompt.padding_side,
                is_video=prompt.row_index >= 0,
            )
        elif pruning_layer is not None:
            upper = UpperLayers(*upper_args)
        if upper is not None:
            kwargs[PRUNING] = upper

        with stopwatch.stage("prefill", inputs_embeds.device) if prompt.videos else nullcontext():  # not while decoding
            outputs = self.language_model(
                inputs_embeds=inputs_embeds,
                position_ids=position_ids,
                attention_mask=lower_mask,
                use_cache=use_cache,
                **{CACHE: cache},
                **kwargs,
            )

        token_index = report = None
        if prompt.videos:
            token_index, row_index, mask = prompt.columns, prompt.row_index, prompt.mask
            if isinstance(upper, TokenPruning):
                token_index, row_index = (gather_columns(index, upper.columns) for index in (token_index, row_index))
                mask = upper.new_mask
            if mask is not None:
                padding = ~mask.to(token_index.device)
                token_index, row_index = (index.masked_fill(padding, -1) for index in (token_index, row_index))
            report = prompt.report(
                row_index, stopwatch, (pruning_layer or config.num_hidden_layers, config.num_hidden_layers)
            )
        if cache is not None:
            cache.account(
                lower_mask=lower_mask,
                upper_mask=lower_mask if upper is None else upper.mask,
                num_dropped=prompt.num_columns - inputs_embeds.shape[1],
                pruning_layer=pruning_layer,
            )
        outputs = self.output_class(**outputs, token_index=token_index, report=report)
        if full_length and token_index is not None:
            rows = rows_of_columns(token_index, prompt.num_columns)
            outputs.last_hidden_state = gather_columns(outputs.last_hidden_state, rows)
        return outputs


# models/modeling.py ---------------------------------------------------------------------------------------------------

"""What the base models of all families share: `forward` on compressed videos.

Legend of all files of this folder: B batch, S columns of the input, M columns that enter the language model, L columns
that are left from the pruning layer on. V videos; T frames of a video (for Qwen: temporal grids), N tokens a frame,
D width. A column is a place in the sequence of a sample.
"""

# Inputs of `forward` that every language model has.
LANGUAGE_INPUTS = ("input_ids", "inputs_embeds", "attention_mask", "position_ids", "cache")


class FlashVIDModelMixin(FlashVIDPlaceholdersMixin, FlashVIDPrunedLanguageModelMixin):
    """Compression inside the `forward` of a multimodal model that has a `language_model`.

    A family defines the inputs and outputs of its vision tower, and the positions of the columns.
    """

    get_input_embeddings: Any
    get_image_features: Any
    get_video_features: Any

    # Inputs of `forward` that determine positions, in addition to the inputs that every family has.
    position_inputs: ClassVar[tuple[str, ...]] = ()
    # Inputs of `forward` that upstream accepts but does not read.
    unread_inputs: ClassVar[tuple[str, ...]] = ()
    # Keyword arguments of `forward` that upstream also passes to the vision tower.
    tower_arguments: ClassVar[tuple[str, ...]] = ()
    # Whether the family's released code lets the last vector overwrite the others if an index repeats; see
    # `released_repeats`.
    released_code_overwrites_repeats = False
    # Whether upstream's `forward` takes `mm_encoder_outputs`.
    upstream_takes_encoded = True
    # Whether positions depend on the grids of all images and videos of the conversation.
    positions_need_grids = False

    def install_hooks(self) -> None:
        """Install the hooks of this model on its submodules. Installing them again changes nothing."""
        install_pruning(self.language_model.layers)

    def forward_flashvid(
        self,
        upstream_forward: Callable[..., BaseModelOutputWithPast],
        inputs: dict[str, Any],
        query_index: int | torch.Tensor | None,
        full_length: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run upstream's `forward` on the kept video tokens.

        Args:
            upstream_forward: runs the call if it has no video to compress and does not continue a compressed cache.
            inputs: the named arguments of `forward`.
            query_index: column whose attention ranks the video tokens inside the language model, counted over the whole
                sequence, earlier turns included; an integer, or one for each sample. Default: the last real column.
            full_length: whether `last_hidden_state` has all S columns of a compressed prompt, or only the L that are
                left. A dropped column repeats the row of the last column before it that is left. `None` stands for
                `full_length` of the configuration. If that is `None` too, all columns are there in training mode and
                with `use_cache=False`, as trainers call a base model to compute the loss themselves.
            kwargs: FlashVID's fields that shall differ from the configuration in this call (`retention_ratio=0.2`), or
                all of them as one configuration in `settings`; `prompt_length`, how many columns the whole sequence had
                before `generate` began, because a placeholder behind them is a token that the model itself wrote; and
                what upstream takes.

        Returns:
            `FlashVIDModelOutput`, or upstream's output. Both have a `report`, except in calls that continue a cache and
            have no video of their own.

        Raises:
            ValueError: a setting is out of range, the inputs do not fit together, a prompt has placeholders of images
                or videos that are not given, or a compressed prompt does not support the inputs.
        """
        encoded = dict(inputs["mm_encoder_outputs"] or {})
        settings, prompt_length = self.find_settings(encoded, kwargs), kwargs.pop("prompt_length", None)
        missing = self.missing_media(inputs, encoded)
        has_videos = "video" not in missing
        if full_length is None:
            full_length = self.config.full_length
        if full_length is None:
            full_length = self.training or inputs["use_cache"] is False
        cache, use_cache = self.prepare_cache(inputs["cache"], inputs["use_cache"])
        inputs = {**inputs, "cache": cache, "use_cache": use_cache}
        seen = 0 if cache is None else cache.get_seq_length()
        num_prompt = None if prompt_length is None else prompt_length - seen  # columns of this call
        if not seen:
            self.check_missing_media(missing, self.find_placeholders(inputs, num_prompt))
        if has_videos and settings.compresses:
            check_cache(cache)
        # Upstream would encode videos with the settings of the configuration instead of those of the call. Some
        # versions of it ignore `mm_encoder_outputs`.
        is_own = has_videos and (settings.compresses or self.config.compresses)
        is_own |= any(value is not None for value in encoded.values()) and not self.upstream_takes_encoded
        # Upstream would count placeholders that the model itself wrote, and find too few features.
        writes = num_prompt is not None and num_prompt < count_columns(inputs)
        is_own |= writes and not seen and len(missing) < len(self.encoder_inputs)
        if is_compressed(cache) or is_own:
            outputs = self._forward(
                inputs, encoded, settings, query_index, num_prompt, full_length=full_length, **kwargs
            )
        else:
            given = {name: value for name, value in inputs.items() if value is not None}
            outputs = upstream_forward(**rename_cache(given), return_dict=True, **kwargs)
        report = getattr(outputs, "report", None)
        if report is None and (has_videos or not seen):
            report = outputs.report = self._report_uncompressed(inputs, encoded, num_prompt)
        if report is not None and isinstance(cache, FlashVIDCache):
            cache.reports = (*cache.reports, report)
        return outputs

    def find_settings(self, encoded: dict[str, Any], kwargs: dict[str, Any]) -> Any:
        """The configuration with the settings of a call, which are removed from its keyword arguments.

        Args:
            encoded: outputs of the vision tower, under "image" and "video". If the videos are encoded already, the
                settings of the encoding apply.
            kwargs: keyword arguments of the call; FlashVID's fields and `settings` are removed.

        Raises:
            ValueError: a field is outside of its range, or a field is given although the videos are encoded already.
        """
        carried = getattr(encoded.get("video"), "settings", None)
        if carried is None:
            return self.take_settings(kwargs.pop("settings", None), kwargs)
        kwargs.pop("settings", None)
        for name in sorted(CALL_FIELDS & kwargs.keys()):
            value = kwargs[name]
            raise ValueError(
                f"`{name}` is {value!r} and `mm_encoder_outputs` has videos: they were compressed when they were "
                "encoded. Give the settings to `get_video_features`, or pass the pixels."
            )
        return carried

    def take_settings(self, settings: Any, kwargs: dict[str, Any]) -> Any:
        """`settings`, or the configuration if it is `None`, with the fields that are removed from `kwargs`."""
        overrides = {name: kwargs.pop(name) for name in CALL_FIELDS & kwargs.keys()}
        return (settings or self.config).override(**overrides)

    def _forward(
        self,
        inputs: dict[str, Any],
        encoded: dict[str, Any],
        settings: Any,
        query_index: int | torch.Tensor | None,
        num_prompt: int | None,
        **kwargs: Any,
    ) -> FlashVIDModelOutput:
        """`forward` of calls that have videos or continue a compressed cache."""
        for name in sorted(inputs.keys() - self.known_inputs()):
            if inputs[name] is not None:
                raise ValueError(
                    f"`{name}` is given, and FlashVID does not know what it means for a prompt that is compressed. "
                    "Leave it out, or set `retention_ratio=1.0`."
                )
        input_ids, inputs_embeds = inputs["input_ids"], inputs["inputs_embeds"]
        attention_mask = inputs["attention_mask"]
        image_mask, video_mask = self.find_placeholders(inputs, num_prompt)
        comes_encoded = encoded.get("video") is not None  # pixels are checked before they are encoded
        # The inner states of the tower are not returned for compressed videos: each chunk of them is freed after use.
        recorded = () if settings.compresses else self.tower_arguments
        asked = {name: kwargs[name] for name in recorded if name in kwargs}
        self.encode(inputs, encoded, settings, image_mask, video_mask, **asked)
        videos = getattr(encoded.get("video"), "videos", None)
        if videos:
            layouts = tuple(self.lay_out(video, settings) for video in videos)
            if comes_encoded:
                check_placeholders("video", video_mask, sum(len(layout.counts) for layout in layouts))
            dropped = self.dropped_columns(input_ids, video_mask, settings)
            prompt = Prompt.compressed(video_mask, videos, layouts, attention_mask, dropped)
        else:
            prompt = Prompt.uncompressed(image_mask.shape[1], attention_mask)
        outputs = self.run_language_model(
            self.embed_prompt(prompt, input_ids, inputs_embeds, image_mask, video_mask, encoded),
            prompt,
            settings,
            attention_mask=attention_mask,
            position_ids=self.find_positions(prompt, inputs),
            cache=inputs["cache"],
            use_cache=inputs["use_cache"],
            query_index=query_index,
            stopwatch=Stopwatch(getattr(encoded.get("video"), "stopwatch", None)),
            **self.language_model_inputs(prompt, image_mask, video_mask, encoded),
            **kwargs,
        )
        return complete_outputs(self, outputs, encoded)

    @classmethod
    def known_inputs(cls) -> set[str]:
        """The inputs of `forward` that FlashVID reads, or that upstream does not read either."""
        of_tower = {name for names in cls.encoder_inputs.values() for name in names}
        return {*MODEL_INPUTS, *LANGUAGE_INPUTS, *of_tower, *cls.position_inputs, *cls.unread_inputs}

    def _report_uncompressed(
        self, inputs: dict[str, Any], encoded: dict[str, Any], num_prompt: int | None
    ) -> CompressionReport:
        """The report of a call that had no video, or compressed none."""
        _, video_mask = self.find_placeholders(inputs, num_prompt)
        tokens: tuple | torch.Tensor = ()
        if encoded.get("video") is not None:
            tokens = tuple(map(len, encoded["video"].pooler_output))
        elif inputs["pixel_values_videos"] is not None:
            tokens = self.placeholder_counts("video", inputs)
        return CompressionReport.uncompressed(video_mask.sum(-1), tokens)

    def find_positions(self, prompt: Prompt, inputs: dict[str, Any]) -> torch.Tensor:
        """Positions of the columns that enter, with shape (..., B, M)."""
        raise NotImplementedError

    def lay_out(self, video: CompressedVideo, settings: Any) -> VideoLayout:
        """How the rows of a compressed video lie in its placeholders. Default: one row for each token."""
        prunable = torch.full_like(video.indices, video.prunable, dtype=torch.bool)
        return VideoLayout(
            count_occurrences(video.indices, video.selected.numel()), prunable, is_token=torch.ones_like(prunable)
        )

    def dropped_columns(
        self, input_ids: torch.Tensor | None, video_mask: torch.Tensor, settings: Any
    ) -> torch.Tensor | None:
        """Which columns other than those of video tokens do not enter, with shape (B, S); `None` if all enter.

        Args:
            input_ids: with shape (B, S), if they are given.
            video_mask: which columns are placeholders of the videos, with shape (B, S).
            settings: the configuration with the settings of the call.
        """
        return None

    def language_model_inputs(
        self, prompt: Prompt, image_mask: torch.Tensor, video_mask: torch.Tensor, encoded: dict[str, Any]
    ) -> dict[str, Any]:
        """Keyword arguments that the family's language model takes beside embeddings and positions."""
        return {}

    def encode(
        self,
        inputs: dict[str, Any],
        encoded: dict[str, Any],
        settings: Any,
        image_mask: torch.Tensor,
        video_mask: torch.Tensor,
        **kwargs: Any,
    ) -> None:
        """Run the vision tower for what the caller has not encoded already, and add its outputs to `encoded`.

        The placeholders are checked before the encoding if possible, so that a mistake in the inputs costs no run of
        the vision tower.
        """
        for kind, mask in (("image", image_mask), ("video", video_mask)):
            if encoded.get(kind) is not None:
                if getattr(encoded[kind], "videos", None) is None:  # compressed videos are checked by their layouts
                    check_placeholders(kind, mask, sum(map(len, encoded[kind].pooler_output)))
                continue
            if inputs[self.encoder_inputs[kind][0]] is None:
                continue
            checked = self.check_placeholders(kind, mask, inputs)
            given = {name: inputs[name] for name in self.encoder_inputs[kind] if inputs[name] is not None}
            if kind == "image":
                encoded[kind] = self.get_image_features(**given, return_dict=True, **kwargs)
            else:
                encoded[kind] = self.get_video_features(**given, settings=settings, return_dict=True, **kwargs)
            if not checked:
                check_placeholders(kind, mask, sum(map(len, encoded[kind].pooler_output)))

    def compress_videos(
        self,
        features: list[torch.Tensor],
        recorded: Sequence[Sequence[torch.Tensor]],
        settings: Any,
        stopwatch: Stopwatch,
    ) -> FlashVIDVideoOutput:
        """Compress each video.

        Args:
            features: with shape (T, N, D), for each video.
            recorded: for each signal of the method, its values for each video, with shape (T, N) or (T, N, width).
            settings: the configuration with the settings of the call.
            stopwatch: measures the compression.
        """
        method = settings.method
        signals = [Signals(zip(method.signals, of_video, strict=True)) for of_video in zip(*recorded, strict=True)]
        signals = signals or [Signals()] * len(features)
        with stopwatch.stage("compression", features[0].device):
            videos = tuple(method.compress(*video) for video in zip(features, signals, strict=True))
        tokens = tuple(video.tokens for video in videos)
        if settings.behavior == "released" and self.released_code_overwrites_repeats:
            tokens = tuple(released_repeats(video.tokens, video.indices) for video in videos)
        return FlashVIDVideoOutput(pooler_output=tokens, videos=videos, settings=settings, stopwatch=stopwatch)

    def embed_prompt(
        self,
        prompt: Prompt,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        image_mask: torch.Tensor,
        video_mask: torch.Tensor,
        encoded: dict[str, BaseModelOutputWithPooling],
    ) -> torch.Tensor:
        """Embeddings of the columns that enter, with images and kept video tokens inserted, with shape (B, M, D)."""
        if inputs_embeds is None:
            embeddings = self.get_input_embeddings()(prompt.gather(input_ids))
        else:
            embeddings = prompt.gather(inputs_embeds)
        if encoded.get("image") is not None:
            features = torch.cat(tuple(encoded["image"].pooler_output))
            embeddings = prompt.scatter(embeddings, prompt.gather(image_mask), features)
        if encoded.get("video") is not None:
            tokens = torch.cat(tuple(encoded["video"].pooler_output))
            embeddings = prompt.scatter(embeddings, prompt.find_video_columns(video_mask), tokens)
        return embeddings


# models/vision_chunks.py ----------------------------------------------------------------------------------------------

"""Encode videos a few frames at a time, so that the memory of the vision tower does not grow with the video."""


def split_frames(num_frames: list[int], size: int | None) -> list[list[tuple[int, int]]]:
    """Split the frames of all videos, in order, into chunks that go through the vision tower together.

    Args:
        num_frames: number of frames of every video.
        size: most frames of a chunk; `None` for all frames at once.

    Returns:
        For every chunk, its pieces: pairs of the index of a video and a number of its frames.
    """
    if size is None:
        return [list(enumerate(num_frames))]
    chunks: list[list[tuple[int, int]]] = []
    room = 0
    for video, left in enumerate(num_frames):
        while left:
            if not room:
                chunks.append([])
                room = size
            piece = min(left, room)
            chunks[-1].append((video, piece))
            left, room = left - piece, room - piece
    return chunks


def tower_device(tower: Any, pixels: torch.Tensor) -> torch.device:
    """The device that chunks of the pixels go to: the device of the tower's weights.

    If the weights are offloaded until they are used, they show as "meta", and the pixels stay where they are.
    """
    return pixels.device if tower.device.type == "meta" else tower.device


def join_rows(chunks: Iterable[Sequence[torch.Tensor]], length: int) -> list[torch.Tensor]:
    """Join several tensors that come in chunks of rows. Only one chunk is in memory beside the joined tensors.

    Args:
        chunks: for each chunk, the rows of every tensor. To save memory, it may be a generator.
        length: number of rows in all.

    Returns:
        The joined tensors, with shape (length, ...) each.
    """
    joined: list[torch.Tensor] = []
    start = 0
    for parts in chunks:
        if len(parts[0]) == length:
            return list(parts)
        joined = joined or [part.new_empty(length, *part.shape[1:]) for part in parts]
        end = start + len(parts[0])
        for whole, part in zip(joined, parts, strict=True):
            whole[start:end] = part
        start = end
    return joined


# hub/loading.py -------------------------------------------------------------------------------------------------------

"""Loading and saving of models: original checkpoints, weightless folders, and folders with code."""

# Arguments for the model, although the `from_pretrained` of a configuration would take them too.
_MODEL_ARGUMENTS = ("dtype", "torch_dtype", "quantization_config", "key_mapping")


def _own_config(config_class: Any, config: Any, overrides: dict[str, Any]) -> Any:
    """A FlashVID configuration from a FlashVID or an upstream one, with `overrides`; `config` stays as it is."""
    if config.model_type not in (config_class.model_type, config_class.base_model_type):
        raise ValueError(
            f"`config` has the `model_type` {config.model_type!r}: {config_class.__name__} takes "
            f"{config_class.model_type!r} and {config_class.base_model_type!r}. Choose the class of that family."
        )
    if config.model_type == config_class.model_type and not overrides:
        return copy.deepcopy(config)
    own = config_class.from_dict(config.to_dict(), **overrides)
    # `to_dict` leaves out the implementations of attention and experts.
    for kind in ("_attn_implementation", "_experts_implementation"):
        towers = {name: getattr(getattr(config, name), kind) for name in config.sub_configs}
        setattr(own, kind, {"": getattr(config, kind), **towers})
    return own


def name_code(config: Any) -> None:
    """Name in a configuration the classes that the Auto classes and `pipeline` load from its folder."""
    config.auto_map = dict(config.auto_classes)
    config.custom_pipelines = {name: dict(pipeline) for name, pipeline in CUSTOM_PIPELINES.items()}


def _own_generation_config(path: str | os.PathLike, hub: dict[str, Any]) -> GenerationConfig | None:
    """The generation settings of a folder; `None` if it has none, and those of the base apply."""
    try:
        return GenerationConfig.from_pretrained(path, **hub)
    except OSError:
        return None


class FlashVIDPreTrainedMixin:
    """`from_pretrained` and `save_pretrained` of every FlashVID model.

    Each family states how the names of weights in its original checkpoint map to its own names. transformers renames
    weights for its own classes only. Without the mapping the weights would be random, with no more than a warning.
    """

    config: Any
    config_class: Any
    can_generate: Any  # of upstream's class

    # Patterns of names in the original checkpoint, and their replacements; tried in order.
    checkpoint_key_mapping: dict[str, str] = {}

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *model_args: Any,
        config: Any = None,
        **kwargs: Any,
    ):
        """Load a FlashVID folder, or a checkpoint of the upstream family.

        A weightless folder names its base, which is another repository, and a commit of it: the weights come from
        there. `revision` and `subfolder` apply to the folder itself; all other arguments apply to the base too. The
        loaded model is complete: saving it writes the weights too.

        Args:
            config: a configuration, or the folder or Hub id of one; default: the checkpoint's.
            kwargs: as upstream; FlashVID's fields (`retention_ratio=0.1`) override those of `config.json`.

        Raises:
            ValueError: a field is outside of its range, the checkpoint is of another family, or it lacks weights. With
                `output_loading_info=True` missing weights are no error: they are random and listed, as upstream.
        """
        returns_info = kwargs.pop("output_loading_info", False)
        hub = hub_arguments(kwargs)
        if not isinstance(config, PreTrainedConfig):
            kwargs = {name: value for name, value in kwargs.items() if name not in hub}
            held_back = {name: kwargs.pop(name) for name in _MODEL_ARGUMENTS if name in kwargs}
            config, kwargs = cls.config_class.from_pretrained(
                config or pretrained_model_name_or_path, return_unused_kwargs=True, **hub, **kwargs
            )
            kwargs = {**kwargs, **hub, **held_back}
        else:
            overrides = {name: kwargs.pop(name) for name in cls.config_class.method_fields & kwargs.keys()}
            config = _own_config(cls.config_class, config, overrides)
        source = pretrained_model_name_or_path
        base = follow_base(read_config(source, hub), hub, config)
        if base is not None:
            if cls.can_generate() and "generation_config" not in kwargs:
                kwargs["generation_config"] = _own_generation_config(source, hub)
            source, from_base = base
            kwargs = {name: value for name, value in kwargs.items() if name not in hub} | from_base
        config.base_model_name_or_path = config.base_model_revision = None  # the loaded model has its weights itself
        kwargs["key_mapping"] = {**cls.checkpoint_key_mapping, **(kwargs.get("key_mapping") or {})}
        model, info = super().from_pretrained(source, *model_args, config=config, output_loading_info=True, **kwargs)
        if base is not None:
            model.name_or_path = model.config.name_or_path = str(pretrained_model_name_or_path)
        missing = sorted(info["missing_keys"])
        if missing and not returns_info:
            raise ValueError(
                f"{'`state_dict`' if source is None else repr(str(source))} lacks weights of {cls.__name__}: "
                f"{len(missing)}, the first of them {', '.join(missing[:3])}. They would be random: choose a "
                "checkpoint that has them, or pass `output_loading_info=True` to go on with random ones."
            )
        return (model, info) if returns_info else model

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Save a folder that loads with this package, and without it by `trust_remote_code=True`.

        The code in the folder is this model's own: its module and every module that it imports.
        """
        name_code(self.config)
        super().save_pretrained(save_directory, *args, **kwargs)
        save_code(self, save_directory)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Does nothing: `save_pretrained` writes the code and names its classes in any case."""
