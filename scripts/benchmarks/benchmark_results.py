"""Writes the results of the benchmarks: JSON files with their commands, and pictures beside them."""

import json
import shlex
from pathlib import Path
from typing import Any

import torch

from flashvid_hf.evaluation.whole_files import write_whole

REPOSITORY = Path(__file__).resolve().parents[2]


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def command(script: str, arguments: list[str]) -> str:
    """The command that repeats the measurement, without the path of the results."""
    kept = [a for i, a in enumerate(arguments) if not a.startswith("--output") and arguments[i - 1 : i] != ["--output"]]
    return shlex.join(["python", f"scripts/benchmarks/{script}", *kept])


def write_json(path: str | Path, results: dict[str, Any]) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(results, indent=1) + "\n")
    print(f"wrote {path}")


def pyplot() -> Any:
    """matplotlib's pyplot without a screen. If it is not installed, says so and returns `None`."""
    try:
        import matplotlib
    except ImportError:
        print("no picture: matplotlib is not installed (`pip install flashvid-hf[bench]`); --plot draws it later")
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
