"""VisionZip: keep the tokens with the most attention, and merge the other tokens of the frame into a few more."""

from dataclasses import dataclass

import torch

from ..compression.budget import indices_of
from ..compression.frame_chunks import frames_per_chunk, map_frames
from ..compression.similarity import inverse_norms
from ..compression.validation import setting
from ..compression.weighted_rows import count_by_slot, weighted_sums
from .compression_method import CompressionMethod, Kept, Signals


@dataclass(frozen=True, kw_only=True)
class VisionZip(CompressionMethod):
    """VisionZip: Longer is Better but Not Necessary in Vision Language Models (arXiv 2412.04467).

    Every frame is compressed by itself, as an image is in the source:

    1. Dominant tokens: the tokens that receive the most attention are kept unchanged.
    2. Contextual tokens: r tokens are left, in the order of their positions. Every s-th of them is a target, c targets
       in all, with s = max(1, r // c). Every other token goes to the target y with the largest cosine. Then y becomes
       y + mean of the tokens that went to it. A target that no token went to stays y. In a frame without contextual
       tokens, the r tokens are dropped.

    Differs from the source:

    - Attention: what a token receives from all queries in the last vision block, pooled if the family pools. The
      source takes the attention of the class token in the last block but one, or of all queries if there is no class
      token.
    - Similarity: between tokens as they enter the language model. The source compares the keys of the attention.
    - Budget: it comes from `retention_ratio` and is met exactly. It is shared out evenly over the frames; if it does
      not divide, the first frames get one token more. In each frame the share `dominant_ratio` is dominant, rounded.
      The source gives every image the same fixed numbers of both kinds.
    - Order: the kept tokens are in the order of their places. In the source the contextual tokens follow the dominant
      ones.
    - Position ids: consecutive in the LLaVA families, as in the source. In families whose position ids encode time and
      space, a kept token keeps its own.
    - Training: none. The source also has a variant with a fine-tuned projector.
    """

    name = "visionzip"

    dominant_ratio: float = setting(
        54 / 64, "share of the kept tokens that are dominant; 54 of 64 in the source", least=0, most=1
    )

    def keep(self, features: torch.Tensor, signals: Signals, num_tokens: int) -> Kept:
        num_frames, tokens_per_frame = features.shape[:2]
        budget, num_larger = divmod(num_tokens, num_frames)  # the first frames have one more
        dominant, dominant_of_larger = (round(size * self.dominant_ratio) for size in (budget, budget + 1))
        contextual, contextual_of_larger = budget - dominant, budget + 1 - dominant_of_larger
        larger = torch.arange(num_frames, device=features.device)[:, None] < num_larger  # (T, 1)
        num_dominant = dominant + larger * (dominant_of_larger - dominant)
        num_contextual = contextual + larger * (contextual_of_larger - contextual)

        rank = signals.attention.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        selected = rank < num_dominant
        step = ((tokens_per_frame - num_dominant) // num_contextual.clamp(min=1)).clamp(min=1)
        place = (~selected).cumsum(-1) - 1  # index among the tokens of the frame that are not dominant
        targets = ~selected & (place % step == 0) & (place // step < num_contextual)

        most = max(contextual, contextual_of_larger) if num_larger else contextual
        kept = selected | targets
        indices = indices_of(kept, num_tokens)
        if most == 0:
            return Kept(features.flatten(0, 1)[indices], indices)
        joined = _most_similar_target(features, targets, most)
        row = (kept.flatten().cumsum(0) - 1).view_as(kept)
        merged = ~kept & (num_contextual > 0)
        slots = torch.where(kept, row, row.gather(1, joined).masked_fill(~merged, -1))

        # Dropped tokens have weight 0. They are spread over the rows so that no row gets many entries.
        flat_index = torch.arange(kept.numel(), device=features.device)
        slot = torch.where(slots.flatten() < 0, flat_index % num_tokens, slots.flatten())
        counted = merged.flatten().float()
        share = counted / count_by_slot(slot, counted).clamp(min=1)
        weight = share.masked_fill(kept.flatten(), 1)
        tokens = weighted_sums(features.flatten(0, 1), None, slot, weight, flat_index[:num_tokens])
        return Kept(tokens, indices, selected=selected, slots=slots)


@torch.no_grad()
def _most_similar_target(features: torch.Tensor, targets: torch.Tensor, most: int) -> torch.Tensor:
    """For each token, the index within its frame of the most similar target, with shape (T, N).

    It is meaningless in frames without targets. Ties go to the lower index.

    Args:
        features: with shape (T, N, D).
        targets: mask of the targets, with shape (T, N).
        most: upper bound of the targets of a frame; at least 1.
    """
    places = targets.view(torch.uint8).argsort(dim=-1, descending=True, stable=True)[:, :most]
    missing = ~targets.gather(1, places)  # in frames with fewer targets

    def nearest(features: torch.Tensor, places: torch.Tensor, missing: torch.Tensor) -> torch.Tensor:
        centers = features.gather(1, places[:, :, None].expand(-1, -1, features.shape[-1]))
        # A token's own norm does not change which target is the most similar.
        similarity = torch.bmm(features, centers.mT).mul_(inverse_norms(centers.norm(dim=-1).square())[:, None])
        return similarity.masked_fill_(missing[:, None], float("-inf")).argmax(dim=-1)

    return places.gather(1, map_frames(nearest, frames_per_chunk(features), features, places, missing))
