"""A compressed video: what every compression method returns.

Legend of all files of the compression: T frames (for Qwen: temporal grids), N tokens a frame, D width, M kept tokens. A
token's flat index is t * N + n, for the n-th token of frame t.
"""

from dataclasses import dataclass

import torch

from .finite_checks import check_extremes


@dataclass(frozen=True)
class CompressedVideo:
    """A compressed video, and how it was compressed.

    Args:
        tokens: kept tokens in the order of `indices`, with shape (M, D), in the dtype of the features.
        indices: flat index of each kept token, ascending, with shape (M,). Unique, except in behavior "released".
        starts: True at the first frame of every segment, with shape (T,).
        selected: which tokens were kept unchanged because they were selected, with shape (T, N).
        trees: flat index of the root of the tree that each token joined, with shape (T, N). A token that joined no tree
            is its own root.
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
    # Smallest and largest values of the input, if they were not checked yet; see `check` and `check_finite`.
    _extremes: torch.Tensor | None = None

    def check(self) -> None:
        """Raise a `ValueError` if the input of the compression was not finite, or too large to compute with.

        On the CPU the compression itself raises the error. On other devices the check has to wait for the device, so
        the models call this method where they wait anyway. Before the check, the indices of such a video are valid but
        its tokens are meaningless.
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
        """Keep every token of a video.

        Args:
            video_features: with shape (T, N, D).
            prunable: whether the language model may drop some of the tokens.
            extremes: the values that `check` looks at, see `check_finite`.
        """
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
        """Build a compressed video from kept tokens in any order.

        Args:
            tokens: with shape (M, D).
            indices: flat index of each, unique, with shape (M,).
            shape: (T, N).
            selected: which tokens were kept unchanged, with shape (T, N). Default: all tokens of `indices`.
            slots: the row of `tokens` that each token went into, with shape (T, N), -1 if it was dropped. Default:
                every kept token went into its own row, and all others were dropped.
            starts: True at the first frame of every segment, with shape (T,). Default: one segment.
            extremes: the values that `check` looks at, see `check_finite`.
        """
        flat_index = torch.arange(shape[0] * shape[1], device=indices.device)
        indices, order = indices.sort()
        row = order.argsort()  # new row of each old row
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
    """Raise a `ValueError` unless the shapes, dtype and devices are those of one video.

    Args:
        video_features: must have shape (T, N, D) and a floating dtype.
        attention: must have shape (T, N) and be on the same device; `None` is not checked.
    """
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
