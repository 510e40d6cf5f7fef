"""The record of a model family: its classes, and everything that differs by family except the code of its `forward`.

Each family has its record beside its configuration and its modeling file (`family_<name>.py`). `flashvid_hf.FAMILIES`
lists the records. Export, cards, `check`, traces, vLLM, small models and tests read them.
"""

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, NamedTuple

from transformers import GenerationConfig, ProcessorMixin

# What the `model_type` of every FlashVID configuration begins with.
MODEL_TYPE_PREFIX = "flashvid_"


class VideoGeometry:
    """How a family cuts a video into tokens, and how a prompt holds the tokens.

    `config` is always the family's configuration, or an object with its `vision_config` and FlashVID's settings. The
    defaults are for a family in which every token is part of a single frame and nothing stands between the tokens.
    """

    # Fields of the configuration that name the tokens before and after every run of placeholders of a video.
    run_marks: tuple[str, ...] = ()

    def frames_per_grid(self, config: Any) -> int:
        """How many frames of a video make one temporal grid of tokens."""
        return 1

    def grid_of_pixels(self, config: Any, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens of a temporal grid, for frames of this size in pixels.

        If the family's processor chooses the size by the video, this holds for a video within its limits.
        """
        raise NotImplementedError

    def grids_of_call(self, config: Any, inputs: Mapping[str, Any], num_videos: int) -> list[tuple[int, int]]:
        """For each video, the rows and columns of tokens of a temporal grid, in the order of the prompts.

        Args:
            inputs: the arguments that the model was called with.
            num_videos: how many videos the call has.
        """
        raise NotImplementedError

    def num_newlines(self, config: Any, num_grids: int, rows: int) -> int:
        """How many placeholders of an uncompressed video are newlines, that is no tokens of the vision tower.

        Args:
            num_grids: T.
            rows: rows of tokens of a temporal grid.
        """
        return 0

    def drops_newlines(self, config: Any) -> bool:
        """Whether the compression may drop newlines too. Their number then depends on the video."""
        return False

    def num_runs(self, num_grids: int) -> int:
        """How many runs of placeholders a video of T grids has in a prompt. Between two runs there is text."""
        return 1

    def seen_part(self, config: Any) -> float:
        """The part of a frame's height and width that the tokens cover, from the upper left corner; 1.0 is all."""
        return 1.0

    def describe(self, config: Any, height: int, width: int) -> str:
        """A sentence for the model card that says how many tokens a frame of this size in pixels makes."""
        raise NotImplementedError


class PublishedSize(NamedTuple):
    """A published model of a family, for which `hub_configs/` has a recipe.

    Args:
        base: the id of the base model on the Hub.
        num_layers: layers of its language model. The numbers were not read from the bases' own configurations. Comments
            name the source of each number, and building a repository compares it with the configuration of the base.
    """

    base: str
    num_layers: int


class PaperSetup(NamedTuple):
    """A family as the paper and FlashVID's scripts (github.com/Fanziyang-v/FlashVID) measure it.

    Args:
        model: id on the Hub.
        num_frames: frames of every video.
        videomme: the benchmark of `flashvid-hf evaluate` with the prompts that lmms-eval has for the family.
    """

    model: str
    num_frames: int
    videomme: str = "videomme"


@dataclass(frozen=True, kw_only=True)
class TinyShape:
    """Sizes of a tiny model without a tokenizer. A call of it takes milliseconds.

    Args:
        text: fields of the configuration of the language model.
        vision: fields of the configuration of the vision tower.
        fields: other fields of the configuration, including the ids of its special tokens.
    """

    text: Mapping[str, Any]
    vision: Mapping[str, Any]
    fields: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class SmallShape:
    """Sizes of a small model with a tokenizer and a processor, like a complete model folder.

    Args:
        text: fields of the configuration of the language model, beside those that all families share.
        vision: fields of the configuration of the vision tower, beside those that all families share.
        fields: other fields of the configuration.
        tokens: special tokens beside those that all families share. The keys are the fields of the configuration that
            hold their ids.
        make_processor: makes the processor from the configuration and the tokenizer.
    """

    text: Mapping[str, Any]
    vision: Mapping[str, Any]
    fields: Mapping[str, Any] = field(default_factory=dict)
    tokens: Mapping[str, str]
    make_processor: Callable[[Any, Any], ProcessorMixin]


@dataclass(frozen=True, kw_only=True)
class OriginalFormat:
    """A format of checkpoints other than upstream's, in which the authors of a model published it.

    Args:
        title: what messages call such checkpoints, for example "original LLaVA".
        matches: takes a `config.json` as a dictionary; says whether it belongs to such a checkpoint.
        load_processor: loads the processor of such a checkpoint. Takes its folder or Hub id, and the arguments of
            `from_pretrained` that say where files are found.
        build_processor: makes the processor of a converted folder. Takes the configuration, the folder or Hub id of the
            checkpoint, and its revision.
        complete_generation: adds what the generation settings of the checkpoint lack. Takes these settings, the folder
            or Hub id, and the revision.
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
        config, base_model, generative_model: the classes of the family.
        processor: the class of its processor, which derives from `FlashVIDProcessor` and from upstream's.
        title: its name as people write it.
        geometry: how it cuts a video into tokens.
        published_vision: values of the `vision_config` fields that `geometry` needs, the same in all published models.
        is_exact: whether `retention_ratio=1.0` gives upstream's numbers bit for bit; otherwise they differ by rounding.
        upstream_settings: settings of the configuration and of the processor that make the model equal to upstream's.
        tiny: sizes of a tiny model, for tests and `check`.
        small: sizes of a small model with a tokenizer and a processor.
        published_sizes: the published models that `hub_configs/` has recipes for.
        paper_setup: how the paper measures the family; `None` if it does not.
        processing: changes that a folder without weights makes to the processor of its base. The keys are parts of the
            processor, such as "video_processor"; the values are their settings.
        vllm: "module:class" that runs the family inside vLLM; `None` if vLLM does not support it.
        original: the other format of checkpoints that the family reads; `None` if there is none.
    """

    config: Any
    base_model: Any
    generative_model: Any
    processor: Any
    _: KW_ONLY
    title: str
    geometry: VideoGeometry
    published_vision: Mapping[str, int]
    is_exact: bool
    tiny: TinyShape
    small: SmallShape
    upstream_settings: Mapping[str, Any] = field(default_factory=dict)
    published_sizes: tuple[PublishedSize, ...] = ()
    paper_setup: PaperSetup | None = None
    processing: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    vllm: str | None = None
    original: OriginalFormat | None = None

    @property
    def name(self) -> str:
        """The `model_type` of the family without "flashvid_", for example "qwen2_5_vl"."""
        return self.config.model_type.removeprefix(MODEL_TYPE_PREFIX)

    @property
    def classes(self) -> tuple[Any, ...]:
        """The classes of its configuration, its models and its processor."""
        return (self.config, self.base_model, self.generative_model, self.processor)

    @property
    def upstream_model(self) -> Any:
        """The generative model of transformers from which the family's derives."""
        return next(c for c in self.generative_model.__mro__ if c.__module__.startswith("transformers.models."))

    @property
    def has_upstream_checkpoints(self) -> bool:
        """Whether its published checkpoints have upstream's format, rather than an `original` format."""
        return self.upstream_model.config_class.model_type == self.config.base_model_type

    def original_format(self, config_dict: Mapping[str, Any]) -> OriginalFormat | None:
        """`original` if a checkpoint with this `config.json` has that format, else `None`."""
        return self.original if self.original is not None and self.original.matches(dict(config_dict)) else None
