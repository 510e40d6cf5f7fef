"""What a request to `serve` may say: each wrong value is refused by the name of its field, and nothing is a fault."""

import json
import logging
import math
import re
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from checkpoints import build_flashvid_folder, once
from server_requests import CHAT, FRAMES, PICTURE, TEMPLATE_END, bodies, places, replace
from starlette.testclient import TestClient

from flashvid_hf.serving.app import ServedModel, build_app
from flashvid_hf.serving.bodies import parse_body
from flashvid_hf.serving.fields import check_fields
from flashvid_hf.serving.kinds import FieldError, show
from flashvid_hf.serving.message_fields import check_messages
from flashvid_hf.serving.request_limits import RequestLimits
from flashvid_hf.serving.requests import RequestReader
from flashvid_hf.serving.server import serve
from flashvid_hf.video.sources import label_of

# Of each type of JSON some values, among them those that Python and C programs stumble over.
VALUES = [None, True, False, 0, -1, 2, 2**63, 10**30, math.inf, math.nan, 0.5, "", "x", "\ud800", [], [1], [None]]
VALUES += [{}, {"a": 1}, [[]], [{}]]
# For values inside others, of which there are many.
INNER_VALUES = [None, True, 2**63, math.inf, 0.5, "", "x", [None], {"a": 1}]
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
    "max_pixels": (int,),
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
    if field not in ("messages", "input", "tools"):  # a short text is answered sooner
        short = {"messages": [{"role": "user", "content": "Hi"}]} if address == CHAT else {"input": "Hi"}
        body = {"model": served.name, **short, field: body[field], "generation_config": '{"max_new_tokens": 1}'}
    answered = set()
    for path in places(body):
        for value in () if path[0] != field else VALUES if len(path) == 1 else INNER_VALUES:
            if (path, type(value)) in answered:  # another one of this type takes as long and says no more
                continue
            reply = ask(client, replace(body, path, value), address)
            if reply.status == 200:
                assert value is None or type(value) in types_allowed(path), (path, value)
                answered.add((path, type(value)))
            else:
                assert reply.status in (400, 422), (path, value, reply.text)
                assert reply.error["param"].startswith(field), (path, value, reply.text)


USER = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize(
    "body, message, param",
    [
        (b"", "The body is no JSON", None),
        (b"{", "The body is no JSON", None),
        (b"\xff{}", "The body is no JSON", None),
        (b"[1, 2, 3]", r"The body is \[1, 2, 3\]: it must be an object", None),
        (b"[" * 100_000, "The body is no JSON", None),
        (b"[" * 700 + b"]" * 700, r"The body is \[\[\[.*: it must be an object", None),
        (b'{"stop": ' + b"[" * 64 + b"]" * 64 + b"}", "`stop` has more than 64 objects and lists", "stop"),
        (b'{"seed": 1' + b"0" * 5000 + b"}", "The body is no JSON", None),
        (b'{"seed": 1' + b"0" * 50 + b"}", "`seed` has an integer of 167 bits", "seed"),
        (b'{"temperature": NaN}', "`temperature` has the number nan", "temperature"),
        (b'{"temperature": 1e400}', "`temperature` has the number inf", "temperature"),
        (b'{"metadata": {"a": [-Infinity]}}', "`metadata` has the number -inf", "metadata"),
        (b'{"seed": 1, "seed": 2}', "`seed` stands twice", "seed"),
        (b'{"messages": [{"role": "user", "role": "user"}]}', "`role` stands twice", "role"),
        (b'{"user": "\\ud800"}', "`user` has half a character", "user"),
        (b'{"\\ud800": 1}', "has half a character", "?"),
        (b'{"' + b"x" * 10**6 + b'": 1}', "Unexpected fields in the request: {'xxx", "x" * 60 + "..."),
    ],
)
def test_bodies_that_are_no_requests(client, body, message, param):
    reply = ask(client, body)
    assert reply.status in (400, 422) and reply.error["param"] == param
    assert re.search(message, reply.error["message"])


