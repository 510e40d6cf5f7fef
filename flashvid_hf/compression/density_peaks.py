"""DPC-kNN in every frame of a video: tokens that lie in dense places, far from denser ones, become cluster centres.

Legend: T frames (for Qwen: temporal grids), N tokens a frame, D width.
"""

import torch

from .similarity import gram_matrices

# Nearest neighbours in the density estimate of DPC-kNN, at most; the reference's constant.
MAX_NEIGHBORS = 7


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
    nearest = squared.topk(min(MAX_NEIGHBORS, len(index)), dim=-1, largest=False).values
    nearest = nearest.masked_fill_(index[: nearest.shape[-1]] >= num_neighbors, 0)
    density = (-nearest.sum(-1) / num_neighbors[..., 0]).exp()
    density = density.masked_fill_(others, -1)  # denser than no candidate

    largest = squared.nan_to_num(nan=float("nan"), posinf=0.0).amax(dim=(1, 2), keepdim=True)
    denser = density[:, None, :] > density[:, :, None]
    separation = torch.where(denser, squared, largest).amin(dim=-1).sqrt()
    return (density * separation).masked_fill_(others, -1), squared
