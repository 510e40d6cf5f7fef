"""What the models of all families share.

Generated from flashvid_hf 0.1.0: do not edit. The sections are its modules:

    models/stopwatch.py
    models/report.py
    models/upstream.py
    models/cache.py
    models/columns.py
    models/generation.py
    models/hooks.py
    models/tensor_parallel.py
    models/vision_signals.py
    models/layer_pruning.py
    models/outputs.py
    models/prompt.py
    models/modeling.py
    models/vision_chunks.py
    hub/loading.py
"""

import copy
import functools
import inspect
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, fields
from itertools import groupby
from typing import Any, ClassVar, NamedTuple, TypeVar, get_args

import torch
from torch import distributed, nn
from transformers import DynamicCache, GenerationConfig, GenerationMixin, PreTrainedConfig
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling
from transformers.utils import ModelOutput

from .compression_flashvid import CompressedVideo, LayerPruning, Signal, Signals, released_repeats, weighted_sums
from .configuration_flashvid_qwen2_5_vl import CALL_FIELDS, follow_base, hub_arguments, read_config, save_code
from .pipeline_flashvid import CUSTOM_PIPELINES

# models/stopwatch.py --------------------------------------------------------------------------------------------------

"""How long the stages of a call take, noted without waiting for the device."""


class Stopwatch:
    """Marks the beginning and the end of stages: events on a GPU, readings of the clock elsewhere.

    Args:
        before: the stages that have passed already; it stays as it is.
    """

    def __init__(self, before: "Stopwatch | None" = None):
        self._spans: dict[str, list[tuple[Any, Any]]] = {}
        if before is not None:
            self._spans |= {name: [*spans] for name, spans in before._spans.items()}

    @contextmanager
    def stage(self, name: str, device: torch.device) -> Iterator[None]:
        """Add the time that the block takes on the device; a stage may come several times."""
        if torch.compiler.is_compiling():  # the compiled code would keep the readings of the compilation
            yield
            return
        start = _now(device)
        yield
        self._spans.setdefault(name, []).append((start, _now(device)))

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of every stage; waits until the device has come to its end."""
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


@dataclass(frozen=True)
class CompressionReport:
    """Video tokens of a call at every stage, one entry for each video in the order of the prompts.

    Nothing is copied from the device before it is asked for.

    Args:
        videos: how each video was compressed; empty where nothing was.
        num_samples: samples of the batch that ran, beams and returned sequences included.
    """

    videos: tuple[CompressedVideo, ...]
    num_samples: int
    # An entry for each video: tuples, or tensors that may lie on a device.
    _tokens: tuple[int, ...] | torch.Tensor
    _entered: tuple[int, ...] | torch.Tensor
    _placeholders: torch.Tensor  # of each sample
    # Of compressed videos: which of all their rows are left in the end, -1 for other columns, with shape (B, L), and
    # which rows of each are tokens rather than newlines.
    _rows_left: torch.Tensor | None = None
    _is_token: tuple[torch.Tensor, ...] = ()
    # How many layers of the language model see all that entered, and how many there are.
    _layers: tuple[int, int] = (1, 1)
    _stopwatch: Stopwatch = field(default_factory=Stopwatch, compare=False)

    @classmethod
    def uncompressed(cls, placeholders: torch.Tensor, tokens: tuple[int, ...] | torch.Tensor) -> "CompressionReport":
        """Of a call in which every video token entered and remained.

        Args:
            placeholders: video placeholders of each sample, with shape (B,).
            tokens: those of each video.
        """
        return cls((), len(placeholders), tokens, tokens, placeholders)

    @classmethod
    def without_videos(cls, num_samples: int) -> "CompressionReport":
        """Of a call that had no video tokens."""
        return cls.uncompressed(torch.zeros(num_samples, dtype=torch.long), ())

    @property
    def tokens(self) -> tuple[int, ...]:
        """Video tokens before the compression, in families with newlines these included."""
        return _to_tuple(self._tokens)

    @property
    def entered(self) -> tuple[int, ...]:
        """Video tokens that entered the language model."""
        return _to_tuple(self._entered)

    @property
    def remained(self) -> tuple[int, ...]:
        """Video tokens that the layers from the pruning layer on see."""
        if self._rows_left is None:
            return self.entered
        return tuple(int(rows.sum()) for rows in self._find_rows_left())

    @property
    def retained(self) -> tuple[float, ...]:
        """Share of the video tokens that a layer of the language model saw, averaged over the layers.

        What `retention_ratio` asks for, as it came out: rounding and, in some methods, the video decide.
        """
        below, depth = self._layers
        stages = zip(self.tokens, self.entered, self.remained, strict=True)
        return tuple((below * entered + (depth - below) * left) / (depth * tokens) for tokens, entered, left in stages)

    @property
    def kept_tokens_remained(self) -> tuple[torch.Tensor, ...]:
        """Which kept tokens of every compressed video the layers from the pruning layer on see.

        Boolean, on the CPU, with shape (M,) each, in the order of the video's `indices`; newlines are not among them.
        """
        rows = zip(self._find_rows_left(), self._is_token, strict=True)
        return tuple(left[is_token.cpu()] for left, is_token in rows)

    @property
    def compressed(self) -> bool:
        """Whether the language model saw less than all video tokens."""
        return self.remained != self.tokens

    @property
    def samples(self) -> tuple[int, ...]:
        """Which sample of the batch each video belongs to."""
        ends = torch.as_tensor(self.tokens).cumsum(0)
        return tuple(torch.searchsorted(self._placeholders.cpu().cumsum(0), ends).tolist())

    def of_sample(self, sample: int) -> tuple[int, ...]:
        """Video tokens of one sample of the batch at the three stages: before, entered, remained."""
        videos = [i for i, s in enumerate(self.samples) if s == sample]
        return tuple(sum(stage[i] for i in videos) for stage in (self.tokens, self.entered, self.remained))

    @property
    def segment_lengths(self) -> tuple[tuple[int, ...], ...]:
        """Frames of every segment of every compressed video."""
        return tuple(tuple(video.segment_lengths.tolist()) for video in self.videos)

    @property
    def seconds(self) -> dict[str, float]:
        """Wall-clock seconds of the stages "vision", "compression" and "prefill"; empty where nothing was compressed.

        "vision" is the tower with its projector, "prefill" the language model. The first run of a model takes longer
        than later ones.
        """
        return self._stopwatch.seconds

    def _find_rows_left(self) -> tuple[torch.Tensor, ...]:
        """Which rows of every compressed video are left in the end, newlines included, with shape (rows,) each."""
        if self._rows_left is None:
            return ()
        rows = self._rows_left.cpu()
        left = torch.zeros(sum(self.entered), dtype=torch.bool).index_fill_(0, rows[rows >= 0], True)
        return left.split(self.entered)

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

"""Where the supported versions of transformers differ: found here once, from what upstream itself shows.

