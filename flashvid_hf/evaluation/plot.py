"""The picture of an evaluation: accuracy against the share of the video tokens that is retained."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .items import FORMS
from .plot_style import STYLE
from .statistics import ALL

_COLUMNS = 3  # panels side by side
_MARKERS = "osD^vP*X<>"  # one for each line
_TICKS = (2, 5, 10, 15, 25, 50)  # per cent of the video tokens


def plot_accuracy(
    results: Mapping[str, Any], path: str | Path, *, lines: Mapping[str, list[str]], reference: str | None = None
) -> None:
    """Draw accuracy against retained tokens, for all questions and by type, with confidence intervals.

    Args:
        results: what `summarize` returns.
        path: `.png` or `.svg`.
        lines: names of the runs of every line, by the label of the line. The first line is drawn on top, in the
            strongest colour.
        reference: the run without compression, drawn as a horizontal line.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    groups = [group for group in next(iter(results.values()))["accuracy"] if group not in FORMS]
    groups.sort(key=lambda group: (group != ALL, group))
    rows = -(-len(groups) // _COLUMNS)
    others = [plt.get_cmap("tab10")(i) for i in range(10) if i != 3]  # its red is too close to the first line's
    colours = ["#c0392b", *others, "#222222"]
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(
            rows, _COLUMNS, figsize=(4.4 * _COLUMNS, 3.3 * rows), layout="constrained", sharex=True, sharey=True
        )
        panels = panels.flatten()
        for panel, group in zip(panels, groups, strict=False):
            if reference is not None:
                of_group = results[reference]["accuracy"][group]
                panel.axhline(100 * of_group["value"], color="#444444", linestyle="--", label="no compression")
                panel.axhspan(100 * of_group["low"], 100 * of_group["high"], color="#444444", alpha=0.08, linewidth=0)
            for i, (label, names) in reversed(list(enumerate(lines.items()))):
                points = sorted((results[name] for name in names), key=lambda result: result["retained"])
                x = [100 * point["retained"] for point in points]
                y, low, high = ([100 * p["accuracy"][group][key] for p in points] for key in ("value", "low", "high"))
                style = {"color": colours[i % len(colours)], "zorder": 3 + (i == 0)}
                width = 2.4 if i == 0 else 1.2
                panel.plot(
                    x, y, marker=_MARKERS[i % len(_MARKERS)], markersize=4, linewidth=width, label=label, **style
                )
                if group == ALL or i == 0:  # in small panels the bands of all lines would hide each other
                    panel.fill_between(x, low, high, alpha=0.12, linewidth=0, **style)
            total = next(iter(results.values()))["accuracy"][group]["total"]
            panel.set(title=f"{group} ({total:,} questions)", xscale="log", ylim=(0, 102))
            panel.set_xticks(_TICKS, [f"{tick}%" for tick in _TICKS])
            panel.minorticks_off()
        for panel in panels[len(groups) :]:
            panel.axis("off")
        for panel in panels[max(len(groups) - _COLUMNS, 0) : len(groups)]:
            panel.tick_params(labelbottom=True)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles[::-1], labels[::-1], loc="outside right center", frameon=False)
        figure.supxlabel("video tokens that a layer of the language model sees on average")
        figure.supylabel("right answers, %")
        figure.savefig(path, dpi=130, metadata={"Software": None} if Path(path).suffix == ".png" else {"Date": None})
        plt.close(figure)
