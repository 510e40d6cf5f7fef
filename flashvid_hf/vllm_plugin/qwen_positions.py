"""The positions of uncompressed images and videos in the Qwen families, relative to their first position."""

import torch


def grid_positions(grid: tuple[int, int, int], interval: float = 1.0) -> torch.Tensor:
    """Positions (3, T * H * W) of the tokens of a grid, relative to the first; `interval` lies between two in time."""
    frames, height, width = (torch.arange(size) for size in grid)
    frames = (frames.double() * interval).long()
    return torch.stack(torch.meshgrid(frames, height, width, indexing="ij")).flatten(1)


def uncompressed_positions(is_video: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Positions (3, R) of an uncompressed video and the text between its frames, relative to the first.

    Args:
        is_video: which rows are tokens of frames, with shape (R,). Each frame has `height` times `width` tokens.
    """
    text_before = (~is_video).cumsum(0) - (~is_video).long()
    video_before = is_video.cumsum(0) - is_video.long()
    begin = text_before + video_before // (height * width) * max(height, width)
    place = video_before % (height * width) * is_video
    return begin + torch.stack([torch.zeros_like(place), place // width, place % width])
