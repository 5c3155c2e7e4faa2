"""Write a run: append-only, whole frames, one writer."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, final

from levada._errors import TakenError, UsageError
from levada.runs.address import require_local
from levada.runs.frames import MAGIC, Damage, encode, frame, survivors
from levada.runs.lock import WriterLock
from levada.runs.manifest import LOG, MANIFEST, Manifest, describe, read_manifest, write_atomically, write_manifest
from levada.runs.reader import examine

__all__ = ["RunWriter", "mend_log"]

_SYNC_SECONDS = 5.0
_ADVICE = (
    "Write to a folder; levada.watch(run=) takes an address, as text, and levada.runs.remote.upload brings a folder."
)


@final
class RunWriter:
    """Appends events to a run; made by `RunWriter.create` or `RunWriter.open`.

    Every event is handed to the operating system at once, so that it outlives this process; it is forced to the disk
    every few seconds and on `close`, so that it outlives the machine.

    Example:
        >>> import tempfile, pathlib
        >>> from levada.runs import Run
        >>> folder = pathlib.Path(tempfile.mkdtemp()) / "first"
        >>> with RunWriter.create(folder, kind="study", name="decay") as writer:
        ...     writer.append("result", key="a", values={"rate": 0.41})
        >>> [event["values"]["rate"] for event in Run(folder).events("result")]
        [0.41]
    """

    def __init__(self, path: Path, manifest: Manifest, lock: WriterLock) -> None:
        self.path = path
        self.manifest = manifest
        self._lock = lock
        self._broken = False
        self._process = os.getpid()
        self._synced = time.monotonic()
        flags = os.O_WRONLY | os.O_APPEND | getattr(os, "O_BINARY", 0)
        self._descriptor = os.open(path / LOG, flags)

    @classmethod
    def create(cls, path: str | Path, *, kind: str, name: str, config: Mapping[str, Any] | None = None) -> Self:
        """Begin a run in a new folder, or in one that holds no run.

        Args:
            path: the folder; made with its parents if absent.
            kind: "check", "study", "watch", ...
            name: the run's name, for people.
            config: the settings, as what JSON can hold.

        Raises:
            UsageError: if the folder already holds a run, another writer is beginning one there, or it is an address.
        """
        require_local("RunWriter.create: path must be a folder of this machine", path, _ADVICE)
        folder = Path(path)
        manifest = describe(kind, name, config)
        there = next((one for one in (folder, *folder.parents) if one.exists()), None)
        if there is not None and not there.is_dir():
            raise UsageError(f"{folder}: a run is a folder, and {there} is a file. Choose another name.")
        folder.mkdir(parents=True, exist_ok=True)
        lock = WriterLock(folder)
        try:
            log = folder / LOG
            if (folder / MANIFEST).exists():
                raise TakenError(
                    f"{folder}: a new run needs a folder without one, and this holds a run.",
                    "Choose another folder, or continue the run with RunWriter.open.",
                )
            if log.exists() and log.stat().st_size > len(MAGIC):
                raise UsageError(
                    f"{folder}: a new run needs a folder without one, and this holds a run that lost its {MANIFEST}. "
                    f"Choose another folder, or try to get that back: levada doctor --reseal {folder}"
                )
            write_atomically(log, MAGIC)
            # The manifest comes last: a folder with a manifest is a whole run.
            write_manifest(folder, manifest)
            return cls(folder, manifest, lock)
        except BaseException:
            lock.release()
            raise

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Continue a run.

        A damaged log is mended first: every good event stays, what is damaged is kept in `events.torn-N`, and an event
        "repaired" says so.

        Raises:
            UsageError: if `path` is not a run, or another writer holds it.
        """
        folder = Path(path)
        manifest = read_manifest(folder)
        lock = WriterLock(folder)
        try:
            log = folder / LOG
            if not log.exists():
                raise UsageError(f"{folder}: a run holds {LOG}, and it is missing. Begin a new run in another folder.")
            damage = examine(folder)[2]
            if damage is not None:
                mend_log(folder, damage)
            return cls(folder, manifest, lock)
        except BaseException:
            lock.release()
            raise

    def append(self, type: str, **payload: Any) -> None:
        """Append one event.

        Args:
            type: what the event is, e.g. "result".
            **payload: its fields, as what JSON can hold; NaN and infinities are allowed.

        Raises:
            UsageError: if the payload is not JSON or too large, the writer is closed, or this is a forked child of the
                process that opened it, which holds no lock.
            OSError: if the disk refuses, e.g. because it is full; the log then ends at the event before, and reads.
        """
        data = frame(encode(type, payload))
        if self._descriptor < 0:
            raise UsageError(f"{self.path}: events go to an open writer, and this one is closed. Use RunWriter.open.")
        if os.getpid() != self._process:
            raise UsageError(
                f"{self.path}: events go through the process that opened the run ({self._process}), and this is a "
                f"forked child of it ({os.getpid()}). Write to a run of the child's own, or let the parent write."
            )
        if self._broken:
            raise OSError(
                f"{self.path}: an earlier event was written in part and could not be taken back; reopen the run"
            )
        # Asked for anew: an interrupt may have come between an earlier event and the note of how long the log then was.
        begin = os.fstat(self._descriptor).st_size
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._descriptor, view) :]
        except BaseException as error:
            self._broken = True
            os.ftruncate(self._descriptor, begin)
            self._broken = False
            if not isinstance(error, OSError):
                raise
            raise OSError(
                error.errno,
                f"the event {type!r} was not stored, those before it are safe: {error.strerror}",
                str(self.path),
            ) from error
        if time.monotonic() - self._synced > _SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Force what was appended to the disk."""
        os.fsync(self._descriptor)
        self._synced = time.monotonic()

    def close(self) -> None:
        """Force everything to the disk and let the next writer in; again, or in a forked child, is harmless."""
        if self._descriptor < 0:
            return
        try:
            if os.getpid() == self._process:
                self.sync()
        finally:
            os.close(self._descriptor)
            self._descriptor = -1
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def mend_log(folder: Path, damage: Damage) -> tuple[str, int]:
    """Write a damaged log again with all good frames, those behind the damage too, under the run's lock.

    From the first damaged byte on the old one is kept in `events.torn-N`. An event "repaired" stands in the place of
    each stretch that cannot be read.

    Args:
        folder: the run.
        damage: what keeps its log from being read to its end.

    Returns:
        The name of the file that keeps it, empty if the log was, and the number of good frames that were behind the
        damage.
    """
    for left in folder.glob(".events.*"):  # of a process that was killed while it wrote
        left.unlink(missing_ok=True)
    with (folder / LOG).open("rb") as file:
        head = file.read(damage.offset) or MAGIC
        tail = file.read()
    name = _keep(folder, tail) if tail else ""
    good = survivors(tail)
    parts, starts = [head], [*(each.start for each in good), len(tail)]
    for i, (stop, start) in enumerate(zip([0, *(each.stop for each in good)], starts, strict=True)):
        if stop < start or not tail:
            at = damage.offset + stop
            reason = f"the frame at byte {at:,} cannot be read" if stop else damage.message
            told = {"at": at, "num_bytes": start - stop, "good_frames_kept": len(good) - i, "reason": reason}
            parts.append(frame(encode("repaired", {**({"moved_to": name} if name else {}), **told})))
        parts += [tail[each.start : each.stop] for each in good[i : i + 1]]
    write_atomically(folder / LOG, b"".join(parts))
    return name, len(good)


def _keep(folder: Path, tail: bytes) -> str:
    """Write what follows the last good frame to a file of its own, if none holds it already; give its name."""
    number = 1
    while (target := folder / f"events.torn-{number}").exists():
        if target.stat().st_size == len(tail) and target.read_bytes() == tail:  # of a mending that was killed
            return target.name
        number += 1
    write_atomically(target, tail, like=folder / LOG)
    return target.name
