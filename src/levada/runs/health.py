"""Look at every checksum of a run, and say what was lost."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from levada._errors import MissingExtraError, UsageError
from levada.runs.absent import absent
from levada.runs.address import local
from levada.runs.aside import set_aside
from levada.runs.bundles import examine_bundles
from levada.runs.checkpoints import CHECKPOINTS, examine_checkpoints
from levada.runs.ending import ended, last_recorded, last_trained, training_ended
from levada.runs.folders import part_folders, rank_folders
from levada.runs.frames import MAGIC, Damage, scan, survivors
from levada.runs.lock import is_held
from levada.runs.lost import Lost, lost_of, lost_of_log
from levada.runs.manifest import LOG, MANIFEST, SCHEMA, Manifest, parsed, read_manifest
from levada.runs.rank_log import damage_of
from levada.runs.reader import examine, require_one, require_readable
from levada.runs.rebuilding import rebuilt
from levada.runs.remote import not_uploaded
from levada.runs.segments import UnreadableError, damaged, of_tail, orphaned, places, read_samples, verified
from levada.runs.signals import PAUSES, Signals
from levada.runs.tables import read_tables
from levada.runs.tail import read_tail
from levada.runs.unended import lacking_ends, without_end

__all__ = ["Health", "RankHealth", "doctor"]


def _aside(torn: Mapping[str, int], harmless: frozenset[str]) -> list[str]:
    missing = {name: "; nothing is missing by it" if name in harmless else "" for name in torn}
    return [
        f"  moved aside, because it was damaged: {name}, {size:,} bytes{missing[name]}" for name, size in torn.items()
    ]


def _missing(lost: Sequence[Lost]) -> list[str]:
    return [f"  missing or shown in less detail: {one}" for one in dict.fromkeys(lost)]


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
        harmless: those of them by which nothing is missing, as what they held can be read elsewhere.
        lost: what is missing by all that, or known in less detail: file, series and steps.
        part: "" for the signals of its blocks, or the name of what is kept beside them.
    """

    rank: int
    samples: int
    num_bytes: int
    files: int
    damage: tuple[Damage, ...]
    torn: Mapping[str, int]
    harmless: frozenset[str] = frozenset()
    lost: tuple[Lost, ...] = ()
    part: str = ""

    @property
    def healthy(self) -> bool:
        """Whether everything that was written, and is kept, can be read."""
        return not self.damage and self.torn.keys() <= self.harmless

    def __str__(self) -> str:
        right = "every checksum right" if not self.damage else "right but for the damage below"
        title = f"  {self.part or 'signals'} of rank {self.rank}: {self.samples:,} samples in {self.files:,} files"
        lines = [f"{title}, {self.num_bytes:,} bytes, {right}"]
        lines += [f"  damage: {damage.message}; {damage.num_bytes:,} bytes are not read" for damage in self.damage]
        return "\n".join([*lines, *_aside(self.torn, self.harmless), *_missing(self.lost)])


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
        torn: files that keep what was damaged of the log and of the manifest, and their sizes in bytes.
        signals: what was found of each rank's signals.
        bundles: number of kept steps.
        bundle_damage: which of them cannot be replayed, and why.
        checkpoints: number of a training's checkpoints.
        checkpoint_damage: which of them cannot be used, and why.
        checkpoints_aside: damaged ones that were set aside; one of their step, or a later one, is there.
        harmless: those of `torn` by which nothing is missing.
        lost: what is missing of the log.
        gone: what the run says that it kept, and no longer has.
        open_end: of a watched run or a training whose end is not read, what was recorded last, and whether the end is
            said behind a damage; of one that ended, which other processes have no end; else "".
        not_uploaded: of a mirrored run that is not being written, what its addresses lack, and what brings it.
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
    checkpoints: int = 0
    checkpoint_damage: tuple[Damage, ...] = ()
    checkpoints_aside: tuple[str, ...] = ()
    harmless: frozenset[str] = frozenset()
    lost: tuple[Lost, ...] = ()
    gone: tuple[Lost, ...] = ()
    open_end: str = ""
    not_uploaded: tuple[str, ...] = ()

    @property
    def healthy(self) -> bool:
        """Whether everything that was written can be read, and is certain."""
        kept = not (self.bundle_damage or self.checkpoint_damage or self.gone)
        whole = kept and self.manifest is not None and not (self.manifest.uncertain or self.damage)
        return whole and self.torn.keys() <= self.harmless and all(rank.healthy for rank in self.signals)

    def __str__(self) -> str:
        what = f"{self.manifest.kind} {self.manifest.name!r}" if self.manifest else f"damage: {self.manifest_error}"
        right = "every checksum right" if self.damage is None else "right up to the damage below"
        frames = "frame" if self.frames == 1 else "frames"
        lines = [f"{self.path}: {what}", f"  {self.frames:,} {frames}, {self.num_bytes:,} bytes, {right}"]
        if self.manifest is not None and self.manifest.uncertain:
            doubts = ", ".join(self.manifest.uncertain)
            lines.insert(1, f"  {MANIFEST} was damaged and is written again; not certain: {doubts}")
        lines += [f"  {said}" for said in (self.open_end, *self.not_uploaded) if said]
        lines += [f"    {count:>7,}  {name}" for name, count in sorted(self.types.items())]
        if self.damage is not None:
            behind = f"{self.frames_behind:,} good {'frame' if self.frames_behind == 1 else 'frames'} among them"
            lost = f"{self.damage.num_bytes:,} bytes are not read, {behind}"
            lines.append(f"  damage: {self.damage.message}; {lost}")
        lines += [*_aside(self.torn, self.harmless), *_missing(self.lost), *map(str, self.signals)]
        kept = (("bundles", self.bundles, self.bundle_damage), (CHECKPOINTS, self.checkpoints, self.checkpoint_damage))
        for name, number, damages in kept:
            if number:
                right = "right but for the damage below" if damages else "every checksum right"
                lines.append(f"  {name}: {number:,}, {right}")
            lines += [f"  damage: {damage.message}" for damage in damages]
        aside = "  moved aside, because it was damaged: {}; one of its step or a later one is there"
        lines += [f"  damage: {lost.message}{f', {lost.steps}' if lost.steps else ''}" for lost in self.gone]
        lines += [aside.format(f"{CHECKPOINTS}/{name}") for name in self.checkpoints_aside]
        return "\n".join(lines)


