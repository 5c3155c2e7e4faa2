"""The connections of the server: how many there may be, and how long one may be silent."""

from __future__ import annotations

import asyncio
from typing import Any, Final, final

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from levada.web.guard import crowded

__all__ = ["MAX_CONNECTIONS", "SILENCE", "Connection"]

MAX_CONNECTIONS: Final = 128
SILENCE: Final = 5.0
"""Seconds in which a connection must have sent a request, from its beginning or the request's first bytes on."""


@final
class Connection(H11Protocol):
    """uvicorn's, which itself waits for ever for a first request, or for the rest of one."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._served, self.app = self.app, self._answer
        self._deadline: asyncio.TimerHandle | None = None

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Not by uvicorn's own limit: its answer is plain text without the headers of every other.
        app: Any = crowded if len(self.connections) > MAX_CONNECTIONS else self._served
        await app(scope, receive, send)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Wait on if this is not all of a request; more bytes give no more time."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._end_wait()
        elif self._deadline is None:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._end_wait()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._deadline = self.loop.call_later(SILENCE, self.transport.close)

    def _end_wait(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
