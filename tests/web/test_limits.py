"""How much is asked at once, and for how long: what a server does when it is too much."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

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
