"""The way of a request through the server, from its body to its answer.

Only short work runs on the event loop. A request takes these turns, and at each of them clients are served in turn:

1. `Visitors` takes it in, or refuses it because the server is full. Its body is read; large ones wait for a place.
2. A thread parses its body and checks its fields.
3. If it names files on the web, a thread for slow connections downloads and reads them.
4. A thread reads its other media, tokenizes its text, and makes the model's inputs.
5. The engine reads the prompt and writes the answer.
6. A thread puts the text into the form of the answer. A stream does so as it comes.

A request whose client goes away leaves all of them.
"""

import asyncio
import os
import uuid
from collections.abc import AsyncIterable, Callable
from contextlib import AsyncExitStack, nullcontext, suppress
from typing import Any

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send
from transformers.cli.serving.utils import X_REQUEST_ID

from .bodies import parse_body
from .engine import Engine, EngineUnavailable
from .gate import error_response
from .handover import HandlerRun
from .turns import Pace, Places, Visit, Visitors, Workers, client_of

# Threads that parse bodies and write answers. Both are short, and Python runs one of them at a time.
_QUICK_THREADS, _QUICK_THREADS_PER_CLIENT = 2, 1
# Threads that download. They mostly wait, and slow connections must not keep others waiting; so no client has all.
_DOWNLOAD_THREADS, _DOWNLOAD_THREADS_PER_CLIENT = 16, 4
# Threads that decode, resize and tokenize. Each keeps a core busy, and libraries use more threads of their own. A
# client with long videos has all but one of them.
_PREPARATION_THREADS = max(2, min(4, os.cpu_count() or 1))
# Bytes. Larger bodies have their places, which they leave when their media are decoded. So all bodies together take
# about a gigabyte with the usual limit of one body.
_LARGE_BODY, _LARGE_BODIES, _LARGE_BODIES_PER_CLIENT = 2**20, 16, 12
# Bytes a second that are taken from a client. Receiving and parsing them costs the time of the thread that also serves
# all others: about a fifth of it at this rate. A body of the usual limit takes 4 seconds.
_BODY_RATE = 16 * 2**20
# Seconds from the headers of a request to the end of its body. The largest one comes in time over 5 Mbit/s.
_BODY_SECONDS = 120.0
# Values in a body: objects, lists, and their entries. Parsing holds Python's global lock, here for about 50 ms at most.
# The longest prompts and the largest tools stay far below; media in base64 are one value each.
_MOST_VALUES = 200_000
_STOPS = "The server stops."
_LAST_SECONDS = 1.0  # for telling a client of a stream that the server stops
_STATUS_GONE = 499  # nobody gets it; the counters show it. nginx uses it for clients that went away


class RequestFlow:
    """Takes requests through their turns.

    Args:
        engine: answers them.
        max_queue: requests that may be in the server besides those that the engine is answering.
    """

    def __init__(self, engine: Engine, max_queue: int):
        self.visitors = Visitors(max_queue + engine.max_num_seqs)
        self._engine = engine
        self._bodies = Places(_LARGE_BODIES, _LARGE_BODIES_PER_CLIENT)
        self._pace = Pace(_BODY_RATE)
        self._quick = Workers(_QUICK_THREADS, _QUICK_THREADS_PER_CLIENT)
        self._downloads = Workers(_DOWNLOAD_THREADS, _DOWNLOAD_THREADS_PER_CLIENT)
        self._preparation = Workers(_PREPARATION_THREADS, _PREPARATION_THREADS - 1)
        # Decoded media wait in memory, so only a few requests may be that far before the engine takes them.
        self._downloaded = Places(_DOWNLOAD_THREADS, _DOWNLOAD_THREADS_PER_CLIENT)
        prepared = engine.max_num_seqs + _PREPARATION_THREADS
        self._prepared = Places(prepared, per_client=prepared - 1)

    async def answer(self, handler: Any, request: Request) -> Response:
        """Answer a request.

        Args:
            handler: a `VideoHandler` for this request.
            request: whose body has not been read.

        Raises:
            ValueError: the request is invalid, found by this package.
            HTTPException: the request is invalid, found by transformers.
            QueueFull: the server is full.
            EngineUnavailable, GenerationFailed: the model cannot answer.
        """
        visit = self.visitors.enter(client_of(request.client.host if request.client else ""))
        visit.work = asyncio.create_task(self._answer(handler, request, visit))
        stays = False
        try:
            response = await visit.work
            stays = isinstance(response, StreamingResponse)
            return response
        except ClientDisconnect:
            return Response(status_code=_STATUS_GONE)
        except asyncio.CancelledError:
            if isinstance(visit.refusal, ClientDisconnect):
                return Response(status_code=_STATUS_GONE)
            if visit.refusal is not None:
                raise visit.refusal from None
            raise EngineUnavailable(_STOPS) from None  # uvicorn's time for the last answers is over
        finally:
            if not stays:
                self.visitors.leave(visit)

    async def _answer(self, handler: Any, request: Request, visit: Visit) -> Response:
        answer = None
        try:
            async with AsyncExitStack() as ends:  # of the place of an answer whose prompt waits
                run, response = await self._prepare(handler, request, visit, ends)
                answer = handler.handover.answer
                answer.client = visit.client
                self._engine.submit(answer)
                await answer.read()
            if response is None:
                return await self._quick.run(visit.client, run.go_on, await answer.whole())
        except BaseException:
            if answer is not None:
                self._engine.drop(answer)
            raise
        finally:
            if visit.watch is not None:
                visit.watch.cancel()
        visit.work = None  # a stream that has begun is not given up for another client

        def end() -> None:
            self._engine.drop(answer)
            self.visitors.leave(visit)

        return _Stream(response.body_iterator, end)

    async def _prepare(
        self, handler: Any, request: Request, visit: Visit, ends: AsyncExitStack
    ) -> tuple[HandlerRun, Any]:
        """Steps 2 to 4. Then the answer has a place among those that are prepared, which it leaves when `ends` ends."""
        client, request_id = visit.client, request.headers.get(X_REQUEST_ID) or str(uuid.uuid4())
        async with self._bodies.take(client) if _is_large(request) else nullcontext():
            body = await _read_body(request, client, self._pace)
            visit.watch = asyncio.create_task(_watch(request, visit))
            fields = await self._quick.run(client, _accept, handler, body)
            del body
            if handler.has_downloads(fields):
                async with self._downloaded.take(client):
                    fields = await self._downloads.run(client, handler.read, fields)
                    await ends.enter_async_context(self._prepared.take(client))
            else:
                await ends.enter_async_context(self._prepared.take(client))
            return await self._preparation.run(client, _start, handler, fields, request_id)


