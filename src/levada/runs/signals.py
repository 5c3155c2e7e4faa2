"""Read the signals of one rank: sealed files and tails, also while they are written."""

from __future__ import annotations

import math
import time
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, final

from levada._errors import UsageError, import_extra
from levada.runs.aside import set_aside
from levada.runs.codes import decoded
from levada.runs.frames import Damage
from levada.runs.losses import Waiting, unsampled
from levada.runs.lost import Lost, lost_of
from levada.runs.pyramid import SPANS, blocks, coarsen
from levada.runs.reading import Planes, Reading, spread
from levada.runs.segments import (
    Cut,
    Place,
    UnreadableError,
    damaged,
    lacking,
    of_tail,
    orphaned,
    places,
    read_planes,
    read_samples,
)
from levada.runs.tables import Table, read_tables
from levada.runs.tail import Samples, read_tail

__all__ = ["PAUSES", "Reading", "Signals"]

_LEVELS: Final = tuple(SPANS)
# Seconds between looks into a folder in which something is missing: a writer may be sealing there.
PAUSES: Final = (0.0, 0.01, 0.05, 0.2, 0.0)


@dataclass(slots=True)
class _Part:
    """One tail, sealed or not."""

    number: int
    table: Table
    samples: Samples
    files: dict[str, list[Place]] = field(default_factory=dict)
    alive: array[int] = field(default_factory=lambda: array("q"))
    """Which samples no later one replaces."""

    def level(self, resolution: int) -> str:
        """Give the finest level that is kept and not finer than asked for."""
        if self.samples.codes:
            return next(level for level in reversed(_LEVELS) if SPANS[level] <= resolution)
        for level in _LEVELS:
            if SPANS[level] >= resolution and level in self.files:
                return level
        return "" if resolution == 1 or not self.files else next(iter(self.files))

    def rows(self, level: str) -> list[tuple[int, int, int]]:
        """Give each row of a level that is still valid: its place, and its first and last sample."""
        alive = set(self.alive)
        bounds = blocks(len(self.samples.steps), SPANS[level])
        return [(row, a, b - 1) for row, (a, b) in enumerate(bounds) if any(i in alive for i in range(a, b))]


