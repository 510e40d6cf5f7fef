"""The fields of a request besides its messages: each is honoured, changes nothing, or is refused by name.

transformers only warns of most fields that it does not honour, once and in the server's log.
"""

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

# Fields of OpenAI's chat completions and responses, and of this server, that change the answer as they say.
_HONOURED = {
    "chat_template_kwargs",
    "frequency_penalty",
    "generation_config",
    "input",
    "instructions",
    "logit_bias",
    "max_completion_tokens",
    "max_output_tokens",
    "max_tokens",
    "messages",
    "model",
    "retention_ratio",
    "seed",
    "stop",
    "stream",
    "temperature",
    "tools",
    "top_p",
}
# Fields that describe the client or its request, and never change an answer.
_LABELS = {
    "metadata",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
    "user",
}
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
    # A stream always ends with its usage, and is never padded.
    "stream_options": ({}, {"include_usage": True}, {"include_obfuscation": False}),
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


def check_fields(body: Mapping[str, Any], takes_tools: bool) -> dict[str, Any]:
    """The request without the fields that change nothing.

    Args:
        body: a request whose names were checked.
        takes_tools: whether the model's chat template writes tools into the prompt.

    Raises:
        ValueError: a field asks for what the server does not do, or a sampling setting is out of its range.
    """
    fields = {name: value for name, value in body.items() if value is not None and name not in _LABELS}
    for name in sorted(fields.keys() - _HONOURED):
        value = fields.pop(name)
        if _without_none(value) not in _NEUTRAL.get(name, ()):
            step = _NEXT_STEPS.get(name, "")
            raise ValueError(f"`{name}` is {value!r:.100}, which this server does not do. {step or 'Leave it out.'}")
    if not fields.get("tools", True):
        del fields["tools"]
    if "tools" in fields and not takes_tools:
        raise ValueError(
            f"`tools` is {fields['tools']!r:.100}, and the model's chat template has no place for tools. Describe the "
            "tools in a message."
        )
    if "max_completion_tokens" in fields:  # transformers honours it from 5.20 on; the other name is the older one
        fields["max_tokens"] = fields.pop("max_completion_tokens")
    _check_sampling(fields)
    return fields


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_none(content) for name, content in value.items() if content is not None}
    return value


def _check_sampling(fields: dict[str, Any]) -> None:
    temperature, top_p, seed = (fields.get(name) for name in ("temperature", "top_p", "seed"))
    if temperature is not None and not (_is(Real, temperature) and temperature >= 0):
        raise ValueError(f"`temperature` is {temperature!r:.100}: it must be a number >= 0; 0 is greedy.")
    if top_p is not None and not (_is(Real, top_p) and 0 < top_p <= 1):
        raise ValueError(f"`top_p` is {top_p!r:.100}: it must be a number above 0, at most 1.")
    if seed is not None and not (_is(Integral, seed) and -(2**63) <= seed < 2**63):
        raise ValueError(f"`seed` is {seed!r:.100}: it must be an integer of at most 64 bits.")
    stop = fields.get("stop")
    stops = [stop] if isinstance(stop, str) else stop
    if stop is not None and not (isinstance(stops, list) and all(isinstance(text, str) and text for text in stops)):
        raise ValueError(f"`stop` is {stop!r:.100}: it must be a text, or a list of texts, that end the answer.")
    if stop == []:
        del fields["stop"]


def _is(kind: type, value: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
