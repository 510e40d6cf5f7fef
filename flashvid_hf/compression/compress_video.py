"""FlashVID (arXiv 2602.08024) before the language model: DySeg, ADTS and TSTM, one after the other.

The compression is decided once, without gradient, and then applied to the features as one weighted sum of rows. In
behavior "paper" every size follows from `exact_num_tokens`. The host therefore waits for the device only if the video
has more than one chunk of frames, and then twice. Beside the input, memory holds at most one copy of the input and one
chunk in float32.
"""

import math
from dataclasses import dataclass
from functools import partial

import torch

from .budget import indices_of
from .compressed_video import CompressedVideo, check_features
from .finite_checks import check_finite
from .frame_chunks import frames_per_chunk, frames_per_step, map_frames
from .released_deviations import released_rows, released_segment_lengths
from .segmentation import frame_similarity, segment_video
from .similarity import gram_matrices, inverse_norms
from .token_merging import MergedTokens, link_tokens, merge_tokens, same_segment
from .token_selection import TOKEN_SELECTION_METHODS, select_tokens
from .validation import check_number, check_settings, setting
from .weighted_rows import weighted_sums

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
