"""Seal a run again: tails that interrupted writers left, and damaged files with what of them is good."""

from __future__ import annotations

import errno
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from levada._errors import UsageError
from levada.runs.folders import part_folders, rank_folders
from levada.runs.lock import VERDICTS, WriterLock
from levada.runs.manifest import LOG, MANIFEST, Manifest, parsed, read_manifest, write_atomically
from levada.runs.rank_log import RANK_LOG, mend_rank_log
from levada.runs.reader import examine
from levada.runs.rebuilding import mend_manifest, rebuilt
from levada.runs.segments import (
    Cut,
    NewerError,
    Place,
    UnreadableError,
    form_of,
    has_parquet,
    is_good,
    places,
    put_aside,
    read_samples,
    read_steps,
    reduced,
    salvaged,
    seal_tail,
    sealed_name,
)
from levada.runs.tables import Table, mend_tables, read_tables
from levada.runs.tail import Samples
from levada.runs.writer import mend_log

__all__ = ["reseal"]

_REFUSED: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


def reseal(path: str | Path) -> list[str]:
    """Seal the tails that interrupted writers left, and write damaged files again with what of them is good.

    What is lost is NaN in the new sealed files; the damaged ones are moved aside, to names that end in `.torn`. The log
    has every good event again; what follows its first damage is kept in `events.torn-N`. A damaged manifest is written
    again from what is certain, and says what is not. What a newer levada wrote stays as it is.

    Args:
        path: the run's folder.

    Returns:
        What was done, a sentence each.

    Raises:
        UsageError: if a writer is at work, the folder cannot be written to, or a newer levada wrote the run.
        MissingExtraError: if files are Parquet and pyarrow is not installed.
    """
    run = Path(path)
    if (run / MANIFEST).is_dir() or _is_newer(run):
        read_manifest(run)  # says so, before anything is changed
    try:
        return [*_mend_log(run), *_mend_manifest(run), *_mend_signals(run)]
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        raise UsageError(
            f"{run}: a run is sealed again where it lies, and this cannot be written to ({error.strerror}). Copy it, "
            "and seal the copy."
        ) from error


def _is_newer(run: Path) -> bool:
    """Say whether a newer levada wrote a run: what its files hold is then not known, and none may be changed."""
    path = run / MANIFEST
    return path.is_file() and isinstance(parsed(path.read_bytes()), int) and rebuilt(run) is None


def _mend_signals(run: Path) -> Iterator[str]:
    for rank, folder in sorted(rank_folders(run).items()):
        for part, place in {"": folder, **part_folders(folder)}.items():
            lock = WriterLock(place)
            try:
                for sentence in _reseal_rank(place):
                    yield f"rank {rank}: {f'{part}: ' if part else ''}{sentence}"
            finally:
                lock.release()


def _mend_log(folder: Path) -> Iterator[str]:
    if not (folder / LOG).is_file():
        return
    lock = WriterLock(folder)
    try:
        damage = examine(folder)[2]
        if damage is not None:
            name, good = mend_log(folder, damage)
            if not name:
                yield f"{LOG} was empty, and begins anew"
                return
            again = f"; {good:,} good {'frame' if good == 1 else 'frames'} among them stay in it" if good else ""
            yield f"{LOG} is written again: {damage.num_bytes:,} bytes from its damage on are kept in {name}{again}"
    finally:
        lock.release()


def _mend_manifest(folder: Path) -> Iterator[str]:
    if (folder / MANIFEST).is_file() and isinstance(parsed((folder / MANIFEST).read_bytes()), Manifest):
        return
    lock = WriterLock(folder)
    try:
        yield from mend_manifest(folder)
    finally:
        lock.release()


def _reseal_rank(folder: Path) -> Iterator[str]:
    yield from (f"{name} is written again from its copy" for name in mend_tables(folder))
    if (folder / RANK_LOG).is_file():
        lock = WriterLock(folder, VERDICTS)
        try:
            yield from mend_rank_log(folder)
        finally:
            lock.release()
    tables = read_tables(folder)[0]
    suffix = "parquet" if has_parquet() else "frames"
    by_number: dict[int, list[Place]] = {}
    for place in places(folder):
        by_number.setdefault(place.number, []).append(place)
    for number, found in by_number.items():
        try:
            yield from _reseal_segment(folder, number, found, tables, suffix)
        except NewerError as error:
            yield f"segment {number} stays as it is: {error}"


