"""The placeholders of a compressed video: one for each row that enters. Their number is known before the encoding."""

from collections.abc import Mapping, Sequence
from typing import Any

from vllm.multimodal.processing import PromptReplacement, PromptUpdate

from ..methods.compression_method import CompressionMethod
from .settings import engine_method


class CompressedVideoProcessorMixin:
    """Makes a multimodal processor of vLLM replace a video by one placeholder for each row that enters."""

    info: Any

    def num_rows(self, method: CompressionMethod, video: Any) -> int:
        """Number of rows that enter for one video, given vLLM's description of it."""
        raise NotImplementedError

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: Any
    ) -> Sequence[PromptUpdate]:
        updates = super()._get_prompt_updates(mm_items, hf_processor_mm_kwargs, out_mm_kwargs)  # type: ignore[misc]
        config = self.info.get_hf_config()
        method, token = engine_method(config), config.video_token_id
        if method is None:
            return updates

        def placeholders(index: int) -> list[int]:
            return [token] * self.num_rows(method, out_mm_kwargs["video"][index])

        video = PromptReplacement(modality="video", target=[token], replacement=placeholders)
        return [*(update for update in updates if update.modality != "video"), video]
