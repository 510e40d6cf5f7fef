"""What the Qwen families share: packed frames in the vision tower, three-axis positions, `generate`'s checks."""

from collections.abc import Callable
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling

from .cache_flashvid import is_compressed
from .modeling_flashvid import FlashVIDModelMixin, FlashVIDModelOutput, check_placeholders
from .prompt import Prompt
from .pruning import install_pruning
from .vision_attention import RECORD, install_recording


class FlashVIDQwenModelMixin(FlashVIDModelMixin):
    """Base model of a Qwen family, compressing its videos. Other inputs run as upstream runs them."""

    visual: Any
    compute_3d_position_ids: Any
    get_image_features: Any

    released_code_overwrites_repeats = True
    # Inputs of `forward` that upstream's `compute_3d_position_ids` takes.
    position_inputs: tuple[str, ...] = ("image_grid_thw", "video_grid_thw", "mm_token_type_ids")

    def __init__(self, config: Any):
        super().__init__(config)  # type: ignore[call-arg]  # upstream's, which this is mixed into
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
        # The attention of a token is the mean over the patches that the merger joins.
        attention = record[0].view(-1, self.visual.spatial_merge_unit).mean(-1)
        attention = self.restore_order(attention, video_grid_thw).split([len(f) for f in outputs.pooler_output])
        frames = video_grid_thw[:, 0].tolist()
        features = [f.view(t, -1, f.shape[-1]) for f, t in zip(outputs.pooler_output, frames, strict=True)]
        scores = [a.view(t, -1) for a, t in zip(attention, frames, strict=True)]
        compressed = self.compress_videos(outputs, features, scores)
        return compressed if return_dict is not False else compressed.to_tuple()

    def restore_order(self, attention: torch.Tensor, video_grid_thw: torch.Tensor) -> torch.Tensor:
        """From the order of the tokens inside the vision tower to that of its output; the same in most families."""
        return attention

    def forward_flashvid(
        self,
        upstream_forward: Callable[..., BaseModelOutputWithPast],
        inputs: dict[str, Any],
        query_index: int | torch.Tensor | None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast | FlashVIDModelOutput:
        """Upstream's `forward`, on the kept video tokens.

        Args:
            upstream_forward: what runs calls that neither bring a video to compress nor build on a compressed cache.
            inputs: the named arguments of `forward`.
            query_index: column of the whole sequence, earlier turns included, whose attention ranks the video tokens
                inside the language model; an integer, or one for each sample. Default: the last real column.
        """
        compresses = self.config.compresses
        encoded = dict(inputs["mm_encoder_outputs"] or {})
        has_videos = inputs["pixel_values_videos"] is not None or encoded.get("video") is not None
        if compresses:
            cache, use_cache = self.prepare_cache(inputs["past_key_values"], inputs["use_cache"], has_videos)
            inputs = {**inputs, "past_key_values": cache, "use_cache": use_cache}
        cache = inputs["past_key_values"]
        if not (compresses and has_videos) and not is_compressed(cache):
            return upstream_forward(**{name: value for name, value in inputs.items() if value is not None}, **kwargs)

        input_ids, inputs_embeds = inputs["input_ids"], inputs["inputs_embeds"]
        attention_mask, use_cache = inputs["attention_mask"], inputs["use_cache"]
        image_mask, video_mask = self.placeholder_masks(input_ids, inputs_embeds)
        self.encode(inputs, encoded, image_mask, video_mask)
        videos = getattr(encoded.get("video"), "videos", None)
        if videos:
            check_placeholders("video", video_mask, sum(video.selected.numel() for video in videos))
            prompt = Prompt.compressed(video_mask, videos, attention_mask, self.dropped_columns(input_ids))
        else:
            prompt = Prompt.uncompressed(image_mask.shape[1], attention_mask)

        position_ids = inputs["position_ids"]
        if position_ids is None:
            position_ids = self.compute_3d_position_ids(
                input_ids=input_ids,
                inputs_embeds=input_ids[..., None] if inputs_embeds is None else inputs_embeds,  # only its shape counts
                attention_mask=attention_mask,
                past_key_values=cache,
                **{name: inputs[name] for name in self.position_inputs},
            )
        if position_ids is None:  # upstream's fallback, before columns are dropped
            seen = 0 if cache is None else cache.get_seq_length()
            position_ids = torch.arange(seen, seen + prompt.num_columns, device=image_mask.device).expand_as(image_mask)
        if position_ids.ndim == 3:
            position_ids = position_ids[-3:]  # without the row for packed sequences, which gaps would look like
        position_ids = position_ids[..., -prompt.num_columns :]

        return self.run_language_model(
            self.embed_prompt(prompt, input_ids, inputs_embeds, image_mask, video_mask, encoded),
            prompt,
            attention_mask=attention_mask,
            position_ids=prompt.take(position_ids, position_ids.ndim - 1),
            cache=cache,
            use_cache=use_cache,
            query_index=query_index,
            **self.language_model_inputs(prompt, image_mask, video_mask, encoded),
            **kwargs,
        )

    def encode(
        self, inputs: dict[str, Any], encoded: dict[str, Any], image_mask: torch.Tensor, video_mask: torch.Tensor
    ) -> None:
        """Fill `encoded` with the outputs of the vision tower that the caller has not computed already.

        Looks at the placeholders first: a mistake in the inputs should not cost a run of the vision tower.
        """
        if encoded.get("image") is None and inputs["pixel_values"] is not None:
            check_placeholders("image", image_mask, self.count_tokens(inputs["image_grid_thw"]))
            encoded["image"] = self.get_image_features(
                inputs["pixel_values"], inputs["image_grid_thw"], return_dict=True
            )
        if encoded.get("video") is None and inputs["pixel_values_videos"] is not None:
            check_placeholders("video", video_mask, self.count_tokens(inputs["video_grid_thw"]))
            encoded["video"] = self.get_video_features(
                inputs["pixel_values_videos"], inputs["video_grid_thw"], return_dict=True
            )

    def dropped_columns(self, input_ids: torch.Tensor | None) -> torch.Tensor | None:
        """Columns beside those of video tokens that do not enter, with shape (B, S); `None` for none."""
        return None

    def language_model_inputs(
        self, prompt: Prompt, image_mask: torch.Tensor, video_mask: torch.Tensor, encoded: dict[str, Any]
    ) -> dict[str, Any]:
        """What the family's language model takes beside embeddings and positions."""
        return {}

    def count_tokens(self, grid_thw: torch.Tensor) -> int:
        """Tokens of the images or videos with these grids, before any compression."""
        return int(grid_thw.prod(-1).sum()) // self.config.vision_config.spatial_merge_size**2


class FlashVIDQwenGenerationChecks:
    """What `generate` checks before anything is encoded."""

    model: Any

    def check_inputs(self, input_ids: torch.Tensor | None, model_kwargs: dict[str, Any]) -> None:
        """Raise a `ValueError` if the placeholders do not fit the videos and images."""
        cache = model_kwargs.get("past_key_values")
        if input_ids is None or (cache is not None and cache.get_seq_length()):  # of later turns, `forward` sees more
            return
        for kind, mask in zip(("image", "video"), self.model.placeholder_masks(input_ids, None), strict=True):
            pixels = "pixel_values" if kind == "image" else "pixel_values_videos"
            if model_kwargs.get(pixels) is not None:
                check_placeholders(kind, mask, self.model.count_tokens(model_kwargs[f"{kind}_grid_thw"]))
