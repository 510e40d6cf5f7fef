"""The compression of a video by FlashVID: DySeg, ADTS and TSTM (arXiv 2602.08024).

Generated from flashvid_hf 0.1.0: do not edit. The sections are its modules:

    compression/finite_checks.py
    compression/compressed_video.py
    compression/segmentation.py
    compression/token_selection.py
    compression/similarity.py
    compression/density_peaks.py
    compression/frame_chunks.py
    compression/released_deviations.py
    compression/weighted_rows.py
    compression/token_merging.py
    compression/budget.py
    compression/validation.py
    compression/compress_video.py
    methods/compression_method.py
    methods/flashvid.py
    methods/registry.py
"""

import inspect
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from itertools import pairwise
from numbers import Integral, Real
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F

# compression/finite_checks.py -----------------------------------------------------------------------------------------

"""Check that the values of a video are finite and not too large, without waiting for the device."""

# Largest magnitude that is accepted. The largest product of the compression is D * x**2 * 1e6 * attention, with an
# attention of at most 1. With this bound it stays below float32's maximum of 3.4e38 for the width D of any model.
LARGEST = 1e12


@torch.no_grad()
def check_finite(features: torch.Tensor, attention: torch.Tensor | None) -> torch.Tensor | None:
    """Check that the values of a video are finite and not too large, without waiting for the device.

    On the CPU the values are checked at once. On other devices the extreme values are returned, and the caller passes
    them to `check_extremes` when it has waited for the device.

    Args:
        features: of one video, of any shape.
        attention: that its tokens receive; `None` if the compression does not use it.

    Returns:
        `None` on the CPU. Otherwise the smallest and the largest feature, then the smallest and the largest attention
        if there is one, float32, with shape (2,) or (4,). If a tensor contains NaN, its two extremes are NaN.

    Raises:
        ValueError: a value on the CPU is not finite, or beyond 1e12 in magnitude.
    """
    extremes = [*features.aminmax()] if attention is None else [*features.aminmax(), *attention.aminmax()]
    found = torch.stack(extremes).float()
    if must_wait(found.device):
        return found
    check_extremes(found)
    return None


def must_wait(device: torch.device) -> bool:
    """Whether reading a value would wait for the device, or is impossible because the code is being compiled."""
    return device.type != "cpu" or torch.compiler.is_compiling()


def check_extremes(extremes: torch.Tensor) -> None:
    """Raise a `ValueError` if a value is not finite or too large. Waits for the device, unless it is the CPU.

    Args:
        extremes: see `check_finite`.
    """
    values = extremes.numpy().tolist() if extremes.device.type == "cpu" else extremes.tolist()
    advice = {
        "video_features": "Run the vision tower in bfloat16 or float32 if it runs in float16, which overflows, and "
        "check the pixels and the weights.",
        "attention": "Pass what a softmax returns, averaged.",
    }
    for name, pair in zip(advice, (values[:2], values[2:]), strict=True):
        for value in pair:  # the pair is empty if there is no attention
            if not abs(value) <= LARGEST:  # true for NaN too
                raise ValueError(
                    f"`{name}` has the value {value:g}: all of its values must be finite, and between -{LARGEST:g} and "
                    f"{LARGEST:g}. {advice[name]}"
                )


# compression/compressed_video.py --------------------------------------------------------------------------------------

"""A compressed video: what every compression method returns.

Legend of all files of the compression: T frames (for Qwen: temporal grids), N tokens a frame, D width, M kept tokens. A
token's flat index is t * N + n, for the n-th token of frame t.
"""


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


# compression/segmentation.py ------------------------------------------------------------------------------------------

"""DySeg of FlashVID (arXiv 2602.08024): cut a video into segments where the scene changes."""


def segment_video(
    frame_features: torch.Tensor,
    *,
    segment_threshold: float = 0.9,
    min_segment_num: int = 8,
    complementary_segment: bool = True,
) -> torch.Tensor:
    """Decide which frames begin a segment.

    A cut lies between two neighbouring frames whose cosine similarity is below `segment_threshold`. If that gives
    fewer than `min_segment_num` segments and `complementary_segment` is set, the least similar of the remaining
    transitions are cut too, until there are enough segments or no transition is left.

    Args:
        frame_features: mean token of every frame, with shape (T, D), float32.
        segment_threshold: cosine similarity below which a segment ends.
        min_segment_num: how many segments the additional cuts aim at.
        complementary_segment: whether to make additional cuts.

    Returns:
        Boolean mask with shape (T,): True at the first frame of every segment (always at frame 0).
    """
    similarity = frame_similarity(frame_features)
    cut = similarity < segment_threshold
    if complementary_segment:
        # The transitions below the threshold are the least similar ones, so they rank first.
        rank = similarity.argsort(stable=True).argsort()
        cut = cut | (rank < min_segment_num - 1)
    return F.pad(cut, (1, 0), value=True)


def frame_similarity(frame_features: torch.Tensor) -> torch.Tensor:
    """Cosine similarity of neighbouring frames (T, D), with shape (T - 1,); 0 if one of the two frames is zero."""
    norm = frame_features.norm(dim=-1, keepdim=True)
    unit = frame_features / norm.clamp_min(torch.finfo(norm.dtype).tiny)
    return (unit[:-1] * unit[1:]).sum(-1)


# compression/token_selection.py ---------------------------------------------------------------------------------------

"""ADTS of FlashVID (arXiv 2602.08024): select informative and diverse tokens in every frame."""

# The names are those of the released code; `select_tokens` says what each method does.
TOKEN_SELECTION_METHODS = ("attn", "div", "attn_div", "attn_div_v2")

# The attention that a token receives is about 1 / N. The factor is that of the released code. Scaling does not change
# the selection, except through rounding.
_ATTENTION_SCALE = 1e6
# Largest magnitude of a weight. Its product with any distance is finite, so only chosen tokens are at -inf.
_LARGEST_WEIGHT = 1e37


def select_tokens(
    distance: torch.Tensor | None,
    attention: torch.Tensor,
    num_tokens: int,
    *,
    method: str = "attn_div_v2",
    event_relevance: torch.Tensor | None = None,
    released: bool = False,
) -> torch.Tensor:
    """Choose `num_tokens` tokens of every frame.

    `attn` takes the tokens with the most attention. The other methods solve max-min diversity greedily over the
    calibrated distances e_ij = d_ij * w_j: the first token maximises the second smallest e_ij over i, every next one
    maximises the smallest e_ij over the chosen i. The weight w_j is 1 (`div`), the attention that token j receives
    (`attn_div`), or that times its event relevance (`attn_div_v2`).

    Args:
        distance: cosine distances within each frame, d_ij = 1 - cos(x_i, x_j), with shape (T, N, N); overwritten.
            `attn` needs none.
        attention: attention that every token receives in the last vision block, with shape (T, N).
        num_tokens: tokens to choose in each frame, at most N.
        method: one of `TOKEN_SELECTION_METHODS`.
        event_relevance: mean dot product of each token with the frame means of its segment, with shape (T, N);
            only for `attn_div_v2`.
        released: select as the released code does. In `attn_div_v2`, chosen tokens stay eligible, and are chosen again
            if their event relevance is negative or all tokens are alike. In `attn`, `torch.topk` decides among tokens
            with equal attention.

    Returns:
        Indices into N with shape (T, num_tokens), ascending in every frame, and unique unless `released`.
    """
    num_frames, num_candidates = attention.shape
    if num_tokens == 0:
        return attention.new_zeros(num_frames, 0, dtype=torch.long)
    if method == "attn":
        if released:
            return attention.topk(num_tokens, dim=-1).indices.sort(dim=-1).values
        return attention.argsort(dim=-1, descending=True, stable=True)[:, :num_tokens].sort(dim=-1).values

    if method != "div":
        weight = attention * _ATTENTION_SCALE
        if method == "attn_div_v2":
            weight = weight * event_relevance
        weight = weight.clamp_(-_LARGEST_WEIGHT, _LARGEST_WEIGHT)
        distance = distance.mul_(weight[:, None, :])
    second_smallest = distance.topk(2, dim=1, largest=False).values[:, 1] if num_candidates > 1 else distance[:, 0]
    current = second_smallest.argmax(dim=-1)
    # With -inf as the distance to itself, a chosen token is never the argmax again.
    if not (released and method == "attn_div_v2"):
        distance.diagonal(dim1=1, dim2=2).fill_(float("-inf"))
    chosen = [current]
    nearest = None  # smallest distance of every token to a chosen one, (T, N)
    for _ in range(1, num_tokens):
        to_current = distance.gather(1, current[:, None, None].expand(-1, 1, num_candidates))[:, 0]
        nearest = to_current if nearest is None else torch.fmin(nearest, to_current)  # `fmin`: NaN must not hide -inf
        current = nearest.argmax(dim=-1)
        chosen.append(current)
    return torch.stack(chosen, dim=1).sort(dim=-1).values


# compression/similarity.py --------------------------------------------------------------------------------------------

"""Inner products and norms of tokens, computed so that rounding breaks no ties."""


