"""The configuration of Qwen2.5-VL with FlashVID.

Generated from flashvid_hf 0.1.0: do not edit. The sections are its modules:

    hub/code_writer.py
    models/configuration.py
    models/qwen/configuration_flashvid_qwen2_5_vl.py
    hub/weightless.py
"""

import copy
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig, Qwen2_5_VLConfig
from transformers.dynamic_module_utils import custom_object_save

from .compression_flashvid import (
    CompressionMethod,
    FlashVID,
    LayerPruning,
    check_settings,
    default_llm_retention_ratio,
    default_pruning_layer,
    make_method,
    same_setting,
    setting,
    settings_of,
)

# hub/code_writer.py ---------------------------------------------------------------------------------------------------

"""Writing the code of a model or processor into the folder in which it is saved."""

# The function that writes the code, under the key "generate". The package adds one that generates the files from its
# modules, which lie in sub-folders. In published code this stays empty, and the published files are copied.
CODE_WRITERS: dict[str, Callable[[Any, str | os.PathLike], Any]] = {}


def save_code(published: Any, folder: str | os.PathLike) -> None:
    """Write the file that defines an object's class and the files that it imports, unless `folder` has them.

    Args:
        published: a model or a processor.
        folder: an existing folder to write to.
    """
    file = getattr(sys.modules[type(published).__module__], "__file__", None)  # a notebook's classes have none
    if file is None or not Path(file).parent.samefile(folder):
        CODE_WRITERS.get("generate", custom_object_save)(published, folder)


# models/configuration.py ----------------------------------------------------------------------------------------------

"""The configuration fields of FlashVID, shared by the configurations of all model families."""


