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

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar, get_args

import torch
from transformers import GenerationMixin, modeling_outputs
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import ModelOutput

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