@pytest.mark.parametrize("path", ["/v1/models", "/v1/nothing"])
def test_errors_of_addresses_have_the_same_form(client, path):
    assert ask(client, {}, path).status in (404, 405)


def test_a_fault_of_the_server_has_the_form_of_an_error(client, served, monkeypatch):
    monkeypatch.setattr(RequestReader, "read", lambda *_: 1 / 0)
    reply = client.post(CHAT, json={"model": served.name, "messages": [USER]})
    assert reply.status_code == 500
    assert reply.json()["error"]["type"] == "server_error" and "division" not in reply.text


def check(**fields: Any) -> dict[str, Any]:
    """What `check_fields` makes of fields, with small limits."""
    limits = RequestLimits(max_new_tokens=9, max_stop_strings=2, max_stop_chars=3, max_logit_bias=1)
    return check_fields(fields, True, limits)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"max_tokens": 10}, r"`max_tokens`: 10 tokens, .* at most 9 \(`--max-new-tokens`\). Ask for fewer"),
        ({"max_completion_tokens": 10}, "`max_completion_tokens`: 10 tokens"),
        ({"max_output_tokens": 10}, "`max_output_tokens`: 10 tokens"),
        ({"generation_config": '{"max_new_tokens": 10}'}, "`generation_config.max_new_tokens`: 10 tokens"),
        ({"generation_config": '{"stop_strings": ["1234"]}'}, "stop_strings`: 4 characters in a text"),
        ({"generation_config": '{"assistant_model": 1}'}, "`generation_config` has `assistant_model` = 1, which"),
        ({"generation_config": '{"top_k": "x"}'}, "`generation_config.top_k` is 'x'"),
        ({"generation_config": "[]"}, "`generation_config` is .*: it must be the JSON of an object, as a string"),
        ({"generation_config": '{"num_beams": ' + "[" * 500 + "]" * 500 + "}"}, "it must be the JSON of an object"),
        ({"stop": ["a", "b", "c"]}, r"`stop`: 3 texts, .* at most 2 \(`--max-stop-strings`\)"),
        ({"stop": "abcd"}, r"`stop`: 4 characters in a text, .* at most 3 \(`--max-stop-chars`\)"),
        ({"logit_bias": {"1": 1, "2": 1}}, r"`logit_bias`: 2 tokens, .* at most 1 \(`--max-logit-bias`\)"),
        ({"logit_bias": {"x": 1}}, "`logit_bias` is .*: it must be an object that maps numbers of tokens"),
        ({"logit_bias": {"\u00b2": 1}}, "`logit_bias` is "),
        ({"logit_bias": {"1": 101}}, "`logit_bias` is "),
        ({"logit_bias": {"1": True}}, "`logit_bias` is "),
        ({"max_tokens": 2, "max_completion_tokens": 3}, "both say how long the answer may be: give one"),
        ({"n": True}, "`n` is True"),
        ({"logprobs": 0}, "`logprobs` is 0"),
    ],
)
def test_limits_and_kinds_of_fields(fields, message):
    with pytest.raises(FieldError, match=message):
        check(**fields)


def test_fields_within_the_limits():
    assert check(logit_bias={"3": -100}) == {"logit_bias": {"3": -100.0}}
    assert isinstance(check(logit_bias={"3": -100})["logit_bias"]["3"], float)  # transformers takes no integers
    assert check(max_tokens=9, max_completion_tokens=9, stop=["abc", "d"]) == {"max_tokens": 9, "stop": ["abc", "d"]}
    assert check(logit_bias={}, tools=[], stop=[]) == {}
    assert check(generation_config='{"num_beams": 1, "temperature": null, "top_k": 3}')


