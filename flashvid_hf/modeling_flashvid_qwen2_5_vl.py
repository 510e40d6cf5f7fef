"""Qwen2.5-VL with FlashVID."""

from typing import Any

import torch
from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import can_return_tuple
from transformers.vision_utils import get_vision_window_index

from .cache_flashvid import is_compressed
from .configuration_flashvid_qwen2_5_vl import FlashVIDQwen2_5_VLConfig
from .generation_flashvid import FlashVIDGenerationMixin
from .hub import FlashVIDPreTrainedMixin
from .modeling_flashvid import (
    FlashVIDCausalLMOutput,
    FlashVIDLanguageModelingMixin,
    FlashVIDModelMixin,
    FlashVIDModelOutput,
    check_placeholders,
)
from .prompt import Prompt
from .pruning import install_pruning
from .vision_attention import RECORD, install_recording

# Names in the published Qwen2.5-VL checkpoints and what they are called in the model since transformers 4.52.
CHECKPOINT_KEY_MAPPING = {
    r"^visual": "model.visual",
    r"^model(?!\.(language_model|visual))": "model.language_model",
}


class FlashVIDQwen2_5_VLModel(FlashVIDPreTrainedMixin, FlashVIDModelMixin, Qwen2_5_VLModel):
    """Qwen2.5-VL's base model, compressing its videos. Other inputs run as upstream runs them."""

    config: FlashVIDQwen2_5_VLConfig
    config_class = FlashVIDQwen2_5_VLConfig
    checkpoint_key_mapping = CHECKPOINT_KEY_MAPPING
    released_code_overwrites_repeats = True

    def __init__(self, config: FlashVIDQwen2_5_VLConfig):
        super().__init__(config)
        install_recording([block.attn for block in self.visual.blocks])
        install_pruning(self.language_model.layers)

    def get_video_features(
        self, pixel_values_videos: torch.Tensor, video_grid_thw: torch.Tensor | None = None, **kwargs: Any
    ) -> tuple | BaseModelOutputWithPooling:
        """Encode the videos and compress each.

        Args:
            pixel_values_videos: patches of all videos, with shape (patches, patch width).
            video_grid_thw: temporal grids, height and width in patches of every video, with shape (V, 3).

        Returns:
            `FlashVIDVideoOutput`; where the settings leave nothing to compress, upstream's output.
        """
        if not self.config.compresses:
            return super().get_video_features(pixel_values_videos, video_grid_thw, **kwargs)
        return_dict = kwargs.pop("return_dict", None)
        record: list[torch.Tensor] = []
        outputs = super().get_video_features(
            pixel_values_videos, video_grid_thw, return_dict=True, **{RECORD: record}, **kwargs
        )
        vision = self.visual
        window_index, _ = get_vision_window_index(
            video_grid_thw,
            spatial_merge_size=vision.spatial_merge_size,
            window_size=vision.window_size,
            patch_size=vision.patch_size,
        )
        # Patches come in window order: average those that the merger joins, then restore the order of the video.
        attention = record[0].view(-1, vision.spatial_merge_unit).mean(-1)
        attention = attention[window_index.to(attention.device).argsort()]
        frames = video_grid_thw[:, 0].tolist()
        features = [f.view(t, -1, f.shape[-1]) for f, t in zip(outputs.pooler_output, frames, strict=True)]
        scores = attention.split([len(f) for f in outputs.pooler_output])
        scores = [a.view(t, -1) for a, t in zip(scores, frames, strict=True)]
        compressed = self.compress_videos(outputs, features, scores)
        return compressed if return_dict is not False else compressed.to_tuple()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        pixel_values: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        image_grid_thw: torch.Tensor | None = None,
        video_grid_thw: torch.Tensor | None = None,
        mm_token_type_ids: torch.Tensor | None = None,
        second_per_grid_ts: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        query_index: int | torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple | FlashVIDModelOutput:
        """Upstream's `forward`, on the kept video tokens.

        Args:
            query_index: column of the whole sequence, earlier turns included, whose attention ranks the video tokens
                inside the language model; an integer, or one for each sample. Default: the last real column.
        """
        encoded = dict(mm_encoder_outputs or {})
        has_videos = pixel_values_videos is not None or encoded.get("video") is not None
        if self.config.compresses:
            past_key_values, use_cache = self.prepare_cache(past_key_values, use_cache, has_videos)
        if not (has_videos and self.config.compresses) and not is_compressed(past_key_values):
            upstream = {
                "input_ids": input_ids,
                "attention_mask": attention_mask,
                "position_ids": position_ids,
                "past_key_values": past_key_values,
                "inputs_embeds": inputs_embeds,
                "use_cache": use_cache,
                "pixel_values": pixel_values,
                "pixel_values_videos": pixel_values_videos,
                "image_grid_thw": image_grid_thw,
                "video_grid_thw": video_grid_thw,
                "mm_token_type_ids": mm_token_type_ids,
                "second_per_grid_ts": second_per_grid_ts,
                "mm_encoder_outputs": mm_encoder_outputs,
            }
            given = {name: value for name, value in upstream.items() if value is not None}
            return super().forward(**given, **kwargs)

        # Encode, after a look at the placeholders: a mistake in the inputs should not cost a run of the vision tower.
        image_mask, video_mask = self.placeholder_masks(input_ids, inputs_embeds)
        if encoded.get("image") is None and pixel_values is not None:
            check_placeholders("image", image_mask, self.count_tokens(image_grid_thw))
            encoded["image"] = self.get_image_features(pixel_values, image_grid_thw, return_dict=True)
        if encoded.get("video") is None and pixel_values_videos is not None:
            check_placeholders("video", video_mask, self.count_tokens(video_grid_thw))
            encoded["video"] = self.get_video_features(pixel_values_videos, video_grid_thw, return_dict=True)

        if encoded.get("video") is not None:
            videos = encoded["video"].videos
            check_placeholders("video", video_mask, sum(video.selected.numel() for video in videos))
            prompt = Prompt.compressed(video_mask, videos, attention_mask)
        else:
            prompt = Prompt.uncompressed(image_mask.shape[1], attention_mask)

        if position_ids is None:
            position_ids = self.compute_3d_position_ids(
                input_ids=input_ids,
                image_grid_thw=image_grid_thw,
                video_grid_thw=video_grid_thw,
                second_per_grid_ts=second_per_grid_ts,
                inputs_embeds=input_ids[..., None] if inputs_embeds is None else inputs_embeds,  # only its shape counts
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                mm_token_type_ids=mm_token_type_ids,
            )
        if position_ids is None:  # upstream's fallback, before columns are dropped
            seen = 0 if past_key_values is None else past_key_values.get_seq_length()
            position_ids = torch.arange(seen, seen + prompt.num_columns, device=image_mask.device).expand_as(image_mask)
        if position_ids.ndim == 3:
            position_ids = position_ids[-3:]  # without the row for packed sequences, which gaps would look like
        position_ids = position_ids[..., -prompt.num_columns :]

        return self.run_language_model(
            self.embed_prompt(prompt, input_ids, inputs_embeds, image_mask, encoded),
            prompt,
            attention_mask=attention_mask,
            position_ids=prompt.take(position_ids, position_ids.ndim - 1),
            cache=past_key_values,
            use_cache=use_cache,
            query_index=query_index,
            **kwargs,
        )

    def count_tokens(self, grid_thw: torch.Tensor) -> int:
        """Tokens of the images or videos with these grids, before any compression."""
        return int(grid_thw.prod(-1).sum()) // self.visual.spatial_merge_unit


