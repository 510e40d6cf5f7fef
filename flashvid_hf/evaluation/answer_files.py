"""The folder of an evaluation in progress: its settings, and the answers so far.

`evaluation.json` has the settings. `answers/` has one file of JSON lines for each process, with one line for each video
and run.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .runner import Answer

_SETTINGS = "evaluation.json"


@dataclass(frozen=True)
class Evaluation:
    """Everything that the answers depend on, except the versions of the libraries."""

    model: str
    benchmark: str
    source: str | None
    limit: int | None
    num_frames: int
    max_new_tokens: int
    batch_size: int
    dtype: str
    runs: dict[str, dict[str, Any]]


def answers_folder(output: Path) -> Path:
    """The folder that holds the answers of an evaluation."""
    return output / "answers"


def check_output(output: Path, settings: Mapping[str, Any]) -> None:
    """Refuse a folder whose answers belong to other settings.

    Args:
        output: the folder of an evaluation; it may be missing.
        settings: fields of `Evaluation`, all of them or those that are already known. Of `runs`, only those are
            compared that the folder has too.

    Raises:
        ValueError: the folder has answers with other settings, or is no folder.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"`--output` is {str(output)!r}, which is a file: it must be a folder. Choose another one.")
    path = output / _SETTINGS
    if not path.exists():
        return
    noted = json.loads(path.read_text())
    for name, value in settings.items():
        shared = noted[name].keys() & value.keys() if name == "runs" else None
        same = noted[name] == value if shared is None else all(noted[name][run] == value[run] for run in shared)
        if not same:
            raise ValueError(
                f"`--output` is {str(output)!r}, which has answers with `{name}` {noted[name]!r}, not "
                f"{value!r}. Choose another folder, or delete this one."
            )


def prepare_output(output: Path, evaluation: Evaluation) -> None:
    """Write down what is evaluated, so that answers with other settings are never mixed in.

    Raises:
        ValueError: the folder has answers with other settings.
    """
    path, settings = output / _SETTINGS, json.loads(json.dumps(asdict(evaluation)))
    check_output(output, settings)
    if path.exists():
        settings["runs"] = {**json.loads(path.read_text())["runs"], **settings["runs"]}
    answers_folder(output).mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings, indent=1) + "\n")


def read_answers(folder: Path) -> list[Answer]:
    """All answers in a folder; an incomplete last line does not count."""
    answers = {}
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            try:
                of_video = [Answer(**answer) for answer in json.loads(line)]
            except json.JSONDecodeError:
                continue
            answers.update({(answer.run, answer.question): answer for answer in of_video})
    return sorted(answers.values(), key=lambda answer: (answer.run, answer.question))


def end_last_line(path: Path) -> None:
    """Put a line break after an incomplete last line, so that the next answers begin a new line."""
    if path.exists() and path.read_bytes()[-1:] not in (b"", b"\n"):
        with path.open("a") as file:
            file.write("\n")
