"""What the messages of a request may be: in chat completions, and as the input of responses.

Every part of a message is checked here but the media, whose sources and settings `RequestReader` reads.
"""

import json
from collections.abc import Iterator
from typing import Any

from .kinds import FLAG, LABEL, LIST, NAME, OBJECT, TEXT, Either, FieldError, Items, Record, Value, choice, wrong
from .request_limits import RequestLimits

# Types of the parts of a message, in OpenAI's chat completions and responses, and in those of transformers.
TEXT_TYPES = ("text", "input_text", "output_text")
MEDIA_TYPES = ("video_url", "image_url", "input_image", "video", "image")
_PART_TYPES = (*TEXT_TYPES, *MEDIA_TYPES)
_ROLES = choice("system", "developer", "user", "assistant", "tool", "function")
_MESSAGE = "an object with `role` and `content`"


def _is_json_object(value: Any) -> bool:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return False
    return isinstance(value, dict)


_ARGUMENTS = Value("an object, or the JSON of one", _is_json_object)
# Fields that clients get with an answer and send back. None of them enters the prompt.
_LABELS = {
    "id": LABEL,
    "status": LABEL,
    "phase": LABEL,
    "annotations": LABEL,
    "logprobs": LABEL,
    "cache_control": LABEL,
}


class _Part:
    """A part of a message."""

    words = f"an object with a `type`, one of {', '.join(_PART_TYPES)}"

    def check(self, path: str, value: Any) -> None:
        kind = value.get("type") if isinstance(value, dict) else None
        if kind is None:
            raise wrong(path, value, self.words)
        if not isinstance(kind, str) or kind not in _PART_TYPES:  # transformers would answer without the part
            raise wrong(f"{path}.type", kind, f"one of {', '.join(_PART_TYPES)}")
        if kind in TEXT_TYPES:
            TEXT.check(f"{path}.text", value.get("text"))
            _TEXT_PART.check(path, value)


_TEXT_PART = Record(
    "an object with `type` and `text`", {"type": choice(*TEXT_TYPES), "text": TEXT, **_LABELS}, ("type", "text")
)
_CONTENT = Either("a string, or a list of parts", {str: TEXT, list: Items("a list of parts", _Part())})
_FUNCTION = Record(
    "an object with `name` and `arguments`", {"name": NAME, "arguments": _ARGUMENTS}, ("name", "arguments")
)
_TOOL_CALL = Record(
    "an object with a `function`",
    {"id": TEXT, "type": choice("function"), "function": _FUNCTION, "index": LABEL},
    ("function",),
)
_MESSAGE_FIELDS = Record(
    _MESSAGE,
    {
        "role": _ROLES,
        "content": _CONTENT,
        "name": TEXT,
        "refusal": TEXT,
        "reasoning": LABEL,
        "reasoning_content": TEXT,
        "tool_calls": Items("a list of tool calls", _TOOL_CALL),
        "tool_call_id": TEXT,
        "type": choice("message"),
        **_LABELS,
    },
    ("role",),
)
_TEXTS = Either("a string, or a list of texts", {str: TEXT, list: Items("a list of texts", _TEXT_PART)})
_THOUGHT = Record("an object with a `text`", {"type": TEXT, "text": TEXT}, ("text",))
_CALL = {"type": TEXT, "call_id": NAME, "id": LABEL, "status": LABEL}
# Items of the input of responses that are no messages.
_ITEMS = {
    "function_call": Record(
        "an object with `call_id`, `name` and `arguments`",
        {**_CALL, "name": NAME, "arguments": _ARGUMENTS},
        ("call_id", "name", "arguments"),
    ),
    "function_call_output": Record(
        "an object with `call_id` and `output`", {**_CALL, "output": _TEXTS}, ("call_id", "output")
    ),
    "reasoning": Record(
        "an object",
        {
            "type": TEXT,
            "content": Items("a list of texts", _THOUGHT),
            "summary": LIST,
            "encrypted_content": LABEL,
            **_LABELS,
        },
    ),
}
_DESCRIPTION = {"name": NAME, "description": TEXT, "parameters": OBJECT, "strict": FLAG}
_TOOL = "an object with `type` and `function`"