def gram_matrices(features: torch.Tensor) -> torch.Tensor:
    """Inner products of the tokens within each frame, with shape (T, N, N), of features (T, N, D).

    The result is exactly symmetric, which a plain matrix product need not be. Two tokens that are each other's nearest
    thus stay tied, and the lower index wins rather than rounding. The lower left quarter is not computed: it is the
    mirror image of the upper right quarter.
    """
    half = features.shape[1] // 2
    lower_right = F.pad(torch.bmm(features[:, half:], features[:, half:].mT), (half, 0), value=float("inf"))
    products = torch.cat([torch.bmm(features[:, :half], features.mT), lower_right], dim=1)
    del lower_right  # frees its memory before another matrix is made
    return torch.minimum(products, products.mT)


def inverse_norms(squared_norms: torch.Tensor) -> torch.Tensor:
    """1 / norm of tokens, of the same shape as `squared_norms`.

    It is 0 for a zero token, whose cosine to any token is then 0.
    """
    return squared_norms.rsqrt().nan_to_num_(nan=float("nan"), posinf=0.0)


# compression/density_peaks.py -----------------------------------------------------------------------------------------

"""DPC-kNN in every frame of a video: tokens in dense places, far from any denser token, become cluster centres."""

# Most nearest neighbours that the density estimate of DPC-kNN takes; the constant of the released code.
MAX_NEIGHBORS = 7


