"""TSTM of FlashVID (arXiv 2602.08024): link tokens over time into trees, then merge the close ones of each frame."""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from .density_peaks import MAX_NEIGHBORS, cluster_tokens
from .frame_chunks import frames_per_step, join_chunks, map_frames
from .released_deviations import released_cluster_tokens, released_clusters
from .weighted_rows import count_by_slot, iterate_sums

# Larger than the number of roots of any video, and still within int64 when multiplied by a number of frames.
_MORE_THAN_ROOTS = 2**40


def same_segment(segment: torch.Tensor) -> torch.Tensor:
    """Which frames lie in the same segment, with shape (T, T), given the segment of each frame (T,)."""
    return segment[:, None] == segment[None, :]


class MergedTokens(NamedTuple):
    """How the tokens that ADTS did not select are merged.

    Args:
        roots: flat index of the root of each token's tree, with shape (T * N,).
        centers: True for the cluster centres, whose places the merged tokens take, with shape (T, N).
        cluster: flat index of the centre that each token went to, with shape (T * N,).
        weight: share of each token in the mean at its centre, with shape (T * N,); 0 if it was dropped.
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
    """Merge linked tokens over time, then within the frames, into `num_merged` tokens a frame on average.

    Args:
        features: with shape (T, N, D), any floating dtype.
        parent: see `link_tokens`, with shape (T * N,).
        selected: boolean mask of the tokens that ADTS selected, with shape (T, N).
        segment: the segment of each frame, ascending, with shape (T,).
        flat_index: 0 ... T * N - 1.
        together: see `same_segment`.
        num_merged: merged tokens of a frame; at least 1.
        released: merge as the released code does. The sum of a tree is divided by 1 + the number of direct children of
            its root. A segment of one frame clusters the selected tokens too. Every frame rounds its number of clusters
            up.
        size: how many frames have their float32 means in memory at once. Default: all.
        overwrites: whether the means may overwrite `features`, which are float32 then. Applies to videos of at most
            `size` frames.
    """
    num_frames, num_tokens, width = features.shape
    size = size or num_frames
    length = together.sum(1)  # frames in the segment of each frame, (T,)

    # Over time: each tree becomes one token at the place of its root.
    is_root = parent == flat_index
    roots = find_roots(parent, num_frames)
    if released:
        children = torch.zeros_like(roots).index_add_(0, parent, (~is_root).long())
        members = (1 + children[roots]).float()
    else:
        members = count_by_slot(roots, torch.ones_like(roots, dtype=torch.float32))  # tokens of each token's tree
    weight = members.reciprocal()

    # Within the frames: roots become clusters.
    candidates = is_root.view_as(selected) > selected  # roots that are not selected
    if released:
        candidates = candidates | (length == 1)[:, None]
    num_roots, num_clusters = candidates.sum(1), num_merged * length
    all_roots = (together * num_roots).sum(1)  # roots in the segment of each frame, (T,)
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
    for chunk in zip(*(tensor.split(size) for tensor in of_frames), strict=True):
        # The means get no name, so that each chunk of them is freed before the next one is made.
        clusters.append(map_frames(cluster_frames, step, next(means).view(-1, num_tokens, width), *chunk))
    centers, joined = join_chunks(clusters)
    joined = (joined + flat_index.view_as(joined)[:, :1]).view(-1)  # flat index

    # 1 for each candidate, 0 for other tokens and in frames without clusters.
    counted = (candidates * frame_clusters.clamp(max=1)[:, None]).view(-1).float()
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
        features, selected, segment, flat_index: see `merge_tokens`. No link leaves a segment.
        inverse_norm: 1 / norm of every token, 0 for a zero token, with shape (T, N).
        max_links: how many links the segment of each frame may hold, with shape (T,). If more links pass the threshold,
            only the strongest are made.
        temporal_threshold: a link needs a larger cosine than this. At 1 or more there are no links.
        strict_limit: apply `max_links` as the released code does. If more links pass the threshold, only those are made
            that are *stronger* than the weakest one that would fit. That is one link less, or several less if the
            weakest ones are equally strong.
        size: how many frames have their products in memory at once. Default: all.

    Returns:
        Flat index of each token's parent, with shape (T * N,). A token without a link is its own parent.
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

    # Rank of every link among the links of its segment, the strongest first.
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
    """Find the most similar unselected parent of each child.

    The similarity is the cosine times the norm of the child. A child's norm does not change which parent is nearest.

    Args:
        children: features of frames, with shape (T, N, D).
        parents: features of the frame before each of these, with shape (T, N, D).
        inverse_norm, selected: of the parents, with shape (T, N).

    Returns:
        Tuple of the similarity to that parent and of its index within its frame, with shape (T, N) each.
    """
    similarity = torch.bmm(children.float(), parents.float().mT)
    similarity.mul_(inverse_norm[:, None, :]).masked_fill_(selected[:, None, :], float("-inf"))
    nearest = similarity.max(dim=-1)
    return nearest.values, nearest.indices


def find_roots(parent: torch.Tensor, num_frames: int) -> torch.Tensor:
    """Find the root of each token's tree by pointer doubling.

    Args:
        parent: see `link_tokens`, with shape (T * N,).
        num_frames: T, which bounds the depth of a tree.

    Returns:
        Flat index of each token's root, with shape (T * N,).
    """
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
        num_roots: tree roots in each frame, with shape (T,), integer.
        num_clusters: clusters of the whole segment that each frame lies in, with shape (T,).
        all_roots: tree roots of that segment, with shape (T,).
        segment: which segment each frame belongs to, ascending, with shape (T,).
        together: which frames lie in the same segment, with shape (T, T).

    Returns:
        Clusters of each frame, with shape (T,). No frame has more clusters than roots, and the frames of a segment add
        up to its `num_clusters`.
    """
    share = num_roots * num_clusters
    whole, remainder = share // all_roots, share % all_roots
    left = num_clusters - (together * whole).sum(1)
    # Rank of the remainders within the segment: sort by (segment, remainder descending, frame).
    order = torch.sub(remainder, segment, alpha=_MORE_THAN_ROOTS).argsort(descending=True, stable=True)
    rank = order.argsort() - torch.searchsorted(segment, segment)
    return whole + (rank < left)