@dataclass(kw_only=True)
class FlashVIDConfigMixin:
    """Settings of the compression as flat fields of a model's configuration, under the names of the reference code.

    The configuration of a family derives from this class and from its upstream configuration, and says which
    checkpoints it accepts.

    Most fields are the settings of `FlashVID`. Encoding in chunks of `vision_chunk_size` bounds the memory of the
    vision tower and changes the features only by rounding. In the Qwen families a temporal grid is two frames.

    Args:
        full_length: whether the logits of a generative model, or the last hidden states of a base model, have all
            columns of a compressed prompt; `None` for what `forward` does by default. `generate` always uses the kept
            columns alone.
        base_model_name_or_path: the repository or folder that has the weights, if this one has none.
        base_model_revision: commit of that repository. Both are `None` in the configuration of a loaded model.

    Raises:
        ValueError: a field is outside of its range.
    """

    # `model_type` of the upstream checkpoints that load into this configuration.
    base_model_type: ClassVar[str] = ""
    model_type: ClassVar[str]
    # What errors call the accepted checkpoints, if `base_model_type` does not name all of them.
    accepted_checkpoints: ClassVar[str] = ""
    # Depth of the default `pruning_layer` as a share of the layers, as in the reference's scripts (20 of 28).
    pruning_depth: ClassVar[float] = 5 / 7
    # The first layer of the language model that may see fewer video tokens than entered.
    first_pruning_layer: ClassVar[Any] = 1
    # For each Auto class, the published module and the class that it loads: the `auto_map` of saved folders.
    auto_classes: ClassVar[dict[str, str]] = {}
    # Whether `save_pretrained` writes the code too.
    saves_code: ClassVar[bool] = False
    # The fields of outputs that `Trainer.evaluate` and `predict` do not collect: those that are no tensors with a fixed
    # number of columns. `outputs.py` and the families explain them; the names of the cache are upstream's own.
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        "past_key_values",
        "cache",
        "rope_deltas",
        "image_outputs",
        "video_outputs",
        "image_hidden_states",
        "video_hidden_states",
        "router_masks",
        "token_index",
        "report",
    ]
    # The fields that FlashVID adds to upstream's.
    method_fields: ClassVar[frozenset[str]]

    # The fields are typed `Any`: the checks of settings give better errors than upstream's strict dataclasses.
    compression_method: Any = setting(
        FlashVID.name,
        "the method; methods other than `flashvid` are for comparison and read only `method_settings`, "
        "`retention_ratio` and `vision_chunk_size`",
        words="a name in `flashvid_hf.available_methods()`",
    )
    method_settings: Any = setting(
        None,
        "settings of a method other than `flashvid`; `null` for its defaults",
        words="a dictionary",
        optional=True,
    )
    retention_ratio: Any = same_setting(FlashVID, "retention_ratio")
    expansion: Any = same_setting(FlashVID, "expansion")
    pruning_layer: Any = same_setting(FlashVID, "pruning_layer")
    llm_retention_ratio: Any = same_setting(FlashVID, "llm_retention_ratio")
    alpha: Any = same_setting(FlashVID, "alpha")
    token_selection_method: Any = same_setting(FlashVID, "token_selection_method")
    temporal_threshold: Any = same_setting(FlashVID, "temporal_threshold")
    do_segment: Any = same_setting(FlashVID, "do_segment")
    segment_threshold: Any = same_setting(FlashVID, "segment_threshold")
    min_segment_num: Any = same_setting(FlashVID, "min_segment_num")
    complementary_segment: Any = same_setting(FlashVID, "complementary_segment")
    behavior: Any = same_setting(FlashVID, "behavior")
    vision_chunk_size: Any = setting(
        32,
        "frames (Qwen: pairs) of compressed videos that the vision tower encodes at once, for its memory; `null`: all",
        least=1,
        integer=True,
        optional=True,
    )
    full_length: Any = None
    base_model_name_or_path: Any = None
    base_model_revision: Any = None

    get_text_config: ClassVar[Any]  # a method of upstream's configuration

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self._derive()

    def _derive(self) -> None:
        """Check all fields, and compute `pruning_layer` and `llm_retention_ratio` if they are `None`."""
        check_settings(self)
        if self.full_length is not None and not isinstance(self.full_length, bool):
            raise ValueError(f"`full_length` is {self.full_length!r}: it must be True, False or None.")
        depth = self.get_text_config().num_hidden_layers
        if self.pruning_layer is None:
            self.pruning_layer = default_pruning_layer(depth, self.expansion, self.pruning_depth)
        if self.llm_retention_ratio is None:
            self.llm_retention_ratio = default_llm_retention_ratio(depth, self.pruning_layer, self.expansion)
        self.method  # noqa: B018 -- validates on construction

    @property
    def method(self) -> CompressionMethod:
        """The method that compresses the videos, with its validated settings.

        Raises:
            ValueError: the settings do not fit the method.
        """
        shared = {
            "retention_ratio": self.retention_ratio,
            "num_layers": self.get_text_config().num_hidden_layers,
            "first_pruning_layer": self.first_pruning_layer,
        }
        if self.compression_method == FlashVID.name:
            if self.method_settings:
                raise ValueError(
                    f"`method_settings` is {self.method_settings!r} and `compression_method` is 'flashvid': its "
                    "settings are fields of the configuration. Set those, or choose another `compression_method`."
                )
            return FlashVID(**shared, **{name: getattr(self, name) for name in FlashVID.settings()})
        if self.method_settings is not None and not isinstance(self.method_settings, dict):
            raise ValueError(
                f"`method_settings` is {self.method_settings!r}: it must be a dictionary of settings of the method "
                f"{self.compression_method!r}, or None for its defaults."
            )
        method = make_method(self.compression_method, **{**(self.method_settings or {}), **shared})
        if self.behavior != "paper":
            raise ValueError(
                f"`behavior` is {self.behavior!r} and `compression_method` is {method.name!r}: only 'flashvid' has a "
                "released code to reproduce. Set `behavior='paper'`."
            )
        return method

    @property
    def compresses(self) -> bool:
        """Whether these settings compress anything. If not, the model runs as the upstream model."""
        return self.method.compresses

    @property
    def pruning(self) -> LayerPruning | None:
        """The pruning inside the language model; `None` if there is none."""
        method = self.method
        pruning = method.pruning if method.compresses else None
        return pruning if pruning is not None and pruning.layer < method.num_layers else None

    def override(self, **overrides: Any) -> Any:
        """A copy of this configuration with other settings, validated. Without overrides, the configuration itself.

        The copy is shallow: it shares its other parts with this configuration.

        Args:
            overrides: new values of some of `method_fields`.

        Raises:
            ValueError: a field is outside of its range.
        """
        if not overrides:
            return self
        method = overrides.get("compression_method", self.compression_method)
        if method != self.compression_method:
            overrides.setdefault("method_settings", None)  # the configuration's belong to its own method
        check_own_settings(method, overrides)
        if overrides.keys() & {"expansion", "pruning_layer"} and "llm_retention_ratio" not in overrides:
            depth = self.get_text_config().num_hidden_layers
            derived = default_llm_retention_ratio(depth, self.pruning_layer, self.expansion)
            # A ratio that was computed is computed anew, so that `retention_ratio` stays the average.
            if self.llm_retention_ratio == derived:
                overrides["llm_retention_ratio"] = None
        config = copy.copy(self)
        for name, value in overrides.items():
            setattr(config, name, value)
        config._derive()
        return config

    @classmethod
    def accepts(cls, config_dict: dict[str, Any]) -> bool:
        """Whether a checkpoint with this configuration loads into the family.

        Args:
            config_dict: `config.json` as a dictionary.
        """
        return config_dict.get("model_type") in (None, cls.model_type, cls.base_model_type)

    @classmethod
    def adopt(cls, config_dict: dict[str, Any]) -> dict[str, Any]:
        """Convert the configuration of an accepted checkpoint to this class.

        Args:
            config_dict: `config.json` as a dictionary.
        """
        if config_dict.get("model_type") in (None, cls.model_type):
            return config_dict
        adopted = {**config_dict, "model_type": cls.model_type}
        adopted.pop("architectures", None)
        return adopted

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if not config_dict:  # upstream would build a model with default values
            raise ValueError(
                f"{str(pretrained_model_name_or_path)!r} has no `config.json`. Choose the folder of a model. If this "
                "is an adapter, load its base model first and then call `load_adapter` of that model."
            )
        if not cls.accepts(config_dict):
            raise ValueError(
                f"`model_type` of {str(pretrained_model_name_or_path)!r} is {config_dict.get('model_type')!r}: "
                f"{cls.__name__} reads {cls.model_type!r} and {cls.accepted_checkpoints or repr(cls.base_model_type)}. "
                "Choose the class of that family."
            )
        return cls.adopt(config_dict), kwargs

    def to_dict(self):
        config_dict = super().to_dict()
        if self.base_model_name_or_path is None:  # the folder of a model with weights names no base
            for name in ("base_model_name_or_path", "base_model_revision"):
                config_dict.pop(name, None)
        if self.full_length is None:  # the default, left out of the files
            config_dict.pop("full_length", None)
        return config_dict

    @classmethod
    def register_for_auto_class(cls, auto_class="AutoConfig"):
        """Let `save_pretrained` of a configuration alone write its code. That of a model writes the code anyway."""
        cls.saves_code = True

    def to_json_file(self, json_file_path, use_diff=True):
        """Write `config.json`, and the code that it names if `register_for_auto_class` was called."""
        if self.saves_code:
            self.auto_map = {"AutoConfig": self.auto_classes["AutoConfig"], **(getattr(self, "auto_map", None) or {})}
        super().to_json_file(json_file_path, use_diff=use_diff)
        if self.saves_code:
            save_code(self, Path(json_file_path).parent)

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        base = config_dict.get("base_model_name_or_path")
        if base is not None and "text_config" not in config_dict:
            raise ValueError(
                f"This `config.json` is a recipe, which lacks what belongs to its base, {base!r}. Build a folder from "
                "it with `flashvid-hf export`, and load that."
            )
        # Upstream would set these fields on the finished object without checking them.
        overrides = {name: kwargs.pop(name) for name in cls.method_fields & kwargs.keys()}
        made = super().from_dict(cls.adopt(config_dict), **kwargs)
        if isinstance(made, tuple):  # `return_unused_kwargs`
            return made[0].override(**overrides), made[1]
        return made.override(**overrides)


