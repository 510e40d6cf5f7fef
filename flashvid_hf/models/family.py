"""The record of a model family: its classes, and all that differs by family and is not code of its `forward`.

Each family has its record beside its configuration and its modeling file (`family_<name>.py`). `flashvid_hf.FAMILIES`
lists the records, and everything else asks them: export, cards, `check`, traces, vLLM, small models, tests.

Legend: T temporal grids (frames, in families that make tokens of single frames).
"""

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, NamedTuple

from transformers import GenerationConfig, ProcessorMixin

# What the `model_type` of every FlashVID configuration begins with.
MODEL_TYPE_PREFIX = "flashvid_"


class VideoGeometry:
    """How a family cuts a video into tokens, and how a prompt holds them.

    The methods take a family's configuration, or an object that has its `vision_config` and FlashVID's settings.
    These defaults are those of a family whose tokens are all of single frames, without anything between them.
    """

    # Fields of the configuration with the tokens before and after every run of placeholders of a video.
    run_marks: tuple[str, ...] = ()

    def frames_per_grid(self, config: Any) -> int:
        """Frames of a video that make one temporal grid of tokens."""
        return 1

    def grid_of_pixels(self, config: Any, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens of a temporal grid, for frames of this size in pixels.

        Where the family's processor chooses the size by the video, this is for a video that stays within its limits.
        """
        raise NotImplementedError

    def grids_of_call(self, config: Any, inputs: Mapping[str, Any], num_videos: int) -> list[tuple[int, int]]:
        """Rows and columns of tokens of a temporal grid of every video, in the order of the prompts.

        Args:
            inputs: what the model was called with.
        """
        raise NotImplementedError

    def num_newlines(self, config: Any, num_grids: int, rows: int) -> int:
        """Placeholders of an uncompressed video of T grids that are no tokens of the vision tower."""
        return 0

    def drops_newlines(self, config: Any) -> bool:
        """Whether the compression may drop newlines too, so that their number depends on the video."""
        return False

    def num_runs(self, num_grids: int) -> int:
        """How many runs of placeholders a video of T grids has in a prompt. If more than one, text stands between."""
        return 1

    def seen_part(self, config: Any) -> float:
        """The part of a frame's height and width, from its upper left corner, that the tokens see; 1.0 is all."""
        return 1.0

    def describe(self, config: Any, height: int, width: int) -> str:
        """A sentence for the model card: how many tokens a frame of this size in pixels makes."""
        raise NotImplementedError


class PublishedSize(NamedTuple):
    """A published model of a family, for which `hub_configs/` has a recipe.

    Args:
        base: the base's id on the Hub.
        num_layers: layers of its language model. The bases' own configurations were not at hand: comments say where
            each number comes from, and building a repository compares it with the base's.
    """

    base: str
    num_layers: int


@dataclass(frozen=True, kw_only=True)
class TinyShape:
    """Sizes of a tiny model, of which each call takes milliseconds. There is no tokenizer for it.

    Args:
        text, vision: fields of the language model and of the vision tower.
        fields: other fields of the configuration, the numbers of its special tokens among them.
    """

    text: Mapping[str, Any]
    vision: Mapping[str, Any]
    fields: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class SmallShape:
    """Sizes of a small model that has a tokenizer and a processor, as a whole folder has.

    Args:
        text, vision: fields of the language model and of the vision tower, beside those that all families share.
        fields: other fields of the configuration.
        tokens: special tokens beside those that all families share, by the field of the configuration that has their
            number.
        make_processor: makes the processor from the configuration and the tokenizer.
    """

    text: Mapping[str, Any]
    vision: Mapping[str, Any]
    fields: Mapping[str, Any] = field(default_factory=dict)
    tokens: Mapping[str, str]
    make_processor: Callable[[Any, Any], ProcessorMixin]


@dataclass(frozen=True, kw_only=True)
class OriginalFormat:
    """Checkpoints in another format than upstream's, as the authors of a model published them.

    Args:
        title: what messages call them, such as "original LLaVA".
        matches: whether a `config.json`, as a dictionary, is of such a checkpoint.
        load_processor: loads the processor of such a checkpoint by its folder or Hub id; takes the arguments of
            `from_pretrained` that say where files are found.
        build_processor: the processor of a converted folder: from the configuration, the folder or Hub id of the
            checkpoint, and its revision.
        complete_generation: sets what the checkpoint's own generation settings lack: from these, the folder or Hub id,
            and the revision.
        serves_weightless: whether a folder without weights can read the processor from such a checkpoint.
    """

    title: str
    matches: Callable[[dict[str, Any]], bool]
    load_processor: Callable[..., ProcessorMixin]
    build_processor: Callable[[Any, str, str | None], ProcessorMixin]
    complete_generation: Callable[[GenerationConfig, str, str | None], None]
    serves_weightless: bool = True


@dataclass(frozen=True, eq=False)
class Family:
    """A model family.

    Args:
        config, base_model, generative_model: its classes.
        processor: its processor, where upstream's does not serve.
        title: its name as people write it.
        geometry: how it cuts a video into tokens.
        published_vision: fields of `vision_config` that `geometry` needs, as all published models have them.
        is_exact: whether `retention_ratio=1.0` gives upstream's numbers bit for bit; otherwise they differ by rounding.
        upstream_settings: settings of the configuration and of the processor under which upstream has such a model.
        tiny, small: sizes of models to try things on.
        published_sizes: what `hub_configs/` has recipes for.
        processing: what a folder without weights changes in the processor of its base: settings by the part of the
            processor, such as "video_processor".
        vllm: "module:class" that runs the family inside vLLM; `None` if nothing does.
        original: the other format of checkpoints that it reads, if there is one.
    """

    config: Any
    base_model: Any
    generative_model: Any
    processor: Any = None
    _: KW_ONLY
    title: str
    geometry: VideoGeometry
    published_vision: Mapping[str, int]
    is_exact: bool
    tiny: TinyShape
    small: SmallShape
    upstream_settings: Mapping[str, Any] = field(default_factory=dict)
    published_sizes: tuple[PublishedSize, ...] = ()
    processing: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    vllm: str | None = None
    original: OriginalFormat | None = None

    @property
    def name(self) -> str:
        """Its `model_type` without "flashvid_", such as "qwen2_5_vl"."""
        return self.config.model_type.removeprefix(MODEL_TYPE_PREFIX)

    @property
    def classes(self) -> tuple[Any, ...]:
        """Its configuration, its models and, where it has one of its own, its processor."""
        return tuple(filter(None, (self.config, self.base_model, self.generative_model, self.processor)))

    @property
    def upstream_model(self) -> Any:
        """The generative model of transformers that this family's derives from."""
        return next(c for c in self.generative_model.__mro__ if c.__module__.startswith("transformers.models."))

    @property
    def has_upstream_checkpoints(self) -> bool:
        """Whether its published checkpoints are of upstream's class, rather than in an `original` format."""
        return self.upstream_model.config_class.model_type == self.config.base_model_type

    def original_format(self, config_dict: Mapping[str, Any]) -> OriginalFormat | None:
        """`original`, if a checkpoint with this `config.json` is in that format."""
        return self.original if self.original is not None and self.original.matches(dict(config_dict)) else None