def _is_large(request: Request) -> bool:
    length = request.headers.get("content-length", "")
    return not length.isdigit() or int(length) > _LARGE_BODY  # the length of a body in chunks shows at its end


async def _read_body(request: Request, client: str, pace: Pace) -> bytes:
    async def read() -> bytes:  # `Request.body` would keep the bytes as long as the request
        pieces = []
        async for piece in request.stream():
            pieces.append(piece)
            await pace.wait(client, len(piece))
        return b"".join(pieces)

    try:
        return await asyncio.wait_for(read(), _BODY_SECONDS)
    except asyncio.TimeoutError:
        message = f"The body is not complete after {_BODY_SECONDS:.0f} seconds. Send the address of a large video."
        raise HTTPException(408, message) from None


def _accept(handler: Any, body: bytes) -> dict[str, Any]:
    """The checked fields of a body."""
    values = 0
    for begin in range(0, len(body), _LARGE_BODY):  # other threads run between the pieces
        piece = body[begin : begin + _LARGE_BODY]
        values += sum(piece.count(sign) for sign in (b",", b"[", b"{", b"\\"))
        if values > _MOST_VALUES:
            raise ValueError(f"The body has {values:,} values or more: it may have {_MOST_VALUES:,}. Send less.")
    fields = parse_body(body, handler.reader.request_limits.max_json_depth)
    return handler.accept(fields)


def _start(handler: Any, fields: dict[str, Any], request_id: str) -> tuple[HandlerRun, Any]:
    """Run a handler until the engine has to answer.

    Returns:
        The run, and the response if it is a stream.
    """
    run = HandlerRun(handler.handle_request(handler.read(fields), request_id))
    return run, run.go_on()


async def _watch(request: Request, visit: Visit) -> None:
    """Cancel the work of a request when its client goes away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    if visit.work is not None:
        visit.refusal = ClientDisconnect()
        visit.work.cancel()


class _Stream(StreamingResponse):
    """A stream of server-sent events that says when it is over, however it ends.

    Args:
        content: the events.
        end: is called at the end.
    """

    def __init__(self, content: AsyncIterable[Any], end: Callable[[], None]):
        super().__init__(content, media_type="text/event-stream")
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream. It ends early if the client goes away, and with an error if the server stops."""
        try:
            await super().__call__(scope, receive, send)
        except asyncio.CancelledError:  # uvicorn's time for the last answers is over; it would log a traceback
            event = b"data: " + bytes(error_response(503, _STOPS, "server_error").body) + b"\n\n"
            with suppress(asyncio.CancelledError, asyncio.TimeoutError):  # of a client that takes nothing
                await asyncio.wait_for(send({"type": "http.response.body", "body": event}), _LAST_SECONDS)
        finally:
            self._end()
