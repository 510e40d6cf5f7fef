"""Accuracy of a model on a benchmark, under several compression methods and ratios: `flashvid-hf evaluate`.

    flashvid-hf evaluate MODEL --benchmark moving_shapes --output build/evaluation
    torchrun --nproc-per-node 2 -m flashvid_hf.cli evaluate ...     # several processes on the CPU
    accelerate launch -m flashvid_hf.cli evaluate ...               # or several GPUs
    flashvid-hf evaluate MODEL --study ablation ...                 # what each part of FlashVID contributes

The results are deterministic and do not depend on the number of processes. Each answer is written to OUTPUT/answers at
once, and an interrupted run resumes where it stopped. At the end OUTPUT has `results.json` with all settings,
`table.md` and `accuracy.png`. The `difference` of a run compares it with the study's first line at the same ratio; for
the first line itself it compares with no compression. The intervals are 95 % intervals from a bootstrap over videos,
which is paired for differences.
"""

import importlib.util
import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from tqdm.auto import tqdm

from ..compression.validation import check_choice, check_number
from ..loading import load_model
from .answer_files import Evaluation, answers_folder, check_output, end_last_line, prepare_output, read_answers
from .benchmarks import BENCHMARKS, load_benchmark
from .environment import environment
from .fingerprint import fingerprint_model, fingerprint_questions
from .items import VideoItem
from .runner import Run, answer_items
from .studies import REFERENCE, STUDIES, find_references, plan_runs
from .whole_files import replacing, write_whole

RATIOS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.5)  # the default: the paper's ratios, and some below and above them
_LIBRARIES = {"scipy": "eval", "matplotlib": "bench"}  # needed by the results at the end; the extra of each


@dataclass(frozen=True)
class EvaluationOptions:
    """What is evaluated, and how.

    Args:
        model: folder or Hub id of a FlashVID or an upstream checkpoint.
        output: folder of the answers and results.
        benchmark: one of `BENCHMARKS`.
        source: folder or repository of the benchmark; `None`: the published one.
        limit: number of videos, from the start; `None`: all, for MovingShapes 200.
        num_frames: frames of a video; `None`: the number of the benchmark.
        max_new_tokens: longest answer, in tokens.
        batch_size: questions about a video that are answered together.
        study: what is compared, one of `STUDIES`.
        methods: the lines of the study that are measured; `None`: all.
        ratios: average shares of the video tokens, each in (0, 1].
        dtype: dtype of the weights, as torch names it; "auto": the checkpoint's.

    Raises:
        ValueError: an option is out of range, or the study has no such line.
    """

    model: str
    output: Path
    benchmark: str = "moving_shapes"
    source: str | None = None
    limit: int | None = None
    num_frames: int | None = None
    max_new_tokens: int = 16
    batch_size: int = 8
    study: str = "methods"
    methods: Sequence[str] | None = None
    ratios: Sequence[float] = RATIOS
    dtype: str = "auto"

    def __post_init__(self):
        check_choice("benchmark", self.benchmark, tuple(BENCHMARKS))
        check_choice("study", self.study, tuple(STUDIES))
        for name in ("limit", "num_frames", "max_new_tokens", "batch_size"):
            value = getattr(self, name)
            if value is not None or name in ("max_new_tokens", "batch_size"):
                check_number(name, value, least=1, integer=True)
        for ratio in self.ratios:
            check_number("ratios", ratio, above=0, most=1)
        names = [f"{ratio:g}" for ratio in self.ratios]  # as in the names of the runs, see `plan_runs`
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"`ratios` has two that are {name} when rounded to six digits. Leave out one of them.")
        lines = STUDIES[self.study].lines
        for name in self.methods or ():
            if name not in lines:
                choice = ", ".join(map(repr, lines))
                raise ValueError(f"`methods` has {name!r}: the study {self.study!r} has {choice}. Choose of these.")
        if not self.ratios or (self.methods is not None and not self.methods):
            raise ValueError(
                "`ratios` and `methods` must have at least one entry each. Leave them out for the defaults."
            )
        if self.dtype != "auto" and not isinstance(getattr(torch, self.dtype, None), torch.dtype):
            raise ValueError(
                f"`dtype` is {self.dtype!r}: it must be 'auto' or a type of torch such as 'bfloat16', 'float16' or "
                "'float32'. Set `dtype` to one of them."
            )

    def command(self) -> str:
        """The command that repeats the measurement, without the folder of the results."""
        words = ["flashvid-hf", "evaluate", self.model]
        for option in fields(self):
            value = getattr(self, option.name)
            if option.name in ("model", "output") or value == option.default:
                continue
            words.append(f"--{option.name.replace('_', '-')}")
            words += map(str, value if isinstance(value, (list, tuple)) else [value])
        return shlex.join(words)


