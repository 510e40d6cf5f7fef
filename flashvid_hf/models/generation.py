"""`generate` on a compressed prompt."""

from contextvars import ContextVar
from typing import Any

import torch
from transformers import DynamicCache, GenerationConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput

from .cache import FlashVIDCache, check_cache
from .report import CompressionReport
from .upstream import CACHE, rename_cache

# Values of `cache_implementation` that work with a compressed prompt.
_CACHE_IMPLEMENTATIONS = (None, "dynamic", "offloaded")
# Arguments that our `generate` passes on to `forward` beside the model's inputs.
_CALL_ARGUMENTS = ("settings", "prompt_length")
# The reports of the steps of the `generate` that runs in this context. They are not collected in an argument of
# `forward`, because accelerate's hooks copy arguments.
_REPORTS: ContextVar[list[CompressionReport] | None] = ContextVar("flashvid_reports", default=None)


class FlashVIDGenerationMixin:
    """Lets `generate` run on a compressed prompt: its cache, the token that ranks, and its multimodal inputs."""

    config: Any
    generation_config: GenerationConfig
    model: Any

    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *args: Any,
        **kwargs: Any,
    ):
        """Upstream's `generate`, in which the last token of the prompt ranks the video tokens.

        The same token ranks in every step. Decoding without a cache, with candidates, or on the cache of an earlier
        turn therefore drops the same tokens as plain decoding.

        Args:
            inputs, generation_config, args: as upstream.
            kwargs: as upstream, with the cache under either of its names, and those of FlashVID's fields that shall
                differ from the configuration in this call (`retention_ratio=0.2`; 1.0 is off). An assistant model uses
                its own settings.

        Returns:
            As upstream. With `return_dict_in_generate=True`, the output has a `report` of what was compressed.

        Raises:
            ValueError: a setting is out of range; placeholders and videos do not fit together; the call asks for
                something that a compressed prompt does not support. That is a static, quantized or foreign cache, a
                prefill in chunks, an assistant without FlashVID, and in the Qwen families a second video on the cache
                of a first. A prompt may also have placeholders of images or videos that are not given. The error is
                raised before anything is encoded.
        """
        kwargs = rename_cache(kwargs)
        settings = self.model.find_settings(kwargs.get("mm_encoder_outputs") or {}, kwargs)
        input_ids = inputs if inputs is not None else kwargs.get("input_ids")
        prompt = kwargs.get("inputs_embeds") if input_ids is None else input_ids
        prompt_length = None if prompt is None else prompt.shape[1]
        if settings.compresses:
            if prompt_length is not None:
                kwargs.setdefault("query_index", prompt_length - 1)
            if self.has_videos(kwargs):
                self._check_generation(generation_config or self.generation_config, kwargs)
        self._check_placeholders(input_ids, kwargs)
        reports: list[CompressionReport] = []
        outer = _REPORTS.set(reports)
        try:
            outputs = super().generate(
                inputs, generation_config, *args, **kwargs, settings=settings, prompt_length=prompt_length
            )
        finally:
            _REPORTS.reset(outer)
        if isinstance(outputs, ModelOutput):
            outputs.report = reports[0] if reports else CompressionReport.without_videos(len(outputs.sequences))
        return outputs

    def _validate_model_kwargs(self, model_kwargs: dict[str, Any]) -> None:
        super()._validate_model_kwargs({name: v for name, v in model_kwargs.items() if name not in _CALL_ARGUMENTS})

    def _check_generation(self, generation_config: GenerationConfig, kwargs: dict[str, Any]) -> None:
        def setting(name: str) -> Any:
            return kwargs.get(name, getattr(generation_config, name, None))

        if setting("prefill_chunk_size") is not None:
            raise ValueError(
                f"`prefill_chunk_size` is {setting('prefill_chunk_size')!r}: a compressed prompt is ranked as a whole. "
                "Leave it at None; the compression makes the prefill short."
            )
        if setting("cache_implementation") not in _CACHE_IMPLEMENTATIONS:
            raise ValueError(
                f"`cache_implementation` is {setting('cache_implementation')!r}: a compressed prompt can be cached by "
                f"{', '.join(map(repr, _CACHE_IMPLEMENTATIONS))}. Choose one of them."
            )
        cache = kwargs.get(CACHE)
        check_cache(cache)
        if cache is not None and self.model.positions_need_grids and any(report.tokens for report in cache.reports):
            raise ValueError(
                f"`{CACHE}` holds a video and the call brings another: `generate` of transformers cannot place "
                "it. Pass the whole conversation without a cache, or call the model itself with `position_ids`."
            )
        assistant = kwargs.get("assistant_model")
        if hasattr(assistant, "get_video_features") and not hasattr(assistant.config, "retention_ratio"):
            raise ValueError(
                f"`assistant_model` is a `{type(assistant).__name__}`: it would get videos that are compressed. "
                "Pass a FlashVID model of the family, or `retention_ratio=1.0` to run without compression."
            )

    def _get_candidate_generator(self, *args: Any, model_kwargs: dict[str, Any], **kwargs: Any):
        # Upstream passes these arguments on to the assistant. A FlashVID assistant finds its own settings, and other
        # assistants do not know our arguments.
        if kwargs.get("assistant_model") is not None:
            private = {*_CALL_ARGUMENTS, "query_index"}
            model_kwargs = {name: value for name, value in model_kwargs.items() if name not in private}
        return super()._get_candidate_generator(*args, model_kwargs=model_kwargs, **kwargs)

    def _check_placeholders(self, input_ids: torch.Tensor | None, model_kwargs: dict[str, Any]) -> None:
        if input_ids is None:  # `forward` finds the placeholders in the embeddings
            return
        cache = model_kwargs.get(CACHE)
        seen = cache.get_seq_length() if cache is not None else 0
        masks = self.model.placeholder_masks(input_ids, None)
        missing = self.model.missing_media(model_kwargs, model_kwargs.get("mm_encoder_outputs") or {})
        if seen:  # in later turns `forward` checks the numbers; the first new token may be one that the model wrote
            masks = tuple(mask[:, seen + 1 :] for mask in masks)
        self.model.check_missing_media(missing, masks)
        for kind, mask in zip(("image", "video"), masks, strict=True):
            if not seen and model_kwargs.get(self.model.encoder_inputs[kind][0]) is not None:
                self.model.check_placeholders(kind, mask, model_kwargs)

    def _update_model_kwargs_for_generation(self, outputs: ModelOutput, *args: Any, **kwargs: Any) -> dict[str, Any]:
        # Every decoding method calls this after every step, with the outputs of `forward`.
        report, reports = getattr(outputs, "report", None), _REPORTS.get()
        if report is not None and reports is not None:
            reports.append(report)
        return super()._update_model_kwargs_for_generation(outputs, *args, **kwargs)

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs):
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        cache = model_kwargs.get(CACHE)
        if type(cache) is DynamicCache and not getattr(cache, "_is_user_defined", False):
            config = self.config.get_text_config(decoder=True)
            model_kwargs[CACHE] = FlashVIDCache(config=config, offloading=cache.offloading)

    def prepare_inputs_for_generation(
        self,
        *args: Any,
        inputs_embeds: torch.Tensor | None = None,  # `generate` takes embeddings only if it finds this name here
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ):
        # After the first step the encoded videos are in the cache. Some versions of transformers pass them on in every
        # step.
        if not is_first_iteration and kwargs.get("use_cache", True):
            kwargs.pop("mm_encoder_outputs", None)
        inputs = super().prepare_inputs_for_generation(
            *args, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )
        cache = kwargs.get(CACHE)
        if not is_first_iteration and cache is not None and not cache.get_seq_length():
            inputs["prompt_length"] = 0  # an assistant, to which upstream shows no pixels: all its ids are mere tokens
        return {**inputs, "full_length": False}

    def has_videos(self, model_kwargs: dict[str, Any]) -> bool:
        """Whether the arguments of a call contain videos, as pixels or encoded."""
        return "video" not in self.model.missing_media(model_kwargs, model_kwargs.get("mm_encoder_outputs") or {})

    def _expand_multimodal_outputs(
        self, input_ids: torch.Tensor, mm_encoder_output: dict[str, BaseModelOutputWithPooling], *args, **kwargs
    ):
        video = mm_encoder_output.get("video")
        if getattr(video, "videos", None) is None:
            return super()._expand_multimodal_outputs(input_ids, mm_encoder_output, *args, **kwargs)
        # Upstream orders the features of the expanded batch by their lengths before the compression. It gets stand-ins
        # of those lengths, which hold the index of their video, and the compressed videos are put in the same order.
        tokens, videos = video.pooler_output, video.videos
        settings = video.settings or self.config
        lengths = [len(self.model.lay_out(video, settings).counts) for video in videos]
        video.pooler_output = [torch.full((length, 1), i) for i, length in enumerate(lengths)]
        expanded = super()._expand_multimodal_outputs(input_ids, mm_encoder_output, *args, **kwargs)
        order = [int(stand_in[0, 0]) for stand_in in expanded["video"].pooler_output]
        expanded["video"].pooler_output = tuple(tokens[i] for i in order)
        expanded["video"].videos = tuple(videos[i] for i in order)
        return expanded
