"""Measure the compression alone: operators, time against the matrix products it needs, time by stage, peak memory.

python scripts/benchmarks/bench_compression.py                           the default sizes, on the GPU if there is one
python scripts/benchmarks/bench_compression.py --frames 32 --dtype bfloat16 --device cpu
python scripts/benchmarks/bench_compression.py --plot benchmarks/compression-....json    draw again, measure nothing

The time is compared with that of three batched float32 products: the inner products within each frame, once for the
selection and once for the clustering, and those of neighbouring frames for the links. The video is synthetic: four
scenes with noise, in which every token drifts at its own pace.
"""

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from benchmark_results import REPOSITORY, command, default_device, pyplot, write_json
from measuring import Operators, PeakMemory, alternate, seconds, summarize, synchronize

from flashvid_hf.compression import compress_video as compression
from flashvid_hf.compression.compress_video import CompressionConfig, compress_video
from flashvid_hf.compression.token_selection import TOKEN_SELECTION_METHODS
from flashvid_hf.evaluation.arguments import COUNT, SHARE
from flashvid_hf.evaluation.environment import environment

# The functions that `compress_video` calls, by stage. The rest of its time goes to the float32 copy, frame means and
# the bookkeeping of rows.
STAGES = {
    "segmentation": ["segment_video"],
    "selection": ["_select"],
    "merging": ["link_tokens", "merge_tokens"],
    "sums": ["weighted_sums"],
}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=COUNT, nargs="+", default=[32, 160], help="T, one or more (default: 32 160)")
    parser.add_argument("--tokens", type=COUNT, default=196, help="tokens of a frame (%(default)s)")
    parser.add_argument("--width", type=COUNT, default=3584, help="width of a token (%(default)s)")
    dtypes = ["bfloat16", "float16", "float32"]
    dtype = "bfloat16" if default_device().startswith("cuda") else "float32"
    parser.add_argument("--dtype", default=dtype, choices=dtypes, help="of the video features (default: %(default)s)")
    parser.add_argument("--retention-ratio", type=SHARE, default=0.1, help="(%(default)s)")
    parser.add_argument(
        "--method", default=CompressionConfig.token_selection_method, choices=TOKEN_SELECTION_METHODS,
        help="how tokens are selected (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--device", default=default_device(), help="cuda, cuda:1, cpu (here: %(default)s)")
    parser.add_argument("--repeats", type=COUNT, default=5, help="measured rounds (%(default)s)")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "benchmarks", help="folder (default: benchmarks/)")
    parser.add_argument("--plot", type=Path, metavar="RESULTS.json", help="only draw the picture of earlier results")
    return parser.parse_args(arguments)


