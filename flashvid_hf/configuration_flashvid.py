"""The configuration fields of FlashVID, shared by the configurations of all model families."""

import copy
import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from .compression import CompressionConfig
from .validation import check_number


@dataclass(kw_only=True)
class FlashVIDConfigMixin:
    """Settings of the compression as flat fields of a model's configuration, under the reference's names.

    A family's configuration derives from this and from its upstream configuration, and says which checkpoints it
    accepts.

    Args:
        retention_ratio ... behavior: see `CompressionConfig`.
        pruning_layer: the first layer of the language model that sees only part of the video tokens that entered it;
            at least 1; from the number of layers on nothing is pruned. Default: near `pruning_depth` of the depth.
        llm_retention_ratio: the part that it sees; above 0, at most 1, which is no pruning. Default: what makes
            `retention_ratio` the average over all layers.
        vision_chunk_size: frames (for Qwen: temporal grids, of two frames each) of compressed videos that the vision
            tower encodes at once; `None` for all. Bounds memory: the features are the same up to rounding.
        base_model_name_or_path: the repository or folder that has the weights, where this one has none.
        base_model_revision: its commit. Both are `None` in the configuration of a model that is loaded.

    Raises:
        ValueError: a field is outside of its range.
    """

    # `model_type` of the upstream checkpoints that load into this configuration.
    base_model_type: ClassVar[str] = ""
    model_type: ClassVar[str]
    # How an error names them, if that is not all.
    accepted_checkpoints: ClassVar[str] = ""
    # Where the default `pruning_layer` lies in the depth of the language model, as in the reference's scripts.
    pruning_depth: ClassVar[float] = 5 / 7
    # Which class of which published module an Auto class loads: the `auto_map` of the folders that models save.
    auto_classes: ClassVar[dict[str, str]] = {}
    # The fields that are added to upstream's.
    method_fields: ClassVar[frozenset[str]]

    # Typed `Any`, because the checks of `CompressionConfig` say more than those of upstream's strict dataclasses.
    retention_ratio: Any = 0.25
    expansion: Any = 1.25
    alpha: Any = 0.7
    token_selection_method: Any = "attn_div_v2"
    temporal_threshold: Any = 0.8
    do_segment: Any = True
    segment_threshold: Any = 0.9
    min_segment_num: Any = 8
    complementary_segment: Any = True
    behavior: Any = "paper"
    pruning_layer: Any = None
    llm_retention_ratio: Any = None
    vision_chunk_size: Any = 32
    base_model_name_or_path: Any = None
    base_model_revision: Any = None

    get_text_config: ClassVar[Any]  # of upstream's configuration

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self._derive()

    def _derive(self) -> None:
        """Fill in what is `None`, and check all fields."""
        depth = self.get_text_config().num_hidden_layers
        check_number("expansion", self.expansion, least=1)
        if self.pruning_layer is None:
            self.pruning_layer = default_pruning_layer(depth, self.expansion, self.pruning_depth)
        check_number("pruning_layer", self.pruning_layer, least=1, integer=True)
        if self.llm_retention_ratio is None:
            self.llm_retention_ratio = default_llm_retention_ratio(depth, self.pruning_layer, self.expansion)
        self.check_flashvid()

    @property
    def compression(self) -> CompressionConfig:
        """The settings of `compress_video`, validated."""
        return CompressionConfig(**{field.name: getattr(self, field.name) for field in fields(CompressionConfig)})

    @property
    def compresses(self) -> bool:
        """Whether the settings leave anything to compress; otherwise the model is the upstream model."""
        return self.retention_ratio * self.expansion < 1

    @property
    def prunes(self) -> bool:
        """Whether the language model drops video tokens at `pruning_layer`."""
        depth = self.get_text_config().num_hidden_layers
        return self.compresses and self.pruning_layer < depth and self.llm_retention_ratio < 1

    def check_flashvid(self) -> None:
        """Raise a `ValueError` for a field that is outside of its range."""
        self.compression  # noqa: B018 -- validates on construction
        check_number("pruning_layer", self.pruning_layer, least=1, integer=True)
        check_number("llm_retention_ratio", self.llm_retention_ratio, above=0, most=1)
        if self.vision_chunk_size is not None:
            check_number("vision_chunk_size", self.vision_chunk_size, least=1, integer=True)

    def override(self, **overrides: Any) -> Any:
        """This configuration with other settings, validated; itself if there are none. Other parts are shared.

        Args:
            overrides: some of `method_fields`.

        Raises:
            ValueError: a field is outside of its range.
        """
        if not overrides:
            return self
        if overrides.keys() & {"expansion", "pruning_layer"} and "llm_retention_ratio" not in overrides:
            depth = self.get_text_config().num_hidden_layers
            derived = default_llm_retention_ratio(depth, self.pruning_layer, self.expansion)
            if self.llm_retention_ratio == derived:  # a derived ratio stays derived, so the average stays the same
                overrides["llm_retention_ratio"] = None
        config = copy.copy(self)
        for name, value in overrides.items():
            setattr(config, name, value)
        config._derive()
        return config

    @classmethod
    def accepts(cls, config_dict: dict[str, Any]) -> bool:
        """Whether a checkpoint with this configuration loads into the family."""
        return config_dict.get("model_type") in (None, cls.model_type, cls.base_model_type)

    @classmethod
    def adopt(cls, config_dict: dict[str, Any]) -> dict[str, Any]:
        """The configuration of an accepted checkpoint as a dictionary of this class."""
        if config_dict.get("model_type") in (None, cls.model_type):
            return config_dict
        adopted = {**config_dict, "model_type": cls.model_type}
        adopted.pop("architectures", None)
        return adopted

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if not config_dict:  # upstream would make a whole default model
            raise ValueError(
                f"{str(pretrained_model_name_or_path)!r} has no `config.json`. Choose the folder of a model; of an "
                "adapter alone, load the model that it belongs to and then call its `load_adapter`."
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
        if self.base_model_name_or_path is None:  # the folder of a model with weights does not speak of a base
            for name in ("base_model_name_or_path", "base_model_revision"):
                config_dict.pop(name, None)
        return config_dict

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        base = config_dict.get("base_model_name_or_path")
        if base is not None and "text_config" not in config_dict:
            raise ValueError(
                f"This `config.json` is a recipe, which lacks what belongs to its base, {base!r}. Build a folder from "
                "it with `flashvid-hf export`, and load that."
            )
        # Upstream sets overrides on the finished object, unchecked.
        overrides = {name: kwargs.pop(name) for name in cls.method_fields & kwargs.keys()}
        made = super().from_dict(cls.adopt(config_dict), **kwargs)
        if isinstance(made, tuple):  # `return_unused_kwargs`
            return made[0].override(**overrides), made[1]
        return made.override(**overrides)


# The fields that every family has, and a single call may set.
CALL_FIELDS = frozenset(field.name for field in fields(FlashVIDConfigMixin) if not field.name.startswith("base_model_"))
FlashVIDConfigMixin.method_fields = CALL_FIELDS


def default_pruning_layer(num_layers: int, expansion: float, pruning_depth: float) -> int:
    """The layer nearest `pruning_depth` of all, or the last at which pruning can still make up for the expansion."""
    deepest = math.ceil(num_layers / expansion) - 1
    return max(1, min(round(num_layers * pruning_depth), deepest))


def default_llm_retention_ratio(num_layers: int, pruning_layer: int, expansion: float) -> float:
    """The share that layers from `pruning_layer` on keep, so that `retention_ratio` is the average over the layers.

    With L layers, r solves expansion * (pruning_layer + r * (L - pruning_layer)) = L.

    Raises:
        ValueError: no r above 0 does, to six digits.
    """
    if pruning_layer >= num_layers:
        return 1.0
    remaining = num_layers - expansion * pruning_layer
    ratio = round(min(1.0, remaining / (expansion * (num_layers - pruning_layer))), 6)
    if ratio <= 0:
        raise ValueError(
            f"`pruning_layer` is {pruning_layer} and `expansion` is {expansion}: with {num_layers} layers no pruning "
            f"keeps the average at `retention_ratio`. Choose a `pruning_layer` below {num_layers / expansion:g}, a "
            "smaller `expansion`, or set `llm_retention_ratio` yourself."
        )
    return ratio


__all__ = ["FlashVIDConfigMixin"]
