"""SIGTERM as an exception, so that what is open is closed before a process ends by it."""

from __future__ import annotations

import os
import signal
import socket
import struct
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from types import FrameType
from typing import Any, Final

__all__ = ["PATIENCE", "TERMINATED", "Terminated", "before_end", "terminable"]

TERMINATED: Final = 128 + signal.SIGTERM
"""The exit code, as a shell says what the signal ended."""


class Terminated(SystemExit):
    """SIGTERM came."""


@contextmanager
def terminable() -> Iterator[None]:
    """Raise `Terminated` where SIGTERM comes meanwhile; a second one ends the process at once.

    Where somebody has a handler for it, or sets one, it is theirs alone; where theirs calls the one before it, as
    chained handlers do, `Terminated` is raised. A process that is forked, which others end by this signal, has python's
    own.

    One of several processes, which wait for each other and may not come to raise anything, ends by the signal as it
    would without this; before, on Linux, a thread does what `before_end` was given, within `PATIENCE` seconds.

    Example:
        >>> try:
        ...     with terminable():
        ...         signal.raise_signal(signal.SIGTERM)
        ... except Terminated as ended:
        ...     ended.code
        143
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    if os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
        with _told_apart() if hasattr(socket, "SO_PASSCRED") else nullcontext():  # Linux
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
        if signal.getsignal(signal.SIGTERM) in (_raise, _hear):
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if _ears and (held := signal.set_wakeup_fd(-1)) not in _ears:
            signal.set_wakeup_fd(held)
    _ears.clear()


_masks: dict[int, Any] = {}  # of threads that fork: which signals waited before


def _hold_back() -> None:
    """Let a SIGTERM that comes while a process is forked wait, or a child that is ended at once would lose it."""
    if signal.getsignal(signal.SIGTERM) in (_raise, _hear):
        _masks[threading.get_ident()] = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))


def _let_come() -> None:
    if (mask := _masks.pop(threading.get_ident(), None)) is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _begin_child() -> None:
    _release()
    _let_come()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_hold_back, after_in_parent=_let_come, after_in_child=_begin_child)


# One of several processes: its main thread may wait in a collective for others, and runs no handler meanwhile.

PATIENCE: Final = 10.0
"""Seconds for what is done before the end; a launcher as torchrun gives 30."""

# Seconds in which the main thread, where it runs, starts nothing more, as to tell that others have ended. It may hold a
# lock that the thread needs, and goes on then.
_HELD: Final = 1.0

_CREDENTIALS: Final = struct.Struct("3i")  # of who sends: process, user, group

_acts: list[weakref.WeakMethod[Callable[[], Any]]] = []
_ears: list[int] = []  # where the number of a signal is written when it comes


def before_end(act: Callable[[], Any]) -> None:
    """Have something done where SIGTERM ends one of several processes, by a thread beside the main one.

    Args:
        act: a method of what is still there then; it waits for no other process.
    """
    _acts[:] = [one for one in _acts if one() is not None]
    _acts.append(weakref.WeakMethod(act))


@contextmanager
def _told_apart() -> Iterator[None]:
    """Let a thread hear of SIGTERM at once: python sends its number to it, whatever the main thread waits for."""
    hears, tells = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    hears.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    tells.setblocking(False)
    told = tells.fileno()
    before = signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, _hear)
    _ears[:] = [told]
    listener = threading.Thread(target=_listen, args=(hears,), name="levada-sigterm", daemon=True)
    listener.start()
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is _hear:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        held = signal.set_wakeup_fd(before)
        if held != told:  # somebody has put another in its place
            signal.set_wakeup_fd(held)
        _ears.clear()
        with suppress(OSError):
            tells.send(b"\0")  # ends the thread, also where a child that was forked holds the socket too
            listener.join(2 * PATIENCE)  # where it is ending this process, nothing is left half done
        tells.close()


def _hear(number: int, frame: FrameType | None) -> None:
    """Tell the thread once more, as somebody may have put another pipe in the place of its own; hold the loop up."""
    if signal.getsignal(signal.SIGTERM) is not _hear:  # a handler that was set later calls the one before it
        _raise(number, frame)
    for told in _ears:
        with suppress(OSError):
            os.write(told, bytes([number]))
    if _ears:
        time.sleep(_HELD)


def _listen(hears: socket.socket) -> None:
    ending: threading.Thread | None = None
    while True:
        data, told, *_ = hears.recvmsg(1, socket.CMSG_SPACE(_CREDENTIALS.size))
        sender = _CREDENTIALS.unpack(told[0][2])[0] if told else 0
        if sender != os.getpid():  # a child that was just forked, and writes where its parent does
            continue
        if data == b"\0":
            hears.close()
            return None if ending is None else ending.join()
        # Of whoever handles it now.
        if data[0] == signal.SIGTERM and ending is None and signal.getsignal(signal.SIGTERM) is _hear:
            acting = threading.Thread(target=_act, name="levada-end", daemon=True)
            acting.start()
            ending = threading.Thread(target=_end_behind, args=(acting,), daemon=True)
            ending.start()


def _act() -> None:
    for one in _acts.copy():  # the main thread may add some
        act = one()
        with suppress(Exception):  # the others are done all the same
            if act is not None:
                act()


def _end_behind(ending: threading.Thread) -> None:
    """End this process as the signal does that nobody handles; only the main thread may say so by `signal.signal`."""
    import ctypes

    ending.join(PATIENCE)
    setter = ctypes.pythonapi.PyOS_setsig
    setter.argtypes, setter.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    setter(signal.SIGTERM, None)
    os.kill(os.getpid(), signal.SIGTERM)
