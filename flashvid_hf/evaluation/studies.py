"""What an evaluation compares: a study has named lines with settings of FlashVID, and each line has its runs."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..methods.registry import available_methods
from .runner import Run

REFERENCE = "no compression"  # the name of the run that every study starts with


class Study(NamedTuple):
    """Settings to compare.

    Args:
        question: the question that the study answers.
        lines: FlashVID's fields that differ from the model's configuration, by the name of the line. The other lines
            are compared with the first.
    """

    question: str
    lines: dict[str, dict[str, Any]]


# No pruning inside the language model: all that enters stays, so the budget needs no expansion.
_NO_PRUNING = {"expansion": 1.0, "llm_retention_ratio": 1.0}

STUDIES = {
    # One entry for each study.
    "methods": Study(
        "Which method keeps the most at the same average share of tokens?",
        {name: {"compression_method": name} for name in available_methods() if name != "none"},
    ),
    "behaviors": Study(
        "Does the paper's algorithm do better than the released code?",
        {"paper": {}, "released": {"behavior": "released"}},
    ),
    "selection": Study(
        "Which way of selecting tokens is best (ADTS v1 is attn_div, v2 is attn_div_v2)?",
        {name: {"token_selection_method": name} for name in ("attn_div", "attn_div_v2", "div", "attn")},
    ),
    "ablation": Study(
        "What does each part contribute?",
        {
            "FlashVID": {},
            "without DySeg": {"do_segment": False},
            "ADTS alone": {"alpha": 1.0},
            "TSTM alone": {"alpha": 0.0},
            "no merging over time": {"temporal_threshold": 1.0},
            "no inner pruning": _NO_PRUNING,
            "ADTS alone, no inner pruning": {"alpha": 1.0, **_NO_PRUNING},
            "TSTM alone, no inner pruning": {"alpha": 0.0, **_NO_PRUNING},
        },
    ),
    "settings": Study(
        "Does a setting do better than the defaults?",
        {
            "defaults": {},
            **{f"alpha {value}": {"alpha": value} for value in (0.3, 0.5, 0.9)},
            **{f"temporal_threshold {value}": {"temporal_threshold": value} for value in (0.6, 0.7, 0.9)},
            **{f"segment_threshold {value}": {"segment_threshold": value} for value in (0.8, 0.95)},
            **{f"min_segment_num {value}": {"min_segment_num": value} for value in (1, 8)},
            **{f"expansion {value}": {"expansion": value} for value in (1.0, 1.1, 1.4)},
        },
    ),
}


def plan_runs(
    model_config: Any,
    study: Study,
    names: Sequence[str] | None,
    ratios: Sequence[float],
    say: Callable[[str], Any] = lambda text: None,
) -> dict[str, list[Run]]:
    """The runs of every line, by the name of the line. A method that cannot reach a ratio has no run at that ratio.

    Args:
        model_config: FlashVID's configuration of the model, whose `override` refuses what cannot be met.
        names: the lines of the study that are measured; `None` takes all.
        ratios: average shares of the video tokens, in (0, 1].
        say: called with a message that says what is left out, and why.
    """
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
                say(f"left out: {run.name}: {error}")
            else:
                lines[name].append(run)
    return {name: runs for name, runs in lines.items() if runs}


def find_references(lines: dict[str, list[Run]]) -> dict[str, str]:
    """For each run the name of its reference: the first line at the same ratio, otherwise no compression."""
    first = {run.settings["retention_ratio"]: run.name for run in next(iter(lines.values()))}
    references = {}
    for run in (run for of_line in lines.values() for run in of_line):
        other = first.get(run.settings["retention_ratio"], run.name)
        references[run.name] = other if other != run.name else REFERENCE
    return references
