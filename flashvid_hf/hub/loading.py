"""Loading and saving of models: original checkpoints, weightless folders, and folders with code."""

import copy
import os
from typing import Any

from transformers import GenerationConfig, PreTrainedConfig

from ..video.pipeline_flashvid import CUSTOM_PIPELINES
from .code_writer import save_code
from .weightless import follow_base, hub_arguments, read_config

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
