"""What stands before every request and behind every answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final, final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from levada.web.access import Access

__all__ = ["HEADERS", "MAX_BODY", "Guard", "crowded"]

MAX_BODY: Final = 2**14
_POLICY: Final = (
    "default-src 'none'; script-src 'self'{compiled}; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; worker-src 'self' blob:; manifest-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
HEADERS: Final = {
    "content-security-policy": _POLICY.format(compiled=""),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
"""Of every answer but the explorer's page."""
_EXPLORER: Final = {"content-security-policy": _POLICY.format(compiled=" 'wasm-unsafe-eval'")}
"""That page may compile WebAssembly, its engine's inner loops, and reads no run; strings are code for no page."""


@final
class Guard:
    """Refuses what is not for this server, or not from its pages; says to browsers what pages may do.

    Args:
        app: what answers.
        access: who may ask.
        end: what ends answers that have no end of their own.
    """

    def __init__(self, app: ASGIApp, access: Access, end: Callable[[], None]) -> None:
        self._app, self._access, self.end = app, access, end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        inside = scope["path"].startswith("/api/")

        own = {"cache-control": "no-store"} if inside else _EXPLORER if scope["path"] == "/explore.html" else {}
        guarded = _with_headers(send, HEADERS | own)
        refused = self._refused(scope, inside)
        if refused is not None:
            return await _answer(guarded, *refused)
        if scope["method"] == "HEAD":
            return await self._app({**scope, "method": "GET", "levada.head": True}, receive, _headless(guarded))
        if scope["method"] == "GET":
            return await self._app(scope, receive, guarded)
        body = await _body(receive)
        if body is None:
            return await _answer(guarded, 413, f"A request has at most {MAX_BODY:,} bytes. Send fewer.")
        return await self._app(scope, _again(body, receive), guarded)

    def _refused(self, scope: Scope, inside: bool) -> tuple[int, str] | None:
        """Say why a request is refused."""
        pairs = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]
        headers = dict(pairs)
        if sum(name == "host" for name, _ in pairs) != 1 or not self._access.knows_host(headers["host"]):
            return 403, "The Host of a request must be a name of this server. Open the address that levada printed."
        reads = scope["method"] in ("GET", "HEAD")
        if self._access.is_foreign(headers, opens=reads and not inside):
            return 403, "A page of another site may not ask this server. Open the address that levada printed."
        if not reads:
            if not self._access.is_own_page(headers):
                return 403, "What is more than reading is asked by a page of this server: with its Origin."
            if not self._access.is_token(headers):
                return 401, "What is more than reading needs the token of this launch: Authorization: Bearer TOKEN."
        elif inside and not self._access.may_read(headers):
            return 401, "This server was started with --token: reading needs it. Open the address that levada printed."
        return None


async def crowded(scope: Scope, receive: Receive, send: Send) -> None:
    """Say that there are too many connections, and end this one."""
    added = HEADERS | {"cache-control": "no-store", "retry-after": "5", "connection": "close"}
    told = "There are more connections to this server than it keeps. Close pages that show it, and ask again."
    guarded = _with_headers(send, added)
    await _answer(_headless(guarded) if scope["method"] == "HEAD" else guarded, 503, told)


def _with_headers(send: Send, added: Mapping[str, str]) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = [(name, value) for name, value in message["headers"] if name.decode().lower() not in added]
            message["headers"] = [*own, *((name.encode(), value.encode()) for name, value in added.items())]
        await send(message)

    return sent


def _headless(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    return sent


async def _answer(send: Send, status: int, sentence: str) -> None:
    body = json.dumps({"detail": sentence}).encode()
    headers: list[Any] = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(b"www-authenticate", b"Bearer")] if status == 401 else []
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _body(receive: Receive) -> bytes | None:
    """Read a body; None if it is too large."""
    body: bytes = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return body
        body += message.get("body", b"")
        if len(body) > MAX_BODY:
            return None
        if not message.get("more_body"):
            return body


def _again(body: bytes, receive: Receive) -> Receive:
    given = False

    async def received() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return received