The rest of the package is written for the newest version and compares no version numbers. A line that names a version
which is no longer supported can be deleted, with the code for it.

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
5.24     the outputs have `image_outputs` and `video_outputs`, what the vision tower returned; before, only those of
         LLaVA-OneVision have `image_hidden_states` and `video_hidden_states`: `output_class`, `complete_outputs`.
5.24     the cache is called `cache`; before, `past_key_values`, in arguments, outputs and what `generate` passes on:
         `CACHE`, `rename_cache`, `takes_arguments_of`, `CacheAlias`.
=======  ==============================================================================================================
"""

_CACHE_NAMES = ("cache", "past_key_values")
# Inputs of our `forward` that upstream's does not name in every family and version.
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
    """Keyword arguments in which the cache, if there is one, has one name.

    Args:
        kwargs: keyword arguments with the cache under either name; stays as it is.
        name: the name that the cache gets. Default: upstream's.

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
    """Let a method be called as the `forward` of an upstream model is, by place or by name.

    Upstream's argument list then stands in upstream alone, and an argument that a new version adds is not lost. The
    signature of the result is upstream's, followed by what the method itself names, because `generate` and `Trainer`
    compare their arguments with it. The cache may have either of its names.

    Args:
        upstream_class: the class whose `forward` it is.

    Returns:
        A decorator for a method `(self, inputs, own=..., **kwargs)`. `inputs` holds all arguments of upstream's
        `forward` by name, given or default, with the cache as `cache`. Arguments that the method names itself are
        passed on by their names.

    Raises:
        TypeError: an argument is given twice, or too many are given by place.
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
    """Lets the cache of an output be read as `cache` where upstream's field is called `past_key_values`."""

    if CACHE != "cache":

        @property
        def cache(self) -> Cache | None:
            return self.past_key_values  # type: ignore[attr-defined]


def output_class(model_class: type) -> Any:
    """The class of the outputs that `forward` of an upstream model returns, by its annotation."""
    annotation = inspect.signature(model_class.forward).return_annotation  # type: ignore[attr-defined]
    (found,) = (part for part in get_args(annotation) if isinstance(part, type) and issubclass(part, ModelOutput))
    return found


def complete_outputs(model: Any, outputs: ModelOutput, encoded: dict[str, Any]) -> Any:
    """The outputs of a base model, with the fields of its class that its language model does not fill.

    Args:
        model: the base model.
        outputs: of an upstream class, or of one with its fields.
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
    """The rows of one deepstack level of all images or videos, with shape (tokens, D)."""
    return level if isinstance(level, torch.Tensor) else torch.cat(tuple(level))


def default_router_logits(text_config: Any) -> bool:
    """Whether a language model with experts returns its router's logits when the call does not say."""
    return getattr(text_config, "output_router_logits", False)


# models/cache.py ------------------------------------------------------------------------------------------------------

"""The key/value cache of a compressed prompt."""


class FlashVIDCache(DynamicCache):
    """A `DynamicCache` that holds fewer tokens than the prompt had, and fewer still above the pruning layer.

    `get_seq_length()` counts the tokens of the original sequence, because that is what `generate` slices its inputs
    by and what positions continue from.

    Args:
        lower_mask, upper_mask: which cached columns are real tokens below and from the pruning layer on, with shape
            (B, cached columns) each; `None` where nothing is padded.
        num_dropped: columns of the original sequence that the lower layers do not hold.
        pruning_layer: from which layer on fewer columns are held than below; `None` if all layers hold the same.
        rope_deltas: how far positions are ahead of columns after the prompt, with shape (B, 1), in families whose
            videos take fewer positions than tokens. Upstream keeps that of the last prompt on the model.
        compressed: whether the cache holds a compressed prompt, so that masks and lengths are its own.
        reports: what was compressed, a report for every prefill, and for every later call that had videos.
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
        """Columns that a layer really holds."""
        return super().get_seq_length(layer_idx)

    def account(
        self,
        lower_mask: torch.Tensor | None,
        upper_mask: torch.Tensor | None,
        num_dropped: int,
        pruning_layer: int | None,
    ) -> None:
        """Note what a call on a compressed prompt has added: masks over all columns cached, and what was dropped."""
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
    """Raise a `ValueError` if a compressed prompt cannot be put into the cache."""
    if cache is not None and not isinstance(cache, FlashVIDCache):
        raise ValueError(
            f"`{CACHE}` is a `{type(cache).__name__}`: a compressed prompt needs a `FlashVIDCache`. Pass none, "
            "or the cache that an earlier call of this model returned."
        )


# models/columns.py ----------------------------------------------------------------------------------------------------

"""Dropping columns of padded batches.

Legend: B batch, S columns of the input, L columns that are left.
"""


def find_columns(counts: torch.Tensor, padding_side: str = "left") -> tuple[torch.Tensor, torch.Tensor | None]:
    """Which columns to gather so that every sample holds its kept tokens side by side.

    Waits for the device once, for the number of columns and whether anything is padded.

    Args:
        counts: how often each column is taken (0 drops it), with shape (B, S), integer or boolean.
        padding_side: where shorter samples are padded, "left" or "right".

    Returns:
        Tuple of the columns, with shape (B, L), and which of them are real rather than padding, with shape (B, L);
        `None` where nothing is padded.
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
    """Gather `columns` (B, L) along `dim`; the batch is the dimension before it, other dimensions go along."""
    columns = columns.to(tensor.device)
    batch_dim = dim - 1
    if tensor.shape[batch_dim] != len(columns):  # shared by the batch, for example rotary tables
        tensor = tensor.expand(*(len(columns) if d == batch_dim else -1 for d in range(tensor.ndim)))
    shape = [1] * tensor.ndim
    shape[batch_dim], shape[dim] = columns.shape
    target = list(tensor.shape)
    target[dim] = columns.shape[1]
    return tensor.gather(dim, columns.view(shape).expand(target))


