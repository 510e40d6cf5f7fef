"""Time and memory from a video to its answer: upstream against FlashVID, with the same weights and the same input.

    python scripts/benchmarks/bench_generation.py                               the default of this machine
    python scripts/benchmarks/bench_generation.py --architecture qwen2.5-vl-7b --frames 16 32 64 --ratios 0.1 0.25
    python scripts/benchmarks/bench_generation.py --plot benchmarks/generation-....json    draw again

The weights are random (see architectures.py) and the clip is moving noise; neither changes how long anything takes.
In every round, all runs take turns. Measured for every number of frames, in seconds and bytes:

- decode: `read_video` of an H.264 file of that many frames, or of `--video`; absent without PyAV to make the file.
- preprocess: the family's video processor with its published settings, on the CPU and on the GPU.
- time_to_first_token: the model's `forward`, from pixels (decode and preprocess come before) to the first logits.
- per_token: every further token, as a `forward` on the cache.
- stages, from separate runs that wait for the device before and after each stage: vision (tower and projector or
  merger, and LLaVA's pooling; with FlashVID also the recording of attention for the selection), compression (the rest
  of `get_video_features`), prefill (the language model) and rest (embeddings, positions, checks, logits).
- peak_memory: of one `generate`, beyond the weights and the inputs; on the CPU as measured by `PeakMemory`.
- floor: the lower bound for every method that keeps as many video tokens. It runs upstream's vision tower, then
  upstream's language model on the text and on random rows, as many as FlashVID's layers see on average, so that the
  selection costs nothing.

Values that were not measured are absent. A point that does not fit on the GPU has `out_of_memory`.
"""

import argparse
import functools
import itertools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from architectures import ARCHITECTURES, build_upstream
from benchmark_results import REPOSITORY, command, default_device, write_json
from generation_case import GenerationCase, Point, share_weights
from measuring import alternate, seconds, summarize
from plot_generation import plot
from stage_timing import attempt
from synthetic_video import TEXT_AFTER, TEXT_BEFORE, make_clip, make_inputs, write_clip
from tqdm.auto import tqdm

from flashvid_hf import read_video
from flashvid_hf.evaluation.arguments import COUNT, SHARE, number
from flashvid_hf.evaluation.environment import environment

LIMIT_STEP, LIMIT_MOST = 32, 32768  # frames: the resolution of --find-limit, and where it stops


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    device = default_device()
    on_gpu = device.startswith("cuda")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--architecture",
        default="llava-onevision-7b" if on_gpu else "llava-onevision-small",
        choices=ARCHITECTURES,
        help="default here: %(default)s",
    )
    parser.add_argument("--frames", type=COUNT, nargs="+", default=[8, 16, 32, 64, 128] if on_gpu else [4, 8, 16])
    parser.add_argument("--ratios", type=SHARE, nargs="+", default=[0.1, 0.15, 0.2, 0.25] if on_gpu else [0.1, 0.25])
    parser.add_argument("--dtype", default="bfloat16" if on_gpu else "float32")
    parser.add_argument("--attn-implementation", default="sdpa")
    parser.add_argument("--device", default=device)
    parser.add_argument("--repeats", type=COUNT, default=5 if on_gpu else 3)
    parser.add_argument(
        "--new-tokens",
        type=number(least=2, integer=True),
        default=32 if on_gpu else 8,
        help="at least 2: the time of a further token is measured too",
    )
    parser.add_argument("--video-size", default="640x360", help="width x height of the clip, before its preprocessing")
    parser.add_argument("--video", help="a file to decode in place of one that is made for it")
    parser.add_argument("--find-limit", action="store_true", help="also find how many frames fit (GPU only)")
    parser.add_argument("--output", default=str(REPOSITORY / "benchmarks"), help="a folder")
    parser.add_argument("--plot", metavar="RESULTS.json", help="only draw these")
    given = parser.parse_args(arguments)
    if given.find_limit and not given.device.startswith("cuda"):
        parser.error("--find-limit fills the memory of a GPU: on the CPU it would take the machine down. Leave it out.")
    return given


def measure_input(frames: np.ndarray, process: Callable, arguments: Any) -> Point:
    """Seconds of decoding and preprocessing, which do not depend on FlashVID."""
    runs: dict[str, Callable[[], Any]] = {"preprocess_cpu": lambda: process(frames)}
    if arguments.device.startswith("cuda"):
        runs["preprocess_gpu"] = lambda: process(frames, device=arguments.device)
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.video or str(Path(folder, "clip.mp4"))
        if arguments.video or write_clip(path, frames):
            runs = {"decode": lambda: read_video(path, num_frames=len(frames)), **runs}
        clocked = {stage: functools.partial(seconds, run, arguments.device) for stage, run in runs.items()}
        times = alternate(clocked, repeats=arguments.repeats)
    return {stage: summarize(values) for stage, values in times.items()}


