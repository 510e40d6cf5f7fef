"""The list of the benchmarks. Each has one line here and a file of its own."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from ..compression.validation import check_choice, check_number
from .egoschema import load_egoschema
from .items import VideoItem
from .longvideobench import load_longvideobench
from .mlvu import load_mlvu_dev, load_mlvu_test
from .moving_shapes.items import load_moving_shapes
from .mvbench import load_mvbench
from .videomme import load_videomme


class Benchmark(NamedTuple):
    """A benchmark.

    Args:
        load: makes its items from `source`, a folder or a repository of `datasets` (`None`: the published one), and
            `limit`, the number of videos to take from the start (`None`: all videos; for MovingShapes 200).
        num_frames: frames taken from a video. The public benchmarks have the number that FlashVID's scripts give to
            LLaVA-OneVision and Qwen; for LLaVA-Video these scripts take 64.
    """

    load: Callable[[str | None, int | None], list[VideoItem]]
    num_frames: int


BENCHMARKS = {
    # One line for each benchmark.
    "moving_shapes": Benchmark(load_moving_shapes, num_frames=16),
    "videomme": Benchmark(load_videomme, num_frames=32),
    "videomme_llava_vid": Benchmark(partial(load_videomme, prompt="llava_vid"), num_frames=64),
    "videomme_qwen3_vl": Benchmark(partial(load_videomme, prompt="qwen3_vl"), num_frames=32),
    "mvbench": Benchmark(load_mvbench, num_frames=32),
    "longvideobench": Benchmark(load_longvideobench, num_frames=32),
    "egoschema": Benchmark(load_egoschema, num_frames=32),
    "mlvu_dev": Benchmark(load_mlvu_dev, num_frames=32),
    "mlvu_test": Benchmark(load_mlvu_test, num_frames=32),
}


def load_benchmark(name: str, source: str | None = None, limit: int | None = None) -> list[VideoItem]:
    """The items of a benchmark, see `Benchmark`.

    Raises:
        ValueError: there is no such benchmark, `limit` is below 1, or the benchmark cannot be read.
    """
    check_choice("benchmark", name, tuple(BENCHMARKS))
    if limit is not None:
        check_number("limit", limit, least=1, integer=True)
    return BENCHMARKS[name].load(source, limit)
