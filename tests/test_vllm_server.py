"""vLLM's OpenAI server on the trained demo model, asked by the official client: `make test-vllm`."""

import base64
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: `make test-vllm`")

from openai import OpenAI
from vllm_engine import ENVIRONMENT

ROOT = Path(__file__).resolve().parent.parent
VIDEO = ROOT / "examples" / "moving_shapes.mp4"
QUESTION = "What colour does the triangle turn into? Answer with one word."
START_SECONDS = 240


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """A client of a server that runs until all tests of this file are done."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("server")
    # The command `vllm` needs an installed distribution of that name, and builds for CPUs have another name.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    model = ["--model", ROOT / "hub_configs/flashvid-demo", "--served-model-name", "flashvid-demo"]
    options = ["--port", str(port), "--max-model-len", "2048", "--enforce-eager"]
    options += ["--allowed-local-media-path", ROOT / "examples"]
    with open(folder / "log.txt", "w") as log:
        environment = {**os.environ, **ENVIRONMENT, "VLLM_CACHE_ROOT": str(folder)}
        server = subprocess.Popen([*command, *model, *options], stdout=log, stderr=log, env=environment)
        client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        try:
            wait_for(client, server, folder / "log.txt")
            yield client
        finally:
            server.terminate()
            server.wait(timeout=60)


def wait_for(client: OpenAI, server: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            client.models.list()
            return
        except Exception:
            assert server.poll() is None, log.read_text()[-5000:]
            assert time.monotonic() < end, log.read_text()[-5000:]
            time.sleep(1)


def ask(client: OpenAI, *urls: str, question: str = QUESTION):
    videos = [{"type": "video_url", "video_url": {"url": url}} for url in urls]
    content = [*videos, {"type": "text", "text": question}]
    return client.chat.completions.create(
        model="flashvid-demo", messages=[{"role": "user", "content": content}], temperature=0, max_tokens=8
    )


def test_a_file_is_answered_about(client):
    answer = ask(client, VIDEO.as_uri())
    assert answer.choices[0].message.content == "blue"
    assert answer.usage.prompt_tokens < 100  # the video alone has 512 tokens


def test_a_video_inside_the_request_is_answered_about(client):
    data = base64.b64encode(VIDEO.read_bytes()).decode()
    assert ask(client, f"data:video/mp4;base64,{data}").choices[0].message.content == "blue"


def test_requests_at_once_get_what_they_get_alone(client):
    questions = [QUESTION, "What colour is the background?", "How many shapes are there? Answer with a number."] * 3
    alone = [ask(client, VIDEO.as_uri(), question=question).choices[0].message.content for question in questions[:3]]
    with ThreadPoolExecutor(len(questions)) as pool:
        answers = list(pool.map(lambda question: ask(client, VIDEO.as_uri(), question=question), questions))
    assert [answer.choices[0].message.content for answer in answers] == alone * 3
