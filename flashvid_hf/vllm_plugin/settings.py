"""Turns a model's configuration into what an engine can run.

An engine fixes the length of a prompt before it runs the first layer, keeps the keys of all layers in one paged cache,
and may prefill in chunks that do not reach the question. So it cannot drop tokens inside the language model, and
`retention_ratio` means the share of the video tokens that enters, unless `vllm_ratio` says otherwise.
"""

from typing import Any

import flashvid_hf  # registers our configurations with AutoConfig

from ..compression.validation import check_choice
from ..methods.compression_method import RECEIVED_ATTENTION, CompressionMethod
from ..models.configuration import FlashVIDConfigMixin

# The meaning of `retention_ratio`. "entering": the share that enters the language model. "layer_average": the average
# over the layers, as in the transformers classes; then as many tokens enter as there, but none are dropped later.
RATIOS = ("entering", "layer_average")


def flashvid_config(hf_config: Any, architecture: str) -> Any:
    """The configuration as our own class.

    A configuration of upstream's class, with overrides, is converted. One of our class is returned unchanged.

    Raises:
        ValueError: a field is out of range.
    """
    if isinstance(hf_config, FlashVIDConfigMixin):
        return hf_config
    for family in flashvid_hf.FAMILIES:
        if family.generative_model.__name__ == architecture:
            config = family.config.from_dict(family.config.adopt(hf_config.to_dict()))
            config.architectures = [architecture]
            return config
    raise ValueError(f"`architectures` has {architecture!r}, which is no architecture of flashvid_hf.")


def engine_method(config: Any) -> CompressionMethod | None:
    """The method that compresses videos inside an engine; `None` if nothing is compressed.

    Args:
        config: configuration of one of our families. Its `vllm_ratio` is one of `RATIOS`, by default "entering".

    Raises:
        ValueError: a field is out of range; or the method acts only inside the language model, keeps a number of tokens
            that is not known before the video is encoded, or asks for a signal that is not recorded inside vLLM.
    """
    ratio = getattr(config, "vllm_ratio", RATIOS[0])
    check_choice("vllm_ratio", ratio, RATIOS)
    entering = config.method.without_pruning()
    method = config.method if ratio == "layer_average" else entering
    if not method.compresses:
        return None
    method.exact_num_tokens(1, 1)  # raises if the count depends on the video
    for signal in method.signals:
        if signal != RECEIVED_ATTENTION:
            raise ValueError(
                f"`compression_method` is {method.name!r}: it asks for {signal!r}, and of the vision tower inside vLLM "
                f"only {RECEIVED_ATTENTION!r} is recorded. Choose a method that asks for nothing else, or run this one "
                "by the classes for transformers."
            )
    return method
