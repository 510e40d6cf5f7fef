"""Downloads: limits on size and time, and which hosts and addresses may be asked."""

import contextlib
import gzip
import itertools
import socket
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from checkpoints import CLIP
from PIL import Image

from flashvid_hf import read_video
from flashvid_hf.video import connections, download
from flashvid_hf.video.connections import is_public
from flashvid_hf.video.download import DownloadRules, download_rules, fetch_file
from flashvid_hf.video.sources import load_picture

CONTENT = CLIP.read_bytes()
PUBLIC, PRIVATE = "127.0.0.1", "127.0.0.2"  # as the tests see them


class Handler(BaseHTTPRequestHandler):
    """Answers as the path says."""

    def do_GET(self):
        self.server.seen.append(self.headers["Host"])
        kind, _, rest = urllib.parse.unquote(self.path[1:]).partition("/")
        with contextlib.suppress(OSError):  # the client went away
            getattr(self, kind)(rest)

    def head(self, status=200, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def clip(self, _):
        self.head(Content_Length=len(CONTENT))
        self.wfile.write(CONTENT)

    def to(self, target):
        self.head(302, Location=target)

    def loop(self, _):
        self.head(302, Location="/loop/")

    def endless_redirect(self, target):
        self.head(302, Location=target)
        self.endless_body()

    def endless(self, _):
        self.head()
        self.endless_body()

    def endless_body(self):
        while True:
            self.wfile.write(bytes(2**16))

    def announced(self, _):
        self.head(Content_Length=10**12)

    def bomb(self, codings):
        content = gzip.compress(bytes(2**24))
        for _ in range(codings.count(",")):
            content = gzip.compress(content)
        self.head(Content_Encoding=codings, Content_Length=len(content))
        self.wfile.write(content)

    def slow(self, where):
        if where == "body":
            self.head()
        if where == "head":
            self.wfile.write(b"HTTP/1.0 200 OK\r\nX-Slow: ")
        for _ in range(100):
            self.wfile.write(b"a")
            time.sleep(0.02)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serving(address=PUBLIC, port=0):
    with ThreadingHTTPServer((address, port), Handler) as server:
        server.seen = []
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        server.url = f"http://{address}:{server.server_port}"
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def server():
    with serving() as web:
        yield web


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def names(monkeypatch):
    """Names of hosts, each with the addresses that it has one after the other."""
    table, asked = {}, []
    resolve = socket.getaddrinfo

    def getaddrinfo(host, port, *args, **kwargs):
        asked.append(host)
        found = next(table[host.lower()]) if host.lower() in table else [host]
        return [entry for name in found for entry in resolve(name, port, *args, **kwargs)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(connections, "is_public", lambda address: address == PUBLIC)
    table["asked"] = asked
    return table


def fetch(url, **rules):
    with download_rules(DownloadRules(**rules)), fetch_file(url, repr(url)) as path:
        return Path(path).read_bytes()


def test_no_file_can_guess_its_name(server):
    """A list of files (ffconcat) that names itself would open itself without end."""
    for source in (CONTENT, f"{server.url}/clip/"):
        with fetch_file(source, "it") as first, fetch_file(source, "it") as second:
            assert Path(first).name != Path(second).name and len(Path(first).name) == 32
            assert Path(first).read_bytes() == CONTENT
        assert not Path(first).parent.exists()


@pytest.mark.parametrize("kind", ["endless", "announced", "bomb/gzip", "bomb/gzip, gzip"])
def test_the_size_is_limited(server, kind):
    with pytest.raises(ValueError, match=r"cannot be downloaded: it has more than 100,000 bytes.*`max_bytes`"):
        fetch(f"{server.url}/{kind.replace(' ', '%20')}", max_bytes=100_000)


def test_the_size_limit_is_the_largest_size(server):
    assert fetch(f"{server.url}/clip/", max_bytes=len(CONTENT)) == CONTENT
    with pytest.raises(ValueError, match="it has more than"):
        fetch(f"{server.url}/clip/", max_bytes=len(CONTENT) - 1)
    with pytest.raises(ValueError, match="it has more than 4 bytes"):
        fetch("data:video/mp4;base64,aGVsbG8=", max_bytes=4)


def test_codings_are_not_piled_up(server):
    with pytest.raises(ValueError, match="`Content-Encoding` has 3 parts"):
        fetch(f"{server.url}/bomb/gzip,gzip,gzip")


@pytest.mark.parametrize("where", ["head", "body"])
def test_the_whole_time_is_limited(server, where):
    """Also where every byte comes before the timeout of a single one."""
    with pytest.raises(ValueError, match="cannot be downloaded: it took more than 0.1 seconds"):
        fetch(f"{server.url}/slow/{where}", max_seconds=0.1)


def test_rules_hold_inside_their_block_only(server):
    url = f"{server.url}/clip/"
    with download_rules(DownloadRules(max_bytes=1)):
        with pytest.raises(ValueError, match="it has more than 1 byte"):
            read_video(url, num_frames=1)
        found = []
        thread = threading.Thread(target=lambda: found.append(read_video(url, num_frames=1)))
        thread.start()
        thread.join()
    assert len(found) == 1 and len(read_video(url, num_frames=1).frames) == 1  # other threads have their own


def test_pictures_follow_the_same_rules(server, tmp_path):
    with pytest.raises(ValueError, match="the image .* cannot be downloaded: it has more than 9"):
        with download_rules(DownloadRules(max_bytes=9)):
            load_picture(f"{server.url}/clip/")
    with pytest.raises(ValueError, match="the image .* cannot be downloaded: the host '127.0.0.1' has an address that"):
        with download_rules(DownloadRules(private_networks=False)):
            load_picture(f"{server.url}/clip/")
    Image.new("RGB", (3, 2)).save(tmp_path / "a.png")
    assert load_picture(tmp_path / "a.png").size == (3, 2)


@pytest.mark.parametrize(
    "address",
    [
        *(
            "127.0.0.1",
            "127.255.1.2",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "0.0.0.0",
            "100.64.0.1",
        ),
        *("224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "192.0.0.192", "192.0.2.1", "198.18.0.1"),
        *(
            "168.63.129.16",
            "100.100.100.200",
            "::",
            "::1",
            "fe80::1",
            "fe80::1%lo",
            "fc00::1",
            "fd00:ec2::254",
            "fec0::1",
        ),
        *("ff02::1", "ff0e::1", "2001:db8::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1"),
        *("64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:7f00:1::", "2002:a00:1::1", "2001::1", "100::1"),
    ],
)
def test_addresses_that_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "1.1.1.1", "172.32.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"],
)
def test_addresses_that_are_public(address):
    assert is_public(address)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "0x7f.1", "2130706433", "127.1", "[::1]", "[::ffff:127.0.0.1]", "0", "LOCALHOST."],
)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_private_networks_are_refused(host, scheme):
    with pytest.raises(ValueError, match=r"an address that is not public|Name or service|no address"):
        fetch(f"{scheme}://{host}:9/", private_networks=False)


