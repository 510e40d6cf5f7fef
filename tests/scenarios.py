"""The table of what callers do with a model.

`SCENARIOS` call `generate`, `CALLS` call the model itself, and `REFUSALS` are calls that a compressed prompt does not
support. If upstream's result is wrong, the reason is given beside the scenario. Other models in the process are in
`test_model.py`, upstream's models with compression installed in `test_drop_in.py`.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import transformers
from families import IMAGE, VIDEO, TinyFamily
from packaging.version import Version
from transformers import DynamicCache, LogitsProcessorList, StaticCache, StoppingCriteriaList, set_seed
from transformers.generation.streamers import BaseStreamer

from flashvid_hf.models.upstream import CACHE

# Grids in patches; 4 patches make a token.
SMALL, LARGE, WIDE, PICTURE = (2, 8, 4), (4, 8, 8), (3, 4, 8), (1, 8, 8)
STEPS = 6
OLD = Version(transformers.__version__) < Version("5.18")

ONE = [["text", LARGE, "text"]]
BATCH = [["text", LARGE, "text"], ["text", "text"], ["text", SMALL, "text"]]
SAME = [["text", LARGE, "text"], ["text", "text"], ["text", "text", LARGE]]
WITH_IMAGE = [["text", "image", PICTURE, "text", LARGE, "text"]]

Never = Callable[[TinyFamily], str | None]


def never(family: TinyFamily) -> None:
    """Gives no reason: no family is an exception."""


@dataclass
class Answer:
    """The result of `generate`: R returned sequences, V words of the vocabulary.

    Args:
        tokens: the new tokens, with shape (R, steps).
        logits: logits of every step, with shape (R, steps, V); `None` if rows do not belong to sequences (beams).
        scores: for beams the mean log-probability of each sequence, with shape (R,).
        states: for every step the last column of every hidden state and attention, if the scenario asks for them.
        prompt: the inputs that the answer continues, if they are not the given ones.
        query_index: the column that ranks the video tokens, if it is not the last one of the prompt.
    """

    tokens: torch.Tensor
    logits: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    states: list[list[torch.Tensor]] | None = None
    prompt: dict[str, Any] | None = None
    query_index: int | None = None


# Chooses the next token of a sequence from its logits (V,), the step, and the tokens to replay.
Choice = Callable[[torch.Tensor, int, torch.Tensor], int]


def allowed(logits: torch.Tensor) -> torch.Tensor:
    # Random weights may answer with a placeholder. Upstream, too, takes it for one of a video when it reads it again.
    logits = logits.clone()
    logits[..., [IMAGE, VIDEO]] = float("-inf")
    return logits


def greedy(logits: torch.Tensor, step: int, tokens: torch.Tensor) -> int:
    return int(allowed(logits).argmax())


def replayed(logits: torch.Tensor, step: int, tokens: torch.Tensor) -> int:
    """Replay the token, for sequences that a single sample cannot choose: beams, several samples."""
    return int(tokens[step])


def sampled(logits: torch.Tensor, step: int, tokens: torch.Tensor) -> int:
    if step == 0:
        set_seed(7)
    return int(torch.multinomial((allowed(logits) / 0.8).softmax(-1), 1))


def uncached(
    model: Any, inputs: dict[str, Any], choose: Choice, replay: torch.Tensor, query_index: int, states: bool = False
) -> Answer:
    """The answer to one prompt, from calls on the whole sequence without a cache."""
    inputs, tokens, rows, seen = dict(inputs), [], [], []
    for step in range(len(replay)):
        with torch.no_grad():
            outputs = model(
                **inputs,
                query_index=query_index,
                use_cache=False,
                output_hidden_states=states,
                output_attentions=states,
            )
        rows.append(outputs.logits[0, -1])
        if states:
            seen.append([s[0, -1] for s in outputs.hidden_states] + [a[0, :, -1] for a in outputs.attentions])
        tokens.append(choose(rows[-1], step, replay))
        token = torch.tensor([tokens[-1:]])
        if "input_ids" in inputs:
            inputs["input_ids"] = torch.cat([inputs["input_ids"], token], 1)
        if "inputs_embeds" in inputs:
            embeds = model.get_input_embeddings()(token)
            inputs["inputs_embeds"] = torch.cat([inputs["inputs_embeds"], embeds], 1)
        for name, value in (("attention_mask", 1), ("mm_token_type_ids", 0)):
            if name in inputs:
                inputs[name] = torch.nn.functional.pad(inputs[name], (0, 1), value=value)
    return Answer(torch.tensor([tokens]), torch.stack(rows)[None], states=seen if states else None)


# --- What callers do ---


def generate(model: Any, inputs: dict[str, Any], **kwargs: Any):
    settings = {"max_new_tokens": STEPS, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    settings["suppress_tokens"] = [IMAGE, VIDEO]
    return model.generate(**inputs, **{**settings, **kwargs})


def plain(model: Any, family: TinyFamily, inputs: dict[str, Any], **kwargs: Any) -> Answer:
    outputs = generate(model, inputs, **kwargs)
    prompt = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
    if getattr(outputs, "sequences_scores", None) is not None:
        return Answer(outputs.sequences[:, prompt:], scores=outputs.sequences_scores)
    return Answer(outputs.sequences[:, prompt:], torch.stack(outputs.logits, 1))


def with_settings(**settings: Any) -> Callable[..., Answer]:
    return partial(plain, **settings)


def positional(model, family, inputs, **kwargs):
    rest = {name: value for name, value in inputs.items() if name != "input_ids"}
    settings = {"max_new_tokens": STEPS, "do_sample": False, "suppress_tokens": [IMAGE, VIDEO], **kwargs}
    sequences = model.generate(inputs["input_ids"], **rest, **settings)
    return Answer(sequences[:, inputs["input_ids"].shape[1] :])


def seeded(model, family, inputs, **kwargs):
    set_seed(7)
    return plain(model, family, inputs, do_sample=True, temperature=0.8, top_k=0, **kwargs)


def beams(model, family, inputs, **kwargs):
    return plain(model, family, inputs, output_scores=True, num_beams=3, **kwargs)


class Collector(BaseStreamer):
    """A streamer that collects what it gets: the prompt, then every token."""

    def __init__(self):
        self.tokens, self.ended = [], False

    def put(self, value: torch.Tensor) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        self.ended = True


def streamed(model, family, inputs, **kwargs):
    streamer = Collector()
    answer = plain(model, family, inputs, streamer=streamer, **kwargs)
    assert streamer.ended
    return Answer(torch.tensor([streamer.tokens[inputs["input_ids"].shape[1] :]]), answer.logits)


def stopped(model, family, inputs, **kwargs):
    """After three tokens."""
    length = inputs["input_ids"].shape[1] + 3

    def is_done(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.full((len(ids),), ids.shape[1] >= length)

    answer = plain(model, family, inputs, stopping_criteria=StoppingCriteriaList([is_done]), **kwargs)
    assert answer.tokens.shape[1] == 3
    return answer


def lowest(logits: torch.Tensor, step: int, tokens: torch.Tensor) -> int:
    return greedy(-logits, step, tokens)


def processed(model, family, inputs, **kwargs):
    """With a logits processor that makes the least likely token the most likely."""
    processors = LogitsProcessorList([lambda ids, scores: scores.where(scores.isinf(), -scores)])
    return plain(model, family, inputs, logits_processor=processors, **kwargs)


def with_scores(model, family, inputs, **kwargs):
    outputs = generate(model, inputs, output_scores=True, **kwargs)
    scores, logits = torch.stack(outputs.scores, 1), torch.stack(outputs.logits, 1)
    assert torch.equal(scores, allowed(logits))
    return Answer(outputs.sequences[:, -STEPS:], logits)


def with_states(model, family, inputs, **kwargs):
    model.set_attn_implementation("eager")
    outputs = generate(model, inputs, output_hidden_states=True, output_attentions=True, **kwargs)
    steps = zip(outputs.hidden_states, outputs.attentions, strict=True)
    states = [[s[0, -1] for s in hidden] + [a[0, :, -1] for a in attentions] for hidden, attentions in steps]
    return Answer(outputs.sequences[:, -STEPS:], torch.stack(outputs.logits, 1), states=states)


def after_a_video(model, family, inputs, **kwargs):
    """An earlier call must leave no state."""
    plain(model, family, family.inputs(*ONE))
    return plain(model, family, inputs, **kwargs)


def assisted(model, family, inputs, **kwargs):
    """With the model's own first four layers as the assistant."""
    assistant = copy.deepcopy(model)
    text = assistant.config.text_config
    assistant.model.language_model.layers = assistant.model.language_model.layers[:4]
    text.num_hidden_layers = 4
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:4]
    return plain(model, family, inputs, assistant_model=assistant, **kwargs)


