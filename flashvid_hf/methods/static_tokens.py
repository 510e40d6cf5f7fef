"""What methods share that merge, over the frames of a segment, the tokens at a place where nothing happens.

Such places are static in the segment: their tokens become one at its first frame. All other tokens are dynamic. The
tokens are then compressed in sets: the static ones of a segment, and the dynamic ones of a frame.

Legend of the compression core: T frames (for Qwen: temporal grids), N tokens a frame, D width, M kept tokens. A flat
index is t * N + n.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..compression.budget import indices_of
from ..compression.density_peaks import cluster_tokens
from ..compression.frame_chunks import frames_per_chunk, map_frames
from ..compression.weighted_rows import count_by_slot, weighted_sums
from .compression_method import Kept

# Nearest neighbours in the density estimates; fewer where a set has fewer tokens.
NUM_NEIGHBORS = 7


def segment_bounds(starts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """First and last frame of the segment of every frame, with shape (T,) each, of the mask where segments start."""
    num_frames = len(starts)
    frame = torch.arange(num_frames, device=starts.device)
    first = torch.where(starts, frame, 0).cummax(0).values
    next_start = F.pad(torch.where(starts, frame, num_frames)[1:], (0, 1), value=num_frames)
    return first, next_start.flip(0).cummin(0).values.flip(0) - 1


def limit_static(static: torch.Tensor, starts: torch.Tensor, similarity: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """Take out of `static` as few tokens as leave at least `num_tokens` after merging, the least similar ones first.

    Those of the first frame of a segment stay; the others count one token each as soon as they are dynamic.

    Args:
        static: with shape (T, N); the same for all frames of a segment.
        starts: where segments start, with shape (T,).
        similarity: with shape (T, N); ties go to the lower index.
        num_tokens: M.
    """
    merged = static & ~starts[:, None]
    missing = num_tokens - (~merged).sum()
    rank = similarity.masked_fill(~merged, float("inf")).flatten().argsort(stable=True).argsort()
    return static & (rank >= missing).view_as(static)


class MergedOverTime(NamedTuple):
    """The static tokens of every segment merged.

    Args:
        tokens: with shape (T, N, D): at the first frame of a segment the means of its static tokens, every dynamic
            token at its own place, and nothing at the others.
        place: flat index where each token went, with shape (T * N,).
        weight: its share of the token there, with shape (T * N,).
        static, dynamic: the sets: where there are tokens of either kind, with shape (T, N).
    """

    tokens: torch.Tensor
    place: torch.Tensor
    weight: torch.Tensor
    static: torch.Tensor
    dynamic: torch.Tensor


def merge_over_time(features: torch.Tensor, static: torch.Tensor, starts: torch.Tensor) -> MergedOverTime:
    """Replace the static tokens of every segment by one, their mean, at its first frame.

    Args:
        features: with shape (T, N, D), float32.
        static: with shape (T, N).
        starts: where segments start, with shape (T,).
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
    """DPC-kNN in the set of every frame, see `cluster_tokens`.

    Args:
        tokens: with shape (T, N, D), float32.
        candidates: the set of every frame, with shape (T, N).
        num_clusters: with shape (T,), at most the tokens of the set.
        max_sets: at most so many sets are not empty; the others are not looked at.

    Returns:
        Tuple of the mask of the cluster centres and, for every token, the flat index of the centre that it joins (its
        own for other than candidates, and in sets without clusters), both with shape (T, N).
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
    """Sum the tokens up at the places that are kept. Gradients flow through the features alone.

    Args:
        features: with shape (T, N, D), float32.
        merged: how they were merged over time.
        kept: M places, with shape (T, N).
        joined: flat index of the place that each merged token goes to, with shape (T, N); dropped if it is not kept.
        share: weight of each merged token there, with shape (T * N,).
        starts: where segments start, with shape (T,).
        num_tokens: M.
    """
    kept, joined = kept.flatten(), joined.flatten()
    flat_index = torch.arange(len(kept), device=kept.device)
    row = (kept.cumsum(0) - 1).masked_fill(~kept, -1)
    slots = row[joined][merged.place]
    weight = (merged.weight * share[merged.place]).masked_fill(slots < 0, 0)
    # Dropped tokens count with weight 0, spread over the rows so that none gets many.
    rows = torch.where(slots < 0, flat_index % num_tokens, slots)
    return Kept(
        weighted_sums(features.flatten(0, 1), None, rows, weight, flat_index[:num_tokens]),
        indices_of(kept, num_tokens),
        selected=(weight == 1).view(features.shape[:2]),  # nothing was merged into these
        slots=slots.view(features.shape[:2]),
        starts=starts,
    )
