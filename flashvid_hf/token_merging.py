"""TSTM of FlashVID (arXiv 2602.08024): link tokens over time into trees, then merge those of a frame that lie close.

Legend of the compression core: T frames (for Qwen: temporal grids), N tokens a frame, D width. A flat index is
t * N + n.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from .released import released_cluster_tokens, released_clusters

# Nearest neighbours in the density estimate of DPC-kNN, at most; the reference's constant.
_MAX_NEIGHBORS = 7


def segment_sums(values: torch.Tensor, segment: torch.Tensor) -> torch.Tensor:
    """For every entry, the sum of the integers `values` over the entries with the same `segment`, shape (E,).

    `segment` counts from 0 and stays below E.
    """
    return torch.zeros_like(values).index_add_(0, segment, values)[segment]


def weighted_sums(
    features: torch.Tensor, source: torch.Tensor, slot: torch.Tensor, weight: torch.Tensor, num_slots: int
) -> torch.Tensor:
    """Rows `s`: sum of `weight[e] * features[source[e]]` over the entries e with `slot[e] == s`.

    The entries are sorted by slot and summed in order, so the result does not depend on a race between threads, and
    only the output is allocated.

    Args:
        features: with shape (T * N, D), float32.
        source, slot, weight: one entry each per summand, with shape (E,).

    Returns:
        Tensor with shape (num_slots, D); a slot without entries is zero.
    """
    order = slot.argsort(stable=True)
    offsets = torch.searchsorted(slot[order], torch.arange(num_slots, device=slot.device))
    return F.embedding_bag(source[order], features, offsets, mode="sum", per_sample_weights=weight[order])


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
    inverse_norm: torch.Tensor,
    selected: torch.Tensor,
    segment: torch.Tensor,
    *,
    tokens_per_frame: int,
    num_merged: int,
    temporal_threshold: float = 0.8,
    released: bool = False,
) -> MergedTokens:
    """Merge the unselected tokens over time, then within the frames, into `num_merged` tokens a frame on average.

    Args:
        features: with shape (T, N, D), float32.
        inverse_norm: of every token, 0 for a zero token, with shape (T, N).
        selected: boolean mask of the tokens that ADTS selected, with shape (T, N).
        segment: the segment of each frame, ascending from 0, with shape (T,).
        tokens_per_frame: kept tokens of a frame, selected and merged; below N.
        num_merged: merged tokens of a frame; at least 1.
        temporal_threshold: see `link_tokens`.
        released: merge as the released code does: a tree's sum is divided by 1 + the direct children of its root, a
            single-frame segment clusters the selected tokens too, and every frame rounds its clusters up.
    """
    num_frames, num_tokens, width = features.shape
    length = segment_sums(torch.ones_like(segment), segment)  # frames in the segment of each frame, (T,)

    # Over time: trees, each at the place of its root.
    parent = link_tokens(
        features,
        inverse_norm,
        selected,
        segment,
        max_links=(num_tokens - tokens_per_frame) * length,
        temporal_threshold=temporal_threshold,
        strict_limit=released,
    )
    flat_index = torch.arange(num_frames * num_tokens, device=features.device)
    is_root = parent == flat_index
    roots = find_roots(parent, num_frames)
    members = segment_sums(torch.ones_like(roots), roots)  # of each token's tree, (T * N,)
    if released:
        children = torch.zeros_like(roots).index_add_(0, parent, (~is_root).long())
        members = 1 + children[roots]
    weight = members.float().reciprocal()
    means = weighted_sums(features.reshape(-1, width), flat_index, roots, weight, len(roots)).view_as(features)

    # Within the frames: clusters of roots.
    candidates = ~selected & is_root.view_as(selected)
    if released:
        candidates = candidates | (length == 1)[:, None]
    num_roots, num_clusters = candidates.sum(1), num_merged * length
    all_roots = segment_sums(num_roots, segment)  # of the segment of each frame, (T,)
    if released:
        frame_clusters = released_clusters(num_roots, num_clusters, all_roots)
        cluster_frames = released_cluster_tokens
    else:
        frame_clusters = share_clusters(num_roots, num_clusters, all_roots, segment)
        cluster_frames = cluster_tokens
    centers, joined = cluster_frames(means, candidates, frame_clusters, frame_clusters.clamp(max=_MAX_NEIGHBORS))
    joined = (joined + flat_index[:num_frames, None] * num_tokens).view(-1)  # flat index

    counted = (candidates & (frame_clusters > 0)[:, None]).view(-1)
    cluster_size = torch.zeros_like(joined).index_add_(0, joined, counted.long())[joined]
    cluster = joined[roots]
    weight = (weight / cluster_size.clamp(min=1)[roots]) * counted[roots]
    return MergedTokens(roots, centers, cluster, weight)


def gram_matrices(features: torch.Tensor) -> torch.Tensor:
    """Inner products within each frame, with shape (T, N, N), of features (T, N, D).

    Exactly symmetric, which a matrix product need not be: tokens that are equally far from each other stay so, and a
    tie goes to the lower index rather than to rounding.
    """
    products = torch.bmm(features, features.mT)
    return torch.minimum(products, products.mT)


def inverse_norms(squared_norms: torch.Tensor) -> torch.Tensor:
    """1 / norm; 0 where the norm is, so that a zero token is similar to nothing (cosine 0)."""
    inverse = squared_norms.rsqrt()
    return inverse.masked_fill_(inverse.isinf(), 0)


def link_tokens(
    features: torch.Tensor,
    inverse_norm: torch.Tensor,
    selected: torch.Tensor,
    segment: torch.Tensor,
    *,
    max_links: torch.Tensor,
    temporal_threshold: float = 0.8,
    strict_limit: bool = False,
) -> torch.Tensor:
    """Link every unselected token to its most similar unselected token of the frame before, if similar enough.

    Args:
        features, inverse_norm, selected, segment: see `merge_tokens`; no link crosses a segment's beginning.
        max_links: how many links the segment of each frame may hold, with shape (T,). If more pass the threshold,
            only the strongest are made.
        temporal_threshold: a link needs a larger cosine than this. From 1 on there are no links.
        strict_limit: what the released code does where more links pass than may be made: only those *stronger* than
            the weakest that would still fit, so one less (and none of equally strong ones).

    Returns:
        Flat index of each token's parent, with shape (T * N,); a token that joins no tree is its own parent.
    """
    num_frames, num_tokens = selected.shape
    flat_index = torch.arange(num_frames * num_tokens, device=selected.device)
    if num_frames == 1 or temporal_threshold >= 1:
        return flat_index
    similarity = torch.bmm(features[1:], features[:-1].mT)  # a child's norm does not change which parent is nearest
    similarity.mul_(inverse_norm[:-1, None, :]).masked_fill_(selected[:-1, None, :], float("-inf"))
    strength, parent = similarity.max(dim=-1)
    is_free = ~selected[1:] & (segment[1:] == segment[:-1])[:, None]
    strength = (strength * inverse_norm[1:]).masked_fill(~is_free, float("-inf"))
    strength = F.pad(strength, (0, 0, 1, 0), value=float("-inf")).view(-1)  # frame 0 has no frame before it
    parent = F.pad(parent, (0, 0, 1, 0)).view(-1)

    # Rank of every link among those of its segment, the strongest first.
    segment = segment.repeat_interleave(num_tokens, output_size=len(flat_index))
    order = strength.argsort(descending=True, stable=True)
    order = order[segment[order].argsort(stable=True)]
    position = torch.empty_like(order).scatter_(0, order, flat_index)
    rank = position - torch.searchsorted(segment, segment)
    max_links = max_links.repeat_interleave(num_tokens, output_size=len(flat_index))
    fits = rank < max_links

    joins = strength > temporal_threshold
    if strict_limit:
        weakest = strength.masked_fill(~fits, float("inf"))
        weakest = torch.full_like(strength, float("inf")).scatter_reduce_(0, segment, weakest, "amin")[segment]
        too_many = segment_sums(joins.long(), segment) > max_links
        joins = torch.where(too_many, strength > weakest.clamp(min=-1 + 1e-6), joins)
    else:
        joins = joins & fits
    return torch.where(joins, parent + (flat_index // num_tokens - 1) * num_tokens, flat_index)


def find_roots(parent: torch.Tensor, num_frames: int) -> torch.Tensor:
    """Flat index of the root of each token's tree, from the parents (T * N,), by pointer doubling."""
    for _ in range((num_frames - 1).bit_length()):
        parent = parent[parent]
    return parent