# The fields that every family has. A single call may override them.
CALL_FIELDS = frozenset(settings_of(FlashVIDConfigMixin))
FlashVIDConfigMixin.method_fields = CALL_FIELDS


def check_own_settings(method: str, given: dict[str, Any]) -> None:
    """Raise a `ValueError` if FlashVID's own settings are given for another method.

    Args:
        method: name of the method.
        given: the settings that were passed, by name.
    """
    if method == FlashVID.name:
        return
    # `behavior` is left out: the property `method` of the configuration checks it.
    for name in sorted(FlashVID.settings().keys() & given.keys() - {"behavior"}):
        raise ValueError(
            f"`{name}` is {given[name]!r} and `compression_method` is {method!r}: it is a setting of 'flashvid'. "
            f"Leave it out, or give settings of {method!r} as `method_settings`."
        )


# models/qwen/configuration_flashvid_qwen2_5_vl.py ---------------------------------------------------------------------

"""Configuration of Qwen2.5-VL with FlashVID."""


@strict
class FlashVIDQwen2_5_VLConfig(FlashVIDConfigMixin, Qwen2_5_VLConfig):
    """Qwen2.5-VL's configuration with FlashVID's fields and the reference's defaults for this family."""

    model_type = "flashvid_qwen2_5_vl"
    base_model_type = "qwen2_5_vl"

    auto_classes = {
        "AutoConfig": "configuration_flashvid_qwen2_5_vl.FlashVIDQwen2_5_VLConfig",
        "AutoModel": "modeling_flashvid_qwen2_5_vl.FlashVIDQwen2_5_VLModel",
        "AutoModelForImageTextToText": "modeling_flashvid_qwen2_5_vl.FlashVIDQwen2_5_VLForConditionalGeneration",
        "AutoModelForMultimodalLM": "modeling_flashvid_qwen2_5_vl.FlashVIDQwen2_5_VLForConditionalGeneration",
    }

    token_selection_method: Any = "attn_div"
    min_segment_num: Any = 4


