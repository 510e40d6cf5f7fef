"""LongVideoBench (arXiv 2407.15754), validation split: 1337 questions with up to five options, videos of up to an hour.

The questions are asked without subtitles, with the prompts of lmms-eval 0.7.3
(`tasks/longvideobench/longvideobench_val_v.yaml` and `utils.py`).
"""

from collections.abc import Sequence
from typing import Any

from .items import Question, VideoItem
from .public_dataset import PublicDataset, letters

_OPTIONS = tuple(f"option{i}" for i in range(5))
DATASET = PublicDataset(
    "longvideobench/LongVideoBench",
    ("id", "video_path", "duration_group", "question", *_OPTIONS, "correct_choice"),
    cache="datasets/longvideobench",
    split="validation",
    folders=("videos", ""),
)


def make_prompt(question: str, options: Sequence[str]) -> str:
    """The question with its options, to which the letters are added here."""
    lines = [f"{letter}. {text}" for letter, text in zip(letters(options), options, strict=True)]
    return "\n".join([question, *lines, "Answer with the option's letter from the given choices directly.\n"])


def load_longvideobench(source: str | None = None, limit: int | None = None) -> list[VideoItem]:
    """The videos; the type of a question is its video's duration group, named by the longest duration in seconds.

    Args:
        source, limit: see `Benchmark`.

    Raises:
        ValueError: see `PublicDataset.read` and `gather`.
    """
    questions = ((row["video_path"], _question(row)) for row in DATASET.read(source))
    return DATASET.gather(source, questions, limit)


def _question(row: dict[str, Any]) -> Question:
    options = [row[name] for name in _OPTIONS if row[name] not in (None, "N/A")]
    return Question(
        row["id"],
        make_prompt(row["question"], options),
        letters(options)[int(row["correct_choice"])],
        f"up to {row['duration_group']} s",
        letters=letters(options),
    )
