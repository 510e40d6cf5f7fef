"""VisionZip: keep the tokens with the most attention, and summarise the others of the frame in a few more."""

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

    1. Dominant tokens: those that receive the most attention, kept unchanged.
    2. Contextual tokens: of the r others, in the order of their positions, every s-th is a target, c in all, with
       s = max(1, r // c). Each that is left goes to the target y that it is most similar to in cosine, and y becomes
       y + mean of the tokens that went to it; it stays y where none did. A frame without contextual tokens drops the
       others.

    Differs from the source:

    - The attention is what a token receives from all queries in the last vision block, after pooling where the family
      pools; there it is that of the class token (of all queries where there is none) in the last block but one.
    - Similarity is that of the tokens as they enter the language model; there it is that of the attention's keys.
    - The budget comes from `retention_ratio` and is met exactly: it is shared out evenly over the frames, one token
      more for the first of them where it does not divide, and `dominant_ratio` of a frame's are dominant, rounded.
      There every image has the same fixed numbers of both.
    - The kept tokens are in the order of their places; there the contextual ones follow the dominant ones.
    - Position ids: consecutive in the LLaVA families, as there; families with time and space in them keep those of
      the kept tokens.
    - No training afterwards: the source also has a variant with a fine-tuned projector.
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
        place = (~selected).cumsum(-1) - 1  # among the others of the frame
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

        # Dropped tokens count with weight 0, spread over the rows so that none gets many.
        flat_index = torch.arange(kept.numel(), device=features.device)
        slot = torch.where(slots.flatten() < 0, flat_index % num_tokens, slots.flatten())
        counted = merged.flatten().float()
        share = counted / count_by_slot(slot, counted).clamp(min=1)
        weight = share.masked_fill(kept.flatten(), 1)
        tokens = weighted_sums(features.flatten(0, 1), None, slot, weight, flat_index[:num_tokens])
        return Kept(tokens, indices, selected=selected, slots=slots)


@torch.no_grad()
def _most_similar_target(features: torch.Tensor, targets: torch.Tensor, most: int) -> torch.Tensor:
    """The place in its frame of the target that each token is most similar to, with shape (T, N).

    Meaningless in frames without targets. Ties go to the lower index.

    Args:
        features: with shape (T, N, D).
        targets: mask with shape (T, N).
        most: targets of a frame, at most; at least 1.
    """
    places = targets.view(torch.uint8).argsort(dim=-1, descending=True, stable=True)[:, :most]
    missing = ~targets.gather(1, places)  # frames with fewer

    def nearest(features: torch.Tensor, places: torch.Tensor, missing: torch.Tensor) -> torch.Tensor:
        centers = features.gather(1, places[:, :, None].expand(-1, -1, features.shape[-1]))
        # A token's own norm does not change which target is the most similar.
        similarity = torch.bmm(features, centers.mT).mul_(inverse_norms(centers.norm(dim=-1).square())[:, None])
        return similarity.masked_fill_(missing[:, None], float("-inf")).argmax(dim=-1)

    return places.gather(1, map_frames(nearest, frames_per_chunk(features), features, places, missing))
