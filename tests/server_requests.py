"""Requests to `serve` with every field that it honours or ignores, and ways to change them."""

import base64
import copy
import io
from collections.abc import Iterator
from typing import Any

from PIL import Image

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"


def _picture(colour: str) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (28, 28), colour).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


PICTURE = _picture("red")
FRAMES = [PICTURE, _picture("green"), _picture("blue")]
_CALL = {"name": "f", "arguments": '{"a": 1}'}
_TOOL = {"name": "f", "description": "Does it.", "parameters": {"type": "object", "properties": {}}, "strict": True}
# A chat template with tools and a variable, as of many models.
TEMPLATE_END = "{% if tools %}{{ tools | tojson }}{% endif %}{% if enable_thinking %}<think>{% endif %}"
_COMMON = {
    "temperature": 0,
    "top_p": 1,
    "seed": 1,
    "stream": False,
    "top_logprobs": 0,
    "user": "me",
    "metadata": {"a": "b"},
    "chat_template_kwargs": {"num_frames": 2, "enable_thinking": True},
    "retention_ratio": 0.5,
    "parallel_tool_calls": True,
    "service_tier": "auto",
    "store": False,
    "safety_identifier": "s",
    "prompt_cache_key": "k",
    "tool_choice": "auto",
    "generation_config": '{"max_new_tokens": 2, "top_k": 3}',
}


def bodies(model: str) -> dict[str, dict[str, Any]]:
    """A request to each address."""
    chat = {
        "model": model,
        "messages": [
            {"role": "system", "content": "Be brief.", "name": "n"},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What?"},
                    {"type": "video_url", "video_url": {"url": FRAMES, "nframes": 2}},
                    {"type": "video", "video": FRAMES, "fps": 1, "video_metadata": {"fps": 1}},
                    {"type": "image_url", "image_url": {"url": PICTURE, "detail": "auto"}},
                    {"type": "image", "image": PICTURE, "max_pixels": 3136},
                ],
            },
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "1", "type": "function", "function": _CALL}],
            },
            {"role": "tool", "tool_call_id": "1", "content": "3"},
            {"role": "user", "content": "And?"},
        ],
        "tools": [{"type": "function", "function": _TOOL}],
        "max_tokens": 2,
        "stop": ["x"],
        "stream_options": {"include_usage": True},
        "response_format": {"type": "text"},
        "logit_bias": {"3": -100},
        "frequency_penalty": 0.1,
        "presence_penalty": 0,
        "n": 1,
        "logprobs": False,
        "modalities": ["text"],
        "functions": [],
        "function_call": "auto",
        "verbosity": "medium",
        **_COMMON,
    }
    responses = {
        "model": model,
        "instructions": "Be brief.",
        "input": [
            {
                "type": "message",
                "role": "user",
                "content": [{"type": "input_text", "text": "What?"}, {"type": "input_image", "image_url": PICTURE}],
            },
            {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Well."}], "summary": []},
            {"type": "function_call", "call_id": "1", **_CALL},
            {"type": "function_call_output", "call_id": "1", "output": "3"},
            {"role": "assistant", "content": [{"type": "output_text", "text": "Three.", "annotations": []}]},
            {"role": "user", "content": "And?"},
        ],
        "tools": [{"type": "function", **_TOOL}],
        "max_output_tokens": 2,
        "text": {"format": {"type": "text"}},
        "reasoning": {"effort": None},
        "include": [],
        "truncation": "disabled",
        "background": False,
        **_COMMON,
    }
    return copy.deepcopy({CHAT: chat, RESPONSES: responses})


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values inside a value."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, content in entries:
        yield (*path, key)
        yield from places(content, (*path, key))


def find(body: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        body = body[key]
    return body


def replace(body: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """A request with another value in one place."""
    body = copy.deepcopy(body)
    find(body, path[:-1])[path[-1]] = value
    return body
