"""Write the signals of one rank: a bounded queue and a thread, so that training neither waits nor fails."""

from __future__ import annotations

import os
import time as clock
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, final

from levada._errors import MissingExtraError, UsageError, require_at_least
from levada.runs.background import Background
from levada.runs.folders import rank_folder
from levada.runs.frames import MAX_FRAME
from levada.runs.lock import WriterLock
from levada.runs.manifest import write_atomically
from levada.runs.pyramid import SEGMENT, Kept, surplus
from levada.runs.segments import (
    Place,
    UnreadableError,
    has_parquet,
    newest,
    places,
    read_samples,
    remove,
    remove_tail,
    seal_tail,
    tail_name,
)
from levada.runs.tables import keep_table, read_tables
from levada.runs.tail import MAX_SCALARS, TAIL_MAGIC, header, mark, sample

__all__ = ["SignalWriter"]

_SYNC_SECONDS: Final = 5.0
_WAITING_BYTES: Final = 2**26
_CLOSE_SECONDS: Final = 120.0


@final
class SignalWriter:
    """Appends samples to the signals of one rank.

    Every sample is a frame with a checksum at the end of a *tail*; after 256 samples (or 64 MiB) the tail is sealed
    into immutable files and only then removed, so that a process killed at any moment loses no frame that was written.
    What an earlier writer left is sealed first. A step that comes again, because the run went on from an older
    checkpoint, is written again, and readers give the later one.

    Args:
        folder: the run.
        rank: of the process; each has a folder of its own.
        sites: the site table, {"name", "order", "kind", "shape", "parameters"} each; names are unique.
        signals: names of the signals.
        keep: how many of the newest samples are kept in full; see `mark`.
        capacity: how many samples may wait; by default as many as fit 64 MiB.
        warn: whether to warn, once, when storing stops; otherwise only `problem` says so.
        part: "" for the signals of blocks, or one of `levada.runs.folders.PARTS`, which has a folder of its own.

    Attributes:
        problem: why storing stopped, or None.
        left: which tail of an earlier writer could not be sealed, and why, or None; it stays, and is still read.

    Raises:
        UsageError: if another writer holds this rank's folder, or the table is none.
        OSError: if the folder cannot be written.

    Example:
        >>> import tempfile
        >>> from levada.runs import RunWriter, Run
        >>> from levada.runs.codes import encode
        >>> folder = tempfile.mkdtemp()
        >>> RunWriter.create(folder, kind="watch", name="demo").close()
        >>> sites = [{"name": "layers.0", "order": 0}, {"name": "layers.1", "order": 1}]
        >>> with SignalWriter(folder, sites=sites, signals=["gradient_rms"]) as writer:
        ...     for step in (0, 20, 40):
        ...         writer.append(step, 0.0, encode([1.0, 2.0**-step]), {"loss": 1.0})
        >>> signals = Run(folder).signals()
        >>> signals.steps, signals.read("gradient_rms", site="layers.1")
        ((0, 20, 40), [[1.0], [9.5367431640625e-07], [9.094947017729282e-13]])
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        rank: int = 0,
        sites: Sequence[Mapping[str, Any]],
        signals: Sequence[str],
        keep: int = 4096,
        capacity: int | None = None,
        warn: bool = True,
        part: str = "",
    ) -> None:
        require_at_least("SignalWriter", "rank", rank, 0)
        require_at_least("SignalWriter", "keep", keep, 1)
        self.folder = rank_folder(Path(folder), rank, part)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.problem: str | None = None
        self.left: str | None = None
        self._lock = WriterLock(self.folder)
        try:
            number = keep_table(self.folder, signals, sites)
            self._tables = read_tables(self.folder)[0]
        except BaseException:
            self._lock.release()
            raise
        self._table, self._width, self._keep = number, len(signals) * len(sites), keep
        if 2 * self._width > MAX_FRAME // 2:
            self._lock.release()
            raise UsageError(f"SignalWriter: a sample has at most {MAX_FRAME // 4:,} numbers, got {self._width:,}.")
        self._suffix = "parquet" if has_parquet() else "frames"
        self._refused = self._lost = 0
        self._warn, self._told, self._closed = warn, set[str](), False
        self._descriptor, self._size, self._good, self._rows = -1, 0, 0, 0
        self._kept: list[Kept] = []
        self._sealed: set[int] = set()
        self._marks: list[int] = []
        self._number = 0
        self._synced = clock.monotonic()
        waiting = capacity or max(8, min(1024, _WAITING_BYTES // (2 * self._width + 64)))
        self._thread = Background(
            self._do, capacity=waiting, name=f"levada-{part or 'signals'}-{rank}", at_exit=self.close
        )
        self._thread.put("recover")

    @property
    def dropped(self) -> int:
        """How many samples were not stored: too many waited, storing had stopped, or they were no samples."""
        return self._refused + self._lost

    def append(
        self, step: int, time: float, codes: bytes | Callable[[], bytes], scalars: Mapping[str, float] | None = None
    ) -> None:
        """Hand over one sample; never waits, never raises.

        Args:
            step: number of the optimizer step; the key of the sample.
            time: seconds since the epoch; kept as given, nothing depends on it.
            codes: `levada.runs.codes`, signal by signal, `(signals, sites)`; or what gives them, called in the thread.
            scalars: numbers of the step by name, at most 4,096.
        """
        if self._thread.foreign:
            return
        try:
            values = {_utf8(key): float(value) for key, value in (scalars or {}).items()}
            held = codes if callable(codes) else bytes(codes)
            good = (callable(held) or len(held) == 2 * self._width) and len(values) <= MAX_SCALARS
            taken = good and self.problem is None and self._thread.put((_int64(step), float(time), held, values))
        except (TypeError, ValueError, AttributeError, OverflowError):
            taken = False
        self._refused += not taken
        self._tell()

    def mark(self, step: int) -> None:
        """Keep the full detail around a step for ever; never waits, never raises."""
        if not self._thread.foreign and self.problem is None:
            with suppress(TypeError, ValueError, OverflowError):
                self._thread.put(_int64(step))

    def flush(self, seconds: float = 60.0) -> bool:
        """Wait until what was appended is handed to the operating system; False if it is not in so many seconds."""
        return self._thread.flush(seconds)

    def close(self) -> None:
        """Store what waits, seal, and let the next writer in; again, or in a forked child, is harmless."""
        if self._closed or self._thread.foreign:
            return
        self._closed = True
        if self._thread.stop(_CLOSE_SECONDS):
            self._finish()
        self._tell()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _tell(self) -> None:
        """Warn once of each, in the thread of the training; where warnings are errors they do not stop it."""
        ended = self.problem and f"signals are no longer stored, and training goes on: {self.problem}"
        for sentence in (self.left, ended) if self._warn else ():
            if sentence and sentence not in self._told:
                self._told.add(sentence)
                with suppress(Warning):
                    warnings.warn(f"{self.folder}: {sentence}", RuntimeWarning, stacklevel=3)

    # What follows runs in the thread, or after it.

    def _do(self, piece: Any) -> None:
        try:
            if self.problem is not None:
                self._lost += isinstance(piece, tuple)
            elif isinstance(piece, tuple):
                self._add(*piece)
            elif isinstance(piece, int):
                self._marks.append(piece)
                self._write(mark(piece), rows=0)
            else:
                self._recover()
        except Exception as error:
            self._lost += isinstance(piece, tuple)
            self.problem = f"{type(error).__name__}: {error}"

    def _add(self, step: int, time: float, held: bytes | Callable[[], bytes], scalars: Mapping[str, float]) -> None:
        codes = held() if callable(held) else held
        if len(codes) == 2 * self._width:
            self._write(sample(step, time, self._table, codes, scalars), rows=1)
        else:
            self._lost += 1

    def _finish(self) -> None:
        try:
            if self.problem is None:
                self._rotate()
        except Exception as error:
            self.problem = f"{type(error).__name__}: {error}"
        finally:
            self._close_tail()
            self._lock.release()

    def _recover(self) -> None:
        """Seal what an earlier writer left, and remember what is kept."""
        for file in self.folder.glob(".*-*.*"):
            file.unlink(missing_ok=True)
        found = places(self.folder)
        self._number = newest(self.folder)
        for place in found:
            if place.level == "samples":
                self._remember(place)
        for place in found:
            if place.level == "tail":
                try:
                    self._seal(place.number)
                except OSError:
                    raise
                except Exception as error:  # what is left is still read, and no reason to store nothing more
                    why = f"{place.path.name}, {type(error).__name__}: {error}"
                    self.left = f"what an earlier writer left could not be sealed, and stays as it is: {why}"

    def _write(self, data: bytes, rows: int) -> None:
        if self._descriptor < 0:
            self._begin()
        if self._size + len(data) > MAX_FRAME and self._rows:
            self._rotate()
            self._begin()
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._descriptor, view) :]
        except OSError:
            os.ftruncate(self._descriptor, self._size)
            raise
        self._size += len(data)
        self._rows += rows
        if self._rows >= SEGMENT:
            self._rotate()
        elif clock.monotonic() - self._synced > _SYNC_SECONDS:
            os.fsync(self._descriptor)
            self._synced = clock.monotonic()

    def _begin(self) -> None:
        self._number += 1
        path, first = self.folder / tail_name(self._number), TAIL_MAGIC + header(self._table)
        write_atomically(path, first)  # a reader never sees one that does not begin as a tail does
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_BINARY", 0))
        self._size, self._rows = len(first), 0

    def _close_tail(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _rotate(self) -> None:
        if self._descriptor < 0:
            return
        os.fsync(self._descriptor)
        self._close_tail()
        self._seal(self._number)
        self._synced = clock.monotonic()

    def _seal(self, number: int) -> None:
        """Seal a tail, remove it, and let go of the detail that is no longer kept."""
        if number in self._sealed:  # sealed, and killed before it was removed
            remove_tail(self.folder, number, self._tables)
        else:
            samples = seal_tail(self.folder, number, self._tables, self._suffix)
            self._note(number, samples.steps, samples.marks)
        kept = sorted(self._kept, key=lambda segment: segment.number)
        gone = set(surplus(kept, self._marks, self._keep))
        for place in places(self.folder) if gone else ():
            if (place.level, place.number) in gone:
                remove(place.path)

    def _remember(self, place: Place) -> None:
        with suppress(UnreadableError, FileNotFoundError):
            try:
                samples = read_samples(place)
            except MissingExtraError:  # its checksum is right; its steps are unknown, and all its detail is kept
                self._sealed.add(place.number)
            else:
                self._note(place.number, samples.steps, samples.marks)

    def _note(self, number: int, steps: Sequence[int], marks: Sequence[int]) -> None:
        self._sealed.add(number)
        self._marks.extend(step for step in marks if step not in self._marks)
        if steps:
            self._kept.append(Kept(number, min(steps), max(steps), len(steps)))


def _utf8(name: Any) -> str:
    """Give a name as Parquet can hold it: a lone surrogate as its escape."""
    text = str(name)
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _int64(step: int) -> int:
    """Give a step as an integer of 64 bits, which is how it is stored."""
    number = int(step)
    if not -(2**63) <= number < 2**63:
        raise OverflowError(number)
    return number
