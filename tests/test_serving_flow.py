"""Requests to `serve` that wait, go away, are too many, or fail: each is answered, and the others do not notice."""

import asyncio
import json
import re
import threading
from typing import Any

import pytest
from checkpoints import build_flashvid_folder, once
from serving_client import CHAT, RESPONSES, Client, metrics, question, run, text_of, until, until_idle, until_running

from flashvid_hf.serving import engine as engines
from flashvid_hf.serving import flow as flows
from flashvid_hf.serving.app import ServedModel
from flashvid_hf.serving.requests import RequestReader
from flashvid_hf.serving.rows import Rows


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> ServedModel:
    folder = once(tmp_path_factory, "pipeline-qwen2_5_vl", lambda folder: build_flashvid_folder(folder, "qwen2_5_vl"))
    return ServedModel.load(str(folder), device="cpu")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, RESPONSES])
def test_the_answer_of_a_client_that_goes_away_ends(served, path, stream):
    async def test(app: Any) -> None:
        client = Client(app)
        body = question(served, "Tell a long story.", max_tokens=3000, stream=stream)
        if path == RESPONSES:
            body = {"model": served.name, "input": "Tell a long story.", "max_output_tokens": 3000, "stream": stream}
        call = client.post(body, path)
        while not (await metrics(client))["flashvid_num_requests_running"] or (stream and call.chunks < 3):
            await asyncio.sleep(0.002)
        call.go_away()
        await call.done
        found = await until_idle(client)
        assert found["flashvid_generation_tokens_total"] < 2000
        assert found[f'flashvid_requests_total{{status="{200 if stream else 499}"}}'] == 1

    run(served, test)


def test_a_waiting_request_whose_client_goes_away_is_not_computed(served):
    async def test(app: Any) -> None:
        client = Client(app)
        first = client.post(question(served, max_tokens=3000))
        await until_running(client)
        waiting = [client.post(question(served), stream=stream) for stream in (False, True)]
        while (await metrics(client))["flashvid_num_requests_waiting"] < 2:
            await asyncio.sleep(0.002)
        for call in waiting:
            call.go_away()
            await call.done
        before = (await metrics(client))["flashvid_prompt_tokens_total"]
        first.go_away()
        assert (await until_idle(client))["flashvid_prompt_tokens_total"] == before
        assert (await client.post(question(served)).done).status == 200

    run(served, test, max_num_seqs=1)


def test_answers_beside_others_have_the_text_of_those_alone(served):
    texts = ["What happens?", "Why?", "Tell a long story about it. " * 5, "Who is it, and where?"]
    asked = [
        question(served, text, max_tokens=length, stream=stream)
        for text, length in zip(texts, (9, 25, 14, 18), strict=True)
        for stream in (False, True)
    ]

    async def test(app: Any) -> None:
        client = Client(app)
        alone = [text_of(await client.post(body).done) for body in asked]
        before = await metrics(client)
        together = [text_of(await call.done) for call in [client.post(body) for body in asked]]
        after = await metrics(client)
        assert together == alone and alone[::2] == alone[1::2] and len(set(alone)) == 4
        tokens, steps = "flashvid_generation_tokens_total", 'flashvid_steps_total{kind="writing tokens"}'
        assert after[tokens] == 2 * before[tokens]
        assert after[steps] - before[steps] < before[steps] / 2  # they did share steps

    run(served, test)


def test_a_full_server_puts_requests_off(served):
    async def test(app: Any) -> None:
        client = Client(app)
        inside = [client.post(question(served, max_tokens=3000)) for _ in range(3)]
        await until_running(client)
        refused = await client.post(question(served)).done
        assert refused.status == 429 and 1 <= int(refused.headers["retry-after"]) <= 60
        error = json.loads(refused.text)["error"]
        assert error["type"] == "rate_limit_error" and "`--max-queue`" in error["message"]
        # A client with fewer requests gets the place of the other's newest one.
        other = await Client(app, "127.0.0.2").post(question(served)).done
        assert other.status == 200
        assert [call.done.done() for call in inside] == [False, False, True]
        assert (await inside[2].done).status == 429
        for call in inside:
            call.go_away()

    run(served, test, max_num_seqs=2, max_queue=1)