def _reseal_segment(
    folder: Path, number: int, found: Sequence[Place], tables: Mapping[int, Table], suffix: str
) -> Iterator[str]:
    samples = _samples_of(found)
    tail = next((place for place in found if place.level == "tail"), None)
    bad = [place for place in found if place.level != "tail" and not is_good(place)]
    if tail is not None and (samples is None or bad):
        _put_aside(bad)
        try:
            count = len(seal_tail(folder, number, tables, suffix).steps)
        except (OSError, NewerError):
            raise
        except Exception as error:  # of a table that no file can hold; what is in the tail is still read
            yield f"tail {number} stays as it is: {type(error).__name__}: {error}"
            return
        yield f"tail {number} is sealed, {count:,} samples"
    elif samples is None:
        samples = _from_levels(found)
        if samples is None:
            yield f"segment {number} stays unreadable: its steps are lost"
            return
        yield f"segment {number}: {len(samples.steps):,} steps are known again, times and scalars are lost"
        _put_aside([place for place in bad if place.level == "samples"])
        _write(folder, "samples", number, form_of(suffix).pack_samples(samples), suffix)
        yield from _mend(folder, number, samples, tables, found)
    elif bad:
        yield from _mend(folder, number, samples, tables, found)


def _samples_of(found: Sequence[Place]) -> Samples | None:
    """Read the samples of a segment, if they can be.

    Raises:
        NewerError: if a newer levada wrote them.
    """
    for place in found:
        if place.level == "samples":
            try:
                return read_samples(place)
            except NewerError:
                raise
            except UnreadableError:
                continue
    return None


def _from_levels(found: Sequence[Place]) -> Samples | None:
    """Give the steps of samples whose own file is lost, from the file of the full detail."""
    for place in found:
        if place.level == "full" and is_good(place):
            try:
                table, steps = read_steps(place)
            except NewerError:
                raise
            except UnreadableError:
                continue
            count = len(steps)
            return Samples(table, array("q", steps), array("d", [float("nan")] * count), [{} for _ in steps])
    return None


def _write(folder: Path, level: str, number: int, data: bytes, suffix: str) -> None:
    write_atomically(folder / sealed_name(level, number, data, suffix), data)


def _put_aside(bad: Sequence[Place]) -> None:
    for place in bad:
        put_aside(place.path)


def _mend(
    folder: Path, number: int, samples: Samples, tables: Mapping[int, Table], found: Sequence[Place]
) -> Iterator[str]:
    """Write the damaged levels of a segment again: from the full detail if that is good, else what is left of them."""
    table = tables.get(samples.table)
    if table is None:
        yield f"segment {number} stays as it is: its site table is lost"
        return
    levels = [place for place in found if place.level not in ("tail", "samples")]
    whole = {place.level: place for place in levels if is_good(place)}
    for place in levels:
        if place.level in whole or is_good(place):
            continue
        suffix = place.path.suffix[1:]
        if "full" in whole:
            cut = Cut.of("full", samples.steps, len(table.sites))
            series, _ = salvaged(whole["full"], cut, len(table.signals))
            planes, lost = reduced(series[0], len(samples.steps), place.level, suffix), set[tuple[int, int]]()
        else:
            cut = Cut.of(place.level, samples.steps, len(table.sites))
            planes, lost = salvaged(place, cut, len(table.signals))
        total = max(1, len(table.signals) * len(table.sites))
        # First, because what is made again of the full detail has the bytes, and so the name, of what was damaged.
        put_aside(place.path)
        if len(lost) < total:
            data = form_of(suffix).pack_planes(place.level, samples, planes, table.signals, table.sites)
            _write(folder, place.level, number, data, suffix)
        kept = f"{total - len(lost):,} of {total:,} series are kept"
        yield f"segment {number}, {place.level}: {kept}, the damaged file is moved aside"
