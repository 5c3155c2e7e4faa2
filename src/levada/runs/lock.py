"""One writer per run: a lock that the operating system releases when its holder dies."""

from __future__ import annotations

import errno
import os
import socket
import sys
import time
import weakref
from pathlib import Path
from typing import Final, final

from levada._errors import UsageError

__all__ = ["LOCKS", "NAME", "VERDICTS", "WriterLock", "is_held"]

NAME: Final = "writer.lock"
VERDICTS: Final = "verdicts.lock"  # of what a process tells, beside the lock of its signals
LOCKS: Final = (NAME, VERDICTS)
# EDEADLOCK is what Windows says.
_TAKEN: Final = frozenset({errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK})
_PAUSES: Final = (0.01, 0.05)  # who asks whether a run is held holds it for a moment

if sys.platform == "win32":
    import msvcrt

    def _take(descriptor: int) -> None:
        # A byte far behind the text, so that others can still read who holds the lock.
        os.lseek(descriptor, 2**20, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)

    _try = _take

    def _free(descriptor: int) -> None:
        os.lseek(descriptor, 2**20, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _take(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _try(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # readers do not keep each other out

    def _free(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


_HELD: weakref.WeakSet[WriterLock] = weakref.WeakSet()


def _let_go() -> None:
    """In a forked child: close the copies of the locks, or it would hold them after its parent has died."""
    for lock in list(_HELD):
        lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


@final
class WriterLock:
    """Holds a run for one writer; the file stays, the lock goes with the process.

    Args:
        folder: the run, or a part of it that has a writer of its own.
        name: of the lock's file, where one folder has several writers.

    Raises:
        UsageError: if another writer holds the run.
        OSError: if the file system has no locks, or refuses for another reason.
    """

    def __init__(self, folder: Path, name: str = NAME) -> None:
        path = folder / name
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._wait()
        except OSError as error:
            os.close(self._descriptor)
            if error.errno not in _TAKEN:
                raise OSError(
                    error.errno,
                    f"the run could not be locked for one writer, write it to another file system: {error.strerror}",
                    str(path),
                ) from error
            holder = path.read_text(encoding="utf-8", errors="replace").strip() or "unknown"
            raise UsageError(
                f"{folder}: a run has one writer at a time, and another holds it (process {holder}). "
                "Wait for it to end, or write to a new folder."
            ) from error
        _HELD.add(self)
        try:
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, f"{os.getpid()} on {socket.gethostname()}\n".encode())
        except BaseException:  # the disk is full
            self.release()
            raise

    def _wait(self) -> None:
        for pause in _PAUSES:
            try:
                return _take(self._descriptor)
            except OSError as error:
                if error.errno not in _TAKEN:
                    raise
            time.sleep(pause)
        return _take(self._descriptor)

    def release(self) -> None:
        """Let the next writer in; again is harmless."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def is_held(folder: Path) -> bool | None:
    """Say whether a writer is at work in a run.

    Args:
        folder: the run.

    Returns:
        None where it cannot be known: the last writer was on another machine, the lock may not be read or is not there,
        as in a copy of a run, or the file system has no locks.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> before, lock = is_held(folder), WriterLock(folder)
        >>> before, is_held(folder), lock.release(), is_held(folder)
        (None, True, None, False)
    """
    path = folder / NAME
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        holder = os.read(descriptor, 1024).decode(errors="replace").strip()
        _try(descriptor)
        _free(descriptor)  # closing would not, if a child was forked meanwhile
    except OSError as error:
        return True if error.errno in _TAKEN else None
    finally:
        os.close(descriptor)
    return False if holder.endswith(f" on {socket.gethostname()}") else None
