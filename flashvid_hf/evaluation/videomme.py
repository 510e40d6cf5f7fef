"""Video-MME (arXiv 2405.21075): 900 videos of up to an hour, three questions with four options about each.

The questions are asked without subtitles, with the prompts of lmms-eval 0.7.3 (`tasks/videomme/videomme.yaml` and
`utils.py`). lmms-eval has separate prompts for two models, LLaVA-Video and Qwen3-VL, and FlashVID's scripts use them.
"""

from collections.abc import Sequence

from ..compression.validation import check_choice
from .items import Question, VideoItem
from .public_dataset import PublicDataset, letters

# lmms-eval 0.7.3 reads "lmms-eval/Video-MME", earlier versions read this repository.
DATASET = PublicDataset(
    "lmms-lab/Video-MME",
    ("videoID", "question_id", "duration", "question", "options", "answer"),
    cache="videomme",
    folders=("data", "videos", ""),
    suffixes=(".MP4", ".mkv"),
)
_INSTRUCTION = (
    "Select the best answer to the following multiple-choice question based on the video and the subtitles. Respond "
    "with only the letter (A, B, C, or D) of the correct option."
)
PROMPTS = {
    "default": (
        _INSTRUCTION + "\n{question}\n{options}\n\nAnswer with the option's letter from the given choices directly."
    ),
    "llava_vid": _INSTRUCTION + "\n{question}\n{options}\nThe best answer is:",
    "qwen3_vl": "Question: {question}\nOptions:\n{options}\nAnswer with the option letter only.",
}


def make_prompt(question: str, options: Sequence[str], prompt: str = "default") -> str:
    """The question with its options, which already begin with their letters."""
    return PROMPTS[prompt].format(question=question, options="\n".join(options))


def load_videomme(source: str | None = None, limit: int | None = None, prompt: str = "default") -> list[VideoItem]:
    """The videos; the type of a question is the duration of its video: short, medium or long.

    Args:
        source, limit: see `Benchmark`.
        prompt: one of `PROMPTS`.

    Raises:
        ValueError: see `PublicDataset.read` and `gather`; also if there is no such prompt.
    """
    check_choice("prompt", prompt, tuple(PROMPTS))
    questions = (
        (
            row["videoID"] + ".mp4",
            Question(
                row["question_id"],
                make_prompt(row["question"], row["options"], prompt),
                row["answer"],
                row["duration"],
                letters=letters(row["options"]),
            ),
        )
        for row in DATASET.read(source)
    )
    return DATASET.gather(source, questions, limit)
