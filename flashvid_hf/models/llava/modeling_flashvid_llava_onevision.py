"""LLaVA-OneVision with FlashVID: the attention comes from the SigLIP layer that makes the features."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import LlavaOnevisionForConditionalGeneration, LlavaOnevisionModel
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import can_return_tuple

from ...compression.compressed_video import CompressedVideo
from ...hub.loading import FlashVIDPreTrainedMixin
from ..cache import is_compressed, past_masks
from ..generation import FlashVIDGenerationMixin
from ..language_modeling import FlashVIDLanguageModelingMixin
from ..layer_pruning import join_masks
from ..modeling import FlashVIDModelMixin
from ..outputs import FlashVIDCausalLMOutput, FlashVIDModelOutput, FlashVIDVideoOutput
from ..prompt import Prompt, VideoLayout, count_occurrences
from ..stopwatch import Stopwatch
from ..upstream import FEATURES_END_WITH_NEWLINE, complete_outputs, output_class, takes_arguments_of
from ..vision_chunks import join_rows, tower_device
from ..vision_signals import RECORD, Source, VisionRecord, find_sources, install_frame_recording
from .configuration_flashvid_llava_onevision import FlashVIDLlavaOnevisionConfig
from .newlines import Rows, count_rows, lay_out_rows, pooled_side
from .original_checkpoints import ORIGINAL_KEY_MAPPING

# Names of weights in the checkpoints of llava-hf, and their names in the model since transformers 4.52. The names in
# checkpoints of the original code follow.
CHECKPOINT_KEY_MAPPING = {
    r"^language_model\.lm_head": "lm_head",
    r"^language_model\.model": "model.language_model",
    r"^vision_tower": "model.vision_tower",
    r"^multi_modal_projector": "model.multi_modal_projector",
    r"^image_newline": "model.image_newline",
    **ORIGINAL_KEY_MAPPING,
}


@dataclass
class FlashVIDLlavaOnevisionModelOutput(FlashVIDModelOutput, output_class(LlavaOnevisionModel)):
    """Upstream's fields and those of `FlashVIDModelOutput`."""


@dataclass
class FlashVIDLlavaOnevisionCausalLMOutput(
    FlashVIDCausalLMOutput, output_class(LlavaOnevisionForConditionalGeneration)
):
    """Upstream's fields and those of `FlashVIDCausalLMOutput`."""


