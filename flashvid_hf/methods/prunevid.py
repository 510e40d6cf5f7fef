"""PruneVID: merge what does not move in a scene, cluster the rest, then drop what the question attends to least."""

from dataclasses import dataclass

import torch

from ..compression.budget import share_out
from ..compression.density_peaks import cluster_tokens
from ..compression.similarity import inverse_norms
from ..compression.token_merging import same_segment
from ..compression.validation import setting
from ..compression.weighted_rows import count_by_slot, weighted_sums
from .compression_method import Kept, LatePruning, Signals
from .static_tokens import NUM_NEIGHBORS, cluster_sets, keep_tokens, limit_static, merge_over_time, segment_bounds

# Sets of at most this many tokens are not clustered; the source's constant.
_SMALL_SET = 14


@dataclass(frozen=True, kw_only=True)
class PruneVID(LatePruning):
    """PruneVID: Visual Token Pruning for Efficient Video Large Language Models (arXiv 2412.16117).

    1. Segments: DPC-kNN clusters the mean tokens of the frames. Every cluster becomes a run of frames.
    2. Time: a place is static in a segment of l frames if the mean cosine of its tokens, over all l * (l - 1) / 2 pairs
       of frames, is above `static_threshold`. Its tokens become one token, their mean, at the first frame of the
       segment.
    3. Space: P tokens are left after step 2. The static tokens of a segment are a set, and so are the dynamic tokens of
       a frame. W tokens lie in sets of at most 14 tokens, which stay whole. DPC-kNN leaves (M - W) / (P - W) of each
       other set: a cluster becomes its mean, at the place of its centre.
    4. At layer K of the language model the share `llm_retention_ratio` of the tokens stays: those that get the largest
       attention from any text token, mean over the heads of layer K - 1.

    Differs from the source:

    - Features: those that enter the language model. The share of the tokens that enters follows from
      `retention_ratio`, the average over the layers.
    - Budget: it is met exactly. The sets share M tokens out in proportion to their sizes, by largest remainder; a set
      that gets none is dropped. Small sets stay whole only if that leaves one token for every other set; otherwise they
      are clustered too. The source leaves a fixed share of every set, so its count depends on the video.
    - Step 2: it merges less if P would be below M. Tokens then become dynamic until P is M, at the places with the
      lowest mean cosine first, one by one in the order of time. The token of the first frame is never one of them.
    - Runs of frames: the source leaves a choice. Here a cluster keeps its longest run, the first among equally long
      ones, if it has two frames or more. The frames between two such runs go to the longer run, or to the earlier one
      if both are equally long. Without any such run the video is one segment.
    - Density: it has no random noise, so ties go to the lower index. It takes at most as many neighbours as a set has
      tokens.
    - Step 4: the text tokens are those behind the last video. The keys and values of the layers below K stay.
    - Positions and order: a token has the place of its centre, and all tokens are in the order of the video. In the
      LLaVA families positions are consecutive.

    Defaults as in the source: K at 10/28 of the depth, and 0.4 of the tokens from there on.
    """

    name = "prunevid"
    pruning_depth = 10 / 28
    pruning_rule = {"scored_by": "text_tokens"}
    signals = ()

    segment_ratio: float = setting(
        0.25, "clusters of frames as a share of the frames, rounded down, one at least", above=0, most=1
    )
    static_threshold: float = setting(0.8, "mean cosine above which a place is static", least=-1)
    llm_retention_ratio: float = 0.4

    def keep(self, features: torch.Tensor, signals: Signals, num_tokens: int) -> Kept:
        num_segments = max(1, int(len(features) * self.segment_ratio))
        with torch.no_grad():
            starts = segment_frames(features.mean(1), num_segments)
            first, last = segment_bounds(starts)
            similarity = pairwise_similarity(features, first, last)
            static = (similarity > self.static_threshold) & (last > first)[:, None]
            static = limit_static(static, starts, similarity, num_tokens)
            merged = merge_over_time(features, static, starts)

            sizes = torch.cat([merged.static, merged.dynamic]).sum(1)
            static_clusters, dynamic_clusters = share_over_sets(sizes, num_tokens).chunk(2)
            kept, joined = cluster_sets(merged.tokens, merged.dynamic, dynamic_clusters)
            centers, joined_static = cluster_sets(merged.tokens, merged.static, static_clusters, max_sets=num_segments)
            kept = kept | centers
            joined = torch.where(merged.static, joined_static, joined)
            counted = (merged.static | merged.dynamic).flatten().float()
            share = count_by_slot(joined.flatten(), counted).clamp(min=1).reciprocal()
        return keep_tokens(features, merged, kept, joined, share, starts=starts, num_tokens=num_tokens)


