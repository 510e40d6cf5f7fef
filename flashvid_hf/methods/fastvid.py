"""FastVID: keep salient tokens of every frame, and merge the other tokens of a segment into its anchor frames."""

from dataclasses import dataclass

import torch

from ..compression.budget import indices_of, share_out
from ..compression.density_peaks import density_scores
from ..compression.frame_chunks import frames_per_chunk, map_frames
from ..compression.segmentation import segment_video
from ..compression.similarity import inverse_norms
from ..compression.validation import setting
from ..compression.weighted_rows import weighted_sums
from .compression_method import CompressionMethod, Kept, Signals

# Nearest neighbours in the density estimate; the source's constant.
_NUM_NEIGHBORS = 4


@dataclass(frozen=True, kw_only=True)
class FastVID(CompressionMethod):
    """FastVID: dynamic density pruning for fast video large language models (arXiv 2503.11187).

    1. Segments: the video is cut where neighbouring frames differ (`segment_video`).
    2. Salient tokens are the share 1 - d of the M kept tokens: in every frame the tokens with the largest attention,
       unchanged.
    3. Context tokens are the share d. They lie in anchor frames: every p-th frame of a segment, counted back from its
       last. A segment gets context tokens in proportion to its number of frames, and shares them out evenly over its
       anchors. The targets of an anchor are its tokens that are not salient and have the largest
       density * separation (`density_scores`, k = 4).
    4. Every anchor merges all tokens of its segment that are not salient, its targets included: each token goes to the
       target with the largest cosine. A target x becomes w * x + (1 - w) * m with w = max(1 / (n + 1), beta), if n
       tokens with mean m went to it. A token thus goes into one row for each anchor of its segment.

    Differs from the source:

    - Attention: what a token receives in the last vision block. The source takes that of a pooling head.
    - Similarity of frames: between their mean tokens. The source compares the outputs of the pooling head.
    - Budget: the context takes floor(d * M) tokens of the video, and both shares are spread by largest remainder.
      Context that does not fit into an anchor goes to other anchors, and then to salient tokens. The source rounds down
      for every frame and anchor.
    - Ties go to the lower index. The source breaks them by noise.
    - Positions: consecutive in the LLaVA families. The source keeps the positions.
    - Qwen: the source's port to Qwen2.5-VL is not followed. It uses another attention, leaves near-identical frames
      out, and has a threshold of 0.84.
    """

    name = "fastvid"

    segment_threshold: float = setting(0.9, "cosine of neighbouring frames below which a segment ends", least=-1)
    min_segment_num: int = setting(8, "smallest number of segments, if there are as many frames", least=1, integer=True)
    contextual_ratio: float = setting(0.4, "d, the share of the kept tokens that is context", least=0, most=1)
    anchor_interval: int = setting(4, "p, an anchor for every so many frames of a segment", least=1, integer=True)
    target_weight: float = setting(
        0.6, "beta, the least weight of a target against what is merged into it", least=0, most=1
    )

    def keep(self, features: torch.Tensor, signals: Signals, num_tokens: int) -> Kept:
        with torch.no_grad():
            starts = segment_video(
                features.mean(1), segment_threshold=self.segment_threshold, min_segment_num=self.min_segment_num
            )
            segment = starts.cumsum(0)
            first = torch.searchsorted(segment, segment)  # first frame of each frame's segment, (T,)
            last = torch.searchsorted(segment, segment, right=True) - 1
            salient, context = self._share_budget(num_tokens, first, last, features.shape[1])
            selected = rank(signals.attention) < salient[:, None]
            is_target = rank(self._score(features, ~selected)) < context[:, None]
            kept = (selected | is_target).view(-1)
            indices = indices_of(kept, num_tokens)
            row = kept.cumsum(0) - 1  # row of each kept token
            slots = torch.where(kept, row, -1)
            if int(num_tokens * self.contextual_ratio) == 0:
                return Kept(features.flatten(0, 1)[indices], indices, selected, slots.view_as(selected), starts)

            # The anchors of each frame's segment, with shape (T, J). J is the number of anchors of the longest segment.
            # Reading its length waits for the device once; otherwise J would have to be T / p.
            longest = int((last - first).max()) + 1
            anchor = last[:, None] - torch.arange(0, longest, self.anchor_interval, device=last.device)
            is_anchor = anchor >= first[:, None]
            anchor = anchor.clamp(min=0)
            is_anchor &= context[anchor] > 0
            target = find_targets(features, is_target, anchor, self._most_targets(num_tokens, *features.shape[:2]))
            joins = (is_anchor[:, None] & ~selected[..., None]).view(len(row), -1)  # (T * N, J)
            into = row[target].view_as(joins)
            earliest = torch.where(joins, into, num_tokens).amin(-1)
            slots = torch.where(kept | ~joins.any(-1), slots, earliest)

            # One entry for each pair of token and anchor. Entries of tokens that join nothing have weight 0. They are
            # spread over the rows so that no row gets many entries.
            entry = torch.arange(joins.numel(), device=row.device)
            joins, spread, rows = joins.view(-1), entry % num_tokens, entry[:num_tokens]
            slot = torch.where(joins, into.view(-1), spread)
            source = torch.where(joins, entry // anchor.shape[1], indices[spread])
            count = torch.zeros_like(rows).index_add_(0, slot, joins.long())
            weight = (count + 1).float().reciprocal().clamp(min=self.target_weight)
            weight = weight.masked_fill_(count == 0, 1.0)  # salient tokens, and targets that nothing went to
            weights = torch.cat([weight, joins * ((1 - weight) / count.clamp(min=1))[slot]])
            source, slot = torch.cat([indices, source]), torch.cat([rows, slot])
        tokens = weighted_sums(features.flatten(0, 1), source, slot, weights, rows)
        return Kept(tokens, indices, selected, slots.view_as(selected), starts)

    def _share_budget(
        self, num_tokens: int, first: torch.Tensor, last: torch.Tensor, tokens_per_frame: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """How many salient and how many context tokens every frame gets, with shape (T,) each.

        Args:
            num_tokens: what both add up to over all frames.
            first, last: first and last frame of the segment of each frame, with shape (T,).
            tokens_per_frame: N.
        """
        num_context = int(num_tokens * self.contextual_ratio)
        evenly, length = torch.ones_like(first), last - first + 1
        salient = share_out(num_tokens - num_context, evenly, evenly * tokens_per_frame)
        is_anchor = (last - torch.arange(len(last), device=last.device)) % self.anchor_interval == 0
        num_anchors = (length + self.anchor_interval - 1) // self.anchor_interval
        room = (tokens_per_frame - salient) * is_anchor
        context = share_out(room.sum().clamp(max=num_context), is_anchor * (length.double() / num_anchors), room)
        # If the anchors are full, salient tokens of frames with room take the rest.
        left = share_out(num_context - context.sum(), evenly, tokens_per_frame - salient - context)
        return salient + left, context

    def _score(self, features: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        """Density * separation among the candidates of a frame, with shape (T, N)."""
        num_neighbors = candidates.sum(1).clamp(1, _NUM_NEIGHBORS)
        index = torch.arange(candidates.shape[1], device=features.device)

        def score(features: torch.Tensor, candidates: torch.Tensor, num_neighbors: torch.Tensor) -> torch.Tensor:
            return density_scores(features, candidates, num_neighbors, index)[0]

        return map_frames(score, frames_per_chunk(features), features, candidates, num_neighbors)

    def _most_targets(self, num_tokens: int, num_frames: int, tokens_per_frame: int) -> int:
        """An upper bound of the targets of an anchor that holds for all segments."""
        num_context = int(num_tokens * self.contextual_ratio)
        share = -(-num_context * min(self.anchor_interval, num_frames) // num_frames)
        return min(share, tokens_per_frame - (num_tokens - num_context) // num_frames)


def rank(scores: torch.Tensor) -> torch.Tensor:
    """Rank of every token within its frame, 0 for the largest score, with shape (T, N), given the scores (T, N)."""
    return scores.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)


def find_targets(features: torch.Tensor, is_target: torch.Tensor, anchor: torch.Tensor, most: int) -> torch.Tensor:
    """For every token and each anchor of its segment, find the most similar target.

    Args:
        features: with shape (T, N, D).
        is_target: which tokens are targets, with shape (T, N).
        anchor: frame index of each anchor of each frame's segment, with shape (T, J).
        most: K, an upper bound of the targets of a frame.

    Returns:
        Flat index of the target, with shape (T, N, J); meaningless for an anchor without targets.
    """
    num_frames, tokens_per_frame, width = features.shape
    frame = torch.arange(num_frames, device=anchor.device)[:, None]
    place = is_target.view(torch.uint8).argsort(dim=-1, descending=True, stable=True)[:, :most]  # ascending, (T, K)
    targets = features[frame, place]
    targets = targets * inverse_norms(targets.square().sum(-1, keepdim=True))
    missing = ~is_target.gather(1, place)
    place = place + frame * tokens_per_frame

    def nearest(of_frames: torch.Tensor, anchor: torch.Tensor) -> torch.Tensor:
        similarity = torch.bmm(of_frames, targets[anchor].flatten(1, 2).mT).unflatten(-1, (-1, most))  # (T, N, J, K)
        return similarity.masked_fill_(missing[anchor][:, None], float("-inf")).argmax(-1)

    # Frames of a step: the features of their targets take no more memory than `frames_per_chunk` allows.
    size = max(1, frames_per_chunk(features) * tokens_per_frame // (anchor.shape[1] * most))
    chosen = map_frames(nearest, size, features, anchor)
    return place[anchor[:, None], chosen]