class FlashVIDQwen2_5_VLForConditionalGeneration(
    FlashVIDPreTrainedMixin, FlashVIDGenerationMixin, FlashVIDLanguageModelingMixin, Qwen2_5_VLForConditionalGeneration
):
    """Qwen2.5-VL with a language modeling head, compressing its videos."""

    config: FlashVIDQwen2_5_VLConfig
    config_class = FlashVIDQwen2_5_VLConfig
    checkpoint_key_mapping = CHECKPOINT_KEY_MAPPING

    def __init__(self, config: FlashVIDQwen2_5_VLConfig):
        super(Qwen2_5_VLForConditionalGeneration, self).__init__(config)  # not upstream's, which builds its own model
        self.model = FlashVIDQwen2_5_VLModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        pixel_values: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        image_grid_thw: torch.Tensor | None = None,
        video_grid_thw: torch.Tensor | None = None,
        mm_token_type_ids: torch.Tensor | None = None,
        second_per_grid_ts: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        query_index: int | torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple | FlashVIDCausalLMOutput:
        """Upstream's `forward`, on the kept video tokens; see `FlashVIDQwen2_5_VLModel.forward` for `query_index`."""
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            pixel_values=pixel_values,
            pixel_values_videos=pixel_values_videos,
            image_grid_thw=image_grid_thw,
            video_grid_thw=video_grid_thw,
            mm_token_type_ids=mm_token_type_ids,
            second_per_grid_ts=second_per_grid_ts,
            mm_encoder_outputs=mm_encoder_outputs,
            query_index=query_index,
            **kwargs,
        )
        return self.language_modeling_output(outputs, labels, logits_to_keep, **kwargs)

    def check_inputs(self, input_ids: torch.Tensor | None, model_kwargs: dict[str, Any]) -> None:
        """Raise a `ValueError` before any encoding, if the placeholders do not fit the videos and images."""
        seen = 0 if model_kwargs.get("past_key_values") is None else model_kwargs["past_key_values"].get_seq_length()
        if input_ids is None or seen:  # upstream's convention for later turns differs, `forward` checks them
            return
        for kind, mask in zip(("image", "video"), self.model.placeholder_masks(input_ids, None), strict=True):
            pixels = "pixel_values" if kind == "image" else "pixel_values_videos"
            if model_kwargs.get(pixels) is not None:
                check_placeholders(kind, mask, self.model.count_tokens(model_kwargs[f"{kind}_grid_thw"]))


__all__ = ["FlashVIDQwen2_5_VLForConditionalGeneration", "FlashVIDQwen2_5_VLModel"]
