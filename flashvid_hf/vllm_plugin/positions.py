"""Three-axis positions of prompts with compressed videos.

Positions of text follow from the sizes of images and videos alone. They are exact from the start, also after a hit in
the prefix cache. Only the positions of the rows inside an image or a video are known after the encoder has run. They
travel in additional channels of the embeddings, relative to the first row, and become absolute when the rows enter.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

# A position is stored as digits in this base, which every dtype of embeddings represents exactly: bfloat16 has all
# integers up to 256.
_BASE = 256
_NUM_DIGITS = 3
NUM_CHANNELS = 3 * _NUM_DIGITS


def append_positions(rows: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Append relative positions (3, R) to the rows (R, D) of an image or a video: (R, D + `NUM_CHANNELS`)."""
    digits = [positions // _BASE**digit % _BASE for digit in range(_NUM_DIGITS)]
    return torch.cat([rows, torch.cat(digits).T.to(rows)], dim=1)


def split_positions(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows (R, D) and the positions (3, R) that `append_positions` joined."""
    digits = rows[:, -NUM_CHANNELS:].long().unflatten(1, (_NUM_DIGITS, 3))
    scale = torch.tensor([_BASE**digit for digit in range(_NUM_DIGITS)], device=rows.device)
    return rows[:, :-NUM_CHANNELS], (digits * scale[:, None]).sum(1).T


def text_positions(num_tokens: int, features: Sequence[Any], span: Callable[[Any], int]) -> tuple[torch.Tensor, int]:
    """Positions of a prompt before its images and videos are encoded.

    Args:
        num_tokens: S, tokens of the prompt.
        features: vLLM's descriptions of the images and videos of the prompt.
        span: gives the number of positions by which the text after an image or a video moves on.

    Returns:
        Positions with shape (3, S), in which every row of an image or a video has the position where it begins; and
        the difference between the position and the index of a generated token.
    """
    positions = torch.empty(num_tokens, dtype=torch.long)
    position = column = 0
    for feature in sorted(features, key=lambda feature: feature.mm_position.offset):
        start, length = feature.mm_position.offset, feature.mm_position.length
        positions[column:start] = torch.arange(position, position + start - column)
        position += start - column
        positions[start : start + length] = position
        position += span(feature)
        column = start + length
    positions[column:] = torch.arange(position, position + num_tokens - column)
    position += num_tokens - column
    return positions.expand(3, -1).clone(), position - num_tokens


def place_positions(
    input_ids: Sequence[int] | torch.Tensor,
    rows: Sequence[torch.Tensor],
    positions: torch.Tensor,
    num_computed: int,
    media_tokens: Sequence[int],
) -> tuple[list[torch.Tensor], torch.Tensor, int]:
    """Set the positions of the rows that enter now.

    Args:
        input_ids: token ids of the whole prompt, with shape (S,). The id at a row of an image or a video is one of
            `media_tokens`.
        rows: the rows of the images and videos that enter now, in order, as `append_positions` made them.
        positions: positions of the whole prompt, with shape (3, S).
        num_computed: number of columns that entered before.

    Returns:
        The rows without their positions, the positions with shape (3, S), and the difference between the position and
        the index of a generated token.
    """
    device = positions.device
    ids = torch.as_tensor(input_ids, dtype=torch.long, device=device)
    is_media = torch.isin(ids, torch.tensor(media_tokens, device=device))
    columns = torch.arange(len(ids), device=device)
    positions = positions.clone()
    if rows:
        embeddings, relative = zip(*(split_positions(part) for part in rows), strict=True)
        moved = torch.cat(relative, dim=1).to(device)
        # The columns of the images and videos from `num_computed` on, in order.
        order = (~(is_media & (columns >= num_computed))).view(torch.uint8).argsort(stable=True)
        places = order[: moved.shape[1]]
        # An image or a video begins after the last column of text before it.
        text = torch.where(is_media, -1, columns).cummax(0).values[places]
        begin = torch.where(text < 0, 0, positions[0, text.clamp(min=0)] + 1)
        positions[:, places] = begin + moved
    else:
        embeddings = ()
    return list(embeddings), positions, int(positions[:, -1].max()) + 1 - len(ids)
