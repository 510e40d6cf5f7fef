"""Where and how the benchmarks write what they measured: JSON files with their commands, and pictures beside them."""

import json
import shlex
from pathlib import Path
from typing import Any

import torch

REPOSITORY = Path(__file__).resolve().parents[2]


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def command(script: str, arguments: list[str]) -> str:
    """What measures the same again. Where the results went is left out."""
    kept = [a for i, a in enumerate(arguments) if not a.startswith("--output") and arguments[i - 1 : i] != ["--output"]]
    return shlex.join(["python", f"scripts/benchmarks/{script}", *kept])


def write_json(path: str | Path, results: dict[str, Any]) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(f"wrote {path}")


def pyplot() -> Any:
    """matplotlib's pyplot without a screen; `None`, with a word about it, where it is not installed."""
    try:
        import matplotlib
    except ImportError:
        print("no picture: matplotlib is not installed (`pip install flashvid-hf[bench]`); --plot draws it later")
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
