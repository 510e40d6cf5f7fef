"""The folder of an evaluation in progress: its settings, and the answers so far.

`evaluation.json` has the settings. `answers/` has one file of JSON lines for each process, with one line for each video
and run.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from .runner import Answer
from .whole_files import write_whole

_SETTINGS = "evaluation.json"
_NEXT_STEP = "Choose another folder, or delete this one."


@dataclass(frozen=True)
class Evaluation:
    """Everything that the answers depend on, except the versions of the libraries.

    `model_fingerprint` and `questions_fingerprint` say which content the names `model` and `source` stood for, see
    `fingerprint`.
    """

    model: str
    benchmark: str
    source: str | None
    limit: int | None
    num_frames: int
    max_new_tokens: int
    batch_size: int
    dtype: str
    runs: dict[str, dict[str, Any]]
    model_fingerprint: str
    questions_fingerprint: str


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
        ValueError: the folder has answers with other settings, is no folder, or nobody can tell what its answers
            belong to.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"`--output` is {str(output)!r}, which is a file: it must be a folder. Choose another one.")
    noted = _read_settings(output)
    for name, value in settings.items() if noted else ():
        shared = noted[name].keys() & value.keys() if name == "runs" else None
        same = noted[name] == value if shared is None else all(noted[name][run] == value[run] for run in shared)
        if not same:
            raise ValueError(
                f"`--output` is {str(output)!r}, which has answers with `{name}` {noted[name]!r}, not "
                f"{value!r}. {_NEXT_STEP}"
            )


def prepare_output(output: Path, evaluation: Evaluation) -> None:
    """Write down what is evaluated, so that answers with other settings are never mixed in.

    Raises:
        ValueError: the folder has answers with other settings.
    """
    settings = json.loads(json.dumps(asdict(evaluation)))
    check_output(output, settings)
    settings["runs"] = {**_read_settings(output).get("runs", {}), **settings["runs"]}
    answers_folder(output).mkdir(parents=True, exist_ok=True)
    write_whole(output / _SETTINGS, json.dumps(settings, indent=1) + "\n")


def read_answers(folder: Path) -> list[Answer]:
    """All answers in a folder. A line that was broken off does not count: its questions are asked again.

    Raises:
        ValueError: a file or a whole line of it is something else than answers.
    """
    answers = {}
    for path in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(_read(path).splitlines(), 1):
            try:
                answers.update({(answer.run, answer.question): answer for answer in _read_line(line)})
            except json.JSONDecodeError:
                continue
            except (TypeError, RecursionError) as error:
                raise ValueError(f"{path}:{number}: holds no answers ({error}). {_NEXT_STEP}") from error
    return sorted(answers.values(), key=lambda answer: (answer.run, answer.question))


def _read_line(line: str) -> list[Answer]:
    of_video = [Answer(**answer) for answer in json.loads(line)]
    for answer in of_video:
        for name, kind in Answer.__annotations__.items():
            value = getattr(answer, name)
            if type(value) is not kind and not (kind is float and type(value) is int):
                raise TypeError(f"`{name}` is {value!r}, not of type {kind.__name__}")
    return of_video


def _read_settings(output: Path) -> dict[str, Any]:
    """What `evaluation.json` holds; empty if the folder has no evaluation.

    Raises:
        ValueError: it holds something else, or the folder has answers without it.
    """
    path, names = output / _SETTINGS, {field.name for field in fields(Evaluation)}
    if not path.exists():
        if any(file.stat().st_size for file in answers_folder(output).glob("*.jsonl")):
            raise ValueError(f"{output} has answers and no {_SETTINGS} that says what they belong to. {_NEXT_STEP}")
        return {}
    try:
        noted = json.loads(_read(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: is no JSON ({error}). {_NEXT_STEP}") from error
    if not isinstance(noted, dict) or not isinstance(noted.get("runs"), dict) or not names <= noted.keys():
        missing = ", ".join(f"`{name}`" for name in sorted(names - set(noted if isinstance(noted, dict) else ())))
        wrong = f"it has no {missing}" if missing else "its `runs` are no JSON object"
        raise ValueError(f"{path}: is not of this version of `flashvid-hf evaluate` ({wrong}). {_NEXT_STEP}")
    return noted


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({error}). {_NEXT_STEP}") from error


def end_last_line(path: Path) -> None:
    """Put a line break after an incomplete last line, so that the next answers begin a new line."""
    if path.exists() and path.read_bytes()[-1:] not in (b"", b"\n"):
        with path.open("a") as file:
            file.write("\n")