def evaluate_model(options: EvaluationOptions, say: Callable[[str], Any] = lambda text: None) -> str | None:
    """Ask the model all questions in every run of the study, and write the results.

    Args:
        say: called in the main process with a message about each run that is left out.

    Returns:
        The tables of `table.md` in the main process; `None` in the others.

    Raises:
        ValueError: the benchmark or a video cannot be read, or the folder has answers with other settings.
        ImportError: a library that the results need is missing.
    """
    for library, extra in _LIBRARIES.items():
        if importlib.util.find_spec(library) is None:
            raise ImportError(f'The results need {library}, which is missing: `pip install "flashvid-hf[{extra}]"`.')
    num_frames = options.num_frames or BENCHMARKS[options.benchmark].num_frames
    known = ("model", "benchmark", "source", "limit", "max_new_tokens", "batch_size")
    settings = {**{name: getattr(options, name) for name in known}, "num_frames": num_frames}
    check_output(options.output, settings)
    items = load_benchmark(options.benchmark, options.source, options.limit)  # first: videos may be missing

    state = PartialState(cpu=not torch.cuda.is_available())
    if state.is_main_process:  # the others need no fingerprint: they wait until the folder is prepared
        settings["model_fingerprint"] = fingerprint_model(options.model)
        settings["questions_fingerprint"] = fingerprint_questions(items)
        check_output(options.output, settings)
    device = str(state.device) if state.device.type != "cuda" else f"cuda:{state.local_process_index}"
    model, processor = load_model(options.model, device=device, dtype=options.dtype)
    say_once = say if state.is_main_process else lambda text: None
    lines = plan_runs(model.config, STUDIES[options.study], options.methods, options.ratios, say_once)
    if not lines:
        raise ValueError(f"`ratios` is {tuple(options.ratios)!r}: no line of the study can keep so little. Raise it.")
    runs = [Run(REFERENCE, {"compression_method": "none"}), *(run for of_line in lines.values() for run in of_line)]
    if state.is_main_process:
        evaluation = Evaluation(**settings, dtype=str(model.dtype), runs={run.name: run.settings for run in runs})
        prepare_output(options.output, evaluation)
    state.wait_for_everyone()
    answer_benchmark(model, processor, items, runs, num_frames, options)
    state.wait_for_everyone()
    if not state.is_main_process:
        return None
    facts = {
        "command": options.command(),
        "environment": environment(device),
        "evaluation": asdict(evaluation),
        "videos": len(items),
        "processes": state.num_processes,
    }
    return write_results(options.output, facts, items, lines)


def answer_benchmark(
    model: Any,
    processor: Any,
    items: Sequence[VideoItem],
    runs: Sequence[Run],
    num_frames: int,
    options: EvaluationOptions,
) -> None:
    """Ask the questions that are not answered yet, and write the answers. Each process takes a share of videos."""
    state, output = PartialState(), options.output
    done = frozenset((answer.run, answer.video) for answer in read_answers(answers_folder(output)))
    own = items[state.process_index :: state.num_processes]
    pending = sum((run.name, item.id) not in done for item in own for run in runs)
    path = answers_folder(output) / f"{state.process_index}.jsonl"
    state.wait_for_everyone()  # until all processes have read which answers exist
    end_last_line(path)
    with path.open("a") as file, tqdm(total=pending, unit="video", disable=not state.is_main_process) as bar:
        answered = answer_items(
            model, processor, own, runs, num_frames=num_frames,
            max_new_tokens=options.max_new_tokens, batch_size=options.batch_size, done=done,
        )  # fmt: skip
        for answers in answered:
            file.write(json.dumps([asdict(answer) for answer in answers]) + "\n")
            file.flush()
            bar.update()


def write_results(output: Path, facts: dict[str, Any], items: Sequence[VideoItem], lines: dict[str, list[Run]]) -> str:
    """Write `results.json`, `table.md` and `accuracy.png` from the answers in the folder.

    Args:
        facts: what `results.json` holds beside the results.
        lines: the runs of every line, by the name of the line.

    Returns:
        The tables.
    """
    from .plot import plot_accuracy
    from .statistics import summarize
    from .tables import make_overview, make_table

    names = {name: [run.name for run in of_line] for name, of_line in lines.items()}
    wanted, videos = {REFERENCE, *(name for of_line in names.values() for name in of_line)}, {item.id for item in items}
    answers = [a for a in read_answers(answers_folder(output)) if a.run in wanted and a.video in videos]
    results = summarize(answers, find_references(lines))
    write_whole(output / "results.json", json.dumps({**facts, "results": results}, indent=1) + "\n")
    tables = make_overview(results, lines) + "\n" + make_table(results, lines)
    write_whole(output / "table.md", tables)
    with replacing(output / "accuracy.png") as picture:
        plot_accuracy(results, picture, lines=names, reference=REFERENCE)
    return tables
