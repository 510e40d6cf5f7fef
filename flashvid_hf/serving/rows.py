"""The answers that a model writes at the same time: each prompt is read alone, then every step writes a token of each.

One `Row` is one answer. It reads its prompt through `generate`, which prepares inputs, logits processors and stopping
criteria for this answer alone, and hands over where it would begin to write. `Rows` then runs the model once for all
rows. So requests with different settings share the model, a row that ends makes room at once, and a new row joins
between two steps.

transformers' continuous batching does not serve these models. It takes token ids only, no pixels, and its paged cache
holds equally many tokens in all layers. The cache of a compressed prompt holds fewer tokens from the pruning layer on.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation import GenerationMode

from ..models.cache import FlashVIDCache
from ..models.upstream import CACHE
from .stops import AnswerText

# Values that `generation_config` may have, for settings that steps with other rows cannot honour.
SHARED_SETTINGS: dict[str, tuple[Any, ...]] = {
    "num_beams": (None, 1),
    "num_return_sequences": (None, 1),
    "use_cache": (None, True),
    "cache_implementation": (None, "dynamic"),
    "prefill_chunk_size": (None,),
    "guidance_scale": (None, 1, 1.0),
    "token_healing": (None, False),
}


def check_shared(config: GenerationConfig) -> None:
    """Raise a `ValueError` if an answer cannot be written beside others, token by token."""
    for name, allowed in SHARED_SETTINGS.items():
        value = getattr(config, name, None)
        if value not in allowed:
            raise ValueError(f"`generation_config` has `{name}` = {value!r:.100}, which this server cannot do.")
    mode = config.get_generation_mode()
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise ValueError(f"`generation_config` asks for {mode.value}: this server does greedy search and sampling.")


class Row:
    """An answer that is being written.

    Args:
        model: a FlashVID model.
        inputs: arguments of `generate`, of one prompt.
        config: settings of the generation, as `check_shared` allows them.
        seed: makes sampling repeatable; `None` draws from torch's common state.
        tokenizer: of the model; needed for `stop_strings` only.
        skip_special_tokens: whether the text in which `stop_strings` are looked for lacks the special tokens.

    Raises:
        ValueError: the inputs do not fit the model, or a setting is out of range.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        inputs: dict[str, Any],
        config: GenerationConfig,
        seed: int | None = None,
        tokenizer: Any = None,
        skip_special_tokens: bool = True,
    ):
        self._model, self._do_sample, self._seed = model, config.do_sample, seed
        self._generator: torch.Generator | None = None
        self._text: AnswerText | None = None
        if config.stop_strings:
            # transformers' criterion compares every stop string with every token of the vocabulary before it begins.
            self._text = AnswerText(tokenizer.backend_tokenizer, config.stop_strings, skip_special_tokens)
            config = copy.copy(config)
            config.stop_strings = None
        with torch.no_grad():
            model.generate(**inputs, generation_config=config, custom_generate=self._read)

    def _read(
        self,
        model: PreTrainedModel,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Read the prompt, in the place of `generate`'s own loop."""
        self._ids, self._processors, self._criteria = input_ids, logits_processor, stopping_criteria
        inputs = model.prepare_inputs_for_generation(input_ids, is_first_iteration=True, **kwargs)
        positions = inputs.get("position_ids")
        # The position of the first new token. Of Qwen's four axes the first counts columns, and is not a position.
        self.position = input_ids.shape[1] if positions is None else int(positions[-3:].max()) + 1
        outputs = model(**inputs, return_dict=True)
        self.cache: FlashVIDCache = outputs[CACHE]
        self.logits: torch.Tensor = outputs.logits[:, -1]  # of the next token, with shape (1, vocabulary)
        return input_ids

    def choose(self) -> torch.Tensor:
        """Choose the next token by `logits`.

        Returns:
            Tensor with shape (3,), int64: the token, whether it ends the answer, and whether it is usable. It is not if
            the scores are not finite, as with a tiny temperature.
        """
        scores = self._processors(self._ids, self.logits.to(self._ids.device, torch.float32))
        if self._do_sample:
            shares = scores.softmax(-1)
            usable = shares.isfinite().all()
            # On a GPU, to draw from shares that are not finite ends the process.
            token = torch.multinomial(
                torch.where(usable, shares, 1.0), 1, generator=self._find_generator(scores.device)
            )
        else:
            token, usable = scores.argmax(-1, keepdim=True), ~scores.isnan().any()
        self._ids = torch.cat([self._ids, token], -1)
        ended = self._criteria(self._ids, scores)
        self.position += 1
        return torch.stack([token.view(()), ended.view(()).long(), usable.long()])

    def is_stopped_by(self, token: int) -> bool:
        """Whether the answer has one of `stop_strings` with this token, its newest."""
        if self._text is None:
            return False
        self._text.take(token)
        return self._text.is_stopped

    def _find_generator(self, device: torch.device) -> torch.Generator | None:
        if self._seed is not None and self._generator is None:
            self._generator = torch.Generator(device).manual_seed(self._seed)
        return self._generator


class Rows:
    """The rows that run together, and their common cache.

    Args:
        model: a FlashVID model.
    """

    def __init__(self, model: PreTrainedModel):
        self._model = model
        self.rows: list[Row] = []
        self._cache: FlashVIDCache | None = None
        self._tokens: torch.Tensor | None = None  # the newest token of every row, with shape (B, 1)

    @torch.no_grad()
    def add(self, row: Row, token: int) -> None:
        """Let a row run with the others.

        Args:
            token: its first token.
        """
        device = row.logits.device
        tokens = torch.tensor([[token]], device=device)
        if self._cache is None:
            self.rows, self._cache, self._tokens = [row], row.cache, tokens
        else:
            self._cache = join_caches([self._cache, row.cache])
            self.rows, self._tokens = [*self.rows, row], torch.cat([self._tokens, tokens])
        del row.cache

    @torch.no_grad()
    def step(self) -> None:
        """Run the model on the newest token of every row. This gives each row new `logits`."""
        device = self._tokens.device
        positions = torch.tensor([[row.position - 1] for row in self.rows], device=device)
        outputs = self._model(
            input_ids=self._tokens,
            position_ids=positions,
            use_cache=True,
            full_length=False,
            prompt_length=0,  # all ids are tokens that the model wrote, also those of placeholders
            **{CACHE: self._cache},
        )
        for row, logits in zip(self.rows, outputs.logits[:, -1].split(1), strict=True):
            row.logits = logits

    @torch.no_grad()
    def keep(self, places: Sequence[int], tokens: Sequence[int] | None = None) -> None:
        """Go on with some of the rows.

        Args:
            places: the places of these rows, in ascending order.
            tokens: the newest token of each of these rows; `None` if they have no new one.
        """
        if not places:
            self.rows, self._cache, self._tokens = [], None, None
            return
        index = torch.tensor(places, device=self._tokens.device)
        self._tokens = self._tokens[index] if tokens is None else torch.tensor(tokens, device=index.device)[:, None]
        if len(places) < len(self.rows):
            self.rows = [self.rows[place] for place in places]
            select_rows(self._cache, index)


def join_caches(caches: Sequence[FlashVIDCache]) -> FlashVIDCache:
    """The cache of a batch whose rows are those of all these caches, in their order.

    Shorter rows are padded on the left, so that the next token of each stands in the same column. The caches stay as
    they are.
    """
    joined = FlashVIDCache()
    pruned = {cache.pruning_layer for cache in caches} - {None}
    assert len(pruned) <= 1, "requests cannot choose the pruning layer"
    joined.pruning_layer = next(iter(pruned), None)
    depth = len(caches[0])
    joined.lower_mask = _join_masks([_mask(cache, 0, cache.lower_mask) for cache in caches])
    joined.upper_mask = _join_masks([_mask(cache, depth - 1, cache.upper_mask) for cache in caches])
    for layer in range(depth):
        width = max(cache.num_cached(layer) for cache in caches)
        keys, values = (
            torch.cat([pad(tensor, (0, 0, width - tensor.shape[-2], 0)) for tensor in tensors])
            for tensors in zip(*((c.layers[layer].keys, c.layers[layer].values) for c in caches), strict=True)
        )
        joined.update(keys, values, layer)
    joined.num_dropped = max(cache.get_seq_length() for cache in caches) - joined.num_cached()
    joined.compressed = True
    return joined


def _mask(cache: FlashVIDCache, layer: int, mask: torch.Tensor | None) -> torch.Tensor:
    """Which columns of a layer are real, with shape (B, columns)."""
    if mask is not None:
        return mask
    keys = cache.layers[layer].keys
    return torch.ones(len(keys), keys.shape[-2], dtype=torch.bool, device=keys.device)


def _join_masks(masks: list[torch.Tensor]) -> torch.Tensor:
    width, device = max(mask.shape[1] for mask in masks), masks[0].device
    return torch.cat([pad(mask.to(device), (width - mask.shape[1], 0)) for mask in masks])


def select_rows(cache: FlashVIDCache, places: torch.Tensor) -> None:
    """Leave only some rows in a cache of `join_caches`, and no column that is padding in all of them."""
    cache.batch_select_indices(places)
    cuts = [_count_padding(mask) for mask in (cache.lower_mask, cache.upper_mask)]
    for number, layer in enumerate(cache.layers):
        cut = cuts[cache.pruning_layer is not None and number >= cache.pruning_layer]
        layer.keys, layer.values = layer.keys[..., cut:, :], layer.values[..., cut:, :]
    cache.lower_mask, cache.upper_mask = (
        None if mask is None or bool(mask[:, cut:].all()) else mask[:, cut:]
        for mask, cut in zip((cache.lower_mask, cache.upper_mask), cuts, strict=True)
    )


def _count_padding(mask: torch.Tensor | None) -> int:
    """How many of the first columns are padding in all rows."""
    return 0 if mask is None else int(mask.any(0).long().argmax())
