"""The blocks of all ranks of a watched run in their order, and their signals by step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final, final

from levada._names import NONFINITE
from levada.report.grid import Row
from levada.runs.processes import Together

__all__ = ["Depth", "at"]

CHUNK: Final = 256  # samples that are read at once
MAX_REPLICAS: Final = 16  # of which the spread is read


@final
class Depth:
    """The blocks of all ranks in order: one rank for those that hold the same.

    Args:
        together: what the processes of a run recorded.
    """

    def __init__(self, together: Together) -> None:
        read, holders = together.signals, [rank for rank in together.holders if rank in together.signals]
        self.stages: list[Any] = [read[rank] for rank in holders]
        self.first: Any = next(iter(read.values()), None)
        self.replicas = [read[rank] for rank in together.replicas[:MAX_REPLICAS]]
        named = [(together.site(rank, str(site["name"])), site) for rank in holders for site in read[rank].sites]
        self.sites: list[str] = [name for name, _ in named]
        self.kinds: list[str] = [str(site.get("kind") or "") for _, site in named]
        self.steps: Sequence[int] = self.first.steps if self.first is not None else ()

    def has(self, name: str) -> bool:
        """Say whether any process measured a signal."""
        return any(name in signals.names for signals in self.stages)

    def rows(self, name: str, bad: str) -> Iterator[Row]:
        """Read a signal from the first sample to the last, with the share of it that is no finite number."""
        for start in range(0, len(self.steps), CHUNK):
            part = self.steps[start : start + CHUNK]
            # Samples between two rows belong to the first of them.
            yield from self.read(name, bad, part[0], self._end(start + CHUNK))

    def _end(self, stop: int) -> int | None:
        return self.steps[stop] - 1 if stop < len(self.steps) else None

    def read(self, name: str, bad: str, first: int, last: int | None) -> Iterator[Row]:
        """Read a signal from one step to another."""
        yield from _read(self.stages, name, bad, first, last)

    def at(self, name: str, step: int) -> list[float | None]:
        """Give a signal of one sample: None where it was not measured, NaN or infinite where values of it are."""
        return at(self.stages, name, step) if self.has(name) else []

    def span(self, name: str, step: int) -> tuple[int, int]:
        """Give the steps that a sample's numbers are the mean of: itself, where its full detail can be read."""
        row = next(_read(self.stages, name, "", step, step), None)
        return (row.first, row.last) if row is not None and row.low else (step, step)

    def blocks(self, step: int) -> list[dict[str, Any]]:
        """Give one sample as the blocks of a check's report."""
        names = dict.fromkeys(name for signals in self.stages for name in signals.names)
        columns = {name: self.at(name, step) for name in names}
        return [
            {"site": site, "order": i, "kind": self.kinds[i]}
            | {name: values[i] for name, values in columns.items() if values and values[i] is not None}
            for i, site in enumerate(self.sites)
        ]


def _measured(value: float, hurt: float) -> float | None:
    """Tell what is NaN from what was not measured; of finite sums of several samples, one was not finite."""
    if hurt > 0:
        return math.nan if math.isfinite(value) else value
    return None if math.isnan(value) else value


def _read(stages: Sequence[Any], name: str, bad: str, first: int, last: int | None) -> Iterator[Row]:
    read = [_by_step(signals, name, first, last) for signals in stages]
    hurt = [_by_step(signals, bad, first, last) for signals in stages]
    for step in sorted({step for one in read for step in one}):
        rows = [one.get(step) for one in read]
        sizes = [len(signals.sites) for signals in stages]
        merged = any(row is not None and row.low for row in rows)
        yield Row(
            step,
            max(row.last for row in rows if row is not None),
            _beside([row.values if row else () for row in rows], sizes),
            _beside([row.values if (row := one.get(step)) else () for one in hurt], sizes),
            _beside([row.low if row else () for row in rows], sizes) if merged else (),
            _beside([row.high if row else () for row in rows], sizes) if merged else (),
        )


def at(stages: Sequence[Any], name: str, step: int) -> list[float | None]:
    """Give a signal of one sample, of several stages one behind the other; [] if none has that sample."""
    row = next(_read(stages, name, NONFINITE.get(name, ""), step, step), None)
    if row is None:
        return []
    hurt = row.bad or [math.nan] * len(row.values)
    return [_measured(value, share) for value, share in zip(row.values, hurt, strict=True)]


def _by_step(signals: Any, name: str, first: int, last: int | None) -> dict[int, Row]:
    if name not in signals.names:
        return {}
    read = signals.read(name, first=first, last=last)
    rows = {}
    for i, values in enumerate(read):
        several = read.counts[i] > 1
        ends = (read.low[i], read.high[i]) if several else ((), ())
        rows[read.steps[i]] = Row(read.steps[i], read.last_steps[i], values, (), *ends)
    return rows


def _beside(parts: Sequence[Sequence[float]], sizes: Sequence[int]) -> list[float]:
    """Put the stages one behind the other; what one lacks is NaN."""
    return [v for part, size in zip(parts, sizes, strict=True) for v in (part or [math.nan] * size)]
