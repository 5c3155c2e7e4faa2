"""SIGTERM as an exception, so that what is open is closed before a process ends by it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Final

__all__ = ["TERMINATED", "Terminated", "terminable"]

TERMINATED: Final = 128 + signal.SIGTERM
"""The exit code, as a shell says what the signal ended."""


class Terminated(SystemExit):
    """SIGTERM came."""


@contextmanager
def terminable() -> Iterator[None]:
    """Raise `Terminated` where SIGTERM comes meanwhile; a second one ends the process at once.

    Where somebody has a handler for it, or sets one, it is theirs alone. A process that is forked, which others end by
    this signal, has python's own. Of several processes, which wait for each other and may not come to raise anything,
    nothing is changed.

    Example:
        >>> try:
        ...     with terminable():
        ...         signal.raise_signal(signal.SIGTERM)
        ... except Terminated as ended:
        ...     ended.code
        143
    """
    several = os.environ.get("WORLD_SIZE", "1") not in ("", "1")
    if several or threading.current_thread() is not threading.main_thread():
        yield
        return
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    finally:
        _release()


def _raise(number: int, frame: FrameType | None) -> None:
    _release()
    raise Terminated(TERMINATED)


def _release() -> None:
    with suppress(ValueError):  # a thread that is not the main one forked
        if signal.getsignal(signal.SIGTERM) is _raise:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release)
