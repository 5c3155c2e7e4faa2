"""The last lines of a terminal, kept for a view, while all that is printed scrolls above them."""

from __future__ import annotations

import atexit
import os
import signal
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any, ClassVar, Final, TextIO, final

__all__ = ["Screen"]

LEAST_ROOM: Final = 8  # lines that are left for what is printed
_SAVE, _RESTORE = "\x1b7", "\x1b8"


@final
class Screen:
    """Keeps the last lines of a terminal for itself.

    The terminal scrolls only the lines above (a scroll region, as package managers use for their bars). So nothing that
    is printed has to pass through here: the prints of the script, progress bars, what C code and other processes write
    all go where they would have gone, and nothing of it is lost. Each frame is one write, which leaves the cursor where
    it was.

    Args:
        stream: the terminal.

    Example:
        >>> import io
        >>> Screen.fits(io.StringIO(), 10)
        False
    """

    active: ClassVar[Screen | None] = None

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._height = 0
        self._size: tuple[int, int] | None = None  # columns and lines for which the region was set
        self._process = os.getpid()
        self._terminated: Any = None

    @staticmethod
    def size(stream: TextIO) -> tuple[int, int] | None:
        """Give columns and lines of the terminal; None where there is none that can move its cursor."""
        try:
            if not stream.isatty() or os.environ.get("TERM", "") in ("", "dumb"):
                return None
            found = os.get_terminal_size(stream.fileno())
        except (OSError, ValueError, AttributeError):
            return None
        return (found.columns, found.lines) if found.columns and found.lines else None

    @classmethod
    def fits(cls, stream: TextIO, height: int) -> bool:
        """Say whether a view of this height leaves room for what is printed."""
        size = cls.size(stream)
        return size is not None and size[1] >= height + LEAST_ROOM

    def draw(self, lines: Sequence[str]) -> None:
        """Show lines, which are as wide as the terminal at most; where they leave no room, give the terminal back.

        Args:
            lines: from the upper one on.
        """
        if os.getpid() != self._process:  # a forked child has its parent's terminal
            return
        size = self.size(self._stream)
        if size is None or not self.fits(self._stream, len(lines)):
            self.close()
            return
        text = self._begin(size, len(lines)) if (size, len(lines)) != (self._size, self._height) else ""
        top = size[1] - len(lines) + 1
        drawn = "".join(f"\x1b[{top + i};1H\x1b[0m\x1b[2K{line}" for i, line in enumerate(lines))
        self._write(f"{text}{_SAVE}{drawn}\x1b[0m{_RESTORE}")

    def close(self) -> None:
        """Give the lines back, with the cursor where printing stopped; again is harmless."""
        if self._size is None or os.getpid() != self._process:
            return
        size = self.size(self._stream) or self._size
        top = max(1, size[1] - self._height + 1)
        cleared = "".join(f"\x1b[{line};1H\x1b[2K" for line in range(top, size[1] + 1))
        self._size = None
        if Screen.active is self:
            Screen.active = None
        atexit.unregister(self.close)
        self._let_terminate()
        self._write(f"{_SAVE}\x1b[r{cleared}{_RESTORE}\x1b[0m")

    def _begin(self, size: tuple[int, int], height: int) -> str:
        """Make room below the cursor, without moving it within its line, and set the region."""
        if self._size is None:
            Screen.active = self
            atexit.register(self.close)
            self._catch_termination()
        # After a change of size: the old region is lifted, and what stood in it, below the cursor, is cleared.
        lift = "" if self._size is None else f"{_SAVE}\x1b[r{_RESTORE}\x1b[J"
        self._size, self._height = size, height
        room = "\x1bD" * height + f"\x1b[{height}A"
        return f"{lift}{room}{_SAVE}\x1b[1;{size[1] - height}r{_RESTORE}"

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # the terminal is gone
            self._size = None

    def _catch_termination(self) -> None:
        # A process that is asked to end, and has no handler, would leave the terminal with a region.
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._terminate)
            self._terminated = self._terminate

    def _let_terminate(self) -> None:
        if self._terminated is not None and threading.current_thread() is threading.main_thread():
            if signal.getsignal(signal.SIGTERM) == self._terminated:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
            self._terminated = None

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        self.close()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), number)
