"""HoliTom: windows of frames that merge most over time, the best of what moves, and merging inside the model."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..compression.budget import share_out
from ..compression.validation import setting
from ..compression.weighted_rows import count_by_slot
from .compression_method import Kept, LatePruning, Signals
from .static_tokens import cluster_sets, keep_tokens, limit_static, merge_over_time, segment_bounds

# A merged token is this much its centre, and the mean of those that joined for the rest.
_CENTER_WEIGHT = 0.6
# Most bytes of the sums of paths (float32) that exist at once.
_PATHS_BYTES = 64 * 2**20


@dataclass(frozen=True, kw_only=True)
class HoliTom(LatePruning):
    """HoliTom: Holistic Token Merging for Fast Video Large Language Models (arXiv 2505.21334).

    1. Windows: a place is static from frame a to b if each cos(x_tn, x_(t+1)n) on the way is above
       `static_threshold`. The window saves gain(a, b) = static places * (b - a) tokens; the video is cut into the
       windows with the largest total gain.
    2. The tokens of a static place become one, their mean, at the first frame of the window.
    3. Of the P tokens that are left, M / P of every set stay. The static tokens of a window are clustered by DPC-kNN:
       0.6 * centre + 0.4 * mean of those that are nearer to it than to other centres. Of the dynamic tokens of each
       frame those with the most attention stay, unchanged.
    4. At layer K of the language model the share `llm_retention_ratio` stays: the tokens with the largest attention,
       mean over the heads of layer K - 1, from the last token of the prompt. Every other token is averaged into the
       most similar of these, one after the other.

    Differs from the source in:
    - what share of the tokens enters follows from `retention_ratio`, the average over the layers of the language
      model, and so does the threshold of step 1, which in the source depends on the share that enters;
    - the exact budget. The source rounds the counts of static sets, rounds those of frames up, and keeps less where P
      is below M. Here the sets share M tokens out in proportion to their sizes, by largest remainder; a static set
      that gets none is dropped. Where P would be below M, the static tokens that are least similar to the one before
      them are dynamic, until P is M;
    - attention: what each token receives in the last vision block;
    - of equally good windows the one that starts earliest is taken, seen from the end of the video. Nothing limits
      their length;
    - the density has no random noise: ties go to the lower index. It takes at most as many neighbours as a set has;
    - step 3 has only the default for dynamic tokens, without merging any of them (the source's D = 0);
    - step 4 rounds the count up. The keys and values of the layers below K stay;
    - positions: a token has the place of its centre. In the LLaVA families positions are consecutive.

    Defaults as in the source: K at 18/28 of the depth, and half of the tokens from there on.
    """

    name = "holitom"
    pruning_depth = 18 / 28
    pruning_rule = {"merges": True}

    static_threshold: float | None = setting(
        None,
        "cosine above which a place stays static; `null`, as in the source: 0.65 where `retention_ratio` is at most "
        "0.1, 0.8 above",
        least=-1,
        optional=True,
    )

    def keep(self, features: torch.Tensor, signals: Signals, num_tokens: int) -> Kept:
        threshold = self.static_threshold
        if threshold is None:
            threshold = 0.65 if self.retention_ratio <= 0.1 else 0.8
        with torch.no_grad():
            similarity = F.cosine_similarity(features[1:], features[:-1], dim=-1)
            still_until = last_still_frames(similarity > threshold)
            starts = best_windows(window_gains(still_until))
            first, last = segment_bounds(starts)
            static = (still_until[first] >= last[:, None]) & (last > first)[:, None]
            static = limit_static(static, starts, F.pad(similarity, (0, 0, 1, 0)), num_tokens)
            merged = merge_over_time(features, static, starts)

            sizes = torch.cat([merged.static, merged.dynamic]).sum(1)
            num_static, num_dynamic = share_out(num_tokens, sizes, sizes).chunk(2)
            centers, joined = cluster_sets(
                merged.tokens, merged.static, num_static, max_sets=max(1, len(features) // 2)
            )  # a window with static tokens has two frames or more
            scores = signals.attention.masked_fill(static, float("-inf"))
            rank = scores.argsort(dim=1, descending=True, stable=True).argsort()
            kept = torch.where(merged.dynamic, rank < num_dynamic[:, None], centers)

            joins = (merged.static & ~centers).flatten()
            num_joined = count_by_slot(joined.flatten(), joins.float())  # the centre of each token
            share = torch.where(joins, (1 - _CENTER_WEIGHT) / num_joined, _CENTER_WEIGHT)
            share = share.masked_fill(num_joined == 0, 1)
        return keep_tokens(features, merged, kept, joined, share, starts=starts, num_tokens=num_tokens)


def last_still_frames(still: torch.Tensor) -> torch.Tensor:
    """For every token, the last frame up to which its place stays static, with shape (T, N).

    Args:
        still: whether each token is similar to the next frame's, with shape (T - 1, N).
    """
    num_frames = len(still) + 1
    frame = torch.arange(num_frames, device=still.device)[:, None]
    moves = torch.where(F.pad(still, (0, 0, 0, 1)), num_frames, frame)
    return moves.flip(0).cummin(0).values.flip(0)


def window_gains(still_until: torch.Tensor) -> torch.Tensor:
    """Tokens that a window from frame a to b saves, with shape (T, T), -inf for b < a; see `last_still_frames`."""
    num_frames, tokens_per_frame = still_until.shape
    frame = torch.arange(num_frames, device=still_until.device)
    ends = frame.expand(num_frames, -1).contiguous()
    num_static = tokens_per_frame - torch.searchsorted(still_until.sort(dim=1).values, ends)
    length = frame - frame[:, None]
    return (num_static * length).float().masked_fill(length < 0, float("-inf"))


def best_windows(gains: torch.Tensor) -> torch.Tensor:
    """Where the windows start that cut a video with the largest total gain, with shape (T,).

    A path from the start of the video to its end, over the gaps between frames, by repeated squaring in the algebra of
    maximum and sum. The gains are integers that float32 holds exactly.

    Args:
        gains: of windows from frame a to b, with shape (T, T), -inf for b < a.
    """
    num_frames = len(gains)
    gap = torch.arange(num_frames + 1, device=gains.device)
    steps = F.pad(gains, (1, 0, 0, 1), value=float("-inf"))  # from gap a to gap b + 1
    paths = steps.masked_fill(gap == gap[:, None], 0)  # or stay
    size = max(1, _PATHS_BYTES // (4 * (num_frames + 1) ** 2))
    for _ in range((num_frames - 1).bit_length()):
        paths = torch.cat([(rows[:, :, None] + paths).amax(1) for rows in paths.split(size)])
    # Back from the end: the step into every gap, and by doubling the gaps that are on the way.
    previous = (paths[0][:, None] + steps).argmax(0)  # the start leads to itself: all of its sums are -inf
    passed = gap == num_frames
    for _ in range(num_frames.bit_length()):
        passed = passed | (passed[:, None] & (previous[:, None] == gap)).any(0)
        previous = previous[previous]
    return passed[:-1]
