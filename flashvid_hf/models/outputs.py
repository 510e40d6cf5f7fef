"""What the models return: upstream's outputs, and what became of the videos.

Legend: B batch, M columns that enter the language model, L columns that are left from the pruning layer on.
"""

from dataclasses import dataclass, fields
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput

from ..compression.compressed_video import CompressedVideo
from .report import CompressionReport
from .stopwatch import Stopwatch
from .upstream import CacheAlias


@dataclass
class FlashVIDVideoOutput(BaseModelOutputWithPooling):
    """Output of `get_video_features`.

    Args:
        pooler_output: the rows of every video that enter the language model, with shape (rows, D) each: its kept
            tokens, and in some families newlines.
        last_hidden_state: patches of the vision tower; `None` for compressed videos, which it need not hold at once.
        videos: how each video was compressed; `None` if none was.
        settings: the configuration that they were encoded with.
        stopwatch: how long encoding and compression took; `None` if no video was compressed.
        deepstack_features: for each level, rows of every video's kept tokens; only of families that have them.
    """

    videos: tuple[CompressedVideo, ...] | None = None
    settings: Any = None
    stopwatch: Stopwatch | None = None
    deepstack_features: list[tuple[torch.Tensor, ...]] | None = None

    @classmethod
    def uncompressed(cls, outputs: ModelOutput, settings: Any) -> "FlashVIDVideoOutput":
        """Upstream's output for videos that are not compressed, with the settings that they were encoded with."""
        known = {field.name for field in fields(cls)} & outputs.keys()
        return cls(**{name: outputs[name] for name in known}, settings=settings)


@dataclass
class FlashVIDModelOutput(CacheAlias, ModelOutput):
    """What the output of a base model has beside the fields of upstream's output, which each family adds.

    Args:
        last_hidden_state: with shape (B, L, D). `hidden_states` and `attentions` have M columns below the pruning
            layer and L from it on.
        token_index: input column of every row of `last_hidden_state`, with shape (B, L), -1 for padding. `None` in
            calls without videos, where all columns are left.
        report: what was compressed; `None` in calls that continue a cache without a video of their own.
    """

    token_index: torch.Tensor | None = None
    report: CompressionReport | None = None


@dataclass
class FlashVIDCausalLMOutput(CacheAlias, ModelOutput):
    """What the output of a generative model has beside the fields of upstream's output, which each family adds.

    Args:
        loss: over the labels of the columns that are left.
        logits: of the columns that are left, with shape (B, L, vocabulary).
        token_index, report: see `FlashVIDModelOutput`.
    """

    token_index: torch.Tensor | None = None
    report: CompressionReport | None = None