def cluster_tokens(
    features: torch.Tensor, candidates: torch.Tensor, num_clusters: torch.Tensor, num_neighbors: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """DPC-kNN in every frame: density peaks become cluster centres, every candidate joins the nearest one.

    Centres have the largest `density_scores`; ties go to the lower index.

    Args:
        features: with shape (T, N, D), float32.
        candidates: boolean mask with shape (T, N) of the tokens to cluster.
        num_clusters: clusters of every frame, with shape (T,), at most the candidates of the frame.
        num_neighbors: neighbours in the density estimate of every frame, with shape (T,), from 1 to `MAX_NEIGHBORS`.

    Returns:
        Tuple of the mask of the centres and, for every token, the index within its frame of the centre that it joins,
        both with shape (T, N). The index is meaningless for tokens that are no candidates, and in frames without
        clusters.
    """
    index = torch.arange(features.shape[1], device=features.device)
    score, squared = density_scores(features, candidates, num_neighbors, index)
    rank = score.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    centers = rank < num_clusters[:, None]
    joined = squared.masked_fill_(~centers[:, None, :], float("inf")).argmin(dim=-1)
    return centers, torch.where(centers, index, joined)


def density_scores(
    features: torch.Tensor, candidates: torch.Tensor, num_neighbors: torch.Tensor, index: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Score every token of a frame as a density peak, as DPC-kNN does: density * separation.

    The distance of two tokens is Euclidean, divided by sqrt(D). The density of a token is exp(-mean of its k smallest
    squared distances), with k = `num_neighbors`; the distance to itself, 0, is one of the k. The separation of a token
    is the distance to the nearest denser token, or the largest distance of the frame if no token is denser.

    Args:
        features: with shape (T, N, D), float32.
        candidates: boolean mask with shape (T, N) of the tokens to score.
        num_neighbors: with shape (T,), from 1 to `MAX_NEIGHBORS`, at most the candidates of the frame.
        index: 0 ... N - 1.

    Returns:
        Tuple of the scores with shape (T, N), -1 for tokens that are no candidates, and of the squared distances with
        shape (T, N, N), infinite to and from tokens that are no candidates.
    """
    others = ~candidates
    products = gram_matrices(features)
    norm = products.diagonal(dim1=1, dim2=2).masked_fill(others, float("inf"))  # far from everything
    # |x - y|^2 = |x|^2 + |y|^2 - 2 x * y. Adding the two norms first keeps the matrices exactly symmetric, so tokens
    # that are each other's nearest stay tied.
    squared = norm[:, :, None] + norm[:, None, :]
    # The distance of a token to itself is exactly 0, because its norm is on the diagonal of the products.
    squared.sub_(products, alpha=2).clamp_(min=0).div_(features.shape[2])
    del products  # frees its memory before another matrix is made

    num_neighbors = num_neighbors[:, None, None]
    nearest = squared.topk(min(MAX_NEIGHBORS, len(index)), dim=-1, largest=False).values
    nearest = nearest.masked_fill_(index[: nearest.shape[-1]] >= num_neighbors, 0)
    density = (-nearest.sum(-1) / num_neighbors[..., 0]).exp()
    density = density.masked_fill_(others, -1)  # denser than no candidate

    largest = squared.nan_to_num(nan=float("nan"), posinf=0.0).amax(dim=(1, 2), keepdim=True)
    denser = density[:, None, :] > density[:, :, None]
    separation = torch.where(denser, squared, largest).amin(dim=-1).sqrt()
    return (density * separation).masked_fill_(others, -1), squared


# compression/frame_chunks.py ------------------------------------------------------------------------------------------

"""Process long videos a few frames at a time, so that the memory for float32 copies and products stays bounded."""

# Most bytes of the float32 features of a chunk: 191 frames of 196 tokens at a width of 3584.
_CHUNK_BYTES = 512 * 2**20

# How many float32 matrices (N, N) a frame needs at once, at most, for its inner products and density scores.
_MATRICES = 2.25
# A step may always take this many bytes of such matrices: splitting less is not worth another step.
_STEP_BYTES = 2**20


def frames_per_chunk(features: torch.Tensor) -> int:
    """How many frames a chunk has, for features with shape (T, N, D)."""
    return max(1, _CHUNK_BYTES // (4 * features.shape[1] * features.shape[2]))


def frames_per_step(num_frames: int, num_tokens: int, width: int) -> int:
    """How many frames have their (N, N) matrices in memory at once.

    The matrices may take a quarter of the bytes of the frames' float32 features, or `_STEP_BYTES` if that is more. If
    D is below N, which no real model has, the matrices are larger than the features anyway. They may then take the
    bytes of a whole chunk.

    Args:
        num_frames: frames that are processed, the largest result.
        num_tokens: N.
        width: D.
    """
    features = 4 * num_frames * num_tokens * width
    most = _CHUNK_BYTES if width < num_tokens else max(_STEP_BYTES, features // 4)
    return max(1, min(num_frames, int(most / (4 * _MATRICES * num_tokens**2))))


def map_frames(function: Callable[..., Any], size: int, *tensors: torch.Tensor) -> Any:
    """Call `function` on `size` frames of all tensors at a time, and join its results.

    Args:
        function: takes as many tensors as there are `tensors`; returns one tensor or a tuple of tensors, whose first
            dimension is the frames.
        size: frames of one call.
        tensors: their first dimension is the frames.
    """
    return join_chunks([function(*chunk) for chunk in zip(*(tensor.split(size) for tensor in tensors), strict=True)])


def join_chunks(results: Sequence[Any]) -> Any:
    """Join the results of all chunks, each one tensor or a tuple of tensors, along the first dimension."""
    if len(results) == 1:
        return results[0]
    if isinstance(results[0], torch.Tensor):
        return torch.cat(tuple(results))
    return tuple(torch.cat(parts) for parts in zip(*results, strict=True))


# compression/released_deviations.py -----------------------------------------------------------------------------------

"""What the released code does differently from the paper, for `behavior="released"` only.

These functions reproduce the published numbers. They call `torch.topk` and `torch.cdist` frame by frame, as the
released code does, so ties and rounding come out alike. The released code adds random noise to break ties; here the
noise is zero.
"""


def released_segment_lengths(
    similarity: torch.Tensor, *, segment_threshold: float, min_segment_num: int, complementary_segment: bool
) -> torch.Tensor:
    """Frames of every segment as the released code counts them, with shape (S,).

    The released code draws the complementary cuts from all transitions. Once no uncut transition is left, it draws
    transitions that are cut already. Each of those adds a segment of length zero to the list. The frames are still
    grouped as by `segment_video`.

    Args:
        similarity: cosine similarity of neighbouring frames, with shape (T - 1,).
        segment_threshold, min_segment_num, complementary_segment: see `segment_video`.
    """
    cut = similarity < segment_threshold
    cuts = cut.nonzero()[:, 0]
    missing = min(max(min_segment_num - 1 - len(cuts), 0), len(similarity))
    if complementary_segment and missing:
        drawn = similarity.masked_fill(cut, float("inf")).topk(missing, largest=False).indices
        cuts = torch.cat([cuts, drawn]).sort().values
    ends = F.pad(cuts + 1, (0, 1), value=len(similarity) + 1)
    return ends.diff(prepend=ends.new_zeros(1))


def released_clusters(num_roots: torch.Tensor, num_clusters: torch.Tensor, all_roots: torch.Tensor) -> torch.Tensor:
    """How many clusters each frame gets in the released code, with shape (T,).

    Every frame rounds its share up, so a segment may exceed its budget.

    Args:
        num_roots: tree roots in each frame, with shape (T,).
        num_clusters: clusters of the whole segment that each frame lies in, with shape (T,).
        all_roots: tree roots of that segment, with shape (T,).
    """
    share = (num_roots * (num_clusters.double() / all_roots)).ceil().long()
    return torch.where(num_clusters < all_roots, share, num_roots)


def released_cluster_tokens(
    features: torch.Tensor, candidates: torch.Tensor, num_clusters: torch.Tensor, num_neighbors: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`cluster_tokens` with the ties and the rounding of the released code: same arguments, same results."""
    centers = torch.zeros_like(candidates)
    joined = torch.arange(candidates.shape[1], device=candidates.device).repeat(len(candidates), 1)
    for frame, (count, neighbors) in enumerate(zip(num_clusters.tolist(), num_neighbors.tolist(), strict=True)):
        if count == 0:
            continue
        tokens = candidates[frame].nonzero()[:, 0]
        members = features[frame, tokens]
        distance = torch.cdist(members[None], members[None])[0] / math.sqrt(features.shape[-1])
        nearest = distance.topk(neighbors, dim=-1, largest=False).values
        density = (-(nearest**2)).mean(-1).exp()
        denser = density[None, :] > density[:, None]
        separation = torch.where(denser, distance, distance.max()).amin(-1)
        center = (separation * density).topk(count).indices
        label = distance[:, center].argmin(-1)
        label[center] = torch.arange(count, device=label.device)
        centers[frame, tokens[center]] = True
        joined[frame, tokens] = tokens[center][label]
    return centers, joined


def released_rows(
    chosen: torch.Tensor, merged: "MergedTokens | None", flat_index: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
    """Lay out the rows of the kept tokens if a place may be kept more than once.

    Args:
        chosen: flat index of every selected token, ascending, with repeats.
        merged: how the other tokens are merged; if `None`, they are dropped.
        flat_index: 0 ... T * N - 1.

    Returns:
        The same as `unique_rows`, with one row for each repeat.
    """
    nowhere = torch.full_like(flat_index, -1)
    if merged is None:
        rows = flat_index[: len(chosen)]
        weight = torch.ones_like(rows, dtype=torch.float32)
        return chosen, nowhere.scatter(0, chosen, rows), (chosen, rows, weight, rows)
    kept = torch.cat([chosen, merged.centers.view(-1).nonzero()[:, 0]])
    indices, order = kept.sort(stable=True)
    rows, dropped = order.argsort(), merged.weight == 0
    row_of_center = nowhere.scatter(0, kept[len(chosen) :], rows[len(chosen) :])
    slots = row_of_center[merged.cluster].masked_fill_(dropped, -1)
    # Dropped tokens have weight 0. They are spread over the rows so that no row gets many entries.
    slot = torch.cat([rows[: len(chosen)], torch.where(dropped, flat_index % len(kept), slots)])
    weight = F.pad(merged.weight, (len(chosen), 0), value=1.0)
    entries = torch.cat([chosen, flat_index]), slot, weight, flat_index[: len(kept)]
    return indices, slots.scatter(0, chosen, rows[: len(chosen)]), entries


def released_repeats(tokens: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Tokens (M, D) as the released Qwen code passes them to the language model.

    That code writes each token to its column and then reads the columns back. If an index repeats, the last vector
    overwrites the others, so all rows with that index hold the last vector.

    Args:
        tokens: with shape (M, D).
        indices: flat index of each token, ascending, with shape (M,).
    """
    return tokens[torch.searchsorted(indices, indices, right=True) - 1]


# compression/weighted_rows.py -----------------------------------------------------------------------------------------

"""Weighted sums of rows, grouped by slot, in a fixed order and with little memory.

Letters of this file: E entries (summands), S slots (sums).
"""

# If features have to be copied for a sum, one block of columns is copied at a time, which bounds the memory. The sums
# aim at `_BLOCKS` blocks or more. The width of a block is a multiple of `_BLOCK_STEP`, for the vector instructions of
# CPUs.
_BLOCKS, _BLOCK_STEP = 8, 32


def count_by_slot(slot: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """For each entry, count the entries of its slot.

    Args:
        slot: slot of each entry, below E, with shape (E,).
        counted: 1 for the entries that count, 0 for the others, float32, with shape (E,).

    Returns:
        The counts, float32, with shape (E,). Integers of this size are exact in float32.
    """
    return torch.zeros_like(counted).index_add_(0, slot, counted)[slot]


def weighted_sums(
    features: torch.Tensor,
    source: torch.Tensor | None,
    slot: torch.Tensor,
    weight: torch.Tensor,
    slots: torch.Tensor,
    *,
    per_chunk: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """For every s in `slots`, the sum of `weight[e] * features[source[e]]` over the entries e with `slot[e] == s`.

    The entries are sorted by slot and summed in order, so the result does not depend on a race between threads.

    Args:
        features: with shape (T * N, D), any floating dtype.
        source: row of `features` of each entry, with shape (E,). `None` stands for 0, 1, 2 ...
        slot: slot that each entry is added to, with shape (E,).
        weight: weight of each entry, with shape (E,).
        slots: 0, 1, 2 ..., with shape (S,).
        per_chunk: how many slots to sum at once, in float32. Default: all.
        dtype: dtype of the result.

    Returns:
        Tensor with shape (S, D); a slot without entries is zero.
    """
    return join_chunks([sums.to(dtype) for sums in iterate_sums(features, source, slot, weight, slots, per_chunk)])


def iterate_sums(
    features: torch.Tensor,
    source: torch.Tensor | None,
    slot: torch.Tensor,
    weight: torch.Tensor,
    slots: torch.Tensor,
    per_chunk: int | None,
    *,
    overwrites: bool = False,
) -> Iterator[torch.Tensor]:
    """`weighted_sums` in float32, chunk by chunk.

    Args:
        features, source, slot, weight, slots, per_chunk: see `weighted_sums`.
        overwrites: whether the sums may overwrite `features`, which are float32 then. Applies if there is only one
            chunk.

    Yields:
        Sums with shape (per_chunk, D); the last chunk may have fewer.
    """
    ordered, order = slot.sort(stable=True)
    offsets = torch.searchsorted(ordered, slots)
    rows, weight = order if source is None else source[order], weight[order]
    per_chunk = per_chunk or len(slots)
    if len(slots) <= per_chunk:
        yield _sum_bags(features, rows, offsets, weight, len(features), overwrites)
        return
    starts = offsets[::per_chunk].tolist()  # waits for the device: the sizes of the chunks depend on the video
    for first, (start, end) in zip(range(0, len(slots), per_chunk), pairwise([*starts, len(rows)]), strict=True):
        of_chunk = offsets[first : first + per_chunk] - start
        yield _sum_bags(features, rows[start:end], of_chunk, weight[start:end], per_chunk)


def _sum_bags(
    features: torch.Tensor,
    rows: torch.Tensor,
    offsets: torch.Tensor,
    weight: torch.Tensor,
    most: int,
    overwrites: bool = False,
) -> torch.Tensor:
    """Weighted sums of the runs of `rows` that begin at `offsets`, float32, with shape (S, D).

    If `features` are overwritten or not float32, one block of columns is copied at a time.

    Args:
        features: with shape (T * N, D).
        rows: rows of `features` to sum, with shape (E,).
        offsets: where the rows of each slot begin, with shape (S,).
        weight: weight of each of `rows`, with shape (E,).
        most: a block has about 1 / `_BLOCKS` as many values as this many rows of `features`.
        overwrites: see `iterate_sums`.
    """
    if features.dtype == torch.float32 and not overwrites:
        return F.embedding_bag(rows, features, offsets, mode="sum", per_sample_weights=weight)
    width, gathers = features.shape[1], most < len(features)  # a chunk copies only the rows that it sums
    places = torch.arange(len(rows), device=rows.device) if gathers else rows

    def sum_columns(start: int, end: int) -> torch.Tensor:
        block = features[:, start:end]
        block = (block[rows] if gathers else block).float().contiguous()
        return F.embedding_bag(places, block, offsets, mode="sum", per_sample_weights=weight)

    columns = width * most // (_BLOCKS * max(most, len(rows)))
    columns = max(1, -(-columns // _BLOCK_STEP)) * _BLOCK_STEP
    if columns >= width:
        return sum_columns(0, width)
    sums = features if overwrites else features.new_empty(len(offsets), width, dtype=torch.float32)
    for start in range(0, width, columns):
        sums[:, start : start + columns] = sum_columns(start, start + columns)
    return sums


# compression/token_merging.py -----------------------------------------------------------------------------------------

"""TSTM of FlashVID (arXiv 2602.08024): link tokens over time into trees, then merge the close ones of each frame."""

# Larger than the number of roots of any video, and still within int64 when multiplied by a number of frames.
_MORE_THAN_ROOTS = 2**40


def same_segment(segment: torch.Tensor) -> torch.Tensor:
    """Which frames lie in the same segment, with shape (T, T), given the segment of each frame (T,)."""
    return segment[:, None] == segment[None, :]


class MergedTokens(NamedTuple):
    """How the tokens that ADTS did not select are merged.

    Args:
        roots: flat index of the root of each token's tree, with shape (T * N,).
        centers: True for the cluster centres, whose places the merged tokens take, with shape (T, N).
        cluster: flat index of the centre that each token went to, with shape (T * N,).
        weight: share of each token in the mean at its centre, with shape (T * N,); 0 if it was dropped.
    """

    roots: torch.Tensor
    centers: torch.Tensor
    cluster: torch.Tensor
    weight: torch.Tensor


def merge_tokens(
    features: torch.Tensor,
    parent: torch.Tensor,
    selected: torch.Tensor,
    segment: torch.Tensor,
    flat_index: torch.Tensor,
    *,
    together: torch.Tensor,
    num_merged: int,
    released: bool = False,
    size: int | None = None,
    overwrites: bool = False,
) -> MergedTokens:
    """Merge linked tokens over time, then within the frames, into `num_merged` tokens a frame on average.

    Args:
        features: with shape (T, N, D), any floating dtype.
        parent: see `link_tokens`, with shape (T * N,).
        selected: boolean mask of the tokens that ADTS selected, with shape (T, N).
        segment: the segment of each frame, ascending, with shape (T,).
        flat_index: 0 ... T * N - 1.
        together: see `same_segment`.
        num_merged: merged tokens of a frame; at least 1.
        released: merge as the released code does. The sum of a tree is divided by 1 + the number of direct children of
            its root. A segment of one frame clusters the selected tokens too. Every frame rounds its number of clusters
            up.
        size: how many frames have their float32 means in memory at once. Default: all.
        overwrites: whether the means may overwrite `features`, which are float32 then. Applies to videos of at most
            `size` frames.
    """
    num_frames, num_tokens, width = features.shape
    size = size or num_frames
    length = together.sum(1)  # frames in the segment of each frame, (T,)

    # Over time: each tree becomes one token at the place of its root.
    is_root = parent == flat_index
    roots = find_roots(parent, num_frames)
    if released:
        children = torch.zeros_like(roots).index_add_(0, parent, (~is_root).long())
        members = (1 + children[roots]).float()
    else:
        members = count_by_slot(roots, torch.ones_like(roots, dtype=torch.float32))  # tokens of each token's tree
    weight = members.reciprocal()

    # Within the frames: roots become clusters.
    candidates = is_root.view_as(selected) > selected  # roots that are not selected
    if released:
        candidates = candidates | (length == 1)[:, None]
    num_roots, num_clusters = candidates.sum(1), num_merged * length
    all_roots = (together * num_roots).sum(1)  # roots in the segment of each frame, (T,)
    if released:
        frame_clusters = released_clusters(num_roots, num_clusters, all_roots)
        cluster_frames = released_cluster_tokens
    else:
        frame_clusters = share_clusters(num_roots, num_clusters, all_roots, segment, together)
        cluster_frames = cluster_tokens
    means = iterate_sums(
        features.view(-1, width), None, roots, weight, flat_index, size * num_tokens, overwrites=overwrites
    )
    of_frames = (candidates, frame_clusters, frame_clusters.clamp(1, MAX_NEIGHBORS))
    step = frames_per_step(min(num_frames, size), num_tokens, width)
    clusters = []
    for chunk in zip(*(tensor.split(size) for tensor in of_frames), strict=True):
        # The means get no name, so that each chunk of them is freed before the next one is made.
        clusters.append(map_frames(cluster_frames, step, next(means).view(-1, num_tokens, width), *chunk))
    centers, joined = join_chunks(clusters)
    joined = (joined + flat_index.view_as(joined)[:, :1]).view(-1)  # flat index

    # 1 for each candidate, 0 for other tokens and in frames without clusters.
    counted = (candidates * frame_clusters.clamp(max=1)[:, None]).view(-1).float()
    share = counted / count_by_slot(joined, counted).clamp(min=1)
    return MergedTokens(roots, centers, joined[roots], weight * share[roots])


def link_tokens(
    features: torch.Tensor,
    inverse_norm: torch.Tensor,
    selected: torch.Tensor,
    segment: torch.Tensor,
    flat_index: torch.Tensor,
    *,
    max_links: torch.Tensor,
    temporal_threshold: float = 0.8,
    strict_limit: bool = False,
    size: int | None = None,
) -> torch.Tensor:
    """Link every unselected token to its most similar unselected token of the frame before, if similar enough.

    Args:
        features, selected, segment, flat_index: see `merge_tokens`. No link leaves a segment.
        inverse_norm: 1 / norm of every token, 0 for a zero token, with shape (T, N).
        max_links: how many links the segment of each frame may hold, with shape (T,). If more links pass the threshold,
            only the strongest are made.
        temporal_threshold: a link needs a larger cosine than this. At 1 or more there are no links.
        strict_limit: apply `max_links` as the released code does. If more links pass the threshold, only those are made
            that are *stronger* than the weakest one that would fit. That is one link less, or several less if the
            weakest ones are equally strong.
        size: how many frames have their products in memory at once. Default: all.

    Returns:
        Flat index of each token's parent, with shape (T * N,). A token without a link is its own parent.
    """
    num_frames, num_tokens = selected.shape
    if num_frames == 1 or temporal_threshold >= 1:
        return flat_index
    strength, parent = map_frames(
        _nearest_parent, size or num_frames, features[1:], features[:-1], inverse_norm[:-1], selected[:-1]
    )
    is_bound = selected[1:] | (segment[1:] != segment[:-1])[:, None]
    strength = (strength * inverse_norm[1:]).masked_fill_(is_bound, float("-inf"))
    strength = F.pad(strength, (0, 0, 1, 0), value=float("-inf")).view(-1)  # frame 0 has no frame before it
    parent = F.pad(parent + flat_index.view_as(selected)[:-1, :1], (0, 0, 1, 0)).view(-1)  # flat index

    # Rank of every link among the links of its segment, the strongest first.
    segment = segment.repeat_interleave(num_tokens, output_size=len(flat_index))
    order = strength.argsort(descending=True, stable=True)
    order = order[segment[order].argsort(stable=True)]
    rank = order.argsort() - torch.searchsorted(segment, segment)
    fits = (rank.view_as(selected) < max_links[:, None]).view(-1)

    joins = strength > temporal_threshold
    if strict_limit:
        weakest = strength.masked_fill(~fits, float("inf"))
        weakest = torch.full_like(strength, float("inf")).scatter_reduce_(0, segment, weakest, "amin")[segment]
        links = torch.zeros_like(segment).index_add_(0, segment, joins.long())[segment].view_as(selected)
        too_many = (links > max_links[:, None]).view(-1)
        joins = torch.where(too_many, strength > weakest.clamp(min=-1 + 1e-6), joins)
    else:
        joins = joins & fits
    return torch.where(joins, parent, flat_index)


def _nearest_parent(
    children: torch.Tensor, parents: torch.Tensor, inverse_norm: torch.Tensor, selected: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the most similar unselected parent of each child.

    The similarity is the cosine times the norm of the child. A child's norm does not change which parent is nearest.

    Args:
        children: features of frames, with shape (T, N, D).
        parents: features of the frame before each of these, with shape (T, N, D).
        inverse_norm, selected: of the parents, with shape (T, N).

    Returns:
        Tuple of the similarity to that parent and of its index within its frame, with shape (T, N) each.
    """
    similarity = torch.bmm(children.float(), parents.float().mT)
    similarity.mul_(inverse_norm[:, None, :]).masked_fill_(selected[:, None, :], float("-inf"))
    nearest = similarity.max(dim=-1)
    return nearest.values, nearest.indices


def find_roots(parent: torch.Tensor, num_frames: int) -> torch.Tensor:
    """Find the root of each token's tree by pointer doubling.

    Args:
        parent: see `link_tokens`, with shape (T * N,).
        num_frames: T, which bounds the depth of a tree.

    Returns:
        Flat index of each token's root, with shape (T * N,).
    """
    for _ in range((num_frames - 1).bit_length()):
        parent = parent[parent]
    return parent


def share_clusters(
    num_roots: torch.Tensor,
    num_clusters: torch.Tensor,
    all_roots: torch.Tensor,
    segment: torch.Tensor,
    together: torch.Tensor,
) -> torch.Tensor:
    """Share the clusters of a segment out over its frames in proportion to their roots, by largest remainder.

    Args:
        num_roots: tree roots in each frame, with shape (T,), integer.
        num_clusters: clusters of the whole segment that each frame lies in, with shape (T,).
        all_roots: tree roots of that segment, with shape (T,).
        segment: which segment each frame belongs to, ascending, with shape (T,).
        together: which frames lie in the same segment, with shape (T, T).

    Returns:
        Clusters of each frame, with shape (T,). No frame has more clusters than roots, and the frames of a segment add
        up to its `num_clusters`.
    """
    share = num_roots * num_clusters
    whole, remainder = share // all_roots, share % all_roots
    left = num_clusters - (together * whole).sum(1)
    # Rank of the remainders within the segment: sort by (segment, remainder descending, frame).
    order = torch.sub(remainder, segment, alpha=_MORE_THAN_ROOTS).argsort(descending=True, stable=True)
    rank = order.argsort() - torch.searchsorted(segment, segment)
    return whole + (rank < left)


# compression/budget.py ------------------------------------------------------------------------------------------------

"""Exact token budgets: share a number of tokens out over frames, segments or sets, and list the tokens of a mask."""

# Replaces a weight of zero. It is below any weight that matters, so an entry without weight gets something only if all
# other entries are full.
_LEAST_WEIGHT = 1e-30
# Shares are rounded to 1 / 2**32 before their remainders are compared: rounding errors then break no ties.
_STEPS = 2.0**32


def share_out(total: int | torch.Tensor, weights: torch.Tensor, capacity: int | torch.Tensor) -> torch.Tensor:
    """Share `total` out over E entries in proportion to `weights`, by largest remainder.

    No entry gets more than its capacity. The excess goes to the other entries, in proportion too. Ties go to the lower
    index. Never waits for the device.

    Args:
        total: an integer, at most the sum of `capacity`.
        weights: weight of every entry, at least 0, with shape (E,).
        capacity: largest share of every entry, an integer, with shape (E,), or one integer for all entries.

    Returns:
        The integer shares, which add up to `total`, int64, with shape (E,).
    """
    weights = weights.double().clamp(min=_LEAST_WEIGHT)
    capacity = torch.zeros_like(weights) + capacity
    # As a proportional total grows, entries fill up in the order of capacity / weight.
    rank = (capacity / weights).argsort(stable=True).argsort()
    sooner = rank < rank[:, None]  # (E, E); sums over it are deterministic on GPUs too, which `cumsum` is not
    is_full = weights * (total - (capacity * sooner).sum(1)) >= capacity * (weights * ~sooner).sum(1)
    rest = total - (capacity * is_full).sum()
    ideal = weights * rest / (weights * ~is_full).sum().clamp(min=_LEAST_WEIGHT)
    ideal = (torch.where(is_full, capacity, ideal) * _STEPS).round() / _STEPS
    whole = ideal.floor()
    rank = (ideal - whole).argsort(descending=True, stable=True).argsort()
    return (whole + (rank < total - whole.sum())).long()


def indices_of(mask: torch.Tensor, count: int) -> torch.Tensor:
    """Flat indices of the true values of a mask, ascending. Like `nonzero`, but does not wait for the device.

    Args:
        mask: boolean, of any shape.
        count: how many values are true.

    Returns:
        int64 tensor with shape (count,).
    """
    return mask.flatten().view(torch.uint8).argsort(descending=True, stable=True)[:count]


# compression/validation.py --------------------------------------------------------------------------------------------

"""What a setting may be: a record for each setting, and checks.

The error of a check names the field, the value, the allowed range and a next step. The fields of a dataclass are its
settings. Each field states its default, meaning and range once, by `setting`. The checks, the fields of the models'
configurations and the tables of the model cards and of the README follow from these records.
"""


def check_number(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    least: float | None = None,
    most: float | None = None,
    integer: bool = False,
) -> None:
    """Raise a `ValueError` unless `value` is a finite number within the bounds. A boolean is no number.

    Args:
        name: what the error calls the value.
        value: what is checked.
        above: the value must be larger than this.
        least: the value must be at least this.
        most: the value must be at most this.
        integer: the value must be an integer.
    """
    is_number = isinstance(value, Integral if integer else Real) and not isinstance(value, bool)
    fits = (
        is_number
        and math.isfinite(value)
        and (above is None or value > above)
        and (least is None or value >= least)
        and (most is None or value <= most)
    )
    if not fits:
        allowed = " and ".join(_describe_bounds(above, least, most))
        kind = "an integer" if integer else "a number"
        raise ValueError(f"`{name}` is {value!r}: it must be {kind} {allowed}. Set `{name}` to such a value.")


def check_choice(name: str, value: Any, choices: Collection) -> None:
    """Raise a `ValueError` unless `value` is one of `choices`, type included (`True` is not 1)."""
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"`{name}` is {value!r}: it must be one of {listed}. Set `{name}` to one of them.")


def _describe_bounds(above: float | None, least: float | None, most: float | None) -> list[str]:
    bounds = {"above": above, "at least": least, "at most": most}
    return [f"{words} {bound}" for words, bound in bounds.items() if bound is not None]


@dataclass(frozen=True)
class Setting:
    """What a setting does and what it may be.

    Args:
        meaning: what the setting does, for tables in Markdown. "{layers}" stands for the number of layers.
        above: a number must be larger than this.
        least: a number must be at least this.
        most: a number must be at most this.
        integer: a number must be an integer.
        choices: the value must be one of these.
        optional: the value may be `None` too.
        words: what the value may be, in words, if no other field can say it. `check` then accepts every value, and the
            class that has the setting checks it.
    """

    meaning: str
    above: float | None = None
    least: float | None = None
    most: float | None = None
    integer: bool = False
    choices: tuple[str | bool, ...] = ()
    optional: bool = False
    words: str = ""

    def check(self, name: str, value: Any) -> None:
        """Raise a `ValueError` if the setting must not have this value. The error calls the setting `name`."""
        if self.words or (value is None and self.optional):
            return
        if self.choices:
            check_choice(name, value, self.choices)
        else:
            check_number(name, value, above=self.above, least=self.least, most=self.most, integer=self.integer)

    @property
    def allowed(self) -> str:
        """What the setting may be, in Markdown; values are written as JSON."""
        choices = [f"`{str(choice).lower()}`" for choice in self.choices]
        parts = [self.words] if self.words else choices or _describe_bounds(self.above, self.least, self.most)
        return ", ".join([*parts, *(["`null`"] if self.optional else [])])


def setting(default: Any, meaning: str, **allowed: Any) -> Any:
    """A field of a dataclass that is a setting. A subclass may give it another default by a plain assignment.

    Args:
        default: the default of the field.
        meaning: see `Setting`.
        allowed: the other fields of `Setting`.
    """
    return field(default=default, metadata={"setting": Setting(meaning, **allowed)})


def same_setting(owner: Any, name: str) -> Any:
    """A field that has the default, the meaning and the range of the field `name` of the dataclass `owner`."""
    (default,) = (field.default for field in fields(owner) if field.name == name)
    return field(default=default, metadata={"setting": settings_of(owner)[name]})


def settings_of(owner: Any) -> dict[str, Setting]:
    """The settings of a dataclass, by name, in the order of its fields.

    Args:
        owner: the class. A subclass that only changes a default keeps the meaning and the range.
    """
    found = {}
    for base in reversed(owner.__mro__):
        own = vars(base).get("__dataclass_fields__", {})
        found.update({name: field.metadata["setting"] for name, field in own.items() if "setting" in field.metadata})
    return found


def check_settings(owner: Any) -> None:
    """Raise a `ValueError` for the first setting outside of its range.

    Args:
        owner: an instance of a dataclass with settings.
    """
    for name, found in settings_of(type(owner)).items():
        found.check(name, getattr(owner, name))


# compression/compress_video.py ----------------------------------------------------------------------------------------

"""FlashVID (arXiv 2602.08024) before the language model: DySeg, ADTS and TSTM, one after the other.

The compression is decided once, without gradient, and then applied to the features as one weighted sum of rows. In
behavior "paper" every size follows from `exact_num_tokens`. The host therefore waits for the device only if the video
has more than one chunk of frames, and then twice. Beside the input, memory holds at most one copy of the input and one
chunk in float32.
"""

# "paper" follows the paper with an exact budget. "released" reproduces the authors' code, see `released_deviations.py`.
BEHAVIORS = ("paper", "released")


@dataclass(frozen=True)
class CompressionConfig:
    """Settings of the compression, under the reference implementation's names.

    If `retention_ratio * expansion` is at least 1, the video stays as it is. The pruning inside the language model
    makes up for the expansion. If `temporal_threshold` is at least 1, no token is merged over time. Behavior "released"
    reproduces the numbers of the released code, including its deviations from the paper.

    Raises:
        ValueError: a field is outside of its range.
    """

    retention_ratio: float = setting(
        0.25, "share of the video tokens that a layer sees on average; 1.0 is off", above=0, most=1
    )
    expansion: float = setting(
        1.25, "`retention_ratio * expansion` is the share that enters the language model", least=1
    )
    alpha: float = setting(
        0.7, "share of the kept tokens that are selected (ADTS); the others are merged (TSTM)", least=0, most=1
    )
    token_selection_method: str = setting(
        "attn_div_v2", "select by attention, by diversity, or by both", choices=TOKEN_SELECTION_METHODS
    )
    temporal_threshold: float = setting(0.8, "smallest cosine that merges a token into the frame before", least=-1)
    do_segment: bool = setting(True, "cut the video into segments (DySeg), or take it as one", choices=(True, False))
    segment_threshold: float = setting(0.9, "cosine of neighbouring frames below which a segment ends", least=-1)
    min_segment_num: int = setting(8, "segments that `complementary_segment` aims at", least=1, integer=True)
    complementary_segment: bool = setting(
        True, "cut further where too few cuts pass the threshold", choices=(True, False)
    )
    behavior: str = setting("paper", "`released` reproduces the numbers of the authors' code", choices=BEHAVIORS)

    def __post_init__(self):
        check_settings(self)

    @property
    def segmentation(self) -> dict:
        """The arguments of `segment_video`."""
        return {
            "segment_threshold": self.segment_threshold,
            "min_segment_num": self.min_segment_num,
            "complementary_segment": self.complementary_segment,
        }

    def frame_budget(self, tokens_per_frame: int) -> tuple[int, int]:
        """How many tokens a frame keeps on average, and how many of these are selected rather than merged."""
        budget = math.ceil(tokens_per_frame * self.retention_ratio * self.expansion)
        return min(budget, tokens_per_frame), math.ceil(budget * self.alpha)


def exact_num_tokens(num_frames: int, tokens_per_frame: int, config: CompressionConfig) -> int:
    """How many tokens `compress_video` keeps in behavior "paper". The number depends only on the sizes.

    Args:
        num_frames: T, at least 1.
        tokens_per_frame: N, at least 1.
        config: the settings of the compression.

    Raises:
        ValueError: a size is not a positive integer, or the behavior is "released", whose count depends on the video.
    """
    check_number("num_frames", num_frames, least=1, integer=True)
    check_number("tokens_per_frame", tokens_per_frame, least=1, integer=True)
    if config.behavior != "paper":
        raise ValueError(
            f"`behavior` is {config.behavior!r}: the number of tokens is known beforehand only for 'paper'. "
            "Compress the video and count, or use `behavior='paper'`."
        )
    return num_frames * config.frame_budget(tokens_per_frame)[0]


def compress_video(video_features: torch.Tensor, attention: torch.Tensor, config: CompressionConfig) -> CompressedVideo:
    """Select and merge the tokens of one video.

    The computation is deterministic and in float32, whatever the dtype of the input. The inputs are not changed.
    Gradients flow through the merged tokens, not through the decision. Features below 1e-19 in magnitude count as zero,
    because their squares underflow.

    Args:
        video_features: tokens as they would enter the language model, with shape (T, N, D), of a floating dtype.
        attention: attention that each token receives in the last vision block, averaged over heads and queries, with
            shape (T, N). The token selection method "div" ignores it.
        config: the settings of the compression.

    Raises:
        ValueError: the shapes do not fit together; a value is not finite, or beyond 1e12 in magnitude. On a GPU this
            function does not wait for the values. There `CompressedVideo.check` raises the error, and so does the call
            of a model.
    """
    if not isinstance(attention, torch.Tensor):
        raise ValueError(
            f"`attention` is {attention!r:.100}: it must be a tensor with shape (frames, tokens per frame). Pass the "
            'attention that each token receives in the vision tower; `token_selection_method="div"` takes any values.'
        )
    check_features(video_features, attention)
    num_frames, num_tokens, _ = video_features.shape
    attention = attention.float().contiguous()
    extremes = check_finite(video_features, None if config.token_selection_method == "div" else attention)
    if config.frame_budget(num_tokens)[0] == num_tokens:
        return CompressedVideo.whole(video_features, prunable=False, extremes=extremes)
    with torch.autocast(video_features.device.type, enabled=False):
        size, features = frames_per_chunk(video_features), video_features.contiguous()
        with torch.no_grad():
            decision = _decide(features, attention, config, size)
        entries, per_chunk = decision.pop("entries"), size * config.frame_budget(num_tokens)[0]
        rows = features.view(num_frames * num_tokens, -1)
        tokens = weighted_sums(rows, *entries, per_chunk=per_chunk, dtype=video_features.dtype)
    return CompressedVideo(tokens=tokens, **decision, _extremes=extremes)


def segment_means(frame_features: torch.Tensor, together: torch.Tensor) -> torch.Tensor:
    """For every frame, the mean token of its segment, with shape (T, D).

    Args:
        frame_features: mean token of every frame, with shape (T, D), float32.
        together: which frames lie in the same segment, with shape (T, T), see `same_segment`.
    """
    return (together / together.sum(-1, keepdim=True, dtype=torch.float32)) @ frame_features


def event_relevance(features: torch.Tensor, segment_features: torch.Tensor) -> torch.Tensor:
    """Event relevance of ADTS: mean dot product of each token with the frame means of its segment, with shape (T, N).

    Args:
        features: with shape (T, N, D).
        segment_features: see `segment_means`, with shape (T, D).
    """
    # A row times a matrix: on CPUs this is several times as fast as the matrix times a column.
    return torch.bmm(segment_features[:, None], features.mT)[:, 0]


def cosine_distances(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine distances (1 - cosine) of the tokens within each frame, and 1 / norm of each token.

    The distances are exactly symmetric, because the two inverse norms are multiplied first. Two tokens that are each
    other's nearest thus stay tied.

    Args:
        features: with shape (T, N, D), float32. A zero token has distance 1 to all tokens, itself included.

    Returns:
        Tuple of the distances with shape (T, N, N) and of 1 / norm with shape (T, N), both float32.
    """
    products = gram_matrices(features)
    inverse_norm = inverse_norms(products.diagonal(dim1=1, dim2=2))
    cosine = products.mul_(inverse_norm[:, :, None] * inverse_norm[:, None, :])
    return 1 - cosine, inverse_norm


def _select(
    features: torch.Tensor,
    attention: torch.Tensor,
    segment_features: torch.Tensor,
    *,
    num_tokens: int,
    method: str,
    released: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Select tokens in each frame of `features` (T, N, D).

    Returns:
        Tuple of the indices into N of the selected tokens, with shape (T, num_tokens), and of 1 / norm of all tokens,
        with shape (T, N).
    """
    features = features.float()
    distance = relevance = None
    if method == "attn":
        inverse_norm = inverse_norms(features.norm(dim=-1).square())
    else:
        distance, inverse_norm = cosine_distances(features)
    if method == "attn_div_v2":
        relevance = event_relevance(features, segment_features)
    chosen = select_tokens(distance, attention, num_tokens, method=method, event_relevance=relevance, released=released)
    return chosen, inverse_norm


def _decide(features: torch.Tensor, attention: torch.Tensor, config: CompressionConfig, size: int) -> dict:
    """Decide how a video is compressed.

    Args:
        features: with shape (T, N, D), any floating dtype.
        size: how many frames have their float32 features in memory at once.

    Returns:
        All fields of the `CompressedVideo` except `tokens`, and `entries`: the arguments of the `weighted_sums` that
        makes the tokens.
    """
    num_frames, num_tokens, width = features.shape
    step = frames_per_step(min(num_frames, size), num_tokens, width)
    exact = features.float() if num_frames <= size else features  # long videos: float32 a few frames at a time, below
    budget, num_selected = config.frame_budget(num_tokens)
    num_merged = budget - num_selected
    released = config.behavior == "released"
    flat_index = torch.arange(num_frames * num_tokens, device=features.device)
    frame_features = map_frames(lambda chunk: chunk.float().mean(1), step, exact)

    # DySeg
    if config.do_segment:
        starts = segment_video(frame_features, **config.segmentation)
    else:
        starts = flat_index[:num_frames] == 0
    segment = starts.cumsum(0)
    together = same_segment(segment)

    # ADTS
    method, segment_features = config.token_selection_method, frame_features
    if method == "attn_div_v2":  # the other methods ignore them
        segment_features = segment_means(frame_features, together)
    select = partial(_select, num_tokens=num_selected, method=method, released=released)
    chosen, inverse_norm = map_frames(select, step, exact, attention, segment_features)
    selected = torch.zeros_like(attention, dtype=torch.bool).scatter_(1, chosen, True)

    # TSTM
    merged = None
    if num_merged:
        parent = link_tokens(
            exact, inverse_norm, selected, segment, flat_index,
            max_links=(num_tokens - budget) * together.sum(1), temporal_threshold=config.temporal_threshold,
            strict_limit=released, size=step,
        )  # fmt: skip
        merged = merge_tokens(
            exact, parent, selected, segment, flat_index,
            together=together, num_merged=num_merged, released=released, size=size,
            overwrites=exact is not features,
        )  # fmt: skip

    if released:
        places = (chosen + flat_index.view_as(attention)[:, :1]).view(-1)
        indices, slots, entries = released_rows(places, merged, flat_index)
    else:
        indices, slots, entries = unique_rows(selected.view(-1), merged, num_frames * budget, flat_index)

    lengths = None
    if released and config.do_segment:
        lengths = released_segment_lengths(frame_similarity(frame_features), **config.segmentation)
    shape = (num_frames, num_tokens)
    return {
        "indices": indices,
        "starts": starts,
        "selected": selected,
        "trees": (flat_index if merged is None else merged.roots).view(shape),
        "slots": slots.view(shape),
        "entries": entries,
        "_segment_lengths": lengths,
    }


def unique_rows(
    selected: torch.Tensor, merged: MergedTokens | None, num_kept: int, flat_index: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor | None, ...]]:
    """Lay out one row for every place that is kept, in the order of the video.

    Args:
        selected: which tokens are kept unchanged, with shape (T * N,).
        merged: how the other tokens are merged; if `None`, they are dropped.
        num_kept: M.
        flat_index: 0 ... T * N - 1.

    Returns:
        Tuple of the flat index of each kept place, with shape (M,); of the row that each token goes into, with shape
        (T * N,), -1 if it is dropped; and of the arguments that `weighted_sums` needs beside the features to make the
        rows.
    """
    kept = selected if merged is None else selected | merged.centers.view(-1)
    indices, row = indices_of(kept, num_kept), kept.cumsum(0) - 1
    rows = flat_index[:num_kept]
    if merged is None:
        slots = row.masked_fill_(~kept, -1)
        return indices, slots, (indices, rows, torch.ones_like(rows, dtype=torch.float32), rows)
    weight = merged.weight.masked_fill(selected, 1.0)
    dropped = weight == 0
    slots = row[torch.where(selected, flat_index, merged.cluster)].masked_fill_(dropped, -1)
    # Dropped tokens have weight 0. They are spread over the rows so that no row gets many entries.
    slot = torch.where(dropped, flat_index % num_kept, slots)
    return indices, slots, (None, slot, weight, rows)


# methods/compression_method.py ----------------------------------------------------------------------------------------

"""What a compression method is: features and signals in, tokens and indices out, and perhaps pruning at layer K.

A method is one file beside this one, and one line in `methods/__init__.py`:

    @dataclass(frozen=True, kw_only=True)
    class Newest(CompressionMethod):
        '''Keep the last tokens of the video. Source: ...'''

        name = "newest"
        signals = ()  # what it needs from the vision tower: nothing

        def keep(self, features, signals, num_tokens):
            tokens = features.flatten(0, 1)
            indices = torch.arange(len(tokens), device=features.device)[-num_tokens:]
            return Kept(tokens[indices], indices)

By default a method gets the attention that the tokens receive in the last layer of the vision tower, as
`signals.attention`. The fields of the dataclass are the settings of the method, see `setting`.

Letters of this file, in addition to those of the compression: L layers of the language model, K the layer from which a
method prunes, R `retention_ratio`.
"""


@dataclass(frozen=True)
class LayerPruning:
    """Pruning inside the language model: which video tokens the layers from `layer` on see.

    Args:
        layer: the first layer that sees fewer tokens; at least 1.
        ratio: share of the entered tokens that `layer` and the layers above it see; above 0, at most 1.
        scored_by: whose attention in the layer below `layer` ranks the video tokens. "last_token" is the last token of
            the prompt. "text_tokens" are all text tokens behind the last video; the largest attention counts.
        merges: whether every dropped token is averaged into the kept token that it is most similar to.
    """

    layer: int
    ratio: float
    scored_by: str = "last_token"
    merges: bool = False


# What a method may ask of a layer of the vision tower. If several patches make a token, its signal is their mean. If
# the family pools its features, the signal is pooled in the same way.
SIGNAL_KINDS = (
    "attention",  # received by the token, mean over heads and queries, with shape (T, N)
    "keys",  # of the layer's attention before any rotary embedding, all heads side by side, with shape (T, N, width)
    "hidden_states",  # output of the layer, with shape (T, N, width)
)


# A tuple, so that equal signals compare equal in remote code too, which loads this module twice: once for the
# configuration and once for the model.
class Signal(NamedTuple):
    """Something that a method needs from the vision tower about the tokens of a video.

    Args:
        kind: one of `SIGNAL_KINDS`.
        layer: index of a layer of the vision tower, from 0. A negative index counts back from the layer whose output
            makes the features: -1 is that layer itself.
    """

    kind: str
    layer: int = -1


RECEIVED_ATTENTION = Signal("attention")


class Signals(dict[Signal, torch.Tensor]):
    """What the vision tower gave for the tokens of one video: a tensor (T, N) or (T, N, width) for each `Signal`.

    Raises:
        ValueError: a signal is looked up that is not there.
    """

    @property
    def attention(self) -> torch.Tensor:
        """Attention that each token receives in the last layer, with shape (T, N)."""
        return self[RECEIVED_ATTENTION]

    def __missing__(self, signal: Signal):
        raise ValueError(
            f"There is no {signal!r} among the signals of the video, which are {list(self)}. Name it in `signals` of "
            "the method, and pass it to `compress`."
        )


class Kept(NamedTuple):
    """What a method keeps of one video, in any order.

    Args:
        tokens: with shape (M, D).
        indices: flat index of each, unique, with shape (M,).
        selected: which tokens were kept unchanged, with shape (T, N). Default: all tokens of `indices`.
        slots: the row of `tokens` that each token went into, with shape (T, N), -1 if it was dropped. Default: every
            kept token went into its own row, and all others were dropped.
        starts: True at the first frame of every segment, with shape (T,). Default: one segment.
    """

    tokens: torch.Tensor
    indices: torch.Tensor
    selected: torch.Tensor | None = None
    slots: torch.Tensor | None = None
    starts: torch.Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class CompressionMethod:
    """A training-free way to keep part of the tokens of a video, with its settings.

    The fields are the settings: single numbers and strings. `setting` states their defaults, meanings and ranges.

    Raises:
        ValueError: a field is outside of its range, or no pruning brings the average to `retention_ratio`.
    """

    # The value of `compression_method` that chooses this method.
    name: ClassVar[str]
    # The signals that `keep` gets. The vision tower records nothing else.
    signals: ClassVar[tuple[Signal, ...]] = (RECEIVED_ATTENTION,)

    retention_ratio: float = same_setting(CompressionConfig, "retention_ratio")
    num_layers: int = setting(28, "L, layers of the language model", least=1, integer=True)
    # Set by families whose lower layers take in features of the vision tower (deepstack).
    first_pruning_layer: int = setting(
        1, "the first layer that may see less than all that entered", least=1, integer=True
    )

    def __post_init__(self):
        check_settings(self)
        self.check()
        pruning = self.pruning if self.compresses else None
        if pruning is not None and pruning.layer < min(self.first_pruning_layer, self.num_layers):
            raise ValueError(
                f"`pruning_layer` is {pruning.layer}: the first {self.first_pruning_layer} layers take in features of "
                f"all tokens that entered, so it must be at least {self.first_pruning_layer}. Set it to such a value."
            )

    def check(self) -> None:
        """Raise a `ValueError` for settings that do not go together. Each setting has been checked by itself before."""

    @classmethod
    def settings(cls) -> dict[str, Any]:
        """The method's own settings and their defaults, without those that all methods share."""
        return {field.name: field.default for field in fields(cls) if field.name not in SHARED_SETTINGS}

    @property
    def compresses(self) -> bool:
        """Whether these settings compress anything. If not, the model runs as the upstream model."""
        return self.retention_ratio < 1

    @property
    def pruning(self) -> LayerPruning | None:
        """The pruning inside the language model; `None` if there is none."""
        return None

    @property
    def entering_ratio(self) -> float:
        """Share of the tokens that enters the language model.

        It makes `retention_ratio` the average over the layers: R * L / (K + r * (L - K)), with pruning to the share r
        of the entered tokens from layer K on. At most 1.
        """
        pruning = self.pruning
        if pruning is None:
            return self.retention_ratio
        layer = min(pruning.layer, self.num_layers)
        average = (layer + pruning.ratio * (self.num_layers - layer)) / self.num_layers
        return min(1.0, self.retention_ratio / average)

    def without_pruning(self) -> "CompressionMethod":
        """This method without pruning inside the language model: the share `retention_ratio` enters.

        It is for programs such as vLLM, in which all layers see the same tokens.

        Raises:
            ValueError: the method compresses only inside the language model.
        """
        if self.pruning is not None:
            raise ValueError(
                f"`compression_method` is {self.name!r}: it drops tokens inside the language model alone, and here all "
                "layers have to see the same tokens. Choose a method that compresses before the language model."
            )
        return self

    def exact_num_tokens(self, num_frames: int, tokens_per_frame: int) -> int:
        """How many tokens `compress` keeps. The number depends only on the sizes.

        Args:
            num_frames: T, at least 1.
            tokens_per_frame: N, at least 1.

        Raises:
            ValueError: a size is not a positive integer.
        """
        check_number("num_frames", num_frames, least=1, integer=True)
        check_number("tokens_per_frame", tokens_per_frame, least=1, integer=True)
        return max(1, round(num_frames * tokens_per_frame * self.entering_ratio))

    def compress(self, video_features: torch.Tensor, signals: Signals | torch.Tensor) -> CompressedVideo:
        """Keep part of the tokens of one video. Deterministic; the inputs are not changed.

        Args:
            video_features: tokens as they would enter the language model, with shape (T, N, D).
            signals: the signals that the method names in its own `signals`; others are ignored. A tensor stands for
                the attention that each token receives in the last layer of the vision tower, with shape (T, N).

        Raises:
            ValueError: a signal is missing; the shapes do not fit together; a feature or an attention of the last layer
                is not finite, or beyond 1e12 in magnitude, see `compress_video`.
        """
        if isinstance(signals, torch.Tensor):
            signals = Signals({RECEIVED_ATTENTION: signals})
        check_features(video_features, signals.get(RECEIVED_ATTENTION))
        asked = Signals({signal: signals[signal] for signal in self.signals})
        for signal, values in asked.items():
            if values.shape[:2] != video_features.shape[:2]:
                raise ValueError(
                    f"{signal!r} has shape {tuple(values.shape)} and `video_features` {tuple(video_features.shape)}: "
                    "both must begin with frames and tokens per frame. Pass the signals of this video."
                )
        extremes = check_finite(video_features, asked.get(RECEIVED_ATTENTION))
        num_frames, tokens_per_frame, _ = video_features.shape
        num_tokens = self.exact_num_tokens(num_frames, tokens_per_frame)
        if num_tokens >= num_frames * tokens_per_frame:
            return CompressedVideo.whole(video_features, prunable=self.pruning is not None, extremes=extremes)
        with torch.autocast(video_features.device.type, enabled=False):
            recorded = Signals({signal: values.float().contiguous() for signal, values in asked.items()})
            kept = self.keep(video_features.float().contiguous(), recorded, num_tokens)
        return CompressedVideo.of_tokens(
            kept.tokens.to(video_features.dtype),
            kept.indices,
            (num_frames, tokens_per_frame),
            selected=kept.selected,
            slots=None if kept.slots is None else kept.slots.flatten(),
            starts=kept.starts,
            extremes=extremes,
        )

    def keep(self, features: torch.Tensor, signals: Signals, num_tokens: int) -> Kept:
        """Decide which tokens of a video are kept, and what becomes of them.

        Args:
            features: with shape (T, N, D), float32, contiguous.
            signals: the signals that the method names, float32, contiguous. Read them as `signals.attention` or
                `signals[Signal(...)]`.
            num_tokens: how many tokens to keep, M; below T * N.
        """
        raise NotImplementedError


# The settings that all methods share.
SHARED_SETTINGS = frozenset(field.name for field in fields(CompressionMethod))


class TokenScoring(CompressionMethod):
    """A method that keeps the tokens with the highest scores of the whole video, unchanged."""

    def score(self, features: torch.Tensor, signals: Signals) -> torch.Tensor:
        """Score every token, with shape (T, N). Ties go to the lower index. The arguments are those of `keep`."""
        raise NotImplementedError

    def keep(self, features: torch.Tensor, signals: Signals, num_tokens: int) -> Kept:
        order = self.score(features, signals).flatten().argsort(descending=True, stable=True)
        indices = order[:num_tokens]
        return Kept(features.flatten(0, 1)[indices], indices)


@dataclass(frozen=True, kw_only=True)
class LatePruning(CompressionMethod):
    """A method that prunes at a certain depth of the language model, to a certain share of the entered tokens.

    By default it prunes at the layer nearest to `pruning_depth` * L, but not below `first_pruning_layer`. The layers
    above see more than `llm_retention_ratio` if even with all tokens entering the average would be below
    `retention_ratio`.
    """

    # Default depth of the pruning, as a share of the layers.
    pruning_depth: ClassVar[float]
    # The fields of `LayerPruning` other than `layer` and `ratio`.
    pruning_rule: ClassVar[dict[str, Any]] = {}

    pruning_layer: int | None = setting(
        None,
        "K, the first layer that sees less; at {layers} or more, no layer does",
        least=1,
        integer=True,
        optional=True,
    )
    llm_retention_ratio: float = setting(
        0.5, "share of the tokens that entered which the layers from K on see; at 1 nothing is pruned", above=0, most=1
    )

    @property
    def pruning(self) -> LayerPruning | None:
        layer, depth = self.pruning_layer, self.num_layers
        if layer is None:
            layer = max(self.first_pruning_layer, round(depth * self.pruning_depth))
        if layer >= depth:
            return None
        # If all tokens enter, the layers above must see this share for the average to reach `retention_ratio`.
        least = (self.retention_ratio * depth - layer) / (depth - layer)
        ratio = max(self.llm_retention_ratio, least)
        return LayerPruning(layer, ratio, **self.pruning_rule) if ratio < 1 else None

    def without_pruning(self) -> CompressionMethod:
        return replace(self, pruning_layer=self.num_layers)


# methods/flashvid.py --------------------------------------------------------------------------------------------------

"""FlashVID as a compression method: DySeg, ADTS and TSTM before the language model, pruning inside it."""


@dataclass(frozen=True, kw_only=True)
class FlashVID(CompressionMethod, CompressionConfig):
    """FlashVID (arXiv 2602.08024), see `compress_video`; by default it prunes near 5/7 of the depth."""

    name = "flashvid"

    pruning_layer: int | None = setting(
        None,
        "first layer that sees only part of what entered; at {layers} or more, no layer does; `null`: from the depth",
        least=1,
        integer=True,
        optional=True,
    )
    llm_retention_ratio: float | None = setting(
        None,
        "share of the entered tokens that the layers from `pruning_layer` on see; `null`: the share that makes "
        "`retention_ratio` the average",
        above=0,
        most=1,
        optional=True,
    )

    @property
    def compresses(self) -> bool:
        return self.retention_ratio * self.expansion < 1

    @property
    def entering_ratio(self) -> float:
        return min(1.0, self.retention_ratio * self.expansion)

    @property
    def pruning(self) -> LayerPruning | None:
        layer, ratio = self.pruning_layer, self.llm_retention_ratio
        if layer is None:
            layer = default_pruning_layer(self.num_layers, self.expansion, 5 / 7)
        if ratio is None:
            ratio = default_llm_retention_ratio(self.num_layers, layer, self.expansion)
        return LayerPruning(layer, ratio) if layer < self.num_layers and ratio < 1 else None

    def without_pruning(self) -> CompressionMethod:
        return replace(self, expansion=1.0, pruning_layer=self.num_layers, llm_retention_ratio=1.0)

    def exact_num_tokens(self, num_frames: int, tokens_per_frame: int) -> int:
        return exact_num_tokens(num_frames, tokens_per_frame, self)

    def compress(self, video_features: torch.Tensor, signals: Signals | torch.Tensor) -> CompressedVideo:
        attention = signals if isinstance(signals, torch.Tensor) else signals.attention
        return compress_video(video_features, attention, self)


def default_pruning_layer(num_layers: int, expansion: float, pruning_depth: float) -> int:
    """The default layer to prune at, at least 1.

    It is the layer nearest to `pruning_depth * num_layers`. If that is too deep for pruning to make up for the
    expansion, it is the deepest layer at which pruning still can.

    Args:
        num_layers: layers of the language model.
        expansion: see `CompressionConfig`.
        pruning_depth: depth of the pruning as a share of the layers.
    """
    deepest = math.ceil(num_layers / expansion) - 1
    return max(1, min(round(num_layers * pruning_depth), deepest))


def default_llm_retention_ratio(num_layers: int, pruning_layer: int, expansion: float) -> float:
    """The share of the entered tokens that makes `retention_ratio` the average over the layers.

    It is the r that solves expansion * (pruning_layer + r * (L - pruning_layer)) = L, at most 1, rounded to six digits.
    The layers from `pruning_layer` on see this share.

    Args:
        num_layers: L.
        pruning_layer: the first layer that sees fewer tokens.
        expansion: see `CompressionConfig`.

    Raises:
        ValueError: no r above 0 is a solution.
    """
    if pruning_layer >= num_layers:
        return 1.0
    remaining = num_layers - expansion * pruning_layer
    ratio = round(min(1.0, remaining / (expansion * (num_layers - pruning_layer))), 6)
    if ratio <= 0:
        raise ValueError(
            f"`pruning_layer` is {pruning_layer} and `expansion` is {expansion}: with {num_layers} layers no pruning "
            f"keeps the average at `retention_ratio`. Choose a `pruning_layer` below {num_layers / expansion:g}, a "
            "smaller `expansion`, or set `llm_retention_ratio` yourself."
        )
    return ratio


# methods/registry.py --------------------------------------------------------------------------------------------------

"""The compression methods by name.

Published code contains only FlashVID. The package adds the other methods, and users add theirs by `register_method`.
"""

METHODS: dict[str, type[CompressionMethod]] = {}


def register_method(method: type[CompressionMethod]) -> type[CompressionMethod]:
    """Register a method, so that `compression_method` can name it. May be used as a decorator.

    Args:
        method: the class of the method.

    Returns:
        The class itself.

    Raises:
        ValueError: the class is no dataclass that derives from `CompressionMethod`; its name is missing or taken; its
            `signals` are no tuple of different `Signal`s.
    """
    is_method = isinstance(method, type) and issubclass(method, CompressionMethod)
    if not is_method or "__dataclass_fields__" not in vars(method):  # not decorated: its own fields would be ignored
        raise ValueError(
            f"`method` is {method!r}: it must be a class that derives from `CompressionMethod`. Derive from it, and "
            "decorate the class with `@dataclass(frozen=True, kw_only=True)`."
        )
    name = getattr(method, "name", None)
    if not isinstance(name, str) or METHODS.get(name, method) is not method:
        raise ValueError(
            f"`name` of `{method.__name__}` is {name!r}: it must be a string that no other method has; taken are "
            f"{', '.join(map(repr, METHODS))}. Choose another."
        )
    _check_signals(method)
    METHODS[name] = method
    return method


def _check_signals(method: type[CompressionMethod]) -> None:
    """Raise a `ValueError` unless `signals` are right. Methods in the older form, without signals, get advice."""
    advice = "`signals.attention` is the attention in the last layer. See `CompressionMethod`."
    if hasattr(method, "needs_attention"):
        raise ValueError(
            f"`needs_attention` of `{method.__name__}` is {method.needs_attention!r}: a method now names what it wants "
            f"to know of the vision tower. Write `signals = ()` for nothing; by default {advice}"
        )
    for function in ("compress", "keep", "score"):
        if "attention" in inspect.signature(getattr(method, function, lambda: None)).parameters:
            raise ValueError(
                f"`{function}` of `{method.__name__}` takes `attention`: it is called with `signals` now. Rename the "
                f"argument; {advice}"
            )
    signals = method.signals
    are_signals = isinstance(signals, tuple) and all(isinstance(signal, Signal) for signal in signals)
    if not are_signals or len(set(signals)) < len(signals):
        raise ValueError(
            f"`signals` of `{method.__name__}` is {signals!r}: it must be a tuple of `Signal`, each once. Write "
            '`signals = (Signal("keys"),)` for one, `signals = ()` for nothing.'
        )
    for signal in signals:
        check_choice("kind", signal.kind, SIGNAL_KINDS)
        if type(signal.layer) is not int:
            raise ValueError(
                f"`layer` of {signal!r} is {signal.layer!r}: it must be an integer, 0 for the first layer of the "
                "vision tower, -1 for the one whose output makes the features. Set `layer` to such a value."
            )


register_method(FlashVID)  # the package registers the others, see `methods/__init__.py`


def available_methods() -> tuple[str, ...]:
    """The names that `compression_method` takes."""
    return tuple(METHODS)


def make_method(name: str, **settings: Any) -> CompressionMethod:
    """Make a method with its settings.

    Args:
        name: one of `available_methods()`.
        settings: settings of the method, its own and those of `CompressionMethod`. Default: the method's defaults.

    Raises:
        ValueError: there is no such method, the method has no such setting, or a setting is outside of its range.
    """
    check_choice("compression_method", name, tuple(METHODS))
    known = METHODS[name].settings()
    for setting in sorted(settings.keys() - known.keys() - SHARED_SETTINGS):
        raise ValueError(
            f"`method_settings` has {setting!r}: the method {name!r} has "
            f"{', '.join(map(repr, known)) or 'no settings'}. Leave it out, or choose another `compression_method`."
        )
    return METHODS[name](**settings)
