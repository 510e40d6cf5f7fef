"""Random changes to requests for `serve`: each gets an answer, or an error in OpenAI's form that blames the request.
Random answers that come and go: each gets the logits that it gets alone.

A test run takes the same few examples each time; `make fuzz` takes new ones until its time is over (`fuzz.py`).
"""

import copy
import functools
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from checkpoints import build_flashvid_folder, once
from hypothesis import given
from hypothesis import strategies as st
from server_requests import CHAT, RESPONSES, TEMPLATE_END, bodies, find, places
from starlette.testclient import TestClient
from test_fuzz import damage, damages, examples
from test_serving_engine import config_of, load

from flashvid_hf.serving.app import ServedModel, build_app
from flashvid_hf.serving.request_limits import RequestLimits
from flashvid_hf.serving.rows import Row, Rows

TIME_LIMIT = 60  # seconds for a request that takes a tenth of one
MODEL = "model"
numbers = st.integers() | st.floats() | st.sampled_from([0, -1, 2**31, 2**63, -(2**63), 2**64, 10**400, 1e300, 1e-300])
texts = st.text() | st.sampled_from(
    ["auto", "text", "user", "video", "function", "http://127.0.0.1:1/", "data:,", "{}"]
)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)
# What is done, at which of the places of the body (a number that is taken modulo their number), and with what.
changes = st.tuples(
    st.sampled_from(["replace", "remove", "rename", "repeat", "wrap", "add", "move"]),
    st.integers(0, 10**6),
    st.integers(0, 10**6),
    values,
)


def change(body: dict[str, Any], kind: str, number: int, other: int, value: Any) -> None:
    found = list(places(body))
    if not found:
        return
    path, other_path = found[number % len(found)], found[other % len(found)]
    owner, key = find(body, path[:-1]), path[-1]
    if kind == "replace":
        owner[key] = value
    elif kind == "remove":
        del owner[key]
    elif kind == "rename" and isinstance(owner, dict):
        owner[str(other_path[-1])] = owner.pop(key)
    elif kind == "repeat":
        owner[key] = [copy.deepcopy(owner[key]) for _ in range(other % 4)]
    elif kind == "wrap":
        owner[key] = {str(other_path[-1]): owner[key]}
    elif kind == "add" and isinstance(owner[key], dict):
        owner[key][str(other_path[-1])] = value
    elif kind == "move":
        owner[key] = copy.deepcopy(find(body, other_path))


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    folder = once(tmp_path_factory, "pipeline-qwen2_5_vl", lambda folder: build_flashvid_folder(folder, "qwen2_5_vl"))
    loaded = ServedModel.load(str(folder), device="cpu")
    loaded.processor.chat_template += TEMPLATE_END
    served = ServedModel(MODEL, loaded.model, loaded.processor)
    app = build_app(served, num_frames=4, request_limits=RequestLimits(max_new_tokens=2, max_frames=64))
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
        yield client


def check_reply(client: TestClient, address: str, content: bytes) -> int:
    """Send a request, and return the status of the reply."""
    with ThreadPoolExecutor(1) as thread:
        reply = thread.submit(client.post, address, content=content).result(TIME_LIMIT)
    assert reply.status_code == 200 or 400 <= reply.status_code < 500, reply.text
    if reply.status_code != 200:
        error = reply.json()["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
        assert isinstance(error["message"], str) and len(reply.text) < 2500
    return reply.status_code


@examples(max_examples=40)
@given(address=st.sampled_from([CHAT, RESPONSES]), chosen=st.lists(changes, min_size=1, max_size=4))
def test_changed_requests(client, address, chosen):
    body = bodies(MODEL)[address]
    for of_change in chosen:
        change(body, *of_change)
    check_reply(client, address, json.dumps(body).encode())


@examples(max_examples=20)
@given(address=st.sampled_from([CHAT, RESPONSES]), harm=st.lists(damages, min_size=1, max_size=3))
def test_damaged_bodies(client, address, harm):
    content = json.dumps(bodies(MODEL)[address], ensure_ascii=False).encode()
    for of_harm in harm:
        content = damage(content, *of_harm)
    check_reply(client, address, content)


@examples(max_examples=20)
@given(address=st.sampled_from([CHAT, RESPONSES]), settings=st.dictionaries(texts, values, max_size=4), data=st.data())
def test_settings_of_the_generation(client, address, settings, data):
    names = ["do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "eta_cutoff", "epsilon_cutoff"]
    names += ["repetition_penalty", "no_repeat_ngram_size", "eos_token_id", "suppress_tokens", "bad_words_ids"]
    names += ["begin_suppress_tokens", "min_length", "min_new_tokens", "max_length", "stop_strings", "num_beams"]
    names += ["pad_token_id", "bos_token_id", "renormalize_logits", "remove_invalid_values", "max_time", "use_cache"]
    sane = st.one_of(numbers, st.booleans(), st.lists(st.integers(0, 300)), st.lists(st.lists(st.integers(0, 300))))
    chosen = data.draw(st.dictionaries(st.sampled_from(names), sane | values, max_size=4))
    config = json.dumps({"max_new_tokens": 2, **settings, **chosen})
    texts_of = {CHAT: {"messages": [{"role": "user", "content": "Hi"}]}, RESPONSES: {"input": "Hi"}}
    check_reply(client, address, json.dumps({**texts_of[address], "generation_config": config}).encode())


def test_the_original_requests_are_answered(client):
    for address, body in bodies(MODEL).items():
        assert check_reply(client, address, json.dumps(body).encode()) == 200


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    found = load(tmp_path_factory, "qwen2_5_vl")

    @functools.cache
    def logits_alone(number: int, num_steps: int) -> torch.Tensor:
        rows = Rows(found.model)
        join(found, rows, number)
        for _ in range(num_steps):
            step(rows)
        rows.step()
        return rows.rows[0].logits

    found.logits_alone = logits_alone
    return found


def join(loaded, rows: Rows, number: int) -> None:
    """Let the answer to a question run with the others."""
    row = Row(loaded.model, loaded.inputs(number), config_of(loaded))
    row.position += 1  # as `choose` does
    rows.add(row, 17)


def step(rows: Rows) -> None:
    rows.step()
    for row in rows.rows:
        row.position += 1
    rows.keep(range(len(rows.rows)), [7] * len(rows.rows))


# Two texts and a video: few kinds, so that rows of one length meet often.
events = st.tuples(st.sampled_from(["join", "join", "leave", "step"]), st.sampled_from([1, 4, 2]))


@examples(max_examples=15)
@given(chosen=st.lists(events, min_size=6, max_size=12))
def test_rows_come_and_go(loaded, chosen):
    rows, there = Rows(loaded.model), []  # the question and the number of steps of each row
    for event, number in [*chosen, ("join", 1)]:
        if event == "join":
            join(loaded, rows, number)
            there.append((number, 0))
        elif event == "leave" and there:
            there.pop(number % len(there))
            place = number % (len(there) + 1)
            rows.keep([other for other in range(len(there) + 1) if other != place])
        elif event == "step" and there:
            step(rows)
            there = [(question, steps + 1) for question, steps in there]
    rows.step()
    expected = torch.cat([loaded.logits_alone(*row) for row in there])
    torch.testing.assert_close(torch.cat([row.logits for row in rows.rows]), expected, rtol=1e-4, atol=1e-5)
