"""Look at every checksum of a run, say what was lost, and seal again what can be read."""

from __future__ import annotations

import errno
import time
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from levada._errors import MissingExtraError, UsageError
from levada.runs.address import local
from levada.runs.bundles import examine_bundles
from levada.runs.frames import Damage, survivors
from levada.runs.lock import WriterLock
from levada.runs.manifest import LOG, MANIFEST, SCHEMA, Manifest, parsed, read_manifest, write_atomically
from levada.runs.rank_log import damage_of, mend_rank_log
from levada.runs.reader import examine
from levada.runs.rebuilding import mend_manifest, rebuilt
from levada.runs.segments import (
    Cut,
    Place,
    UnreadableError,
    damaged,
    form_of,
    has_parquet,
    is_good,
    orphaned,
    places,
    put_aside,
    read_samples,
    reduced,
    salvaged,
    seal_tail,
    sealed_name,
    verified,
)
from levada.runs.signals import PAUSES, rank_folders
from levada.runs.tables import Table, mend_tables, read_tables
from levada.runs.tail import Samples, read_tail
from levada.runs.writer import mend_log

__all__ = ["Health", "RankHealth", "doctor", "reseal"]

_REFUSED: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


def _aside(name: str, size: int) -> str:
    return f"  moved aside, because it was damaged: {name}, {size:,} bytes"


@final
@dataclass(frozen=True, slots=True)
class RankHealth:
    """What `doctor` found of the signals of a rank.

    Attributes:
        rank: of the process that wrote them.
        samples: number of samples that can be read.
        num_bytes: size of the files that are good.
        files: number of tails, sealed files and site tables.
        damage: what cannot be read.
        torn: files that were moved aside, and their sizes in bytes.
    """

    rank: int
    samples: int
    num_bytes: int
    files: int
    damage: tuple[Damage, ...]
    torn: Mapping[str, int]

    @property
    def healthy(self) -> bool:
        """Whether everything that was written, and is kept, can be read."""
        return not self.damage and not self.torn

    def __str__(self) -> str:
        right = "every checksum right" if not self.damage else "right but for the damage below"
        title = f"  signals of rank {self.rank}: {self.samples:,} samples in {self.files:,} files"
        lines = [f"{title}, {self.num_bytes:,} bytes, {right}"]
        lines += [f"  damage: {damage.message}; {damage.num_bytes:,} bytes are not read" for damage in self.damage]
        return "\n".join(lines + [_aside(name, size) for name, size in self.torn.items()])


@dataclass(frozen=True, slots=True)
class Health:
    """What `doctor` found.

    Attributes:
        path: the run's folder.
        manifest: the manifest, or None if it cannot be read.
        manifest_error: why not, or None.
        frames: number of good frames.
        num_bytes: size of the good part of the log.
        types: number of events by type.
        damage: what keeps the log from being read to its end, or None.
        frames_behind: good frames that lie behind the damage and that readers do not reach.
        torn: files that keep what was damaged of the log, and their sizes in bytes.
        signals: what was found of each rank's signals.
        bundles: number of kept steps.
        bundle_damage: which of them cannot be replayed, and why.
    """

    path: Path
    manifest: Manifest | None
    manifest_error: str | None
    frames: int
    num_bytes: int
    types: Mapping[str, int]
    damage: Damage | None
    frames_behind: int
    torn: Mapping[str, int]
    signals: tuple[RankHealth, ...] = ()
    bundles: int = 0
    bundle_damage: tuple[Damage, ...] = ()

    @property
    def healthy(self) -> bool:
        """Whether everything that was written can be read."""
        whole = self.manifest is not None and not (self.damage or self.torn or self.bundle_damage)
        return whole and all(rank.healthy for rank in self.signals)

    def __str__(self) -> str:
        what = f"{self.manifest.kind} {self.manifest.name!r}" if self.manifest else f"damage: {self.manifest_error}"
        right = "every checksum right" if self.damage is None else "right up to the damage below"
        frames = "frame" if self.frames == 1 else "frames"
        lines = [f"{self.path}: {what}", f"  {self.frames:,} {frames}, {self.num_bytes:,} bytes, {right}"]
        lines += [f"    {count:>7,}  {name}" for name, count in sorted(self.types.items())]
        if self.damage is not None:
            behind = f"{self.frames_behind:,} good {'frame' if self.frames_behind == 1 else 'frames'} among them"
            lost = f"{self.damage.num_bytes:,} bytes are not read, {behind}"
            lines.append(f"  damage: {self.damage.message}; {lost}")
        lines += [_aside(name, size) for name, size in self.torn.items()]
        lines += [str(rank) for rank in self.signals]
        if self.bundles:
            right = "right but for the damage below" if self.bundle_damage else "every checksum right"
            lines.append(f"  bundles: {self.bundles:,}, {right}")
        lines += [f"  damage: {damage.message}" for damage in self.bundle_damage]
        return "\n".join(lines)