@torch.no_grad()
def find_limit(model: Any, compressed: Any, pixels: dict[str, torch.Tensor], **settings: Any) -> Point:
    """The most frames, a multiple of `LIMIT_STEP`, for which `model` can generate a token: by doubling, then bisection.

    FlashVID takes the pixels from the CPU, chunk by chunk; upstream needs all of them on the GPU.

    Args:
        pixels: the pixels of `LIMIT_STEP` frames, which are repeated.
    """

    def fits(steps: int) -> bool:
        values, grid = pixels["pixel_values_videos"], pixels.get("video_grid_thw")
        longer = {"pixel_values_videos": torch.cat([values] * steps, dim=0 if grid is not None else 1)}
        if grid is not None:
            longer["video_grid_thw"] = grid * torch.tensor([[steps, 1, 1]])

        def run() -> bool:
            inputs = make_inputs(compressed, longer, keep_pixels=model is compressed)
            model.generate(**inputs, max_new_tokens=1, do_sample=False, **settings)
            return True

        return bool(attempt(run))

    fitted, failed, steps = 0, None, 1
    with tqdm(desc="limit", leave=False) as progress:
        while fitted < steps and steps <= LIMIT_MOST // LIMIT_STEP:
            if fits(steps):
                fitted = steps
            else:
                failed = steps
            steps = 2 * steps if failed is None else (fitted + failed) // 2
            progress.update()
    found = {"frames": fitted * LIMIT_STEP}
    return found if failed is None else {**found, "out_of_memory_at": failed * LIMIT_STEP}


def print_table(results: Point) -> None:
    print(f"\n{results['architecture']['name']}, {results['environment']['hardware']}, medians")
    header = ("frames", "run", "vision", "compr.", "prefill", "first token", "per token", "memory", "video tokens")
    print("{:>6}  {:<14}{:>10}{:>10}{:>10}{:>13}{:>11}{:>11}  {}".format(*header))
    for point in results["points"]:
        name = " ".join([point["run"], *([f"{point['retention_ratio']:.0%}"] if point["retention_ratio"] else [])])
        start = f"{point['frames']:>6}  {name:<14}"
        if "out_of_memory" in point:
            print(f"{start}out of memory")
            continue
        stages, tokens = point.get("stages", {}), point["video_tokens"]
        cells = [_ms(stages.get(stage)) for stage in ("vision", "compression", "prefill")]
        cells += [_ms(point.get("time_to_first_token")), _ms(point.get("per_token"))]
        counts = "/".join(str(tokens[stage]) for stage in ("total", "mean", "entered", "remained") if stage in tokens)
        memory = f"{point['peak_memory'] / 2**20:.0f} MiB"
        print("{}{:>10}{:>10}{:>10}{:>13}{:>11}{:>11}  {}".format(start, *cells, memory, counts))
    for row in results["input"]:
        timed = {stage: _ms(value) for stage, value in row.items() if stage != "frames"}
        print(f"{row['frames']:>6}  " + ", ".join(f"{stage} {value}" for stage, value in timed.items()))
    for limit in results.get("limits", []):
        print(f"limit   {limit['run']} {limit['retention_ratio'] or ''}: {limit['frames']} frames")


def _ms(summary: dict[str, float] | None) -> str:
    return "" if summary is None else f"{1000 * summary['median']:.{1 if summary['median'] < 0.1 else 0}f} ms"


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    given = parse_arguments(arguments)
    if given.plot:
        plot(Path(given.plot))
        return
    architecture = ARCHITECTURES[given.architecture]
    upstream = build_upstream(architecture, given.device, getattr(torch, given.dtype), given.attn_implementation)
    compressed = share_weights(upstream)
    processor = architecture.video_processor()
    process = functools.partial(_process, processor)
    weights = {id(tensor): tensor.nbytes for tensor in itertools.chain(upstream.parameters(), upstream.buffers())}
    config = compressed.config
    results: Point = {
        "command": command("bench_generation.py", arguments),
        "environment": environment(given.device),
        "architecture": {
            "name": given.architecture,
            "source": architecture.source,
            "upstream": type(upstream).__name__,
            "parameters": sum(parameter.numel() for parameter in upstream.parameters()),
            "weight_bytes": sum(weights.values()),
            "layers": config.text_config.num_hidden_layers,
            "pruning_layer": config.pruning_layer,
            "llm_retention_ratio": config.llm_retention_ratio,
        },
        "settings": {
            "text_tokens": TEXT_BEFORE + TEXT_AFTER,
            **{name: value for name, value in vars(given).items() if name not in ("output", "plot", "architecture")},
        },
        "units": "seconds and bytes",
        "input": [],
        "points": [],
    }
    for num_frames in tqdm(given.frames, desc="frames"):
        frames = make_clip(num_frames, given.video_size)
        results["input"].append({"frames": num_frames, **measure_input(frames, process, given)})
        case = GenerationCase(upstream, compressed, make_inputs(compressed, process(frames)), given)
        results["points"] += [{"frames": num_frames, **point} for point in case.measure()]
        del case  # its inputs lie on the device
    if given.find_limit:
        pixels = process(make_clip(LIMIT_STEP, given.video_size))
        results["limits"] = [{"run": "upstream", "retention_ratio": None, **find_limit(upstream, compressed, pixels)}]
        for ratio in given.ratios:
            limit = find_limit(compressed, compressed, pixels, retention_ratio=ratio)
            results["limits"].append({"run": "flashvid", "retention_ratio": ratio, **limit})
    path = Path(given.output, f"generation-{given.architecture}-{given.device.split(':')[0]}.json")
    write_json(path, results)
    print_table(results)
    plot(path)


def _process(processor: Any, frames: np.ndarray, **kwargs: Any) -> dict[str, torch.Tensor]:
    return dict(processor(videos=[frames], do_sample_frames=False, return_tensors="pt", **kwargs))


if __name__ == "__main__":
    main()
