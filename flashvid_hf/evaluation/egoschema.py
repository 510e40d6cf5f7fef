"""EgoSchema (arXiv 2308.09126), subset: 500 first-person videos of three minutes, a question with five options each.

The answers of the subset are public; those of all 5031 questions are not. The prompts are those of lmms-eval 0.7.3
(`tasks/egoschema/egoschema_subset.yaml` and `utils.py`).
"""

from collections.abc import Sequence
from typing import Any

from .items import Question, VideoItem
from .public_dataset import PublicDataset, letters

# lmms-eval 0.7.3 reads "lmms-eval/egoschema", earlier versions read this repository.
DATASET = PublicDataset(
    "lmms-lab/egoschema",
    ("question_idx", "video_idx", "question", "option", "answer"),
    cache="egoschema",
    folders=("videos", ""),
    suffixes=(".MP4",),
)


def make_prompt(question: str, options: Sequence[str]) -> str:
    """The question with its options, which already begin with their letters."""
    return "\n".join([question, *options, "Answer with the option's letter from the given choices directly."])


def load_egoschema(source: str | None = None, limit: int | None = None) -> list[VideoItem]:
    """The videos of the subset; all questions are of one type.

    Args:
        source, limit: see `Benchmark`.

    Raises:
        ValueError: see `PublicDataset.read` and `gather`.
    """
    questions = ((row["video_idx"] + ".mp4", _question(row)) for row in DATASET.read(source, "Subset"))
    return DATASET.gather(source, questions, limit)


def _question(row: dict[str, Any]) -> Question:
    options = row["option"]
    answer = letters(options)[int(row["answer"])]  # the data set gives the index of the option
    prompt = make_prompt(row["question"], options)
    return Question(f"{row['video_idx']}-{row['question_idx']}", prompt, answer, "subset", letters=letters(options))
