"""The fields of a request besides its messages: each is honoured, changes nothing, or is refused by name.

transformers only warns of most fields that it does not honour, once and in the server's log.
"""

from collections.abc import Mapping
from typing import Any

from .generation_fields import STOPS, check_generation_config
from .kinds import (
    FLAG,
    LABEL,
    LIST,
    OBJECT,
    TEXT,
    FieldError,
    Kind,
    Record,
    Value,
    integer,
    is_integer,
    is_number,
    number,
    show,
    show_name,
)
from .request_limits import DEFAULT_REQUEST_LIMITS, RequestLimits


def _is_bias(value: Any) -> bool:
    return isinstance(value, dict) and all(
        key.isascii() and key.isdigit() and len(key) < 10 and is_number(number) and abs(number) <= 100
        for key, number in value.items()
    )


# Fields of OpenAI's chat completions and responses, and of this server, that change the answer as they say.
_HONOURED: dict[str, Kind] = {
    "chat_template_kwargs": OBJECT,
    "frequency_penalty": number("a number above -1, at most 2", lambda value: -1 < value <= 2),
    "generation_config": TEXT,
    "input": LABEL,  # `message_fields.py` checks it, and `messages` and `tools`
    "instructions": TEXT,
    "logit_bias": Value("an object that maps numbers of tokens to numbers from -100 to 100", _is_bias),
    "max_completion_tokens": integer(1),
    "max_output_tokens": integer(1),
    "max_tokens": integer(1),
    "messages": LABEL,
    "model": TEXT,
    "retention_ratio": number("a number above 0, at most 1", lambda value: 0 < value <= 1),
    "seed": Value("an integer of at most 64 bits", lambda value: is_integer(value) and -(2**63) <= value < 2**63),
    "stop": STOPS,
    "stream": FLAG,
    # Of a chat; the last event of responses always has the usage. Streams are never padded.
    "stream_options": Record(
        "an object", {"include_usage": FLAG, "include_obfuscation": Value("false", lambda value: value is False)}
    ),
    "temperature": number("a number >= 0; 0 is greedy", lambda value: value >= 0),
    "tools": LIST,
    "top_p": number("a number above 0, at most 1", lambda value: 0 < value <= 1),
}
# Fields that describe the client or its request, and never change an answer.
_LABELS: dict[str, Kind] = {
    "metadata": OBJECT,
    "prompt_cache_key": TEXT,
    "prompt_cache_options": OBJECT,
    "prompt_cache_retention": TEXT,
    "safety_identifier": TEXT,
    "user": TEXT,
}
# The limits of an answer's tokens, all under the name that transformers' handler of chat completions honours.
_TOKEN_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
# Values of all other fields that ask for what the server does anyway. Any other value is refused.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "background": (False,),
    "function_call": ("auto", "none"),
    "functions": ([],),
    "include": ([],),
    "logprobs": (False,),
    "modalities": (["text"],),
    "n": (1,),
    "parallel_tool_calls": (True,),
    "presence_penalty": (0,),
    "reasoning": ({},),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "text": ({}, {"format": {"type": "text"}}),
    "tool_choice": ("auto", "none"),
    "top_logprobs": (0,),
    "truncation": ("disabled",),
    "verbosity": ("medium",),
}
_NEXT_STEPS = {
    "audio": "The model answers in text.",
    "conversation": "Send the whole conversation.",
    "functions": "Describe the functions in a message.",
    "max_tool_calls": "Describe the tools in a message.",
    "modalities": "The model answers in text.",
    "n": "Send the request as often as you want answers, with a different `seed` each.",
    "presence_penalty": "`frequency_penalty` is honoured, as transformers' repetition penalty.",
    "previous_response_id": "Send the whole conversation.",
    "response_format": "Ask for the format in a message.",
    "store": "Nothing is stored. Send the whole conversation with every request.",
    "text": "Ask for the format in a message.",
    "tool_choice": "Name the tool in a message.",
}


def check_names(body: Mapping[str, Any], known: frozenset[str]) -> None:
    """Refuse fields that do not belong to the request.

    Raises:
        FieldError: a field is unknown; its status is 422, as of transformers' server.
    """
    for name in body:
        if name not in known:
            name = show_name(name)
            text = f"Unexpected fields in the request: {{{name!r}}}. Leave it out."
            raise FieldError(name, text, status=422)


