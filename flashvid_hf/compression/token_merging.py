"""TSTM of FlashVID (arXiv 2602.08024): link tokens over time into trees, then merge those of a frame that lie close.

Legend of the compression core: T frames (for Qwen: temporal grids), N tokens a frame, D width. A flat index is
t * N + n.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from .density_peaks import MAX_NEIGHBORS, cluster_tokens
from .frame_chunks import frames_per_step, join_chunks, map_frames
from .released_deviations import released_cluster_tokens, released_clusters
from .weighted_rows import count_by_slot, iterate_sums

# More than the roots of any video; times a number of frames still an int64.
_MORE_THAN_ROOTS = 2**40


def same_segment(segment: torch.Tensor) -> torch.Tensor:
    """Which frames lie in the same segment, with shape (T, T), given the segment of each."""
    return segment[:, None] == segment[None, :]


class MergedTokens(NamedTuple):
    """How the tokens that ADTS did not select are merged.

    Args:
        roots: flat index of the root of each token's tree, with shape (T * N,).
        centers: which tokens' places the merged tokens take, with shape (T, N).
        cluster: flat index of the centre that each token went to, with shape (T * N,).
        weight: share of each token in the mean that is placed there, with shape (T * N,); 0 if it was dropped.
    """

    roots: torch.Tensor
    centers: torch.Tensor
    cluster: torch.Tensor
    weight: torch.Tensor


def merge_tokens(
    features: torch.Tensor,
    parent: torch.Tensor,
    selected: torch.Tensor,
    segment: torch.Tensor,
    flat_index: torch.Tensor,
    *,
    together: torch.Tensor,
    num_merged: int,
    released: bool = False,
    size: int | None = None,
    overwrites: bool = False,
) -> MergedTokens:
    """Merge linked tokens over time, then all within the frames, into `num_merged` tokens a frame on average.

    Args:
        features: with shape (T, N, D), any floating dtype.
        parent: see `link_tokens`, with shape (T * N,).
        selected: boolean mask of the tokens that ADTS selected, with shape (T, N).
        segment: the segment of each frame, ascending, with shape (T,).
        flat_index: 0 ... T * N - 1.
        together: see `same_segment`.
        num_merged: merged tokens of a frame; at least 1.
        released: merge as the released code does: a tree's sum is divided by 1 + the direct children of its root, a
            single-frame segment clusters the selected tokens too, and every frame rounds its clusters up.
        size: frames whose float32 means are in memory at once; all by default.
        overwrites: the means may take the place of the features, float32, if there are at most `size` frames.
    """
    num_frames, num_tokens, width = features.shape
    size = size or num_frames
    length = together.sum(1)  # frames in the segment of each frame, (T,)

    # Over time: trees, each at the place of its root.
    is_root = parent == flat_index
    roots = find_roots(parent, num_frames)
    if released:
        children = torch.zeros_like(roots).index_add_(0, parent, (~is_root).long())
        members = (1 + children[roots]).float()
    else:
        members = count_by_slot(roots, torch.ones_like(roots, dtype=torch.float32))  # of each token's tree, (T * N,)
    weight = members.reciprocal()

    # Within the frames: clusters of roots.
    candidates = is_root.view_as(selected) > selected  # roots that are not selected
    if released:
        candidates = candidates | (length == 1)[:, None]
    num_roots, num_clusters = candidates.sum(1), num_merged * length
    all_roots = (together * num_roots).sum(1)  # of the segment of each frame, (T,)
    if released:
        frame_clusters = released_clusters(num_roots, num_clusters, all_roots)
        cluster_frames = released_cluster_tokens
    else:
        frame_clusters = share_clusters(num_roots, num_clusters, all_roots, segment, together)
        cluster_frames = cluster_tokens
    means = iterate_sums(
        features.view(-1, width), None, roots, weight, flat_index, size * num_tokens, overwrites=overwrites
    )
    of_frames = (candidates, frame_clusters, frame_clusters.clamp(1, MAX_NEIGHBORS))
    step = frames_per_step(min(num_frames, size), num_tokens, width)
    clusters = []
    for chunk in zip(*(tensor.split(size) for tensor in of_frames), strict=True):  # no name holds on to the means
        clusters.append(map_frames(cluster_frames, step, next(means).view(-1, num_tokens, width), *chunk))
    centers, joined = join_chunks(clusters)
    joined = (joined + flat_index.view_as(joined)[:, :1]).view(-1)  # flat index

    counted = (candidates * frame_clusters.clamp(max=1)[:, None]).view(-1).float()  # not in frames without clusters
    share = counted / count_by_slot(joined, counted).clamp(min=1)
    return MergedTokens(roots, centers, joined[roots], weight * share[roots])


def link_tokens(
    features: torch.Tensor,
    inverse_norm: torch.Tensor,
    selected: torch.Tensor,
    segment: torch.Tensor,
    flat_index: torch.Tensor,
    *,
    max_links: torch.Tensor,
    temporal_threshold: float = 0.8,
    strict_limit: bool = False,
    size: int | None = None,
) -> torch.Tensor:
    """Link every unselected token to its most similar unselected token of the frame before, if similar enough.

    Args:
        features, selected, segment, flat_index: see `merge_tokens`; no link leaves a segment.
        inverse_norm: of every token, 0 for a zero token, with shape (T, N).
        max_links: how many links the segment of each frame may hold, with shape (T,). If more pass the threshold,
            only the strongest are made.
        temporal_threshold: a link needs a larger cosine than this. From 1 on there are no links.
        strict_limit: what the released code does where more links pass than may be made: only those *stronger* than
            the weakest that would still fit, so one less (and none of equally strong ones).
        size: frames whose products are in memory at once; all by default.

    Returns:
        Flat index of each token's parent, with shape (T * N,); a token that joins no tree is its own parent.
    """
    num_frames, num_tokens = selected.shape
    if num_frames == 1 or temporal_threshold >= 1:
        return flat_index
    strength, parent = map_frames(
        _nearest_parent, size or num_frames, features[1:], features[:-1], inverse_norm[:-1], selected[:-1]
    )
    is_bound = selected[1:] | (segment[1:] != segment[:-1])[:, None]
    strength = (strength * inverse_norm[1:]).masked_fill_(is_bound, float("-inf"))
    strength = F.pad(strength, (0, 0, 1, 0), value=float("-inf")).view(-1)  # frame 0 has no frame before it
    parent = F.pad(parent + flat_index.view_as(selected)[:-1, :1], (0, 0, 1, 0)).view(-1)  # flat index

    # Rank of every link among those of its segment, the strongest first.
    segment = segment.repeat_interleave(num_tokens, output_size=len(flat_index))
    order = strength.argsort(descending=True, stable=True)
    order = order[segment[order].argsort(stable=True)]
    rank = order.argsort() - torch.searchsorted(segment, segment)
    fits = (rank.view_as(selected) < max_links[:, None]).view(-1)

    joins = strength > temporal_threshold
    if strict_limit:
        weakest = strength.masked_fill(~fits, float("inf"))
        weakest = torch.full_like(strength, float("inf")).scatter_reduce_(0, segment, weakest, "amin")[segment]
        links = torch.zeros_like(segment).index_add_(0, segment, joins.long())[segment].view_as(selected)
        too_many = (links > max_links[:, None]).view(-1)
        joins = torch.where(too_many, strength > weakest.clamp(min=-1 + 1e-6), joins)
    else:
        joins = joins & fits
    return torch.where(joins, parent, flat_index)


def _nearest_parent(
    children: torch.Tensor, parents: torch.Tensor, inverse_norm: torch.Tensor, selected: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine times the norm of each child to its most similar unselected parent, and which that is, (T, N) each.

    A child's norm does not change which parent is nearest.

    Args:
        children, parents: features of frames and of those before them, with shape (T, N, D).
        inverse_norm, selected: of the parents, with shape (T, N).
    """
    similarity = torch.bmm(children.float(), parents.float().mT)
    similarity.mul_(inverse_norm[:, None, :]).masked_fill_(selected[:, None, :], float("-inf"))
    nearest = similarity.max(dim=-1)
    return nearest.values, nearest.indices


