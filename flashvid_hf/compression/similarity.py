"""Inner products and norms of tokens, exact where ties are decided.

Legend: T frames (for Qwen: temporal grids), N tokens a frame, D width.
"""

import torch
import torch.nn.functional as F


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
