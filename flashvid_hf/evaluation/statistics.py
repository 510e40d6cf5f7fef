"""Accuracies with confidence intervals, from the answers of an evaluation.

The questions about one video are not independent, so intervals come from a bootstrap over videos.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import bootstrap

from .runner import Answer

ALL = "all"  # the group of all questions
CONFIDENCE = 0.95  # share of the resampled values inside an interval
_RESAMPLES = 2000  # of the bootstrap
_SEED = 0  # of the bootstrap: the same answers give the same intervals


def summarize(answers: Iterable[Answer], references: Mapping[str, str] | None = None) -> dict[str, dict[str, Any]]:
    """Accuracy and token counts of every run.

    Args:
        answers: the answers of all runs, which have the same questions.
        references: for some runs, the name of the run with which it is compared, question by question.

    Returns:
        For every run `retained`, `entered` and `remained` (shares of the video tokens, means over the videos) and
        `accuracy`. `accuracy` has a group for "all", for every type of question and for every form, each with
        `correct`, `total`, and `value` with its interval from `low` to `high`. A run with a reference also has
        `reference`, and in each group `difference`, its own value minus the reference's, with the interval from
        `difference_low` to `difference_high`.

    Raises:
        ValueError: a run and its reference have different questions, or there is no such run.
    """
    runs: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        runs[answer.run].append(answer)
    counts = {name: _count(of_run) for name, of_run in runs.items()}
    summaries: dict[str, dict[str, Any]] = {}
    for name, of_run in runs.items():
        accuracy = {group: _interval(of_videos) for group, of_videos in counts[name].items()}
        summaries[name] = {**_shares(of_run), "accuracy": accuracy}
    for name, reference in (references or {}).items():
        for one in (name, reference):
            if one not in runs:
                raise ValueError(f"`references` has {one!r}: it must be one of {', '.join(map(repr, runs))}.")
        summaries[name]["reference"] = reference
        for group, of_videos in counts[name].items():
            theirs = counts[reference].get(group, {})
            if {v: n for v, (_, n) in theirs.items()} != {v: n for v, (_, n) in of_videos.items()}:
                raise ValueError(
                    f"The run {name!r} has other {group!r} questions than {reference!r}: they cannot be compared. "
                    "Evaluate both on the same items."
                )
            summaries[name]["accuracy"][group].update(_difference(of_videos, theirs))
    return summaries


def _count(answers: Sequence[Answer]) -> dict[str, dict[str, tuple[int, int]]]:
    """Numbers of correct answers and of questions for every video, in every group of questions."""
    counts: dict[str, dict[str, tuple[int, int]]] = defaultdict(dict)
    for answer in sorted(answers, key=lambda answer: (answer.video, answer.question)):
        for group in dict.fromkeys((ALL, answer.type, answer.form)):
            correct, total = counts[group].get(answer.video, (0, 0))
            counts[group][answer.video] = (correct + answer.correct, total + 1)
    return counts


def _shares(answers: Sequence[Answer]) -> dict[str, float]:
    videos = {answer.video: answer for answer in answers}.values()
    return {
        "retained": float(np.mean([video.retained for video in videos])),
        "entered": float(np.mean([video.entered / video.tokens for video in videos])),
        "remained": float(np.mean([video.remained / video.tokens for video in videos])),
    }


def _interval(of_videos: dict[str, tuple[int, int]]) -> dict[str, Any]:
    correct, total = np.array(list(of_videos.values())).T
    low, high = _bootstrap((correct, total), lambda c, n, axis=-1: c.sum(axis) / n.sum(axis))
    value = correct.sum() / total.sum()
    return {"correct": int(correct.sum()), "total": int(total.sum()), "value": float(value), "low": low, "high": high}


def _difference(of_videos: dict[str, tuple[int, int]], theirs: dict[str, tuple[int, int]]) -> dict[str, float]:
    ours, total = np.array(list(of_videos.values())).T
    other = np.array([theirs[video][0] for video in of_videos])
    low, high = _bootstrap((ours, other, total), lambda a, b, n, axis=-1: (a.sum(axis) - b.sum(axis)) / n.sum(axis))
    value = (ours.sum() - other.sum()) / total.sum()
    return {"difference": float(value), "difference_low": low, "difference_high": high}


def _bootstrap(samples: tuple, statistic: Any) -> tuple[float, float]:
    """Bounds of the interval; if there is a single video, both are the value itself."""
    if len(samples[0]) < 2:
        return (float(statistic(*samples)),) * 2
    interval = bootstrap(
        samples,
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=_RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(_SEED),
    ).confidence_interval
    return float(interval.low), float(interval.high)