def make_video(
    num_frames: int, num_tokens: int, width: int, dtype: torch.dtype, device: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (T, N, D) in which many tokens link to the frame before, and attention (T, N)."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    features = torch.empty(num_frames, num_tokens, width, dtype=dtype, device=device)
    pace = 0.6 * torch.rand(num_tokens, 1, generator=generator, device=device)
    scene = None
    for frame in range(num_frames):
        if scene != frame * 4 // num_frames:
            scene = frame * 4 // num_frames
            drifting = normal(num_tokens, width) + normal(1, width)
        else:
            drifting = (1 - pace**2 / 2) * drifting + pace * normal(num_tokens, width)
        features[frame] = drifting + 0.3 * normal(num_tokens, width)
    return features, normal(num_frames, num_tokens).softmax(-1)


@contextlib.contextmanager
def stage_clock(device: str) -> Iterator[dict[str, float]]:
    """Seconds of each stage of the compressions in the `with` block; each stage waits for the device at both ends."""
    spent: dict[str, float] = {}

    def timed(stage: str, function: Callable) -> Callable:
        def run(*args: Any, **kwargs: Any) -> Any:
            synchronize(device)
            start = time.perf_counter()
            result = function(*args, **kwargs)
            synchronize(device)
            spent[stage] = spent.get(stage, 0.0) + time.perf_counter() - start
            return result

        return run

    with contextlib.ExitStack() as patches:
        for stage, names in STAGES.items():
            for name in names:
                timed_function = timed(stage, getattr(compression, name))
                patches.enter_context(mock.patch.object(compression, name, timed_function))
        yield spent


def measure(num_frames: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """All numbers of one size. Operators, time and memory are measured in separate runs."""
    device, dtype = arguments.device, getattr(torch, arguments.dtype)
    video = make_video(num_frames, arguments.tokens, arguments.width, dtype, device)
    config = CompressionConfig(retention_ratio=arguments.retention_ratio, token_selection_method=arguments.method)
    features = video[0].float()

    def gram_products() -> None:
        torch.bmm(features, features.mT)
        torch.bmm(features[1:], features[:-1].mT)
        torch.bmm(features, features.mT)

    def compress() -> compression.CompressedVideo:
        return compress_video(*video, config)

    def compress_by_stage() -> dict[str, float]:
        with stage_clock(device) as spent:
            compress()
        return spent

    warmup = 3 if device.startswith("cuda") else 1
    runs = {"gram_products": gram_products, "compression": compress}
    clocked = {name: partial(seconds, run, device) for name, run in runs.items()}
    times = alternate(clocked, repeats=arguments.repeats, warmup=warmup)
    ratios = [own / products for products, own in zip(times["gram_products"], times["compression"], strict=True)]
    rounds = alternate({"by stage": compress_by_stage}, repeats=min(arguments.repeats, 3), warmup=warmup)["by stage"]
    with Operators() as operators:
        compress()
    with PeakMemory(device) as memory:
        result = compress()
    trees = result.trees.flatten()
    return {
        "frames": num_frames,
        "kept_tokens": len(result.indices),
        "segments": len(result.segment_lengths),
        "linked_share": (trees != torch.arange(len(trees), device=device)).float().mean().item(),
        "operators": operators.count,
        "synchronizations": len(operators.waiting),
        "seconds": {name: summarize(values) for name, values in times.items()},
        "ratio": summarize(ratios),
        "stage_seconds": {stage: summarize(spent[stage] for spent in rounds) for stage in STAGES if stage in rounds[0]},
        "peak_bytes_beyond_inputs": memory.bytes,
    }


def print_table(results: list[dict[str, Any]]) -> None:
    def milliseconds(summary: dict[str, float] | None) -> str:
        if summary is None:  # these settings skip the stage
            return "-"
        return f"{1e3 * summary['median']:.4g} ({1e3 * summary['min']:.4g} - {1e3 * summary['max']:.4g})"

    rows = {
        "operators": lambda r: str(r["operators"]),
        "synchronizations": lambda r: str(r["synchronizations"]),
        "Gram products, ms": lambda r: milliseconds(r["seconds"]["gram_products"]),
        "compression, ms": lambda r: milliseconds(r["seconds"]["compression"]),
        "ratio": lambda r: "{median:.2f} ({min:.2f} - {max:.2f})".format(**r["ratio"]),
        **{f"  {stage}, ms": lambda r, stage=stage: milliseconds(r["stage_seconds"].get(stage)) for stage in STAGES},
        "peak memory, MiB": lambda r: f"{r['peak_bytes_beyond_inputs'] / 2**20:.1f}",
    }
    print(f"\n{'median (fastest - slowest)':28}" + "".join(f"{r['frames']:>23} frames" for r in results))
    for label, cell in rows.items():
        print(f"{label:28}" + "".join(f"{cell(result):>30}" for result in results))
    print("\nThe stages are timed in runs of their own; peak memory is what is held beyond the inputs.\n")


def draw(path: Path) -> None:
    """The picture next to a results file: time by frames."""
    plots = pyplot()
    if plots is None:
        return
    report = json.loads(path.read_text())
    results, settings = sorted(report["results"], key=lambda result: result["frames"]), report["arguments"]
    frames = [result["frames"] for result in results]
    figure, axes = plots.subplots(figsize=(7, 4.2), layout="constrained")
    labels = {"gram_products": "its three Gram products alone", "compression": "whole compression"}
    for (name, label), color in zip(labels.items(), ("tab:gray", "tab:blue"), strict=True):
        median, low, high = (
            [1e3 * result["seconds"][name][key] for result in results] for key in ("median", "min", "max")
        )
        axes.plot(frames, median, marker="o", color=color, label=label)
        axes.vlines(frames, low, high, color=color, alpha=0.4, linewidth=4)
    for result in results:
        height = 1e3 * result["seconds"]["compression"]["median"]
        text = f"{result['ratio']['median']:.2f}x"
        axes.annotate(text, (result["frames"], height), xytext=(-8, 8), textcoords="offset points", ha="right")
    axes.set(xlabel="frames", ylabel="median time [ms] (bars: all runs)", xticks=frames)
    axes.set_xlim(0, 1.05 * max(frames))
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", frameon=False)
    axes.set_title(
        f"{settings['tokens']} tokens a frame of width {settings['width']}, {settings['dtype']}, "
        f"retention {settings['retention_ratio']:.0%}\n{report['environment']['hardware']}",
        fontsize=10,
    )
    picture = path.with_suffix(".png")
    figure.savefig(picture, dpi=150)
    plots.close(figure)
    print(f"wrote {picture}")


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    if arguments.plot:
        draw(arguments.plot)
        return
    results = [measure(num_frames, arguments) for num_frames in arguments.frames]
    print_table(results)
    settings = {name: value for name, value in vars(arguments).items() if name not in ("output", "plot")}
    path = arguments.output / f"compression-{torch.device(arguments.device).type}-{arguments.dtype}.json"
    report = {
        "environment": environment(arguments.device),
        "command": command("bench_compression.py", sys.argv[1:] if argv is None else argv),
        "arguments": settings,
        "results": results,
    }
    write_json(path, report)
    draw(path)


if __name__ == "__main__":
    main()