def encoded(model, family, inputs, **kwargs):
    """With videos that are encoded before. Upstream takes them from transformers 5.18 on."""
    if OLD and not hasattr(model.config, "retention_ratio"):
        return plain(model, family, inputs, **kwargs)
    names = [name for name in ("pixel_values_videos", "video_grid_thw") if name in inputs]
    with torch.no_grad():
        video = model.model.get_video_features(**{name: inputs[name] for name in names}, return_dict=True)
    rest = {name: value for name, value in inputs.items() if name != "pixel_values_videos"}
    return plain(model, family, rest, mm_encoder_outputs={"video": video}, **kwargs)


def embeddings(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    return model.get_input_embeddings()(inputs["input_ids"]).detach()


def ids_and_embeddings(model, family, inputs, **kwargs):
    return plain(model, family, inputs, inputs_embeds=embeddings(model, inputs), **kwargs)


def only_embeddings(model, family, inputs, **kwargs):
    """Without token ids. The Qwen families, like upstream, then give every column the position of a text token."""
    prompt = {name: value for name, value in inputs.items() if name not in ("input_ids", "mm_token_type_ids")}
    prompt["inputs_embeds"] = embeddings(model, inputs)
    answer = plain(model, family, prompt, **kwargs)
    return replace(answer, prompt=prompt)


def conversation(model, family, inputs, turn: Sequence[Any], **kwargs):
    """A second turn on the cache of the first. It has the pixels of its own media only, but the grids of both turns."""
    more = family.inputs(turn, seed=50)
    first = generate(model, inputs)
    ids = torch.cat([first.sequences, more["input_ids"].expand(len(first.sequences), -1)], 1)
    grown = ids.shape[1] - inputs["input_ids"].shape[1]
    whole = {"input_ids": ids, "attention_mask": torch.nn.functional.pad(inputs["attention_mask"], (0, grown), value=1)}
    if "mm_token_type_ids" in inputs:
        whole["mm_token_type_ids"] = (ids == IMAGE) + 2 * (ids == VIDEO)
    following = dict(whole)
    for name in {**inputs, **more}.keys() - whole.keys():
        values = [given[name] for given in (inputs, more) if name in given]
        whole[name] = torch.cat(values) if isinstance(values[0], torch.Tensor) else sum(values, [])
        is_grid = name.endswith("_thw") or name == "second_per_grid_ts"
        if name in more or is_grid:
            following[name] = whole[name] if is_grid else more[name]
    answer = plain(model, family, following, **{CACHE: first[CACHE]}, **kwargs)
    # The last column of the turn that brings a video ranks its tokens.
    has_video = "pixel_values_videos" in more
    query = ids.shape[1] if has_video else inputs["input_ids"].shape[1]
    return Answer(answer.tokens, answer.logits, prompt=whole, query_index=query - 1)


def then(*turn: Any) -> Callable[..., Answer]:
    return partial(conversation, turn=turn)


def old_qwen_positions(family: TinyFamily) -> str | None:
    if OLD and family.name.startswith("qwen"):
        return "transformers 5.17 counts the columns of a later turn's images and videos on as if they were text"
    return None


@dataclass(frozen=True)
class Scenario:
    """Something that callers do with `generate`.

    Args:
        prompts: parts of every prompt, see `families.TinyFamily`.
        run: runs the scenario, with our model or upstream's.
        choose: chooses the next token of one sequence.
        settings: settings of the configuration.
        upstream_is_wrong: why upstream's result is not that of one long prompt, so that only ratio 1.0 is compared.
        needs_cache: whether the scenario is impossible without a cache.
        states: whether hidden states and attentions are compared.
        on_accelerator: whether the scenario is meant for an accelerator; elsewhere stand-ins replace its streams.
    """

    name: str
    prompts: list[list[Any]]
    run: Callable[..., Answer] = plain
    choose: Choice = greedy
    settings: dict[str, Any] = field(default_factory=dict)
    upstream_is_wrong: Never = never
    needs_cache: bool = False
    states: bool = False
    on_accelerator: bool = False


NO_INNER = {"llm_retention_ratio": 1.0}  # one column cannot rank the videos of two turns

SCENARIOS = (
    # Prompts.
    Scenario("text", [["text", "text"], ["text"]]),
    Scenario("image", [["text", "image", PICTURE, "text"], ["image", (1, 4, 8), "text", "text"]]),
    Scenario("two images", [["image", PICTURE, "text", "image", PICTURE, "text"]]),
    Scenario("video", ONE),
    Scenario("videos of different length", [["text", LARGE, "text"], ["text", SMALL, "text"]]),
    Scenario("text beside videos", BATCH),
    Scenario("image and video", [*WITH_IMAGE, [SMALL, "image", (1, 4, 8), "text"]]),
    Scenario("several videos", [["text", SMALL, "text", WIDE, "text"], ["text", LARGE, "text"]]),
    Scenario("videos side by side", [["text", SMALL, WIDE, "text"], [WIDE, "text", SMALL]]),
    Scenario("interleaved turns", [["text", SMALL, "text", "image", PICTURE, "text", WIDE, "text", "text"]]),
    Scenario("video first", [[LARGE, "text"], [SMALL, "text", "text"]]),
    Scenario("video last", [["text", LARGE], ["text", SMALL]]),
    Scenario("nothing but a video", [[LARGE]]),
    Scenario("image beside video beside text", [*WITH_IMAGE, ["text", "image", PICTURE], ["text"], [SMALL, "text"]]),
    Scenario("positional ids", ONE, positional),
    Scenario("ids and embeddings", SAME, ids_and_embeddings),
    Scenario("embeddings", ONE, only_embeddings, needs_cache=True),
    Scenario(
        "embeddings, beams",
        ONE,
        partial(only_embeddings, num_beams=3, output_scores=True),
        replayed,
        needs_cache=True,
    ),
    Scenario("encoded videos", SAME, encoded),
    # Decoding.
    Scenario("sampling", ONE, seeded, sampled),
    Scenario("several samples", ONE, partial(seeded, num_return_sequences=3), replayed),
    Scenario("sampling in a batch", [["text", LARGE, "text"], ["text", SMALL, "text"]], seeded, replayed),
    Scenario("beams", BATCH, beams, replayed),
    Scenario("beams, several videos", [["text", SMALL, "text", WIDE, "text"], *WITH_IMAGE], beams, replayed),
    Scenario("several beams", BATCH[::2], partial(beams, num_return_sequences=2), replayed),
    Scenario(
        "prompt lookup",
        ONE,
        with_settings(prompt_lookup_num_tokens=3, max_matching_ngram_size=1),
        needs_cache=True,
    ),
    Scenario("assistant model", ONE, assisted, needs_cache=True),
    Scenario("assistant model, image and video", WITH_IMAGE, assisted, needs_cache=True),
    Scenario("streaming", ONE, streamed),
    Scenario("stopping criteria", BATCH, stopped),
    Scenario("logits processor", BATCH, processed, lowest),
    Scenario("scores", BATCH, with_scores),
    Scenario("text after a video", [["text", "text"]], after_a_video),
    Scenario("pruning before the last layer", BATCH, settings={"pruning_layer": 5}),
    Scenario("hidden states and attentions", ONE, with_states, states=True),
    Scenario("dynamic cache by name", BATCH, with_settings(cache_implementation="dynamic"), needs_cache=True),
    Scenario(
        "offloaded cache",
        BATCH,
        with_settings(cache_implementation="offloaded"),
        needs_cache=True,
        on_accelerator=True,
    ),
    # A second turn on the returned cache.
    Scenario("text on a text", [["text", "text"]], then("text"), needs_cache=True),
    Scenario("text on a video", ONE, then("text"), needs_cache=True),
    Scenario("text on a padded batch", BATCH, then("text", "text"), needs_cache=True),
    Scenario("text on an image", [["image", PICTURE, "text"]], then("text"), needs_cache=True),
    Scenario(
        "video on a text",
        [["text", "text"]],
        then("text", LARGE, "text"),
        upstream_is_wrong=old_qwen_positions,
        needs_cache=True,
    ),
    Scenario(
        "video on an image",
        [["text", "image", PICTURE]],
        then("text", LARGE, "text"),
        upstream_is_wrong=old_qwen_positions,
        needs_cache=True,
    ),
    Scenario(
        "image on a video",
        ONE,
        then("image", PICTURE, "text"),
        upstream_is_wrong=old_qwen_positions,
        needs_cache=True,
    ),
)


# --- Calls of the model itself ---


def forward(model, family, inputs, **kwargs):
    """Logits of the real rows of every sample."""
    outputs = model(**inputs, **kwargs)
    return by_sample(outputs, inputs, outputs.logits)


def by_sample(outputs: Any, inputs: dict[str, Any], tensor: torch.Tensor) -> list[torch.Tensor]:
    index = getattr(outputs, "token_index", None)
    mask = inputs.get("attention_mask", torch.ones(tensor.shape[:2]))
    real = mask.bool() if index is None else index >= 0
    return [rows[which] for rows, which in zip(tensor, real, strict=True)]


def forward_positionally(model, family, inputs):
    rest = {name: value for name, value in inputs.items() if name != "input_ids"}
    return by_sample(outputs := model(inputs["input_ids"], **rest), inputs, outputs.logits)


def forward_without(*names: str):
    def run(model, family, inputs):
        return forward(model, family, {name: value for name, value in inputs.items() if name not in names})

    return run


def forward_with_positions(model, family, inputs):
    return forward(model, family, {**inputs, "position_ids": family.positions(model, inputs)})


def forward_embeddings(model, family, inputs):
    given = {name: value for name, value in inputs.items() if name != "input_ids"}
    given["inputs_embeds"] = embeddings(model, inputs)
    return forward(model, family, {**given, "position_ids": family.positions(model, inputs)})


def forward_as_tuple(model, family, inputs):
    logits = model(**inputs, return_dict=False)[0]
    return [logits[0]]


def forward_with_states(model, family, inputs):
    model.set_attn_implementation("eager")
    outputs = model(**inputs, output_hidden_states=True, output_attentions=True)
    return [outputs.logits[0], *(s[0] for s in outputs.hidden_states), *(a[0] for a in outputs.attentions)]


def forward_loss(model, family, inputs):
    """The loss over all text except the first token, which a padding row would predict."""
    mask = inputs["attention_mask"]
    unseen = (inputs["input_ids"] == VIDEO) | (mask == 0) | (mask.cumsum(-1) == 1)
    return [model(**inputs, labels=inputs["input_ids"].masked_fill(unseen, -100)).loss[None]]


def loss_of_rows(model, family, singles):
    """The same loss, from the logits of every sample alone."""
    losses = []
    cross_entropy = torch.nn.functional.cross_entropy
    for inputs in singles:
        outputs = model(**inputs, use_cache=False)
        index = getattr(outputs, "token_index", None)
        columns = torch.arange(inputs["input_ids"].shape[1]) if index is None else index[0]
        next_ids = inputs["input_ids"][0, columns][1:]
        counts = next_ids != VIDEO
        losses.append(cross_entropy(outputs.logits[0, :-1][counts], next_ids[counts], reduction="none"))
    return [torch.cat(losses).mean()[None]]


def forward_in_two_calls(model, family, inputs):
    """The last three columns on the cache of the others. The last column of the first call ranks the tokens.

    The second call has no mask: with one, upstream's Qwen families would compute its positions for all columns.
    """
    total = inputs["input_ids"].shape[1]
    per_column = ("input_ids", "attention_mask", "mm_token_type_ids")
    first = {name: value[:, : total - 3] if name in per_column else value for name, value in inputs.items()}
    cache = model(**first, use_cache=True)[CACHE]
    return [model(inputs["input_ids"][:, -3:], **{CACHE: cache}).logits[0]]


def last_rows_of_one_call(model, family, singles):
    (inputs,) = singles
    return [model(**inputs, query_index=inputs["input_ids"].shape[1] - 4, use_cache=False).logits[0, -3:]]


def forward_two_videos_in_two_calls(model, family, inputs):
    """The second video on the cache of the first, with given positions."""
    ids = inputs["input_ids"]
    split = ids.shape[1] // 2  # both halves of the prompt have the same parts
    positions = family.positions(model, inputs)
    parts = []
    for turn, columns in enumerate((slice(None, split), slice(split, None))):
        part = {"input_ids": ids[:, columns], "attention_mask": inputs["attention_mask"][:, : columns.stop]}
        if positions is not None:
            part["position_ids"] = positions[..., columns]
        for name in ("video_grid_thw", "pixel_values_videos", "second_per_grid_ts"):
            if name in inputs:
                part[name] = inputs[name].chunk(2)[turn]
        if "mm_token_type_ids" in inputs:
            part["mm_token_type_ids"] = inputs["mm_token_type_ids"][:, columns]
        parts.append(part)
    cache = model(**parts[0], use_cache=True)[CACHE]
    return [model(**parts[1], **{CACHE: cache}).logits[0]]


def rows_of_the_second_video(model, family, singles):
    (inputs,) = singles
    outputs = model(**inputs, use_cache=False)
    index = getattr(outputs, "token_index", None)
    split = inputs["input_ids"].shape[1] // 2
    return [outputs.logits[0, split:] if index is None else outputs.logits[0, index[0] >= split]]


def alone(model, family, singles):
    return [rows for inputs in singles for rows in forward(model, family, inputs, use_cache=False)]


def alone_with_states(model, family, singles):
    (inputs,) = singles
    outputs = model(**inputs, output_hidden_states=True, output_attentions=True, use_cache=False)
    # Pruning removes columns. Every row of attention over the columns that are left is a distribution.
    return [outputs.logits[0], *(s[0] for s in outputs.hidden_states), *(a[0] for a in outputs.attentions)]


@dataclass(frozen=True)
class Call:
    """Something that callers do with `forward`.

    Args:
        run: gives tensors, which are equal for our model at ratio 1.0 and for upstream's.
        reference: gives the same tensors from calls on every sample alone, without a cache.
        padding_side: side on which the batch is padded.
    """

    name: str
    prompts: list[list[Any]]
    run: Callable[..., list[torch.Tensor]] = forward
    reference: Callable[..., list[torch.Tensor]] = alone
    padding_side: str = "left"
    settings: dict[str, Any] = field(default_factory=dict)


CALLS = (
    Call("left padding", BATCH),
    Call("right padding", BATCH, padding_side="right"),
    Call("right padding, image and video", [*WITH_IMAGE, [SMALL, "text"]], padding_side="right"),
    Call("no mask", ONE, forward_without("attention_mask")),
    Call("no mask, image and video", WITH_IMAGE, forward_without("attention_mask")),
    Call("positional ids", ONE, forward_positionally),
    Call("given positions", ONE, forward_with_positions),
    Call("embeddings", ONE, forward_embeddings),
    Call("tuple", ONE, forward_as_tuple),
    Call("with a cache", BATCH, partial(forward, use_cache=True)),
    Call("in two calls on a cache", ONE, forward_in_two_calls, last_rows_of_one_call),
    Call(
        "a video in each of two calls",
        [["text", LARGE, "text", "text", LARGE, "text"]],
        forward_two_videos_in_two_calls,
        rows_of_the_second_video,
        settings=NO_INNER,
    ),
    Call("loss, left padding", SAME, forward_loss, loss_of_rows),
    Call("loss, right padding", SAME, forward_loss, loss_of_rows, padding_side="right"),
    Call("loss, text", [["text", "text"], ["text"]], forward_loss, loss_of_rows, padding_side="right"),
    Call("hidden states and attentions", ONE, forward_with_states, alone_with_states),
)


# --- What a compressed prompt cannot do ---


def refused(**settings: Any) -> Callable[..., Any]:
    return lambda model, family, inputs: generate(model, inputs, **settings)


def foreign_cache(make: Callable[[Any], Any], call: Callable[..., Any]) -> Callable[..., Any]:
    return lambda model, family, inputs: call(model, inputs, **{CACHE: make(model)})


def upstream_assistant(model, family, inputs):
    return generate(model, inputs, assistant_model=family.upstream(family.model()))


def sliding_window(model, family, inputs):
    model.config.text_config.sliding_window = 8
    model.config.text_config.layer_types = ["full_attention"] * 5 + ["sliding_attention"]
    return model(**inputs)


def static(model: Any) -> StaticCache:
    return StaticCache(config=model.config, max_cache_len=99)


def dynamic(model: Any) -> DynamicCache:
    return DynamicCache(config=model.config)


def call(model: Any, inputs: dict[str, Any], **kwargs: Any):
    return model(**inputs, **kwargs)


# The call with one video, the beginning of the message, and whether the error comes before anything is encoded.
REFUSALS = {
    "static cache by name": (refused(cache_implementation="static"), "`cache_implementation` is 'static'", True),
    "quantized cache": (refused(cache_implementation="quantized"), "`cache_implementation` is 'quantized'", True),
    "chunked prefill": (refused(prefill_chunk_size=8), "`prefill_chunk_size` is 8", True),
    "static cache": (foreign_cache(static, generate), f"`{CACHE}` is a `StaticCache`", True),
    "foreign cache": (foreign_cache(dynamic, generate), f"`{CACHE}` is a `DynamicCache`", True),
    "static cache, forward": (foreign_cache(static, call), f"`{CACHE}` is a `StaticCache`", True),
    "foreign cache, forward": (foreign_cache(dynamic, call), f"`{CACHE}` is a `DynamicCache`", True),
    "upstream's model as the assistant": (upstream_assistant, "`assistant_model` is a `", True),
    "pruning before the first layer": (refused(pruning_layer=0), "`pruning_layer` is 0", True),
    "sliding-window layers": (sliding_window, "`layer_types`.*sliding", False),
}