class _Tool:
    """A tool; in responses its fields may stand beside its type."""

    words = _TOOL

    def check(self, path: str, value: Any) -> None:
        if isinstance(value, dict) and "function" in value:
            function = Record("an object with a `name`", _DESCRIPTION, ("name",))
            Record(_TOOL, {"type": choice("function"), "function": function}, ("type", "function")).check(path, value)
        else:
            Record(_TOOL, {"type": choice("function"), **_DESCRIPTION}, ("type", "name")).check(path, value)


TOOLS = Items("a list of tools", _Tool())


def check_messages(body: dict[str, Any], field: str, limits: RequestLimits) -> None:
    """Check the messages of a request, and how much it has of them.

    Args:
        body: the request.
        field: "messages" of chat completions, or "input" of responses, which may be a text.
        limits: how much it may have.

    Raises:
        FieldError: a message is invalid, or there are too many messages, media or characters.
    """
    messages = body.get(field)
    if not (isinstance(messages, str) and field == "input"):
        if not isinstance(messages, list) or not messages:
            raise wrong(field, messages, "a list of at least one message")
        limits.check("max_messages", len(messages), field, "messages", "Leave out the oldest.")
        _check_list(messages, field)
        number = sum(1 for _ in media_parts(messages))
        limits.check("max_media", number, field, "videos and images", "Send several requests.")
        if field == "input" and body.get("instructions") and messages[0].get("role") == "system":
            raise FieldError(
                "instructions", "`instructions` and the system message of `input` both instruct the model: give one."
            )
    if body.get("tools") is not None:
        TOOLS.check("tools", body["tools"])
    others = [body.get(name) for name in ("tools", "instructions", "chat_template_kwargs")]
    length = _count_message_characters(messages) + sum(map(_count_characters, others))
    limits.check("max_prompt_chars", length, field, "characters", "Send shorter texts.")


def _check_list(messages: list[Any], field: str) -> None:
    if field == "input" and isinstance(messages[0], dict) and "role" not in messages[0]:
        if str(messages[0].get("type")) in _ITEMS:
            raise wrong("input[0]", messages[0], "a message, before calls of tools and their results")
        Items("a list", _Part()).check(field, messages)  # the parts of one message
        return
    for place, message in enumerate(messages):
        path = f"{field}[{place}]"
        kind = message.get("type") if isinstance(message, dict) and "role" not in message else None
        if field == "input" and isinstance(kind, str) and kind in _ITEMS:
            _ITEMS[kind].check(path, message)
            continue
        _MESSAGE_FIELDS.check(path, message)
        if message.get("content") is None and message["role"] != "assistant":
            raise wrong(f"{path}.content", None, _CONTENT.words)


def media_parts(messages: Any) -> Iterator[dict[str, Any]]:
    """The videos and images among the parts of messages that were checked."""
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if "role" in message else None
        for part in [message, *(content if isinstance(content, list) else ())]:
            if "role" not in part and part.get("type") in MEDIA_TYPES:
                yield part


def _count_message_characters(messages: str | list[dict[str, Any]]) -> int:
    """The characters of all texts of messages, without media."""
    if isinstance(messages, str):
        return len(messages)
    media = {id(part) for part in media_parts(messages)}
    count = 0
    for message in messages:
        content = message.get("content")
        parts = [part for part in (content if isinstance(content, list) else [content]) if id(part) not in media]
        if id(message) not in media:
            count += _count_characters(parts) + _count_characters({**message, "content": None})
    return count


def _count_characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(len(name) + _count_characters(content) for name, content in value.items())
    return sum(map(_count_characters, value)) if isinstance(value, list) else 0