# models/generation.py -------------------------------------------------------------------------------------------------

"""`generate` on a compressed prompt."""

# Values of `cache_implementation` that a compressed prompt can do with.
_CACHE_IMPLEMENTATIONS = (None, "dynamic", "offloaded")
# What `generate` passes on to `forward` beside the model's inputs.
_CALL_ARGUMENTS = ("settings", "reports")


class FlashVIDGenerationMixin:
    """Cache, ranking query and multimodal inputs of `generate`."""

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
        """Upstream's `generate`, with the end of the prompt as the token that ranks the video tokens.

        The ranking token is the same in every step, so that decoding without a cache, with candidates or on from an
        earlier turn drops the same tokens as plain decoding.

        Args:
            kwargs: as upstream, with the cache under either of its names, and FlashVID's fields that are to differ from
                the configuration's in this call (`retention_ratio=0.2`; 1.0 is off). An assistant model has settings of
                its own.

        Returns:
            As upstream; with `return_dict_in_generate=True` the output has a `report` of what was compressed.

        Raises:
            ValueError: before anything is encoded, if a setting is out of range, if placeholders and videos do not fit
                together, or if the call asks for what a compressed prompt cannot do: a static, quantized or foreign
                cache, a prefill in chunks, an assistant without FlashVID, in the Qwen families a second video on the
                cache of a first.
        """
        kwargs = rename_cache(kwargs)
        settings = self.model.find_settings(kwargs.get("mm_encoder_outputs") or {}, kwargs)
        input_ids = inputs if inputs is not None else kwargs.get("input_ids")
        if settings.compresses:
            prompt = kwargs.get("inputs_embeds") if input_ids is None else input_ids
            if prompt is not None:
                kwargs.setdefault("query_index", prompt.shape[1] - 1)
            if self.has_videos(kwargs):
                self._check_generation(generation_config or self.generation_config, kwargs)
            self._check_placeholders(input_ids, kwargs)
        reports: list[CompressionReport] = []
        outputs = super().generate(inputs, generation_config, *args, **kwargs, settings=settings, reports=reports)
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
                f"`assistant_model` is a `{type(assistant).__name__}`: it would be handed videos that are compressed. "
                "Pass a FlashVID model of the family, or `retention_ratio=1.0` to run without compression."
            )

    def _get_candidate_generator(self, *args: Any, model_kwargs: dict[str, Any], **kwargs: Any):
        # An assistant is called with these: it finds its own settings, and others than FlashVID's know none of them.
        if kwargs.get("assistant_model") is not None:
            private = {*_CALL_ARGUMENTS, "query_index"}
            model_kwargs = {name: value for name, value in model_kwargs.items() if name not in private}
        return super()._get_candidate_generator(*args, model_kwargs=model_kwargs, **kwargs)

    def _check_placeholders(self, input_ids: torch.Tensor | None, model_kwargs: dict[str, Any]) -> None:
        cache = model_kwargs.get(CACHE)
        if input_ids is None or (cache is not None and cache.get_seq_length()):  # of later turns, `forward` sees more
            return
        for kind, mask in zip(("image", "video"), self.model.placeholder_masks(input_ids, None), strict=True):
            if model_kwargs.get(self.model.encoder_inputs[kind][0]) is not None:
                self.model.check_placeholders(kind, mask, model_kwargs)

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs):
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        cache = model_kwargs.get(CACHE)
        if type(cache) is DynamicCache and not getattr(cache, "_is_user_defined", False):
            config = self.config.get_text_config(decoder=True)
            model_kwargs[CACHE] = FlashVIDCache(config=config, offloading=cache.offloading)

    def prepare_inputs_for_generation(
        self,
        *args: Any,
        inputs_embeds: torch.Tensor | None = None,  # `generate` looks for the name before it takes embeddings
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ):
        # Encoded videos are in the cache after the first step; some versions hand them on in every step.
        if not is_first_iteration and kwargs.get("use_cache", True):
            kwargs.pop("mm_encoder_outputs", None)
        return super().prepare_inputs_for_generation(
            *args, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )

    def has_videos(self, model_kwargs: dict[str, Any]) -> bool:
        """Whether the arguments of a call bring videos, as pixels or encoded."""
        encoded = model_kwargs.get("mm_encoder_outputs") or {}
        return model_kwargs.get("pixel_values_videos") is not None or encoded.get("video") is not None

    def _expand_multimodal_outputs(
        self, input_ids: torch.Tensor, mm_encoder_output: dict[str, BaseModelOutputWithPooling], *args, **kwargs
    ):
        video = mm_encoder_output.get("video")
        if getattr(video, "videos", None) is None:
            return super()._expand_multimodal_outputs(input_ids, mm_encoder_output, *args, **kwargs)
        # Upstream orders the features for the expanded batch by their lengths before the compression: let it order
        # stand-ins of those lengths that hold the video's number, and follow.
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

"""Hooks on modules that several models may share."""


def add_pre_hook(module: nn.Module, hook: Callable) -> None:
    """Register a forward pre-hook that takes keyword arguments, unless the module has it already."""
    if hook not in module._forward_pre_hooks.values():
        module.register_forward_pre_hook(hook, with_kwargs=True)


def add_hook(module: nn.Module, hook: Callable) -> None:
    """Register a forward hook that takes keyword arguments, unless the module has it already."""
    if hook not in module._forward_hooks.values():
        module.register_forward_hook(hook, with_kwargs=True)


# models/tensor_parallel.py --------------------------------------------------------------------------------------------

"""Attention heads that tensor parallelism spreads over processes: a token's score is the mean over all of them."""


def mean_over_heads(mean: torch.Tensor, num_local: int, num_heads: int, projection: Any) -> torch.Tensor:
    """The mean over all heads of an attention module, the same on every rank.

    Ranks that scored tokens by their own heads would keep different tokens.

    Args:
        mean: float32 mean over the heads that this process computed; itself returned if these are all.
        num_local: how many these are.
        num_heads: how many the module has, over all ranks.
        projection: the linear layer that makes them. Where `tp_plan` shards it, its weight is a DTensor.

    Raises:
        ValueError: heads are missing, and the projection does not say which processes have them.
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
    """`states` with the heads of an attention module side by side, unless some of them are on other processes.

    Args:
        states: with the heads of this process in the last dimension.
        width: of all heads together.

    Raises:
        ValueError: heads are missing.
    """
    if states.shape[-1] != width:
        raise ValueError(
            f"`signals` of the method names keys, and this process has {states.shape[-1]} of their {width} values: the "
            "vision tower's attention is shared out. Load the model without tensor parallelism, or choose a "
            "`compression_method` that asks for no keys."
        )
    return states


# models/vision_signals.py ---------------------------------------------------------------------------------------------

"""What happens in the layers of a vision tower, for every patch, whatever its attention implementation.

