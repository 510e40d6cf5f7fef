"""Videos from URLs and from bytes in memory. Only the package has this module, published folders do not."""

import os
import re
import tempfile
import urllib.request
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import BinaryIO
from urllib.parse import quote, urlsplit, urlunsplit

from .sources import scheme_of

DOWNLOAD_TIMEOUT = 30.0  # seconds that the server may stay silent
_BLOCK = 2**16  # bytes that are read at once
# What `read_video` leaves to `fetch_video`: schemes of URLs, and "bytes" for the bytes of a file.
SCHEMES = ("bytes", "data", "http", "https")


@contextmanager
def fetch_video(video: str | bytes, label: str) -> Iterator[str]:
    """The path of a temporary file with the content of a URL (`http`, `https`, `data`) or with these bytes.

    Args:
        label: the name of the video in error messages.

    Raises:
        ValueError: it cannot be downloaded.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = os.path.join(folder, "video")
        with open(path, "wb") as file:
            if isinstance(video, (str, os.PathLike)):
                _download(os.fspath(video), label, file)
            else:
                file.write(video)
        yield path


def encode_url(url: str) -> str:
    """A URL as it is sent: what it may not hold is percent-encoded, and a host's name is in ASCII (IDNA).

    What is encoded already stays. A `%` that begins no code stands for itself.
    """
    if scheme_of(url) not in ("http", "https"):
        return url
    parts = urlsplit(re.sub("%(?![0-9A-Fa-f]{2})", "%25", url.strip()))
    host = parts.netloc
    if not host.isascii():
        user, at, name = host.rpartition("@")
        name, colon, port = name.partition(":")
        host = f"{quote(user, safe='%:')}{at}{name.encode('idna').decode()}{colon}{port}"
    path, query = (quote(part, safe="%/:@!$&'()*+,;=~?") for part in (parts.path, parts.query))
    return urlunsplit((parts.scheme, host, path, query, ""))


def _download(url: str, label: str, file: BinaryIO) -> None:
    try:
        request = urllib.request.Request(encode_url(url), headers={"User-Agent": "flashvid-hf"})
        with urllib.request.urlopen(request, timeout=DOWNLOAD_TIMEOUT) as response:
            received = _Counted(response)
            content: Iterable[bytes] = received
            codings = response.headers.get("Content-Encoding") or ""
            for coding in reversed([name.strip().lower() for name in codings.split(",")]):
                content = _decode(content, coding)
            for block in content:
                file.write(block)
            announced = int(response.headers.get("Content-Length") or 0)  # of what was sent, that is of encoded bytes
        if received.count < announced:  # urllib does not tell a lost connection from the end of the file
            raise OSError(f"the connection ended after {received.count} of {announced} bytes")
    except Exception as error:
        raise ValueError(f"the video {label} cannot be downloaded: {error or type(error).__name__}") from error


class _Counted:
    """The blocks of a reply, and how many bytes have come."""

    def __init__(self, response: BinaryIO):
        self._response, self.count = response, 0

    def __iter__(self) -> Iterator[bytes]:
        while block := self._response.read(_BLOCK):
            self.count += len(block)
            yield block


def _decode(blocks: Iterable[bytes], coding: str) -> Iterator[bytes]:
    """The content of a reply that a server has compressed although it was not asked to."""
    if coding in ("", "identity"):
        yield from blocks
        return
    if coding not in ("gzip", "x-gzip", "deflate"):
        raise ValueError(f"its `Content-Encoding` is {coding!r}: gzip and deflate can be read. Save it as a file first")
    inflater = None
    for block in blocks:
        while block:
            if inflater is None:
                # "deflate" is meant to have zlib's head, but some servers send it bare; gzip may have several members.
                is_bare = coding == "deflate" and (block[0] & 15 != 8 or int.from_bytes(block[:2], "big") % 31)
                inflater = zlib.decompressobj(-zlib.MAX_WBITS if is_bare else zlib.MAX_WBITS | 32)
            yield inflater.decompress(block)
            block, inflater = (inflater.unused_data, None) if inflater.eof else (b"", inflater)
    if inflater is not None:
        raise OSError("the connection ended before the compressed content did")
