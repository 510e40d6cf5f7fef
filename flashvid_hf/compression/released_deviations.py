"""What the released code does differently from the paper, for `behavior="released"` only.

These functions reproduce the published numbers. They call `torch.topk` and `torch.cdist` frame by frame, as the
released code does, so ties and rounding come out alike. The released code adds random noise to break ties; here the
noise is zero.
"""

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from .token_merging import MergedTokens


def released_segment_lengths(
    similarity: torch.Tensor, *, segment_threshold: float, min_segment_num: int, complementary_segment: bool
) -> torch.Tensor:
    """Frames of every segment as the released code counts them, with shape (S,).

    The released code draws the complementary cuts from all transitions. Once no uncut transition is left, it draws
    transitions that are cut already. Each of those adds a segment of length zero to the list. The frames are still
    grouped as by `segment_video`.

    Args:
        similarity: cosine similarity of neighbouring frames, with shape (T - 1,).
        segment_threshold, min_segment_num, complementary_segment: see `segment_video`.
    """
    cut = similarity < segment_threshold
    cuts = cut.nonzero()[:, 0]
    missing = min(max(min_segment_num - 1 - len(cuts), 0), len(similarity))
    if complementary_segment and missing:
        drawn = similarity.masked_fill(cut, float("inf")).topk(missing, largest=False).indices
        cuts = torch.cat([cuts, drawn]).sort().values
    ends = F.pad(cuts + 1, (0, 1), value=len(similarity) + 1)
    return ends.diff(prepend=ends.new_zeros(1))


def released_clusters(num_roots: torch.Tensor, num_clusters: torch.Tensor, all_roots: torch.Tensor) -> torch.Tensor:
    """How many clusters each frame gets in the released code, with shape (T,).

    Every frame rounds its share up, so a segment may exceed its budget.

    Args:
        num_roots: tree roots in each frame, with shape (T,).
        num_clusters: clusters of the whole segment that each frame lies in, with shape (T,).
        all_roots: tree roots of that segment, with shape (T,).
    """
    share = (num_roots * (num_clusters.double() / all_roots)).ceil().long()
    return torch.where(num_clusters < all_roots, share, num_roots)


def released_cluster_tokens(
    features: torch.Tensor, candidates: torch.Tensor, num_clusters: torch.Tensor, num_neighbors: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`cluster_tokens` with the ties and the rounding of the released code: same arguments, same results."""
    centers = torch.zeros_like(candidates)
    joined = torch.arange(candidates.shape[1], device=candidates.device).repeat(len(candidates), 1)
    for frame, (count, neighbors) in enumerate(zip(num_clusters.tolist(), num_neighbors.tolist(), strict=True)):
        if count == 0:
            continue
        tokens = candidates[frame].nonzero()[:, 0]
        members = features[frame, tokens]
        distance = torch.cdist(members[None], members[None])[0] / math.sqrt(features.shape[-1])
        nearest = distance.topk(neighbors, dim=-1, largest=False).values
        density = (-(nearest**2)).mean(-1).exp()
        denser = density[None, :] > density[:, None]
        separation = torch.where(denser, distance, distance.max()).amin(-1)
        center = (separation * density).topk(count).indices
        label = distance[:, center].argmin(-1)
        label[center] = torch.arange(count, device=label.device)
        centers[frame, tokens[center]] = True
        joined[frame, tokens] = tokens[center][label]
    return centers, joined


def released_rows(
    chosen: torch.Tensor, merged: "MergedTokens | None", flat_index: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
    """Lay out the rows of the kept tokens if a place may be kept more than once.

    Args:
        chosen: flat index of every selected token, ascending, with repeats.
        merged: how the other tokens are merged; if `None`, they are dropped.
        flat_index: 0 ... T * N - 1.

    Returns:
        The same as `unique_rows`, with one row for each repeat.
    """
    nowhere = torch.full_like(flat_index, -1)
    if merged is None:
        rows = flat_index[: len(chosen)]
        weight = torch.ones_like(rows, dtype=torch.float32)
        return chosen, nowhere.scatter(0, chosen, rows), (chosen, rows, weight, rows)
    kept = torch.cat([chosen, merged.centers.view(-1).nonzero()[:, 0]])
    indices, order = kept.sort(stable=True)
    rows, dropped = order.argsort(), merged.weight == 0
    row_of_center = nowhere.scatter(0, kept[len(chosen) :], rows[len(chosen) :])
    slots = row_of_center[merged.cluster].masked_fill_(dropped, -1)
    # Dropped tokens have weight 0. They are spread over the rows so that no row gets many entries.
    slot = torch.cat([rows[: len(chosen)], torch.where(dropped, flat_index % len(kept), slots)])
    weight = F.pad(merged.weight, (len(chosen), 0), value=1.0)
    entries = torch.cat([chosen, flat_index]), slot, weight, flat_index[: len(kept)]
    return indices, slots.scatter(0, chosen, rows[: len(chosen)]), entries


def released_repeats(tokens: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Tokens (M, D) as the released Qwen code passes them to the language model.

    That code writes each token to its column and then reads the columns back. If an index repeats, the last vector
    overwrites the others, so all rows with that index hold the last vector.

    Args:
        tokens: with shape (M, D).
        indices: flat index of each token, ascending, with shape (M,).
    """
    return tokens[torch.searchsorted(indices, indices, right=True) - 1]