@pytest.mark.parametrize(
    "body, message",
    [
        ({"messages": []}, r"`messages` is \[\]: it must be a list of at least one message"),
        ({"messages": [USER] * 4}, r"`messages`: 4 messages, .* at most 3 \(`--max-messages`\)"),
        ({"messages": [{"role": "user", "content": "x" * 101}]}, r"`messages`: 116 characters.*`--max-prompt-chars`"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x" * 101}]}]}, "characters"),
        ({"messages": [USER], "tools": [{"type": "function", "name": "x" * 100}]}, "characters"),
        ({"messages": [USER], "chat_template_kwargs": {"a": "x" * 100}}, "characters"),
        ({"input": "x" * 101}, "`input`: 101 characters"),
        ({"input": "x", "instructions": "x" * 100}, "`input`: 101 characters"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "image": PICTURE}] * 3}]},
            r"`messages`: 3 videos and images, .* at most 2 \(`--max-media`\)",
        ),
        ({"input": [{"type": "input_image", "image_url": PICTURE}] * 3}, "`input`: 3 videos and images"),
        ({"input": [{"role": "system", "content": "x"}], "instructions": "y"}, "`instructions` and the system message"),
        ({"input": [{"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"}]}, "a message, before"),
        ({"messages": [{"role": "User", "content": ""}]}, r"`messages\[0\].role` is 'User': it must be one of system"),
        ({"messages": [{"role": "user"}]}, r"`messages\[0\].content` is None: it must be a string, or a list of parts"),
        ({"messages": [{**USER, "colour": "red"}]}, r"`messages\[0\].colour` is 'red': no such field is known"),
        ({"messages": [USER], "tools": [{"type": "function"}]}, r"`tools\[0\]` is .*: it must be an object with"),
    ],
)
def test_limits_and_kinds_of_messages(body, message):
    limits = RequestLimits(max_messages=3, max_media=2, max_prompt_chars=100)
    with pytest.raises(FieldError, match=message):
        check_messages(body, "messages" if "messages" in body else "input", limits)


def test_media_are_no_characters_of_the_prompt():
    content = [{"type": "image", "image": PICTURE}, {"type": "text", "text": "x" * 60}]
    body = {"messages": [{"role": "user", "content": content}]}
    check_messages(body, "messages", RequestLimits(max_prompt_chars=100))


@pytest.mark.parametrize("kind", ["text", "image"])
def test_a_prompt_is_not_longer_than_the_context(client, served, kind, monkeypatch):
    monkeypatch.setattr(served.model.config.get_text_config(), "max_position_embeddings", 30)
    content: Any = "word " * 40 if kind == "text" else [{"type": "image", "image": PICTURE, "min_pixels": 10**5}]
    reply = ask(client, {"model": served.name, "messages": [{"role": "user", "content": content}]})
    assert reply.error["param"] == "messages" and "besides those of videos" in reply.error["message"]
    content = [{"type": "video", "video": FRAMES, "min_pixels": 10**5}]
    assert ask(client, {"model": served.name, "messages": [{"role": "user", "content": content}]}).status == 200


def test_a_long_text_is_refused_before_it_is_tokenized(client, served, monkeypatch):
    monkeypatch.setattr(type(served.processor), "apply_chat_template", lambda *_, **__: pytest.fail("tokenized"))
    reply = ask(client, {"model": served.name, "messages": [{"role": "user", "content": "a" * (2**21 + 1)}]})
    assert reply.status == 400 and reply.error["param"] == "messages"


def test_integers_of_logit_bias_are_honoured(client, served):
    def answer(**fields: Any) -> str:
        body = {"model": served.name, "messages": [USER], "temperature": 0, "max_tokens": 1, **fields}
        return client.post(CHAT, json=body).json()["choices"][0]["message"]["content"]

    (token,) = served.processor.tokenizer("7", add_special_tokens=False)["input_ids"]
    assert answer() != "7" and answer(logit_bias={str(token): 100}) == answer(logit_bias={str(token): 100.0}) == "7"
    unknown = {"logit_bias": {"999999": 1}, "messages": [USER]}
    assert "the model has" in ask(client, unknown).error["message"]


