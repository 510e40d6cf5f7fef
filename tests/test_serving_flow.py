"""Requests to `serve` that wait, go away, are too many, or fail: each is answered, and the others do not notice.

The application is called without a network, so that clients go away exactly when a test wants it.
"""

import asyncio
import json
import re
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from checkpoints import build_flashvid_folder, once

from flashvid_hf.serving import engine as engines
from flashvid_hf.serving import flow as flows
from flashvid_hf.serving.app import ServedModel, build_app
from flashvid_hf.serving.requests import RequestReader
from flashvid_hf.serving.rows import Rows
from flashvid_hf.serving.turns import Places, QueueFull, Visitors, Workers, client_of

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> ServedModel:
    folder = once(tmp_path_factory, "pipeline-qwen2_5_vl", lambda folder: build_flashvid_folder(folder, "qwen2_5_vl"))
    return ServedModel.load(str(folder), device="cpu")


class Client:
    """Calls an application as a web server does. `go_away` closes the connection of a request."""

    def __init__(self, app: Any, address: str = "127.0.0.1"):
        self.app, self.address = app, address

    def post(self, body: Any, path: str = CHAT, missing: int = 0, **fields: Any) -> SimpleNamespace:
        """A request that is being answered: `done` waits for the `status`, `headers` and `text`.

        So many bytes are `missing` from its body until `call.rest` is set.
        """
        content = body if isinstance(body, bytes) else json.dumps({**body, **fields}).encode()
        return self._call("POST", path, content, missing)

    async def get(self, path: str) -> SimpleNamespace:
        return await self._call("GET", path, b"").done

    def _call(self, method: str, path: str, content: bytes, missing: int = 0) -> SimpleNamespace:
        call = SimpleNamespace(status=None, headers={}, text="", chunks=0, gone=asyncio.Event(), rest=asyncio.Event())
        sent = False

        async def receive() -> dict[str, Any]:
            nonlocal sent
            if not sent:
                sent = True
                return {"type": "http.request", "body": content, "more_body": bool(missing)}
            waits = [asyncio.create_task(event.wait()) for event in (call.gone, call.rest)[: 2 if missing else 1]]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
            if missing and not call.gone.is_set():
                call.rest.clear()
                return {"type": "http.request", "body": b" " * missing, "more_body": False}
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                call.status = message["status"]
                call.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            elif message.get("body"):
                call.text += message["body"].decode()
                call.chunks += 1

        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(b"host", b"localhost"), (b"content-length", str(len(content) + missing).encode())],
            "client": (self.address, 1),
            "server": ("localhost", 80),
        }

        async def run() -> SimpleNamespace:
            await self.app(scope, receive, send)
            return call

        call.done = asyncio.create_task(run())
        call.go_away = call.gone.set
        return call


def question(served: ServedModel, text: str = "What happens?", **fields: Any) -> dict[str, Any]:
    fields = {"max_tokens": 4, "temperature": 0, **fields}
    return {"model": served.name, "messages": [{"role": "user", "content": text}], **fields}


def run(served: ServedModel, test: Callable[[Any], Awaitable[Any]], **options: Any) -> Any:
    """The result of a test with an application."""

    async def with_app() -> Any:
        app = build_app(served, num_frames=4, local_media_path=Path("/"), **options)
        async with app.router.lifespan_context(app):
            return await asyncio.wait_for(test(app), 120)

    return asyncio.run(with_app())


async def until(condition: Callable[[], Any]) -> None:
    while not condition():
        await asyncio.sleep(0.002)


async def metrics(client: Client) -> dict[str, float]:
    """The values of `/metrics`, by name and label."""
    text = (await client.get("/metrics")).text
    samples = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r'[a-z0-9_]+({[a-z]+="[^"]*"})?', name) for name, _, _ in samples)
    return {name: float(value) for name, _, value in samples}


async def until_running(client: Client) -> None:
    while not (await metrics(client))["flashvid_num_requests_running"]:
        await asyncio.sleep(0.002)


async def until_idle(client: Client) -> dict[str, float]:
    """The metrics once no request is left in the server."""
    while True:
        found = await metrics(client)
        if not found["flashvid_num_requests_running"] and not found["flashvid_num_requests_waiting"]:
            return found
        await asyncio.sleep(0.002)


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


def text_of(answer: SimpleNamespace) -> str:
    """The text of an answer, streamed or not."""
    if not answer.text.startswith("data: "):
        return json.loads(answer.text)["choices"][0]["message"]["content"]
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    return "".join(event["choices"][0]["delta"].get("content") or "" for event in events if event["choices"])


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


def test_places_are_given_in_turn():
    async def test() -> None:
        places, order = Places(1), []

        async def visit(client: str) -> None:
            async with places.take(client):
                order.append(client)
                await asyncio.sleep(0)

        await asyncio.gather(*(visit(client) for client in "aaaabbc"))
        assert "".join(order) == "aabcaba"

    asyncio.run(test())


def test_no_client_takes_more_places_than_it_may():
    async def test() -> None:
        places = Places(3, per_client=2)
        await places.acquire("a")
        await places.acquire("a")
        third = asyncio.create_task(places.acquire("a"))
        await asyncio.wait_for(places.acquire("b"), 10)
        assert not third.done()
        places.release("a")
        await asyncio.wait_for(third, 10)

    asyncio.run(test())


def test_who_stops_waiting_leaves_the_line():
    async def test() -> None:
        places = Places(1)
        await places.acquire("a")
        lines = [asyncio.create_task(places.acquire(client)) for client in "abab"]
        await asyncio.sleep(0)
        for task in lines[:3]:
            task.cancel()
        places.release("a")  # the last one gets the place, and so do those who come after it
        await asyncio.wait_for(lines[3], 10)
        granted = asyncio.create_task(places.acquire("a"))
        await asyncio.sleep(0)
        places.release("b")
        granted.cancel()  # at the moment in which it gets the place
        await asyncio.gather(granted, return_exceptions=True)
        await asyncio.wait_for(places.acquire("c"), 10)
        assert not places._waiting and places._taken == {"c": 1}

    asyncio.run(test())


def test_a_worker_is_busy_until_its_work_ends():
    async def test() -> None:
        workers, goes_on, done = Workers(1), threading.Event(), []
        task = asyncio.create_task(workers.run("a", goes_on.wait, 60))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        second = asyncio.create_task(workers.run("b", done.append, 1))
        await asyncio.sleep(0.01)
        assert not done
        goes_on.set()
        await asyncio.wait_for(second, 10)
        with pytest.raises(ZeroDivisionError):
            await workers.run("b", lambda: 1 / 0)

    asyncio.run(test())


def test_the_greediest_client_loses_its_newest_request():
    async def test() -> None:
        visitors = Visitors(4)
        visits = [visitors.enter("a") for _ in range(4)]
        for visit in visits[:3]:
            visit.work = asyncio.create_task(asyncio.sleep(60))
        with pytest.raises(QueueFull, match="4 requests, and may have 4"):
            visitors.enter("a")
        visitors.enter("b")
        assert [visit.refusal is not None for visit in visits] == [False, False, True, False]
        assert visits[2].work.cancelling()
        visitors.enter("b")
        with pytest.raises(QueueFull):  # now both have two
            visitors.enter("b")
        assert len(visitors) == 4
        for visit in visits[:2]:
            visit.work.cancel()

    asyncio.run(test())


def test_clients_are_known_by_their_networks():
    assert client_of("10.0.0.1") != client_of("10.0.0.2")
    assert client_of("2001:db8::1") == client_of("2001:db8::2:1") != client_of("2001:db8:0:1::1")
    assert client_of("testclient") == "testclient"