def test_many_requests_of_one_client_do_not_keep_out_another(served):
    async def test(app: Any) -> None:
        greedy, modest = Client(app), Client(app, "127.0.0.2")
        flood = [greedy.post(question(served, max_tokens=50)) for _ in range(8)]
        await until_running(greedy)
        answers = [await modest.post(question(served)).done for _ in range(3)]
        assert [answer.status for answer in answers] == [200] * 3
        assert sum(not call.done.done() for call in flood) >= 4  # the flood has not simply ended before
        for call in flood:
            call.go_away()
        statuses = [(await call.done).status for call in flood]
        assert 429 in statuses

    run(served, test, max_num_seqs=2, max_queue=6)


def test_health_and_metrics_answer_while_the_model_is_stuck(served, monkeypatch):
    monkeypatch.setattr(engines, "_WATCH_SECONDS", 0.01)
    original, goes_on = Rows.step, threading.Event()

    def step(self: Rows) -> None:
        goes_on.wait(60)
        original(self)

    async def test(app: Any) -> None:
        client = Client(app)
        assert json.loads((await client.get("/health")).text) == {"status": "ok"}
        monkeypatch.setattr(Rows, "step", step)
        calls = [client.post(question(served), stream=stream) for stream in (False, True)]
        whole, streamed = [await call.done for call in calls]
        health = await client.get("/health")
        content = json.loads(health.text)
        assert health.status == 503 and "stuck" in content["reason"] and content["step_seconds"] >= 0.2
        assert whole.status == 503 and int(whole.headers["retry-after"]) >= 1
        # The stream had begun, or not. Both say what is wrong.
        assert streamed.status in (200, 503) and "The model is stuck" in streamed.text
        for line in filter(None, streamed.text.splitlines() if streamed.status == 200 else ()):
            json.loads(line.removeprefix("data: "))
        refused = await client.post(question(served)).done
        assert refused.status == 503 and json.loads(refused.text)["error"]["type"] == "server_error"
        goes_on.set()
        while (await client.get("/health")).status != 200:
            await asyncio.sleep(0.002)
        assert (await client.post(question(served)).done).status == 200

    run(served, test, step_timeout=0.2)


def test_a_failing_model_gets_an_error_in_the_form_of_the_api(served, monkeypatch):
    def step(self: Rows) -> None:
        raise RuntimeError('the "device" failed')

    async def test(app: Any) -> None:
        client = Client(app)
        with monkeypatch.context() as patch:
            patch.setattr(Rows, "step", step)
            whole = await client.post(question(served)).done
            streamed = await client.post(question(served), stream=True).done
        assert whole.status == 500 and "server's log" in json.loads(whole.text)["error"]["message"]
        last = streamed.text.strip().splitlines()[-1]
        assert "The server's log has the reason." in json.loads(last.removeprefix("data: "))["error"]
        assert (await client.post(question(served)).done).status == 200
        assert (await metrics(client))["flashvid_failures_total"] == 2

    run(served, test)


@pytest.mark.parametrize(
    "body, message",
    [
        (b"{", "The body is no JSON"),
        (b"[" * 100_000, "The body is no JSON"),
        (b"[" + b"1," * 300_000 + b"1]", "The body has 300,001 values"),
        (b"[1]", r"The body is \[1\]: it must be an object"),
        (b"\xff{}", "The body is no JSON"),
        (b"", "The body is no JSON"),
    ],
)
def test_bodies_that_are_no_requests_are_refused(served, body, message):
    async def test(app: Any) -> None:
        answer = await Client(app).post(body).done
        assert answer.status == 400
        error = json.loads(answer.text)["error"]
        assert re.match(message, error["message"]) and error["type"] == "invalid_request_error"
        assert len(error["message"]) < 400

    run(served, test)


def test_a_body_that_does_not_end_is_refused(served, monkeypatch):
    monkeypatch.setattr(flows, "_BODY_SECONDS", 0.05)

    async def test(app: Any) -> None:
        answer = await Client(app).post(question(served), missing=5).done
        assert answer.status == 408 and "not complete after" in json.loads(answer.text)["error"]["message"]
        await until_idle(Client(app))

    run(served, test)


def test_a_client_may_go_away_before_its_body_ends(served):
    async def test(app: Any) -> None:
        client = Client(app)
        call = client.post(question(served), missing=5)
        while not (await metrics(client))["flashvid_num_requests_waiting"]:
            await asyncio.sleep(0.002)
        call.go_away()
        await call.done
        assert (await until_idle(client))['flashvid_requests_total{status="499"}'] == 1

    run(served, test)


