"""The benchmarks: one line each, beside a file of its own."""

from collections.abc import Callable
from typing import NamedTuple

from ..validation import check_choice
from .items import VideoItem
from .moving_shapes.items import load_moving_shapes


class Benchmark(NamedTuple):
    """A benchmark.

    Args:
        load: makes its items from `source`, a folder or a repository of `datasets` (`None`: the published one), and
            `limit`, the number of videos to take from the start (`None`: all).
        num_frames: frames taken from a video.
    """

    load: Callable[[str | None, int | None], list[VideoItem]]
    num_frames: int


BENCHMARKS = {
    # One line for each benchmark.
    "moving_shapes": Benchmark(load_moving_shapes, num_frames=16),
}


def load_benchmark(name: str, source: str | None = None, limit: int | None = None) -> list[VideoItem]:
    """The items of a benchmark, see `Benchmark`.

    Raises:
        ValueError: there is no such benchmark.
    """
    check_choice("benchmark", name, tuple(BENCHMARKS))
    return BENCHMARKS[name].load(source, limit)
