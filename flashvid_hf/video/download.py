"""Files from URLs and from bytes in memory. Only the package has this module, published folders do not."""

import os
import re
import secrets
import tempfile
import urllib.request
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, BinaryIO
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

from ..compression.validation import check_settings, setting
from .connections import Deadline, RefusedAddress, opener
from .sources import hide_user, scheme_of

DOWNLOAD_TIMEOUT = 30.0  # seconds that the server may stay silent
_BLOCK = 2**16  # bytes that are read or decoded at once
_MOST_REDIRECTS = 10  # as urllib and browsers have it, or fewer
_REDIRECTS = (301, 302, 303, 307, 308)
# What `read_video` leaves to `fetch_file`: schemes of URLs, and "bytes" for the bytes of a file.
SCHEMES = ("bytes", "data", "http", "https")


@dataclass(frozen=True)
class DownloadRules:
    """What may be downloaded, and how much of it."""

    # Four hours at 10 Mbit/s, which is more than video platforms send.
    max_bytes: int = setting(20 * 10**9, "Bytes of a file, after decompression.", least=1, integer=True)
    max_seconds: float = setting(3600, "Seconds of a download, from the first connection to the last byte.", above=0)
    private_networks: bool = setting(
        True, "Whether addresses that are not public may be connected to.", choices=(True, False)
    )
    domains: frozenset[str] | None = setting(
        None, "The only hosts that files are fetched from; `None` for all.", words="a set of names, in lower case"
    )

    def __post_init__(self) -> None:
        check_settings(self)


# Whoever calls the package from Python asks for files on the own behalf, so that private networks are allowed.
_DEFAULT_RULES = DownloadRules()
_RULES: ContextVar[DownloadRules] = ContextVar("download_rules", default=_DEFAULT_RULES)


@contextmanager
def download_rules(rules: DownloadRules) -> Iterator[None]:
    """Let these rules hold for all that is downloaded inside the `with` block, by the same thread or task.

    with download_rules(DownloadRules(max_bytes=10**9, max_seconds=60, private_networks=False)):
        clip = read_video(url)
    """
    token = _RULES.set(rules)
    try:
        yield
    finally:
        _RULES.reset(token)


@contextmanager
def fetch_file(source: str | bytes, label: str, kind: str = "video") -> Iterator[str]:
    """The path of a temporary file with the content of a URL (`http`, `https`, `data`) or with these bytes.

    The file's name cannot be guessed, so that no file can refer to itself.

    Args:
        source: the URL or the bytes.
        label: the name of the source in error messages.
        kind: what it is, in error messages.

    Raises:
        ValueError: it cannot be downloaded, or the rules of `download_rules` forbid it.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = os.path.join(folder, secrets.token_hex(16))
        with open(path, "wb") as file:
            if isinstance(source, (str, os.PathLike)):
                try:
                    _download(os.fspath(source), file, _RULES.get())
                except Exception as error:
                    cause = error.reason if type(error) is URLError else error
                    reason = hide_user(str(cause)) or type(cause).__name__
                    if isinstance(error, HTTPError):  # its text is the host's, which may write anything there
                        reason = f"HTTP status {error.code}"
                    raise ValueError(f"the {kind} {label} cannot be downloaded: {reason}") from error
            else:
                file.write(source)
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


def host_name(name: str) -> str:
    """The name of a host in one form: lower case, ASCII (IDNA), without the dot of the root."""
    name = name.lower().removesuffix(".")
    return name if name.isascii() else name.encode("idna").decode()


def _download(url: str, file: BinaryIO, rules: DownloadRules) -> None:
    if scheme_of(url) == "data":
        header, comma, encoded = url.partition(",")
        if not comma:
            raise ValueError("a `data:` URL has a comma before its content, as in `data:video/mp4;base64,AAAA`")
        if header.endswith(";base64") and (odd := re.search(r"[^A-Za-z0-9+/=\s%]", encoded)):
            raise ValueError(f"its base64 has the character {odd[0]!r}: it is damaged, or written in another alphabet")
        with urllib.request.DataHandler().data_open(urllib.request.Request(url)) as response:
            _copy(_Counted(response), file, rules)
        return
    with _open(url, rules) as response:
        received = _Counted(response)
        content: Iterable[bytes] = received
        codings = [name.strip().lower() for name in (response.headers.get("Content-Encoding") or "").split(",")]
        if len(codings) > 2:  # each may make a thousand bytes of one
            raise ValueError(f"its `Content-Encoding` has {len(codings)} parts: two can be read")
        announced = int(response.headers.get("Content-Length") or 0)  # of what was sent, that is of encoded bytes
        if announced > rules.max_bytes:
            raise ValueError(_too_large(rules))
        for coding in reversed(codings):
            content = _decode(content, coding)
        _copy(content, file, rules)
    if received.count < announced:  # urllib does not tell a lost connection from the end of the file
        raise OSError(f"the connection ended after {received.count} of {announced} bytes")


def _open(url: str, rules: DownloadRules) -> Any:
    """The reply to a request for a URL, after redirects, each of which is checked as the first address is."""
    send = opener(Deadline(rules.max_seconds, DOWNLOAD_TIMEOUT), public_only=not rules.private_networks)
    for _ in range(_MOST_REDIRECTS + 1):
        url = encode_url(url)
        _check_host(url, rules)
        try:
            return send(urllib.request.Request(url, headers={"User-Agent": "flashvid-hf"}))
        except HTTPError as error:
            target = error.headers.get("Location")
            error.close()  # without reading what comes with a redirect, which may be endless
            if error.code not in _REDIRECTS or not target:
                raise
            url = urljoin(url, target)
    raise OSError(f"it is redirected more than {_MOST_REDIRECTS} times")


def _check_host(url: str, rules: DownloadRules) -> None:
    parts = urlsplit(url)
    try:
        parts.port  # noqa: B018 -- it raises, with a text that may be a password
    except ValueError:
        raise RefusedAddress("its port is not a number from 0 to 65535") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise RefusedAddress("it must be an address `http(s)://host/...`, also after redirects")
    if "@" in parts.netloc:
        raise RefusedAddress("it names a user before its host: leave the user out")
    if rules.domains is not None and host_name(parts.hostname) not in rules.domains:
        raise RefusedAddress(f"the host {parts.hostname!r} is not among the allowed media domains")


def _copy(blocks: Iterable[bytes], file: BinaryIO, rules: DownloadRules) -> None:
    count = 0
    for block in blocks:
        count += len(block)
        if count > rules.max_bytes:
            raise ValueError(_too_large(rules))
        file.write(block)


def _too_large(rules: DownloadRules) -> str:
    return f"it has more than {rules.max_bytes:,} bytes, the most that is read (`max_bytes` of `DownloadRules`)"


class _Counted:
    """The blocks of a reply, and how many bytes have come."""

    def __init__(self, response: Any):
        self._response, self.count = response, 0

    def __iter__(self) -> Iterator[bytes]:
        while block := self._response.read(_BLOCK):
            self.count += len(block)
            yield block


def _decode(blocks: Iterable[bytes], coding: str) -> Iterator[bytes]:
    """The content of a reply that a server has compressed although it was not asked to, in blocks of a limited size."""
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
            yield inflater.decompress(block, _BLOCK)
            if inflater.eof:
                block, inflater = inflater.unused_data, None
            else:
                block = inflater.unconsumed_tail
    if inflater is not None:
        yield inflater.flush()
        if not inflater.eof:
            raise OSError("the connection ended before the compressed content did")
