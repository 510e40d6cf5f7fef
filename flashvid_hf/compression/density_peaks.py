"""DPC-kNN in every frame of a video: tokens in dense places, far from any denser token, become cluster centres."""

import torch

from .similarity import gram_matrices

# Most nearest neighbours that the density estimate of DPC-kNN takes; the constant of the released code.
MAX_NEIGHBORS = 7


def cluster_tokens(
    features: torch.Tensor, candidates: torch.Tensor, num_clusters: torch.Tensor, num_neighbors: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """DPC-kNN in every frame: density peaks become cluster centres, every candidate joins the nearest one.

    Centres have the largest `density_scores`; ties go to the lower index.

    Args:
        features: with shape (T, N, D), float32.
        candidates: boolean mask with shape (T, N) of the tokens to cluster.
        num_clusters: clusters of every frame, with shape (T,), at most the candidates of the frame.
        num_neighbors: neighbours in the density estimate of every frame, with shape (T,), from 1 to `MAX_NEIGHBORS`.

    Returns:
        Tuple of the mask of the centres and, for every token, the index within its frame of the centre that it joins,
        both with shape (T, N). The index is meaningless for tokens that are no candidates, and in frames without
        clusters.
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
    """Score every token of a frame as a density peak, as DPC-kNN does: density * separation.

    The distance of two tokens is Euclidean, divided by sqrt(D). The density of a token is exp(-mean of its k smallest
    squared distances), with k = `num_neighbors`; the distance to itself, 0, is one of the k. The separation of a token
    is the distance to the nearest denser token, or the largest distance of the frame if no token is denser.

    Args:
        features: with shape (T, N, D), float32.
        candidates: boolean mask with shape (T, N) of the tokens to score.
        num_neighbors: with shape (T,), from 1 to `MAX_NEIGHBORS`, at most the candidates of the frame.
        index: 0 ... N - 1.

    Returns:
        Tuple of the scores with shape (T, N), -1 for tokens that are no candidates, and of the squared distances with
        shape (T, N, N), infinite to and from tokens that are no candidates.
    """
    others = ~candidates
    products = gram_matrices(features)
    norm = products.diagonal(dim1=1, dim2=2).masked_fill(others, float("inf"))  # far from everything
    # |x - y|^2 = |x|^2 + |y|^2 - 2 x * y. Adding the two norms first keeps the matrices exactly symmetric, so tokens
    # that are each other's nearest stay tied.
    squared = norm[:, :, None] + norm[:, None, :]
    # The distance of a token to itself is exactly 0, because its norm is on the diagonal of the products.
    squared.sub_(products, alpha=2).clamp_(min=0).div_(features.shape[2])
    del products  # frees its memory before another matrix is made

    num_neighbors = num_neighbors[:, None, None]
    nearest = squared.topk(min(MAX_NEIGHBORS, len(index)), dim=-1, largest=False).values
    nearest = nearest.masked_fill_(index[: nearest.shape[-1]] >= num_neighbors, 0)
    density = (-nearest.sum(-1) / num_neighbors[..., 0]).exp()
    density = density.masked_fill_(others, -1)  # denser than no candidate

    largest = squared.nan_to_num(nan=float("nan"), posinf=0.0).amax(dim=(1, 2), keepdim=True)
    denser = density[:, None, :] > density[:, :, None]
    separation = torch.where(denser, squared, largest).amin(dim=-1).sqrt()
    return (density * separation).masked_fill_(others, -1), squared
