"""Clients that call the application of `serve` without a network, so that they go away exactly when a test wants it."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

from flashvid_hf.serving.app import ServedModel, build_app

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"


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
        app = build_app(served, num_frames=4, **options)
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


def text_of(answer: SimpleNamespace) -> str:
    """The text of an answer, streamed or not."""
    if not answer.text.startswith("data: "):
        return json.loads(answer.text)["choices"][0]["message"]["content"]
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    return "".join(event["choices"][0]["delta"].get("content") or "" for event in events if event["choices"])
