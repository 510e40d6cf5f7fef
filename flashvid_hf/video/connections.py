"""Connections to the servers of videos and pictures: with a deadline, and only to addresses that are allowed.

The address that is checked is the address that is connected to, so that a name that changes its address between the two
(DNS rebinding) gains nothing. Only `download.py` uses this module; published folders have neither.
"""

import functools
import http.client
import ipaddress
import socket
import ssl
import time
import urllib.request
from collections.abc import Callable
from typing import Any

# IPv6 addresses that are assigned to somebody. All else is local, reserved, multicast, or an IPv4 address inside.
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
# IPv6 addresses whose last 32 bits are an IPv4 address that a gateway of the network (NAT64) connects to.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# Addresses that count as public, but lead to services of a cloud that only its own machines may ask: 192.0.0.192 of
# Oracle (older versions of Python take most of the special 192.0.0.0/24 for public), 168.63.129.16 of Azure.
_CLOUDS = (ipaddress.ip_network("192.0.0.0/24"), ipaddress.ip_network("168.63.129.16/32"))


class RefusedAddress(OSError):
    """The rules of a download forbid the host or the address."""


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet.

    Private, loopback, link-local, reserved and multicast addresses do not. An IPv6 address that contains an IPv4
    address (mapped, 6to4, NAT64) counts as that one.
    """
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        return is_public(str(inner)) if inner else ip in _GLOBAL_UNICAST and ip.is_global
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _CLOUDS)


class Deadline:
    """When a download must have ended.

    Args:
        seconds: from now.
        silence: seconds that a single step may take.
    """

    def __init__(self, seconds: float, silence: float):
        self.seconds, self._silence = seconds, silence
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds that the next step may take.

        Raises:
            TimeoutError: the time is over.
        """
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"it took more than {self.seconds:g} seconds")
        return min(left, self._silence)


class _UntilDeadline:
    """For sockets: they read until the deadline. A timeout alone starts anew with every byte that comes."""

    deadline: Deadline

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        self.settimeout(self.deadline.left())  # type: ignore[attr-defined]
        try:
            return super().recv_into(*args, **kwargs)  # type: ignore[misc]
        except TimeoutError:
            self.deadline.left()  # says so if the whole time is over
            raise


class _Socket(_UntilDeadline, socket.socket):
    pass


class _SSLSocket(_UntilDeadline, ssl.SSLSocket):
    pass


@functools.cache
def _ssl_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.sslsocket_class = _SSLSocket
    context.set_alpn_protocols(["http/1.1"])
    return context


def _connect(host: str, port: int, deadline: Deadline, public_only: bool) -> _Socket:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    if public_only and not all(is_public(str(address[0])) for *_, address in found):
        raise RefusedAddress(f"the host {host!r} has an address that is not public")
    failure: OSError | None = None
    for family, kind, protocol, _, address in found:
        connection = _Socket(family, kind, protocol)
        connection.deadline = deadline
        try:
            connection.settimeout(deadline.left())
            connection.connect(address)
            return connection
        except OSError as error:
            connection.close()
            failure = error
    raise failure or OSError(f"the host {host!r} has no address")


class _Connection(http.client.HTTPConnection):
    sock: Any
    _tunnel_host: str | None
    _tunnel: Callable[[], None]

    def __init__(self, host: str, *, deadline: Deadline, public_only: bool, **options: Any):
        super().__init__(host, **options)
        self._deadline, self._public_only = deadline, public_only

    def connect(self) -> None:
        self.sock = _connect(self.host, self.port, self._deadline, self._public_only)
        if self._tunnel_host:  # a proxy
            self._tunnel()


class _SecureConnection(_Connection):
    default_port = http.client.HTTPS_PORT

    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(self._deadline.left())  # of the whole handshake
        self.sock = _ssl_context().wrap_socket(self.sock, server_hostname=self._tunnel_host or self.host)
        self.sock.deadline = self._deadline


class _Handler(urllib.request.AbstractHTTPHandler):
    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_

    def __init__(self, deadline: Deadline, public_only: bool):
        super().__init__()
        self._options: dict[str, Any] = {"deadline": deadline, "public_only": public_only}

    def http_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(functools.partial(_Connection, **self._options), request)

    def https_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(functools.partial(_SecureConnection, **self._options), request)


def opener(deadline: Deadline, public_only: bool) -> Callable[[urllib.request.Request], Any]:
    """A function that sends a request by HTTP or HTTPS, and follows no redirect.

    Args:
        deadline: for connecting and for reading the reply.
        public_only: whether to connect to public addresses only. The proxies that the environment names are then not
            used, because they would connect to any address.

    Returns:
        A function of a request. It returns the reply, and raises `urllib.error.HTTPError` for a status of 300 or above.
    """
    director = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler({} if public_only else None),
        _Handler(deadline, public_only),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.UnknownHandler(),
    ):
        director.add_handler(handler)
    return director.open
