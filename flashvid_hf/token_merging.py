"""TSTM of FlashVID (arXiv 2602.08024): link tokens over time into trees, then merge those of a frame that lie close.

Legend of the compression core: T frames (for Qwen: temporal grids), N tokens a frame, D width. A flat index is
t * N + n.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .frame_chunks import frames_per_step, join_chunks, map_frames
from .released import released_cluster_tokens, released_clusters

# Nearest neighbours in the density estimate of DPC-kNN, at most; the reference's constant.
_MAX_NEIGHBORS = 7
# Into how many blocks of columns the sums cut features that are not float32, at least, and what the width of a block is
# a multiple of, for the vector instructions of CPUs.
_BLOCKS, _BLOCK_STEP = 8, 32
# More than the roots of any video; times a number of frames still an int64.
_MORE_THAN_ROOTS = 2**40


def same_segment(segment: torch.Tensor) -> torch.Tensor:
    """Which frames lie in the same segment, with shape (T, T), given the segment of each."""
    return segment[:, None] == segment[None, :]


def count_by_slot(slot: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """How many entries that are `counted` (1, else 0; float32) share the slot of each entry, with shape (E,).

    A slot is below E. Integers of this size are exact in float32.
    """
    return torch.zeros_like(counted).index_add_(0, slot, counted)[slot]


def weighted_sums(
    features: torch.Tensor,
    source: torch.Tensor | None,
    slot: torch.Tensor,
    weight: torch.Tensor,
    slots: torch.Tensor,
    *,
    per_chunk: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """For every s in `slots`, the sum of `weight[e] * features[source[e]]` over the entries e with `slot[e] == s`.

    The entries are sorted by slot and summed in order, so the result does not depend on a race between threads.

    Args:
        features: with shape (T * N, D), any floating dtype.
        source, slot, weight: one entry each per summand, with shape (E,). Without `source`, 0, 1, 2 ...
        slots: 0, 1, 2 ..., with shape (S,).
        per_chunk: slots to sum at once, in float32; all by default.
        dtype: what the sums are rounded to.

    Returns:
        Tensor with shape (S, D); a slot without entries is zero.
    """
    return join_chunks([sums.to(dtype) for sums in iterate_sums(features, source, slot, weight, slots, per_chunk)])


def iterate_sums(
    features: torch.Tensor,
    source: torch.Tensor | None,
    slot: torch.Tensor,
    weight: torch.Tensor,
    slots: torch.Tensor,
    per_chunk: int | None,
    *,
    overwrites: bool = False,
) -> Iterator[torch.Tensor]:
    """`weighted_sums` in float32, chunk by chunk, with shape (per_chunk, D) each.

    Args:
        overwrites: a single chunk may take the place of the features, which are float32 then.
    """
    ordered, order = slot.sort(stable=True)
    offsets = torch.searchsorted(ordered, slots)
    rows, weight = order if source is None else source[order], weight[order]
    per_chunk = per_chunk or len(slots)
    if len(slots) <= per_chunk:
        yield _sum_bags(features, rows, offsets, weight, len(features), overwrites)
        return
    starts = offsets[::per_chunk].tolist()  # waits: the sizes of the chunks depend on the video
    for first, (start, end) in zip(range(0, len(slots), per_chunk), pairwise([*starts, len(rows)]), strict=True):
        of_chunk = offsets[first : first + per_chunk] - start
        yield _sum_bags(features, rows[start:end], of_chunk, weight[start:end], per_chunk)


def _sum_bags(
    features: torch.Tensor,
    rows: torch.Tensor,
    offsets: torch.Tensor,
    weight: torch.Tensor,
    most: int,
    overwrites: bool = False,
) -> torch.Tensor:
    """Weighted sums of the runs of `rows` that begin at `offsets`, float32, with shape (S, D).

    Where features are overwritten or not float32, a block of columns at a time is copied, with no more values than an
    eighth of `most` rows have.
    """
    if features.dtype == torch.float32 and not overwrites:
        return F.embedding_bag(rows, features, offsets, mode="sum", per_sample_weights=weight)
    width, gathers = features.shape[1], most < len(features)  # of a chunk only the rows that are summed
    places = torch.arange(len(rows), device=rows.device) if gathers else rows

    def sum_columns(start: int, end: int) -> torch.Tensor:
        block = features[:, start:end]
        block = (block[rows] if gathers else block).float().contiguous()
        return F.embedding_bag(places, block, offsets, mode="sum", per_sample_weights=weight)

    columns = width * most // (_BLOCKS * max(most, len(rows)))
    columns = max(1, -(-columns // _BLOCK_STEP)) * _BLOCK_STEP
    if columns >= width:
        return sum_columns(0, width)
    sums = features if overwrites else features.new_empty(len(offsets), width, dtype=torch.float32)
    for start in range(0, width, columns):
        sums[:, start : start + columns] = sum_columns(start, start + columns)
    return sums


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
    of_frames = (candidates, frame_clusters, frame_clusters.clamp(1, _MAX_NEIGHBORS))
    step = frames_per_step(min(num_frames, size), num_tokens, width)
    clusters = []
    for chunk in zip(*(tensor.split(size) for tensor in of_frames), strict=True):  # no name holds on to the means
        clusters.append(map_frames(cluster_frames, step, next(means).view(-1, num_tokens, width), *chunk))
    centers, joined = join_chunks(clusters)
    joined = (joined + flat_index.view_as(joined)[:, :1]).view(-1)  # flat index

    counted = (candidates * frame_clusters.clamp(max=1)[:, None]).view(-1).float()  # not in frames without clusters
    share = counted / count_by_slot(joined, counted).clamp(min=1)
    return MergedTokens(roots, centers, joined[roots], weight * share[roots])


def gram_matrices(features: torch.Tensor) -> torch.Tensor:
    """Inner products within each frame, with shape (T, N, N), of features (T, N, D).

    Exactly symmetric, which a matrix product need not be: tokens that are equally far from each other stay so, and a
    tie goes to the lower index rather than to rounding. The lower left quarter is only the mirror of the upper right.
    """
    half = features.shape[1] // 2
    lower_right = F.pad(torch.bmm(features[:, half:], features[:, half:].mT), (half, 0), value=float("inf"))
    products = torch.cat([torch.bmm(features[:, :half], features.mT), lower_right], dim=1)
    del lower_right  # before another matrix is made
    return torch.minimum(products, products.mT)


def inverse_norms(squared_norms: torch.Tensor) -> torch.Tensor:
    """1 / norm; 0 where the norm is, so that a zero token is similar to nothing (cosine 0)."""
    return squared_norms.rsqrt().nan_to_num_(nan=float("nan"), posinf=0.0)


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


def cluster_tokens(
    features: torch.Tensor, candidates: torch.Tensor, num_clusters: torch.Tensor, num_neighbors: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """DPC-kNN in every frame: density peaks become cluster centres, every candidate joins the nearest one.

    Centres have the largest `density_scores`; ties go to the lower index.

    Args:
        features: with shape (T, N, D), float32.
        candidates: boolean mask with shape (T, N) of the tokens to cluster.
        num_clusters: with shape (T,), at most the candidates of the frame.
        num_neighbors: with shape (T,), from 1 to 7.

    Returns:
        Tuple of the mask of the centres and, for every token, the index within its frame of the centre that it joins
        (meaningless for other than candidates, and in frames without clusters), both with shape (T, N).
    """
    index = torch.arange(features.shape[1], device=features.device)
    score, squared = density_scores(features, candidates, num_neighbors, index)
    rank = score.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    centers = rank < num_clusters[:, None]
    joined = squared.masked_fill_(~centers[:, None, :], float("inf")).argmin(dim=-1)
    return centers, torch.where(centers, index, joined)


def density_scores(
    features: torch.Tensor, candidates: torch.Tensor, num_neighbors: torch.Tensor, index: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """How much of a density peak every token of a frame is, as in DPC-kNN: density * separation.

    Distances are Euclidean / sqrt(D); the density of a token is exp(-mean of its k smallest squared distances), itself
    included, with k = `num_neighbors`; its separation is the distance to the nearest denser token, or the largest
    distance of the frame if none is denser.

    Args:
        features: with shape (T, N, D), float32.
        candidates: boolean mask with shape (T, N) of the tokens to look at.
        num_neighbors: with shape (T,), from 1 to 7, at most the candidates of the frame.
        index: 0 ... N - 1.

    Returns:
        Tuple of the scores with shape (T, N), -1 for other than candidates, and the squared distances with shape
        (T, N, N), infinite to other than candidates.
    """
    others = ~candidates
    products = gram_matrices(features)
    norm = products.diagonal(dim1=1, dim2=2).masked_fill(others, float("inf"))  # far from everything
    # The norms are added to each other first, which keeps the matrices symmetric and mutual neighbours tied.
    squared = norm[:, :, None] + norm[:, None, :]
    # A token is at exactly 0 from itself: its norm is on the diagonal of the products.
    squared.sub_(products, alpha=2).clamp_(min=0).div_(features.shape[2])
    del products  # before another matrix is made

    num_neighbors = num_neighbors[:, None, None]
    nearest = squared.topk(min(_MAX_NEIGHBORS, len(index)), dim=-1, largest=False).values
    nearest = nearest.masked_fill_(index[: nearest.shape[-1]] >= num_neighbors, 0)
    density = (-nearest.sum(-1) / num_neighbors[..., 0]).exp()
    density = density.masked_fill_(others, -1)  # denser than no candidate

    largest = squared.nan_to_num(nan=float("nan"), posinf=0.0).amax(dim=(1, 2), keepdim=True)
    denser = density[:, None, :] > density[:, :, None]
    separation = torch.where(denser, squared, largest).amin(dim=-1).sqrt()
    return (density * separation).masked_fill_(others, -1), squared