def doctor(path: str | Path) -> Health:
    """Check a run: every checksum, the manifest, what a crash tore off, signals, bundles. Changes nothing.

    Args:
        path: the run's folder, or its address; its manifest may be corrupt.

    Raises:
        UsageError: if the folder does not exist, holds neither a manifest nor a log, or has a part that this user may
            not read.
    """
    folder = local(path)
    manifest, reason = None, None
    require_readable(folder)
    require_one(folder)
    try:
        manifest = read_manifest(folder)
    except UsageError as error:
        if not (folder / MANIFEST).is_file() and not (folder / LOG).is_file():
            raise
        reason = _damage_of_manifest(folder, str(error))
    types, good, damage = examine(folder)
    hidden: list[Mapping[str, Any]] = []
    if damage is not None and damage.num_bytes:
        with (folder / LOG).open("rb") as file:
            file.seek(damage.offset)
            hidden = [found.event for found in survivors(file.read())]
    aside = (*sorted(folder.glob("events.torn-*")), *sorted(folder.glob(f"{MANIFEST}.torn-*")))
    torn = {file.name: file.stat().st_size for file in aside}
    ranks = tuple(_examine(rank_folders(folder)))
    bundles, lost = examine_bundles(folder)
    checkpoints, spoilt, copies = examine_checkpoints(folder)
    events = _events(folder)
    kind = manifest.kind if manifest is not None else ""
    return Health(
        path=folder,
        manifest=manifest,
        manifest_error=reason,
        frames=types.total(),
        num_bytes=good,
        types=dict(types),
        damage=damage,
        frames_behind=len(hidden),
        torn=torn,
        signals=ranks,
        bundles=bundles,
        bundle_damage=tuple(lost),
        checkpoints=checkpoints,
        checkpoint_damage=tuple(spoilt),
        checkpoints_aside=tuple(copies),
        harmless=frozenset(_harmless(events, manifest, torn)),
        lost=tuple(lost_of_log(events, damage)),
        gone=tuple(absent(folder, events)),
        open_end=_open_end(folder, kind, events, hidden),
        not_uploaded=() if is_held(folder) else tuple(not_uploaded(folder)),
    )


def _events(folder: Path) -> list[dict[str, Any]]:
    if not (folder / LOG).is_file():
        return []
    with (folder / LOG).open("rb") as file:
        return [found.event for found in scan(file) if not isinstance(found, Damage)]