@pytest.mark.parametrize("name, value", [("tokenize", False), ("colour", 1), ("messages", []), ("bos_token", "x")])
def test_variables_that_the_template_lacks_are_refused(client, name, value):
    reply = ask(client, {"messages": [USER], "chat_template_kwargs": {name: value}})
    assert reply.status == 400 and reply.error["param"] == f"chat_template_kwargs.{name}"
    assert ask(client, {"messages": [USER], "chat_template_kwargs": {"enable_thinking": True}}).status == 200


def test_a_template_that_fails_on_the_messages(client, served, monkeypatch):
    monkeypatch.setattr(served.processor, "chat_template", "{{ messages[0].content + 1 }}")
    reply = ask(client, {"messages": [USER]})
    assert reply.status == 400 and "chat template cannot write the messages" in reply.error["message"]


def test_users_in_urls_are_not_shown(client, capfd):
    url = "http://me:secret@127.0.0.1:9/clip.mp4"
    long = f"http://me:secret{'x' * 4000}@127.0.0.1/"
    parts = [{"type": "video", "video": url}, {"type": "image_url", "image_url": {"url": url}}]
    parts += [{"type": "video", "video": long}, {"type": "image", "image": long}, {"type": "video", "video": [url]}]
    parts += [
        {"type": "image", "image": url.replace("http", "ftp")},
        {"type": "image", "image": PICTURE, "detail": url},
    ]
    for part in parts:
        reply = ask(client, {"messages": [{"role": "user", "content": [part]}]})
        assert reply.status == 400 and "secret" not in reply.text
    odd = [
        "http:/me:secret@h/x",
        "http:me:secret@h/x",
        "http:\\\\me:secret@h/x",
        "me:secret@h/x",
        "http://me:secret?@h/x",
    ]
    odd += ["http://me:secret#@h/x", "https://me:secret\n@h/", "http:/\n/me:secret@h/", "http://me:secret\uff20h/"]
    for address in odd:
        reply = ask(client, {"messages": [{"role": "user", "content": [{"type": "video", "video": address}]}]})
        assert reply.status == 400 and "secret" not in reply.text, reply.text
    assert "secret" not in ask(client, {"messages": [USER], url: 1}).text
    assert "secret" not in ask(client, {"messages": [USER], "chat_template_kwargs": {url: 1}}).text
    for name in ("model", "seed", "user_", "stop"):
        assert "secret" not in ask(client, {"messages": [USER], name: [{"a": url}]}).text
    assert "secret" not in "".join(capfd.readouterr())
    assert label_of(url) == "'http://...@127.0.0.1:9/clip.mp4'"
    assert show({"a": [url]}) == "{'a': ['http://...@127.0.0.1:9/clip.mp4']}"
    assert label_of("/a@b/c.mp4") == "'/a@b/c.mp4'" and label_of("https://h/@me") == "'https://h/@me'"


def test_lines_about_requests_have_no_secrets(monkeypatch):
    found = []
    monkeypatch.setattr("uvicorn.run", lambda *_, log_config, **__: found.append(log_config))
    monkeypatch.setattr("flashvid_hf.serving.app.build_app", lambda *_, **__: None)
    monkeypatch.setattr(ServedModel, "load", lambda *_, **__: None)
    monkeypatch.setattr(sys, "setswitchinterval", lambda _: None)
    serve("model")
    (config,) = found
    (name,) = config["handlers"]["access"]["filters"]
    log_filter = config["filters"][name]["()"]()
    for path in ("/v1/models?x=http://me:secret@h/x", "/http://me:secret@h/x", f"/{'x' * 2**16}@{'x' * 2**16}"):
        arguments = ("127.0.0.1:1", "GET", path, "1.1", 200)
        record = logging.LogRecord("uvicorn.access", logging.INFO, "", 0, '%s - "%s %s HTTP/%s" %d', arguments, None)
        assert log_filter.filter(record) and "secret" not in record.getMessage()


def test_bodies_are_parsed_quickly_enough_to_be_refused():
    with pytest.raises(FieldError, match="`a` stands twice"):
        parse_body(b"{" + b",".join(b'"a":1' for _ in range(10**5)) + b"}", 64)
