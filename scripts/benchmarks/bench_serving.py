"""Throughput and latency of `flashvid-hf serve`: answers that share the model against one answer at a time.

    python scripts/benchmarks/bench_serving.py                                        the trained demo, two minutes
    python scripts/benchmarks/bench_serving.py --model Qwen/Qwen2.5-VL-7B-Instruct --video talk.mp4 --frames 64
    python scripts/benchmarks/bench_serving.py --plot benchmarks/serving-cpu.json     draw again, measure nothing

Two servers run at the same time and are asked in turn, so that a slow while of the machine meets both: one with
`--max-num-seqs 1`, which answers one request after the other, and one with the default. Each client asks again as soon
as it has its answer. Every answer has exactly `--new-tokens` tokens, and is streamed. Measured for every number of
clients, in seconds:

- answers_per_second, tokens_per_second: of all clients together, from the first request to the last answer;
- latency: from a request to the end of its answer; median, 95th percentile and largest;
- first_token: from a request to its first text, which includes reading the video.

The clients run on the same machine, in one process.
"""

import argparse
import json
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmark_results import REPOSITORY, command, default_device, pyplot, write_json
from serving_clients import CLIP, DEMO, Reply, ask, question, start_server
from tqdm.auto import tqdm

from flashvid_hf.evaluation.environment import environment
from flashvid_hf.serving.server import MAX_NUM_SEQS

QUESTIONS = ["What happens?", "Which shape appears first?", "What moves, and where to?", "How many shapes are there?"]
MODES = {"one at a time": 1, "shared": MAX_NUM_SEQS}


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(DEMO))
    parser.add_argument("--video", default=str(CLIP), help="a file that every question is about")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--requests", type=int, default=16, help="with each number of clients, and at least as many")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--max-num-seqs", type=int, default=MAX_NUM_SEQS, help="of the server with shared steps")
    parser.add_argument("--output", default=str(REPOSITORY / "benchmarks" / f"serving-{default_device()}.json"))
    parser.add_argument("--plot", metavar="RESULTS.json", help="only draw these")
    return parser.parse_args(arguments)


def measure(port: int, bodies: list[dict[str, Any]], clients: int) -> dict[str, Any]:
    """Ask all questions by so many clients at a time."""
    begin = time.perf_counter()
    with ThreadPoolExecutor(clients) as threads:
        numbers = [i % clients for i in range(len(bodies))]
        replies: list[Reply] = list(threads.map(lambda body, number: ask(port, body, number), bodies, numbers))
    seconds = time.perf_counter() - begin
    for reply in replies:
        if reply.status != 200 or not reply.tokens:
            raise RuntimeError(f"A request got the status {reply.status}: {reply.text[:300]}")
    tokens = sum(reply.tokens for reply in replies)
    return {
        "answers_per_second": len(replies) / seconds,
        "tokens_per_second": tokens / seconds,
        "latency": spread([reply.seconds for reply in replies]),
        "first_token": spread([reply.first_seconds for reply in replies if reply.first_seconds is not None]),
        "answers": len(replies),
        "tokens": tokens,
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median, 95th percentile and largest."""
    values = sorted(values)
    p95 = values[max(0, -(-len(values) * 95 // 100) - 1)]
    return {"median": statistics.median(values), "p95": p95, "max": values[-1]}


def plot(results: dict[str, Any], path: Path) -> None:
    """Tokens per second and median latency by the number of clients."""
    plt = pyplot()
    if plt is None:
        return
    figure, axes = plt.subplots(1, 2, figsize=(8, 3))
    clients = [point["clients"] for point in results["points"]]
    for mode in MODES:
        of_mode = [point[mode] for point in results["points"]]
        axes[0].plot(clients, [value["tokens_per_second"] for value in of_mode], "o-", label=mode)
        axes[1].plot(clients, [value["latency"]["median"] for value in of_mode], "o-", label=mode)
    for axis, label in zip(axes, ("tokens per second", "median latency in seconds"), strict=True):
        axis.set(xlabel="clients", ylabel=label, ylim=(0, None), xticks=clients)
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path)
    print(f"wrote {path}")


def main(arguments: list[str]) -> None:
    given = parse_arguments(arguments)
    if given.plot:
        plot(json.loads(Path(given.plot).read_text()), Path(given.plot).with_suffix(".png"))
        return
    modes = {**MODES, "shared": given.max_num_seqs}
    lengths = json.dumps({"max_new_tokens": given.new_tokens, "min_new_tokens": given.new_tokens})
    folder = str(Path(given.video).resolve().parent)
    settings = {"num_frames": given.frames, "allowed_local_media_path": folder}
    with ExitStack() as stack:
        ports = {
            mode: stack.enter_context(start_server(given.model, max_num_seqs=number, **settings))
            for mode, number in modes.items()
        }
        points = []
        for clients in tqdm([0, *given.clients], desc="numbers of clients"):  # the first is a warm-up
            number = max(given.requests, clients) if clients else 2
            stream = {"stream": True, "stream_options": {"include_usage": True}}
            options = {"video": given.video, "generation_config": lengths, **stream}
            bodies = [question(given.model, QUESTIONS[i % len(QUESTIONS)], **options) for i in range(number)]
            point = {mode: measure(port, bodies, clients or 2) for mode, port in ports.items()}
            if clients:
                points.append({"clients": clients, **point})
    results = {
        "command": command("bench_serving.py", arguments),
        "environment": environment(default_device()),
        "model": Path(given.model).name,
        "frames": given.frames,
        "new_tokens": given.new_tokens,
        "max_num_seqs": modes,
        "points": points,
    }
    for point in points:
        for mode in modes:
            value = point[mode]
            print(
                f"{point['clients']:3} clients, {mode:13}: {value['answers_per_second']:6.2f} answers/s, "
                f"{value['tokens_per_second']:7.1f} tokens/s, latency {value['latency']['median']:6.2f} s "
                f"(95 %: {value['latency']['p95']:.2f}), first token {value['first_token']['median']:.2f} s"
            )
    write_json(given.output, results)
    plot(results, Path(given.output).with_suffix(".png"))


if __name__ == "__main__":
    main(sys.argv[1:])
