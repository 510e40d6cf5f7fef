"""The attention that every patch receives in the last block of vLLM's vision tower."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from vllm.distributed import get_tensor_model_parallel_world_size, tensor_model_parallel_all_reduce

from ..models.vision_signals import mean_received_attention


class Recording:
    """Queries and keys that were passed to an attention kernel of vLLM.

    Args:
        attention: the kernel; `None` if nothing is recorded.
    """

    def __init__(self, attention: Any):
        self.attention = attention
        self.query: torch.Tensor | None = None
        self.key: torch.Tensor | None = None

    def received(self, lengths: list[int]) -> torch.Tensor:
        """Attention that each patch receives, mean over all heads and queries, with shape (patches,).

        Args:
            lengths: number of patches of every frame; frames do not attend to each other.
        """
        shape = (sum(lengths), self.attention.num_heads, -1)  # the heads of this rank
        query, key = (states.reshape(shape).transpose(0, 1) for states in (self.query, self.key))
        received = mean_received_attention(query, key, lengths, self.attention.scale)
        ranks = get_tensor_model_parallel_world_size()
        # If each rank scored tokens by its own heads only, the ranks would keep different tokens.
        return tensor_model_parallel_all_reduce(received) / ranks if ranks > 1 else received


@contextmanager
def recorded(attention: nn.Module | None) -> Iterator[Recording]:
    """Record the queries and keys that an attention kernel of a vision tower gets inside the `with` block.

    `attention` is the kernel; with `None` nothing is recorded. The hook is on the kernel, because vLLM calls the blocks
    around it without running their hooks.
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
