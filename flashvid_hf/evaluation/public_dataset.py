"""Shared by the public benchmarks: reading annotations, finding video files, and grouping questions by video.

Nothing here has been run on the real repositories, only on small local data sets in their formats.

Formats and prompts are those of lmms-eval 0.7.3 (`lmms_eval/tasks/` of github.com/EvolvingLMMs-Lab/lmms-eval). The
paper's numbers were measured with lmms-eval. Here `Question.is_correct` judges the answers of all benchmarks in the
same way; in lmms-eval each task parses a little differently, and some tasks guess at random if they find no option.
"""

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..video.reading import VideoClip, read_video
from .items import Question, VideoItem

_SHOWN = 3  # names of missing videos that the error lists


@dataclass(frozen=True)
class PublicDataset:
    """Where the annotations and the videos of a public benchmark lie.

    Args:
        repository: id on the Hub.
        columns: the columns that are read.
        cache: the folder below HF_HOME where lmms-eval unpacks the videos.
        split: the split of the annotations.
        revision: revision of the repository; `None` for its default.
        folders: where the videos may lie within a folder, in the order in which they are tried.
        suffixes: endings that are tried instead of a video's own.
    """

    repository: str
    columns: tuple[str, ...]
    cache: str
    split: str = "test"
    revision: str | None = None
    folders: tuple[str, ...] = ("",)
    suffixes: tuple[str, ...] = ()

    def read(self, source: str | None, config: str | None = None) -> list[dict[str, Any]]:
        """The annotations, a dictionary for each question.

        Args:
            source: a folder in the repository's format, with its README that names the files of every configuration,
                or a repository; `None` for `repository`.
            config: the repository's configuration, `None` for its only one.

        Raises:
            ValueError: `datasets` is not installed, or `source` does not have the format.
        """
        try:
            from datasets import load_dataset
        except ImportError as error:
            raise ValueError(
                f"{self.repository!r} is read with `datasets`: `pip install flashvid-hf[eval]` provides it."
            ) from error
        name = source or self.repository
        revision = None if source else self.revision
        try:
            rows = load_dataset(name, config, split=self.split, revision=revision)
        except (OSError, ValueError) as error:  # not found, no network, no such configuration
            raise ValueError(f"`source` {name!r} cannot be read: {error}. {self._advice()}") from error
        missing = sorted({*self.columns} - {*rows.column_names})
        if missing:
            raise ValueError(
                f"`source` {name!r} has no columns {missing}, only {rows.column_names}: it must have the format of "
                f"{self.repository!r}. {self._advice()}"
            )
        return rows.select_columns(list(self.columns)).to_list()

    def gather(
        self, source: str | None, questions: Iterable[tuple[str, Question]], limit: int | None
    ) -> list[VideoItem]:
        """Group questions by video. Each question comes with its video's path within the folder of videos.

        Args:
            source: see `read`. If it is a folder, the videos lie there; otherwise they lie where lmms-eval unpacks
                them.
            limit: the number of videos to take from the start, `None` for all.

        Raises:
            ValueError: a video is missing.
        """
        of_video: dict[str, list[Question]] = defaultdict(list)
        for path, question in questions:
            of_video[path].append(question)
        paths = list(of_video)[:limit]
        root = Path(source) if source and Path(source).is_dir() else self.cache_folder()
        found = {path: self._find(root, path) for path in paths}
        missing = [path for path, file in found.items() if file is None]
        if missing:
            shown = ", ".join(map(repr, missing[:_SHOWN])) + (", ..." if len(missing) > _SHOWN else "")
            raise ValueError(
                f"{len(missing)} of {len(paths)} videos are missing: {shown}. Searched {str(root)!r}, in the folders "
                f"{[*self.folders]}. {self._advice()}"
            )
        return [VideoItem(path, partial(_load, found[path]), tuple(of_video[path])) for path in paths]

    def cache_folder(self) -> Path:
        """The folder into which lmms-eval unpacks the videos."""
        return Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser() / self.cache

    def _find(self, root: Path, path: str) -> Path | None:
        for folder in self.folders:
            file = root / folder / path
            for candidate in (file, *(file.with_suffix(suffix) for suffix in self.suffixes)):
                if candidate.is_file():
                    return candidate
        return None

    def _advice(self) -> str:
        revision = f" --revision {self.revision}" if self.revision else ""
        return (
            f"Get it with `hf download {self.repository} --repo-type dataset{revision} --local-dir DIR`, unpack its "
            f"archives in DIR, and pass `--source DIR`. Or let lmms-eval unpack it into {str(self.cache_folder())!r}."
        )


def letters(options: Sequence[Any]) -> str:
    """The letters of the options: "ABC" for three of them."""
    return "".join(chr(ord("A") + i) for i in range(len(options)))


def _load(file: Path, num_frames: int) -> VideoClip:
    return read_video(file, num_frames=num_frames)