def test_large_bodies_wait_and_leave_room_for_small_ones_and_other_clients(served, monkeypatch):
    monkeypatch.setattr(flows, "_LARGE_BODIES", 3)
    monkeypatch.setattr(flows, "_LARGE_BODIES_PER_CLIENT", 2)
    large = flows._LARGE_BODY

    async def test(app: Any) -> None:
        greedy, modest = Client(app), Client(app, "127.0.0.2")
        slow = [greedy.post(question(served), missing=large) for _ in range(2)]
        waiting = greedy.post(question(served), missing=large)
        waiting.rest.set()
        assert (await greedy.post(question(served)).done).status == 200
        call = modest.post(question(served), missing=large)
        call.rest.set()
        assert (await call.done).status == 200
        assert not waiting.done.done() and waiting.rest.is_set()  # nothing of its body was read
        slow[0].go_away()
        slow[1].rest.set()
        assert [(await call.done).status for call in (slow[1], waiting)] == [200, 200]

    run(served, test)


def test_reading_runs_beside_the_event_loop(served, monkeypatch):
    goes_on, threads = threading.Event(), []
    original = RequestReader.read

    def read(self: RequestReader, *arguments: Any) -> Any:
        threads.append(threading.current_thread())
        goes_on.wait(60)
        return original(self, *arguments)

    async def test(app: Any) -> None:
        client = Client(app)
        monkeypatch.setattr(RequestReader, "read", read)
        calls = [client.post(question(served)) for _ in range(19)]
        await until(lambda: len(threads) == flows._PREPARATION_THREADS - 1)
        calls.append(Client(app, "127.0.0.2").post(question(served)))  # one client does not take all threads
        await until(lambda: len(threads) == flows._PREPARATION_THREADS)
        assert (await client.get("/health")).status == 200  # while all threads are busy
        assert (await client.get("/v1/models")).status == 200
        assert (await metrics(client))["flashvid_num_requests_waiting"] == 20
        goes_on.set()
        assert {(await call.done).status for call in calls} == {200}
        assert threading.main_thread() not in threads

    run(served, test)


def test_downloads_of_one_client_leave_threads_to_the_others(served, monkeypatch):
    goes_on, reading = threading.Event(), []
    original = RequestReader.read

    def read(self: RequestReader, body: dict[str, Any], *arguments: Any) -> Any:
        if self.has_downloads(body, "messages"):
            reading.append(body)
            goes_on.wait(60)
            raise ValueError("the video cannot be downloaded")
        return original(self, body, *arguments)

    async def test(app: Any) -> None:
        greedy, modest = Client(app), Client(app, "127.0.0.2")
        monkeypatch.setattr(RequestReader, "read", read)
        video = {"type": "video_url", "video_url": {"url": "http://slow.example/clip.mp4"}}
        body = {**question(served), "messages": [{"role": "user", "content": [video]}]}
        calls = [greedy.post(body) for _ in range(20)]
        await until(lambda: len(reading) == 4)
        assert (await greedy.post(question(served)).done).status == 200  # texts do not wait for downloads at all
        calls.append(modest.post(body))
        await until(lambda: len(reading) == 5)
        goes_on.set()
        assert {(await call.done).status for call in calls} == {400}

    run(served, test)


def test_metrics(served):
    async def test(app: Any) -> None:
        client = Client(app)
        ok = json.loads((await client.post(question(served)).done).text)["usage"]
        await client.post(question(served), n=2).done
        found = await metrics(client)
        assert found['flashvid_requests_total{status="200"}'] == found['flashvid_requests_total{status="400"}'] == 1
        assert found["flashvid_prompt_tokens_total"] == ok["prompt_tokens"]
        assert found["flashvid_generation_tokens_total"] == ok["completion_tokens"]
        assert found['flashvid_steps_total{kind="reading a prompt"}'] == 1
        assert found['flashvid_steps_total{kind="writing tokens"}'] == ok["completion_tokens"] - 1
        assert found["flashvid_e2e_request_latency_seconds_count"] == 2
        assert found["flashvid_e2e_request_latency_seconds_sum"] > 0

    run(served, test)
