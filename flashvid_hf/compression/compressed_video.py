"""A compressed video: what every compression method returns.

Legend of the compression core: T frames (for Qwen: temporal grids), N tokens a frame, D width, M kept tokens. A flat
index is t * N + n.
"""

from dataclasses import dataclass

import torch

from .finite_checks import check_extremes


@dataclass(frozen=True)
class CompressedVideo:
    """A compressed video, and how it came about.

    Args:
        tokens: kept tokens in the order of `indices`, with shape (M, D), in the dtype of the features.
        indices: flat index of each kept token, ascending, with shape (M,). Unique but in behavior "released".
        starts: True at the first frame of every segment, with shape (T,).
        selected: which tokens were kept unchanged because they were selected, with shape (T, N).
        trees: flat index of the root of the tree that each token joined, with shape (T, N); its own if it joined none.
        slots: the row of `tokens` that each token went into, with shape (T, N); -1 if it was dropped.
        prunable: whether the language model may drop more of its tokens.
    """

    tokens: torch.Tensor
    indices: torch.Tensor
    starts: torch.Tensor
    selected: torch.Tensor
    trees: torch.Tensor
    slots: torch.Tensor
    prunable: bool = True
    _segment_lengths: torch.Tensor | None = None
    # Of what was compressed on a device that would have to be waited for, see `check`.
    _extremes: torch.Tensor | None = None

    def check(self) -> None:
        """Raise a `ValueError` if what was compressed is not finite, or too large to compute with.

        On the CPU the compression itself raises it. Other devices would have to be waited for: the models call this
        where they wait anyway. Until then the indices are in order all the same, and the tokens worth nothing.
        """
        if self._extremes is not None:
            check_extremes(self._extremes)

    @property
    def segment_lengths(self) -> torch.Tensor:
        """Frames of every segment, with shape (S,). Computed when asked for, because S depends on the video."""
        self.check()
        if self._segment_lengths is not None:
            return self._segment_lengths
        first = self.starts.nonzero()[:, 0]
        return first.diff(append=first.new_tensor([len(self.starts)]))

    @classmethod
    def whole(
        cls, video_features: torch.Tensor, *, prunable: bool, extremes: torch.Tensor | None = None
    ) -> "CompressedVideo":
        """A video of which every token is kept, given its features (T, N, D)."""
        num_frames, num_tokens, _ = video_features.shape
        indices = torch.arange(num_frames * num_tokens, device=video_features.device)
        grid = indices.view(num_frames, num_tokens)
        return cls(
            tokens=video_features.flatten(0, 1).clone(),
            indices=indices,
            starts=indices[:num_frames] == 0,
            selected=torch.ones_like(grid, dtype=torch.bool),
            trees=grid,
            slots=grid,
            prunable=prunable,
            _extremes=extremes,
        )

    @classmethod
    def of_tokens(
        cls,
        tokens: torch.Tensor,
        indices: torch.Tensor,
        shape: tuple[int, int],
        *,
        selected: torch.Tensor | None = None,
        slots: torch.Tensor | None = None,
        starts: torch.Tensor | None = None,
        extremes: torch.Tensor | None = None,
    ) -> "CompressedVideo":
        """Of tokens in any order.

        Args:
            tokens: with shape (M, D).
            indices: flat index of each, unique, with shape (M,).
            shape: (T, N).
            selected: which tokens were kept unchanged, with shape (T, N); all of `indices` by default.
            slots: the row of `tokens` that each token went into, with shape (T, N), -1 if it was dropped; by default
                only the kept tokens are in their rows.
            starts: True at the first frame of every segment, with shape (T,); one segment by default.
            extremes: what `check` is to look at.
        """
        flat_index = torch.arange(shape[0] * shape[1], device=indices.device)
        indices, order = indices.sort()
        row = order.argsort()  # of each token in its old place
        if slots is None:
            slots = torch.full_like(flat_index, -1).scatter(0, indices, flat_index[: len(indices)])
        else:
            slots = torch.where(slots < 0, -1, row[slots.clamp(min=0)])
        if selected is None:
            selected = torch.zeros_like(flat_index, dtype=torch.bool).scatter(0, indices, True)
        return cls(
            tokens=tokens[order],
            indices=indices,
            starts=flat_index[: shape[0]] == 0 if starts is None else starts,
            selected=selected.view(shape),
            trees=flat_index.view(shape),
            slots=slots.view(shape),
            _extremes=extremes,
        )


def check_features(video_features: torch.Tensor, attention: torch.Tensor | None) -> None:
    """Raise a `ValueError` unless these are the features (T, N, D) and the attention (T, N), if any, of one video."""
    if video_features.ndim != 3 or 0 in video_features.shape:
        raise ValueError(
            f"`video_features` has shape {tuple(video_features.shape)}: it must be (frames, tokens per frame, width), "
            "each at least 1. Pass the features of one video, after the projector and any pooling."
        )
    if not video_features.is_floating_point():
        raise ValueError(f"`video_features` has dtype {video_features.dtype}: it must be a floating point dtype.")
    if attention is None:
        return
    if attention.shape != video_features.shape[:2]:
        raise ValueError(
            f"`attention` has shape {tuple(attention.shape)} and `video_features` {tuple(video_features.shape)}: "
            f"`attention` must have shape {tuple(video_features.shape[:2])}, one value for every token."
        )
    if attention.device != video_features.device:
        raise ValueError(
            f"`attention` is on {attention.device} and `video_features` on {video_features.device}: "
            "move one of them, both must be on one device."
        )
