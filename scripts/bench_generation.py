"""Time and memory from a video to its answer: upstream against FlashVID, with the same weights and the same input.

    python scripts/bench_generation.py                                          the default of this machine
    python scripts/bench_generation.py --architecture qwen2.5-vl-7b --frames 16 32 64 --ratios 0.1 0.25
    python scripts/bench_generation.py --plot benchmarks/generation-....json    draw again, measure nothing

The weights are random (see architectures.py) and the clip is moving noise: neither changes how long anything takes.
All runs take turns in every round. Measured for every number of frames, in seconds and bytes:

- decode: `read_video` of an H.264 file of that many frames, or of `--video`; absent without PyAV to make the file.
- preprocess: the family's video processor with its published settings, on the CPU and on the GPU.
- time_to_first_token: the model's `forward`, from pixels (decode and preprocess come before) to the first logits.
- per_token: every further token, as a `forward` on the cache.
- stages, from runs of their own in which the device is waited for around each: vision (tower and projector or merger,
  and LLaVA's pooling; with FlashVID it also takes down the attention that is selected by), compression (what else
  `get_video_features` does), prefill (the language model) and rest (embeddings, positions, checks, logits).
- peak_memory: of one `generate`, beyond the weights and the inputs; on the CPU what `PeakMemory` sees.
- floor: what no method can go below that keeps as many video tokens. Upstream's vision, then upstream's language model
  on a prompt of the text and of random rows, as many as FlashVID's layers see on average: selecting them is free.

What was not measured is absent. A point that does not fit on the GPU has `out_of_memory`.
"""

import argparse
import copy
import functools
import inspect
import itertools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from architectures import ARCHITECTURES, build_upstream
from benchmarking import (
    REPOSITORY,
    PeakMemory,
    alternate,
    command,
    default_device,
    environment,
    seconds,
    summarize,
    write_json,
)
from plot_generation import plot
from stages import alternate_stages, attempt, time_answer, time_stages
from synthetic_video import TEXT_AFTER, TEXT_BEFORE, make_clip, make_inputs, write_clip
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from flashvid_hf import FAMILIES, flashvid, read_video

LIMIT_STEP, LIMIT_MOST = 32, 32768  # frames of --find-limit: its resolution, and where it stops
Point = dict[str, Any]


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
    parser.add_argument("--frames", type=int, nargs="+", default=[8, 16, 32, 64, 128] if on_gpu else [4, 8, 16])
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.1, 0.15, 0.2, 0.25] if on_gpu else [0.1, 0.25])
    parser.add_argument("--dtype", default="bfloat16" if on_gpu else "float32")
    parser.add_argument("--attn-implementation", default="sdpa")
    parser.add_argument("--device", default=device)
    parser.add_argument("--repeats", type=int, default=5 if on_gpu else 3)
    parser.add_argument("--new-tokens", type=int, default=32 if on_gpu else 8)
    parser.add_argument("--video-size", default="640x360", help="width x height of the clip, before its preprocessing")
    parser.add_argument("--video", help="a file to decode in place of one that is made for it")
    parser.add_argument("--find-limit", action="store_true", help="also find how many frames fit (GPU only)")
    parser.add_argument("--output", default=str(REPOSITORY / "benchmarks"), help="a folder")
    parser.add_argument("--plot", metavar="RESULTS.json", help="only draw these")
    given = parser.parse_args(arguments)
    if given.find_limit and not given.device.startswith("cuda"):
        parser.error("--find-limit fills the memory of a GPU: on the CPU it would take the machine down. Leave it out.")
    if given.new_tokens < 2:
        parser.error(f"--new-tokens is {given.new_tokens}: the time of a further token needs at least 2.")
    return given


# Models


def share_weights(upstream: PreTrainedModel) -> Any:
    """A FlashVID model over the weights of upstream's, with the defaults of the family and of the depth.

    It is made of copies of the modules that hold the very same weights, so that upstream's modules get no hooks.
    """
    tensors = itertools.chain(upstream.parameters(), upstream.buffers())
    twin = copy.deepcopy(upstream, {id(tensor): tensor for tensor in tensors})
    (config_class,) = (f.config for f in FAMILIES if upstream.config.model_type in _model_types(f.config))
    config = config_class.from_dict({**upstream.config.to_dict(), "model_type": config_class.model_type})
    settings = [name for name in inspect.signature(flashvid).parameters if name not in ("model", "retention_ratio")]
    return flashvid(twin, **{name: getattr(config, name) for name in settings})


def _model_types(config_class: Any) -> tuple[str, str]:
    return config_class.model_type, config_class.base_model_type


def mean_tokens(config: Any, entered: int, remained: int) -> int:
    """Video tokens that a layer of the language model sees on average."""
    depth = config.get_text_config().num_hidden_layers
    lower = min(config.pruning_layer, depth)
    return round((lower * entered + (depth - lower) * remained) / depth)


# Measurements