def test_every_redirect_is_checked(server, names):
    with serving(PRIVATE, server.server_port) as private:
        ours, theirs = f"{server.url}/clip/", f"{private.url}/clip/"
        quoted = urllib.parse.quote(theirs, safe="")
        assert fetch(f"{server.url}/to/{quoted}") == CONTENT and len(private.seen) == 1
        for path in (
            f"to/{quoted}",
            f"endless_redirect/{quoted}",
            f"to/{urllib.parse.quote(f'/to/{quoted}', safe='')}",
        ):
            with pytest.raises(ValueError, match="'127.0.0.2' has an address that is not public"):
                fetch(f"{server.url}/{path}", private_networks=False)
        assert len(private.seen) == 1
    assert fetch(f"{server.url}/to/{urllib.parse.quote(ours, safe='')}", private_networks=False) == CONTENT
    with pytest.raises(ValueError, match="redirected more than 10 times"):
        fetch(f"{server.url}/loop/")


@pytest.mark.parametrize("target", ["file:///etc/hosts", "ftp://127.0.0.1/a", "data:text/plain,x", "gopher://h/"])
def test_a_redirect_keeps_to_http(server, target):
    with pytest.raises(ValueError, match=r"it must be an address `http\(s\)://host/...`, also after redirects"):
        fetch(f"{server.url}/to/{urllib.parse.quote(target, safe='')}")


