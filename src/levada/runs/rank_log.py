"""What a process other than the first says of a run: events in a log of its own, beside its signals."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, final

from levada.runs.frames import MAGIC, Damage, encode, frame, scan, survivors
from levada.runs.lock import VERDICTS, WriterLock
from levada.runs.manifest import sync_folder, write_atomically
from levada.runs.segments import put_aside

__all__ = ["RANK_LOG", "RankLog", "damage_of", "mend_rank_log"]

RANK_LOG: Final = "verdicts.log"
_SYNC_SECONDS: Final = 5.0


@final
class RankLog:
    """Appends events to the log of one process; opened with the first of them, so that nothing is made for none.

    It has one writer at a time, from the first event on, or, of a log that is there, from the beginning.

    Args:
        folder: of the rank; made with its parents.

    Attributes:
        goes_on: whether an earlier writer left events.

    Raises:
        UsageError: if another writer holds the log.

    Example:
        >>> import tempfile
        >>> log = RankLog(Path(tempfile.mkdtemp()) / "signals" / "rank-00001")
        >>> log.append("judged", rules=["loss_spike"])
        >>> log.close()
        >>> RankLog(log.path.parent).goes_on, damage_of(log.path.parent)
        (True, [])
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / RANK_LOG
        self.goes_on = self.path.is_file()
        self._descriptor = -1
        self._size = 0
        self._synced = time.monotonic()
        self._lock = WriterLock(folder, VERDICTS) if self.goes_on else None

    def append(self, type: str, **payload: Any) -> None:
        """Append one event, whole or not at all.

        Args:
            type: what the event is.
            **payload: its fields, as what JSON can hold.

        Raises:
            UsageError: if the payload is not JSON or too large, or another writer holds the log.
            OSError: if the disk refuses; the log then ends at the event before.
        """
        data = frame(encode(type, payload))
        if self._descriptor < 0:
            self._open()
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._descriptor, view) :]
        except OSError:
            os.ftruncate(self._descriptor, self._size)
            raise
        self._size += len(data)
        if time.monotonic() - self._synced > _SYNC_SECONDS:
            os.fsync(self._descriptor)
            self._synced = time.monotonic()

    def close(self) -> None:
        """Force everything to the disk; again is harmless."""
        try:
            if self._descriptor >= 0:
                os.fsync(self._descriptor)
        finally:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1
            if self._lock is not None:
                self._lock.release()
                self._lock = None

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = self._lock or WriterLock(self.path.parent, VERDICTS)
        list(mend_rank_log(self.path.parent))
        if not self.path.is_file():
            write_atomically(self.path, MAGIC)
        self._size = self.path.stat().st_size
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_BINARY", 0))
        sync_folder(self.path.parent)


def damage_of(folder: Path) -> list[Damage]:
    """Say what of a rank's log cannot be read.

    Args:
        folder: of the rank.
    """
    path = folder / RANK_LOG
    if not path.is_file():
        return []
    with path.open("rb") as file:
        last = next((found for found in scan(file) if isinstance(found, Damage)), None)
    told = "" if last is None else f"{RANK_LOG}: {last.message}"
    return [] if last is None else [replace(last, message=told, file=RANK_LOG, series="what it told")]


def mend_rank_log(folder: Path) -> Iterator[str]:
    """Write a damaged log again with all good events, and move the damaged one aside.

    Args:
        folder: of the rank.

    Yields:
        What was done.
    """
    for damage in damage_of(folder):
        path = folder / RANK_LOG
        data = path.read_bytes()
        head, tail = data[: damage.offset] or MAGIC, data[damage.offset :]
        good = [tail[found.start : found.stop] for found in survivors(tail)]
        put_aside(path)
        write_atomically(path, head + b"".join(good))
        yield f"{RANK_LOG} is written again, the damaged file is moved aside"
