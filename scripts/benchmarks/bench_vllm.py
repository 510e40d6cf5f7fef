#!/usr/bin/env python3
"""Measure vLLM without pruning, with its own EVS, and with FlashVID, on the same videos.

    python scripts/benchmarks/bench_vllm.py
    python scripts/benchmarks/bench_vllm.py --model Qwen/Qwen2.5-VL-7B-Instruct --frames 64 --size 448 --options '{}'
    python scripts/benchmarks/bench_vllm.py --plot benchmarks/vllm-cpu.json    draw again, measure nothing

The engines run one after the other, each in its own process, and this is repeated `--rounds` times. After a warm-up, a
round measures the time to the first token of single requests, and the tokens per second of all requests at once. Every
request has its own video, and no result comes from a cache. EVS keeps as many tokens as FlashVID does, and never fewer
than one frame has. Memory is the peak of the process, and the capacity of the engine's cache. The script writes JSON to
`--output`, and a picture beside it.
"""

import argparse
import json
import os
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from benchmark_results import REPOSITORY, command, default_device, pyplot, write_json
from measuring import summarize

from flashvid_hf.evaluation.arguments import COUNT, SHARE
from flashvid_hf.evaluation.environment import environment
from flashvid_hf.families import FAMILIES

FPS = 2.0
PROMPT = "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>{question}<|im_end|>\n<|im_start|>assistant\n"
QUESTION = "What happens in this video? Describe every step."
# The prompt is for families whose videos stand between marks.
UPSTREAM = {
    family.generative_model.__name__: family.upstream_model.__name__
    for family in FAMILIES
    if family.vllm and family.geometry.run_marks
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(REPOSITORY / "hub_configs" / "flashvid-demo"))
    parser.add_argument("--architecture", choices=UPSTREAM, default=next(iter(UPSTREAM)))
    parser.add_argument("--ratios", type=SHARE, nargs="+", default=[0.5, 0.25, 0.1], help="of the tokens enter")
    parser.add_argument("--frames", type=COUNT, default=32)
    parser.add_argument("--size", type=COUNT, default=128, help="pixels a side")
    parser.add_argument("--requests", type=COUNT, default=8)
    parser.add_argument("--new-tokens", type=COUNT, default=32)
    parser.add_argument("--rounds", type=COUNT, default=2)
    parser.add_argument(
        "--options", type=json.loads, default={"dtype": "float32"}, help="more arguments of LLM, as JSON"
    )
    parser.add_argument("--output", default=str(REPOSITORY / "benchmarks" / f"vllm-{default_device()}.json"))
    parser.add_argument("--plot", metavar="RESULTS.json", help="only draw these")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # used by this script itself: measures one engine
    return parser.parse_args()


def engine_names(ratios: list[float]) -> list[str]:
    return ["off", *(f"{method} {ratio:g}" for ratio in ratios for method in ("flashvid", "evs"))]


