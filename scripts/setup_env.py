#!/usr/bin/env python3
"""Make the virtual environment in which the tests, the linters and the demo run.

    python3 scripts/setup_env.py [--venv .venv] [--constraints constraints.txt | --latest] [--extras test,dev,bench]

Installs the project in editable mode with the tested versions of everything. A second run returns at once as long as
`pyproject.toml`, the constraints, this script and the interpreter are the same. With `--latest` there are no
constraints: every run upgrades every package to the newest release that the project's own ranges allow. Needs Python's
standard library only.

Three things need care, and are why this is more than one `pip install`:

* The constraints of this project replace those of the machine, which pip's settings may name. Two exact pins of one
  package would conflict.
* torch is installed first and torchvision second, without its dependencies. So the build of torch that pip finds, for
  CPU or CUDA, stays: no later step has a reason to look for another.
* torchvision's wheels on the package index are built for CUDA. Beside a CPU build of torch their compiled library does
  not load, and `import torchvision` then raises because two operators were never declared, although everything that
  video processors use is plain Python. Only in that case, a small start-up file in the environment declares the two
  operators when torchvision is first imported. A matching pair of torch and torchvision gets no such file.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STAMP = "setup-stamp.txt"
STARTUP_MODULE = "_torchvision_cpu_startup"
STARTUP_SOURCE = '''\
"""Declare the operators that a CUDA build of torchvision misses beside a CPU build of torch.

Written by scripts/setup_env.py; run at every start of this environment's interpreter through the .pth file of the same
name. It costs a start next to nothing: torch is imported only once torchvision is.
"""

import sys
from importlib.machinery import PathFinder, SourceFileLoader

_libraries = []  # a library's declarations last as long as the object


def _declare_operators():
    import torch

    if torch.version.cuda is not None:  # torch was replaced since: torchvision's own library declares them
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        try:
            library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        except RuntimeError:  # declared already
            pass
    _libraries.append(library)


class _TorchvisionLoader(SourceFileLoader):
    def exec_module(self, module):
        _declare_operators()
        super().exec_module(module)


class _TorchvisionFinder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != "torchvision":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _TorchvisionLoader(spec.loader.name, spec.loader.path)
        return spec


sys.meta_path.insert(0, _TorchvisionFinder)
'''


def say(message: str) -> None:
    print(f"setup_env: {message}", flush=True)  # flushed, so that it comes before pip's output


def environment_key(constraints: Path, extras: str) -> str:
    """A hash of everything that determines the content of the environment."""
    digest = hashlib.sha256()
    for path in (ROOT / "pyproject.toml", constraints, Path(__file__)):
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode() + content)
    # The editable install points to this folder.
    digest.update("\n".join([extras, sys.version, sys.base_prefix, str(ROOT)]).encode())
    return digest.hexdigest()


def interpreter(environment: Path) -> Path:
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def ask(python: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in the environment, in a fresh interpreter."""
    return subprocess.run([python, "-c", code], capture_output=True, text=True)


def is_usable(environment: Path) -> bool:
    """Whether `environment` exists and belongs to the Python that runs this script."""
    python = interpreter(environment)
    if not python.exists():  # also false for a link to an interpreter that is gone
        return False
    return ask(python, "import sys; print(sys.version)").stdout.strip() == sys.version.strip()


def pip_install(python: Path, constraints: Path | None, *arguments: str) -> None:
    """`pip install` with the constraints; without constraints it takes the newest releases that fit."""
    newest = () if constraints else ("--upgrade", "--upgrade-strategy", "eager")
    environment = {**os.environ, "PIP_CONSTRAINT": str(constraints or os.devnull)}
    subprocess.run([python, "-m", "pip", "install", *newest, *arguments], cwd=ROOT, check=True, env=environment)


def mend_torchvision(python: Path) -> None:
    """Write the start-up file if it is needed (see the top of this script), and check that torchvision imports."""
    site_packages = Path(ask(python, "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip())
    module, hook = (site_packages / f"{STARTUP_MODULE}{suffix}" for suffix in (".py", ".pth"))
    hook.unlink(missing_ok=True)  # left by an earlier run: the test needs torchvision without it
    module.unlink(missing_ok=True)

    check = "import torchvision.transforms.v2"
    outcome = ask(python, check)
    if outcome.returncode == 0:
        return
    if ask(python, "import torch; print(torch.version.cuda)").stdout.strip() == "None":
        say("torch is a CPU build and torchvision is not: writing a start-up file that lets them work together")
        module.write_text(STARTUP_SOURCE, encoding="utf-8")
        hook.write_text(f"import {STARTUP_MODULE}\n", encoding="utf-8")
        outcome = ask(python, check)
    if outcome.returncode != 0:
        hook.unlink(missing_ok=True)
        module.unlink(missing_ok=True)
        raise SystemExit(f"{outcome.stderr}\nsetup_env: torchvision does not import; do torch and torchvision match?")


def remove_broken(python: Path) -> None:
    """Uninstall packages that cannot be imported beside this build of torch."""
    for name in ("torchaudio", "torchcodec"):
        found = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({name!r}) is None)"
        if ask(python, found).returncode == 0 and ask(python, f"import {name}").returncode != 0:
            say(f"{name} does not import beside this build of torch: taking it out")
            subprocess.run([python, "-m", "pip", "uninstall", "--yes", name], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="the environment's folder (default: .venv)")
    versions = parser.add_mutually_exclusive_group()
    versions.add_argument("--constraints", type=Path, default=ROOT / "constraints.txt", help="default: constraints.txt")
    versions.add_argument("--latest", action="store_true", help="no constraints: the newest release of every package")
    parser.add_argument("--extras", default="test,dev,bench", help="the project's extras (default: %(default)s)")
    options = parser.parse_args()
    if sys.version_info < (3, 11):
        parser.error(
            f"the tested versions need Python 3.11 or later; this is {sys.version.split()[0]} (make PYTHON=...)"
        )

    environment, constraints = options.venv.absolute(), None if options.latest else options.constraints.resolve()
    python, stamp = interpreter(environment), environment / STAMP
    key = environment_key(constraints, options.extras) if constraints else None
    if key and stamp.exists() and stamp.read_text(encoding="utf-8") == key and is_usable(environment):
        return

    started = time.monotonic()
    stamp.unlink(missing_ok=True)  # written again at the end, so that an interrupted run is repeated
    name = os.path.relpath(environment)
    versions_of = constraints.name if constraints else "the newest release of every package"
    say(f"preparing {name} with {versions_of}; the first time takes some minutes")
    if not is_usable(environment):
        say(f"step 1 of 4: a new environment with Python {sys.version.split()[0]}")
        subprocess.run([sys.executable, "-m", "venv", "--clear", environment], check=True)
    say("step 2 of 4: torch (one large download)")
    pip_install(python, constraints, "torch")
    say("step 3 of 4: torchvision")
    pip_install(python, constraints, "--no-deps", "torchvision")
    say("step 4 of 4: the project and everything else")
    pip_install(python, constraints, "--editable", f".[{options.extras}]" if options.extras else ".")
    mend_torchvision(python)
    remove_broken(python)
    if key:
        stamp.write_text(key, encoding="utf-8")
    say(f"{name} is ready after {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        command = " ".join(map(str, error.cmd))
        raise SystemExit(f"setup_env: exit status {error.returncode} (see above) of: {command}") from None
