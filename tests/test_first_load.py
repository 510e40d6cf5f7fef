"""The first load of a repository by its Hub id: the number of requests that the loader makes for code.

A local server takes the place of the Hub and counts the requests.
"""

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from checkpoints import build_flashvid_folder, once

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "acme/tiny"
PROGRAM = """\
import sys

sys.modules["flashvid_hf"] = None  # cannot be imported
from transformers import pipeline

pipe = pipeline("video-text-to-text", model=sys.argv[1], trust_remote_code=True)
assert type(pipe).__module__.startswith("transformers_modules."), type(pipe)
assert type(pipe.model).__module__.startswith("transformers_modules."), type(pipe.model)
"""


class StandIn(ThreadingHTTPServer):
    """Serves one folder as a repository of the Hub; `requests` counts them by method and file name."""

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.requests = folder, Counter()
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: StandIn

    def log_message(self, *arguments) -> None:
        pass

    def answer(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith(f"/api/models/{REPOSITORY}"):
            files = [{"rfilename": file.name} for file in self.server.folder.iterdir()]
            tree = [{"type": "file", "path": file.name, "size": 1, "oid": "0"} for file in self.server.folder.iterdir()]
            found = tree if "/tree/" in path else {"id": REPOSITORY, "sha": COMMIT, "siblings": files, "tags": []}
            self.reply(200, json.dumps(found).encode(), {})
            return
        name = path.rpartition("/")[2]
        self.server.requests[self.command, name] += 1
        file = self.server.folder / name
        if not path.startswith(f"/{REPOSITORY}/resolve/") or not file.is_file():
            self.reply(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        content = file.read_bytes()
        self.reply(200, content, {"X-Repo-Commit": COMMIT, "ETag": f'"{sha256(content).hexdigest()}"'})

    do_GET = do_HEAD = answer

    def reply(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


def test_every_file_of_code_is_fetched_once(tmp_path, tmp_path_factory):
    folder = once(tmp_path_factory, "doors-qwen2_5_vl", build_flashvid_folder)
    with StandIn(folder) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_", "HUGGINGFACE_"))}
        finished = subprocess.run(
            [sys.executable, "-c", PROGRAM, REPOSITORY],
            env={**inherited, "HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": server.endpoint, "NO_PROXY": "*"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        server.shutdown()
    assert finished.returncode == 0, finished.stderr
    code = {request: count for request, count in server.requests.items() if request[1].endswith(".py")}
    fetched = {name: count for (method, name), count in code.items() if method == "GET"}
    assert fetched == {path.name: 1 for path in folder.glob("*.py")}
    # Each file is asked for and then fetched. transformers also looks for code of `generate`, and 5.17 asks for the
    # configuration three times. With a file for each module there were 99 requests.
    assert sum(code.values()) <= 2 * len(fetched) + 3
