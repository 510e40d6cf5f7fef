"""The gate of the server: who may ask, by which name of the host, and with how large a body.

It stands before everything else, so that a refused request costs no more than its headers.
"""

import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .server import MAX_BODY_BYTES

# Names under which a loopback address is reached. A web page of another name could otherwise ask the server through
# the browser on its machine ("DNS rebinding").
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
_OPEN = ("/health",)  # probes of orchestrators have no key


@dataclass(frozen=True)
class GateRules:
    """Who may pass.

    Args:
        api_keys: one of them must come as `Authorization: Bearer KEY`; empty lets everyone in.
        hosts: the names that `Host` may have; `None` for all.
        max_body_bytes: bytes of a request's body.
    """

    api_keys: Sequence[str] = ()
    hosts: Sequence[str] | None = None
    max_body_bytes: int = MAX_BODY_BYTES


OPEN_GATE = GateRules()  # without keys and names, with the usual limit


class Gate:
    """Middleware that refuses requests by `rules`, with errors in OpenAI's form.

    Args:
        app: the application.
        rules: who may pass.
    """

    def __init__(self, app: ASGIApp, rules: GateRules):
        self._app, self._rules = app, rules
        self._hosts = None if rules.hosts is None else {name.lower() for name in rules.hosts}
        self._keys = [_digest(key.encode()) for key in rules.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on to the application, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, most = Headers(scope=scope), self._rules.max_body_bytes
        refusal = None
        if self._hosts is not None and _host_name(headers.get("host", "")) not in self._hosts:
            refusal = error_response(
                403, "`Host` is not a name of this server: start the server with `--allowed-hosts NAME` to add it."
            )
        elif scope["path"] not in _OPEN and not self._has_key(headers.get("authorization", "")):
            refusal = error_response(
                401, "The API key is missing or wrong: send `Authorization: Bearer KEY`.", code="invalid_api_key"
            )
            refusal.headers["WWW-Authenticate"] = "Bearer"
        elif _announced(headers) > most:
            refusal = error_response(413, _too_large(most))
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        count = 0

        async def count_bytes() -> Message:
            nonlocal count
            message = await receive()
            count += len(message.get("body", b""))
            if count > most:
                raise HTTPException(413, _too_large(most))
            return message

        await self._app(scope, count_bytes, send)

    def _has_key(self, authorization: str) -> bool:
        scheme, _, key = authorization.partition(" ")
        given = _digest(key.strip().encode("latin-1"))  # as headers are decoded
        # Every key is compared, so that the time says nothing about which one is nearly right.
        matches = [hmac.compare_digest(given, known) for known in self._keys]
        return not self._keys or (scheme.lower() == "bearer" and any(matches))


def error_response(
    status: int,
    message: str,
    kind: str = "invalid_request_error",
    code: str | None = None,
    param: str | None = None,
) -> JSONResponse:
    """An error in OpenAI's form. `param` is the field of the request that is to blame."""
    return JSONResponse({"error": {"message": message, "type": kind, "param": param, "code": code}}, status)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()  # of one length, so that a comparison does not tell the length of a key


def _host_name(host: str) -> str:
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s:\[\]/@?#]+))(?::\d*)?", host)
    return (found[1] or found[2]).lower().removesuffix(".") if found else ""


def _announced(headers: Headers) -> int:
    length = headers.get("content-length", "")
    return int(length) if length.isascii() and length.isdigit() and len(length) < 20 else 0


def _too_large(most: int) -> str:
    return (
        f"The body has more than {most:,} bytes, the most that this server takes (`--max-body-bytes`). Send the "
        "address of a large video instead of the video."
    )
