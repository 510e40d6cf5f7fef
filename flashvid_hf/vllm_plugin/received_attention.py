"""The attention that every patch receives in the last block of a vision tower that vLLM runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from vllm.distributed import get_tensor_model_parallel_world_size, tensor_model_parallel_all_reduce

from ..models.vision_signals import mean_received_attention


class Recording:
    """Queries and keys that an attention kernel of vLLM got.

    Args:
        attention: the kernel; `None` for none.
    """

    def __init__(self, attention: Any):
        self.attention = attention
        self.query: torch.Tensor | None = None
        self.key: torch.Tensor | None = None

    def received(self, lengths: list[int]) -> torch.Tensor:
        """Attention that each patch receives, mean over all heads and queries, with shape (patches,).

        Args:
            lengths: patches of every frame; no frame sees another.
        """
        shape = (sum(lengths), self.attention.num_heads, -1)  # the heads of this rank
        query, key = (states.reshape(shape).transpose(0, 1) for states in (self.query, self.key))
        received = mean_received_attention(query, key, lengths, self.attention.scale)
        ranks = get_tensor_model_parallel_world_size()
        # Ranks that scored tokens by their own heads would keep different tokens.
        return tensor_model_parallel_all_reduce(received) / ranks if ranks > 1 else received


@contextmanager
def recorded(attention: nn.Module | None) -> Iterator[Recording]:
    """Record what the attention kernel `attention` of a vision tower gets in the calls inside; nothing for `None`.

    The blocks around it are called past their hooks; the kernel is not.
    """
    recording = Recording(attention)
    if attention is None:
        yield recording
        return

    def take(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        recording.query, recording.key = args[:2] if args else (kwargs["query"], kwargs["key"])

    handle = attention.register_forward_pre_hook(take, with_kwargs=True)
    try:
        yield recording
    finally:
        handle.remove()
