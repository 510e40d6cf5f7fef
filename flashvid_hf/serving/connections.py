"""The connections of the server: a limited number, shared among the clients, and none that only holds its place."""

import asyncio
from collections import Counter

from transformers.utils import logging
from uvicorn.protocols.http.h11_impl import H11Protocol

from .turns import client_of

try:
    import resource
except ImportError:  # Windows, where sockets are no file descriptors
    resource = None  # type: ignore[assignment]

logger = logging.get_logger(__name__)

# Seconds without a request, or without taking a byte of an answer. Clients on slow lines need a few.
WAIT_SECONDS = 30.0
_MOST = 4096  # many times the requests that may be in the server


def most_connections() -> int:
    """How many connections the server may have: half of the files that the process may open, at most 4096."""
    if resource is None:
        return _MOST
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST if limit == resource.RLIM_INFINITY else max(1, min(_MOST, limit // 2))


class BoundedConnection(H11Protocol):
    """A connection of uvicorn, with limits that uvicorn lacks. h11 limits the headers.

    If there are too many connections, the client that has most of them loses its newest one. A connection ends if it
    brings no request, or takes nothing of its answer, for between one and two times `WAIT_SECONDS`.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a new connection in, or close one."""
        super().connection_made(transport)
        self.owner = client_of(self.client[0] if self.client else "")
        self.began = self.loop.time()
        self._seen: object = None  # what the connection was busy with when `_look` looked last
        self._moved = True  # whether the client has taken bytes since then
        self._timer = self.loop.call_later(WAIT_SECONDS, self._look)
        if len(self.connections) > most_connections():
            self._close_one()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._timer.cancel()
        super().connection_lost(exc)

    def resume_writing(self) -> None:
        """Note that the client has taken what was sent."""
        self._moved = True
        super().resume_writing()

    def _close_one(self) -> None:
        # A websocket's connection would lack `owner`, but the server has no address for one.
        numbers = Counter(connection.owner for connection in self.connections)  # type: ignore[union-attr]
        greediest, number = numbers.most_common(1)[0]
        if number <= numbers[self.owner]:
            greediest = self.owner
        theirs = [connection for connection in self.connections if connection.owner == greediest]  # type: ignore
        newest = max(theirs, key=lambda connection: connection.began)  # type: ignore[union-attr]
        logger.warning("There are %d connections, and %d of them from %s.", len(self.connections), number, greediest)
        self.connections.discard(newest)
        newest.transport.abort()

    def _look(self) -> None:
        is_idle = self.cycle is None or self.cycle.response_complete
        is_unread = self.flow.write_paused and not self._moved
        if (is_idle and self._seen is self.cycle) or is_unread:
            self.transport.abort()
            return
        self._seen, self._moved = self.cycle, not self.flow.write_paused
        self._timer = self.loop.call_later(WAIT_SECONDS, self._look)
