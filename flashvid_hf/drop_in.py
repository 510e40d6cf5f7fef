"""`flashvid`, the function of the reference (released code of arXiv 2602.08024), for a model that is already loaded."""

import copy
import inspect
from typing import Any

from accelerate.hooks import ModelHook, add_hook_to_module
from transformers import PreTrainedConfig, PreTrainedModel

from .families import FAMILIES
from .methods.flashvid import FlashVID
from .models.configuration import check_own_settings


def flashvid(
    model: PreTrainedModel,
    retention_ratio: float = 0.25,
    do_segment: bool = True,
    segment_threshold: float = 0.9,
    min_segment_num: int = 8,
    complementary_segment: bool = True,
    token_selection_method: str = "attn_div_v2",
    alpha: float = 0.7,
    temporal_threshold: float = 0.8,
    expansion: float = 1.25,
    pruning_layer: int = 20,
    llm_retention_ratio: float = 0.3,
    *,
    behavior: str = "paper",
    vision_chunk_size: int | None = 32,
    compression_method: str = "flashvid",
    method_settings: dict[str, Any] | None = None,
) -> Any:
    """A FlashVID model that shares the weights of a model that is already loaded.

    Arguments and defaults are those of the reference's function of this name, which patches the model and its class.
    This function returns a new model with the same submodules. No weights are loaded or copied, and `model` and other
    models of its class work as before. Models that share weights have separate settings: call `flashvid` again for
    other settings. Changes to the modules themselves, such as `.to`, `.train` or an adapter, affect all models that
    share them. A quantized model stays quantized, and a model that accelerate has dispatched stays dispatched.

    Example:
        model = AutoModelForImageTextToText.from_pretrained("Qwen/Qwen2.5-VL-7B-Instruct", dtype="auto")
        model = flashvid(model, retention_ratio=0.1)

    Args:
        model: generative or base model of a family in `FAMILIES`, upstream's or FlashVID's. Settings that are not given
            take the defaults of this function, also if `model` is a FlashVID model with other settings.
        retention_ratio: share of the video tokens that a layer of the language model sees on average, at 28 layers
            and with the other defaults; above 0, at most 1.
        do_segment ... expansion: see `CompressionConfig`, which has the same defaults. The configurations of some
            families default to the values of the reference's scripts instead.
        pruning_layer: the first layer that sees only part of the video tokens that entered; at least 1. The default
            is 20 at any depth, as in the reference: a model with at most 20 layers prunes nothing there.
        llm_retention_ratio: the part that this layer sees; above 0, at most 1. The default is 0.3 at any depth: with 20
            and 0.3 the average of 28 layers is `retention_ratio`. For other depths set both fields, or load the model
            by `from_pretrained` of the family's class, whose configuration derives them.
        behavior: "paper", or "released" to reproduce the released code with its deviations.
        vision_chunk_size: frames that the vision tower encodes at once, see `FlashVIDConfigMixin`.
        compression_method: one of `available_methods()`. Methods other than "flashvid" take `retention_ratio`,
            `method_settings` and `vision_chunk_size`; all other settings must stay at their defaults.
        method_settings: settings of a method other than "flashvid", by name; `None` for its defaults.

    Returns:
        A generative model of the family if `model` is one, and a base model if `model` is one.

    Raises:
        ValueError: `model` is of no family, or a setting is outside of its range. `model` is unchanged then.
    """
    settings = {**locals()}  # every argument but `model` is a setting of this name
    del settings["model"]
    if compression_method != FlashVID.name:
        defaults = inspect.signature(flashvid).parameters
        check_own_settings(
            compression_method, {name: value for name, value in settings.items() if value != defaults[name].default}
        )
    config_class, model_class, base_class = _find_classes(model)
    config = _adopt_config(model.config, config_class, settings)
    adopted = _adopt_model(model, model_class, config)
    if model.base_model is not model:
        setattr(adopted, model.base_model_prefix, _adopt_model(model.base_model, base_class, config))
    adopted.base_model.install_hooks()
    return adopted


def _find_classes(model: Any) -> tuple[Any, Any, Any]:
    """The class of the configuration, the class of the returned model, and the class of its base model."""
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    for family in FAMILIES:
        if model_type not in (family.config.model_type, family.config.base_model_type):
            continue
        if isinstance(model, PreTrainedModel) and hasattr(model.base_model, "install_hooks"):
            return type(model.config), type(model), type(model.base_model)  # classes of this package or of remote code
        for model_class in (family.base_model, family.generative_model):
            if type(model) in model_class.__mro__:  # upstream's class, perhaps loaded from the folder of our model
                return family.config, model_class, family.base_model
    known = ", ".join(repr(family.config.base_model_type) for family in FAMILIES)
    raise ValueError(
        f"`model` is a `{type(model).__name__}`: `flashvid` takes FlashVID models, and upstream's own generative and "
        f"base models of {known}. Of a wrapped model pass what is inside: `model.base_model.model` of PEFT (its "
        "adapters stay active), `model._orig_mod` of torch.compile, `model.module` of a parallel wrapper."
    )


def _adopt_config(config: PreTrainedConfig, config_class: Any, settings: dict[str, Any]) -> PreTrainedConfig:
    """A validated FlashVID configuration with the fields of `config` and these settings; `config` does not change."""
    adopted = config_class.from_dict({**config.to_dict(), "model_type": config_class.model_type, **settings})
    # The configurations of the towers are shared like the towers. The attention implementation and the quantization are
    # not in the dictionary.
    vars(adopted).update((name, value) for name, value in vars(config).items() if name not in settings)
    adopted.architectures = None  # saving writes the new class
    return adopted


def _adopt_model(model: PreTrainedModel, model_class: Any, config: PreTrainedConfig) -> Any:
    """A model of another class with the same submodule, parameter and buffer objects as `model`.

    The constructor does not run. It would build towers that are not needed, and it would lose the attributes that
    loading has set on the model, such as its quantizer, its device map and the original names of its weights.
    """
    adopted = model_class.__new__(model_class)
    for name, value in vars(model).items():
        # Callable attributes are left out because they are bound to `model`, such as a compiled call and accelerate's
        # `forward` and `to`. The loss function is not bound.
        if not callable(value) or name == "_loss_function":
            vars(adopted)[name] = copy.copy(value) if isinstance(value, dict | list | set) else value
    adopted.config = config
    if "generation_config" in vars(model):
        adopted.generation_config = copy.deepcopy(model.generation_config)
    if hasattr(model, "_hf_hook"):
        add_hook_to_module(adopted, ModelHook())  # wraps `forward`; the model's own hook would move the weights again
        adopted._hf_hook = copy.copy(model._hf_hook)
    return adopted