def doctor(path: str | Path) -> Health:
    """Check a run: every checksum, the manifest, what a crash tore off, signals, bundles. Changes nothing.

    Args:
        path: the run's folder, or its address; its manifest may be corrupt.

    Raises:
        UsageError: if the folder does not exist, or holds neither a manifest nor a log.
    """
    folder = local(path)
    manifest, reason = None, None
    try:
        manifest = read_manifest(folder)
    except UsageError as error:
        if not (folder / MANIFEST).is_file() and not (folder / LOG).is_file():
            raise
        reason = _damage_of_manifest(folder, str(error))
    types, good, damage = examine(folder)
    behind = 0
    if damage is not None and damage.num_bytes:
        with (folder / LOG).open("rb") as file:
            file.seek(damage.offset)
            behind = len(survivors(file.read()))
    aside = (*sorted(folder.glob("events.torn-*")), *sorted(folder.glob(f"{MANIFEST}.torn-*")))
    torn = {file.name: file.stat().st_size for file in aside}
    ranks = tuple(_examine_rank(rank, signals) for rank, signals in sorted(rank_folders(folder).items()))
    bundles, lost = examine_bundles(folder)
    return Health(
        folder, manifest, reason, types.total(), good, dict(types), damage, behind, torn, ranks, bundles, tuple(lost)
    )


def _damage_of_manifest(folder: Path, error: str) -> str:
    """Say what is wrong with a manifest, and what sealing it again gives."""
    path = folder / MANIFEST
    reason = parsed(path.read_bytes()) if path.is_file() else "missing"
    found = rebuilt(folder)
    if found is None and not isinstance(reason, str):
        what = f"{MANIFEST} is of schema {reason}, and this levada reads {SCHEMA} and older"
        return f"{what}. Update levada to read this run. The rest can be read:"
    if path.is_dir():
        return f"{error} `levada doctor --reseal` then writes the manifest again. The rest can be read:"
    if found is None:
        return f"{MANIFEST} is damaged ({reason}), and nothing says of which kind the run is. The rest can be read:"
    reason = f"it is of schema {reason}" if isinstance(reason, int) else reason
    what = f"{found.manifest.kind} {found.manifest.name!r} ({found.told})"
    return f"{MANIFEST} is damaged ({reason}). --reseal writes it again, as: {what}. The rest can be read:"


def _examine_rank(rank: int, folder: Path) -> RankHealth:
    for pause in PAUSES:  # a writer may seal a tail, or let go of a file, between the look into the folder and the file
        health, moved = _look(rank, folder)
        if not moved:
            break
        time.sleep(pause)
    return health


