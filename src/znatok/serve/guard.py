"""What stands before the application: who may come in, and with how much.

A page in a browser can reach a server on the same machine, by another site's form or by a name that suddenly means
127.0.0.1 (DNS rebinding). So the Host header has to be a name of this machine, a request that names its Origin has to
come from the server's own pages, and a body has to call itself JSON, which no form can do.
"""

import asyncio
import hmac
import json
from collections import Counter
from collections.abc import Collection
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from znatok.serve.protocol import error_body

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
LARGEST = 4 << 20  # bytes of a request's body
SLOWEST = 30.0  # seconds in which a body has to arrive
OPEN_TO_ALL = "/health"
JSON_ONLY = "/v1/chat/completions"


class Guard:
    """Middleware that refuses what must not get through."""

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None, key: str | None, largest: int = LARGEST) -> None:
        """Guard ``app``.

        Args:
            app: what is guarded.
            hosts: names a request may call the server by, without a port; None for any.
            key: what a request has to bring as a bearer token, where there is one.
            largest: bytes of a body.
        """
        self._app = app
        self._hosts = hosts
        self._key = key
        self._largest = largest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through or answer it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        refusal = self._refusal(scope)
        if refusal is None and scope["method"] in {"POST", "PUT", "PATCH"}:
            body = await _body(receive, self._largest)
            if isinstance(body, JSONResponse):
                refusal = body
            else:
                refusal = _refuse_repeated(body) if scope["path"] == JSON_ONLY else None
                receive = _replayed(body, receive)
        await (refusal or self._app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self._hosts is not None and _without_port(host).lower() not in self._hosts:
            return _refuse(400, f"Host {host[:100]!r} is no name of this server", "host_not_allowed")
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2].lower() != host.lower():
            return _refuse(403, f"Origin {origin[:100]!r}: pages of other sites may not ask", "origin_not_allowed")
        if self._key is not None and scope["path"] != OPEN_TO_ALL:
            given = headers.get("authorization", "").removeprefix("Bearer ").encode()
            if not hmac.compare_digest(given, self._key.encode()):
                return _refuse(401, "no valid API key; send it as Authorization: Bearer KEY", "invalid_api_key")
        posted = scope["method"] == "POST" and scope["path"] == JSON_ONLY
        if posted and not headers.get("content-type", "").lower().startswith("application/json"):
            return _refuse(415, "expected Content-Type: application/json", "unsupported_media_type")
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > self._largest:
            return _too_large(self._largest)
        return None


async def _body(receive: Receive, largest: int) -> bytes | JSONResponse:
    """Read a whole body; what is wrong with it where it is too large or too slow."""
    parts, size = [], 0
    try:
        async with asyncio.timeout(SLOWEST):
            while True:
                message = await receive()
                part = message.get("body", b"")
                size += len(part)
                if size > largest:
                    return _too_large(largest)
                parts.append(part)
                if message["type"] != "http.request" or not message.get("more_body"):
                    return b"".join(parts)
    except TimeoutError:
        return _refuse(408, f"the body did not arrive within {SLOWEST:g} seconds", "request_timeout")


def _refuse_repeated(body: bytes) -> JSONResponse | None:
    """Return the refusal of a body in which an object names a key twice: one of the two would be ignored silently."""
    repeated: list[str] = []

    def note(pairs: list[tuple[str, Any]]) -> None:
        counted = Counter(name for name, _value in pairs)
        repeated.extend(name for name, count in counted.items() if count > 1)

    try:
        json.loads(body, object_pairs_hook=note)
    except (ValueError, RecursionError):  # what is no JSON at all is told by who reads it
        return None
    if not repeated:
        return None
    return JSONResponse(
        error_body(f"{repeated[0]!r} is given twice", "invalid_request_error", "invalid_value", repeated[0]), 400
    )


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return a ``receive`` that brings a body which was read before, then what really comes."""
    first = True

    async def again() -> Message:
        nonlocal first
        if first:
            first = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return again


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host


def _too_large(largest: int) -> JSONResponse:
    return _refuse(413, f"the body is larger than {largest} bytes", "request_too_large")


def _refuse(status: int, message: str, code: str) -> JSONResponse:
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    kind = "authentication_error" if status == 401 else "invalid_request_error"
    return JSONResponse(error_body(message, kind, code), status, headers)
