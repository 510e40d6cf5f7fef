"""The picture of a `VideoTrace`: frames with the fate of every token, trees over time, and tokens of each frame.

    draw_trace(trace, "clip.png")

The legend of letters is in `__init__.py`.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..methods.flashvid import FlashVID
from .trace import Fate, VideoTrace

# Okabe and Ito's colours, which are distinct for all types of colour vision. Shape and brightness repeat the meaning.
SELECTED, ROOT, REMAINED = "#E69F00", "#0072B2", "#000000"
TEXT, FAINT, BACKGROUND = "#222222", "#9A9A9A", "#FFFFFF"
# Most frames in the picture (two rows of six pictures, or three rows of four), and most lanes for trees. Both bound the
# height of the picture.
_MOST_FRAMES, _LANES = 12, 36
# Sizes in inches. If tokens are smaller than `_SMALLEST_TOKEN`, a row has four larger pictures instead of six.
_SMALLEST_TOKEN = 0.16
_MARGIN, _LEFT, _GAP = 0.3, 0.75, 0.1
_HEADER, _CAPTION, _PANEL_TITLE = 1.3, 0.26, 0.62
_LANE, _BARS, _AXIS = 0.09, 1.7, 0.6
_STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that the picture is the same everywhere
    "font.size": 10,
    "text.color": TEXT,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "hatch.linewidth": 0.8,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "flashvid_hf",  # the same names in every run
}
# Metadata that would differ from run to run is left out.
_METADATA: dict[str, dict[str, Any]] = {
    ".png": {"Software": None},
    ".svg": {"Date": None, "Creator": None},
}


def draw_trace(trace: VideoTrace, path: str | os.PathLike, *, width: int = 1600) -> Path:
    """Draw a trace as a picture. The same trace and version of matplotlib give the same bytes.

    Args:
        path: file to write, with the suffix .png or .svg.
        width: width of the picture in pixels, at least 800; the height follows from the frames.

    Returns:
        The path.

    Raises:
        ValueError: the suffix or the width is not allowed.
        ImportError: matplotlib is not installed.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _METADATA:
        raise ValueError(f"`path` is {str(path)!r}: a picture is a .png or an .svg. Choose one of these suffixes.")
    if not isinstance(width, int) or width < 800:
        raise ValueError(f"`width` is {width!r}: it must be an integer of at least 800 pixels. Choose a larger one.")
    try:
        import matplotlib
        from matplotlib import style
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            'The picture needs matplotlib, which is not installed: `pip install "flashvid-hf[trace]"`. '
            "`save_json` and `save_npz` of the trace do not need it."
        ) from error
    inches = 16.0
    with matplotlib.rc_context():
        style.use(["default", _STYLE])  # regardless of the user's own style
        figure = Figure(figsize=(inches, 1), facecolor=BACKGROUND)
        _draw(figure, trace, inches)
        figure.savefig(path, dpi=width / inches, metadata=_METADATA[suffix])
    return path


