"""Accuracy of a model on a benchmark, under several compression methods and ratios.

    python scripts/evaluate.py MODEL --benchmark moving_shapes --output build/evaluation
    torchrun --nproc-per-node 2 scripts/evaluate.py ...     # several processes on the CPU
    accelerate launch scripts/evaluate.py ...               # or several GPUs
    python scripts/evaluate.py MODEL --study ablation ...   # what each part of FlashVID contributes

Deterministic, whatever the number of processes. The answers go to OUTPUT/answers as they come, and a run that was
broken off goes on where it stopped. At the end OUTPUT has `results.json` with all settings, `table.md` and
`accuracy.png`. The `difference` of a run is that from the study's first line at the same ratio, for that line itself
that from no compression. Intervals hold 95 % by a bootstrap over videos, paired for differences.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from benchmarking import command, environment, write_json
from studies import STUDIES, Study
from tqdm.auto import tqdm

from flashvid_hf.evaluation.benchmarks import BENCHMARKS, load_benchmark
from flashvid_hf.evaluation.items import FORMS
from flashvid_hf.evaluation.plot import plot_accuracy
from flashvid_hf.evaluation.runner import Answer, Run, answer_items
from flashvid_hf.evaluation.statistics import ALL, summarize
from flashvid_hf.loading import load_model

RATIOS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.5)
REFERENCE = "no compression"
BOUNDS = {"value": ("low", "high"), "difference": ("difference_low", "difference_high")}


@dataclass(frozen=True)
class Evaluation:
    """Everything that the answers depend on, but for the versions of the libraries."""

    model: str
    benchmark: str
    source: str | None
    limit: int | None
    num_frames: int
    max_new_tokens: int
    batch_size: int
    dtype: str
    runs: dict[str, dict[str, Any]]


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or Hub id of a FlashVID or an upstream checkpoint")
    parser.add_argument("--benchmark", default="moving_shapes", choices=tuple(BENCHMARKS))
    parser.add_argument("--source", help="folder or repository of the benchmark; default: the published one")
    parser.add_argument("--limit", type=int, help="videos, from the start; default: all, of MovingShapes 200")
    parser.add_argument("--num-frames", type=int, help="frames of a video; default: the benchmark's")
    parser.add_argument("--max-new-tokens", type=int, default=16, help="longest answer (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="questions about a video at once (%(default)s)")
    parser.add_argument("--study", default="methods", choices=tuple(STUDIES), help="what is compared (%(default)s)")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="of the study's lines only these")
    parser.add_argument("--ratios", nargs="+", type=float, default=RATIOS, help="of the video tokens, on average")
    parser.add_argument("--dtype", default="auto", help="of the weights; default: the checkpoint's")
    parser.add_argument("--output", type=Path, required=True, help="folder of the answers and results")
    given = parser.parse_args(arguments)
    lines = STUDIES[given.study].lines
    for name in given.methods or ():
        if name not in lines:
            parser.error(f"`--methods` has {name!r}: the study {given.study!r} has {', '.join(map(repr, lines))}")
    return given


def plan_runs(model_config: Any, study: Study, names: Sequence[str] | None, ratios: Sequence[float]) -> dict[str, Any]:
    """The runs of every line, by its name; a method that cannot keep so little is left out at that ratio, and said."""
    lines: dict[str, list[Run]] = {}
    for name, settings in study.lines.items():
        if names and name not in names:
            continue
        lines[name] = []
        for ratio in sorted(ratios):
            run = Run(f"{name} {ratio:g}", {"retention_ratio": ratio, **settings})
            try:
                model_config.override(**run.settings)
            except ValueError as error:
                if PartialState().is_main_process:
                    print(f"left out: {run.name}: {error}", file=sys.stderr)
            else:
                lines[name].append(run)
    return {name: runs for name, runs in lines.items() if runs}


def find_references(lines: dict[str, list[Run]]) -> dict[str, str]:
    """What every run is compared with: the first line at the same ratio, and where that is missing, no compression."""
    first = {run.settings["retention_ratio"]: run.name for run in next(iter(lines.values()))}
    references = {}
    for run in (run for of_line in lines.values() for run in of_line):
        other = first.get(run.settings["retention_ratio"], run.name)
        references[run.name] = other if other != run.name else REFERENCE
    return references


def read_answers(folder: Path) -> list[Answer]:
    """All answers in a folder; a last line that was broken off does not count."""
    answers = {}
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            try:
                of_video = [Answer(**answer) for answer in json.loads(line)]
            except json.JSONDecodeError:
                continue
            answers.update({(answer.run, answer.question): answer for answer in of_video})
    return sorted(answers.values(), key=lambda answer: (answer.run, answer.question))


def end_last_line(path: Path) -> None:
    """End a last line that was broken off, so that the next answers get a line of their own."""
    if path.exists() and path.read_bytes()[-1:] not in (b"", b"\n"):
        with path.open("a") as file:
            file.write("\n")


def prepare_output(output: Path, evaluation: Evaluation) -> None:
    """Note what is evaluated, so that answers to something else are not mixed in.

    Raises:
        ValueError: the folder has answers with other settings.
    """
    path, settings = output / "evaluation.json", json.loads(json.dumps(asdict(evaluation)))
    if path.exists():
        noted = json.loads(path.read_text())
        for name in settings:
            shared = noted[name].keys() & settings[name].keys() if name == "runs" else None
            same = (
                noted[name] == settings[name]
                if shared is None
                else all(noted[name][run] == settings[name][run] for run in shared)
            )
            if not same:
                raise ValueError(
                    f"`--output` is {str(output)!r}, which has answers with `{name}` {noted[name]!r}, not "
                    f"{settings[name]!r}. Choose another folder, or delete this one."
                )
        settings["runs"] = {**noted["runs"], **settings["runs"]}
    (output / "answers").mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings, indent=1) + "\n")


def percent(cell: dict[str, Any], key: str = "value", sign: str = "") -> str:
    """A value with its interval: "94.2 (92.9 – 95.4)"."""
    value, low, high = (f"{100 * cell[name]:{sign}.1f}" for name in (key, *BOUNDS[key]))
    return f"{value} ({low} – {high})"


def make_overview(results: dict[str, Any], lines: dict[str, list[Run]]) -> str:
    """The accuracy on all questions as Markdown: one row for each line, one column for each ratio."""
    ratios = sorted({run.settings["retention_ratio"] for of_line in lines.values() for run in of_line})
    rows = [f"| | {' | '.join(f'{100 * ratio:g}%' for ratio in ratios)} |", "|---|" + "---|" * len(ratios)]
    for name, of_line in lines.items():
        cells = {run.settings["retention_ratio"]: percent(results[run.name]["accuracy"][ALL]) for run in of_line}
        rows.append(f"| {name} | {' | '.join(cells.get(ratio, '') for ratio in ratios)} |")
    return f"No compression: {percent(results[REFERENCE]['accuracy'][ALL])}\n\n" + "\n".join(rows) + "\n"


def make_table(results: dict[str, Any], lines: dict[str, list[Run]]) -> str:
    """What every run reached as Markdown: shares of the tokens, accuracy, and accuracy by type of question."""
    types = sorted(next(iter(results.values()))["accuracy"].keys() - {ALL, *FORMS})
    rows = [
        f"| run | entered / remained / average | {ALL} | difference | {' | '.join(types)} |",
        "|---|---|---|---|" + "---|" * len(types),
    ]
    for name in [REFERENCE, *(run.name for runs in lines.values() for run in runs)]:
        result, whole = results[name], results[name]["accuracy"][ALL]
        shares = " / ".join(f"{100 * result[stage]:.1f}%" for stage in ("entered", "remained", "retained"))
        difference = percent(whole, "difference", sign="+") if "reference" in result else ""
        of_types = " | ".join(f"{100 * result['accuracy'][kind]['value']:.1f}" for kind in types)
        rows.append(f"| {name} | {shares} | {percent(whole)} | {difference} | {of_types} |")
    return "\n".join(rows) + "\n"


def main(arguments: Sequence[str]) -> None:
    given = parse_arguments(arguments)
    state = PartialState(cpu=not torch.cuda.is_available())
    study = STUDIES[given.study]
    items = load_benchmark(given.benchmark, given.source, given.limit)  # first: its videos may be missing
    device = str(state.device) if state.device.type != "cuda" else f"cuda:{state.local_process_index}"
    model, processor = load_model(given.model, device=device, dtype=given.dtype)
    lines = plan_runs(model.config, study, given.methods, given.ratios)
    runs = [Run(REFERENCE, {"compression_method": "none"}), *(run for of_line in lines.values() for run in of_line)]
    evaluation = Evaluation(
        model=given.model,
        benchmark=given.benchmark,
        source=given.source,
        limit=given.limit,
        num_frames=given.num_frames or BENCHMARKS[given.benchmark].num_frames,
        max_new_tokens=given.max_new_tokens,
        batch_size=given.batch_size,
        dtype=str(model.dtype),
        runs={run.name: run.settings for run in runs},
    )
    if state.is_main_process:
        prepare_output(given.output, evaluation)
    state.wait_for_everyone()

    done = frozenset((answer.run, answer.video) for answer in read_answers(given.output / "answers"))
    own = items[state.process_index :: state.num_processes]
    pending = sum((run.name, item.id) not in done for item in own for run in runs)
    path = given.output / "answers" / f"{state.process_index}.jsonl"
    state.wait_for_everyone()  # all have read what is done
    end_last_line(path)
    with path.open("a") as file, tqdm(total=pending, unit="video", disable=not state.is_main_process) as bar:
        answered = answer_items(
            model, processor, own, runs, num_frames=evaluation.num_frames,
            max_new_tokens=evaluation.max_new_tokens, batch_size=evaluation.batch_size, done=done,
        )  # fmt: skip
        for answers in answered:
            file.write(json.dumps([asdict(answer) for answer in answers]) + "\n")
            file.flush()
            bar.update()
    state.wait_for_everyone()
    if not state.is_main_process:
        return

    wanted, videos = {run.name for run in runs}, {item.id for item in items}
    answers = [a for a in read_answers(given.output / "answers") if a.run in wanted and a.video in videos]
    results = summarize(answers, find_references(lines))
    written = {
        "command": command("evaluate.py", list(arguments)),
        "environment": environment(device),
        "evaluation": asdict(evaluation),
        "videos": len(items),
        "processes": state.num_processes,
        "results": results,
    }
    write_json(given.output / "results.json", written)
    (given.output / "table.md").write_text(make_overview(results, lines) + "\n" + make_table(results, lines))
    names = {name: [run.name for run in of_line] for name, of_line in lines.items()}
    plot_accuracy(results, given.output / "accuracy.png", lines=names, reference=REFERENCE)
    print((given.output / "table.md").read_text())


if __name__ == "__main__":
    main(sys.argv[1:])
