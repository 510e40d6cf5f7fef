"""The connections of `serve`: those that bring nothing, take nothing or are too many end, and so does the server."""

import asyncio
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn
from checkpoints import build_flashvid_folder, once
from serving_client import CHAT, question
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from flashvid_hf.serving import connections
from flashvid_hf.serving.app import ServedModel, build_app
from flashvid_hf.serving.connections import BoundedConnection

REASON = {"message": "The server stops.", "type": "server_error"}
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


@contextmanager
def run_server(app: Any, **settings: Any) -> Iterator[uvicorn.Server]:
    """A server on a free port of this machine, in a thread; `server.port` is the port."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, http=BoundedConnection, log_level="critical", **settings)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.005)
        server.port = server.servers[0].sockets[0].getsockname()[1]
        yield server
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


def call(server: uvicorn.Server, data: bytes = b"", address: str = "127.0.0.1") -> socket.socket:
    """A connection on which something was sent."""
    connection = socket.create_connection(("127.0.0.1", server.port), 30, source_address=(address, 0))
    connection.sendall(data)
    return connection


def read_all(connection: socket.socket) -> bytes:
    """Everything until the server closes the connection."""
    found = b""
    try:
        while piece := connection.recv(65536):
            found += piece
    except ConnectionResetError:
        pass
    return found


def small_app() -> Starlette:
    async def say(_: Any) -> PlainTextResponse:
        return PlainTextResponse("hello")

    async def stream(_: Any) -> StreamingResponse:
        async def pieces() -> Any:
            while True:
                yield b"x" * 100_000
                await asyncio.sleep(0)

        return StreamingResponse(pieces())

    return Starlette(routes=[Route("/", say), Route("/stream", stream)])


@pytest.mark.parametrize("data", [b"", b"GET / HTTP/1.1\r\nHost:"])
def test_a_connection_without_a_request_ends(monkeypatch, data):
    monkeypatch.setattr(connections, "WAIT_SECONDS", 0.05)
    with run_server(small_app()) as server, call(server, data) as connection:
        assert read_all(connection) == b""


def test_a_connection_that_goes_on_after_an_answer_ends(monkeypatch):
    monkeypatch.setattr(connections, "WAIT_SECONDS", 0.05)
    with run_server(small_app()) as server, call(server, GET + b"GET") as connection:
        assert b"hello" in read_all(connection)


def test_endless_headers_end():
    with run_server(small_app()) as server, call(server, b"GET / HTTP/1.1\r\n") as connection:
        with pytest.raises(OSError):
            for _ in range(1000):
                connection.sendall(b"A: " + b"x" * 100_000 + b"\r\n")


def test_a_client_that_takes_nothing_of_its_answer_is_left(monkeypatch):
    monkeypatch.setattr(connections, "WAIT_SECONDS", 0.2)
    with run_server(small_app()) as server, call(server, GET.replace(b"/ ", b"/stream ")) as connection:
        while not server.server_state.connections:
            time.sleep(0.005)
        while server.server_state.connections:  # the server has ended it
            time.sleep(0.005)
        connection.close()


def test_a_client_that_takes_its_answer_slowly_gets_it(monkeypatch):
    monkeypatch.setattr(connections, "WAIT_SECONDS", 0.1)
    with run_server(small_app()) as server, call(server, GET.replace(b"/ ", b"/stream ")) as connection:
        for _ in range(30):
            connection.recv(2_000_000)
            time.sleep(0.02)
        assert server.server_state.connections
        connection.close()


def test_the_client_with_most_connections_loses_its_newest(monkeypatch):
    monkeypatch.setattr(connections, "most_connections", lambda: 4)
    with run_server(small_app()) as server:
        flood = [call(server) for _ in range(4)]
        while len(server.server_state.connections) < 4:
            time.sleep(0.005)
        late = call(server)
        assert read_all(late) == b""
        with call(server, GET, "127.0.0.2") as other:
            assert b"200 OK" in other.recv(65536)
            assert read_all(flood[3]) == b""
            flood[0].sendall(GET)
            assert b"200 OK" in flood[0].recv(65536)
        for connection in (*flood, late):
            connection.close()


def test_the_number_of_connections_leaves_files_to_the_rest(monkeypatch):
    resource = pytest.importorskip("resource")
    for limit, most in [(1024, 512), (100_000, 4096), (resource.RLIM_INFINITY, 4096)]:
        monkeypatch.setattr(resource, "getrlimit", lambda _, limit=limit: (limit, limit))
        assert connections.most_connections() == most


@pytest.mark.parametrize("stream", [False, True])
def test_the_server_ends_in_time_and_says_why(tmp_path_factory, monkeypatch, caplog, stream):
    folder = once(tmp_path_factory, "pipeline-qwen2_5_vl", lambda folder: build_flashvid_folder(folder, "qwen2_5_vl"))
    served = ServedModel.load(str(folder), device="cpu")
    app = build_app(served, num_frames=4)
    body = json.dumps(question(served, max_tokens=30_000, stream=stream)).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    with run_server(app, timeout_graceful_shutdown=0) as server:
        caplog.set_level(logging.INFO, "uvicorn.error")
        monkeypatch.setattr(logging.getLogger("uvicorn"), "propagate", True)
        connection = call(server, head.encode() + body)
        while b"flashvid_num_requests_running 1" not in read_all(
            call(server, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        ):
            time.sleep(0.01)
    found = read_all(connection)
    connection.close()
    if stream:  # it had begun
        *_, event = re.findall(rb"data: (.*)\n\n", found)
        assert json.loads(event) == {"error": {**dict.fromkeys(("code", "param")), **REASON}}
        assert b"200 OK" in found and b"[DONE]" not in found and b"finish_reason" not in found
    else:
        assert b"503 Service Unavailable" in found and b"retry-after: 30" in found and b"The server stops." in found
    lines = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [record.getMessage() for record in lines] == ["Cancel 1 running task(s), timeout graceful shutdown exceeded"]
    assert not any(record.exc_info for record in caplog.records)
