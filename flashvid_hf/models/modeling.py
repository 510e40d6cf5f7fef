"""What the base models of all families share: `forward` on compressed videos.

Legend of all files of this folder: B batch, S columns of the input, M columns that enter the language model, L columns
that are left from the pruning layer on. V videos; T frames of a video (for Qwen: temporal grids), N tokens a frame,
D width. A column is a place in the sequence of a sample.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling

from ..compression.compressed_video import CompressedVideo
from ..compression.released_deviations import released_repeats
from ..methods.compression_method import Signals
from .cache import FlashVIDCache, check_cache, is_compressed
from .columns import count_columns
from .configuration import CALL_FIELDS
from .layer_pruning import install_pruning
from .outputs import FlashVIDModelOutput, FlashVIDVideoOutput
from .placeholders import FlashVIDPlaceholdersMixin, check_placeholders
from .prompt import Prompt, VideoLayout, count_occurrences
from .pruned_language_model import FlashVIDPrunedLanguageModelMixin
from .report import CompressionReport
from .stopwatch import Stopwatch
from .upstream import MODEL_INPUTS, complete_outputs, rename_cache

# Inputs of `forward` that every language model has.
LANGUAGE_INPUTS = ("input_ids", "inputs_embeds", "attention_mask", "position_ids", "cache")


class FlashVIDModelMixin(FlashVIDPlaceholdersMixin, FlashVIDPrunedLanguageModelMixin):
    """Compression inside the `forward` of a multimodal model that has a `language_model`.

    A family defines the inputs and outputs of its vision tower, and the positions of the columns.
    """

    get_input_embeddings: Any
    get_image_features: Any
    get_video_features: Any

    # Inputs of `forward` that determine positions, in addition to the inputs that every family has.
    position_inputs: ClassVar[tuple[str, ...]] = ()
    # Inputs of `forward` that upstream accepts but does not read.
    unread_inputs: ClassVar[tuple[str, ...]] = ()
    # Keyword arguments of `forward` that upstream also passes to the vision tower.
    tower_arguments: ClassVar[tuple[str, ...]] = ()
    # Whether the family's released code lets the last vector overwrite the others if an index repeats; see
    # `released_repeats`.
    released_code_overwrites_repeats = False
    # Whether upstream's `forward` takes `mm_encoder_outputs`.
    upstream_takes_encoded = True
    # Whether positions depend on the grids of all images and videos of the conversation.
    positions_need_grids = False

    def install_hooks(self) -> None:
        """Install the hooks of this model on its submodules. Installing them again changes nothing."""
        install_pruning(self.language_model.layers)

    def forward_flashvid(
        self,
        upstream_forward: Callable[..., BaseModelOutputWithPast],
        inputs: dict[str, Any],
        query_index: int | torch.Tensor | None,
        full_length: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run upstream's `forward` on the kept video tokens.

        Args:
            upstream_forward: runs the call if it has no video to compress and does not continue a compressed cache.
            inputs: the named arguments of `forward`.
            query_index: column whose attention ranks the video tokens inside the language model, counted over the whole
                sequence, earlier turns included; an integer, or one for each sample. Default: the last real column.
            full_length: whether `last_hidden_state` has all S columns of a compressed prompt, or only the L that are
                left. A dropped column repeats the row of the last column before it that is left. `None` stands for
                `full_length` of the configuration. If that is `None` too, all columns are there in training mode and
                with `use_cache=False`, as trainers call a base model to compute the loss themselves.
            kwargs: FlashVID's fields that shall differ from the configuration in this call (`retention_ratio=0.2`), or
                all of them as one configuration in `settings`; `prompt_length`, how many columns the whole sequence had
                before `generate` began, because a placeholder behind them is a token that the model itself wrote; and
                what upstream takes.

        Returns:
            `FlashVIDModelOutput`, or upstream's output. Both have a `report`, except in calls that continue a cache and
            have no video of their own.

        Raises:
            ValueError: a setting is out of range, the inputs do not fit together, a prompt has placeholders of images
                or videos that are not given, or a compressed prompt does not support the inputs.
        """
        encoded = dict(inputs["mm_encoder_outputs"] or {})
        settings, prompt_length = self.find_settings(encoded, kwargs), kwargs.pop("prompt_length", None)
        missing = self.missing_media(inputs, encoded)
        has_videos = "video" not in missing
        if full_length is None:
            full_length = self.config.full_length
        if full_length is None:
            full_length = self.training or inputs["use_cache"] is False
        cache, use_cache = self.prepare_cache(inputs["cache"], inputs["use_cache"])
        inputs = {**inputs, "cache": cache, "use_cache": use_cache}
        seen = 0 if cache is None else cache.get_seq_length()
        num_prompt = None if prompt_length is None else prompt_length - seen  # columns of this call
        if not seen:
            self.check_missing_media(missing, self.find_placeholders(inputs, num_prompt))
        if has_videos and settings.compresses:
            check_cache(cache)
        # Upstream would encode videos with the settings of the configuration instead of those of the call. Some
        # versions of it ignore `mm_encoder_outputs`.
        is_own = has_videos and (settings.compresses or self.config.compresses)
        is_own |= any(value is not None for value in encoded.values()) and not self.upstream_takes_encoded
        # Upstream would count placeholders that the model itself wrote, and find too few features.
        writes = num_prompt is not None and num_prompt < count_columns(inputs)
        is_own |= writes and not seen and len(missing) < len(self.encoder_inputs)
        if is_compressed(cache) or is_own:
            outputs = self._forward(
                inputs, encoded, settings, query_index, num_prompt, full_length=full_length, **kwargs
            )
        else:
            given = {name: value for name, value in inputs.items() if value is not None}
            outputs = upstream_forward(**rename_cache(given), return_dict=True, **kwargs)
        report = getattr(outputs, "report", None)
        if report is None and (has_videos or not seen):
            report = outputs.report = self._report_uncompressed(inputs, encoded, num_prompt)
        if report is not None and isinstance(cache, FlashVIDCache):
            cache.reports = (*cache.reports, report)
        return outputs

    def find_settings(self, encoded: dict[str, Any], kwargs: dict[str, Any]) -> Any:
        """The configuration with the settings of a call, which are removed from its keyword arguments.

        Args:
            encoded: outputs of the vision tower, under "image" and "video". If the videos are encoded already, the
                settings of the encoding apply.
            kwargs: keyword arguments of the call; FlashVID's fields and `settings` are removed.

        Raises:
            ValueError: a field is outside of its range, or a field is given although the videos are encoded already.
        """
        carried = getattr(encoded.get("video"), "settings", None)
        if carried is None:
            return self.take_settings(kwargs.pop("settings", None), kwargs)
        kwargs.pop("settings", None)
        for name in sorted(CALL_FIELDS & kwargs.keys()):
            value = kwargs[name]
            raise ValueError(
                f"`{name}` is {value!r} and `mm_encoder_outputs` has videos: they were compressed when they were "
                "encoded. Give the settings to `get_video_features`, or pass the pixels."
            )
        return carried

    def take_settings(self, settings: Any, kwargs: dict[str, Any]) -> Any:
        """`settings`, or the configuration if it is `None`, with the fields that are removed from `kwargs`."""
        overrides = {name: kwargs.pop(name) for name in CALL_FIELDS & kwargs.keys()}
        return (settings or self.config).override(**overrides)

    def _forward(
        self,
        inputs: dict[str, Any],
        encoded: dict[str, Any],
        settings: Any,
        query_index: int | torch.Tensor | None,
        num_prompt: int | None,
        **kwargs: Any,
    ) -> FlashVIDModelOutput:
        """`forward` of calls that have videos or continue a compressed cache."""
        for name in sorted(inputs.keys() - self.known_inputs()):
            if inputs[name] is not None:
                raise ValueError(
                    f"`{name}` is given, and FlashVID does not know what it means for a prompt that is compressed. "
                    "Leave it out, or set `retention_ratio=1.0`."
                )
        input_ids, inputs_embeds = inputs["input_ids"], inputs["inputs_embeds"]
        attention_mask = inputs["attention_mask"]
        image_mask, video_mask = self.find_placeholders(inputs, num_prompt)
        comes_encoded = encoded.get("video") is not None  # pixels are checked before they are encoded
        # The inner states of the tower are not returned for compressed videos: each chunk of them is freed after use.
        recorded = () if settings.compresses else self.tower_arguments
        asked = {name: kwargs[name] for name in recorded if name in kwargs}
        self.encode(inputs, encoded, settings, image_mask, video_mask, **asked)
        videos = getattr(encoded.get("video"), "videos", None)
        if videos:
            layouts = tuple(self.lay_out(video, settings) for video in videos)
            if comes_encoded:
                check_placeholders("video", video_mask, sum(len(layout.counts) for layout in layouts))
            dropped = self.dropped_columns(input_ids, video_mask, settings)
            prompt = Prompt.compressed(video_mask, videos, layouts, attention_mask, dropped)
        else:
            prompt = Prompt.uncompressed(image_mask.shape[1], attention_mask)
        outputs = self.run_language_model(
            self.embed_prompt(prompt, input_ids, inputs_embeds, image_mask, video_mask, encoded),
            prompt,
            settings,
            attention_mask=attention_mask,
            position_ids=self.find_positions(prompt, inputs),
            cache=inputs["cache"],
            use_cache=inputs["use_cache"],
            query_index=query_index,
            stopwatch=Stopwatch(getattr(encoded.get("video"), "stopwatch", None)),
            **self.language_model_inputs(prompt, image_mask, video_mask, encoded),
            **kwargs,
        )
        return complete_outputs(self, outputs, encoded)

    @classmethod
    def known_inputs(cls) -> set[str]:
        """The inputs of `forward` that FlashVID reads, or that upstream does not read either."""
        of_tower = {name for names in cls.encoder_inputs.values() for name in names}
        return {*MODEL_INPUTS, *LANGUAGE_INPUTS, *of_tower, *cls.position_inputs, *cls.unread_inputs}

    def _report_uncompressed(
        self, inputs: dict[str, Any], encoded: dict[str, Any], num_prompt: int | None
    ) -> CompressionReport:
        """The report of a call that had no video, or compressed none."""
        _, video_mask = self.find_placeholders(inputs, num_prompt)
        tokens: tuple | torch.Tensor = ()
        if encoded.get("video") is not None:
            tokens = tuple(map(len, encoded["video"].pooler_output))
        elif inputs["pixel_values_videos"] is not None:
            tokens = self.placeholder_counts("video", inputs)
        return CompressionReport.uncompressed(video_mask.sum(-1), tokens)

    def find_positions(self, prompt: Prompt, inputs: dict[str, Any]) -> torch.Tensor:
        """Positions of the columns that enter, with shape (..., B, M)."""
        raise NotImplementedError

    def lay_out(self, video: CompressedVideo, settings: Any) -> VideoLayout:
        """How the rows of a compressed video lie in its placeholders. Default: one row for each token."""
        prunable = torch.full_like(video.indices, video.prunable, dtype=torch.bool)
        return VideoLayout(
            count_occurrences(video.indices, video.selected.numel()), prunable, is_token=torch.ones_like(prunable)
        )

    def dropped_columns(
        self, input_ids: torch.Tensor | None, video_mask: torch.Tensor, settings: Any
    ) -> torch.Tensor | None:
        """Which columns other than those of video tokens do not enter, with shape (B, S); `None` if all enter.

        Args:
            input_ids: with shape (B, S), if they are given.
            video_mask: which columns are placeholders of the videos, with shape (B, S).
            settings: the configuration with the settings of the call.
        """
        return None

    def language_model_inputs(
        self, prompt: Prompt, image_mask: torch.Tensor, video_mask: torch.Tensor, encoded: dict[str, Any]
    ) -> dict[str, Any]:
        """Keyword arguments that the family's language model takes beside embeddings and positions."""
        return {}

    def encode(
        self,
        inputs: dict[str, Any],
        encoded: dict[str, Any],
        settings: Any,
        image_mask: torch.Tensor,
        video_mask: torch.Tensor,
        **kwargs: Any,
    ) -> None:
        """Run the vision tower for what the caller has not encoded already, and add its outputs to `encoded`.

        The placeholders are checked before the encoding if possible, so that a mistake in the inputs costs no run of
        the vision tower.
        """
        for kind, mask in (("image", image_mask), ("video", video_mask)):
            if encoded.get(kind) is not None:
                if getattr(encoded[kind], "videos", None) is None:  # compressed videos are checked by their layouts
                    check_placeholders(kind, mask, sum(map(len, encoded[kind].pooler_output)))
                continue
            if inputs[self.encoder_inputs[kind][0]] is None:
                continue
            checked = self.check_placeholders(kind, mask, inputs)
            given = {name: inputs[name] for name in self.encoder_inputs[kind] if inputs[name] is not None}
            if kind == "image":
                encoded[kind] = self.get_image_features(**given, return_dict=True, **kwargs)
            else:
                encoded[kind] = self.get_video_features(**given, settings=settings, return_dict=True, **kwargs)
            if not checked:
                check_placeholders(kind, mask, sum(map(len, encoded[kind].pooler_output)))

    def compress_videos(
        self,
        features: list[torch.Tensor],
        recorded: Sequence[Sequence[torch.Tensor]],
        settings: Any,
        stopwatch: Stopwatch,
    ) -> FlashVIDVideoOutput:
        """Compress each video.

        Args:
            features: with shape (T, N, D), for each video.
            recorded: for each signal of the method, its values for each video, with shape (T, N) or (T, N, width).
            settings: the configuration with the settings of the call.
            stopwatch: measures the compression.
        """
        method = settings.method
        signals = [Signals(zip(method.signals, of_video, strict=True)) for of_video in zip(*recorded, strict=True)]
        signals = signals or [Signals()] * len(features)
        with stopwatch.stage("compression", features[0].device):
            videos = tuple(method.compress(*video) for video in zip(features, signals, strict=True))
        tokens = tuple(video.tokens for video in videos)
        if settings.behavior == "released" and self.released_code_overwrites_repeats:
            tokens = tuple(released_repeats(video.tokens, video.indices) for video in videos)
        return FlashVIDVideoOutput(pooler_output=tokens, videos=videos, settings=settings, stopwatch=stopwatch)

    def embed_prompt(
        self,
        prompt: Prompt,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        image_mask: torch.Tensor,
        video_mask: torch.Tensor,
        encoded: dict[str, BaseModelOutputWithPooling],
    ) -> torch.Tensor:
        """Embeddings of the columns that enter, with images and kept video tokens inserted, with shape (B, M, D)."""
        if inputs_embeds is None:
            embeddings = self.get_input_embeddings()(prompt.gather(input_ids))
        else:
            embeddings = prompt.gather(inputs_embeds)
        if encoded.get("image") is not None:
            features = torch.cat(tuple(encoded["image"].pooler_output))
            embeddings = prompt.scatter(embeddings, prompt.gather(image_mask), features)
        if encoded.get("video") is not None:
            tokens = torch.cat(tuple(encoded["video"].pooler_output))
            embeddings = prompt.scatter(embeddings, prompt.find_video_columns(video_mask), tokens)
        return embeddings
