"""Shared parts of methods that merge the tokens of a place over the frames of a segment, if nothing happens there.

Such a place is static in the segment: its tokens become one token at the first frame. All other tokens are dynamic.
Then the tokens are compressed in sets: the static tokens of each segment, and the dynamic tokens of each frame.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..compression.budget import indices_of
from ..compression.density_peaks import cluster_tokens
from ..compression.frame_chunks import frames_per_chunk, map_frames
from ..compression.weighted_rows import count_by_slot, weighted_sums
from .compression_method import Kept

# Nearest neighbours in the density estimates; fewer if a set has fewer tokens.
NUM_NEIGHBORS = 7


def segment_bounds(starts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """First and last frame of the segment of every frame, with shape (T,) each.

    Args:
        starts: True at the first frame of every segment, with shape (T,).
    """
    num_frames = len(starts)
    frame = torch.arange(num_frames, device=starts.device)
    first = torch.where(starts, frame, 0).cummax(0).values
    next_start = F.pad(torch.where(starts, frame, num_frames)[1:], (0, 1), value=num_frames)
    return first, next_start.flip(0).cummin(0).values.flip(0) - 1


def limit_static(static: torch.Tensor, starts: torch.Tensor, similarity: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """Make as few static tokens dynamic as needed for at least `num_tokens` tokens to be left after merging.

    The least similar tokens become dynamic first. Tokens of the first frame of a segment stay static. Each other static
    token adds one to the number that is left when it becomes dynamic.

    Args:
        static: which tokens are static, with shape (T, N), the same in all frames of a segment.
        starts: True at the first frame of every segment, with shape (T,).
        similarity: similarity that orders the tokens, with shape (T, N). Ties go to the lower index.
        num_tokens: M.

    Returns:
        Which tokens stay static, with shape (T, N).
    """
    merged = static & ~starts[:, None]
    missing = num_tokens - (~merged).sum()
    rank = similarity.masked_fill(~merged, float("inf")).flatten().argsort(stable=True).argsort()
    return static & (rank >= missing).view_as(static)


class MergedOverTime(NamedTuple):
    """A video whose static tokens are merged over the frames of each segment.

    Args:
        tokens: with shape (T, N, D). The first frame of a segment holds the means of its static tokens. Dynamic tokens
            are at their own places. The other places are zero.
        place: flat index of the place that each token went to, with shape (T * N,).
        weight: share of each token in the mean at that place, with shape (T * N,).
        static: places that hold a merged static token, with shape (T, N).
        dynamic: places that hold a dynamic token, with shape (T, N).
    """

    tokens: torch.Tensor
    place: torch.Tensor
    weight: torch.Tensor
    static: torch.Tensor
    dynamic: torch.Tensor


def merge_over_time(features: torch.Tensor, static: torch.Tensor, starts: torch.Tensor) -> MergedOverTime:
    """Replace the static tokens of a place in every segment by one token, their mean, at its first frame.

    Args:
        features: with shape (T, N, D), float32.
        static: which tokens are static, with shape (T, N).
        starts: True at the first frame of every segment, with shape (T,).
    """
    num_frames, tokens_per_frame = static.shape
    flat_index = torch.arange(static.numel(), device=static.device)
    first = segment_bounds(starts)[0]
    place = torch.where(static, flat_index.view_as(static)[first], flat_index.view_as(static)).flatten()
    weight = count_by_slot(place, torch.ones_like(place, dtype=torch.float32)).reciprocal()
    tokens = weighted_sums(features.flatten(0, 1), None, place, weight, flat_index)
    return MergedOverTime(tokens.view_as(features), place, weight, static & starts[:, None], ~static)


def cluster_sets(
    tokens: torch.Tensor, candidates: torch.Tensor, num_clusters: torch.Tensor, *, max_sets: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cluster the set of every frame by DPC-kNN, see `cluster_tokens`.

    Args:
        tokens: with shape (T, N, D), float32.
        candidates: mask of the set of every frame, with shape (T, N).
        num_clusters: clusters of every set, with shape (T,), at most the tokens of the set.
        max_sets: upper bound of the sets that are not empty. Only so many sets are clustered. Default: T.

    Returns:
        Tuple of the mask of the cluster centres and, for every token, the flat index of the centre that it joins, both
        with shape (T, N). A token that is no candidate, or whose set has no clusters, joins itself.
    """
    num_frames, tokens_per_frame = candidates.shape
    sets = candidates.any(1).byte().argsort(descending=True, stable=True)[:max_sets]

    def cluster(sets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        of_set = candidates[sets]
        num_neighbors = of_set.sum(1).clamp(1, NUM_NEIGHBORS)
        return cluster_tokens(tokens[sets], of_set, num_clusters[sets], num_neighbors)

    of_sets, joined = map_frames(cluster, frames_per_chunk(tokens), sets)
    centers = torch.zeros_like(candidates).index_copy(0, sets, of_sets)
    own = torch.arange(candidates.numel(), device=candidates.device).view_as(candidates)
    joined = own.index_copy(0, sets, joined + own[sets, :1])
    return centers, torch.where(candidates & (num_clusters > 0)[:, None], joined, own)


def keep_tokens(
    features: torch.Tensor,
    merged: MergedOverTime,
    kept: torch.Tensor,
    joined: torch.Tensor,
    share: torch.Tensor,
    *,
    starts: torch.Tensor,
    num_tokens: int,
) -> Kept:
    """Sum up the tokens that go to each kept place. Gradients flow only through the features.

    Args:
        features: with shape (T, N, D), float32.
        merged: how the features were merged over time.
        kept: mask of the M places that are kept, with shape (T, N).
        joined: flat index of the place that each merged token goes to, with shape (T, N). If that place is not kept,
            the token is dropped.
        share: weight of each merged token at that place, with shape (T * N,).
        starts: True at the first frame of every segment, with shape (T,).
        num_tokens: M.
    """
    kept, joined = kept.flatten(), joined.flatten()
    flat_index = torch.arange(len(kept), device=kept.device)
    row = (kept.cumsum(0) - 1).masked_fill(~kept, -1)
    slots = row[joined][merged.place]
    weight = (merged.weight * share[merged.place]).masked_fill(slots < 0, 0)
    # Dropped tokens have weight 0. They are spread over the rows so that no row gets many entries.
    rows = torch.where(slots < 0, flat_index % num_tokens, slots)
    return Kept(
        weighted_sums(features.flatten(0, 1), None, rows, weight, flat_index[:num_tokens]),
        indices_of(kept, num_tokens),
        selected=(weight == 1).view(features.shape[:2]),  # no other token was merged into these
        slots=slots.view(features.shape[:2]),
        starts=starts,
    )