# hub/weightless.py ----------------------------------------------------------------------------------------------------

"""Weightless folders: `config.json` names a base, the repository that has the weights, tokenizer and processor."""

# Arguments of `from_pretrained` that say where the files of a repository are found.
_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "proxies")


def hub_arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments among `kwargs` that say where and how the files of a repository are found."""
    return {name: kwargs[name] for name in _HUB_ARGUMENTS if name in kwargs}


def follow_base(
    own: dict[str, Any], hub: dict[str, Any], config: PreTrainedConfig | None = None
) -> tuple[str, dict[str, Any]] | None:
    """The base of a weightless folder, which has its weights, tokenizer and processor.

    Only the `config.json` of the folder itself makes it weightless. A configuration that is passed with another
    checkpoint must not replace the weights of that checkpoint.

    Args:
        own: `config.json` of the folder, see `read_config`.
        hub: where the folder is found, see `hub_arguments`.
        config: the configuration of the model. If it names a base, that base replaces the folder's.

    Returns:
        Folder or Hub id of the base, and the arguments that find its files; `None` if the folder has no base.
    """
    base, revision = own.get("base_model_name_or_path"), own.get("base_model_revision")
    if base is None:
        return None
    if getattr(config, "base_model_name_or_path", None) is not None:
        base, revision = config.base_model_name_or_path, config.base_model_revision
    elsewhere = {name: value for name, value in hub.items() if name not in ("revision", "subfolder")}
    return base, {**elsewhere, "revision": revision or "main"}


def read_config(path: str | os.PathLike | None, hub: dict[str, Any]) -> dict[str, Any]:
    """The content of `config.json`; empty if there is none, as in a folder with only weights or only a processor."""
    if path is None:  # a `state_dict` is loaded
        return {}
    try:
        config_dict, _ = PreTrainedConfig.get_config_dict(path, **hub)
    except OSError:
        return {}
    return config_dict


__all__ = [
    "FlashVIDConfigMixin",
    "FlashVIDQwen2_5_VLConfig",
]
