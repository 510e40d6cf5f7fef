"""What the models return: upstream's outputs, and how the videos were compressed."""

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
        pooler_output: for each video, the rows that enter the language model, with shape (rows, D): its kept tokens
            and, in some families, newlines.
        last_hidden_state: patches of the vision tower. `None` for compressed videos, which are encoded in chunks so
            that all patches need not be in memory at once.
        videos: how each video was compressed; `None` if none was.
        settings: the configuration that the videos were encoded with.
        stopwatch: how long encoding and compression took; `None` if no video was compressed.
        deepstack_features: for each deepstack level, the rows of the kept tokens of each video, with shape (M, D); only
            in families with deepstack.
    """

    videos: tuple[CompressedVideo, ...] | None = None
    settings: Any = None
    stopwatch: Stopwatch | None = None
    deepstack_features: list[tuple[torch.Tensor, ...]] | None = None

    @classmethod
    def uncompressed(cls, outputs: ModelOutput, settings: Any) -> "FlashVIDVideoOutput":
        """Convert upstream's output for videos that are not compressed, and add the settings of the encoding."""
        known = {field.name for field in fields(cls)} & outputs.keys()
        return cls(**{name: outputs[name] for name in known}, settings=settings)


@dataclass
class FlashVIDModelOutput(CacheAlias, ModelOutput):
    """FlashVID's fields of the output of a base model. Each family adds the fields of upstream's output.

    Args:
        last_hidden_state: with shape (B, L, D), or (B, S, D) for trainers, see `full_length` of `forward_flashvid`.
            `hidden_states` and `attentions` have M columns below the pruning layer, and L columns from it on.
        token_index: input column of every row that is left, with shape (B, L), -1 for padding. `None` in calls without
            videos, in which all columns are left.
        report: what was compressed; `None` in calls that continue a cache and have no video of their own.
    """

    token_index: torch.Tensor | None = None
    report: CompressionReport | None = None


@dataclass
class FlashVIDCausalLMOutput(CacheAlias, ModelOutput):
    """FlashVID's fields of the output of a generative model. Each family adds the fields of upstream's output.

    Args:
        loss: over the labels of the columns that are left.
        logits: with shape (B, L, vocabulary), for the columns that are left. In calls that compute a loss: with shape
            (B, S, vocabulary), for all columns; a dropped column repeats the logits of the last column before it that
            is left. See `full_length` of `language_modeling_output`.
        token_index, report: see `FlashVIDModelOutput`. On the replicas of `nn.DataParallel` the output has neither of
            them, and no cache.
    """

    token_index: torch.Tensor | None = None
    report: CompressionReport | None = None