def engine_options(name: str, architecture: str, rounds: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The arguments of `LLM` for one engine, given what the engines before it measured."""
    method, _, ratio = name.partition(" ")
    if method != "evs":
        return {"hf_overrides": {"architectures": [architecture], "retention_ratio": float(ratio or 1)}}
    off, ours = rounds["off"][0], rounds[f"flashvid {ratio}"][0]
    num_dropped = off["prompt_tokens"] - ours["prompt_tokens"]
    rate = (num_dropped - 0.5) / off["video_tokens"]  # vLLM rounds the number of kept tokens down
    return {"hf_overrides": {"architectures": [UPSTREAM[architecture]]}, "video_pruning_rate": rate}


def make_requests(arguments: argparse.Namespace, first_seed: int, count: int) -> list[dict[str, Any]]:
    import numpy as np

    requests = []
    for seed in range(first_seed, first_seed + count):
        generator = np.random.default_rng(seed)
        picture = generator.integers(0, 255, (arguments.size, arguments.size, 3), dtype=np.uint8)
        frames = np.stack([np.roll(picture, 2 * t, axis=1) for t in range(arguments.frames)])
        metadata = {
            "fps": FPS,
            "duration": arguments.frames / FPS,
            "total_num_frames": arguments.frames,
            "frames_indices": list(range(arguments.frames)),
            "video_backend": "pyav",
            "do_sample_frames": False,
        }
        requests.append(
            {"prompt": PROMPT.format(question=QUESTION), "multi_modal_data": {"video": [(frames, metadata)]}}
        )
    return requests


def measure(job: Path, arguments: argparse.Namespace) -> None:
    """Measure one engine, and write the results beside the job."""
    from vllm import LLM, SamplingParams

    engine = LLM(
        model=arguments.model,
        max_num_seqs=arguments.requests,
        enable_prefix_caching=False,
        mm_processor_cache_gb=0,
        limit_mm_per_prompt={"video": 1, "image": 0},
        **{"max_model_len": 8192, "seed": 0, **arguments.options, **pickle.loads(job.read_bytes())},
    )
    count = arguments.requests

    def run(requests: list, new_tokens: int) -> tuple[float, list]:
        sampling = SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True)
        start = time.perf_counter()
        outputs = engine.generate(requests, sampling, use_tqdm=False)
        return time.perf_counter() - start, outputs

    run(make_requests(arguments, 0, 2), 2)
    first = [run([request], 1)[0] for request in make_requests(arguments, 100, count)]
    taken, outputs = run(make_requests(arguments, 200, count), arguments.new_tokens)
    prompt, cache = list(outputs[0].prompt_token_ids), engine.llm_engine.vllm_config.cache_config
    on_gpu = torch.cuda.is_available()
    result = {
        "prompt_tokens": len(prompt),
        "video_tokens": prompt.count(engine.model_config.hf_config.video_token_id),
        "time_to_first_token_s": first,
        "generated_tokens_per_s": count * arguments.new_tokens / taken,
        # The engine runs in this process; Linux gives KiB.
        "peak_memory_bytes": torch.cuda.max_memory_allocated()
        if on_gpu
        else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "requests_in_cache": cache.num_gpu_blocks * cache.block_size / (len(prompt) + arguments.new_tokens),
    }
    job.write_bytes(pickle.dumps(result))


def main() -> None:
    arguments = parse_arguments()
    if arguments.measure:
        return measure(Path(arguments.measure), arguments)
    if arguments.plot:
        return draw(Path(arguments.plot))
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in engine_names(arguments.ratios)}
    defaults = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_KVCACHE_SPACE": "2"}
    for number in range(arguments.rounds):
        for name in rounds:
            print(f"round {number + 1} of {arguments.rounds}: {name}", flush=True)
            with tempfile.TemporaryDirectory() as folder:
                job = Path(folder, "job.pickle")
                job.write_bytes(pickle.dumps(engine_options(name, arguments.architecture, rounds)))
                subprocess.run(
                    [sys.executable, __file__, *sys.argv[1:], "--measure", job],
                    env={**defaults, **os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
                    check=True,
                )
                rounds[name].append(pickle.loads(job.read_bytes()))
    results = {
        name: {
            "prompt_tokens": measured[0]["prompt_tokens"],
            "video_tokens": measured[0]["video_tokens"],
            "time_to_first_token_s": summarize(t for of_round in measured for t in of_round["time_to_first_token_s"]),
            **{
                figure: summarize(of_round[figure] for of_round in measured)
                for figure in ("generated_tokens_per_s", "peak_memory_bytes", "requests_in_cache")
            },
        }
        for name, measured in rounds.items()
    }
    print(
        f"{'engine':14} {'prompt':>6} {'first token':>11} {'sooner':>6} {'tokens/s':>8} {'faster':>6} "
        f"{'peak':>9} {'fit':>7}"
    )
    for name, result in results.items():
        (first, sooner), (speed, faster) = (
            (result[figure]["median"], result[figure]["median"] / results["off"][figure]["median"])
            for figure in ("time_to_first_token_s", "generated_tokens_per_s")
        )
        peak, fit = result["peak_memory_bytes"]["median"] / 2**20, result["requests_in_cache"]["median"]
        print(
            f"{name:14} {result['prompt_tokens']:6} {1e3 * first:8.0f} ms {1 / sooner:5.2f}x {speed:8.1f} "
            f"{faster:5.2f}x {peak:5.0f} MiB {fit:7.1f}"
        )
    settings = {name: value for name, value in vars(arguments).items() if name not in ("measure", "output", "plot")}
    settings["model"] = Path(arguments.model).name if Path(arguments.model).exists() else arguments.model
    facts = environment(default_device())
    write_json(
        arguments.output,
        {"command": command("bench_vllm.py", sys.argv[1:]), **facts, "settings": settings, "results": results},
    )
    draw(Path(arguments.output))


def draw(path: Path) -> None:
    """The picture next to a results file: time to the first token and tokens per second, by the tokens that enter."""
    plots = pyplot()
    if plots is None:
        return
    report = json.loads(path.read_text())
    off, others = report["results"]["off"], {**report["results"]}
    del others["off"]
    figure, axes = plots.subplots(1, 2, figsize=(9.5, 4), layout="constrained")
    figures = {
        "time_to_first_token_s": (1e3, "time to the first token [ms]"),
        "generated_tokens_per_s": (1, "generated tokens per second"),
    }
    for axis, (of_engine, (factor, label)) in zip(axes, figures.items(), strict=True):
        axis.axhline(factor * off[of_engine]["median"], color="tab:gray", linestyle="--", label="off")
        for method, color in (("flashvid", "tab:blue"), ("evs", "tab:orange")):
            results = [result for name, result in others.items() if name.startswith(method)]
            entered = [100 * result["video_tokens"] / off["video_tokens"] for result in results]
            median, low, high = (
                [factor * result[of_engine][key] for result in results] for key in ("median", "min", "max")
            )
            axis.plot(entered, median, marker="o", color=color, label=method)
            axis.vlines(entered, low, high, color=color, alpha=0.4, linewidth=4)
        axis.set(xlabel="video tokens that enter [%]", ylabel=f"{label} (bars: all runs)")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    settings = report["settings"]
    figure.suptitle(
        f"vLLM, {settings['model']}, {settings['frames']} frames of {settings['size']} x {settings['size']}, "
        f"{off['prompt_tokens']} tokens without pruning, "
        f"{settings['requests']} requests at once\n{report['hardware']}",
        fontsize=10,
    )
    picture = path.with_suffix(".png")
    figure.savefig(picture, dpi=150)
    plots.close(figure)
    print(f"wrote {picture}")


if __name__ == "__main__":
    main()
