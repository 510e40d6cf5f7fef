"""`generate` on a compressed prompt."""

from typing import Any

import torch
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .cache_flashvid import FlashVIDCache


class FlashVIDGenerationMixin:
    """Cache, ranking query and multimodal inputs of `generate`."""

    def generate(self, inputs: torch.Tensor | None = None, *args: Any, **kwargs: Any):
        """Upstream's `generate`, with the end of the prompt as the token that ranks the video tokens.

        The ranking token is the same in every step, so that decoding without a cache, with candidates or on from an
        earlier turn drops the same tokens as plain decoding.

        Raises:
            ValueError: placeholders and videos do not fit together, or the settings ask for something that a
                compressed prompt cannot do: a static or quantized cache, a prefill in chunks.
        """
        prompt = next((t for t in (inputs, kwargs.get("input_ids"), kwargs.get("inputs_embeds")) if t is not None), None)
        if self.config.compresses:
            if prompt is not None:
                kwargs.setdefault("query_index", prompt.shape[1] - 1)
            self.check_inputs(inputs if inputs is not None else kwargs.get("input_ids"), kwargs)
        return super().generate(inputs, *args, **kwargs)

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs):
        if not self.config.compresses:
            return super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        has_videos = self.has_videos(model_kwargs)
        if has_videos and getattr(generation_config, "prefill_chunk_size", None) is not None:
            raise ValueError(
                f"`prefill_chunk_size` is {generation_config.prefill_chunk_size}: a compressed prompt is ranked as a "
                "whole. Leave it at None; the compression makes the prefill short."
            )
        supported = (None, "dynamic", "offloaded")
        if has_videos and generation_config.cache_implementation not in supported:
            raise ValueError(
                f"`cache_implementation` is {generation_config.cache_implementation!r}: a compressed prompt can be "
                f"cached by {', '.join(map(repr, supported))}. Choose one of them."
            )
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        cache = model_kwargs.get("past_key_values")
        if type(cache) is DynamicCache and not getattr(cache, "_is_user_defined", False):
            config = self.config.get_text_config(decoder=True)
            model_kwargs["past_key_values"] = FlashVIDCache(config=config, offloading=cache.offloading)

    def has_videos(self, model_kwargs: dict[str, Any]) -> bool:
        """Whether the arguments of a call bring videos, as pixels or encoded."""
        encoded = model_kwargs.get("mm_encoder_outputs") or {}
        return model_kwargs.get("pixel_values_videos") is not None or encoded.get("video") is not None

    def _expand_multimodal_outputs(
        self, input_ids: torch.Tensor, mm_encoder_output: dict[str, BaseModelOutputWithPooling], *args, **kwargs
    ):
        video = mm_encoder_output.get("video")
        if getattr(video, "videos", None) is None:
            return super()._expand_multimodal_outputs(input_ids, mm_encoder_output, *args, **kwargs)
        # Upstream orders the features for the expanded batch by their lengths before the compression: let it order
        # stand-ins of those lengths that hold the video's number, and follow.
        tokens, videos = video.pooler_output, video.videos
        video.pooler_output = [torch.full((v.selected.numel(), 1), i) for i, v in enumerate(videos)]
        expanded = super()._expand_multimodal_outputs(input_ids, mm_encoder_output, *args, **kwargs)
        order = [int(stand_in[0, 0]) for stand_in in expanded["video"].pooler_output]
        expanded["video"].pooler_output = tuple(tokens[i] for i in order)
        expanded["video"].videos = tuple(videos[i] for i in order)
        return expanded
