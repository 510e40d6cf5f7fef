"""The way of a request through the server, from its body to its answer.

Only short work runs on the event loop. A request takes these turns, and at each of them clients are served in turn:

1. `Visitors` takes it in, or refuses it because the server is full.
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
from typing import Any

from fastapi import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send
from transformers.cli.serving.utils import X_REQUEST_ID

from .bodies import parse_body
from .engine import Engine
from .handover import HandlerRun
from .turns import Places, Visit, Visitors, Workers, client_of

# Threads that parse bodies and write answers. Both are short, and Python runs one of them at a time.
_QUICK_THREADS = 2
# Threads that download. They mostly wait, and slow connections must not keep others waiting; so no client has all.
_DOWNLOAD_THREADS, _DOWNLOAD_THREADS_PER_CLIENT = 16, 4
# Threads that decode, resize and tokenize. Each keeps a core busy, and libraries use more threads of their own.
_PREPARATION_THREADS = min(4, os.cpu_count() or 1)
# Values in a body: objects, lists, and their entries. Parsing holds Python's global lock, here for about 50 ms at most.
# The longest prompts and the largest tools stay far below; media in base64 are one value each.
_MOST_VALUES = 200_000
_STATUS_GONE = 499  # nobody gets it; the counters show it. nginx uses it for clients that went away


class ClientGone(Exception):
    """The client has closed its connection."""


class RequestFlow:
    """Takes requests through their turns.

    Args:
        engine: answers them.
        max_queue: requests that may be in the server besides those that the engine is answering.
    """

    def __init__(self, engine: Engine, max_queue: int):
        self.visitors = Visitors(max_queue + engine.max_num_seqs)
        self._engine = engine
        self._quick = Workers(_QUICK_THREADS)
        self._downloads = Workers(_DOWNLOAD_THREADS, _DOWNLOAD_THREADS_PER_CLIENT)
        self._preparation = Workers(_PREPARATION_THREADS)
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
        except asyncio.CancelledError:
            if isinstance(visit.refusal, ClientGone):
                return Response(status_code=_STATUS_GONE)
            if visit.refusal is not None:
                raise visit.refusal from None
            raise
        finally:
            if not stays:
                self.visitors.leave(visit)

    async def _answer(self, handler: Any, request: Request, visit: Visit) -> Response:
        client, request_id = visit.client, request.headers.get(X_REQUEST_ID) or str(uuid.uuid4())
        body = await request.body()
        watch = asyncio.create_task(_watch(request, visit))
        answer = None
        try:
            fields = await self._quick.run(client, _accept, handler, body)
            del body
            if handler.has_downloads(fields):
                async with self._downloaded.take(client):
                    fields = await self._downloads.run(client, handler.read, fields)
                    await self._prepared.acquire(client)
            else:
                await self._prepared.acquire(client)
            try:
                run, response = await self._preparation.run(client, _prepare, handler, fields, request_id)
                answer = handler.handover.answer
                answer.client = client
                self._engine.submit(answer)
                await answer.read()
            finally:
                self._prepared.release(client)
            if response is None:
                return await self._quick.run(client, run.go_on, await answer.whole())
        except BaseException:
            if answer is not None:
                self._engine.drop(answer)
            raise
        finally:
            watch.cancel()
        visit.work = None  # a stream that has begun is not given up for another client

        def end() -> None:
            self._engine.drop(answer)
            self.visitors.leave(visit)

        return _Stream(response.body_iterator, end)


def _accept(handler: Any, body: bytes) -> dict[str, Any]:
    """The checked fields of a body."""
    values = sum(body.count(sign) for sign in (b",", b"[", b"{", b"\\"))
    if values > _MOST_VALUES:
        raise ValueError(f"The body has {values:,} values: it may have at most {_MOST_VALUES:,}. Send less.")
    fields = parse_body(body, handler.reader.request_limits.max_json_depth)
    return handler.accept(fields)


def _prepare(handler: Any, fields: dict[str, Any], request_id: str) -> tuple[HandlerRun, Any]:
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
        visit.refusal = ClientGone()
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
        """Send the stream. It ends early if the client goes away."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._end()