def find_roots(parent: torch.Tensor, num_frames: int) -> torch.Tensor:
    """Flat index of the root of each token's tree, from the parents (T * N,), by pointer doubling."""
    for _ in range((num_frames - 1).bit_length()):
        parent = parent[parent]
    return parent


def share_clusters(
    num_roots: torch.Tensor,
    num_clusters: torch.Tensor,
    all_roots: torch.Tensor,
    segment: torch.Tensor,
    together: torch.Tensor,
) -> torch.Tensor:
    """Share the clusters of a segment out over its frames in proportion to their roots, by largest remainder.

    Args:
        num_roots: tree roots in every frame, with shape (T,), integer.
        num_clusters, all_roots: clusters and tree roots of the whole segment of every frame, with shape (T,).
        segment: which segment each frame belongs to, ascending, with shape (T,).
        together: which frames lie in the same segment, with shape (T, T).

    Returns:
        Clusters of every frame with shape (T,), at most its roots, adding up to `num_clusters` in every segment.
    """
    share = num_roots * num_clusters
    whole, remainder = share // all_roots, share % all_roots
    left = num_clusters - (together * whole).sum(1)
    # Rank of the remainders within the segment: sort by (segment, remainder descending, frame).
    order = torch.sub(remainder, segment, alpha=_MORE_THAN_ROOTS).argsort(descending=True, stable=True)
    rank = order.argsort() - torch.searchsorted(segment, segment)
    return whole + (rank < left)
