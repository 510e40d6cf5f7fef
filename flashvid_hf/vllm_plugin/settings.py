"""From a model's configuration to what an engine can run of it.

An engine fixes the length of a prompt before it runs the first layer, keeps the keys of all layers in one paged cache,
and may prefill in chunks that do not reach the question: dropping tokens inside the language model has no place there.
`retention_ratio` therefore means the share of the video tokens that enters, unless `vllm_ratio` says otherwise.
"""

from typing import Any

import flashvid_hf  # registers our configurations with AutoConfig

from ..compression.validation import check_choice
from ..methods.compression_method import RECEIVED_ATTENTION, CompressionMethod
from ..models.configuration import FlashVIDConfigMixin

# What `retention_ratio` is: "entering", the share that enters the language model; "layer_average", the average that
# the transformers classes keep over the layers. As many tokens enter as there, and none are dropped later.
RATIOS = ("entering", "layer_average")


def flashvid_config(hf_config: Any, architecture: str) -> Any:
    """The configuration of our own class, from an upstream checkpoint with overrides; ours is returned as it is.

    Raises:
        ValueError: a field is outside of its range.
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
    """What compresses the videos inside an engine; `None` if nothing does.

    Args:
        config: of one of our families; its `vllm_ratio`, one of `RATIOS`, is "entering" by default.

    Raises:
        ValueError: a field is outside of its range, the method acts inside the language model alone, its count is not
            known before the video is encoded, or it asks for a signal that is not recorded inside vLLM.
    """
    ratio = getattr(config, "vllm_ratio", RATIOS[0])
    check_choice("vllm_ratio", ratio, RATIOS)
    entering = config.method.without_pruning()
    method = config.method if ratio == "layer_average" else entering
    if not method.compresses:
        return None
    method.exact_num_tokens(1, 1)  # raises where the count depends on the video
    for signal in method.signals:
        if signal != RECEIVED_ATTENTION:
            raise ValueError(
                f"`compression_method` is {method.name!r}: it asks for {signal!r}, and of the vision tower inside vLLM "
                f"only {RECEIVED_ATTENTION!r} is recorded. Choose a method that asks for nothing else, or run this one "
                "by the classes for transformers."
            )
    return method
