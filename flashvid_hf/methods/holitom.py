"""HoliTom: merge static places over the best windows of frames, select what moves, and merge inside the model."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..compression.budget import share_out
from ..compression.validation import setting
from ..compression.weighted_rows import count_by_slot
from .compression_method import Kept, LatePruning, Signals
from .static_tokens import cluster_sets, keep_tokens, limit_static, merge_over_time, segment_bounds

# Weight of the centre in a merged token; the mean of the tokens that joined it has the rest. The source's constant.
_CENTER_WEIGHT = 0.6
# Most bytes of the float32 sums of paths that exist at once. It bounds the memory for long videos.
_PATHS_BYTES = 64 * 2**20


@dataclass(frozen=True, kw_only=True)
class HoliTom(LatePruning):
    """HoliTom: Holistic Token Merging for Fast Video Large Language Models (arXiv 2505.21334).

    1. Windows: a place is static from frame a to frame b if every cos(x_tn, x_(t+1)n) in between is above
       `static_threshold`. The window a ... b then saves gain(a, b) = static places * (b - a) tokens. The video is cut
       into the windows with the largest total gain.
    2. In each window, the tokens of a static place become one token, their mean, at the first frame of the window.
    3. P tokens are left after step 2. The share M / P of every set of tokens stays. The static tokens of a window are a
       set. DPC-kNN clusters them, and a cluster becomes 0.6 * centre + 0.4 * mean of its other tokens. The dynamic
       tokens of a frame are a set. Those with the most attention stay unchanged.
    4. At layer K of the language model the share `llm_retention_ratio` of the tokens stays: those that get the most
       attention from the last token of the prompt, mean over the heads of layer K - 1. The other tokens are averaged
       one after the other into the most similar of these.

    Differs from the source:

    - Share: the share of the tokens that enters follows from `retention_ratio`, the average over the layers of the
      language model. So does the threshold of step 1, which in the source depends on the share that enters.
    - Budget: it is met exactly. The sets share M tokens out in proportion to their sizes, by largest remainder; a
      static set that gets none is dropped. If P would be below M, static tokens become dynamic until P is M, those
      that are least similar to the token before them first. The source rounds the counts of static sets, rounds those
      of frames up, and keeps fewer tokens if P is below M.
    - Attention: what each token receives in the last vision block.
    - Windows: the cuts are found from the end of the video backwards. Among equally good windows that end at the same
      frame, the one that starts earliest is taken. Nothing limits the length of a window.
    - Density: it has no random noise, so ties go to the lower index. It takes at most as many neighbours as a set has
      tokens.
    - Step 3: dynamic tokens are never merged, which is the source's default (D = 0).
    - Step 4: the count is rounded up. The keys and values of the layers below K stay.
    - Positions: a token has the place of its centre. In the LLaVA families positions are consecutive.

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
            num_joined = count_by_slot(joined.flatten(), joins.float())  # tokens that joined the centre of each token
            share = torch.where(joins, (1 - _CENTER_WEIGHT) / num_joined, _CENTER_WEIGHT)
            share = share.masked_fill(num_joined == 0, 1)
        return keep_tokens(features, merged, kept, joined, share, starts=starts, num_tokens=num_tokens)


def last_still_frames(still: torch.Tensor) -> torch.Tensor:
    """For every token, the last frame up to which its place stays static, with shape (T, N).

    Args:
        still: whether each token is similar to the token at its place in the next frame, with shape (T - 1, N).
    """
    num_frames = len(still) + 1
    frame = torch.arange(num_frames, device=still.device)[:, None]
    moves = torch.where(F.pad(still, (0, 0, 0, 1)), num_frames, frame)
    return moves.flip(0).cummin(0).values.flip(0)


def window_gains(still_until: torch.Tensor) -> torch.Tensor:
    """How many tokens the window from frame a to frame b saves, with shape (T, T); -inf for b < a.

    Args:
        still_until: see `last_still_frames`, with shape (T, N).
    """
    num_frames, tokens_per_frame = still_until.shape
    frame = torch.arange(num_frames, device=still_until.device)
    ends = frame.expand(num_frames, -1).contiguous()
    num_static = tokens_per_frame - torch.searchsorted(still_until.sort(dim=1).values, ends)
    length = frame - frame[:, None]
    return (num_static * length).float().masked_fill(length < 0, float("-inf"))


def best_windows(gains: torch.Tensor) -> torch.Tensor:
    """Cut a video into the windows with the largest total gain.

    A cut of the video is a path from its start to its end over the gaps between frames. The best path is found by
    repeated squaring of the matrix of gains, with maximum and sum in place of sum and product (max-plus algebra). The
    gains are integers that float32 holds exactly.

    Args:
        gains: see `window_gains`, with shape (T, T).

    Returns:
        Boolean mask with shape (T,): True at the first frame of every window.
    """
    num_frames = len(gains)
    gap = torch.arange(num_frames + 1, device=gains.device)
    steps = F.pad(gains, (1, 0, 0, 1), value=float("-inf"))  # from gap a to gap b + 1
    paths = steps.masked_fill(gap == gap[:, None], 0)  # a path may stay at its gap
    size = max(1, _PATHS_BYTES // (4 * (num_frames + 1) ** 2))
    for _ in range((num_frames - 1).bit_length()):
        paths = torch.cat([(rows[:, :, None] + paths).amax(1) for rows in paths.split(size)])
    # From the end backwards: the best gap before each gap, then by pointer doubling all gaps on the best path.
    previous = (paths[0][:, None] + steps).argmax(0)  # 0 for gap 0 itself, because all of its sums are -inf
    passed = gap == num_frames
    for _ in range(num_frames.bit_length()):
        passed = passed | (passed[:, None] & (previous[:, None] == gap)).any(0)
        previous = previous[previous]
    return passed[:-1]