@dataclass
class _Page:
    """Places panels on the figure; positions are in inches from the left and from the top."""

    figure: Any
    width: float
    height: float

    def panel(self, left: float, top: float, width: float, height: float) -> Any:
        bottom = self.height - top - height
        place = (left / self.width, bottom / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(place)

    def write(self, left: float, top: float, text: str, **style: Any) -> None:
        style = {"va": "top", "ha": "left", **style}
        self.figure.text(left / self.width, 1 - top / self.height, text, **style)


def _draw(figure: Any, trace: VideoTrace, width: float) -> None:
    shown = choose_frames(trace.starts, _MOST_FRAMES)
    aspect = trace.frames.shape[1] / trace.frames.shape[2]
    for columns in (6, 4):  # fewer and larger pictures if the tokens are small
        picture_width = (width - 2 * _MARGIN - (columns - 1) * _GAP) / columns
        picture_height = picture_width * aspect
        token = min(picture_width / trace.width, picture_height / trace.height)
        if token >= _SMALLEST_TOKEN:
            break
    rows = -(-len(shown) // columns)
    strip = rows * (picture_height + _CAPTION + _GAP)
    trees = find_trees(trace.trees)
    placed = list(_place_trees(trees, _LANES))
    trees_height = _LANE * (2 + max((lane for _, lane in placed), default=1))
    height = _HEADER + strip + 2 * _PANEL_TITLE + trees_height + _BARS + _AXIS + _MARGIN
    figure.set_size_inches(width, height)
    page = _Page(figure, width, height)

    _write_header(page, trace, shown)
    for place, t in enumerate(shown):
        row, column = divmod(place, columns)
        left = _MARGIN + column * (picture_width + _GAP)
        top = _HEADER + row * (picture_height + _CAPTION + _GAP)
        page.write(left, top + _CAPTION - 0.05, _caption(trace, t), va="bottom", fontsize=9)
        _draw_frame(page.panel(left, top + _CAPTION, picture_width, picture_height), trace, t, token)

    top, panel_width = _HEADER + strip + _PANEL_TITLE, width - _LEFT - _MARGIN
    upper = page.panel(_LEFT, top, panel_width, trees_height)
    page.write(_MARGIN, top - 0.3, _draw_trees(upper, trace, placed, len(trees)), va="bottom", fontsize=11)
    top += trees_height + _PANEL_TITLE
    lower = page.panel(_LEFT, top, panel_width, _BARS)
    page.write(_MARGIN, top - 0.12, _draw_bars(lower, trace), va="bottom", fontsize=11)
    for panel in (upper, lower):
        _mark_segments(panel, trace, panel_width, numbers=panel is upper)
    _label_time(lower, trace)
    upper.set_xticks(lower.get_xticks(), [])


def choose_frames(starts: np.ndarray, most: int) -> list[int]:
    """Up to `most` frames, ascending: first frames of segments, then always the frame furthest from the chosen ones.

    Args:
        starts: True at the first frame of every segment, with shape (T,).
    """
    frames = np.arange(len(starts))
    first = np.flatnonzero(starts)
    if len(first) > most:
        return first[np.linspace(0, len(first) - 1, most).round().astype(int)].tolist()
    chosen = first.tolist()
    while len(chosen) < min(most, len(frames)):
        distance = np.abs(frames[:, None] - np.array(chosen)).min(1)
        chosen.append(int(distance.argmax()))
    return sorted(chosen)


def _write_header(page: _Page, trace: VideoTrace, shown: list[int]) -> None:
    from matplotlib.patches import Rectangle

    layer, num_frames = trace.settings["pruning_layer"], len(trace.fate)
    left = f" \N{RIGHTWARDS ARROW} {trace.remained:,} seen from layer {layer} on ({_share(trace.remained, trace)})"
    title = (
        f"{trace.tokens:,} video tokens \N{RIGHTWARDS ARROW} {trace.entered:,} entered the language model "
        f"({_share(trace.entered, trace)}){left if trace.remained < trace.entered else ''}"
    )
    page.write(_MARGIN, 0.22, title, fontsize=15, fontweight="bold")
    unit, newlines = _unit(trace), trace.tokens - trace.fate.size
    lines = f" and {newlines} newline{'s' * (newlines > 1)}" if newlines else ""
    num_segments = int(trace.starts.sum())
    method = trace.settings["compression_method"]
    how = f"behavior {trace.settings['behavior']}" if method == FlashVID.name else f"compression_method {method}"
    settings = (
        f"{trace.settings['model_type'].removeprefix('flashvid_')}, retention_ratio "
        f"{trace.settings['retention_ratio']:g}, {how}: {num_frames} {unit}"
        f"{'s' * (num_frames > 1)} of {trace.height} \N{MULTIPLICATION SIGN} {trace.width} tokens{lines} in "
        f"{num_segments} segment{'s' * (num_segments > 1)}"
        f"{'' if len(shown) == num_frames else f'; {len(shown)} of the {unit}s are shown'}"
    )
    page.write(_MARGIN, 0.58, settings, fontsize=10, color="#555555")

    key = page.panel(_MARGIN, 0.86, page.width - 2 * _MARGIN, 0.3)
    key.set(xlim=(0, page.width - 2 * _MARGIN), ylim=(0, 0.3))
    key.axis("off")
    entries = [
        (3.1, f"selected, kept as it is: {trace.count(Fate.SELECTED):,}"),
        (3.5, f"tree root, kept as a mean: {trace.count(Fate.ROOT):,}"),
        (3.1, f"merged into a root: {trace.count(Fate.MERGED):,}"),
        (2.2, f"dropped: {trace.count(Fate.DROPPED):,}"),
    ]
    x = 0.0
    for fate, (step, text) in zip(Fate, entries, strict=True):
        sample = np.full((1, 1, 3), 170, dtype=np.uint8)
        pixels = _shade(sample, np.array([[int(fate)]]))[0, 0] / 255
        key.add_patch(Rectangle((x + 0.02, 0.05), 0.22, 0.2, facecolor=pixels, edgecolor=FAINT, linewidth=0.5))
        _mark_tokens(key, np.array([[x + 0.02, 0.05]]), (0.22, 0.2), fate, True)
        key.text(x + 0.32, 0.15, text, va="center", fontsize=10)
        x += step
    if trace.remained < trace.entered:
        for fate, offset in ((Fate.SELECTED, 0.02), (Fate.ROOT, 0.3)):
            key.add_patch(Rectangle((x + offset, 0.05), 0.22, 0.2, facecolor="#AAAAAA", linewidth=0))
            _mark_tokens(key, np.array([[x + offset, 0.05]]), (0.22, 0.2), fate, False)
        key.text(x + 0.6, 0.15, f"kept, but not seen from layer {layer} on", va="center", fontsize=10)


def _unit(trace: VideoTrace) -> str:
    return "temporal grid" if trace.frames_per_grid > 1 else "frame"


def _share(count: int, trace: VideoTrace) -> str:
    return f"{count / trace.tokens:.1%}"


def _caption(trace: VideoTrace, t: int) -> str:
    seconds = "" if np.isnan(trace.seconds[t]) else f"{trace.seconds[t]:.2f} s, "
    first = "segment {} begins" if trace.starts[t] else "segment {}"
    return f"{t}: {seconds}{first.format(trace.segments[t])}"


def _draw_frame(panel: Any, trace: VideoTrace, t: int, token: float) -> None:
    """Draw one frame: merged tokens faded, dropped ones dark, kept ones framed; `token` is their size in inches."""
    height, width = trace.height, trace.width
    fate = trace.fate[t].reshape(height, width)
    pixel_rows, pixel_columns = (
        np.arange(pixels) * tokens // pixels for pixels, tokens in zip(trace.frames.shape[1:3], fate.shape, strict=True)
    )
    shaded = _shade(trace.frames[t], fate[pixel_rows][:, pixel_columns])
    panel.imshow(shaded, extent=(0, width, height, 0), aspect="auto", interpolation="nearest")
    panel.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    panel.spines[:].set_visible(False)
    remained = (trace.rows_remained[t] > 0).reshape(height, width)
    for kind in Fate:
        for is_left in (False, True):
            rows, columns = np.nonzero((fate == kind) & (remained == is_left))
            if len(rows):
                _mark_tokens(panel, np.stack([columns, rows], 1), (1, 1), kind, is_left, token)


def _shade(frame: np.ndarray, fate: np.ndarray) -> np.ndarray:
    """A frame with shape (h, w, 3), shaded by the fates of its pixels, with shape (h, w)."""
    grey = frame.mean(-1, keepdims=True)
    of_fate = {Fate.MERGED: 0.30 * frame + 0.10 * grey + 0.60 * 255, Fate.DROPPED: 0.25 * grey}
    shaded = frame.astype(float)
    for kind, values in of_fate.items():
        shaded = np.where((fate == kind)[..., None], values, shaded)
    return shaded.round().astype(np.uint8)


def _mark_tokens(
    panel: Any, corners: np.ndarray, size: tuple[float, float], fate: Fate, is_left: bool, token: float = 0.2
) -> None:
    """Draw frames around kept tokens, and crosses on dropped ones.

    Selected tokens get an orange frame, roots a blue one with a dot. The frame is solid for tokens that the upper
    layers see, and dotted for the others.

    Args:
        corners: the upper left corner of each token, with shape (count, 2).
        size: width and height of a token in the units of the panel.
        is_left: whether the upper layers of the language model see these tokens.
        token: size of a token in inches; small tokens get thin lines.
    """
    from matplotlib.collections import LineCollection, PolyCollection

    width, height = size
    if fate == Fate.DROPPED:
        ends = np.array([[0.25, 0.25], [0.75, 0.75], [0.25, 0.75], [0.75, 0.25]]) * size
        lines = (corners[:, None] + ends).reshape(-1, 2, 2)
        panel.add_collection(LineCollection(list(lines), colors="#BBBBBB", linewidths=0.7), autolim=False)
    if fate > Fate.ROOT:
        return
    inset = np.array([[0.08, 0.08], [0.92, 0.08], [0.92, 0.92], [0.08, 0.92]]) * size
    squares = corners[:, None] + inset
    colour, style = (SELECTED, ROOT)[fate], "solid" if is_left else (0, (1.2, 1.2))
    thickness = min(1.0, token / 0.2) * (2.2 if is_left else 1.4)
    for edge, line_width in ((BACKGROUND, 1.65 * thickness), (colour, thickness)):
        dashes = "solid" if edge == BACKGROUND else style
        polygons = PolyCollection(
            list(squares), facecolors="none", edgecolors=edge, linewidths=line_width, linestyles=dashes
        )
        panel.add_collection(polygons, autolim=False)
    if fate == Fate.ROOT:
        x, y = (corners + np.array(size) / 2).T
        panel.scatter(x, y, s=(20 * token) ** 2, color=ROOT, edgecolors=BACKGROUND, linewidths=4 * token, zorder=3)


@dataclass(frozen=True)
class _Tree:
    """A tree of at least two tokens.

    Args:
        root: flat index of its root.
        first: frame of the root.
        members: number of its tokens in each frame, from the root's frame on.
    """

    root: int
    first: int
    members: np.ndarray

    @property
    def last(self) -> int:
        return self.first + len(self.members) - 1


def find_trees(trees: np.ndarray) -> list[_Tree]:
    """The trees of at least two tokens, sorted by the number of frames, then by the number of tokens, largest first.

    Args:
        trees: flat index of the root that each token joined, with shape (T, N).
    """
    num_frames, num_tokens = trees.shape
    roots, which = np.unique(trees, return_inverse=True)
    frames = np.broadcast_to(np.arange(num_frames)[:, None], trees.shape).ravel()
    order = np.argsort(which.ravel(), kind="stable")
    groups = np.split(frames[order], np.cumsum(np.bincount(which.ravel()))[:-1])
    found = [
        _Tree(int(root), int(root) // num_tokens, np.bincount(group - int(root) // num_tokens))
        for root, group in zip(roots, groups, strict=True)
        if len(group) > 1
    ]
    return sorted(found, key=lambda tree: (-len(tree.members), -tree.members.sum(), tree.root))


def _place_trees(trees: list[_Tree], num_lanes: int) -> Iterator[tuple[_Tree, int]]:
    """Each tree with the first lane that is free in its frames. Trees without a free lane are left out."""
    taken: list[list[_Tree]] = [[] for _ in range(num_lanes)]
    for tree in trees:
        for lane, others in enumerate(taken):
            if all(tree.first > other.last or tree.last < other.first for other in others):
                others.append(tree)
                yield tree, lane
                break


def _draw_trees(panel: Any, trace: VideoTrace, placed: list[tuple[_Tree, int]], num_trees: int) -> str:
    """Draw a line for every tree from its root on, and a dot for its tokens in each frame; return the title."""
    from matplotlib.collections import LineCollection

    num_lanes = max((lane for _, lane in placed), default=0) + 1
    kept = trace.rows_entered.ravel() > 0
    for is_kept, colour, face in ((False, "#8C8C8C", BACKGROUND), (True, ROOT, ROOT)):
        group = [(tree, lane) for tree, lane in placed if kept[tree.root] == is_kept]
        if not group:
            continue
        lines = [[(tree.first, lane), (tree.last, lane)] for tree, lane in group]
        panel.add_collection(LineCollection(lines, colors=colour, linewidths=1.1), autolim=False)
        dots = np.array(
            [(tree.first + i, lane, count) for tree, lane in group for i, count in enumerate(tree.members) if i]
        )
        scale = 5.0 if len(trace.fate) <= 64 else 2.0
        many = np.minimum(dots[:, 2], 8)
        for count in np.unique(many):  # one call for each size keeps an SVG small
            x, y = dots[many == count, :2].T
            panel.scatter(x, y, s=scale * count, color=colour, linewidths=0, zorder=3)
        roots = np.array([(tree.first, lane) for tree, lane in group])
        panel.scatter(*roots.T, s=5 * scale, marker="s", facecolors=face, edgecolors=colour, linewidths=1.1, zorder=4)
    panel.set(ylim=(num_lanes - 0.2, -0.8), yticks=[])
    panel.spines["left"].set_visible(False)
    if not placed:
        return f"Trees over time: none, as no token was linked to the {_unit(trace)} before"
    what = f"all {num_trees:,}" if len(placed) == num_trees else f"{len(placed):,} of {num_trees:,}, the longest first"
    return (
        f"Trees over time, {what}. Squares: roots, filled if kept, open if not; "
        f"dots: tokens of later {_unit(trace)}s, larger where there are more"
    )


def _draw_bars(panel: Any, trace: VideoTrace) -> str:
    """Draw how many tokens of each frame entered, and how many of them remained; return the title."""
    frames = np.arange(len(trace.fate))
    selected, roots = (trace.rows_per_frame(fate) for fate in (Fate.SELECTED, Fate.ROOT))
    edge = {"edgecolor": BACKGROUND, "linewidth": 0.5 if len(frames) <= 128 else 0}
    bars = [
        panel.bar(frames, selected, width=0.8, color=SELECTED, label="selected", **edge),
        panel.bar(frames, roots, width=0.8, bottom=selected, color=ROOT, hatch="///", label="tree roots", **edge),
    ]
    if trace.remained < trace.entered:
        remained, label = trace.rows_remained.sum(1), f"of these seen from layer {trace.settings['pruning_layer']} on"
        ends = {"xmin": frames - 0.4, "xmax": frames + 0.4}
        bars.append(panel.hlines(remained, **ends, color=REMAINED, linewidth=2.2, label=label, clip_on=False))
    panel.set(ylim=(0, 1.05 * int((selected + roots).max())), ylabel="tokens")
    panel.yaxis.get_major_locator().set_params(integer=True)
    place = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0), "borderaxespad": 0.1}
    panel.legend(handles=bars, ncols=3, frameon=False, handlelength=1.6, **place)
    return f"Tokens of each {_unit(trace)} that entered the language model"


def _mark_segments(panel: Any, trace: VideoTrace, width: float, *, numbers: bool) -> None:
    """Draw a vertical line where a segment begins, and write its number above if there is room."""
    num_frames = len(trace.fate)
    first = np.flatnonzero(trace.starts)
    panel.set_xlim(-0.6, num_frames - 0.4)
    for start in first[1:]:
        panel.axvline(start - 0.5, color="#555555", linewidth=0.9, linestyle=(0, (4, 3)), zorder=0.5)
    if not numbers:
        return
    for number, (start, end) in enumerate(zip(first, [*first[1:], num_frames], strict=True), 1):
        room = (end - start) / num_frames * width
        text = f"segment {number}" if room > 0.9 else str(number)
        if room > 0.25:
            place = (start + end - 1) / 2
            panel.text(place, 1.0, text, transform=panel.get_xaxis_transform(), ha="center", va="bottom", fontsize=9)


def _label_time(panel: Any, trace: VideoTrace) -> None:
    num_frames = len(trace.fate)
    step = -(-num_frames // 16)
    ticks = np.arange(0, num_frames, step)
    times = [f"{t}" if np.isnan(trace.seconds[t]) else f"{t}\n{trace.seconds[t]:.2f} s" for t in ticks]
    panel.set_xticks(ticks, times)
    panel.set_xlabel(f"{_unit(trace)}{'' if np.isnan(trace.seconds[0]) else ' and its time'}", loc="left", fontsize=9)
