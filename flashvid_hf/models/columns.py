"""Drop columns of padded batches, and spread what is left over all columns again."""

from typing import Any

import torch


def count_columns(inputs: dict[str, Any]) -> int:
    """How many columns the named arguments of `forward` have: S."""
    given = inputs["inputs_embeds"] if inputs["input_ids"] is None else inputs["input_ids"]
    return given.shape[1]


def find_columns(counts: torch.Tensor, padding_side: str = "left") -> tuple[torch.Tensor, torch.Tensor | None]:
    """Which columns to gather so that the kept tokens of every sample stand side by side.

    Waits for the device once, to read the number of columns and whether anything is padded.

    Args:
        counts: how often each column is taken (0 drops it), with shape (B, S), integer or boolean.
        padding_side: the side on which shorter samples are padded, "left" or "right".

    Returns:
        Tuple of the columns, with shape (B, L), and of the mask that says which of them are real rather than padding,
        with shape (B, L); the mask is `None` if nothing is padded.
    """
    ends = counts.long().cumsum(-1)
    lengths = ends[:, -1:]
    shortest, longest = torch.stack([lengths.min(), lengths.max()]).tolist()
    place = torch.arange(longest, device=counts.device).expand(len(counts), -1)
    if padding_side == "left":
        place = place - (longest - lengths)
    valid = None if shortest == longest else (place >= 0) & (place < lengths)
    # The column that holds the p-th token is the first whose running count exceeds p.
    columns = torch.searchsorted(ends, place.contiguous(), right=True).clamp(max=counts.shape[1] - 1)
    return columns, valid


def gather_columns(tensor: torch.Tensor, columns: torch.Tensor, dim: int = 1) -> torch.Tensor:
    """Gather columns of a tensor.

    Args:
        tensor: with shape (..., B, S, ...), or with 1 in place of B if the batch shares it.
        columns: the columns to gather, with shape (B, L).
        dim: the dimension of the columns; the batch is the dimension before it.

    Returns:
        Tensor with shape (..., B, L, ...).
    """
    columns = columns.to(tensor.device)
    batch_dim = dim - 1
    if tensor.shape[batch_dim] != len(columns):  # the batch shares it, for example rotary tables
        tensor = tensor.expand(*(len(columns) if d == batch_dim else -1 for d in range(tensor.ndim)))
    shape = [1] * tensor.ndim
    shape[batch_dim], shape[dim] = columns.shape
    target = list(tensor.shape)
    target[dim] = columns.shape[1]
    return tensor.gather(dim, columns.view(shape).expand(target))


def rows_of_columns(token_index: torch.Tensor, num_columns: int) -> torch.Tensor:
    """For every column of the input, the row that stands for it, with shape (B, num_columns).

    That is the row of the column itself, or of the last column before it that is left. Columns before the first one
    that is left get the first row.

    Args:
        token_index: input column of every row, with shape (B, L), -1 for padding.
        num_columns: number of columns of the input.
    """
    is_row = token_index >= 0
    counts = torch.zeros(len(token_index), num_columns, dtype=torch.long, device=token_index.device)
    counts.scatter_add_(1, token_index.clamp(min=0), is_row.long())
    num_padding = (~is_row).long().cumprod(1).sum(1, keepdim=True)  # rows of padding on the left
    rows = num_padding + (counts.cumsum(1) - 1).clamp(min=0)
    return rows.clamp(max=token_index.shape[1] - 1)  # a sample of nothing but padding
