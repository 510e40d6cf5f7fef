"""ADTS of FlashVID (arXiv 2602.08024): select informative and diverse tokens in every frame."""

import torch

# The names are those of the released code; `select_tokens` says what each method does.
TOKEN_SELECTION_METHODS = ("attn", "div", "attn_div", "attn_div_v2")

# The attention that a token receives is about 1 / N. The factor is that of the released code. Scaling does not change
# the selection, except through rounding.
_ATTENTION_SCALE = 1e6
# Largest magnitude of a weight. Its product with any distance is finite, so only chosen tokens are at -inf.
_LARGEST_WEIGHT = 1e37


def select_tokens(
    distance: torch.Tensor | None,
    attention: torch.Tensor,
    num_tokens: int,
    *,
    method: str = "attn_div_v2",
    event_relevance: torch.Tensor | None = None,
    released: bool = False,
) -> torch.Tensor:
    """Choose `num_tokens` tokens of every frame.

    `attn` takes the tokens with the most attention. The other methods solve max-min diversity greedily over the
    calibrated distances e_ij = d_ij * w_j: the first token maximises the second smallest e_ij over i, every next one
    maximises the smallest e_ij over the chosen i. The weight w_j is 1 (`div`), the attention that token j receives
    (`attn_div`), or that times its event relevance (`attn_div_v2`).

    Args:
        distance: cosine distances within each frame, d_ij = 1 - cos(x_i, x_j), with shape (T, N, N); overwritten.
            `attn` needs none.
        attention: attention that every token receives in the last vision block, with shape (T, N).
        num_tokens: tokens to choose in each frame, at most N.
        method: one of `TOKEN_SELECTION_METHODS`.
        event_relevance: mean dot product of each token with the frame means of its segment, with shape (T, N);
            only for `attn_div_v2`.
        released: select as the released code does. In `attn_div_v2`, chosen tokens stay eligible, and are chosen again
            if their event relevance is negative or all tokens are alike. In `attn`, `torch.topk` decides among tokens
            with equal attention.

    Returns:
        Indices into N with shape (T, num_tokens), ascending in every frame, and unique unless `released`.
    """
    num_frames, num_candidates = attention.shape
    if num_tokens == 0:
        return attention.new_zeros(num_frames, 0, dtype=torch.long)
    if method == "attn":
        if released:
            return attention.topk(num_tokens, dim=-1).indices.sort(dim=-1).values
        return attention.argsort(dim=-1, descending=True, stable=True)[:, :num_tokens].sort(dim=-1).values

    if method != "div":
        weight = attention * _ATTENTION_SCALE
        if method == "attn_div_v2":
            weight = weight * event_relevance
        weight = weight.clamp_(-_LARGEST_WEIGHT, _LARGEST_WEIGHT)
        distance = distance.mul_(weight[:, None, :])
    second_smallest = distance.topk(2, dim=1, largest=False).values[:, 1] if num_candidates > 1 else distance[:, 0]
    current = second_smallest.argmax(dim=-1)
    # With -inf as the distance to itself, a chosen token is never the argmax again.
    if not (released and method == "attn_div_v2"):
        distance.diagonal(dim1=1, dim2=2).fill_(float("-inf"))
    chosen = [current]
    nearest = None  # smallest distance of every token to a chosen one, (T, N)
    for _ in range(1, num_tokens):
        to_current = distance.gather(1, current[:, None, None].expand(-1, 1, num_candidates))[:, 0]
        nearest = to_current if nearest is None else torch.fmin(nearest, to_current)  # `fmin`: NaN must not hide -inf
        current = nearest.argmax(dim=-1)
        chosen.append(current)
    return torch.stack(chosen, dim=1).sort(dim=-1).values
