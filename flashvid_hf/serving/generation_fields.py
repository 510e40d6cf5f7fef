"""`generation_config` of a request: transformers' settings of the generation, as JSON in a string."""

from typing import Any

from transformers import GenerationConfig

from .bodies import parse_body
from .kinds import FLAG, TEXT, Either, FieldError, Items, Kind, Value, integer, number, show, show_name, wrong
from .rows import SHARED_SETTINGS

_SHARE = number("a number from 0 to 1", lambda value: 0 <= value <= 1)
_COUNT = integer(0, 2**31)
_TOKENS = Items("a list of tokens", _COUNT)
_TOKENS_OR_ONE = Either("a token, or a list of tokens", {int: _COUNT, list: _TOKENS})


def _are_stops(value: Any) -> bool:
    return all(isinstance(text, str) and text for text in (value if isinstance(value, list) else [value]))


STOPS = Value("a text, or a list of texts, that end the answer", _are_stops)
# Settings that an answer may have for itself. Those of `SHARED_SETTINGS` are checked with the answer.
_SETTINGS: dict[str, Kind] = {
    "bad_words_ids": Items("a list of lists of tokens", _TOKENS),
    "begin_suppress_tokens": _TOKENS,
    "bos_token_id": _COUNT,
    "do_sample": FLAG,
    "eos_token_id": _TOKENS_OR_ONE,
    "epsilon_cutoff": _SHARE,
    "eta_cutoff": _SHARE,
    "max_length": integer(1),
    "max_new_tokens": integer(1),
    "max_time": number("a number > 0", lambda value: value > 0),
    "min_length": _COUNT,
    "min_new_tokens": _COUNT,
    "min_p": _SHARE,
    "no_repeat_ngram_size": _COUNT,
    "pad_token_id": _COUNT,
    "remove_invalid_values": FLAG,
    "renormalize_logits": FLAG,
    "repetition_penalty": number("a number > 0", lambda value: value > 0),
    "stop_strings": STOPS,
    "suppress_tokens": _TOKENS,
    "temperature": number("a number > 0", lambda value: value > 0),
    "top_k": _COUNT,
    "top_p": _SHARE,
    "typical_p": _SHARE,
}


def check_generation_config(text: str) -> dict[str, Any]:
    """The settings in `generation_config`.

    Raises:
        FieldError: it is no JSON of an object, or a setting is unknown or has a value of a wrong kind.
    """
    TEXT.check("generation_config", text)
    try:
        settings = parse_body(text.encode(), max_depth=3)
    except ValueError:
        raise wrong("generation_config", text, "the JSON of an object, as a string") from None
    defaults = GenerationConfig().to_dict()
    for name, value in settings.items():
        if name in SHARED_SETTINGS or (name in defaults and _same(value, defaults[name])):
            continue
        if name not in _SETTINGS:
            raise FieldError(
                "generation_config",
                f"`generation_config` has `{show_name(name)}` = {show(value)}, which this server cannot do. It takes "
                f"{', '.join(_SETTINGS)}. Leave it out.",
            )
        _SETTINGS[name].check(f"generation_config.{name}", value)
    return settings


def _same(value: Any, default: Any) -> bool:
    return type(value) is type(default) and value == default