Layers return no attention weights, so queries and keys of a layer that somebody asks for are computed once more, from
its own input. The hooks belong to one model instance and do nothing unless a call brings a `VisionRecord`, so calls
from several threads do not meet.
"""

# Name of the keyword argument that carries the record through the vision tower.
RECORD = "vision_record"
# Most bytes of the attention weights (float32) that exist at once; a frame of SigLIP's 729 patches has 34 million.
# Where there are few frames, at most this many times the bytes of the queries: so much the block's own MLP takes too.
_WEIGHT_BYTES = 64 * 2**20
_WEIGHTS_PER_QUERY = 2


class Source(NamedTuple):
    """Where in a vision tower a signal is recorded.

    Args:
        kind: one of `SIGNAL_KINDS`.
        module: the layer for "hidden_states", its attention module for the others.
    """

    kind: str
    module: nn.Module


class VisionRecord:
    """What a call wants to know of the inside of a vision tower, and what it was told.

    Args:
        wanted: what is recorded. `found` then has, all frames one after the other, "attention" with shape (positions,)
            in float32, "keys" and "hidden_states" with the shape of what runs through the tower.
    """

    def __init__(self, wanted: Iterable[Source]):
        self.wanted = frozenset(wanted)
        self.found: dict[Source, torch.Tensor] = {}


def find_sources(signals: Iterable[Signal], layers: Sequence[Any], last: Any) -> dict[Signal, Source]:
    """Where in a vision tower each signal is recorded.

    Args:
        layers: of the tower, from the bottom.
        last: that of the layers whose output makes the features.

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
    """For layers that take packed sequences (`cu_seqlens`) and project with a joint `qkv`, as Qwen's do."""
    for layer in layers:
        add_pre_hook(_attention_of(layer), _record_packed)
        add_hook(layer, _record_output)


def install_frame_recording(layers: Iterable[nn.Module]) -> None:
    """For layers that take a batch of frames and project with `q_proj` and `k_proj`, as SigLIP's do."""
    for layer in layers:
        add_pre_hook(_attention_of(layer), _record_frames)
        add_hook(layer, _record_output)


def _attention_of(layer: Any) -> nn.Module:
    return layer.attn if hasattr(layer, "attn") else layer.self_attn


def mean_received_attention(query: torch.Tensor, key: torch.Tensor, lengths: list[int], scaling: float) -> torch.Tensor:
    """Attention that each position receives: softmax over the keys, mean over heads and queries.

    Args:
        query, key: with shape (heads, sequence, head width).
        lengths: positions of every frame; no frame sees another.

    Returns:
        float32 tensor with shape (sequence,), summing to 1 over every frame.
    """
    received, start = [], 0
    for length, frames in groupby(lengths):  # as a rule all frames of a video are equally long
        shape = (len(query), len(list(frames)), length, -1)
        end = start + shape[1] * length
        q, k = (states[:, start:end].reshape(shape).transpose(0, 1) for states in (query, key))
        received.append(_received_in_frames(q, k, scaling).flatten())
        start = end
    return torch.cat(received)


