"""Who may ask the server, by which name, with how large a body, and what the server fetches."""

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from flashvid_hf.serving import server as serving
from flashvid_hf.serving.gate import LOOPBACK_NAMES, Gate, GateRules
from flashvid_hf.video.download import download_rules, fetch_file

PATHS = ("/v1/models", "/metrics", "/docs", "/health")


async def echo(request):
    return PlainTextResponse(str(len(await request.body())))


def client(**rules) -> TestClient:
    app = Starlette(routes=[Route(path, echo, methods=["GET", "POST"]) for path in PATHS])
    app.add_middleware(Gate, rules=GateRules(**rules))
    return TestClient(app, base_url="http://localhost:8000")


@pytest.mark.parametrize(
    "value", [None, "", "Bearer", "Bearer ", "Bearer no", "Basic one", "one", "Bearer on\xe9", "Bearer onetwo"]
)
def test_a_wrong_key_is_refused(value):
    headers = {} if value is None else {"Authorization": value.encode("latin-1")}
    served = client(api_keys=["one", "two"])
    replies = [served.get(path, headers=headers) for path in PATHS]
    assert [reply.status_code for reply in replies] == [401, 401, 401, 200]
    reply = replies[0]
    assert reply.status_code == 401
    assert reply.json()["error"]["code"] == "invalid_api_key"
    assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


def test_each_key_opens_and_health_needs_none():
    served = client(api_keys=["one", "zwö"])
    for key in ("one", "zwö"):
        headers = {"Authorization": f"Bearer {key}".encode()}
        assert served.get("/v1/models", headers=headers).status_code == 200
    assert served.get("/health").status_code == 200


@pytest.mark.parametrize(
    "host, status",
    [("localhost", 200), ("LOCALHOST:1", 200), ("[::1]:80", 200), ("127.0.0.1", 200), ("box", 200)]
    + [("evil.example", 403), ("localhost.evil.example", 403), ("[", 403), ("evil.example@x", 403)]
    + [("[::1]evil.com", 403), ("localhost:evil.com", 403), ("::1", 403)],
)
def test_host_names_are_checked(host, status):
    served = client(hosts=[*LOOPBACK_NAMES, "box"])
    assert served.get("/v1/models", headers={"Host": host}).status_code == status


def test_large_bodies_are_refused_announced_or_not():
    served = client(max_body_bytes=10)
    assert served.post("/v1/models", content=b"x" * 10).text == "10"
    assert served.post("/v1/models", content=b"x" * 11).status_code == 413
    assert served.post("/v1/models", content=iter([b"x" * 6, b"x" * 6])).status_code == 413


def test_keys_come_from_the_environment_and_are_not_empty(monkeypatch):
    assert serving._find_keys(()) == ()
    monkeypatch.setenv("FLASHVID_API_KEY", "secret")
    assert serving._find_keys(()) == ("secret",)
    assert serving._find_keys(["one", "two"]) == ("one", "two")
    monkeypatch.setenv("FLASHVID_API_KEY", " ")
    with pytest.raises(ValueError, match="`api_key` is empty"):
        serving._find_keys(())


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "10.0.0.1", "169.254.169.254", "localhost"])
def test_the_server_fetches_nothing_from_private_networks(host):
    with download_rules(serving.DOWNLOADS), pytest.raises(ValueError, match="not public|private"):
        with fetch_file(f"http://{host}:9/clip.mp4", "clip"):
            pass
