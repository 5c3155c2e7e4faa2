"""How much is asked at once, and for how long: what a server does when it is too much."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from levada.web import connections
from levada.web.guard import HEADERS
from levada.web.scanner import MAX_LISTENERS

from .conftest import WAIT, Client, served


@contextlib.contextmanager
def connected(client: Client, count: int) -> Iterator[list[socket.socket]]:
    """Give connections on which nothing was said yet."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(socket.create_connection(("127.0.0.1", client.port), timeout=WAIT))
            for _ in range(count)
        ]


class Silence:
    """How long connections may be silent, by a clock that stands still: what waits, and what ends it."""

    seconds = 600.0

    def __init__(self) -> None:
        self.waits: list[tuple[Any, asyncio.TimerHandle, Callable[[], Any]]] = []
        self.heard = 0

    @property
    def waiting(self) -> list[asyncio.TimerHandle]:
        """Waits that nothing has ended."""
        return [handle for _, handle, _ in self.waits if not handle.cancelled()]

    def passes(self) -> None:
        """Let the time pass that is waited for."""
        for loop, handle, ends in list(self.waits):
            loop.call_soon_threadsafe(lambda handle=handle, ends=ends: handle.cancelled() or ends())


@pytest.fixture
def silence(monkeypatch: pytest.MonkeyPatch) -> Silence:
    """Take the time out of the waits of all connections that are made from here on."""
    held, later, received = Silence(), asyncio.BaseEventLoop.call_later, connections.Connection.data_received

    def call_later(loop: Any, delay: float, ends: Any, *given: Any, **how: Any) -> asyncio.TimerHandle:
        handle = later(loop, delay, ends, *given, **how)
        if delay == Silence.seconds:
            held.waits.append((loop, handle, ends))
        return handle

    def data_received(self: Any, data: bytes) -> None:
        received(self, data)
        held.heard += len(data)

    monkeypatch.setattr(connections, "SILENCE", Silence.seconds)
    monkeypatch.setattr(asyncio.BaseEventLoop, "call_later", call_later)
    monkeypatch.setattr(connections.Connection, "data_received", data_received)
    return held


def status(one: socket.socket) -> int:
    """Read the first line of an answer."""
    return int(one.recv(12, socket.MSG_WAITALL).split()[1])


def test_no_more_pages_listen_than_may_also_if_all_ask_at_once(root: Path) -> None:
    with served(root) as client:
        asked = f"GET /api/1/events HTTP/1.1\r\nHost: 127.0.0.1:{client.port}\r\n\r\n".encode()
        with connected(client, MAX_LISTENERS + 6) as pages:
            for page in pages:
                page.sendall(asked)
            answers = [status(page) for page in pages]
            assert sorted(answers) == [200] * MAX_LISTENERS + [503] * 6
        end = time.monotonic() + 300
        while True:  # the places of those that have gone are free
            with connected(client, 1) as (page,):
                page.sendall(asked)
                if status(page) == 200:
                    break
            assert time.monotonic() < end
            time.sleep(0.1)


def test_silent_connections_are_closed_and_do_not_keep_others_out(root: Path, silence: Silence) -> None:
    with served(root) as client, connected(client, connections.MAX_CONNECTIONS) as silent:
        refused, headers, body = client.get("/api/1/runs")
        assert (refused, headers["retry-after"], headers["connection"]) == (503, "5", "close")
        assert headers["content-type"] == "application/json"
        assert HEADERS.items() <= headers.items()
        assert "more connections" in json.loads(body)["detail"]
        silence.passes()
        assert [one.recv(1) for one in silent] == [b""] * len(silent)
        assert client.get("/api/1/runs")[0] == 200


@pytest.mark.parametrize("answered", [False, True])
def test_more_bytes_of_a_request_give_no_more_time(root: Path, silence: Silence, answered: bool) -> None:
    with served(root) as client, connected(client, 1) as (slow,):
        first = f"HEAD /api/1/runs HTTP/1.1\r\nHost: 127.0.0.1:{client.port}\r\n\r\n".encode() if answered else b""
        if answered:
            slow.sendall(first)
            assert status(slow) == 200
            while b"\r\n\r\n" not in slow.recv(4096, socket.MSG_PEEK):
                pass
            slow.recv(4096)
        waiting = []
        for sent, byte in enumerate(b"GET /api/1/runs HTTP/1.1\r\nHost: xxxx", start=len(first) + 1):
            slow.sendall(bytes([byte]))
            while silence.heard < sent:
                time.sleep(0.001)
            waiting.append(silence.waiting)
        (only,) = waiting[0]
        assert waiting == [[only]] * len(waiting)
        silence.passes()
        assert slow.recv(1) == b""


def test_an_answer_may_take_longer_than_a_request(root: Path, silence: Silence) -> None:
    with served(root) as client, connected(client, 1) as (page,):
        page.sendall(f"GET /api/1/events HTTP/1.1\r\nHost: 127.0.0.1:{client.port}\r\n\r\n".encode())
        assert status(page) == 200
        assert len(silence.waits) == 1
        assert silence.waiting == []
