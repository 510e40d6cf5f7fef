"""What the code of a checked folder cannot reach: network, home, credentials, and endless memory, time and files."""

import json
import os
import sys
from pathlib import Path

import pytest

from flashvid_hf.publishing import isolation
from flashvid_hf.publishing.clean_process import COMMIT, INHERITED, workplace

LOOK = """
import json, os, sys
home, found = os.path.expanduser("~"), {}
found["home"], found["environment"] = os.listdir(home), dict(os.environ)
found["paths"] = [path for path in sys.path if not os.path.isabs(path)]
with open("found.json", "w") as file:
    json.dump(found, file)
"""


def run(program: str, place) -> None:
    status, errors = place.run(program, name="program.py")
    assert status == 0, errors


@pytest.mark.process
def test_environment_and_home_are_empty(monkeypatch):
    secrets = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "HTTPS_PROXY", "NETRC", "SSH_AUTH_SOCK")
    for name in (*secrets, "XDG_CACHE_HOME", "GITHUB_TOKEN", "PYTHONSTARTUP", "LD_PRELOAD"):
        monkeypatch.setenv(name, "")
    with workplace() as place:
        run(LOOK, place)
        found = json.loads((place.directory / "found.json").read_text())
    own = {"HOME", "USERPROFILE", "TMPDIR", "HF_HOME", "HF_HUB_OFFLINE"}
    assert found["home"] == [] and found["paths"] == []
    assert found["environment"].keys() <= {*INHERITED, *own}


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has network namespaces")
def test_no_network():
    with workplace() as place:
        if place.find_problems():
            pytest.skip("this system gives no network namespace, and `check` says so")
        run(
            "import socket\ntry:\n    socket.create_connection(('127.0.0.1', 9), 5)\n"
            "except OSError as error:\n    assert 'unreachable' in str(error), error\nelse:\n    raise SystemExit(1)",
            place,
        )


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="limits are those of Linux")
@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("x = bytearray(2**40)", "MemoryError"),
        ("import signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nopen('x', 'wb').truncate(2**31)", "too large"),
        ("import resource\nresource.setrlimit(resource.RLIMIT_CPU, (-1, -1))", "not allowed"),
    ],
)
def test_limits(program, error):
    with workplace() as place:
        status, errors = place.run(program, name="program.py")
    if "not allowed" in error and not status:
        pytest.skip("root may raise limits where there is no user namespace")
    assert status != 0 and error in errors


def test_what_the_system_does_not_allow_is_said(monkeypatch):
    monkeypatch.setattr(isolation.sys, "platform", "other")
    (problem,) = isolation._leave_network()
    assert problem.startswith("the code can reach the network, because this system gives no network namespace (only")


def test_code_of_the_base_is_left_out(monkeypatch, tmp_path):
    snapshot = tmp_path / "models--acme--base" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "modeling.py", "weights.bin"):
        (snapshot / name).touch()
    monkeypatch.setattr("flashvid_hf.publishing.clean_process.HF_HUB_CACHE", str(tmp_path))
    with workplace() as place:
        place.link_cache("acme/base")
        found = Path(place.root, "hub", "models--acme--base", "snapshots", COMMIT)
        assert sorted(os.listdir(found)) == ["config.json", "model.safetensors"]
