"""Loading and saving: names in original checkpoints, weightless folders, and folders that bring their code along."""

import copy
import os
from typing import Any

from transformers import GenerationConfig, PreTrainedConfig

from ..video.pipeline_flashvid import CUSTOM_PIPELINES
from .code_writer import save_code
from .weightless import follow_base, hub_arguments, read_config

# What belongs to the model although a configuration would take it.
_MODEL_ARGUMENTS = ("dtype", "torch_dtype", "quantization_config", "key_mapping")


def _own_config(config_class: Any, config: Any, overrides: dict[str, Any]) -> Any:
    """A FlashVID configuration with some fields replaced, from a FlashVID or an upstream one, which stays as it is."""
    if config.model_type not in (config_class.model_type, config_class.base_model_type):
        raise ValueError(
            f"`config` has the `model_type` {config.model_type!r}: {config_class.__name__} takes "
            f"{config_class.model_type!r} and {config_class.base_model_type!r}. Choose the class of that family."
        )
    if config.model_type == config_class.model_type and not overrides:
        return copy.deepcopy(config)
    own = config_class.from_dict(config.to_dict(), **overrides)
    # The dictionary does not hold the implementations of attention and experts.
    for kind in ("_attn_implementation", "_experts_implementation"):
        towers = {name: getattr(getattr(config, name), kind) for name in config.sub_configs}
        setattr(own, kind, {"": getattr(config, kind), **towers})
    return own


def name_code(config: Any) -> None:
    """Let a configuration say which classes of the code beside it the Auto classes and `pipeline` load."""
    config.auto_map = dict(config.auto_classes)
    config.custom_pipelines = {name: dict(pipeline) for name, pipeline in CUSTOM_PIPELINES.items()}


def _own_generation_config(path: str | os.PathLike, hub: dict[str, Any]) -> GenerationConfig | None:
    """The generation settings that lie in a folder; `None` if those of the base serve."""
    try:
        return GenerationConfig.from_pretrained(path, **hub)
    except OSError:
        return None


class FlashVIDPreTrainedMixin:
    """`from_pretrained` and `save_pretrained` of every FlashVID model.

    A family says how the names of its original checkpoint map to its own, because transformers applies the renaming
    of a native model to classes of the library only: without it the weights would be random, with a warning.
    """

    config: Any
    config_class: Any
    can_generate: Any  # of upstream's class

    # Patterns of names in the original checkpoint and what replaces them, tried in order.
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

        A weightless folder names another repository, its base, and a commit: the weights come from there. All other
        arguments hold for both, but `revision` and `subfolder`, which say where the folder itself is. What is loaded is
        complete: saving it writes the weights too.

        Args:
            config: a configuration, or the folder or id of one; by default that of the checkpoint.
            kwargs: as upstream; FlashVID's fields (`retention_ratio=0.1`) override those of `config.json`.

        Raises:
            ValueError: a field is outside of its range, the checkpoint is of another family, or it lacks weights. With
                `output_loading_info=True` the caller sees which, and they are random, as upstream.
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
        config.base_model_name_or_path = config.base_model_revision = None  # from here on the weights are here
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

        The code that is written beside the weights is this model's own: its module and all that it imports.
        """
        name_code(self.config)
        super().save_pretrained(save_directory, *args, **kwargs)
        save_code(self, save_directory)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Does nothing: `save_pretrained` writes the code and names its classes in any case."""
