"""Draws the results of `bench_generation.py`: time to the first token and memory, against frames and against ratio."""

import json
from pathlib import Path
from typing import Any

from benchmark_results import pyplot

from flashvid_hf.evaluation.plot_style import STYLE

UPSTREAM, FLOOR = "#444444", "#c0392b"
Series = list[tuple[float, dict[str, float]]]


def plot(path: Path) -> None:
    """Draw the results beside their file, as a .png of the same name."""
    plt = pyplot()
    if plt is None:
        return
    results = json.loads(path.read_text())
    points, settings = results["points"], results["settings"]
    ratios, frames = sorted(settings["ratios"]), sorted(settings["frames"])
    colours = [plt.get_cmap("viridis")(0.15 + 0.65 * i / max(len(ratios) - 1, 1)) for i in range(len(ratios))]
    unit, scale = ("GiB", 2**30) if _peak(points) > 2**30 else ("MiB", 2**20)

    def series(field: str, x: str, run: str, **fixed: Any) -> Series:
        """For those points of a run that have the field: their places on the x axis and their summaries."""
        chosen = [p for p in points if p["run"] == run and field in p and fixed.items() <= p.items()]
        values = [p[field] if isinstance(p[field], dict) else _exact(p[field] / scale) for p in chosen]
        return sorted(zip((p[x] for p in chosen), values, strict=True), key=lambda pair: pair[0])

    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(2, 2, figsize=(11, 7.6), layout="constrained")
        fields = (
            ("time_to_first_token", "Time to first token", "s"),
            ("peak_memory", "Peak memory", unit),
        )
        for row, (field, title, label) in zip(panels, fields, strict=True):
            left, right = row
            _draw(left, series(field, "frames", "upstream"), "upstream", UPSTREAM)
            for i, (ratio, colour) in enumerate(zip(ratios, colours, strict=True)):
                line = series(field, "frames", "flashvid", retention_ratio=ratio)
                size = 3 + 3 * (len(ratios) - i)  # larger markers below: they show lines that lie on each other
                _draw(left, line, f"FlashVID {ratio:.0%}", colour, markersize=size)
            floor = series(field, "frames", "floor", retention_ratio=ratios[0])
            _draw(left, floor, f"floor at {ratios[0]:.0%}", FLOOR, linestyle="--", marker="")
            left.set(title=f"{title}, by frames", xlabel="frames", ylabel=label, xticks=frames)

            most = max((p["frames"] for p in points if p["run"] == "flashvid" and field in p), default=frames[-1])
            whole = series(field, "frames", "upstream", frames=most)
            if whole:
                _draw(right, [(ratio, whole[0][1]) for ratio in ratios], "upstream", UPSTREAM, marker="")
            _draw(right, series(field, "retention_ratio", "flashvid", frames=most), "FlashVID", colours[0])
            floor = series(field, "retention_ratio", "floor", frames=most)
            _draw(right, floor, "floor", FLOOR, linestyle="--", marker="")
            right.set(title=f"{title}, by ratio, {most} frames", xlabel="retention ratio", ylabel=label)
            right.set_xticks(ratios, [f"{ratio:.0%}" for ratio in ratios])
            for panel in row:
                panel.set_ylim(0, 1.05 * panel.get_ylim()[1])
                panel.legend(frameon=False)
        architecture, machine = results["architecture"], results["environment"]
        figure.suptitle(
            f"{architecture['name']}, random weights, {settings['dtype']}, {settings['attn_implementation']}, "
            f"{machine['hardware']}{_threads(settings, machine)}, {machine['date']}\n"
            "median of the rounds, band from the fastest to the slowest; from pixels on; memory beyond the weights; "
            "floor: upstream on only the kept tokens",
            fontsize=10,
        )
        picture = path.with_suffix(".png")
        figure.savefig(picture, dpi=130)
        plt.close(figure)
    print(f"wrote {picture}")


def _draw(panel: Any, series: Series, label: str, colour: Any, marker: str = "o", **style: Any) -> None:
    if not series:
        return
    x, values = zip(*series, strict=True)
    panel.plot(x, [v["median"] for v in values], label=label, color=colour, marker=marker, **style)
    panel.fill_between(x, [v["min"] for v in values], [v["max"] for v in values], color=colour, alpha=0.15, lw=0)


def _exact(value: float) -> dict[str, float]:
    return {"median": value, "min": value, "max": value}


def _peak(points: list[dict[str, Any]]) -> float:
    return max((point.get("peak_memory", 0) for point in points), default=0)


def _threads(settings: dict[str, Any], machine: dict[str, Any]) -> str:
    return f" (CPU threads: {machine['cpu_threads']})" if settings["device"] == "cpu" else ""
