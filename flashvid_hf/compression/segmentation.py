"""DySeg of FlashVID (arXiv 2602.08024): cut a video into segments where the scene changes."""

import torch
import torch.nn.functional as F


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
