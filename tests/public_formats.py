"""Small local data sets in the formats of the public benchmarks, each with the questions that must be read from it.

Every clip is a copy of the demo's clip. The annotations are invented. Columns, files and folders are those that
lmms-eval 0.7.3 and the cards of the repositories name.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from checkpoints import CLIP


class Expected(NamedTuple):
    """A question as the model must get it, with right and wrong answers."""

    video: str
    id: str
    type: str
    prompt: str
    right: tuple[str, ...]
    wrong: tuple[str, ...]


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    from datasets import Dataset

    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows).to_parquet(path)


def write_card(folder: Path, *configs: tuple[str, str, str]) -> None:
    """Write the README that names the files of each configuration. A configuration is a name, a split and a file."""
    lines = ["---", "configs:"]
    for name, split, path in configs:
        lines += [f"- config_name: {name}", "  data_files:", f"  - split: {split}", f"    path: {path}"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))


def copy_clip(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(CLIP, path)


def write_videomme(folder: Path) -> None:
    def row(video: str, number: int, duration: str, question: str, options: list[str], answer: str) -> dict[str, Any]:
        return {
            "video_id": f"{number:03}",
            "duration": duration,
            "domain": "Knowledge",
            "sub_category": "Technology",
            "url": f"https://www.youtube.com/watch?v={video}",
            "videoID": video,
            "question_id": f"{number:03}-1",
            "task_type": "Object Recognition",
            "question": question,
            "options": options,
            "answer": answer,
        }

    colors = ["A. Red.", "B. Blue.", "C. Green.", "D. Grey."]
    rows = [
        row("fFjv93ACGo8", 1, "short", "Which colour has the ball?", colors, "A"),
        row("N1cdUjctpG8", 2, "long", "What follows?", ["A. Rain.", "B. Snow.", "C. Sun.", "D. Fog."], "C"),
        row("fFjv93ACGo8", 3, "short", "Which colour has the square?", colors, "B"),
    ]
    write_parquet(folder / "videomme" / "test-00000-of-00001.parquet", rows)
    write_card(folder, ("videomme", "test", "videomme/test-*"))
    copy_clip(folder / "data" / "fFjv93ACGo8.mp4", folder / "data" / "N1cdUjctpG8.mkv")


VIDEOMME = Expected(
    "N1cdUjctpG8.mp4",
    "002-1",
    "long",
    "Select the best answer to the following multiple-choice question based on the video and the subtitles. Respond "
    "with only the letter (A, B, C, or D) of the correct option.\nWhat follows?\nA. Rain.\nB. Snow.\nC. Sun.\nD. Fog.\n"
    "\nAnswer with the option's letter from the given choices directly.",
    right=("C", "C. Sun.", "The answer is (C)."),
    wrong=("A", "Sun", "", "c"),
)


def write_mvbench(folder: Path) -> None:
    from flashvid_hf.evaluation.mvbench import FOLDERS

    rows = {task: [] for task in FOLDERS}
    rows["moving_count"].append(
        {"video": "video_10142.mp4", "question": "How many move?", "candidates": ["1", "2", "3"], "answer": "3"}
    )
    rows["action_count"].append(
        {"video": "video_10142.mp4", "question": "How often?", "candidates": ["one", "two"], "answer": "one"}
    )
    rows["object_existence"].append(
        {"video": "video_10142.mp4", "question": "Is there a cube?", "candidates": ["yes", "no"], "answer": "no"}
    )
    rest = {"video": "other.webm", "question": "Which?", "candidates": ["this", "that"], "answer": "that"}
    (folder / "json").mkdir(parents=True)
    for task, of_task in rows.items():
        (folder / "json" / f"{task}.json").write_text(json.dumps(of_task or [rest]))
    write_card(folder, *((task, "train", f"json/{task}.json") for task in FOLDERS))
    copy_clip(folder / "video" / "clevrer" / "video_validation" / "video_10142.mp4")
    copy_clip(folder / "video" / "perception" / "videos" / "video_10142.mp4")
    copy_clip(*(folder / path / "other.mp4" for path in FOLDERS.values()))


MVBENCH = Expected(
    "clevrer/video_validation/video_10142.mp4",
    "moving_count-0000",
    "moving_count",
    "Question:How many move?\nOption:\n(A) 1\n(B) 2\n(C) 3\nOnly give the best option.\n",
    right=("C", "(C) 3", "Answer: C"),
    wrong=("(A) 1", "3", "D"),
)


def write_longvideobench(folder: Path) -> None:
    def row(number: int, video: str, group: int, options: list[str], correct: int) -> dict[str, Any]:
        return {
            "video_id": video,
            "question": "In a meadow, what rolls?",
            "question_wo_referring_query": "What rolls?",
            **{f"option{i}": option for i, option in enumerate([*options, *["N/A"] * (5 - len(options))])},
            "correct_choice": correct,
            "topic_category": "nature",
            "question_category": "S2E",
            "level": "L1-Perception",
            "id": f"{video}_{number}",
            "video_path": f"{video}.mp4",
            "subtitle_path": f"{video}_en.json",
            "duration_group": group,
            "starting_timestamp_for_subtitles": 0,
            "duration": 8.0,
            "view_count": 1,
        }

    rows = [
        row(0, "86CxyhFV9MI", 15, ["a ball", "a stone", "a wheel", "an egg"], 3),
        row(1, "86CxyhFV9MI", 15, ["a ball", "a stone", "a wheel", "an egg", "nothing"], 4),
        row(0, "Iy0z8nHZr4s", 3600, ["a ball", "a stone"], 0),
    ]
    write_parquet(folder / "data" / "validation-00000-of-00001.parquet", rows)
    write_card(folder, ("default", "validation", "data/validation-*"))
    copy_clip(*(folder / "videos" / f"{name}.mp4" for name in ("86CxyhFV9MI", "Iy0z8nHZr4s")))


LONGVIDEOBENCH = Expected(
    "86CxyhFV9MI.mp4",
    "86CxyhFV9MI_0",
    "up to 15 s",
    "In a meadow, what rolls?\nA. a ball\nB. a stone\nC. a wheel\nD. an egg\n"
    "Answer with the option's letter from the given choices directly.\n",
    right=("D", "D. an egg"),
    wrong=("E", "an egg", "A"),
)


def write_egoschema(folder: Path) -> None:
    options = [f"{letter}. C does {what}." for letter, what in zip("ABCDE", "pqrst", strict=True)]
    rows = [
        {"question_idx": str(i), "question": "What does C do?", "video_idx": video, "option": options, "answer": answer}
        for i, (video, answer) in enumerate((("0074f737-11cb", "4"), ("00b9a0de-c59e", "0")))
    ]
    write_parquet(folder / "Subset" / "test-00000-of-00001.parquet", rows)
    write_parquet(folder / "MC" / "test-00000-of-00001.parquet", [{**row, "answer": None} for row in rows])
    write_card(folder, ("MC", "test", "MC/test-*"), ("Subset", "test", "Subset/test-*"))
    copy_clip(folder / "videos" / "0074f737-11cb.mp4", folder / "videos" / "00b9a0de-c59e.MP4")


EGOSCHEMA = Expected(
    "0074f737-11cb.mp4",
    "0074f737-11cb-0",
    "subset",
    "What does C do?\nA. C does p.\nB. C does q.\nC. C does r.\nD. C does s.\nE. C does t.\n"
    "Answer with the option's letter from the given choices directly.",
    right=("E", "E. C does t."),
    wrong=("A", "C does t", "F"),
)


def mlvu_rows(num_options: int) -> list[dict[str, Any]]:
    options = "".join(f"\n({letter}) {word}" for letter, word in zip("ABCDEF"[:num_options], "uvwxyz", strict=False))
    return [
        {
            "video_name": video,
            "duration": 480.0,
            "question": f"What is in the middle?{options}",
            "candidates": ["u", "v"],
            "answer": answer,
            "task_type": task,
            "question_id": str(i),
        }
        for i, (video, task, answer) in enumerate(
            (("needle_1.mp4", "needle", "ABCDEF"[num_options - 1]), ("movie101_1.mp4", "plotQA", "A"))
        )
    ]


def write_mlvu(folder: Path, num_options: int) -> None:
    write_parquet(folder / "data" / "test-00000-of-00001.parquet", mlvu_rows(num_options))
    write_card(folder, ("default", "test", "data/test-*"))
    copy_clip(folder / "needle_1.mp4", folder / "movie101_1.mp4")


MLVU_DEV = Expected(
    "needle_1.mp4",
    "needle-0000",
    "needle",
    "What is in the middle?\n(A) u\n(B) v\n(C) w\n(D) x\nOnly give the best option.\nBest option: (",
    right=("D", "D) x", "(D)"),
    wrong=("x", "A) u"),
)
MLVU_TEST = Expected(
    "needle_1.mp4",
    "needle-0000",
    "needle",
    "What is in the middle?\n(A) u\n(B) v\n(C) w\n(D) x\n(E) y\n(F) z",
    right=("F", "(F) z"),
    wrong=("A", "z"),
)


class Format(NamedTuple):
    """A benchmark: the function that writes its data, one of its questions, and its numbers of videos and questions."""

    write: Callable[[Path], None]
    expected: Expected
    videos: int
    questions: int


FORMATS = {
    "videomme": Format(write_videomme, VIDEOMME, 2, 3),
    "mvbench": Format(write_mvbench, MVBENCH, 13, 20),
    "longvideobench": Format(write_longvideobench, LONGVIDEOBENCH, 2, 3),
    "egoschema": Format(write_egoschema, EGOSCHEMA, 2, 2),
    "mlvu_dev": Format(lambda folder: write_mlvu(folder, 4), MLVU_DEV, 2, 2),
    "mlvu_test": Format(lambda folder: write_mlvu(folder, 6), MLVU_TEST, 2, 2),
}