def share_clusters(
    num_roots: torch.Tensor, num_clusters: torch.Tensor, all_roots: torch.Tensor, segment: torch.Tensor
) -> torch.Tensor:
    """Share the clusters of a segment out over its frames in proportion to their roots, by largest remainder.

    Args:
        num_roots: tree roots in every frame, with shape (T,), integer.
        num_clusters, all_roots: clusters and tree roots of the whole segment of every frame, with shape (T,).
        segment: which segment each frame belongs to, ascending from 0, with shape (T,).

    Returns:
        Clusters of every frame with shape (T,), at most its roots, adding up to `num_clusters` in every segment.
    """
    share = num_roots * num_clusters
    whole, remainder = share // all_roots, share % all_roots
    left = num_clusters - segment_sums(whole, segment)
    # Rank of the remainders within the segment: sort by (segment, remainder descending, frame).
    order = (segment * (all_roots.max() + 1) - remainder).argsort(stable=True)
    position = torch.empty_like(order).scatter_(0, order, torch.arange(len(segment), device=segment.device))
    rank = position - torch.searchsorted(segment, segment)
    return whole + (rank < left).long()


def cluster_tokens(
    features: torch.Tensor, candidates: torch.Tensor, num_clusters: torch.Tensor, num_neighbors: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """DPC-kNN in every frame: density peaks become cluster centres, every candidate joins the nearest one.

    Distances are Euclidean / sqrt(D); the density of a token is exp(-mean of its k smallest squared distances), itself
    included, with k = `num_neighbors`; its separation is the distance to the nearest denser token, or the largest
    distance of the frame if none is denser. Centres have the largest density * separation; ties go to the lower index.

    Args:
        features: with shape (T, N, D), float32.
        candidates: boolean mask with shape (T, N) of the tokens to cluster.
        num_clusters: with shape (T,), at most the candidates of the frame.
        num_neighbors: with shape (T,), at most 7.

    Returns:
        Tuple of the mask of the centres and, for every token, the index within its frame of the centre that it joins
        (meaningless for other than candidates, and in frames without clusters), both with shape (T, N).
    """
    num_tokens = features.shape[1]
    squared = gram_matrices(features)  # and then squared distances in the same memory
    norm = squared.diagonal(dim1=1, dim2=2).clone()
    # The norms are added to each other first, which keeps the matrices symmetric and mutual neighbours tied.
    squared.mul_(-2).add_(norm[:, :, None] + norm.masked_fill(~candidates, float("inf"))[:, None, :])
    squared.clamp_(min=0).div_(features.shape[2])
    squared.diagonal(dim1=1, dim2=2).masked_fill_(candidates, 0)  # exactly, whatever the rounding above

    num_neighbors = num_neighbors[:, None, None]
    nearest = squared.topk(min(_MAX_NEIGHBORS, num_tokens), dim=-1, largest=False).values
    counted = torch.arange(nearest.shape[-1], device=nearest.device) < num_neighbors
    density = (-nearest.masked_fill(~counted, 0).sum(-1) / num_neighbors[..., 0].clamp(min=1)).exp()
    density = density.masked_fill(~candidates, -1)  # denser than no candidate

    pairs = candidates[:, :, None] & candidates[:, None, :]
    largest = squared.masked_fill(~pairs, 0).amax(dim=(1, 2), keepdim=True)
    denser = density[:, None, :] > density[:, :, None]
    separation = torch.where(denser, squared, largest).amin(dim=-1).sqrt()

    score = (density * separation).masked_fill(~candidates, -1)
    rank = score.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    centers = rank < num_clusters[:, None]
    joined = squared.masked_fill_(~centers[:, None, :], float("inf")).argmin(dim=-1)
    return centers, torch.where(centers, torch.arange(num_tokens, device=joined.device), joined)