@final
class Signals:
    """The signals of one rank, as they were on disk when this was made; make another to see more.

    Args:
        folder: of the rank, `RUN/signals/rank-00000`.
        losses: step and loss of every step, from the run's events.
        logged: name -> step -> number of what was logged behind the last sample, likewise.
        waiting: name and number of what was logged last before a sample, the earliest first.

    Attributes:
        sites: the site table, {"name", "order", "kind", "shape", "parameters"} each, in the order of a row.
        names: names of the signals.
        steps: steps of the rows that `read` gives.
        times: their times.
        marks: steps around which the detail is kept.
        damage: what cannot be read, as far as it was looked at; `levada doctor` looks at everything.

    Raises:
        UsageError: if there is no such folder.
    """

    def __init__(
        self,
        folder: Path,
        losses: Sequence[tuple[int, float]] = (),
        logged: Mapping[str, Mapping[int, float]] | None = None,
        waiting: Sequence[tuple[str, Waiting]] = (),
    ) -> None:
        if not folder.is_dir():
            raise UsageError(f"{folder}: signals are read from a folder that a watched run wrote; there is none here.")
        self.folder = folder
        self._losses, self._logged, self._waiting = list(losses), logged or {}, list(waiting)
        self.damage: list[Damage] = []
        self._parts: list[_Part] = []
        self._tables: dict[int, Table] = {}
        for attempt, pause in enumerate(PAUSES, 1):
            # A tail may be sealed between the look into the folder and that into the file.
            with suppress(FileNotFoundError):
                self._parts = self._load(last=attempt == len(PAUSES))
                break
            time.sleep(pause)
        self._drop_replaced()
        tables = [table for _, table in sorted(self._tables.items(), reverse=True)]
        self.sites: tuple[Mapping[str, Any], ...] = tuple(_union(table.sites for table in tables))
        self.names: tuple[str, ...] = tuple(dict.fromkeys(name for table in tables for name in table.signals))
        self._columns = {site["name"]: i for i, site in enumerate(self.sites)}
        self._places = {id(t): array("q", [self._columns[each["name"]] for each in t.sites]) for t in tables}
        index = [
            (part.samples.steps[first], part.samples.times[first])
            for part in self._parts
            if (level := part.level(1))
            for _, first, _ in part.rows(level)
        ]
        self.steps: tuple[int, ...] = tuple(step for step, _ in index)
        self.times: tuple[float, ...] = tuple(time for _, time in index)
        self.marks: tuple[int, ...] = tuple(sorted({step for part in self._parts for step in part.samples.marks}))

    def __repr__(self) -> str:
        return f"Signals({len(self.sites)} sites, {len(self.names)} signals, {len(self.steps)} rows, {self.folder})"

    def _load(self, last: bool) -> list[_Part]:
        self._tables, self.damage = read_tables(self.folder)
        tables = self._tables
        widths = {number: table.width for number, table in tables.items()}
        by_number: dict[int, dict[str, list[Place]]] = {}
        for place in places(self.folder):
            by_number.setdefault(place.number, {}).setdefault(place.level, []).append(place)
        parts = []
        for number, levels in by_number.items():
            samples = self._sealed(unread := levels.pop("samples", []))
            tail = levels.pop("tail", [])
            if not unread and not tail:
                if not last:
                    raise FileNotFoundError(number)
                self.damage.append(orphaned(number))
            if samples is None and tail:
                samples, damages = read_tail(tail[0].path, widths)
                levels = {}
                self.damage += [of_tail(tail[0], damage) for damage in damages]
            if samples is None:
                continue
            table = tables.get(samples.table)
            if table is None:
                if samples.steps:
                    self.damage.append(lacking(number, samples.table))
                continue
            parts.append(_Part(number, table, samples, {level: levels[level] for level in _LEVELS if level in levels}))
        return parts

    def _sealed(self, files: Sequence[Place]) -> Samples | None:
        for place in files:
            try:
                return read_samples(place)
            except UnreadableError as error:
                self.damage.append(damaged(place, str(error)))
        return None

    def _drop_replaced(self) -> None:
        """Keep of every part the samples of a smaller step than all that was written later; the others are replaced."""
        limit: float = math.inf
        for part in reversed(self._parts):
            alive = []
            for i in range(len(part.samples.steps) - 1, -1, -1):
                if part.samples.steps[i] < limit:
                    alive.append(i)
                    limit = part.samples.steps[i]
            part.alive = array("q", reversed(alive))

    def read(
        self,
        signal: str,
        *,
        site: str | None = None,
        first: int | None = None,
        last: int | None = None,
        resolution: int | None = None,
    ) -> Reading:
        """Read a signal.

        Args:
            signal: its name.
            site: one site, and rows of one number; otherwise all, in the order of `sites`.
            first: first step.
            last: last step.
            resolution: 1 (default), 16 or 256 samples a row; where such detail is no longer kept, the finest that is.

        Returns:
            Rows of numbers, NaN where nothing was measured; what cannot be read is missing, and told by `damage`.

        Raises:
            UsageError: if there is no such signal, site or resolution.
            MissingExtraError: if segments are Parquet and pyarrow is not installed.
        """
        self._require(signal)
        if site is not None and site not in self._columns:
            raise UsageError(f"Signals.read: no site {site!r}; the sites are: {', '.join(list(self._columns)[:50])}.")
        if resolution not in (None, *SPANS.values()):
            raise UsageError(f"Signals.read: resolution is 1, 16 or 256 samples a row, got {resolution!r}.")
        found = Reading()
        for part in self._parts:
            low = -math.inf if first is None else first
            high = math.inf if last is None else last
            for level, planes in self._planes(part, signal, site, resolution or 1, (low, high)):
                self._add(found, part, level, planes, site, (low, high))
        return found

    def _require(self, signal: str) -> None:
        if signal not in self.names:
            raise UsageError(f"Signals.read: no signal {signal!r}; the signals are: {', '.join(self.names) or 'none'}.")

    def planes(self, signal: str, first: int, last: int, resolution: int = 1) -> Iterator[Planes]:
        """Give what `read` gives of all sites as codes, one tail or segment at a time: for who merges many numbers.

        Args:
            signal: its name.
            first: first step.
            last: last step.
            resolution: as for `read`.

        Raises:
            UsageError: as `read`.
            MissingExtraError: as `read`.
        """
        self._require(signal)
        for part in self._parts:
            steps = part.samples.steps
            for level, planes in self._planes(part, signal, None, resolution, (first, last)):
                rows = [row for row in part.rows(level) if steps[row[2]] >= first and steps[row[1]] <= last]
                yield Planes(
                    self._places[id(part.table)], [(row, steps[a], steps[b], b - a + 1) for row, a, b in rows], planes
                )

    @property
    def sampled(self) -> list[int]:
        """The steps of all samples, whatever detail of them is kept."""
        return [part.samples.steps[i] for part in self._parts for i in part.alive]

    def _planes(
        self, part: _Part, signal: str, site: str | None, resolution: int, bounds: tuple[float, float]
    ) -> list[tuple[str, list[array[int]]]]:
        """Read a part at the wanted resolution, or at the next that can be read; nothing if none can."""
        level = part.level(resolution)
        steps = part.samples.steps
        if not level or not part.alive or max(steps) < bounds[0] or min(steps) > bounds[1]:
            return []
        if signal not in part.table.signals:
            return []
        column, count = part.table.signals.index(signal), len(part.table.sites)
        span = range(count)
        if site is not None:
            names = [each["name"] for each in part.table.sites]
            if site not in names:
                return []
            span = range(names.index(site), names.index(site) + 1)
        if part.samples.codes:
            return [(level, _tail_planes(part, column * count + span.start, len(span), level))]
        for other in _LEVELS[_LEVELS.index(level) :]:
            for place in part.files.get(other, ()):
                try:
                    return [(other, read_planes(place, Cut.of(other, steps, count), column, span))]
                except FileNotFoundError:
                    continue  # no longer kept
                except UnreadableError as error:
                    self._lost(damaged(place, str(error)))
        return []

    def _lost(self, damage: Damage) -> None:
        if damage not in self.damage:
            self.damage.append(damage)

    def _add(
        self,
        found: Reading,
        part: _Part,
        level: str,
        planes: list[array[int]],
        site: str | None,
        bounds: tuple[float, float],
    ) -> None:
        rows = len(blocks(len(part.samples.steps), SPANS[level]))
        steps, times = part.samples.steps, part.samples.times
        columns = None if site is not None else self._places[id(part.table)]
        whole = columns is not None and columns != array("q", range(len(self.sites)))
        for row, a, b in part.rows(level):
            if steps[b] < bounds[0] or steps[a] > bounds[1]:
                continue
            values = [decoded(plane[row::rows]) for plane in planes]
            if whole and columns is not None:
                values = [spread(each, columns, len(self.sites)) for each in values]
            found.append(values[len(values) // 2])
            found.low.append(values[0])
            found.high.append(values[-1])
            found.steps.append(steps[a])
            found.last_steps.append(steps[b])
            found.times.append(times[a])
            found.counts.append(b - a + 1)

    def lost(self, more: Sequence[Damage] = ()) -> list[Lost]:
        """Say what cannot be read, as far as it was looked at, or was moved aside, and which samples that takes.

        Args:
            more: what somebody else found damaged.

        Example:
            >>> import pathlib, tempfile
            >>> from levada.runs import SignalWriter
            >>> folder = pathlib.Path(tempfile.mkdtemp())
            >>> with SignalWriter(folder, sites=[{"name": "0"}], signals=["signal_rms"]) as writer:
            ...     written = [writer.append(step, 0.0, bytes(2), {}) for step in (0, 20)]
            >>> path = next(writer.folder.glob("full-*"))
            >>> moved = path.rename(path.with_suffix(".torn"))
            >>> [str(lost) for lost in Signals(writer.folder).lost()] == [f"{moved.name}: all series, steps 0 to 20"]
            True
        """
        told = dict.fromkeys((*more, *self.damage, *set_aside(self.folder, self._tables)[0]))
        return lost_of(told, {part.number: part.samples.steps for part in self._parts if part.samples.steps})

    def copies(self) -> list[str]:
        """Name the damaged files that were moved aside and took nothing, as what they held stands elsewhere."""
        return set_aside(self.folder, self._tables)[1]

    def scalars(self, name: str) -> list[tuple[int, float]]:
        """Give step and value of a scalar, for every step that has it, whatever detail of the signals is kept."""
        found = {
            part.samples.steps[i]: part.samples.scalars[i][name]
            for part in self._parts
            for i in part.alive
            if name in part.samples.scalars[i]
        }
        found |= unsampled(found, [held for each, held in self._waiting if each == name])
        return sorted((found | dict(self._logged.get(name, {}))).items())

    @property
    def scalar_names(self) -> tuple[str, ...]:
        """Names of the scalars, in the order in which they first came."""
        seen = (name for part in self._parts for each in part.samples.scalars for name in each)
        return tuple(dict.fromkeys((*seen, *self._logged, *(name for name, _ in self._waiting))))

    def losses(self) -> list[tuple[int, float]]:
        """Give step and loss of every step; where only samples are known, of those."""
        return list(self._losses) or self.scalars("loss")

    def to_arrow(self, signals: Sequence[str] = ()) -> Any:
        """Give a `pyarrow.Table` with a row for each signal, site and row of `read`: signal, site, order, step, value.

        Args:
            signals: which; all by default.

        Raises:
            MissingExtraError: if pyarrow is not installed.
        """
        pa = import_extra("pyarrow", "store", "Signals.to_arrow")
        tables = []
        for signal in signals or self.names:
            rows = self.read(signal)
            count = len(self.sites)
            site = pa.array([each["name"] for each in self.sites] * len(rows), pa.string()).dictionary_encode()
            columns = {
                "signal": pa.array([signal] * (count * len(rows)), pa.string()).dictionary_encode(),
                "site": site,
                "order": pa.array([i for _ in rows for i in range(count)], pa.int32()),
                "step": pa.array([step for step in rows.steps for _ in range(count)], pa.int64()),
                "num_samples": pa.array([number for number in rows.counts for _ in range(count)], pa.int32()),
            }
            for name, part in (("low", rows.low), ("value", rows), ("high", rows.high)):
                columns[name] = pa.array([value for row in part for value in row], pa.float64())
            tables.append(pa.table(columns))
        return pa.concat_tables(tables).unify_dictionaries() if tables else pa.table({})


def _union(tables: Any) -> list[Mapping[str, Any]]:
    """Give the sites of all tables, those of the first as they are, then what only others have."""
    found: dict[str, Mapping[str, Any]] = {}
    for sites in tables:
        for site in sites:
            found.setdefault(site["name"], site)
    return list(found.values())


def _tail_planes(part: _Part, start: int, count: int, level: str) -> list[array[int]]:
    cut = [codes[2 * start : 2 * (start + count)] for codes in part.samples.codes]
    series = Samples(codes=cut).series(count)
    return [series] if level == "full" else list(coarsen(series, len(cut), SPANS[level]))
