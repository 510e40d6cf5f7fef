"""MovingShapes as a `datasets.Dataset`: one row for each question in each form, made from seeds on every machine."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..items import FORMS
from .questions import TYPES, make_prompts
from .scenes import make_scene

if TYPE_CHECKING:
    from datasets import Dataset

SEEDS_PER_SPLIT = 1_000_000_000  # most videos that a split can have
SPLITS = ("train", "validation", "test")


def video_seeds(split: str, size: int) -> range:
    """The seeds of the first `size` videos of a split. Splits have no seed in common.

    Raises:
        ValueError: the split is unknown, or `size` is below 1 or more than a split has.
    """
    if split not in SPLITS:
        raise ValueError(f"`split` is {split!r}, but must be one of {', '.join(SPLITS)}")
    if not 1 <= size <= SEEDS_PER_SPLIT:
        raise ValueError(f"`size` is {size} videos, but must be from 1 to {SEEDS_PER_SPLIT}; 200 measure well enough")
    first = SPLITS.index(split) * SEEDS_PER_SPLIT
    return range(first, first + size)


def rows(seeds: range) -> Iterator[dict[str, Any]]:
    """The rows of some videos, in order."""
    for seed in seeds:
        scene = make_scene(seed)
        for prompt in make_prompts(scene):
            yield {
                "seed": seed,
                "kind": scene.kind,
                "type": prompt.type,
                "form": prompt.form,
                "prompt": prompt.text,
                "answer": prompt.answer,
            }


def moving_shapes(split: str, size: int, cache_dir: str | None = None) -> "Dataset":
    """The questions about the first `size` videos of a split.

    The frames of a row are `render(make_scene(row["seed"]))`, its file is `write_clip(make_scene(row["seed"]), path)`.

    Args:
        split: `train`, `validation` or `test`.
        size: number of videos; each has 16 or 18 rows, and the rows of a video follow each other.
        cache_dir: the folder in which `datasets` keeps the table; default: its own.

    Returns:
        rows with `seed` and `kind` of the scene, `type` and `form` of the question, `prompt` and `answer`.

    Raises:
        ImportError: `datasets` is not installed (`pip install "flashvid-hf[eval]"`).
        ValueError: the split or the size is not possible.
    """
    import datasets

    features = {
        "seed": datasets.Value("int64"),
        "kind": datasets.Value("string"),
        "type": datasets.ClassLabel(names=list(TYPES)),
        "form": datasets.ClassLabel(names=list(FORMS)),
        "prompt": datasets.Value("string"),
        "answer": datasets.Value("string"),
    }
    return datasets.Dataset.from_generator(
        rows,
        features=datasets.Features(features),
        gen_kwargs={"seeds": video_seeds(split, size)},
        split=datasets.NamedSplit(split),
        cache_dir=cache_dir,
    )
