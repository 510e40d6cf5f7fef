"""Measures how long the stages of a call take, without waiting for the device."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Stopwatch:
    """Records the beginning and the end of stages: by events on a GPU, by the clock on other devices.

    Args:
        before: a stopwatch whose stages are copied, because they belong to the same call; it is not changed.
    """

    def __init__(self, before: "Stopwatch | None" = None):
        self._spans: dict[str, list[tuple[Any, Any]]] = {}
        if before is not None:
            self._spans |= {name: [*spans] for name, spans in before._spans.items()}

    @contextmanager
    def stage(self, name: str, device: torch.device) -> Iterator[None]:
        """Add the time that the `with` block takes on the device. The times of stages of one name add up."""
        if torch.compiler.is_compiling():  # compiled code would keep the clock readings of its compilation
            yield
            return
        start = _now(device)
        yield
        self._spans.setdefault(name, []).append((start, _now(device)))

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of every stage, by its name. Waits until the device has finished the stages."""
        return {name: sum(_between(*span) for span in spans) for name, spans in self._spans.items()}

    def __getstate__(self) -> dict[str, Any]:  # events can be neither copied nor pickled
        return {"_spans": {name: [(0.0, duration)] for name, duration in self.seconds.items()}}


def _now(device: torch.device) -> Any:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def _between(start: Any, end: Any) -> float:
    if isinstance(start, float):
        return end - start
    end.synchronize()
    return start.elapsed_time(end) / 1000
