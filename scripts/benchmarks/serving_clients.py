"""A server in a process of its own, and clients that ask it, for the scripts that measure `flashvid-hf serve`."""

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark_results import REPOSITORY

CHAT = "/v1/chat/completions"
DEMO = REPOSITORY / "hub_configs" / "flashvid-demo"
CLIP = REPOSITORY / "examples" / "moving_shapes.mp4"
_START_SECONDS = 120  # a model of 7B from a slow disk takes longer: then give a server that runs already
_PROGRAM = "import json, sys; from flashvid_hf.serving.server import serve; serve(**json.loads(sys.argv[1]))"


@dataclass(frozen=True)
class Reply:
    """What a client got.

    Args:
        status: of HTTP; 0 if the connection failed.
        seconds: from the request to the end of the answer.
        first_seconds: to the first text; `None` without a text.
        text: of the answer, or of the error.
        tokens: of the answer.
    """

    status: int
    seconds: float
    first_seconds: float | None
    text: str
    tokens: int


@contextmanager
def start_server(model: str | Path = DEMO, *, threads: int | None = None, **settings: Any) -> Iterator[int]:
    """The port of a server in a new process, which ends with the `with` block.

    Args:
        model, settings: arguments of `serve`.
        threads: of torch.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    arguments = {"model": str(model), "host": "127.0.0.1", "port": port, "log_level": "critical", **settings}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [REPOSITORY, *sys.path]))}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    command = [sys.executable, "-c", _PROGRAM, json.dumps(arguments)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        begin = time.monotonic()
        while get(port, "/health")[0] != 200:
            if process.poll() is not None or time.monotonic() - begin > _START_SECONDS:
                raise RuntimeError(f"The server of {model} does not start: try `flashvid-hf serve -m {model}`.")
            time.sleep(0.2)
        yield port
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def address(number: int) -> tuple[str, int] | None:
    """An address of this machine for a client, so that the server sees many; `None` where there is but one."""
    return (f"127.0.{1 + number // 200}.{1 + number % 200}", 0) if sys.platform == "linux" else None


def get(port: int, path: str, timeout: float = 30) -> tuple[int, str, float]:
    """Status, text and seconds of a GET; the status is 0 if the connection failed."""
    begin = time.perf_counter()
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode(), time.perf_counter() - begin
    except OSError as error:
        return 0, str(error), time.perf_counter() - begin
    finally:
        with suppress(UnboundLocalError):
            connection.close()


def ask(port: int, body: dict[str, Any] | bytes, number: int = 0, timeout: float = 300) -> Reply:
    """Send a chat completion, streamed or not.

    Args:
        number: of the client, see `address`.
        timeout: seconds that the server may stay silent.
    """
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    begin = time.perf_counter()
    first, texts, usage = None, [], {}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout, source_address=address(number))
    try:
        connection.request("POST", CHAT, content, {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.headers.get_content_type() == "text/event-stream":
            for line in response:
                if not line.startswith(b"data: {"):
                    continue
                event = json.loads(line[6:])
                usage = event.get("usage") or usage
                if event.get("choices") == []:  # the event with the usage
                    continue
                text = event.get("error") or event["choices"][0]["delta"].get("content")
                if text:
                    first = time.perf_counter() - begin if first is None else first
                    texts.append(text)
        else:
            answer = json.loads(response.read() or b"{}")
            if response.status == 200:
                usage = answer["usage"]
                texts = [answer["choices"][0]["message"]["content"]]
            else:
                texts = [str(answer.get("error"))]
        seconds = time.perf_counter() - begin
        return Reply(response.status, seconds, first, "".join(texts), usage.get("completion_tokens", 0))
    except (OSError, http.client.HTTPException, ValueError) as error:
        return Reply(0, time.perf_counter() - begin, None, f"{type(error).__name__}: {error}", 0)
    finally:
        connection.close()


def question(model: str | Path, text: str, *, video: str | None = None, **fields: Any) -> dict[str, Any]:
    """The body of a chat completion."""
    content: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if video is not None:
        content.insert(0, {"type": "video_url", "video_url": {"url": video}})
    return {"model": str(model), "messages": [{"role": "user", "content": content}], "temperature": 0, **fields}
