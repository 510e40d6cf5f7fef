"""What was compressed in a call."""

from dataclasses import dataclass, field

import torch

from ..compression.compressed_video import CompressedVideo
from .stopwatch import Stopwatch


@dataclass(frozen=True, repr=False)
class CompressionReport:
    """Video tokens of a call at every stage, with one entry for each video, in the order of the prompts.

    Values are copied from the device only when they are read.

    Args:
        videos: how each video was compressed; empty if none was.
        num_samples: samples of the batch that ran, including beams and returned sequences.
    """

    videos: tuple[CompressedVideo, ...]
    num_samples: int
    # Token counts with an entry for each video: tuples, or tensors that may be on a device.
    _tokens: tuple[int, ...] | torch.Tensor
    _entered: tuple[int, ...] | torch.Tensor
    _placeholders: torch.Tensor  # number of video placeholders of each sample, with shape (B,)
    # For each column that is left in the end, its row, counted through the rows of all compressed videos, with shape
    # (B, L); -1 for other columns.
    _rows_left: torch.Tensor | None = None
    # For each compressed video, which of its rows are tokens rather than newlines, with shape (rows,).
    _is_token: tuple[torch.Tensor, ...] = ()
    # How many layers of the language model see all tokens that entered, and how many layers there are.
    _layers: tuple[int, int] = (1, 1)
    _stopwatch: Stopwatch = field(default_factory=Stopwatch, compare=False)

    @classmethod
    def uncompressed(cls, placeholders: torch.Tensor, tokens: tuple[int, ...] | torch.Tensor) -> "CompressionReport":
        """The report of a call in which every video token entered and remained.

        Args:
            placeholders: number of video placeholders of each sample, with shape (B,).
            tokens: number of video tokens of each video.
        """
        return cls((), len(placeholders), tokens, tokens, placeholders)

    @classmethod
    def without_videos(cls, num_samples: int) -> "CompressionReport":
        """The report of a call that had no video tokens."""
        return cls.uncompressed(torch.zeros(num_samples, dtype=torch.long), ())

    @property
    def tokens(self) -> tuple[int, ...]:
        """Video tokens before the compression, including newlines in families that have them."""
        return _to_tuple(self._tokens)

    @property
    def entered(self) -> tuple[int, ...]:
        """Video tokens that entered the language model."""
        return _to_tuple(self._entered)

    @property
    def remained(self) -> tuple[int, ...]:
        """Video tokens that the pruning layer and the layers above it see."""
        if self._rows_left is None:
            return self.entered
        return tuple(int(rows.sum()) for rows in self._find_rows_left())

    @property
    def retained(self) -> tuple[float, ...]:
        """Share of the video tokens that a layer of the language model saw, averaged over the layers.

        `retention_ratio` asks for this share. The actual share may differ by rounding, and in some methods it depends
        on the video.
        """
        below, depth = self._layers
        stages = zip(self.tokens, self.entered, self.remained, strict=True)
        return tuple((below * entered + (depth - below) * left) / (depth * tokens) for tokens, entered, left in stages)

    @property
    def kept_tokens_remained(self) -> tuple[torch.Tensor, ...]:
        """For each compressed video, which of its kept tokens the pruning layer and the layers above it see.

        Boolean tensors on the CPU, with an entry for each kept token in the order of the video's `indices`. Newlines
        have no entry.
        """
        rows = zip(self._find_rows_left(), self._is_token, strict=True)
        return tuple(left[is_token.cpu()] for left, is_token in rows)

    @property
    def compressed(self) -> bool:
        """Whether some layers of the language model saw fewer than all video tokens."""
        return self.remained != self.tokens

    @property
    def samples(self) -> tuple[int, ...]:
        """For each video, the index of its sample in the batch."""
        ends = torch.as_tensor(self.tokens).cumsum(0)
        return tuple(torch.searchsorted(self._placeholders.cpu().cumsum(0), ends).tolist())

    def of_sample(self, sample: int) -> tuple[int, ...]:
        """Video tokens of one sample of the batch at three stages: before the compression, entered, remained."""
        videos = [i for i, s in enumerate(self.samples) if s == sample]
        return tuple(sum(stage[i] for i in videos) for stage in (self.tokens, self.entered, self.remained))

    @property
    def segment_lengths(self) -> tuple[tuple[int, ...], ...]:
        """Frames of every segment of every compressed video."""
        return tuple(tuple(video.segment_lengths.tolist()) for video in self.videos)

    @property
    def seconds(self) -> dict[str, float]:
        """Wall-clock seconds of the stages "vision", "compression" and "prefill"; empty if nothing was compressed.

        "vision" is the vision tower with its projector, "prefill" is the language model. The first run of a model takes
        longer than later runs.
        """
        return self._stopwatch.seconds

    def _find_rows_left(self) -> tuple[torch.Tensor, ...]:
        """For each compressed video, which of its rows are left in the end, including newlines, with shape (rows,)."""
        if self._rows_left is None:
            return ()
        rows = self._rows_left.cpu()
        left = torch.zeros(sum(self.entered), dtype=torch.bool).index_fill_(0, rows[rows >= 0], True)
        return left.split(self.entered)

    def __repr__(self) -> str:
        stages = (self.tokens, self.entered, self.remained)
        total, entered, remained = map(sum, stages)
        counts = f"{len(self.tokens)} videos, {total} tokens, {entered} entered, {remained} remained"
        return f"<{type(self).__name__}: {counts}>"

    def __str__(self) -> str:
        rows = zip(self.tokens, self.entered, self.remained, strict=True)
        lines = [
            f"video {i}: {tokens} tokens, {entered} entered, {remained} remained"
            for i, (tokens, entered, remained) in enumerate(rows)
        ]
        if not self.compressed:
            lines.append("nothing was compressed" if lines else "no video tokens, nothing was compressed")
        return "; ".join(lines)


def _to_tuple(values: tuple[int, ...] | torch.Tensor) -> tuple[int, ...]:
    return tuple(values.tolist()) if isinstance(values, torch.Tensor) else values
