"""The server: where it listens, what it prints, how it ends."""

from __future__ import annotations

import asyncio
import errno
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final, final

import uvicorn

from levada._errors import UsageError
from levada.web.access import Access, is_loopback
from levada.web.app import create_app
from levada.web.browser import opening
from levada.web.connections import MAX_CONNECTIONS, Connection
from levada.web.guard import Guard
from levada.web.pages import MISSING, Pages

__all__ = ["PORT", "Server", "configured", "listening", "serve"]

PORT: Final = 8765


def serve(root: Path, host: str, port: int | None, *, closed: bool, opens: bool, page: str = "") -> None:
    """Serve a folder's runs until Ctrl-C.

    Args:
        root: the folder.
        host: address to listen on.
        port: 0 is any that is free; None is 8765.
        closed: whether reading asks for the token.
        opens: whether to open the page in a browser.
        page: the one that is meant, where it is not that of the runs.

    Raises:
        UsageError: if the folder does not exist, the address or port cannot be used, or would be open to others.
    """
    if not root.is_dir():
        what = "this is a file" if root.exists() else "there is none here"
        raise UsageError(f"{root}: a folder that holds runs is served, and {what}. Give the folder.")
    if not is_loopback(host) and not closed:
        raise UsageError(
            f"--host {host} lets other machines in, and who may read is then said by a token. Add --token, or leave "
            f"--host out and reach this machine by: ssh -L {port or PORT}:127.0.0.1:{port or PORT} THIS_MACHINE"
        )
    access, pages = Access(host, closed), Pages()
    with listening(host, PORT if port is None else port) as bound, ExitStack() as opened:
        shown = "127.0.0.1" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
        # What stands behind # is not sent: the page reads it, and no log has it.
        address = f"http://{shown}:{bound.getsockname()[1]}/{page}#token={access.token}"
        _say(f"Serving {page or root} at {address}")
        if not pages.there:
            _say(MISSING)
        _say("Ctrl-C ends it.")
        if opens and pages.there:
            try:
                opened.enter_context(opening(address))
            except OSError as error:
                _say(f"No browser is opened, as nothing can be written to {error.filename}: {error.strerror}.")
        app = create_app(root.resolve(), access, pages=pages, folder="" if page else str(root))
        with suppress(KeyboardInterrupt):  # uvicorn has closed all, and raises it again
            asyncio.run(Server(configured(app), app.end).serve(sockets=[bound]))
        _say(f"levada {'explore' if page else 'serve'}: ended.")


def configured(app: Guard) -> uvicorn.Config:
    """Give what uvicorn is told: no log of what was asked, and limits.

    Args:
        app: the application.
    """
    return uvicorn.Config(
        app,
        access_log=False,
        log_level="warning",
        server_header=False,
        http=Connection,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=2,
        ws="none",
    )


@final
class Server(uvicorn.Server):
    """uvicorn's, which before it waits for answers to end lets go of those that have none.

    Args:
        config: what it is told.
        end: lets go of them.
    """

    def __init__(self, config: uvicorn.Config, end: Callable[[], None]) -> None:
        super().__init__(config)
        self._end = end

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End all."""
        self._end()
        await super().shutdown(sockets)


def listening(host: str, port: int) -> socket.socket:
    """Give a socket that listens.

    Args:
        host: the address.
        port: 0 is any that is free.

    Raises:
        UsageError: if it cannot.
    """
    if not 0 <= port < 2**16:
        raise UsageError(f"--port must be in [0, 65535], got {port}.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise UsageError(f"--host must be an address of this machine, got {host!r}, which no one knows.") from error
    found = socket.socket(family, kind, protocol)
    try:
        if sys.platform != "win32":
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(MAX_CONNECTIONS)
    except OSError as error:
        found.close()
        if error.errno == errno.EADDRINUSE:
            raise UsageError(
                f"Port {port} of {host} is in use: another server? Give another with --port, or 0."
            ) from error
        if error.errno == errno.EACCES:
            raise UsageError(
                f"Port {port} of {host} may not be used by you. Give one from 1024 on with --port."
            ) from error
        raise UsageError(f"--host must be an address of this machine, got {host!r}: {error.strerror}.") from error
    return found


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201
