"""The language model on a compressed prompt: its masks, its cache, and the pruning inside it."""

from contextlib import nullcontext
from typing import Any

import torch
from transformers.cache_utils import Cache

from .cache import FlashVIDCache, is_compressed, past_masks
from .columns import gather_columns, rows_of_columns
from .layer_pruning import PRUNING, TokenPruning, UpperLayers, join_masks
from .outputs import FlashVIDModelOutput
from .prompt import Prompt
from .stopwatch import Stopwatch
from .upstream import CACHE


class FlashVIDPrunedLanguageModelMixin:
    """Runs the `language_model` of a multimodal model on the columns that are left of a prompt."""

    config: Any
    language_model: Any
    training: bool

    # The class of the outputs: upstream's fields and those of `FlashVIDModelOutput`.
    output_class: type[FlashVIDModelOutput]

    def prepare_cache(self, cache: Cache | None, use_cache: bool | None) -> tuple[Cache | None, bool]:
        """The cache of a call, and whether to use it. If the caller wants a cache and passed none, one is made."""
        config = self.config.get_text_config()
        use_cache = config.use_cache if use_cache is None else use_cache
        if self.training and self.language_model.gradient_checkpointing:
            use_cache = False
        if cache is None and use_cache:
            cache = FlashVIDCache(config=config)
        return cache, use_cache

    def run_language_model(
        self,
        inputs_embeds: torch.Tensor,
        prompt: Prompt,
        settings: Any,
        *,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        cache: FlashVIDCache | None,
        use_cache: bool,
        query_index: int | torch.Tensor | None,
        stopwatch: Stopwatch,
        full_length: bool,
        **kwargs: Any,
    ) -> FlashVIDModelOutput:
        """Run the language model on the columns that entered, prune inside it, and record both in the cache.

        Args:
            inputs_embeds: embeddings of the columns that entered, with shape (B, M, D).
            prompt: which columns entered.
            settings: the configuration with the settings of the call.
            attention_mask: 2D mask of the whole sequence, earlier turns included, as the caller passed it.
            position_ids: positions of the columns that entered, with shape (..., B, M).
            cache: the cache of the call, if it uses one.
            use_cache: whether the language model writes to the cache.
            query_index: see `forward_flashvid`.
            stopwatch: measures the language model, as the stage "prefill".
            full_length: whether `last_hidden_state` has all S columns of a compressed prompt.
            kwargs: what else the language model takes.

        Raises:
            ValueError: the language model has sliding-window layers, or the cache was pruned from another layer on.
        """
        if not prompt.videos and not is_compressed(cache):  # run as upstream does, with the caller's mask and any cache
            outputs = self.language_model(
                inputs_embeds=inputs_embeds,
                position_ids=position_ids,
                attention_mask=attention_mask,
                use_cache=use_cache,
                **{CACHE: cache},
                **kwargs,
            )
            return self.output_class(**outputs)
        config = self.config.get_text_config()
        if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
            raise ValueError(
                "`layer_types` of the language model has sliding-window layers: FlashVID needs full attention. "
                "Set `use_sliding_window=False`, or `retention_ratio=1.0` to run without compression."
            )
        seen = cache.get_seq_length() if cache is not None else 0
        past_lower, past_upper = past_masks(cache, attention_mask)
        lower_mask = join_masks(past_lower, cache.num_cached() if cache is not None else 0, prompt.mask, inputs_embeds)

        upper: UpperLayers | None = None
        pruning_layer = cache.pruning_layer if cache is not None else None
        pruning = settings.pruning if prompt.videos else None
        if pruning is not None:
            if pruning_layer not in (None, pruning.layer):
                raise ValueError(
                    f"`pruning_layer` is {pruning.layer}, and the cache was pruned from layer {pruning_layer} "
                    f"on. Keep `pruning_layer={pruning_layer}`, or start a new cache."
                )
            pruning_layer = pruning.layer
        upper_args = (config, pruning_layer, cache, past_upper, prompt.mask)
        if pruning is not None:
            upper = TokenPruning(
                *upper_args,
                rule=pruning,
                prunable=prompt.prunable,
                query=prompt.find_query(query_index, seen),
                past_lower_mask=past_lower,
                padding_side=prompt.padding_side,
                is_video=prompt.row_index >= 0,
            )
        elif pruning_layer is not None:
            upper = UpperLayers(*upper_args)
        if upper is not None:
            kwargs[PRUNING] = upper

        with stopwatch.stage("prefill", inputs_embeds.device) if prompt.videos else nullcontext():  # not while decoding
            outputs = self.language_model(
                inputs_embeds=inputs_embeds,
                position_ids=position_ids,
                attention_mask=lower_mask,
                use_cache=use_cache,
                **{CACHE: cache},
                **kwargs,
            )

        token_index = report = None
        if prompt.videos:
            token_index, row_index, mask = prompt.columns, prompt.row_index, prompt.mask
            if isinstance(upper, TokenPruning):
                token_index, row_index = (gather_columns(index, upper.columns) for index in (token_index, row_index))
                mask = upper.new_mask
            if mask is not None:
                padding = ~mask.to(token_index.device)
                token_index, row_index = (index.masked_fill(padding, -1) for index in (token_index, row_index))
            report = prompt.report(
                row_index, stopwatch, (pruning_layer or config.num_hidden_layers, config.num_hidden_layers)
            )
        if cache is not None:
            cache.account(
                lower_mask=lower_mask,
                upper_mask=lower_mask if upper is None else upper.mask,
                num_dropped=prompt.num_columns - inputs_embeds.shape[1],
                pruning_layer=pruning_layer,
            )
        outputs = self.output_class(**outputs, token_index=token_index, report=report)
        if full_length and token_index is not None:
            rows = rows_of_columns(token_index, prompt.num_columns)
            outputs.last_hidden_state = gather_columns(outputs.last_hidden_state, rows)
        return outputs
