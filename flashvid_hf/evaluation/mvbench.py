"""MVBench (arXiv 2311.17005): 20 tasks of 200 questions each, about clips of a few seconds from eleven sources.

The prompts are those of lmms-eval 0.7.3 (`tasks/mvbench/`). As in lmms-eval, the clips come from the repository's
branch `video`, where they are cut to the part that the question is about.
"""

from collections.abc import Iterator, Sequence

from .items import Question, VideoItem
from .public_dataset import PublicDataset, letters

DATASET = PublicDataset(
    "OpenGVLab/MVBench",
    ("video", "question", "candidates", "answer"),
    cache="mvbench_video",
    split="train",
    revision="video",
    folders=("", "video", "data0613", "video/data0613"),
    suffixes=(".mp4", ".avi", ".webm"),
)
# The folder of the videos for each task; a task is a configuration of the repository. From `DATA_LIST` of lmms-eval's
# `tasks/mvbench/utils.py`.
FOLDERS = {
    "action_sequence": "star/Charades_segment",
    "moving_count": "clevrer/video_validation",
    "action_prediction": "star/Charades_segment",
    "episodic_reasoning": "tvqa/video_fps3_hq_segment",
    "action_antonym": "ssv2_video_mp4",
    "action_count": "perception/videos",
    "scene_transition": "scene_qa/video",
    "object_shuffle": "perception/videos",
    "object_existence": "clevrer/video_validation",
    "fine_grained_pose": "nturgbd_convert",
    "unexpected_action": "FunQA_test/test",
    "moving_direction": "clevrer/video_validation",
    "state_change": "perception/videos",
    "object_interaction": "star/Charades_segment",
    "character_order": "perception/videos",
    "action_localization": "sta/sta_video_segment",
    "counterfactual_inference": "clevrer/video_validation",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "moving_attribute": "clevrer/video_validation",
    "egocentric_navigation": "vlnqa",
}


def make_prompt(question: str, candidates: Sequence[str]) -> str:
    """The question with its options, to which the letters are added here."""
    options = "".join(f"({letter}) {text}\n" for letter, text in zip(letters(candidates), candidates, strict=True))
    return f"Question:{question}\nOption:\n{options}Only give the best option.\n"


def load_mvbench(source: str | None = None, limit: int | None = None) -> list[VideoItem]:
    """The videos, task after task; the type of a question is its task.

    Args:
        source, limit: see `Benchmark`.

    Raises:
        ValueError: see `PublicDataset.read` and `gather`; also if an answer is none of the options.
    """
    return DATASET.gather(source, _questions(source), limit)


def _questions(source: str | None) -> Iterator[tuple[str, Question]]:
    for task, folder in FOLDERS.items():
        for i, row in enumerate(DATASET.read(source, task)):
            candidates = row["candidates"]
            if row["answer"] not in candidates:
                raise ValueError(
                    f"`answer` of question {i} of {task!r} is {row['answer']!r}, which is none of its `candidates` "
                    f"{candidates}. Take the data of {DATASET.repository!r}, branch {DATASET.revision!r}."
                )
            answer = letters(candidates)[candidates.index(row["answer"])]
            prompt = make_prompt(row["question"], candidates)
            yield (
                f"{folder}/{row['video']}",
                Question(f"{task}-{i:04}", prompt, answer, task, letters=letters(candidates)),
            )
