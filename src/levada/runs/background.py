"""Work for one thread, handed over through a bounded queue: who hands it over neither waits nor fails."""

from __future__ import annotations

import atexit
import os
import queue
import threading
from collections.abc import Callable
from typing import Any, final

__all__ = ["Background"]


@final
class Background:
    """A daemon thread that does pieces of work in order.

    Args:
        work: does one piece; it must not raise.
        capacity: how many pieces may wait.
        name: of the thread.
        at_exit: called once, in the interpreter's exit, if `stop` was not called before.
    """

    def __init__(self, work: Callable[[Any], None], *, capacity: int, name: str, at_exit: Callable[[], None]) -> None:
        self._work = work
        self._queue: queue.Queue[Any] = queue.Queue(capacity)
        self._process = os.getpid()
        self._stopped = False
        self._at_exit = at_exit
        # Behind `multiprocessing` and the hooks of loggers, before the interpreter stops daemon threads.
        atexit.register(at_exit)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (piece := self._queue.get()) is not None:
            if isinstance(piece, threading.Event):
                piece.set()
            else:
                self._work(piece)
            del piece

    @property
    def foreign(self) -> bool:
        """Whether this is a forked child, where there is no thread and nothing may be written."""
        return os.getpid() != self._process

    def put(self, piece: Any) -> bool:
        """Hand over a piece; False if it was not taken, because too many wait or the end has come."""
        if self._stopped or self.foreign:
            return False
        try:
            self._queue.put_nowait(piece)
        except queue.Full:
            return False
        return True

    def flush(self, seconds: float) -> bool:
        """Wait until what was handed over is done; False if it is not after so many seconds."""
        if self.foreign or not self._thread.is_alive():
            return False
        done = threading.Event()
        try:
            self._queue.put(done, timeout=seconds)
        except queue.Full:
            return False
        return done.wait(seconds)

    def stop(self, seconds: float) -> bool:
        """Do what waits, then end the thread; again is harmless.

        Returns:
            Whether the thread has ended within so many seconds.
        """
        if self.foreign:
            return False
        if not self._stopped:
            self._stopped = True
            atexit.unregister(self._at_exit)
            try:
                self._queue.put(None, timeout=seconds)
            except queue.Full:
                return False
        self._thread.join(seconds)
        return not self._thread.is_alive()