def check_fields(
    body: Mapping[str, Any], takes_tools: bool, limits: RequestLimits = DEFAULT_REQUEST_LIMITS
) -> dict[str, Any]:
    """The request without the fields that change nothing.

    Args:
        body: a request whose names were checked.
        takes_tools: whether the model's chat template writes tools into the prompt.
        limits: how much the request may ask for.

    Raises:
        FieldError: a field asks for what the server does not do, has a value of a wrong kind, or exceeds a limit.
    """
    fields = {}
    for name, value in body.items():
        if value is None:
            continue
        if name in _LABELS:
            _LABELS[name].check(name, value)
        elif name in _HONOURED:
            _HONOURED[name].check(name, value)
            fields[name] = value
        elif not any(_is_same(_without_none(value), neutral) for neutral in _NEUTRAL.get(name, ())):
            step = _NEXT_STEPS.get(name, "")
            raise FieldError(
                name, f"`{name}` is {show(value)}, which this server does not do. {step or 'Leave it out.'}"
            )
    if not fields.get("tools", True):
        del fields["tools"]
    if "tools" in fields and not takes_tools:
        raise FieldError(
            "tools",
            f"`tools` is {show(fields['tools'])}, and the model's chat template has no place for tools. Describe the "
            "tools in a message.",
        )
    _check_generation(fields, limits)
    for name in ("stop", "logit_bias"):
        if not fields.get(name, True):
            del fields[name]
    if "logit_bias" in fields:  # transformers takes floats only
        fields["logit_bias"] = {token: float(bias) for token, bias in fields["logit_bias"].items()}
    if "max_completion_tokens" in fields:  # transformers honours it from 5.20 on; the other name is the older one
        fields["max_tokens"] = fields.pop("max_completion_tokens")
    return fields


def token_limit_of(fields: Mapping[str, Any]) -> tuple[str, int] | None:
    """The field that says how many tokens the answer may have, as the client wrote it, and its value.

    Args:
        fields: of a request that was checked, with the names of the client.
    """
    given = [(name, fields[name]) for name in _TOKEN_LIMITS if fields.get(name) is not None]
    if not given and fields.get("generation_config") is not None:
        settings = check_generation_config(fields["generation_config"])
        sizes = [name for name in ("max_new_tokens", "max_length") if settings.get(name) is not None]
        given = [(f"generation_config.{name}", settings[name]) for name in sizes]
    return given[0] if given else None


def _check_generation(fields: dict[str, Any], limits: RequestLimits) -> None:
    given = {name: fields[name] for name in _TOKEN_LIMITS if name in fields}
    if len(set(given.values())) > 1:
        names = " and ".join(f"`{name}` ({value})" for name, value in given.items())
        raise FieldError(next(iter(given)), f"{names} both say how long the answer may be: give one.")
    stops = {"stop": fields.get("stop", [])}
    if "generation_config" in fields:
        settings = check_generation_config(fields["generation_config"])
        sizes = {name: settings[name] for name in ("max_new_tokens", "max_length") if settings.get(name) is not None}
        given |= {f"generation_config.{name}": value for name, value in sizes.items()}
        stops["generation_config.stop_strings"] = settings.get("stop_strings") or []
    for name, value in given.items():
        limits.check("max_new_tokens", value, name, "tokens", "Ask for fewer.")
    for name, texts in stops.items():
        texts = [texts] if isinstance(texts, str) else texts
        limits.check("max_stop_strings", len(texts), name, "texts", "Leave some out.")
        longest = max(map(len, texts), default=0)
        limits.check("max_stop_chars", longest, name, "characters in a text", "Give shorter texts.")
    number = len(fields.get("logit_bias", ()))
    limits.check("max_logit_bias", number, "logit_bias", "tokens", "Leave some out.")


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_none(content) for name, content in value.items() if content is not None}
    return value


def _is_same(value: Any, other: Any) -> bool:
    """Whether two values are equal, and no boolean is taken for a number."""
    if isinstance(value, dict) and isinstance(other, dict):
        return value.keys() == other.keys() and all(_is_same(value[name], other[name]) for name in value)
    return isinstance(value, bool) == isinstance(other, bool) and value == other
