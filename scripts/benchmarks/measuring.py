"""The instruments of the benchmarks: timings in turn, operator counts and peak memory."""

import statistics
import time
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from tqdm.auto import tqdm


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def seconds(run: Callable[[], Any], device: str) -> float:
    """Wall time of one call, including everything that it started on the device."""
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def alternate(runs: dict[Any, Callable[[], Any]], *, repeats: int, warmup: int = 1) -> dict[Any, list[Any]]:
    """The results of all runs, which take turns: `warmup` rounds that do not count, then `repeats` that do.

    If the machine is slow for a while, all runs are slow, so their ratios stay the same. A run that returns `None` has
    failed: it is not tried again, and has no result.
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
    """Counts the operators that run, and how many of them have to wait for the device."""

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
    """The most bytes that tensors held at once inside the `with` block, beyond those held at its start.

    On a GPU this is the allocator's own figure. On the CPU and on "meta" it is a sum over the results of all operators:
    memory that an operator uses only inside is not seen. Every operator gets slower, so do not measure time inside the
    block.
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
        for tensor in _tensors((args, kwargs)):  # tensors from outside the block do not count
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