def _open_end(folder: Path, kind: str, read: Sequence[Mapping[str, Any]], hidden: Sequence[Mapping[str, Any]]) -> str:
    """Say of a watched run or a training that did not say its end what was recorded last, and whether it goes on.

    Args:
        folder: of the run.
        kind: of the run.
        read: the events up to the first damage.
        hidden: those behind it, which are good and which readers do not reach.
    """
    events = [*read, *hidden]
    if kind == "train" and not training_ended(read, wanted := _wanted(folder)):
        recorded, over = last_trained(events), training_ended(events, wanted)
    elif kind == "watch" and not ended(read):
        sampled: list[tuple[int, float]] = []
        for _, signals in sorted(rank_folders(folder).items())[:1]:
            with suppress(MissingExtraError):
                found = Signals(signals)
                sampled += zip(found.steps[-1:], found.times[-1:], strict=True)
        recorded, over = last_recorded(events, sampled[0] if sampled else None), ended(events)
    else:
        return lacking_ends(without_end(folder, read)) if kind == "watch" else ""
    if hidden and not is_held(folder):
        state = "ended" if over else "not ended"
        return f"{state}: {recorded}, as the good frames behind the damage say; --reseal makes them readable"
    return f"{'being written now' if is_held(folder) else 'not ended'}: {recorded}"


def _wanted(folder: Path) -> int | None:
    """Give how many steps a training is to do; None if its configuration does not say so."""
    with suppress(OSError, tomllib.TOMLDecodeError, UnicodeDecodeError, AttributeError):
        steps = tomllib.loads((folder / "config.toml").read_text(encoding="utf-8")).get("run", {}).get("steps")
        return steps if isinstance(steps, int) else None
    return None


def _harmless(events: Sequence[Mapping[str, Any]], manifest: Manifest | None, torn: Mapping[str, int]) -> set[str]:
    """Name the files that were moved aside and took nothing.

    Of the manifest: all of them, if what stands there now is certain. Of the log: those that took its first bytes
    alone, which say what it is and tell nothing.
    """
    took: dict[str, bool] = {}
    for event in events:
        if event["type"] == "repaired":
            name = str(event.get("moved_to", ""))
            head = (event.get("at"), event.get("num_bytes")) == (0, len(MAGIC))
            took[name] = took.get(name, False) or not head
    certain = manifest is not None and not manifest.uncertain
    return {name for name in torn if (certain if name.startswith(MANIFEST) else not took.get(name, True))}


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


def _examine(ranks: Mapping[int, Path]) -> Iterator[RankHealth]:
    for rank, folder in sorted(ranks.items()):
        for part, place in {"": folder, **part_folders(folder)}.items():
            for pause in PAUSES:  # a writer may seal a tail, or let go of a file, between the look at folder and file
                health, moved = _look(rank, place)
                if not moved:
                    break
                time.sleep(pause)
            yield replace(health, part=part)


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
                size += place.path.stat().st_size - sum(damage.num_bytes for damage in lost)
            except FileNotFoundError:  # sealed at this moment
                moved = True
                continue
            samples += len(held.steps)
            damages += [of_tail(place, damage) for damage in lost]
    known = {place.number for place in found if place.level in ("samples", "tail")}
    missing = [orphaned(number) for number in sorted({place.number for place in found} - known)]
    gone = sorted(tables_needed - set(tables))
    missing += [Damage("missing", 0, 0, f"site table {n} is missing", file=f"sites-{n:03d}.json") for n in gone]
    torn = {path.name: path.stat().st_size for path in sorted(folder.glob("*.torn"))}
    files = len(found) + 2 * len(tables)
    harmless = frozenset(set_aside(folder, tables)[1])
    damages += [*missing, *damage_of(folder)]
    lost_here = _lost(folder, damages) if damages or torn else ()
    health = RankHealth(rank, samples, size, files, tuple(damages), torn, harmless, lost_here)
    return health, moved or bool(missing)


def _lost(folder: Path, damages: Sequence[Damage]) -> tuple[Lost, ...]:
    """Say what is missing of a rank's signals, in the words of the report."""
    try:
        return tuple(Signals(folder).lost(damages))
    except MissingExtraError:  # which steps a file holds cannot be read
        return tuple(lost_of(damages, {}))
