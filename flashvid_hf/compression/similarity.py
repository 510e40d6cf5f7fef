"""Inner products and norms of tokens, computed so that rounding breaks no ties."""

import torch
import torch.nn.functional as F


def gram_matrices(features: torch.Tensor) -> torch.Tensor:
    """Inner products of the tokens within each frame, with shape (T, N, N), of features (T, N, D).

    The result is exactly symmetric, which a plain matrix product need not be. Two tokens that are each other's nearest
    thus stay tied, and the lower index wins rather than rounding. The lower left quarter is not computed: it is the
    mirror image of the upper right quarter.
    """
    half = features.shape[1] // 2
    lower_right = F.pad(torch.bmm(features[:, half:], features[:, half:].mT), (half, 0), value=float("inf"))
    products = torch.cat([torch.bmm(features[:, :half], features.mT), lower_right], dim=1)
    del lower_right  # frees its memory before another matrix is made
    return torch.minimum(products, products.mT)


def inverse_norms(squared_norms: torch.Tensor) -> torch.Tensor:
    """1 / norm of tokens, of the same shape as `squared_norms`.

    It is 0 for a zero token, whose cosine to any token is then 0.
    """
    return squared_norms.rsqrt().nan_to_num_(nan=float("nan"), posinf=0.0)