def segment_frames(frame_features: torch.Tensor, num_segments: int) -> torch.Tensor:
    """Cut a video into segments: clusters of frames, made contiguous, see `PruneVID`.

    Args:
        frame_features: mean token of every frame, with shape (T, D), float32.
        num_segments: number of clusters, at most T. There are at most as many segments.

    Returns:
        Boolean mask with shape (T,): True at the first frame of every segment.
    """
    num_frames, device = len(frame_features), frame_features.device
    _, cluster = cluster_tokens(
        frame_features[None],
        torch.ones(1, num_frames, dtype=torch.bool, device=device),
        torch.full((1,), num_segments, device=device),
        torch.full((1,), min(NUM_NEIGHBORS, num_frames), device=device),
    )
    return longest_runs(cluster[0])


def longest_runs(cluster: torch.Tensor) -> torch.Tensor:
    """Make clusters of frames contiguous: each cluster keeps at most one run of frames.

    Args:
        cluster: cluster of every frame, with shape (T,), from 0 to T - 1.

    Returns:
        Boolean mask with shape (T,): True at the first frame of every segment.
    """
    num_frames = len(cluster)
    frame = torch.arange(num_frames, device=cluster.device)
    run = torch.cat([frame[:1], (cluster[1:] != cluster[:-1]).cumsum(0)])
    length = same_segment(run).sum(1)
    # The longest run of every cluster, the first among equally long ones.
    order = length * num_frames - run
    stays = (order == (same_segment(cluster) * order).amax(1)) & (length > 1)
    # The other frames go to the run before or the run behind them.
    before = torch.where(stays, frame, -1).cummax(0).values
    behind = torch.where(stays, frame, num_frames).flip(0).cummin(0).values.flip(0)
    length = torch.cat([length, length.new_zeros(1)])  # length 0 where there is no run
    joins_before = length[before] >= length[behind]  # -1 and T stand for no run
    segment = torch.cat([run, run.new_zeros(1)])[torch.where(joins_before, before, behind)]
    return torch.cat([frame[:1] == 0, segment[1:] != segment[:-1]])


def pairwise_similarity(features: torch.Tensor, first: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """For every place, the mean cosine over all pairs of frames of a segment.

    With l frames in the segment and unit tokens u, it is (|sum of u|**2 - sum of |u|**2) / (l * (l - 1)); 0 if l is 1.

    Args:
        features: with shape (T, N, D), float32.
        first, last: first and last frame of the segment of every frame, with shape (T,).

    Returns:
        Tensor with shape (T, N), the same in all frames of a segment.
    """
    inverse_norm = inverse_norms(features.norm(dim=-1).square()).flatten()
    flat_index = torch.arange(len(inverse_norm), device=features.device)
    place = flat_index.view(features.shape[:2])[first].flatten()
    sums = weighted_sums(features.flatten(0, 1), None, place, inverse_norm, flat_index)
    nonzero = count_by_slot(place, (inverse_norm > 0).float())
    twice = (sums.norm(dim=-1).square()[place] - nonzero).view(features.shape[:2])  # every pair counts twice
    length = last - first + 1
    return twice / (length * (length - 1)).clamp(min=1)[:, None]


def share_over_sets(sizes: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """How many tokens each set keeps, with shape (S,), `num_tokens` in all.

    Args:
        sizes: tokens of each set, with shape (S,), at least `num_tokens` in all.
        num_tokens: M.
    """
    small = sizes <= _SMALL_SET
    fits = (sizes * small).sum() + (~small).sum() <= num_tokens
    whole = sizes * (small & fits)
    rest = sizes - whole
    return whole + share_out(num_tokens - whole.sum(), rest, rest)
