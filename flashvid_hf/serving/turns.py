"""Who may go on, and when: places for requests, given to the clients in turn.

A client is an address. One that sends many requests waits longer for each than the others do.
Everything here belongs to the event loop.
"""

import asyncio
import contextvars
import ipaddress
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, TypeVar

Result = TypeVar("Result")

# `Retry-After` in seconds: at least a second, and not so long that a client finds the server idle when it comes back.
_RETRY_SECONDS = (1, 60)
# So many of the last requests say how fast places become free.
_PACE_REQUESTS = 32


def client_of(address: str) -> str:
    """By what a client is known: its address, of IPv6 the network, because one client has all addresses in it."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:  # a name, as of a test's client, or of a Unix socket
        return address
    return str(ipaddress.ip_network((ip, 64), strict=False)) if ip.version == 6 else address


class Places:
    """A number of places. Of those who wait for one, each client gets its turn after every other client had one.

    Args:
        number: how many requests may have a place at the same time.
        per_client: how many of them may be of one client; `None` for all.
    """

    def __init__(self, number: int, per_client: int | None = None):
        self._free, self._per_client = number, number if per_client is None else per_client
        self._taken: Counter[str] = Counter()  # by client
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # the client whose turn is next stands first

    @asynccontextmanager
    async def take(self, client: str) -> AsyncIterator[None]:
        """Have a place inside the `async with` block."""
        await self.acquire(client)
        try:
            yield
        finally:
            self.release(client)

    async def acquire(self, client: str) -> None:
        """Wait for a place and take it."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(turn)
        self._give()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it got the place and was cancelled at the same moment
                self.release(client)
            elif turn in (line := self._waiting.get(client, deque())):
                line.remove(turn)
                if not line:
                    del self._waiting[client]
            raise

    def release(self, client: str) -> None:
        """Give a place back."""
        self._free += 1
        self._taken[client] -= 1
        if not self._taken[client]:
            del self._taken[client]
        self._give()

    def _give(self) -> None:
        while self._free:
            client = next((client for client in self._waiting if self._taken[client] < self._per_client), None)
            if client is None:
                return
            line = self._waiting.pop(client)
            turn = line.popleft()
            if line:
                self._waiting[client] = line  # behind all others
            if not turn.done():
                self._free -= 1
                self._taken[client] += 1
                turn.set_result(None)


class Pace:
    """Takes the bytes of each client no faster than a rate, so that other clients have the rest of the processor.

    Args:
        per_second: bytes of all requests of a client together.
    """

    def __init__(self, per_second: float):
        self._per_second = per_second
        self._next: dict[str, float] = {}  # for each client, when its next bytes may be taken

    async def wait(self, client: str, num_bytes: int) -> None:
        """Wait until so many bytes may be taken."""
        now = time.monotonic()
        begin = max(now, self._next.pop(client, now))
        for other in [name for name, moment in self._next.items() if moment <= now]:
            del self._next[other]
        self._next[client] = begin + num_bytes / self._per_second
        await asyncio.sleep(begin - now)


class Workers:
    """Threads for what would keep the event loop from its other requests.

    Args:
        number: of threads.
        per_client: how many of them may work for one client; `None` for all.
    """

    def __init__(self, number: int, per_client: int | None = None):
        self._places = Places(number, per_client)
        self._jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()
        for _ in range(number):  # as daemons, they do not hold up the end of the process
            threading.Thread(target=self._work, daemon=True).start()

    async def run(self, client: str, function: Callable[..., Result], *arguments: Any) -> Result:
        """The result of a function that runs in a thread, in the context variables of the caller.

        If the caller is cancelled, the function still runs to its end, and keeps its thread until then.
        """
        await self._places.acquire(client)
        loop = asyncio.get_running_loop()
        done, context = loop.create_future(), contextvars.copy_context()

        def finish(result: Any, error: BaseException | None) -> None:
            self._places.release(client)
            if done.done():  # the caller was cancelled
                return
            if error is None:
                done.set_result(result)
            else:
                done.set_exception(error)

        def work() -> None:
            result, error = None, None
            try:
                result = context.run(function, *arguments)
            except BaseException as failure:
                error = failure
            try:
                loop.call_soon_threadsafe(finish, result, error)
            except RuntimeError:  # the loop is closed: the server has ended
                pass

        self._jobs.put(work)
        return await done

    def _work(self) -> None:
        while True:
            self._jobs.get()()


class QueueFull(RuntimeError):
    """Too many requests are in the server.

    Args:
        retry_after: seconds after which there may be room.
    """

    def __init__(self, message: str, retry_after: int):
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(eq=False)
class Visit:
    """The time of one request in the server."""

    client: str
    began: float = field(default_factory=time.monotonic)
    work: asyncio.Task[Any] | None = None  # what answers it, while that may be cancelled in favour of another client
    watch: asyncio.Task[None] | None = None  # waits for the client to go away
    refusal: Exception | None = None  # why it was cancelled


class Visitors:
    """The requests in the server, at most a number of them.

    If the server is full, the client that has most requests in it loses its newest one, and a client that has fewer
    gets the place.

    Args:
        most: how many requests may be in the server at the same time.
    """

    def __init__(self, most: int):
        self._most = most
        self._visits: dict[str, list[Visit]] = {}
        self._departures: deque[float] = deque(maxlen=_PACE_REQUESTS)

    def __len__(self) -> int:
        return sum(map(len, self._visits.values()))

    def enter(self, client: str) -> Visit:
        """Take a place for a request.

        Raises:
            QueueFull: there is no place for this client.
        """
        if len(self) >= self._most:
            greediest = max(self._visits.values(), key=len)
            has_more = len(greediest) > len(self._visits.get(client, ())) + 1
            loser = next((visit for visit in reversed(greediest) if visit.work is not None), None)
            if not has_more or loser is None:
                raise self._refuse()
            loser.refusal = self._refuse()
            loser.work.cancel()  # type: ignore[union-attr]
            self.leave(loser)
        visit = Visit(client)
        self._visits.setdefault(client, []).append(visit)
        return visit

    def leave(self, visit: Visit) -> None:
        """Give the place of a request back; a second time does nothing."""
        visits = self._visits.get(visit.client, [])
        if visit in visits:
            visits.remove(visit)
            self._departures.append(time.monotonic())
            if not visits:
                del self._visits[visit.client]

    def _refuse(self) -> QueueFull:
        """The refusal of a request, with the time in which half of the requests in the server will have left it."""
        least, most = _RETRY_SECONDS
        seconds = float(least)
        if len(self._departures) > 1:
            pace = (time.monotonic() - self._departures[0]) / len(self._departures)  # seconds for each request
            seconds = pace * len(self) / 2
        retry_after = round(min(max(seconds, least), most))
        message = (
            f"The server has {len(self)} requests, and may have {self._most} (`--max-queue` and `--max-num-seqs`). "
            f"Try again in {retry_after} seconds."
        )
        return QueueFull(message, retry_after)
