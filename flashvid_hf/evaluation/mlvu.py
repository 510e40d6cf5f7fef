"""MLVU (arXiv 2406.04264), multiple choice: videos from three minutes to two hours, nine tasks.

The prompts are those of lmms-eval 0.7.3 (`tasks/mlvu/`). FlashVID's scripts run its `mlvu_test`, which has no
instruction after the question. Issue 1065 of lmms-eval calls that an oversight; the prompts here have none either. MLVU
itself averages over tasks; `all` in the results averages over questions.
"""

import re
from typing import Any

from .items import Question, VideoItem
from .public_dataset import PublicDataset

_COLUMNS = ("video_name", "question", "task_type", "answer")
DEV = PublicDataset("sy1998/MLVU_dev", _COLUMNS, cache="mlvu", folders=("", "videos"))
TEST = PublicDataset("sy1998/MLVU_Test", _COLUMNS, cache="mlvu_test", folders=("", "videos"))
_OPTION = re.compile(r"^\s*\(([A-H])\)", re.MULTILINE)


def load_mlvu_dev(source: str | None = None, limit: int | None = None) -> list[VideoItem]:
    """The videos of the development set; the type of a question is its task.

    Args:
        source, limit: see `Benchmark`.

    Raises:
        ValueError: see `PublicDataset.read` and `gather`.
    """
    return _load(DEV, source, limit, instruction="\nOnly give the best option.\nBest option: (")


def load_mlvu_test(source: str | None = None, limit: int | None = None) -> list[VideoItem]:
    """The videos of the test set, see `load_mlvu_dev`."""
    return _load(TEST, source, limit, instruction="")


def _load(dataset: PublicDataset, source: str | None, limit: int | None, instruction: str) -> list[VideoItem]:
    questions = ((row["video_name"], _question(i, row, instruction)) for i, row in enumerate(dataset.read(source)))
    return dataset.gather(source, questions, limit)


def _question(number: int, row: dict[str, Any], instruction: str) -> Question:
    text = row["question"]  # the question and its options, in lines like "(A) red"
    found = _OPTION.findall(text) or "ABCD"
    return Question(
        f"{row['task_type']}-{number:04}",
        text + instruction,
        row["answer"],
        row["task_type"],
        letters="".join(sorted({*found, row["answer"]})),
    )
