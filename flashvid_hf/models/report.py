"""What was compressed in a call."""

from dataclasses import dataclass, field

import torch

from ..compression.compressed_video import CompressedVideo
from .stopwatch import Stopwatch


@dataclass(frozen=True)
class CompressionReport:
    """Video tokens of a call at every stage, one entry for each video in the order of the prompts.

    Nothing is copied from the device before it is asked for.

    Args:
        videos: how each video was compressed; empty where nothing was.
        num_samples: samples of the batch that ran, beams and returned sequences included.
    """

    videos: tuple[CompressedVideo, ...]
    num_samples: int
    # An entry for each video: tuples, or tensors that may lie on a device.
    _tokens: tuple[int, ...] | torch.Tensor
    _entered: tuple[int, ...] | torch.Tensor
    _placeholders: torch.Tensor  # of each sample
    # Of compressed videos: which of all their rows are left in the end, -1 for other columns, with shape (B, L), and
    # which rows of each are tokens rather than newlines.
    _rows_left: torch.Tensor | None = None
    _is_token: tuple[torch.Tensor, ...] = ()
    # How many layers of the language model see all that entered, and how many there are.
    _layers: tuple[int, int] = (1, 1)
    _stopwatch: Stopwatch = field(default_factory=Stopwatch, compare=False)

    @classmethod
    def uncompressed(cls, placeholders: torch.Tensor, tokens: tuple[int, ...] | torch.Tensor) -> "CompressionReport":
        """Of a call in which every video token entered and remained.

        Args:
            placeholders: video placeholders of each sample, with shape (B,).
            tokens: those of each video.
        """
        return cls((), len(placeholders), tokens, tokens, placeholders)

    @classmethod
    def without_videos(cls, num_samples: int) -> "CompressionReport":
        """Of a call that had no video tokens."""
        return cls.uncompressed(torch.zeros(num_samples, dtype=torch.long), ())

    @property
    def tokens(self) -> tuple[int, ...]:
        """Video tokens before the compression, in families with newlines these included."""
        return _to_tuple(self._tokens)

    @property
    def entered(self) -> tuple[int, ...]:
        """Video tokens that entered the language model."""
        return _to_tuple(self._entered)

    @property
    def remained(self) -> tuple[int, ...]:
        """Video tokens that the layers from the pruning layer on see."""
        if self._rows_left is None:
            return self.entered
        return tuple(int(rows.sum()) for rows in self._find_rows_left())

    @property
    def retained(self) -> tuple[float, ...]:
        """Share of the video tokens that a layer of the language model saw, averaged over the layers.

        What `retention_ratio` asks for, as it came out: rounding and, in some methods, the video decide.
        """
        below, depth = self._layers
        stages = zip(self.tokens, self.entered, self.remained, strict=True)
        return tuple((below * entered + (depth - below) * left) / (depth * tokens) for tokens, entered, left in stages)

    @property
    def kept_tokens_remained(self) -> tuple[torch.Tensor, ...]:
        """Which kept tokens of every compressed video the layers from the pruning layer on see.

        Boolean, on the CPU, with shape (M,) each, in the order of the video's `indices`; newlines are not among them.
        """
        rows = zip(self._find_rows_left(), self._is_token, strict=True)
        return tuple(left[is_token.cpu()] for left, is_token in rows)

    @property
    def compressed(self) -> bool:
        """Whether the language model saw less than all video tokens."""
        return self.remained != self.tokens

    @property
    def samples(self) -> tuple[int, ...]:
        """Which sample of the batch each video belongs to."""
        ends = torch.as_tensor(self.tokens).cumsum(0)
        return tuple(torch.searchsorted(self._placeholders.cpu().cumsum(0), ends).tolist())

    def of_sample(self, sample: int) -> tuple[int, ...]:
        """Video tokens of one sample of the batch at the three stages: before, entered, remained."""
        videos = [i for i, s in enumerate(self.samples) if s == sample]
        return tuple(sum(stage[i] for i in videos) for stage in (self.tokens, self.entered, self.remained))

    @property
    def segment_lengths(self) -> tuple[tuple[int, ...], ...]:
        """Frames of every segment of every compressed video."""
        return tuple(tuple(video.segment_lengths.tolist()) for video in self.videos)

    @property
    def seconds(self) -> dict[str, float]:
        """Wall-clock seconds of the stages "vision", "compression" and "prefill"; empty where nothing was compressed.

        "vision" is the tower with its projector, "prefill" the language model. The first run of a model takes longer
        than later ones.
        """
        return self._stopwatch.seconds

    def _find_rows_left(self) -> tuple[torch.Tensor, ...]:
        """Which rows of every compressed video are left in the end, newlines included, with shape (rows,) each."""
        if self._rows_left is None:
            return ()
        rows = self._rows_left.cpu()
        left = torch.zeros(sum(self.entered), dtype=torch.bool).index_fill_(0, rows[rows >= 0], True)
        return left.split(self.entered)

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