def _look(rank: int, folder: Path) -> tuple[RankHealth, bool]:
    """Examine the signals of a rank, and say whether something seemed missing that a writer may have moved."""
    found = places(folder)
    tables, damages = read_tables(folder)
    widths = {number: table.width for number, table in tables.items()}
    samples, size, sealed, tables_needed, moved = 0, 0, set[int](), set[int](), False
    for place in found:
        with suppress(FileNotFoundError):  # let go of at this moment
            if place.level == "tail":
                continue
            try:
                size += len(verified(place))
                if place.level == "samples":
                    held = read_samples(place)
                    samples, sealed = samples + len(held.steps), sealed | {place.number}
                    tables_needed |= {held.table} if held.steps else set()
            except UnreadableError as error:
                damages.append(damaged(place, str(error)))
            except MissingExtraError:
                pass  # its checksum is right; only the number of samples stays unknown
    for place in found:
        if place.level == "tail" and place.number not in sealed:
            try:
                held, lost = read_tail(place.path, widths)
            except FileNotFoundError:
                moved = True
                continue
            samples += len(held.steps)
            size += place.path.stat().st_size - sum(damage.num_bytes for damage in lost)
            damages += [Damage(d.kind, d.offset, d.num_bytes, f"{place.path.name}: {d.message}") for d in lost]
    known = {place.number for place in found if place.level in ("samples", "tail")}
    missing = [orphaned(number) for number in sorted({place.number for place in found} - known)]
    missing += [Damage("missing", 0, 0, f"site table {n} is missing") for n in sorted(tables_needed - set(tables))]
    torn = {path.name: path.stat().st_size for path in sorted(folder.glob("*.torn"))}
    damages += [*missing, *damage_of(folder)]
    return RankHealth(rank, samples, size, len(found) + 2 * len(tables), tuple(damages), torn), moved or bool(missing)


def reseal(path: str | Path) -> list[str]:
    """Seal the tails that interrupted writers left, and write damaged files again with what of them is good.

    What is lost is NaN in the new sealed files; the damaged ones are moved aside, to names that end in `.torn`. The log
    has every good event again; what follows its first damage is kept in `events.torn-N`. A damaged manifest is written
    again from what is certain, and says what is not.

    Args:
        path: the run's folder.

    Returns:
        What was done, a sentence each.

    Raises:
        UsageError: if a writer is at work, or the folder cannot be written to.
        MissingExtraError: if files are Parquet and pyarrow is not installed.
    """
    run = Path(path)
    if (run / MANIFEST).is_dir():
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


def _mend_signals(run: Path) -> Iterator[str]:
    for rank, folder in sorted(rank_folders(run).items()):
        lock = WriterLock(folder)
        try:
            for sentence in _reseal_rank(folder):
                yield f"rank {rank}: {sentence}"
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
    yield from mend_rank_log(folder)
    tables = read_tables(folder)[0]
    suffix = "parquet" if has_parquet() else "frames"
    by_number: dict[int, list[Place]] = {}
    for place in places(folder):
        by_number.setdefault(place.number, []).append(place)
    for number, found in by_number.items():
        samples = _samples_of(found)
        tail = next((place for place in found if place.level == "tail"), None)
        bad = [place for place in found if place.level != "tail" and not is_good(place)]
        if tail is not None and (samples is None or bad):
            _put_aside(bad)
            try:
                count = len(seal_tail(folder, number, tables, suffix).steps)
            except OSError:
                raise
            except Exception as error:  # of a table that no file can hold; what is in the tail is still read
                yield f"tail {number} stays as it is: {type(error).__name__}: {error}"
                continue
            yield f"tail {number} is sealed, {count:,} samples"
        elif samples is None:
            samples = _from_levels(found)
            if samples is None:
                yield f"segment {number} stays unreadable: its steps are lost"
                continue
            yield f"segment {number}: {len(samples.steps):,} steps are known again, times and scalars are lost"
            _put_aside([place for place in bad if place.level == "samples"])
            _write(folder, "samples", number, form_of(suffix).pack_samples(samples), suffix)
            yield from _mend(folder, number, samples, tables, found)
        elif bad:
            yield from _mend(folder, number, samples, tables, found)


def _samples_of(found: Sequence[Place]) -> Samples | None:
    for place in found:
        if place.level == "samples":
            with suppress(UnreadableError):
                return read_samples(place)
    return None


def _from_levels(found: Sequence[Place]) -> Samples | None:
    """Give the steps of samples whose own file is lost, from the file of the full detail."""
    for place in found:
        if place.level == "full" and is_good(place):
            table, steps = form_of(place.path.suffix[1:]).unpack_steps(verified(place))
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
        kept = f"{total - len(lost):,} of {total:,} series are kept, the damaged file is moved aside"
        yield f"segment {number}, {place.level}: {kept}"
