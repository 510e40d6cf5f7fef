"""Drop columns of padded batches."""

import torch


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
