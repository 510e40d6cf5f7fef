"""The results of an evaluation as Markdown."""

from typing import Any

from .items import FORMS
from .runner import Run
from .statistics import ALL
from .studies import REFERENCE

# The fields of a value's interval.
BOUNDS = {"value": ("low", "high"), "difference": ("difference_low", "difference_high")}


def percent(cell: dict[str, Any], key: str = "value", sign: str = "") -> str:
    """A value with its interval: "94.2 (92.9 – 95.4)"."""
    value, low, high = (f"{100 * cell[name]:{sign}.1f}" for name in (key, *BOUNDS[key]))
    return f"{value} ({low} – {high})"


def make_overview(results: dict[str, Any], lines: dict[str, list[Run]]) -> str:
    """A Markdown table of the accuracy on all questions: one row for each line, one column for each ratio."""
    ratios = sorted({run.settings["retention_ratio"] for of_line in lines.values() for run in of_line})
    rows = [f"| | {' | '.join(f'{100 * ratio:g}%' for ratio in ratios)} |", "|---|" + "---|" * len(ratios)]
    for name, of_line in lines.items():
        cells = {run.settings["retention_ratio"]: percent(results[run.name]["accuracy"][ALL]) for run in of_line}
        rows.append(f"| {name} | {' | '.join(cells.get(ratio, '') for ratio in ratios)} |")
    return f"No compression: {percent(results[REFERENCE]['accuracy'][ALL])}\n\n" + "\n".join(rows) + "\n"


def make_table(results: dict[str, Any], lines: dict[str, list[Run]]) -> str:
    """A Markdown table of every run: shares of the tokens, accuracy, and accuracy by type of question."""
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
