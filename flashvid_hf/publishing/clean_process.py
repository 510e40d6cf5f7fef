"""Programs in clean interpreters: Hub offline, caches and a home of their own, no network and no credentials where the
system allows it, and no `flashvid_hf` unless asked for."""

import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from huggingface_hub.constants import HF_HUB_CACHE

from . import isolation
from .folder_files import list_files
from .prepared_interpreter import Ended, PreparedInterpreter

PACKAGE_ROOT = Path(__file__).resolve().parents[2]  # must be on the path to import `flashvid_hf`
# The made-up commit of every folder in a made-up Hub cache, and the branch and tag that stand for it.
COMMIT = "0123456789abcdef0123456789abcdef01234567"
REVISIONS = ("main", "v1")
# Seconds; a program that takes longer counts as hanging. The largest models take most of it on a CPU.
TIME_LIMIT = 3600.0
# Bytes of memory that a program may have: what torch and the videos need, and the weights several times, because the
# probe converts them to float32 and loads upstream's model beside them.
MEMORY_BASE, MEMORY_FACTOR = 16 * 2**30, 12

# The only variables that programs inherit: where Python, its libraries and the GPUs are, languages, and numbers of
# threads. A variable with a token, a proxy or a path to credentials is not among them.
INHERITED = (
    *("PATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "SYSTEMROOT", "LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "TZ"),
    *("PYTHONHOME", "PYTHONPATH", "PYTHONHASHSEED", "PYTHONUTF8", "PYTHONDONTWRITEBYTECODE"),
    *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"),
)

# Endings of the files that a base may bring along. Its code is not among them.
_DATA = (".json", ".jinja", ".txt", ".model", ".safetensors")
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
_ISOLATE = """\
import sys as _sys

_sys.path[:] = [_path for _path in _sys.path if _path]  # nothing is imported from the working directory
_isolation = {{}}
exec(compile({text!r}, "isolation.py", "exec"), _isolation)
PROBLEMS = _isolation["isolate"](seconds={seconds!r}, memory={memory!r})
"""
_RUN = 'with open({file!r}, encoding="utf-8") as _file:\n    exec(compile(_file.read(), {name!r}, "exec"))\n'


class Workplace:
    """A directory in which programs run, with a Hub cache in the form of downloads, and a cache for remote code.

    Args:
        root: an empty directory.
        weight_bytes: size of the weights that the programs load; the limit on memory depends on it.
    """

    def __init__(self, root: Path, weight_bytes: int = 0):
        self.root = root
        self.memory = MEMORY_BASE + MEMORY_FACTOR * weight_bytes
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
        for path in list_files(folder):
            (snapshot / path).parent.mkdir(parents=True, exist_ok=True)
            (snapshot / path).symlink_to((folder / path).resolve())

    def add_folder(self, name: str, folder: Path) -> None:
        """Put a copy of a folder under this name into the working directory. Programs may save into it.

        Its weights are links: who saves weights replaces the links.
        """
        for path in list_files(folder):
            copy = self.directory / name / path
            copy.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".safetensors":
                copy.symlink_to((folder / path).resolve())
            else:
                copy.write_bytes((folder / path).read_bytes())

    def link_cache(self, hub_id: str) -> None:
        """Make a Hub id load from the user's own cache, if it is there: its data, and no code that it has."""
        entry = Path(HF_HUB_CACHE, f"models--{hub_id.replace('/', '--')}")
        copy = self.root / "hub" / entry.name
        if not entry.is_dir() or copy.exists():
            return
        for kind in ("refs", "snapshots"):
            for path in (entry / kind).rglob("*"):
                place = copy / path.relative_to(entry)
                if path.is_file() and (kind == "refs" or path.suffix in _DATA):
                    place.parent.mkdir(parents=True, exist_ok=True)
                    place.symlink_to(path.resolve())

    def run(self, program: str, *arguments: str, name: str, with_package: bool = False) -> tuple[int, str]:
        """Run a program and return its exit status and what it wrote to stderr.

        Args:
            program: Python code.
            name: file name of the program in tracebacks.
            with_package: whether it can import `flashvid_hf`.
        """
        file = self.root / "program.py"
        file.write_text(program, encoding="utf-8")
        code = self._isolate() + (_PERMIT if with_package else _BLOCK) + _RUN.format(file=str(file), name=name)
        try:
            ended = shared_interpreter().run(
                code, *arguments, home=self.root, directory=self.directory, time_limit=TIME_LIMIT
            )
        except subprocess.TimeoutExpired:
            return 124, f"it did not end within {TIME_LIMIT:.0f} seconds"
        return ended.status, ended.errors

    def find_problems(self) -> list[str]:
        """What programs here cannot be kept from, one sentence for each; empty where the system allows everything."""
        code = self._isolate() + "import json\nprint(json.dumps(PROBLEMS))"
        ended = shared_interpreter().run(code, home=self.root, directory=self.directory)
        return json.loads(ended.output) if ended.status == 0 else [f"the code cannot be isolated: {ended.errors}"]

    def _isolate(self) -> str:
        text = Path(isolation.__file__).read_text(encoding="utf-8")
        seconds = TIME_LIMIT * (os.cpu_count() or 1)  # all threads together
        return _ISOLATE.format(text=text, seconds=seconds, memory=self.memory)


@contextmanager
def workplace(weight_bytes: int = 0) -> Iterator[Workplace]:
    """A `Workplace` that is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="flashvid-check-", ignore_cleanup_errors=True) as root:
        yield Workplace(Path(root).resolve(), weight_bytes)


class CleanInterpreter:
    """Runs programs one after the other, each in an interpreter with homes of its own, and offline.

    A program has the variables `INHERITED` and no other of the user's, and a home directory that is empty at first.
    huggingface_hub and transformers read the place of their caches when they are imported. They are imported once, with
    a home that is a link, and the link leads each program to its own home.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._folder = tempfile.TemporaryDirectory(prefix="flashvid-home-")
        self._home = Path(self._folder.name, "home")
        self._interpreter = PreparedInterpreter(self._environment(), modules=_MODULES)

    def run(self, program: str, *arguments: str, home: Path, directory: Path, time_limit: float | None = None) -> Ended:
        """As `PreparedInterpreter.run`, with a directory `home` that holds the caches `hub` and `modules`."""
        for name in ("", "user", "tmp"):
            (home / name).mkdir(exist_ok=True)
        with self._lock:
            self._home.unlink(missing_ok=True)
            self._home.symlink_to(home.resolve())
            return self._interpreter.run(
                program, *arguments, directory=directory, environment=self._environment(), time_limit=time_limit
            )

    def _environment(self) -> dict[str, str]:
        user = str(self._home / "user")
        return {
            **{name: os.environ[name] for name in INHERITED if name in os.environ},
            "HOME": user,
            "USERPROFILE": user,  # the home on Windows
            "TMPDIR": str(self._home / "tmp"),
            "HF_HOME": str(self._home),
            "HF_HUB_OFFLINE": "1",
        }


@cache
def shared_interpreter() -> CleanInterpreter:
    """The interpreter for all folders that this process checks."""
    return CleanInterpreter()
