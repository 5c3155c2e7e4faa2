"""One writer per run: a lock that the operating system releases when its holder dies."""

from __future__ import annotations

import errno
import os
import socket
import sys
import weakref
from pathlib import Path
from typing import Final, final

from levada._errors import UsageError

__all__ = ["WriterLock"]

NAME: Final = "writer.lock"
# EDEADLOCK is what Windows says.
_TAKEN: Final = frozenset({errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK})

if sys.platform == "win32":
    import msvcrt

    def _take(descriptor: int) -> None:
        # A byte far behind the text, so that others can still read who holds the lock.
        os.lseek(descriptor, 2**20, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)

else:
    import fcntl

    def _take(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


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
        folder: the run.

    Raises:
        UsageError: if another writer holds the run.
        OSError: if the file system has no locks, or refuses for another reason.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / NAME
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _take(self._descriptor)
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
        os.ftruncate(self._descriptor, 0)
        os.write(self._descriptor, f"{os.getpid()} on {socket.gethostname()}\n".encode())

    def release(self) -> None:
        """Let the next writer in; again is harmless."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
