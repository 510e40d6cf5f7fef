"""The prompt of one call after the compression: which input columns enter the language model."""

from dataclasses import dataclass

import torch

from ..compression.compressed_video import CompressedVideo
from .columns import find_columns, gather_columns
from .report import CompressionReport
from .stopwatch import Stopwatch


@dataclass(frozen=True)
class VideoLayout:
    """How the entering rows of a video lie in its placeholders. A row is a kept token or a newline.

    Args:
        counts: how often each placeholder enters, with shape (placeholders,): 0 or 1, or more if the released code
            repeats a token.
        prunable: which of the entering rows the language model may drop, with shape (rows,).
        is_token: which of the entering rows are kept tokens rather than newlines, with shape (rows,).
    """

    counts: torch.Tensor
    prunable: torch.Tensor
    is_token: torch.Tensor


@dataclass(frozen=True)
class Prompt:
    """The decision which columns enter. It is applied to embeddings, positions, masks and labels alike.

    Args:
        num_columns: S.
        columns: input column of each column that enters, with shape (B, M); `None` if all columns enter.
        mask: which of the entering columns are real rather than padding, with shape (B, M); `None` if all are.
        padding_side: the side on which shorter samples are padded, "left" or "right".
        videos: the compressed videos, in the order of their placeholders.
        layouts: for each video, how it lies in its placeholders.
        row_index: for each entering column, its row, counted through the rows of all videos, with shape (B, M); -1 for
            columns of other tokens. `None` without videos.
        prunable: which entering columns the language model may drop, with shape (B, M). `None` without videos.
        placeholders: how many video placeholders each sample has, with shape (B,). `None` without videos.
    """

    num_columns: int
    columns: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    padding_side: str = "left"
    videos: tuple[CompressedVideo, ...] = ()
    layouts: tuple[VideoLayout, ...] = ()
    row_index: torch.Tensor | None = None
    prunable: torch.Tensor | None = None
    placeholders: torch.Tensor | None = None

    @classmethod
    def uncompressed(cls, num_columns: int, attention_mask: torch.Tensor | None) -> "Prompt":
        """The prompt of a call without videos, in which all columns enter.

        A single new column is never padding, so decoding reads no mask and does not wait for the device.

        Args:
            num_columns: S.
            attention_mask: 2D mask whose last S columns are these. Masks of other forms are ignored: `generate`
                prepares them for the language model if the cache is static.
        """
        mask = None
        if num_columns > 1 and isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
            mask = attention_mask[:, -num_columns:].bool()
            mask = None if bool(mask.all()) else mask
        return cls(num_columns, mask=mask)

    @classmethod
    def compressed(
        cls,
        video_mask: torch.Tensor,
        videos: tuple[CompressedVideo, ...],
        layouts: tuple[VideoLayout, ...],
        attention_mask: torch.Tensor | None,
        dropped: torch.Tensor | None = None,
    ) -> "Prompt":
        """The prompt of a call in which only the kept tokens of the videos enter.

        Args:
            video_mask: which columns are placeholders of the videos, with shape (B, S).
            videos: the compressed videos, in the order of their placeholders.
            layouts: for each video, how it lies in its placeholders.
            attention_mask: 2D mask whose last S columns are these; columns before them belong to earlier turns.
            dropped: which other columns do not enter, with shape (B, S); `None` if all of them enter.

        Raises:
            ValueError: a video was not finite, see `CompressedVideo.check`.
        """
        device, num_columns = video_mask.device, video_mask.shape[1]
        # A column of a video is taken as often as its layout says; every other column is taken once.
        counts = torch.cat([layout.counts.to(device) for layout in layouts])
        counts = torch.ones_like(video_mask, dtype=torch.long).masked_scatter_(video_mask, counts)
        if dropped is not None:
            counts = counts * ~dropped
        padding_side = "left"
        if attention_mask is not None:
            valid = attention_mask[:, -num_columns:].to(device).bool()
            padding_side = "left" if bool(valid[:, -1].all()) else "right"
            counts = counts * valid
        columns, mask = find_columns(counts, padding_side)
        for video in videos:  # `find_columns` has just waited for the device, so this costs no further wait
            video.check()
        is_video = gather_columns(video_mask, columns)
        is_video = is_video if mask is None else is_video & mask
        flags = torch.cat([layout.prunable.to(device) for layout in layouts])
        rows = torch.arange(len(flags), device=device)
        row_index = torch.full_like(columns, -1).masked_scatter_(is_video, rows)
        prunable = torch.zeros_like(is_video).masked_scatter_(is_video, flags)
        placeholders = video_mask.sum(-1)
        return cls(num_columns, columns, mask, padding_side, videos, layouts, row_index, prunable, placeholders)

    def gather(self, tensor: torch.Tensor, dim: int = 1) -> torch.Tensor:
        """The entering columns of a tensor (..., B, S, ...). `dim` is the dimension of the columns."""
        return tensor if self.columns is None else gather_columns(tensor, self.columns, dim)

    def find_video_columns(self, video_mask: torch.Tensor) -> torch.Tensor:
        """Which entering columns hold rows of videos, with shape (B, M).

        Args:
            video_mask: which input columns are placeholders of videos, with shape (B, S).
        """
        return video_mask if self.row_index is None else self.row_index >= 0

    def scatter(self, embeddings: torch.Tensor, where: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Write features to entering columns.

        Args:
            embeddings: embeddings of the entering columns, with shape (B, M, D).
            where: which entering columns to write to, with shape (B, M). Padding is never written to.
            features: the features in the order of these columns, with shape (features, D).

        Returns:
            The new embeddings, with shape (B, M, D).
        """
        where = where if self.mask is None else where & self.mask
        return embeddings.masked_scatter(where[..., None].to(embeddings.device), features.to(embeddings))

    def find_query(self, query_index: int | torch.Tensor | None, num_seen: int) -> torch.Tensor:
        """For each sample, the entering column of the token that ranks the video tokens, with shape (B,).

        If that token does not enter, it is the last entering column before it.

        Args:
            query_index: column of the token in the whole sequence, an integer or one for each sample; `None` stands for
                the last real column.
            num_seen: columns of the whole sequence before this call.
        """
        assert self.columns is not None
        eligible = torch.ones_like(self.columns, dtype=torch.bool) if self.mask is None else self.mask
        if query_index is not None:
            limit = torch.as_tensor(query_index, device=self.columns.device).view(-1, 1) - num_seen
            eligible = eligible & (self.columns <= limit)
        place = torch.arange(1, self.columns.shape[1] + 1, device=self.columns.device)
        return (eligible * place).argmax(-1)

    def report(self, rows_left: torch.Tensor, stopwatch: Stopwatch, layers: tuple[int, int]) -> CompressionReport:
        """The report of the call.

        Args:
            rows_left: the `row_index` of every column that is left in the end, with shape (B, L).
            stopwatch: measured the stages of the call.
            layers: how many layers saw all columns that entered, and how many layers there are.
        """
        return CompressionReport(
            videos=self.videos,
            num_samples=len(rows_left),
            _tokens=tuple(len(layout.counts) for layout in self.layouts),
            _entered=tuple(len(layout.prunable) for layout in self.layouts),
            _placeholders=self.placeholders,
            _rows_left=rows_left,
            _is_token=tuple(layout.is_token for layout in self.layouts),
            _layers=layers,
            _stopwatch=stopwatch,
        )


def count_occurrences(indices: torch.Tensor, length: int) -> torch.Tensor:
    """How often each of 0 ... length - 1 occurs in `indices`, with shape (length,)."""
    counts = torch.zeros(length, dtype=torch.long, device=indices.device)
    return counts.index_add_(0, indices, torch.ones_like(indices))