def test_the_address_that_was_checked_is_connected_to(server, names):
    """A name whose address changes between the check and the connection gains nothing."""
    names["rebind.example"] = iter([[PUBLIC], [PRIVATE], [PRIVATE]])
    with serving(PRIVATE, server.server_port) as private:
        url = f"http://rebind.example:{server.server_port}/clip/"
        assert fetch(url, private_networks=False) == CONTENT
        assert names["asked"].count("rebind.example") == 1 and not private.seen
        with pytest.raises(ValueError, match="'rebind.example' has an address that is not public"):
            fetch(url, private_networks=False)
    names["both.example"] = itertools.repeat([PUBLIC, PRIVATE])
    with pytest.raises(ValueError, match="'both.example' has an address that is not public"):
        fetch(f"http://both.example:{server.server_port}/clip/", private_networks=False)


def test_domains(server, names):
    port = server.server_port
    names.update(
        {name: itertools.repeat([PUBLIC]) for name in ("media.example", "other.example", "xn--bcher-kva.example")}
    )
    rules = {"domains": frozenset({"media.example", "xn--bcher-kva.example"})}
    for host in ("media.example", "MEDIA.example", "bücher.example"):
        assert fetch(f"http://{host}:{port}/clip/", **rules) == CONTENT
    onward = urllib.parse.quote(f"http://other.example:{port}/clip/", safe="")
    for url in (
        f"http://other.example:{port}/clip/",
        f"http://sub.media.example:{port}/clip/",
        f"http://127.0.0.1:{port}/clip/",
        f"http://media.example:{port}/to/{onward}",
    ):
        with pytest.raises(ValueError, match="is not among the allowed media domains"):
            fetch(url, **rules)
    for user in ("media.example@", "media.example:x@", "media.example\\@"):
        with pytest.raises(ValueError, match="it names a user before its host"):
            fetch(f"http://{user}other.example:{port}/clip/", **rules)


def test_proxies_serve_only_who_may_connect_anywhere(server, monkeypatch):
    """A proxy would connect to any address, private ones included."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", server.url)
    url = "http://no-such-host.invalid/clip/"
    monkeypatch.setattr(Handler, "do_GET", lambda handler: handler.clip(""))
    assert fetch(url) == CONTENT
    with pytest.raises(ValueError, match="cannot be downloaded"):
        fetch(url, private_networks=False)


@pytest.mark.parametrize(
    "rules, message",
    [
        ({"max_bytes": 0}, "`max_bytes` is 0"),
        ({"max_seconds": 0}, "`max_seconds` is 0"),
        ({"private_networks": 1}, "`private_networks` is 1"),
    ],
)
def test_rules_are_checked(rules, message):
    with pytest.raises(ValueError, match=message):
        DownloadRules(**rules)


def test_silence_is_limited_as_before(server, monkeypatch):
    monkeypatch.setattr(download, "DOWNLOAD_TIMEOUT", 0.1)
    with socket.create_server((PUBLIC, 0)) as silent:  # accepts, and says nothing
        with pytest.raises(ValueError, match="timed out"):
            fetch(f"http://{PUBLIC}:{silent.getsockname()[1]}/")


@pytest.mark.parametrize(
    "url, reason",
    [
        ("data:", "has a comma before its content"),
        ("data:video/mp4;base64,AAAA!!##", "its base64 has the character '!'"),
        ("data:video/mp4;base64,AA-_", "its base64 has the character '-'"),
    ],
)
def test_damaged_data_urls(url, reason):
    with pytest.raises(ValueError, match=reason):
        read_video(url)
