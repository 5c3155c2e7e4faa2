"""A terminal on a pseudo-terminal: what a person would see, and what scrolled away."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from typing import TextIO

TOKEN = re.compile(rb"\x1b\[(\??[\d;]*)([A-Za-z])|\x1b([78DM])|([\r\n\b])|([^\x1b\r\n\b]+)|(\x1b)")

# What a read may end with: the first bytes of a sequence, or of a letter.
BEGUN = re.compile(rb"(?:\x1b(?:\[\??[\d;]*)?|[\xc2-\xdf]|[\xe0-\xef][\x80-\xbf]?|[\xf0-\xf4][\x80-\xbf]{0,2})\Z")


class Terminal:
    """Understands what the live view and progress bars send; anything else fails the test."""

    def __init__(self, columns: int = 80, lines: int = 40) -> None:
        self.columns, self.lines = columns, lines
        self.master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.stream: TextIO = os.fdopen(os.dup(self.slave), "w", encoding="utf-8")
        self.screen = [" " * columns for _ in range(lines)]
        self.gone: list[str] = []
        self.row = self.column = 0
        self.saved = (0, 0)
        self.region = (0, lines - 1)
        self.raw = self.begun = b""

    def resize(self, lines: int) -> None:
        """Change the height, as a person does: rows at the bottom go or come."""
        self.feed()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, self.columns, 0, 0))
        while len(self.screen) > lines:
            if self.row >= lines:
                self.gone.append(self.screen.pop(0))
                self.row -= 1
            else:
                self.screen.pop()
        self.screen += [" " * self.columns] * (lines - len(self.screen))
        self.lines, self.region = lines, (0, lines - 1)

    def close(self) -> None:
        """Close both ends."""
        self.stream.close()
        os.close(self.slave)
        os.close(self.master)

    def feed(self, wait: float = 0.0) -> None:
        """Take in what was written."""
        data, stop = b"", time.monotonic() + wait
        while select.select([self.master], [], [], max(0.0, stop - time.monotonic()))[0]:
            try:
                data += os.read(self.master, 65536)
            except OSError:
                break
        self.raw += data
        data = self.begun + data
        begun = BEGUN.search(data)
        self.begun = data[begun.start() :] if begun else b""
        data = data.removesuffix(self.begun)
        end = 0
        for match in TOKEN.finditer(data):
            assert match.start() == end, data[end : match.start()]
            end = match.end()
            self._take(*match.groups())

    def until(self, word: str, process: subprocess.Popen[bytes]) -> None:
        """Take in what a program writes until a word is seen, however long that takes; the program must not end."""
        while word not in self.text:
            running = process.poll() is None
            self.feed(0.05)
            assert running or word in self.text, self.text

    def ended(self, process: subprocess.Popen[bytes]) -> int:
        """Take in all that a program writes until it ends, and give its exit code."""
        while process.poll() is None:  # which it may not, as long as nobody reads
            self.feed(0.05)
        # What is written now comes behind all of it.
        self.stream.write("\nthe program ended\n")
        self.stream.flush()
        while "the program ended" not in self.text:
            self.feed(0.05)
        return process.returncode

    @property
    def text(self) -> str:
        """All lines, those that scrolled away first."""
        return "\n".join(line.rstrip() for line in (*self.gone, *self.screen))

    def _take(
        self, given: bytes | None, command: bytes | None, escape: bytes | None, control: bytes | None,
        text: bytes | None, alone: bytes | None,
    ) -> None:  # fmt: skip
        assert alone is None
        if text is not None:
            for letter in text.decode():
                if self.column == self.columns:
                    self.column = 0
                    self._down()
                line = self.screen[self.row]
                self.screen[self.row] = line[: self.column] + letter + line[self.column + 1 :]
                self.column += 1
        elif control is not None:
            if control == b"\n":
                self._down()
            else:
                self.column = 0 if control == b"\r" else self.column - 1
        elif escape is not None:
            if escape == b"7":
                self.saved = (self.row, self.column)
            elif escape == b"8":
                self.row, self.column = self.saved
            else:
                assert escape == b"D"
                self._down()
        elif command is not None:
            self._command((given or b"").decode(), command.decode())

    def _down(self) -> None:
        if self.row != self.region[1]:
            self.row = min(self.row + 1, self.lines - 1)
            return
        first, last = self.region
        if first == 0:
            self.gone.append(self.screen[0])
        self.screen[first : last + 1] = [*self.screen[first + 1 : last + 1], " " * self.columns]

    def _command(self, given: str, command: str) -> None:
        numbers = [int(part) for part in given.split(";") if part.isdigit()]
        first = numbers[0] if numbers else 0
        if command == "A":
            self.row = max(self.row - max(first, 1), 0)
        elif command == "H":
            self.row, self.column = (numbers[0] - 1, numbers[1] - 1) if numbers else (0, 0)
            assert 0 <= self.row < self.lines
        elif command == "K":
            line = self.screen[self.row]
            self.screen[self.row] = " " * self.columns if first == 2 else line[: self.column].ljust(self.columns)
        elif command == "J":
            self.screen[self.row] = self.screen[self.row][: self.column].ljust(self.columns)
            self.screen[self.row + 1 :] = [" " * self.columns] * (self.lines - self.row - 1)
        elif command == "r":
            self.region = (numbers[0] - 1, numbers[1] - 1) if numbers else (0, self.lines - 1)
            assert 0 <= self.region[0] < self.region[1] < self.lines
            self.row = self.column = 0
        else:
            assert command in ("m", "h", "l"), command
