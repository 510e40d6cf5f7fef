"""Where videos come from: addresses as people write them, compressed replies, files with special names, rows."""

import gzip
import threading
import urllib.parse
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from checkpoints import CLIP, build_pipeline

from flashvid_hf import read_video
from flashvid_hf.video.download import encode_url
from flashvid_hf.video.sources import file_of_url

CONTENT = CLIP.read_bytes()
NAMES = ("my clip.mp4", "vidéo – 動画.mp4", "100%.mp4", "a+b&c.mp4")


def raw_deflate(content: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(content) + compressor.flush()


ENCODED = {
    "gzip": ("gzip", gzip.compress(CONTENT)),
    "x-gzip": ("X-GZIP", gzip.compress(CONTENT)),
    "members": ("gzip", gzip.compress(CONTENT[:999]) + gzip.compress(CONTENT[999:])),
    "deflate": ("deflate", zlib.compress(CONTENT)),
    "raw": ("deflate", raw_deflate(CONTENT)),
    "twice": ("deflate, gzip", gzip.compress(zlib.compress(CONTENT))),
    "identity": ("identity", CONTENT),
}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        name = urllib.parse.unquote(self.path.partition("?")[0])[1:]
        kind, _, more = name.partition("/")
        coding, content = ENCODED.get(kind, ("identity", CONTENT if name in NAMES else b""))
        if kind == "br":
            coding, content = "br", b"br"
        self.send_response(200 if content else 404)
        self.send_header("Content-Encoding", coding)
        if more != "unannounced":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if more in ("cut", "unannounced") else content)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{web.server_port}"
        web.shutdown()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("quoted", [False, True])
def test_addresses_as_people_write_them(server, name, quoted):
    path = urllib.parse.quote(name) if quoted else name
    assert len(read_video(f"HTTP://{server}/{path}?a=b c", num_frames=1).frames) == 1


@pytest.mark.parametrize(
    "url, sent",
    [
        ("http://h/a%20b c%zz?q=é#part", "http://h/a%20b%20c%25zz?q=%C3%A9"),
        ("https://user:x@bücher.example:8/a", "https://user:x@xn--bcher-kva.example:8/a"),
        ("http://[::1]:8/a b", "http://[::1]:8/a%20b"),
        ("http://h/a?u=http://b/c&d=%2F", "http://h/a?u=http://b/c&d=%2F"),
        ("data:video/mp4;base64,AA A#", "data:video/mp4;base64,AA A#"),
    ],
)
def test_encoding_of_addresses(url, sent):
    assert encode_url(url) == sent
    assert encode_url(sent) == sent  # not encoded twice


@pytest.mark.parametrize("kind", ENCODED)
def test_compressed_replies(server, kind):
    assert len(read_video(f"http://{server}/{kind}", num_frames=2).frames) == 2


@pytest.mark.parametrize(
    "path, message",
    [
        ("gzip/cut", "the connection ended"),
        ("deflate/cut", "the connection ended"),
        ("br", "`Content-Encoding` is 'br'"),
    ],
)
def test_replies_that_cannot_be_read(server, path, message):
    with pytest.raises(ValueError, match=message):
        read_video(f"http://{server}/{path}")


@pytest.mark.parametrize("name", ["a#b.mp4", "a?b.mp4", "a b.mp4", "a%20b.mp4", "ä.mp4"])
def test_file_urls(tmp_path, name):
    (tmp_path / name).write_bytes(CONTENT)
    for url in (f"file://{tmp_path}/{name}", (tmp_path / name).as_uri(), f"FILE://localhost{tmp_path}/{name}"):
        assert len(read_video(url, num_frames=1).frames) == 1
    with pytest.raises(ValueError, match="does not exist"):
        read_video(f"file://{tmp_path}/{name}.not")


def test_forms_of_file_urls(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for url, path in {
        "file:///C:/a%20b.mp4": "C:/a b.mp4",
        "file:/tmp/a.mp4": "/tmp/a.mp4",
        "file://a/b.mp4": "a/b.mp4",  # as qwen-vl-utils has it
        "file://localhost/a.mp4": "/a.mp4",
    }.items():
        assert file_of_url(url) == path


def test_data_sets(tmp_path_factory):
    """The rows of the library `datasets`: paths, bytes, undecoded videos, settings, chats; streamed too."""
    datasets = pytest.importorskip("datasets")
    pipe = build_pipeline(tmp_path_factory, "qwen2_5_vl")
    ask = {"max_new_tokens": 4, "do_sample": False}

    def answers(rows) -> list[str]:
        return [answer[0]["generated_text"] for answer in pipe(rows, **ask)]

    path, question = str(CLIP), "What happens?"
    (expected,) = answers([{"video": path, "text": question, "fps": 0.5}])
    columns = {"video": [path, path], "text": [question] * 2, "fps": [0.5, None]}
    whole = pipe(path, text=question, **ask)[0]["generated_text"]
    rows = datasets.Dataset.from_dict(columns)
    assert answers(rows) == answers(rows.to_iterable_dataset()) == [expected, whole]
    undecoded = rows.cast_column("video", datasets.Video(decode=False)) if hasattr(datasets, "Video") else rows
    assert answers(undecoded) == [expected, whole]
    assert answers(datasets.Dataset.from_dict({**columns, "video": [CONTENT] * 2})) == [expected, whole]
    parts = [{"type": "video", "video": path, "text": None, "fps": 0.5}, {"type": "text", "text": question}]
    assert answers(datasets.Dataset.from_list([{"messages": [{"role": "user", "content": parts}]}])) == [expected]
    assert pipe(rows["video"], text=question, **ask)[1][0]["generated_text"] == whole
    with pytest.raises(ValueError, match=r"\['fps', 'label', 'text', 'video'\].*select_columns"):
        answers(rows.add_column("label", [1, 2]))
