"""Programs in clean interpreters: Hub offline, caches of their own, and no `flashvid_hf` unless asked for."""

import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from huggingface_hub.constants import HF_HUB_CACHE

from .prepared_interpreter import PreparedInterpreter

PACKAGE_ROOT = Path(__file__).resolve().parents[2]  # must be on the path to import `flashvid_hf`
# The made-up commit of every folder in a made-up Hub cache, and the branch and tag that stand for it.
COMMIT = "0123456789abcdef0123456789abcdef01234567"
REVISIONS = ("main", "v1")
TIME_LIMIT = 3600.0  # seconds; a program that takes longer counts as hanging

_BLOCK = """\
import sys as _sys


class _Blocked:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "flashvid_hf":
            raise ModuleNotFoundError("No module named 'flashvid_hf': it is blocked here", name="flashvid_hf")


_sys.meta_path.insert(0, _Blocked)
"""
_PERMIT = f"import sys as _sys\n\n_sys.path.insert(0, {str(PACKAGE_ROOT)!r})\n"
_RUN = 'with open({file!r}, encoding="utf-8") as _file:\n    exec(compile(_file.read(), {name!r}, "exec"))\n'


class Workplace:
    """A directory in which programs run, with a Hub cache in the form of downloads, and a cache for remote code."""

    def __init__(self, root: Path):
        self.root = root
        self.directory = root / "work"  # where the programs start
        self.directory.mkdir()
        (root / "hub").mkdir()

    def add_to_cache(self, hub_id: str, folder: Path) -> None:
        """Make a Hub id load a folder, at each of `REVISIONS`."""
        entry = self.root / "hub" / f"models--{hub_id.replace('/', '--')}"
        for revision in REVISIONS:
            reference = entry / "refs" / revision
            reference.parent.mkdir(parents=True, exist_ok=True)
            reference.write_text(COMMIT)
        snapshot = entry / "snapshots" / COMMIT
        snapshot.mkdir(parents=True)
        for path in folder.iterdir():
            (snapshot / path.name).symlink_to(path.resolve())

    def link_cache(self, hub_id: str) -> None:
        """Make a Hub id load from the user's own cache, if it is there."""
        entry = Path(HF_HUB_CACHE, f"models--{hub_id.replace('/', '--')}")
        link = self.root / "hub" / entry.name
        if entry.is_dir() and not link.exists():
            link.symlink_to(entry.resolve())

    def run(self, program: str, *arguments: str, name: str, with_package: bool = False) -> tuple[int, str]:
        """Run a program and return its exit status and what it wrote to stderr.

        Args:
            program: Python code.
            name: file name of the program in tracebacks.
            with_package: whether it can import `flashvid_hf`.
        """
        file = self.root / "program.py"
        file.write_text(program, encoding="utf-8")
        code = (_PERMIT if with_package else _BLOCK) + _RUN.format(file=str(file), name=name)
        try:
            ended = shared_interpreter().run(
                code,
                *arguments,
                directory=self.directory,
                environment={**_inherited(os.environ), **self._environment()},
                time_limit=TIME_LIMIT,
            )
        except subprocess.TimeoutExpired:
            return 124, f"it did not end within {TIME_LIMIT:.0f} seconds"
        return ended.status, ended.errors

    def _environment(self) -> dict[str, str]:
        return {
            "HF_HOME": str(self.root / "home"),
            "HF_HUB_CACHE": str(self.root / "hub"),
            "HF_MODULES_CACHE": str(self.root / "modules"),
            "HF_HUB_OFFLINE": "1",
        }


@contextmanager
def workplace() -> Iterator[Workplace]:
    """A `Workplace` that is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="flashvid-check-", ignore_cleanup_errors=True) as root:
        yield Workplace(Path(root).resolve())


@cache
def shared_interpreter() -> PreparedInterpreter:
    """The interpreter for all folders that this process checks."""
    return PreparedInterpreter(_inherited(os.environ))


def _inherited(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without the variables that lead to the user's caches and accounts."""
    left_out = ("HF_", "HUGGINGFACE_", "TRANSFORMERS_")
    return {name: value for name, value in environment.items() if not name.startswith(left_out)}