def _received_in_frames(query: torch.Tensor, key: torch.Tensor, scaling: float) -> torch.Tensor:
    """`mean_received_attention` of frames of one length: (T, heads, length, head width) to (T, length).

    Goes over as many frames at once as the budget allows, and over some queries of a frame if it is too large.
    """
    _, num_heads, length, _ = query.shape
    budget = min(_WEIGHT_BYTES, _WEIGHTS_PER_QUERY * query.nbytes)
    row = 4 * num_heads * length  # bytes of the weights of one query
    num_frames, num_queries = max(1, budget // (row * length)), max(1, budget // row)
    received = query.new_zeros(len(query), length, dtype=torch.float32)
    with torch.autocast(query.device.type, enabled=False):
        for total, q, k in zip(*(states.split(num_frames) for states in (received, query, key)), strict=True):
            k = k.float().mT
            for part in q.split(num_queries, dim=2):
                total += (part.float() @ k).mul_(scaling).softmax(-1).sum((1, 2))
    return received.div_(num_heads * length)


def rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding in the half-split layout; the tables broadcast against `states`."""
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
        heads = (frames * length, -1, attention.head_dim)  # those of this rank
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

"""Pruning inside the language model: from one layer on, only the best video tokens are left, as `LayerPruning` says.

The layers of upstream's language models pass unknown keyword arguments on. One of them carries the decision of the
call; hooks on the layers of this one model instance apply it and do nothing in calls without it.

Legend: B batch, M columns that entered the language model, L columns that are left from the pruning layer on.
"""

# Name of the keyword argument that carries the decision through the language model.
PRUNING = "pruning"
# Most bytes of the attention weights (float32) of text tokens that exist at once.
_MAX_SCORE_BYTES = 64 * 2**20


class UpperLayers:
    """What the layers from the pruning layer on see in one call: their attention mask, and after pruning their tokens.

    Args:
        config: configuration of the language model.
        layer: the first layer that sees less.
        cache: cache of the call, if any.
        past_mask: which columns these layers have cached are real, with shape (B, cached); `None` if all are.
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
        self.attention_mask: Any = None  # the same in the form of the attention implementation
        self.entered = False

    def start_layer(self, layer_idx: int, hidden_states: torch.Tensor, kwargs: dict[str, Any]) -> torch.Tensor:
        """Adapt the inputs of a layer from `layer` on; returns its hidden states."""
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
    """The decision which video tokens the layers from the pruning layer on see, for one call.

    The score of a token is the attention that it gets in the layer below, softmax over all visible keys, mean over
    heads, those of other ranks too, in float32: from the query, or the most that any token behind the last video up to
    the query pays. Of every sample the best `ceil(ratio * video tokens)` stay, and all other tokens.

    Args:
        rule: the share of the prunable tokens to keep, who ranks them, and whether the others are merged into them.
        prunable: which of the new columns may be dropped, with shape (B, M).
        query: column of the token that ranks the others, with shape (B,): the end of the prompt.
        past_lower_mask: which columns the layers below have cached are real; `None` if all are.
        padding_side: where shorter samples are padded.
        is_video: which of the new columns are of videos, newlines included, with shape (B, M); by default those that
            may be dropped.
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
        self.columns: torch.Tensor | None = None  # (B, L) into the columns that entered

    @torch.no_grad()
    def score(self, layer: Any, hidden_states: torch.Tensor, position_embeddings: tuple) -> None:
        """Rank the columns by the self-attention of the layer below the pruning layer, given that layer's input."""
        if self.scores is not None:  # recomputation of a checkpointed layer
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
        if self.cache is not None and past:  # earlier turns take part in the softmax
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
                # (B, key heads, queries a key * Q, width)
                logits = part.float().reshape(batch, key.shape[1], -1, key.shape[2]) @ key * attention.scaling
                logits = logits.unflatten(2, (-1, at.shape[1])).masked_fill(~visible[:, None, None], float("-inf"))
                weights = logits.softmax(-1).mean((1, 2))[..., past:]
                weights = mean_over_heads(weights, num_local, num_heads, attention.q_proj)
                scores = weights.masked_fill(~is_part[..., None], 0).amax(1)
                most = scores if most is None else torch.maximum(most, scores)
        self.scores = most

    def _find_queries(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """The columns whose attention counts, and which of them are real rather than padding, with shape (B, Q)."""
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
        kwargs["position_ids"] = None  # only read to detect packed sequences, which gaps would look like
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

    One after the other, x becoming (x + y) / 2, so that of m tokens the last counts 1/2, the one before 1/4, and x
    itself 2**-m.

    Args:
        hidden_states: with shape (B, M, D).
        prunable: which columns are video tokens that may be dropped, with shape (B, M).
        keep: which columns stay, with shape (B, M).

    Returns:
        Hidden states with shape (B, M, D); those of columns that do not stay mean nothing.
    """
    batch, length, width = hidden_states.shape
    column = torch.arange(batch * length, device=hidden_states.device).view(batch, length)
    states = hidden_states.float()
    unit = nn.functional.normalize(states, dim=-1)
    is_target = keep & prunable
    dropped = prunable & ~keep & is_target.any(-1, keepdim=True)
    # One sample at a time: the similarities of a long video are as large as one attention head's weights.
    nearest = torch.stack(
        [(u @ u.mT).masked_fill_(~target, float("-inf")).argmax(-1) for u, target in zip(unit, is_target, strict=True)]
    )
    slot = torch.where(dropped, nearest + column[:, :1], column).flatten()
    # Every row is followed by what is averaged into it, in order.
    counted = (dropped | keep).flatten()
    order = (slot * 2 + dropped.flatten()).argsort(stable=True)
    ends = torch.searchsorted(slot[order], slot, right=True)
    behind = ends - 1 - order.argsort()  # entries of the same slot behind this one
    is_first = ~dropped.flatten()
    weight = torch.where(is_first, 0.5 ** behind.float(), 0.5 ** (behind + 1).float()) * counted
    merged = weighted_sums(states.view(-1, width), None, slot, weight, column.flatten())
    return merged.view(batch, length, width).to(hidden_states.dtype)


def join_masks(
    past: torch.Tensor | None, num_past: int, new: torch.Tensor | None, like: torch.Tensor
) -> torch.Tensor | None:
    """Mask over cached and new columns, with shape (B, num_past + M); `None` where every column is real.

    Args:
        past, new: mask of either part; `None` if all of it is real.
        like: hidden states of the new columns, with shape (B, M, width).
    """
    if past is None and new is None:
        return None
    batch, length = like.shape[:2]
    past = torch.ones(batch, num_past, dtype=torch.bool, device=like.device) if past is None else past
    new = torch.ones(batch, length, dtype=torch.bool, device=like.device) if new is None else new
    return torch.cat([past.to(like.device), new.to(like.device)], dim=-1)


def install_pruning(layers: nn.ModuleList) -> None:
    """Let calls with a `pruning` argument prune between these layers of a language model."""
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


# models/outputs.py ----------------------------------------------------------------------------------------------------

"""What the models return: upstream's outputs, and what became of the videos.

Legend: B batch, M columns that enter the language model, L columns that are left from the pruning layer on.
"""


@dataclass
class FlashVIDVideoOutput(BaseModelOutputWithPooling):
    """Output of `get_video_features`.

    Args:
        pooler_output: the rows of every video that enter the language model, with shape (rows, D) each: its kept
            tokens, and in some families newlines.
        last_hidden_state: patches of the vision tower; `None` for compressed videos, which it need not hold at once.
        videos: how each video was compressed; `None` if none was.
        settings: the configuration that they were encoded with.
        stopwatch: how long encoding and compression took; `None` if no video was compressed.
        deepstack_features: for each level, rows of every video's kept tokens; only of families that have them.
    """

    videos: tuple[CompressedVideo, ...] | None = None
    settings: Any = None
    stopwatch: Stopwatch | None = None
    deepstack_features: list[tuple[torch.Tensor, ...]] | None = None

    @classmethod
    def uncompressed(cls, outputs: ModelOutput, settings: Any) -> "FlashVIDVideoOutput":
        """Upstream's output for videos that are not compressed, with the settings that they were encoded with."""
        known = {field.name for field in fields(cls)} & outputs.keys()
        return cls(**{name: outputs[name] for name in known}, settings=settings)


@dataclass
class FlashVIDModelOutput(CacheAlias, ModelOutput):
    """What the output of a base model has beside the fields of upstream's output, which each family adds.

    Args:
        last_hidden_state: with shape (B, L, D). `hidden_states` and `attentions` have M columns below the pruning
            layer and L from it on.
        token_index: input column of every row of `last_hidden_state`, with shape (B, L), -1 for padding. `None` in
            calls without videos, where all columns are left.
        report: what was compressed; `None` in calls that continue a cache without a video of their own.
    """

    token_index: torch.Tensor | None = None
    report: CompressionReport | None = None


@dataclass
class FlashVIDCausalLMOutput(CacheAlias, ModelOutput):
    """What the output of a generative model has beside the fields of upstream's output, which each family adds.

    Args:
        loss: over the labels of the columns that are left.
        logits: of the columns that are left, with shape (B, L, vocabulary).
        token_index, report: see `FlashVIDModelOutput`.
    """

    token_index: torch.Tensor | None = None
    report: CompressionReport | None = None


# models/prompt.py -----------------------------------------------------------------------------------------------------

"""The prompt of one call after the compression: which input columns enter the language model.

Legend: B batch, S columns of the input, M columns that enter the language model, V videos.
"""


@dataclass(frozen=True)
class VideoLayout:
    """How the rows of a video that enter lie in its placeholders.

    Args:
        counts: how often each placeholder enters, with shape (placeholders,). A token enters once or not at all, or
            twice where the released code repeats it.
        prunable: which of the rows that enter the language model may drop, with shape (rows,).
        is_token: which of the rows are kept tokens, in their order, rather than newlines, with shape (rows,).
    """

    counts: torch.Tensor
    prunable: torch.Tensor
    is_token: torch.Tensor


@dataclass(frozen=True)
class Prompt:
    """One decision that is applied to embeddings, positions, masks and labels alike.

    Args:
        num_columns: S.
        columns: input column of each column that enters, with shape (B, M); `None` where all of them enter.
        mask: which of them are real rather than padding, with shape (B, M); `None` if all are.
        padding_side: where shorter samples are padded.
        videos: the compressed videos, in the order of their placeholders.
        layouts: how they lie in their placeholders.
        row_index: which row of the videos each column is, counted through all of them, with shape (B, M); -1 for other
            tokens. `None` without videos.
        prunable: which columns the language model may drop, with shape (B, M). `None` without videos.
        placeholders: how many placeholders of videos each sample has, with shape (B,). `None` without videos.
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
        """All columns of a call without videos. A single new column is never padding, so decoding asks nothing.

        Masks that `generate` has prepared for a static cache are the language model's, and show no padding here.
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
        """The columns that are left when only the kept tokens of the videos enter.

        Args:
            video_mask: which columns are placeholders of the videos, with shape (B, S).
            attention_mask: 2D mask whose last S columns are these; earlier ones are earlier turns.
            dropped: other columns that do not enter, with shape (B, S).
        """
        device, num_columns = video_mask.device, video_mask.shape[1]
        # A column is taken once, those of videos as their layouts say.
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
        for video in videos:  # `find_columns` has just waited for the device
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
        """The columns of a (..., B, S, ...) tensor that enter; `dim` is that of the columns."""
        return tensor if self.columns is None else gather_columns(tensor, self.columns, dim)

    def find_video_columns(self, video_mask: torch.Tensor) -> torch.Tensor:
        """Which columns that enter hold video tokens, given the placeholders (B, S) of the videos."""
        return video_mask if self.row_index is None else self.row_index >= 0

    def scatter(self, embeddings: torch.Tensor, where: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Write `features`, in order, to the entered columns that `where` (B, M) marks."""
        where = where if self.mask is None else where & self.mask
        return embeddings.masked_scatter(where[..., None].to(embeddings.device), features.to(embeddings))

    def find_query(self, query_index: int | torch.Tensor | None, num_seen: int) -> torch.Tensor:
        """Entered column of the token that ranks the video tokens, with shape (B,).

        Args:
            query_index: its column in the whole sequence, an integer or one for each sample; the last real one if
                `None`.
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
        """What became of the videos.

        Args:
            rows_left: the `row_index` of every column that was left in the end, with shape (B, L).
            layers: how many layers saw all that entered, and how many there are.
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
    """How often each of 0 ... length - 1 occurs."""
    counts = torch.zeros(length, dtype=torch.long, device=indices.device)
    return counts.index_add_(0, indices, torch.ones_like(indices))


# models/modeling.py ---------------------------------------------------------------------------------------------------

"""What the models of all families share: `forward` on compressed videos, the language model, the loss.

Legend: B batch, S columns of the input, M columns that enter the language model, L columns that are left from the
pruning layer on.
"""

# Inputs of `forward` that every language model has.
LANGUAGE_INPUTS = ("input_ids", "inputs_embeds", "attention_mask", "position_ids", "cache")


class FlashVIDModelMixin:
    """Compression inside the `forward` of a multimodal model that has a `language_model`.

    A family says what its vision tower is called with and gives, and which positions the columns have.
    """

    config: Any
    language_model: Any
    training: bool
    get_input_embeddings: Any
    get_placeholder_mask: Any
    get_image_features: Any
    get_video_features: Any

    # Inputs of `forward` that `get_image_features` and `get_video_features` take, the pixels first.
    encoder_inputs: ClassVar[dict[str, tuple[str, ...]]]
    # Inputs of `forward` that decide about positions, beside those that every family has.
    position_inputs: ClassVar[tuple[str, ...]] = ()
    # Inputs of `forward` that upstream takes and does not read.
    unread_inputs: ClassVar[tuple[str, ...]] = ()
    # Keyword arguments of `forward` that upstream hands to the vision tower too.
    tower_arguments: ClassVar[tuple[str, ...]] = ()
    # Of a repeated index, the released code of some families enters the last vector only (`released_repeats`).
    released_code_overwrites_repeats = False
    # Whether upstream's `forward` takes `mm_encoder_outputs`.
    upstream_takes_encoded = True
    # Whether positions depend on the grids of all images and videos of a conversation.
    positions_need_grids = False
    # The class of the outputs: upstream's fields and those of `FlashVIDModelOutput`.
    output_class: type[FlashVIDModelOutput]

    def install_hooks(self) -> None:
        """Install what this model needs on its submodules; once is enough, also for models that share them."""
        install_pruning(self.language_model.layers)

    def forward_flashvid(
        self,
        upstream_forward: Callable[..., BaseModelOutputWithPast],
        inputs: dict[str, Any],
        query_index: int | torch.Tensor | None,
        **kwargs: Any,
    ) -> Any:
        """Upstream's `forward`, on the kept video tokens.

        Args:
            upstream_forward: what runs calls that neither bring a video to compress nor build on a compressed cache.
            inputs: the named arguments of `forward`.
            query_index: column of the whole sequence, earlier turns included, whose attention ranks the video tokens
                inside the language model; an integer, or one for each sample. Default: the last real column.
            kwargs: FlashVID's fields that are to differ from the configuration's in this call
                (`retention_ratio=0.2`), or all of them as `settings`; `reports`, a list that takes the report of the
                call; and what upstream takes.

        Returns:
            `FlashVIDModelOutput`, or upstream's output; either with a `report`, except in calls that continue a cache
            without a video of their own.
        """
        encoded = dict(inputs["mm_encoder_outputs"] or {})
        settings, reports = self.find_settings(encoded, kwargs), kwargs.pop("reports", None)
        has_videos = inputs["pixel_values_videos"] is not None or encoded.get("video") is not None
        cache, use_cache = self.prepare_cache(inputs["cache"], inputs["use_cache"])
        inputs = {**inputs, "cache": cache, "use_cache": use_cache}
        is_new = cache is None or not cache.get_seq_length()
        if has_videos and settings.compresses:
            check_cache(cache)
        # Upstream encodes videos by the configuration, whatever the settings of the call. Not every version of it looks
        # at what has been encoded.
        is_own = has_videos and (settings.compresses or self.config.compresses)
        is_own |= any(value is not None for value in encoded.values()) and not self.upstream_takes_encoded
        if is_compressed(cache) or is_own:
            outputs = self._forward(inputs, encoded, settings, query_index, **kwargs)
        else:
            given = {name: value for name, value in inputs.items() if value is not None}
            outputs = upstream_forward(**rename_cache(given), return_dict=True, **kwargs)
        report = getattr(outputs, "report", None)
        if report is None and (has_videos or is_new):
            report = outputs.report = self._report_uncompressed(inputs, encoded)
        if report is not None:
            if isinstance(cache, FlashVIDCache):
                cache.reports = (*cache.reports, report)
            if reports is not None:
                reports.append(report)
        return outputs

    def find_settings(self, encoded: dict[str, Any], kwargs: dict[str, Any]) -> Any:
        """The configuration with the settings of a call, which are taken out of its keyword arguments.

        Raises:
            ValueError: a field is outside of its range, or the videos have been encoded with other settings.
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
        """`settings`, or the configuration, with single fields that are taken out of keyword arguments."""
        overrides = {name: kwargs.pop(name) for name in CALL_FIELDS & kwargs.keys()}
        return (settings or self.config).override(**overrides)

    def _forward(
        self,
        inputs: dict[str, Any],
        encoded: dict[str, Any],
        settings: Any,
        query_index: int | torch.Tensor | None,
        **kwargs: Any,
    ) -> FlashVIDModelOutput:
        """`forward` of calls that bring videos or build on a compressed cache."""
        for name in sorted(inputs.keys() - self.known_inputs()):
            if inputs[name] is not None:
                raise ValueError(
                    f"`{name}` is given, and FlashVID does not know what it means for a prompt that is compressed. "
                    "Leave it out, or set `retention_ratio=1.0`."
                )
        input_ids, inputs_embeds = inputs["input_ids"], inputs["inputs_embeds"]
        attention_mask = inputs["attention_mask"]
        image_mask, video_mask = self.placeholder_masks(input_ids, inputs_embeds)
        comes_encoded = encoded.get("video") is not None  # pixels are checked before they are encoded
        # Of compressed videos the inside of the tower is not returned: it is encoded in chunks, to be forgotten.
        recorded = () if settings.compresses else self.tower_arguments
        asked = {name: kwargs[name] for name in recorded if name in kwargs}
        self.encode(inputs, encoded, settings, image_mask, video_mask, **asked)
        videos = getattr(encoded.get("video"), "videos", None)
        if videos:
            layouts = tuple(self.lay_out(video, settings) for video in videos)
            if comes_encoded:
                check_placeholders("video", video_mask, sum(len(layout.counts) for layout in layouts))
            dropped = self.dropped_columns(input_ids, settings)
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
        """The inputs of `forward` that FlashVID reads, or may leave unread as upstream does."""
        of_tower = {name for names in cls.encoder_inputs.values() for name in names}
        return {*MODEL_INPUTS, *LANGUAGE_INPUTS, *of_tower, *cls.position_inputs, *cls.unread_inputs}

    def _report_uncompressed(self, inputs: dict[str, Any], encoded: dict[str, Any]) -> CompressionReport:
        """The report of a call that brought no video, or compressed none."""
        _, video_mask = self.placeholder_masks(inputs["input_ids"], inputs["inputs_embeds"])
        tokens: tuple | torch.Tensor = ()
        if encoded.get("video") is not None:
            tokens = tuple(map(len, encoded["video"].pooler_output))
        elif inputs["pixel_values_videos"] is not None:
            tokens = self.placeholder_counts("video", inputs)
        return CompressionReport.uncompressed(video_mask.sum(-1), tokens)

    def find_positions(self, prompt: Prompt, inputs: dict[str, Any]) -> torch.Tensor:
        """Positions of the columns that enter, with shape (..., B, M)."""
        raise NotImplementedError

    def placeholder_counts(self, kind: str, inputs: dict[str, Any]) -> tuple[int, ...] | torch.Tensor | None:
        """Placeholders that each of the images or videos in the inputs of `forward` needs, before they are encoded.

        `None` where only encoding them shows it.
        """
        raise NotImplementedError

    def check_placeholders(self, kind: str, mask: torch.Tensor, inputs: dict[str, Any]) -> bool:
        """Raise a `ValueError` if the placeholders (B, S) do not fit the pixels; False if that cannot be told yet."""
        counts = self.placeholder_counts(kind, inputs)
        if counts is not None:
            check_placeholders(kind, mask, int(torch.as_tensor(counts).sum()))
        return counts is not None

    def lay_out(self, video: CompressedVideo, settings: Any) -> VideoLayout:
        """How the rows of a compressed video lie in its placeholders: one for each token."""
        prunable = torch.full_like(video.indices, video.prunable, dtype=torch.bool)
        return VideoLayout(
            count_occurrences(video.indices, video.selected.numel()), prunable, is_token=torch.ones_like(prunable)
        )

    def dropped_columns(self, input_ids: torch.Tensor | None, settings: Any) -> torch.Tensor | None:
        """Columns beside those of video tokens that do not enter, with shape (B, S); `None` for none."""
        return None

    def language_model_inputs(
        self, prompt: Prompt, image_mask: torch.Tensor, video_mask: torch.Tensor, encoded: dict[str, Any]
    ) -> dict[str, Any]:
        """What the family's language model takes beside embeddings and positions."""
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
        """Fill `encoded` with the outputs of the vision tower that the caller has not computed already.

        Looks at the placeholders first: a mistake in the inputs should not cost a run of the vision tower.
        """
        for kind, mask in (("image", image_mask), ("video", video_mask)):
            if encoded.get(kind) is not None:
                if getattr(encoded[kind], "videos", None) is None:  # those of compressed videos are in their layouts
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
        told: Sequence[Sequence[torch.Tensor]],
        settings: Any,
        stopwatch: Stopwatch,
    ) -> FlashVIDVideoOutput:
        """Compress each video.

        Args:
            features: with shape (T, N, D), for each video.
            told: for each signal of the method, that of each video, with shape (T, N) or (T, N, width).
        """
        method = settings.method
        signals = [Signals(zip(method.signals, of_video, strict=True)) for of_video in zip(*told, strict=True)]
        signals = signals or [Signals()] * len(features)
        with stopwatch.stage("compression", features[0].device):
            videos = tuple(method.compress(*video) for video in zip(features, signals, strict=True))
        tokens = tuple(video.tokens for video in videos)
        if settings.behavior == "released" and self.released_code_overwrites_repeats:
            tokens = tuple(released_repeats(video.tokens, video.indices) for video in videos)
        return FlashVIDVideoOutput(pooler_output=tokens, videos=videos, settings=settings, stopwatch=stopwatch)

    def placeholder_masks(
        self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Which columns are placeholders of images and of videos, with shape (B, S) each."""
        if input_ids is not None:
            return input_ids == self.config.image_token_id, input_ids == self.config.video_token_id
        image_mask, video_mask = self.get_placeholder_mask(None, inputs_embeds=inputs_embeds)
        return image_mask[..., 0], video_mask[..., 0]

    def embed_prompt(
        self,
        prompt: Prompt,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        image_mask: torch.Tensor,
        video_mask: torch.Tensor,
        encoded: dict[str, BaseModelOutputWithPooling],
    ) -> torch.Tensor:
        """Embeddings of the columns that enter, images and kept video tokens in place, with shape (B, M, D)."""
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

    def prepare_cache(self, cache: Cache | None, use_cache: bool | None) -> tuple[Cache | None, bool]:
        """The cache of a call, made where the caller wants one and passed none, and whether to use it."""
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
        **kwargs: Any,
    ) -> FlashVIDModelOutput:
        """Run the language model on the columns that entered, prune inside it, and account for both in the cache.

        Args:
            inputs_embeds: of the columns that entered, with shape (B, M, D); `position_ids` (..., B, M) likewise.
            attention_mask: 2D mask of the whole sequence, earlier turns included, as the caller passed it.
            query_index: column of the whole sequence that ranks the video tokens; by default the last.
            stopwatch: what takes the time of the language model.
        """
        if not prompt.videos and not is_compressed(cache):  # as upstream runs it, with the caller's mask and any cache
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
        return self.output_class(**outputs, token_index=token_index, report=report)


class FlashVIDLanguageModelingMixin:
    """Logits and loss on the columns that are left."""

    config: Any
    lm_head: Any
    loss_function: Any

    # The class of the outputs: upstream's fields and those of `FlashVIDCausalLMOutput`.
    output_class: type[FlashVIDCausalLMOutput]

    def language_modeling_output(
        self,
        outputs: BaseModelOutputWithPast,
        labels: torch.Tensor | None,
        logits_to_keep: int | torch.Tensor,
        **kwargs: Any,
    ) -> FlashVIDCausalLMOutput:
        """From the output of the base model to logits and, with labels, the loss.

        Args:
            labels: with shape (B, S); those of dropped columns and of padding do not count, nor that of a sample's
                first token.
            logits_to_keep: the last so many rows, or the indices of the rows to compute logits for; 0 for all.

        Raises:
            ValueError: `labels` with `logits_to_keep`.
        """
        rows = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, rows])
        token_index = getattr(outputs, "token_index", None)
        loss = None
        if labels is not None:
            if token_index is not None:
                if logits.shape[1] != token_index.shape[1]:
                    raise ValueError(
                        f"`logits_to_keep` is {logits_to_keep!r} and `labels` are given: the loss of a compressed "
                        "prompt needs the logits of all rows. Leave `logits_to_keep` at 0."
                    )
                kept = token_index.to(labels.device)
                is_padding = kept < 0
                # The row before a sample's first token may be padding, which is not to predict it.
                uncounted = is_padding | nn.functional.pad(is_padding[:, :-1], (1, 0))
                labels = labels.gather(1, kept.clamp(min=0)).masked_fill(uncounted, -100)
            vocab_size = self.config.get_text_config().vocab_size
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=vocab_size, **kwargs)
        own = {field.name for field in fields(self.output_class)}
        passed_on = {name: value for name, value in outputs.items() if name in own}
        report = getattr(outputs, "report", None)  # no field of upstream's outputs
        return self.output_class(**{**passed_on, "loss": loss, "logits": logits, "report": report})


def check_placeholders(kind: str, mask: torch.Tensor, expected: int) -> None:
    """Raise a `ValueError` unless the prompt has one placeholder for every feature of its videos or images."""
    found = int(mask.sum())
    if found != expected:
        raise ValueError(
            f"`input_ids` has {found} {kind} placeholders: the {kind} inputs need exactly {expected}. Make both with "
            "one call of the processor, and cut neither; on a cache, pass only those of the new turn."
        )


def past_masks(
    cache: FlashVIDCache | None, attention_mask: torch.Tensor | None
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Which cached columns are real, below and from the pruning layer on; `None` if all are."""
    if cache is None:
        return None, None
    if cache.compressed:
        return cache.lower_mask, cache.upper_mask
    seen = cache.num_cached()
    if attention_mask is None or not seen:
        return None, None
    past = attention_mask[:, :seen].bool()
    return past, past


# models/vision_chunks.py ----------------------------------------------------------------------------------------------

"""Encoding videos some frames at a time, so that the memory of a vision tower does not grow with the video."""


def split_frames(num_frames: list[int], size: int | None) -> list[list[tuple[int, int]]]:
    """Which frames go through the vision tower together: for every chunk, its pieces (video, frames of it).

    Args:
        num_frames: of every video; the frames of all of them follow each other.
        size: most frames of a chunk; `None` for all at once.
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
    """Where chunks of the pixels belong: with the tower's weights, unless these lie elsewhere until they are used."""
    return pixels.device if tower.device.type == "meta" else tower.device


def join_rows(chunks: Iterable[Sequence[torch.Tensor]], length: int) -> list[torch.Tensor]:
    """Several tensors that come in chunks of rows, `length` rows in all, without holding the chunks beside the whole.

    Args:
        chunks: the rows of every tensor; made one after the other, where it is a generator.
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