class FlashVIDLlavaOnevisionModel(FlashVIDPreTrainedMixin, FlashVIDModelMixin, LlavaOnevisionModel):
    """LLaVA-OneVision's base model, compressing its videos. Other inputs run as upstream runs them.

    The videos of a call may have different numbers of frames. Then they come as a list.
    """

    config: FlashVIDLlavaOnevisionConfig
    config_class = FlashVIDLlavaOnevisionConfig
    checkpoint_key_mapping = CHECKPOINT_KEY_MAPPING
    output_class = FlashVIDLlavaOnevisionModelOutput
    encoder_inputs = {
        "image": (
            "pixel_values",
            "image_sizes",
            "vision_feature_layer",
            "vision_feature_select_strategy",
            "vision_aspect_ratio",
            "batch_num_images",
        ),
        "video": ("pixel_values_videos", "vision_feature_layer", "vision_feature_select_strategy"),
    }
    unread_inputs = ("image_sizes_videos",)

    def __init__(self, config: FlashVIDLlavaOnevisionConfig):
        super().__init__(config)
        self.install_hooks()

    def install_hooks(self) -> None:
        tower = self.config.vision_config.model_type
        if tower != "siglip_vision_model":
            raise ValueError(
                f"`vision_config.model_type` is {tower!r}: the attention of a 'siglip_vision_model' is what FlashVID "
                "knows how to read here. Choose a checkpoint with such a vision tower."
            )
        super().install_hooks()
        install_frame_recording(self.vision_tower.encoder.layers)

    def get_video_features(
        self,
        pixel_values_videos: torch.Tensor | Sequence[torch.Tensor],
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        settings: Any = None,
        **kwargs: Any,
    ) -> tuple | FlashVIDVideoOutput:
        """Encode the videos, compress each of them, and add its newlines.

        Args:
            pixel_values_videos: frames of all videos, with shape (V, T, channels, height, width), or a list of videos
                with shape (T, channels, height, width) each. If the videos are compressed, the frames may be on the
                CPU: they are moved to the device of the vision tower chunk by chunk.
            vision_feature_layer: index of the hidden states of the vision tower to use, as upstream counts them, or
                several indices. The attention is that of the layer that makes these hidden states, or of the last one
                named if there are several.
            vision_feature_select_strategy: "full", or "default" to leave out the first patch.
            settings: a configuration whose settings of the compression replace the model's.
            kwargs: single fields of FlashVID that replace those of `settings` (`retention_ratio=0.2`), and what
                upstream takes.

        Raises:
            ValueError: the layer has no attention, or does not exist; a video has another number of dimensions.
        """
        settings = self.take_settings(settings, kwargs)
        return_dict = kwargs.pop("return_dict", None)
        _check_videos(pixel_values_videos)
        if not settings.compresses and self._is_as_upstreams(pixel_values_videos):
            outputs = super().get_video_features(
                pixel_values_videos,
                vision_feature_layer=vision_feature_layer,
                vision_feature_select_strategy=vision_feature_select_strategy,
                return_dict=True,
                **kwargs,
            )
            outputs = FlashVIDVideoOutput.uncompressed(outputs, settings)
            return outputs if return_dict is not False else outputs.to_tuple()
        num_frames = [len(video) for video in pixel_values_videos]
        if isinstance(pixel_values_videos, torch.Tensor):
            frames = pixel_values_videos.flatten(0, 1)
        else:
            frames = pixel_values_videos[0] if len(num_frames) == 1 else torch.cat(tuple(pixel_values_videos))
        strategy = vision_feature_select_strategy or self.config.vision_feature_select_strategy
        stopwatch = Stopwatch()
        with stopwatch.stage("vision", tower_device(self.vision_tower, frames)):
            layers = self._feature_layers(vision_feature_layer)
            chunks = self._encode_chunks(frames, layers, strategy == "default", settings, **kwargs)
            features, *of_frames = join_rows(chunks, len(frames))
        videos = list(features.split(num_frames))
        if settings.compresses:
            recorded = [rows.split(num_frames) for rows in of_frames]
            video_output = self.compress_videos(videos, recorded, settings, stopwatch)
            indices = [video.indices for video in video_output.videos]
        else:
            tokens = tuple(video.flatten(0, 1) for video in videos)
            video_output = FlashVIDVideoOutput(last_hidden_state=of_frames[0], pooler_output=tokens, settings=settings)
            indices = [torch.arange(len(video), device=video.device) for video in tokens]
        video_output.pooler_output = tuple(
            torch.cat([tokens, self.image_newline[None].to(tokens)])[self._rows(kept, frames).order]
            for tokens, kept, frames in zip(video_output.pooler_output, indices, num_frames, strict=True)
        )
        return video_output if return_dict is not False else video_output.to_tuple()

    def _encode_chunks(
        self, frames: torch.Tensor, layers: tuple[Any, ...], drops_first: bool, settings: Any, **kwargs: Any
    ) -> Iterator[tuple[torch.Tensor, ...]]:
        """Encode frames in chunks.

        Args:
            frames: with shape (T, channels, height, width).
            layers: the layers whose outputs, side by side, make the features.
            drops_first: whether to leave out the first patch of every frame.
            settings: the configuration with the settings of the call.
            kwargs: what else the vision tower takes.

        Yields:
            For each chunk its features (T, N, D), then each signal that the method asks for. If the videos are not
            compressed, the last hidden states of the tower take the place of the signals.
        """
        size = settings.vision_chunk_size if settings.compresses else None
        device, first = tower_device(self.vision_tower, frames), int(drops_first)
        outputs_of = [Source("hidden_states", layer) for layer in layers]
        asked = settings.method.signals if settings.compresses else ()
        sources = find_sources(asked, self.vision_tower.encoder.layers, layers[-1])
        for chunk in frames.split(size or len(frames)):
            record = VisionRecord([*outputs_of, *sources.values()])
            outputs = self.vision_tower(chunk.to(device), **{RECORD: record}, **kwargs)
            hidden_states = torch.cat([record.found[output] for output in outputs_of], dim=-1)
            features = self.apply_pooling(self.multi_modal_projector(hidden_states[:, first:]))
            if not settings.compresses:
                yield features, outputs.last_hidden_state
                continue
            signals = []
            for signal, source in sources.items():
                patches = record.found[source].detach().float().reshape(*hidden_states.shape[:2], -1)[:, first:]
                pooled = self.apply_pooling(patches).to(features.device)
                signals.append(pooled[..., 0] if signal.kind == "attention" else pooled)
            yield features, *signals

    def lay_out(self, video: CompressedVideo, settings: Any) -> VideoLayout:
        num_frames, num_tokens = video.selected.shape
        rows = self._rows(video.indices, num_frames)
        is_newline = rows.order == len(video.indices)
        # The released code treats newlines as tokens of the video, except the single newline at its end.
        prunes_newlines = settings.behavior == "released" and self.config.mm_newline_position != "one_token"
        prunable = torch.ones_like(is_newline) if prunes_newlines else ~is_newline
        counts = count_occurrences(rows.placeholders, rows.num_placeholders)
        return VideoLayout(counts, prunable & video.prunable, is_token=~is_newline)

    def find_positions(self, prompt: Prompt, inputs: dict[str, Any]) -> torch.Tensor:
        """Consecutive positions of the tokens that are left, as in the reference. The caller's positions are ignored.

        If nothing is compressed, the caller's positions are used, as upstream does.
        """
        cache, mask = inputs["cache"], inputs["attention_mask"]
        if not prompt.videos and not is_compressed(cache):
            return inputs["position_ids"]
        like = inputs["input_ids"] if inputs["inputs_embeds"] is None else inputs["inputs_embeds"][..., 0]
        num_new = prompt.num_columns if prompt.columns is None else prompt.columns.shape[1]
        num_cached = 0 if cache is None else cache.num_cached()
        real = join_masks(past_masks(cache, mask)[0], num_cached, prompt.mask, like[:, :1].expand(-1, num_new))
        if real is None:
            return torch.arange(num_cached, num_cached + num_new, device=like.device).expand(len(like), -1)
        return (real.long().cumsum(-1) - 1).clamp(min=0)[:, num_cached:]

    def placeholder_counts(self, kind: str, inputs: dict[str, Any]) -> tuple[int, ...] | None:
        if kind == "image":  # the number depends on how upstream unpads each image
            return None
        videos, position, side = inputs["pixel_values_videos"], self.config.mm_newline_position, self._side()
        _check_videos(videos)
        return tuple(count_rows(position, len(video), side) for video in videos)

    def _is_as_upstreams(self, videos: torch.Tensor | Sequence[torch.Tensor]) -> bool:
        """Whether upstream encodes these videos in the same way: equally long, each with one newline at its end."""
        ends_with_newline = FEATURES_END_WITH_NEWLINE and self.config.mm_newline_position == "one_token"
        return ends_with_newline and isinstance(videos, torch.Tensor)

    def _rows(self, indices: torch.Tensor, num_frames: int) -> Rows:
        return lay_out_rows(indices, self.config.mm_newline_position, num_frames, self._side())

    def _side(self) -> int:
        """Tokens a side of a pooled frame."""
        vision = self.config.vision_config
        return pooled_side(self.config.mm_spatial_pool_mode, vision.image_size // vision.patch_size)

    def _feature_layers(self, vision_feature_layer: int | list[int] | None) -> tuple[Any, ...]:
        """The encoder layers that make the chosen hidden states.

        Upstream counts hidden states from the embeddings on: index 0 is the embeddings, and index 1 is the output of
        the first layer.
        """
        chosen = self.config.vision_feature_layer if vision_feature_layer is None else vision_feature_layer
        layers = self.vision_tower.encoder.layers
        indices = [chosen] if isinstance(chosen, int) else list(chosen)
        for index in indices:
            if not (-len(layers) <= index < 0 or 0 < index <= len(layers)):
                raise ValueError(
                    f"`vision_feature_layer` is {chosen!r}: FlashVID uses the attention of the layer that makes the "
                    f"features, so it must lie in 1 ... {len(layers)} or -{len(layers)} ... -1. Choose such a layer."
                )
        return tuple(layers[index if index < 0 else index - 1] for index in indices)

    def _upstream_forward(self, **inputs: Any) -> BaseModelOutputWithPast:
        """Upstream's `forward` on uncompressed videos.

        The videos are encoded here, because upstream takes no lists of videos and places newlines in only one way.
        """
        encoded = dict(inputs.get("mm_encoder_outputs") or {})
        if inputs.get("pixel_values_videos") is None and encoded.get("video") is None:
            return super().forward(**inputs)
        input_ids, inputs_embeds = inputs.pop("input_ids", None), inputs.pop("inputs_embeds", None)
        masks = self.placeholder_masks(input_ids, inputs_embeds)
        names = {name for given in self.encoder_inputs.values() for name in given} | {"mm_encoder_outputs"}
        self.encode({name: inputs.pop(name, None) for name in names}, encoded, self.config, *masks)
        prompt = Prompt(masks[0].shape[1])
        embeddings = self.embed_prompt(prompt, input_ids, inputs_embeds, *masks, encoded)
        return complete_outputs(self, super().forward(inputs_embeds=embeddings, **inputs), encoded)

    @can_return_tuple
    @takes_arguments_of(LlavaOnevisionModel)
    def forward(
        self,
        inputs: dict[str, Any],
        query_index: int | torch.Tensor | None = None,
        full_length: bool | None = None,
        **kwargs: Any,
    ) -> tuple | FlashVIDModelOutput:
        """Upstream's `forward`, on the kept video tokens; see `forward_flashvid` for the other arguments.

        `pixel_values_videos` may be a list, see `get_video_features`. In a compressed prompt positions are consecutive,
        and `position_ids` is ignored.
        """
        return self.forward_flashvid(self._upstream_forward, inputs, query_index, full_length, **kwargs)


def _check_videos(videos: torch.Tensor | Sequence[torch.Tensor]) -> None:
    for video in videos:
        if video.ndim != 4:
            raise ValueError(
                f"`pixel_values_videos` holds a video of shape {tuple(video.shape)}: a video has 4 dimensions, frames "
                "x channels x height x width. Pass a 5D tensor of all videos, or a list of them."
            )


class FlashVIDLlavaOnevisionForConditionalGeneration(
    FlashVIDPreTrainedMixin,
    FlashVIDGenerationMixin,
    FlashVIDLanguageModelingMixin,
    LlavaOnevisionForConditionalGeneration,
):
    """LLaVA-OneVision with a language modeling head, compressing its videos."""

    config: FlashVIDLlavaOnevisionConfig
    config_class = FlashVIDLlavaOnevisionConfig
    checkpoint_key_mapping = CHECKPOINT_KEY_MAPPING
    output_class = FlashVIDLlavaOnevisionCausalLMOutput
    base_model_class = FlashVIDLlavaOnevisionModel

    def __init__(self, config: FlashVIDLlavaOnevisionConfig):
        # Upstream's `__init__` is skipped, because it would build upstream's base model.
        super(LlavaOnevisionForConditionalGeneration, self).__init__(config)
        self.model = self.base_model_class(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_video_features(self, *args: Any, **kwargs: Any) -> tuple | FlashVIDVideoOutput:
        """See `FlashVIDLlavaOnevisionModel.get_video_features`."""
        return self.model.get_video_features(*args, **kwargs)

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: torch.Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        # If the videos are not encoded yet, upstream would repeat each video by itself, and it takes no lists. The
        # videos of a prompt must stay together, so they are repeated here, prompt by prompt.
        videos = model_kwargs.pop("pixel_values_videos", None)
        if videos is not None and expand_size > 1:
            embeds = model_kwargs.get("inputs_embeds")  # if they are given, `input_ids` may be empty
            mask = self.model.placeholder_masks(input_ids if embeds is None else None, embeds)[1]
            sizes = self.model.placeholder_counts("video", {"pixel_values_videos": videos})
            ends = torch.tensor(sizes).cumsum(0)
            of_prompt = torch.searchsorted(mask.sum(-1).cumsum(0).cpu(), ends).tolist()
            groups = [[v for v, p in zip(videos, of_prompt, strict=True) if p == prompt] for prompt in range(len(mask))]
            videos = [video for group in groups for video in group * expand_size]
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        return input_ids, {**model_kwargs, **({} if videos is None else {"pixel_values_videos": videos})}

    @can_return_tuple
    @takes_arguments_of(LlavaOnevisionForConditionalGeneration)
    def forward(
        self,
        inputs: dict[str, Any],
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        query_index: int | torch.Tensor | None = None,
        full_length: bool | None = None,
        **kwargs: Any,
    ) -> tuple | FlashVIDCausalLMOutput:
        """Upstream's `forward`, on the kept video tokens.

        See `forward_flashvid` for `query_index`, and `language_modeling_output` for `full_length`.
        """
        outputs = self.model(**inputs, query_index=query_index, full_length=False, **kwargs)
        return self.language_modeling_output(outputs, inputs, labels, logits_to_keep, full_length, **kwargs)


__all__ = ["FlashVIDLlavaOnevisionForConditionalGeneration", "FlashVIDLlavaOnevisionModel"]
