"""Programs in clean interpreters: Hub offline, caches of their own, and no `flashvid_hf` unless asked for."""

import os
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from huggingface_hub.constants import HF_HUB_CACHE

from .prepared_interpreter import Ended, PreparedInterpreter

PACKAGE_ROOT = Path(__file__).resolve().parents[2]  # must be on the path to import `flashvid_hf`
# The made-up commit of every folder in a made-up Hub cache, and the branch and tag that stand for it.
COMMIT = "0123456789abcdef0123456789abcdef01234567"
REVISIONS = ("main", "v1")
TIME_LIMIT = 3600.0  # seconds; a program that takes longer counts as hanging
# Prefixes of the variables that lead to the user's caches and accounts.
_PERSONAL = ("HF_", "HUGGINGFACE_", "TRANSFORMERS_")
# What nearly every program imports. With torch this takes longer than the rest of most programs.
_MODULES = ("torchvision", "transformers", "transformers.models.auto.modeling_auto", "transformers.pipelines")

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
                code, *arguments, home=self.root, directory=self.directory, time_limit=TIME_LIMIT
            )
        except subprocess.TimeoutExpired:
            return 124, f"it did not end within {TIME_LIMIT:.0f} seconds"
        return ended.status, ended.errors


@contextmanager
def workplace() -> Iterator[Workplace]:
    """A `Workplace` that is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="flashvid-check-", ignore_cleanup_errors=True) as root:
        yield Workplace(Path(root).resolve())


class CleanInterpreter:
    """Runs programs one after the other, each in an interpreter with a Hugging Face home of its own, and offline.

    huggingface_hub and transformers read the place of their caches when they are imported. They are imported once, with
    a home that is a link, and the link leads each program to its own home.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._folder = tempfile.TemporaryDirectory(prefix="flashvid-home-")
        self._home = Path(self._folder.name, "home")
        self._interpreter = PreparedInterpreter(self._environment(), modules=_MODULES, read=_PERSONAL)

    def run(self, program: str, *arguments: str, home: Path, directory: Path, time_limit: float | None = None) -> Ended:
        """As `PreparedInterpreter.run`, with a directory `home` that holds the caches `hub` and `modules`."""
        home.mkdir(exist_ok=True)
        with self._lock:
            self._home.unlink(missing_ok=True)
            self._home.symlink_to(home.resolve())
            return self._interpreter.run(
                program, *arguments, directory=directory, environment=self._environment(), time_limit=time_limit
            )

    def _environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(_PERSONAL)}
        return {**inherited, "HF_HOME": str(self._home), "HF_HUB_OFFLINE": "1"}


@cache
def shared_interpreter() -> CleanInterpreter:
    """The interpreter for all folders that this process checks."""
    return CleanInterpreter()
