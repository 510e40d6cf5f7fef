"""What a request to `serve` may say: each wrong value is refused by the name of its field, and nothing is a fault."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from checkpoints import build_flashvid_folder, once
from server_requests import CHAT, FRAMES, PICTURE, RESPONSES, TEMPLATE_END, bodies, find, places, replace
from starlette.testclient import TestClient

from flashvid_hf.serving.app import ServedModel, build_app
from flashvid_hf.serving.bodies import parse_body
from flashvid_hf.serving.fields import check_fields
from flashvid_hf.serving.kinds import FieldError, show
from flashvid_hf.serving.message_fields import check_messages
from flashvid_hf.serving.request_limits import RequestLimits
from flashvid_hf.serving.requests import RequestReader
from flashvid_hf.video.sources import label_of

# Of each type of JSON some values, among them those that Python and C programs stumble over.
VALUES = [None, True, False, 0, -1, 2, 2**63, 10**30, math.inf, math.nan, 0.5, "", "x", "\ud800", [], [1], [None]]
VALUES += [{}, {"a": 1}, [[]], [{}]]
# Where another value may be right, and the types that it may have. In all other places no value of `VALUES` is.
FREE: dict[str, tuple[type, ...]] = {
    "chat_template_kwargs": (dict,),
    "chat_template_kwargs.enable_thinking": (bool, int, float, str, list, dict),
    "chat_template_kwargs.num_frames": (int,),
    "content": (str, list),
    "frequency_penalty": (int, float),
    "functions": (list,),
    "id": (str,),
    "include": (list,),
    "input": (str,),
    "instructions": (str,),
    "logit_bias": (dict,),
    "logit_bias.3": (int, float),
    "logprobs": (bool,),
    "background": (bool,),
    "max_output_tokens": (int,),
    "max_tokens": (int,),
    "metadata": (dict,),
    "metadata.a": (bool, int, float, str, list, dict),
    "name": (str,),
    "call_id": (str,),
    "n": (),
    "output": (str, list),
    "parallel_tool_calls": (bool,),
    "presence_penalty": (int,),
    "prompt_cache_key": (str,),
    "reasoning": (dict,),
    "retention_ratio": (float,),
    "safety_identifier": (str,),
    "seed": (int,),
    "stop": (str, list),
    "stop.0": (str,),
    "store": (bool,),
    "stream": (bool,),
    "stream_options": (dict,),
    "stream_options.include_usage": (bool,),
    "summary": (list,),
    "annotations": (bool, int, float, str, list, dict),
    "temperature": (int, float),
    "text": (str, dict),
    "tool_call_id": (str,),
    "tool_calls": (list,),
    "tools": (list,),
    "tools.0.function": (),
    "top_logprobs": (int,),
    "top_p": (float,),
    "user": (str,),
    "arguments": (dict,),
    "description": (str,),
    "parameters": (dict,),
    "properties": (bool, int, float, str, list, dict),
    "parameters.type": (bool, int, float, str, list, dict),
    "strict": (bool,),
    "nframes": (int,),
    "fps": (int, float),
    "max_pixels": (),
    "video_metadata": (dict,),
    "video_metadata.fps": (int, float),
    "reasoning_content": (str,),
    "content.0.type": (str,),
}


def types_allowed(path: tuple[Any, ...]) -> tuple[type, ...]:
    """The types of the longest end of the path that `FREE` knows."""
    for start in range(len(path)):
        if (end := ".".join(map(str, path[start:]))) in FREE:
            return FREE[end]
    return ()


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> ServedModel:
    folder = once(tmp_path_factory, "pipeline-qwen2_5_vl", lambda folder: build_flashvid_folder(folder, "qwen2_5_vl"))
    served = ServedModel.load(str(folder), device="cpu")
    served.processor.chat_template += TEMPLATE_END
    return served


@pytest.fixture(scope="module")
def client(served):
    app = build_app(served, num_frames=4, request_limits=RequestLimits(max_new_tokens=2))
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
        yield client


def ask(client: TestClient, body: Any, address: str = CHAT) -> SimpleNamespace:
    """The status, the error, and the text of a reply."""
    reply = client.post(address, content=body if isinstance(body, bytes) else json.dumps(body))
    error = reply.json()["error"] if reply.status_code >= 400 else {}
    if error:
        assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
        assert len(reply.text) < 1500  # it does not echo the body
    return SimpleNamespace(status=reply.status_code, error=error, text=reply.text)


def test_every_field_at_once_is_answered(client, served):
    for address, body in bodies(served.name).items():
        assert ask(client, body, address).status == 200
        assert ask(client, {**body, "stream": True}, address).status == 200


FIELDS = [(address, name) for address, body in bodies("m").items() for name in body]


@pytest.mark.parametrize("address, field", FIELDS, ids=lambda part: part.rpartition("/")[2])
def test_wrong_values_name_their_field(client, served, address, field):
    body = bodies(served.name)[address]
    for path in places(body):
        if path[0] != field:
            continue
        for value in VALUES:
            reply = ask(client, replace(body, path, value), address)
            if reply.status == 200:
                assert value is None or isinstance(value, types_allowed(path)), (path, value)
                if isinstance(value, bool):
                    assert bool in types_allowed(path), (path, value)
            else:
                assert reply.status in (400, 422), (path, value, reply.text)
                assert reply.error["param"].startswith(field), (path, value, reply.text)
