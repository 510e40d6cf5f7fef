"""When each frame of a video is shown.

Constant rate: every frame is shown close to index / fps (`_LARGEST_ERROR` says how close). Indices then count the
frames of the file, and its header's rate applies.

Variable rate (recordings of screens, browsers and television; animated pictures): the video is described as the
constant-rate video that a player would show. Its indices are places on a regular grid of `fps` places a second, from
the first shown frame to the end of the last one. At the place k the player shows the last frame that has started by
k / fps seconds: a pause repeats a frame. So index / fps is the real time in either case, and everything that is
computed from it: `VideoMetadata.timestamps`, the seconds in the prompt of Qwen3-VL, `second_per_grid_ts` of Qwen2.5-VL.

The grid's rate is the header's, if that lies within `_GRID_RATES` and is high enough for the shortest interval between
two frames. Otherwise it follows from the shortest interval. A few very short intervals do not count. Every rate
below the range is multiplied by a whole number, so that a frame is at most 1/24 s late.
"""

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import NamedTuple

# Seconds by which a frame of a constant rate may be early or late, at most half a frame. Qwen3-VL writes tenths of a
# second into the prompt: 0.05 s is what rounding to them loses.
_LARGEST_ERROR = 0.05
# Places a second of the grid. The lowest is the lowest rate of films. Above the highest there are only slow-motion
# recordings of a constant rate, and headers that state the unit of time (1000 in Matroska, 90000 in MPEG) as the rate.
_GRID_RATES = (24.0, 240.0)
_SHORT_INTERVALS = 0.1  # the share of the intervals that may be shorter than the step of the grid
# Seconds by which the last frame of a constant rate may be shown longer than the others. Programs often give the last
# frame a length of their own.
_HELD = 0.5
_ROUNDING = 1e-6  # seconds that the arithmetic may be off after many hours
_ONLY_FRAME = 0.04  # seconds that a video of one frame lasts if nothing says so: 25 frames a second


class Timeline(NamedTuple):
    """Which frame is shown at which index.

    Args:
        total: indices of the video, at least 1.
        fps: indices a second; None if nothing in the file says so.
        starts: for a variable rate, the seconds from the first frame to each frame, ascending. None for a constant
            rate, where an index is the number of a frame.
        tolerance: seconds by which a frame may start after its index, because the file rounds times.
    """

    total: int
    fps: float | None
    starts: Sequence[float] | None = None
    tolerance: float = 0.0

    def frame_at(self, index: int) -> int:
        """The number of the frame that is shown at an index; frames are counted in the order in which they appear."""
        if self.starts is None:
            return index
        return max(bisect_right(self.starts, index / self.fps + self.tolerance) - 1, 0)


def make_timeline(
    times: Sequence[float],
    rates: Iterable[float | None],
    last: Iterable[float] = (),
    tick: float = 0.0,
    held: float = 0.0,
) -> Timeline:
    """The timeline of a video from the times of its frames.

    Args:
        times: seconds at which the frames appear, ascending; at least one.
        rates: frames a second by the file's headers, the most trustworthy first; None or 0 where one is missing.
        last: seconds for which the last frame is shown, by the file, the most trustworthy first. The first that is
            not far too short counts, otherwise the usual interval between two frames does.
        tick: the file's unit of time in seconds, to which it rounds times.
        held: seconds for which the last frame itself says that it is shown; 0 if it does not. A rate is not constant if
            the last frame is held, as at the end of many animations and recordings of screens.
    """
    lowest, highest = _GRID_RATES
    starts = [time - times[0] for time in times]
    rates = [float(rate) for rate in rates if rate and rate > 0]
    intervals = sorted(after - before for before, after in zip(starts, starts[1:], strict=False) if after > before)
    if not intervals:  # one frame
        length = next((float(length) for length in last if length > 0), 0.0)
        if rates and rates[0] <= highest:
            return Timeline(len(starts), rates[0])
        return Timeline(1, 1 / max(length, _ONLY_FRAME)) if len(starts) == 1 and rates else Timeline(len(starts), None)
    shortest = intervals[int(_SHORT_INTERVALS * len(intervals))]
    usual = intervals[len(intervals) // 2]
    # Shorter than that is what a wrong rate in the header makes of the last frame.
    length = next((float(length) for length in last if length >= min(shortest / 2, 0.5 / lowest)), usual)

    mean = (len(starts) - 1) / starts[-1]
    for rate in rates:
        if _is_constant(starts, rate) and held <= max(2 / rate, 1 / rate + _HELD):
            return Timeline(len(starts), rate)
    # The header may be wrong about a constant rate. It is one only if the last frame is shown as long as the others.
    if abs(length - 1 / mean) <= max(0.55 / mean, _LARGEST_ERROR) + tick and _is_constant(starts, mean):
        return Timeline(len(starts), mean)

    fine = [rate for rate in rates[:1] if rate <= highest and 1 / rate <= shortest + tick]
    fps = fine[0] if fine else round(min(1 / shortest, highest), 2)
    fps *= math.ceil(lowest / fps - 1e-9) if fps < lowest else 1
    tolerance = min(max(tick, _ROUNDING), 0.5 / fps)
    total = max(round((starts[-1] + length) * fps), math.ceil((starts[-1] - tolerance) * fps) + 1)
    return Timeline(total, fps, starts, tolerance)


def _is_constant(starts: Sequence[float], rate: float) -> bool:
    error = min(0.5 / rate, _LARGEST_ERROR)
    return all(abs(start - index / rate) <= error for index, start in enumerate(starts))