class Case:
    """One number of frames: upstream, and for every ratio FlashVID and the floor, each a name and a ratio.

    Args:
        upstream, compressed: the two models over the same weights.
        inputs: of one prompt with one video.
        given: the arguments of the program.
    """

    def __init__(self, upstream: Any, compressed: Any, inputs: dict[str, torch.Tensor], given: Any):
        self.upstream, self.inputs, self.given = upstream, inputs, given
        self.config, self.device = compressed.config, given.device
        self.video = [inputs[name] for name in ("pixel_values_videos", "video_grid_thw") if name in inputs]
        self.total = int((inputs["input_ids"] == self.config.video_token_id).sum())
        # Models, and what a call of them has beside the inputs.
        self.models: dict[Any, tuple[Any, dict[str, Any]]] = {("upstream", None): (upstream, {})}
        self.models.update({("flashvid", ratio): (compressed, {"retention_ratio": ratio}) for ratio in given.ratios})
        self.kept: dict[float, int] = {}  # by ratio, video tokens that a layer sees on average

    @torch.no_grad()
    def measure(self) -> list[Point]:
        points = self.measure_memory()
        self.measure_time(points)
        return [{"run": run, "retention_ratio": ratio, **point} for (run, ratio), point in points.items()]

    def encode(self) -> None:
        self.upstream.model.get_video_features(*self.video)

    def read_kept(self, num_tokens: int) -> None:
        length = self.inputs["input_ids"].shape[1] - self.total + num_tokens
        size = (1, length, self.config.text_config.hidden_size)
        rows = torch.randn(size, device=self.device, dtype=self.upstream.dtype)
        states = self.upstream.model.language_model(inputs_embeds=rows, use_cache=True).last_hidden_state
        self.upstream.lm_head(states[:, -1:])

    def generate(self, model: Any, **settings: Any) -> Any:
        """The report of an answer; `None` of upstream."""
        outputs = model.generate(
            **self.inputs,
            **settings,
            max_new_tokens=self.given.new_tokens,
            do_sample=False,
            suppress_tokens=[self.config.image_token_id, self.config.video_token_id],
            return_dict_in_generate=True,
        )
        return getattr(outputs, "report", None)

    def measure_memory(self) -> dict[Any, Point]:
        """A point for everything that is measured, with its video tokens and its peak memory."""
        points: dict[Any, Point] = {}
        attempt(self.encode)  # the work space of the GPU's libraries stays, and should not count for the first model
        for name, (model, settings) in tqdm(self.models.items(), desc="memory", leave=False):
            report, peak = self.find_peak(functools.partial(self.generate, model, **settings))
            counts = {"total": self.total}
            if settings and report is not None:
                counts.update({"entered": report.entered[0], "remained": report.remained[0]})
                self.kept[name[1]] = mean_tokens(self.config, counts["entered"], counts["remained"])
            points[name] = {"video_tokens": counts, **peak}
        for ratio, num_tokens in self.kept.items():
            _, peak = self.find_peak(lambda num_tokens=num_tokens: (self.encode(), self.read_kept(num_tokens)))
            points["floor", ratio] = {"video_tokens": {"total": self.total, "mean": num_tokens}, **peak}
        return points

    def find_peak(self, run: Callable[[], Any]) -> tuple[Any, Point]:
        """The result of a run and its peak memory, or that it is out of memory."""

        def measured() -> tuple[Any, Point]:
            with PeakMemory(self.device) as memory:
                result = run()
            return result, {"peak_memory": memory.bytes}

        return attempt(measured) or (None, {"out_of_memory": True})

    def measure_time(self, points: dict[Any, Point]) -> None:
        """Add times to the points, of which those out of memory are left alone."""
        device = self.device
        fitting = {name: given for name, given in self.models.items() if "peak_memory" in points[name]}
        calls: dict[Any, Callable[[], dict[str, float]]] = {
            name: functools.partial(time_answer, model, self.inputs, self.given.new_tokens, device, **settings)
            for name, (model, settings) in fitting.items()
        }
        calls["vision"] = lambda: {"seconds": seconds(self.encode, device)}
        for ratio, kept in self.kept.items():
            read = functools.partial(self.read_kept, kept)
            calls["floor", ratio] = lambda read=read: {"seconds": seconds(read, device)}
        whole = alternate_stages(calls, self.given.repeats)
        parts = alternate_stages(
            {name: functools.partial(time_stages, m, self.inputs, device, **s) for name, (m, s) in fitting.items()},
            self.given.repeats,
        )
        for name in fitting:
            if name not in whole:
                points[name]["out_of_memory"] = True
                continue
            points[name].update({stage: summarize(values) for stage, values in whole[name].items()})
            if name in parts:
                points[name]["stages"] = {stage: summarize(values) for stage, values in parts[name].items()}
        for ratio in self.kept:
            if "vision" in whole and ("floor", ratio) in whole:
                vision, prefill = whole["vision"]["seconds"], whole["floor", ratio]["seconds"]
                both = (sum(times) for times in zip(vision, prefill, strict=True))
                stages = {"vision": summarize(vision), "prefill": summarize(prefill)}
                points["floor", ratio].update({"time_to_first_token": summarize(both), "stages": stages})


def measure_input(frames: np.ndarray, process: Callable, arguments: Any) -> Point:
    """Seconds of decoding and preprocessing, which are the same with and without FlashVID."""
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
    """The most frames, a multiple of `LIMIT_STEP`, of which `model` generates a token: by doubling, then by bisection.

    FlashVID takes the pixels from the CPU, chunk by chunk; upstream needs all of them on the GPU.

    Args:
        pixels: of `LIMIT_STEP` frames, which are repeated.
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


# Results


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
        case = Case(upstream, compressed, make_inputs(compressed, process(frames)), given)
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
