"""How much is asked at once, and for how long: what a server does when it is too much."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from levada.web import connections
from levada.web.guard import HEADERS
from levada.web.scanner import MAX_LISTENERS

from .conftest import Client, served


@contextlib.contextmanager
def connected(client: Client, count: int) -> Iterator[list[socket.socket]]:
    """Give connections on which nothing was said yet."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(socket.create_connection(("127.0.0.1", client.port), timeout=30)) for _ in range(count)
        ]


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
        end = time.monotonic() + 30
        while True:  # the places of those that have gone are free
            with connected(client, 1) as (page,):
                page.sendall(asked)
                if status(page) == 200:
                    break
            assert time.monotonic() < end
            time.sleep(0.1)


def test_silent_connections_are_closed_and_do_not_keep_others_out(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "SILENCE", 3.0)
    with served(root) as client, connected(client, connections.MAX_CONNECTIONS) as silent:
        began = time.monotonic()
        refused, headers, body = client.get("/api/1/runs")
        assert (refused, headers["retry-after"], headers["connection"]) == (503, "5", "close")
        assert headers["content-type"] == "application/json"
        assert HEADERS.items() <= headers.items()
        assert "more connections" in json.loads(body)["detail"]
        assert [one.recv(1) for one in silent] == [b""] * len(silent)
        assert 2.0 < time.monotonic() - began < 20.0
        assert client.get("/api/1/runs")[0] == 200


@pytest.mark.parametrize("answered", [False, True])
def test_more_bytes_of_a_request_give_no_more_time(root: Path, monkeypatch: pytest.MonkeyPatch, answered: bool) -> None:
    monkeypatch.setattr(connections, "SILENCE", 1.0)
    with served(root) as client, connected(client, 1) as (slow,):
        if answered:
            slow.sendall(f"HEAD /api/1/runs HTTP/1.1\r\nHost: 127.0.0.1:{client.port}\r\n\r\n".encode())
            assert status(slow) == 200
        slow.settimeout(0.2)
        began = time.monotonic()
        with contextlib.suppress(ConnectionError):
            for byte in b"GET /api/1/runs HTTP/1.1\r\nHost: " + b"x" * 200:
                slow.sendall(bytes([byte]))
                with contextlib.suppress(TimeoutError):
                    while slow.recv(4096):
                        pass
                    break
        assert time.monotonic() - began < 10.0


def test_an_answer_may_take_longer_than_a_request(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "SILENCE", 0.2)
    with served(root) as client, connected(client, 1) as (page,):
        page.sendall(f"GET /api/1/events HTTP/1.1\r\nHost: 127.0.0.1:{client.port}\r\n\r\n".encode())
        assert status(page) == 200
        page.settimeout(1.0)
        with contextlib.suppress(TimeoutError):
            while page.recv(4096):
                pass
            pytest.fail("the stream is closed")
