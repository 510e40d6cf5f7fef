"""Where LLaVA puts the learned newline embedding between the tokens of a video.

Letters of this file: s tokens a side of a pooled frame, R rows that enter the language model. A row is a kept token or
a newline.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Rows:
    """The order of a video's kept tokens and newlines.

    Args:
        placeholders: index of the video's placeholder that each row takes, ascending, with shape (R,).
        order: index of the kept token that makes each row, with shape (R,). For a newline it is the number of kept
            tokens, the index of a newline that is appended to them.
        num_placeholders: how many placeholders the whole video has, before the compression.
    """

    placeholders: torch.Tensor
    order: torch.Tensor
    num_placeholders: int


def pooled_side(pool_mode: str, side: int) -> int:
    """Tokens a side of a pooled frame that has `side` patches a side: half of them, rounded up for "bilinear"."""
    return -(-side // 2) if pool_mode == "bilinear" else side // 2


def group_size(position: str, num_frames: int, side: int) -> int:
    """After how many tokens a newline follows.

    Args:
        position: "grid" (after every row of a frame), "frame", "one_token" (after the video) or "no_token" (never; the
            result is 0).
        num_frames: T.
        side: s.
    """
    return {"grid": side, "frame": side**2, "one_token": num_frames * side**2, "no_token": 0}[position]


def count_rows(position: str, num_frames: int, side: int) -> int:
    """How many placeholders an uncompressed video has: its T * s * s tokens and its newlines."""
    tokens = num_frames * side**2
    size = group_size(position, num_frames, side)
    return tokens + (tokens // size if size else 0)


def lay_out_rows(indices: torch.Tensor, position: str, num_frames: int, side: int) -> Rows:
    """Put the newlines between the kept tokens.

    With "grid", the newline of a row is kept if a token of the row is kept. Otherwise every newline is kept, even that
    of a frame without kept tokens.

    Args:
        indices: flat index of each kept token, ascending, with shape (M,).
        position, num_frames, side: see `group_size`.
    """
    num_tokens, size = num_frames * side**2, group_size(position, num_frames, side)
    total = count_rows(position, num_frames, side)
    if not size:
        return Rows(indices, torch.arange(len(indices), device=indices.device), total)
    if position == "grid":
        newlines = torch.unique_consecutive(indices // size)
    else:
        newlines = torch.arange(num_tokens // size, device=indices.device)
    placeholders = torch.cat([indices + indices // size, newlines * (size + 1) + size])
    placeholders, order = placeholders.sort(stable=True)
    return Rows(placeholders, order.clamp(max=len(indices)), total)
