"""Heat pictures, merged here so that a page gets no more cells than it draws: sums of 16-bit logarithms as they lie."""

from __future__ import annotations

import base64
import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from levada._names import NONFINITE
from levada.runs import Signals
from levada.runs.codes import INFINITE, NAN, OFFSET, PER_OCTAVE
from levada.runs.reading import Planes
from levada.web.folder import RefusedError
from levada.web.opened import opened
from levada.web.pictures import Heat, HeatOf

__all__ = ["heat_of"]

_ZERO, _INFINITE, _NONFINITE, _MISSING, _NEGATIVE = 1, 2, 4, 8, 16
_AT_ONCE: Final = 2**18  # codes that are merged at once
_RESOLUTIONS: Final = (1, 16, 256)
_NUMBERS: Final = 2**24  # that are read for a picture, where blocks of samples are coarse enough
_DECADE: Final = math.log10(2) / PER_OCTAVE
_NONE: Final = 2**20  # larger than any code


def heat_of(path: Path, asked: HeatOf) -> Heat:
    """Give a part of a signal of a watched run as a picture of few cells.

    Args:
        path: the run's folder.
        asked: which part, and how many cells.

    Raises:
        RefusedError: if the run has no such signal.
    """
    run = opened(path)
    held = [run.together.signals[rank] for rank in run.together.holders if rank in run.ranks] if run.ranks else []
    if not any(asked.signal in one.names for one in held):
        names = ", ".join(dict.fromkeys(name for one in held for name in one.names)) or "none"
        raise RefusedError(404, f"The run keeps no signal of this name; those that it keeps: {names}.")
    sampled = sorted(held[0].sampled)
    steps = sampled[bisect_left(sampled, asked.start) : bisect_right(sampled, asked.stop)]
    sites = range(asked.first, min(asked.last + 1, sum(len(one.sites) for one in held)))
    picture = _Picture(steps, sites, asked)
    start = 0
    for signals in held if steps and sites else ():
        picture.add(signals, start, asked.signal)
        start += len(signals.sites)
    return picture.heat(asked.signal)


@final
class _Picture:
    """Sums by cell, while segment after segment is added."""

    def __init__(self, steps: Sequence[int], sites: range, asked: HeatOf) -> None:
        # The finest of which not too many numbers are read.
        wanted = (r for r in _RESOLUTIONS if len(steps) * len(sites) <= r * _NUMBERS)
        self._resolution = next(wanted, _RESOLUTIONS[-1])
        self._steps, self._sites = np.asarray(steps, np.int64), sites
        self._columns = min(asked.columns, math.ceil(len(steps) / self._resolution))
        self._rows = min(asked.rows, len(sites))
        size = (self._rows, self._columns)
        self._sum = np.zeros(size, np.int64)
        self._count = np.zeros(size, np.int64)
        self._low = np.full(size, _NONE, np.int32)
        self._high = np.full(size, -1, np.int32)
        self._flags = np.zeros(size, np.uint8)
        self._hurt = np.zeros(size, np.uint8)

    def add(self, signals: Signals, start: int, name: str) -> None:
        """Add the sites of a process, of which the first is number `start`."""
        bounds = (int(self._steps[0]), int(self._steps[-1]), self._resolution)
        if name in signals.names:
            for piece in signals.planes(name, *bounds):
                self._merge(piece, start, self._numbers)
        bad = NONFINITE.get(name)
        if bad in signals.names:
            for piece in signals.planes(str(bad), *bounds):
                self._merge(piece, start, self._shares)

    def _merge(self, piece: Planes, start: int, take: Any) -> None:
        """Cut a segment into blocks of sites, each with the rows and columns of the picture that it goes to."""
        if not piece.rows or not piece.columns:
            return
        places = np.asarray(piece.columns, np.int64) + start
        order = np.argsort(places, kind="stable")
        order = order[(places[order] >= self._sites.start) & (places[order] < self._sites.stop)]
        rows = (places[order] - self._sites.start) * self._rows // len(self._sites)
        kept, columns = self._spread(piece)
        planes = [np.frombuffer(plane, np.int16).reshape(len(places), -1) for plane in piece.planes]
        size = max(1, _AT_ONCE // max(len(kept), 1))
        for begin in range(0, len(order), size):
            part = order[begin : begin + size]
            # What stands together is looked at where it lies: to gather it takes a third of the time of a picture.
            where = (_slice(part), _slice(kept))
            if not all(isinstance(one, slice) for one in where):
                where = (part[:, None], kept)
            parts = [plane[where] for plane in planes]
            take(parts, _Bins(rows[begin : begin + size], columns))

    def _spread(self, piece: Planes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Give rows of a plane and the columns that they go to: of many samples, a row may go to several."""
        number = len(self._steps)
        ends = np.searchsorted(self._steps, [(first, last) for _, first, last, _ in piece.rows], side="right") - 1
        # A block of samples may begin before the first that is asked for.
        ends = ends.clip(0, number - 1) * self._columns // number
        width = ends[:, 1] - ends[:, 0] + 1
        kept = np.repeat(np.asarray([row for row, *_ in piece.rows]), width)
        within = np.arange(width.sum()) - np.repeat(np.cumsum(width) - width, width)
        return kept, np.repeat(ends[:, 0], width) + within

    def _numbers(self, parts: Sequence[NDArray[np.int16]], bins: _Bins) -> None:
        low, mean, high = parts[0], parts[len(parts) // 2], parts[-1]
        flags = _flags(mean)
        if len(parts) > 1:
            flags |= _flags(low) | _flags(high)
        for codes, total, end, none in ((low, self._low, np.minimum, _NONE), (high, self._high, np.maximum, -1)):
            size, known = _sizes(codes)
            found = bins.reduced(np.where(known, size, none), end)
            end(total[bins.cells], found, out=found)
            total[bins.cells] = found
        size, known = _sizes(mean)
        self._sum[bins.cells] += bins.reduced(np.where(known, size, 0).astype(np.int64), np.add)
        self._count[bins.cells] += bins.reduced(known.astype(np.int64), np.add)
        self._flags[bins.cells] |= bins.reduced(flags, np.bitwise_or)

    def _shares(self, parts: Sequence[NDArray[np.int16]], bins: _Bins) -> None:
        hurt = (parts[-1] > 0).astype(np.uint8)
        self._hurt[bins.cells] |= bins.reduced(hurt, np.bitwise_or)

    def heat(self, signal: str) -> Heat:
        """Give what was added."""
        flags = np.where(self._hurt, (self._flags & ~np.uint8(_MISSING)) | _NONFINITE, self._flags)
        seen = self._count > 0
        mean = np.where(seen, self._sum / np.maximum(self._count, 1), np.nan)
        ends = np.where(self._high >= 0, self._low, np.nan), np.where(self._high >= 0, self._high, np.nan)
        low, mean, high = ((_DECADE * (codes - OFFSET)).astype("<f4") for codes in (ends[0], mean, ends[1]))
        edges = _edges(len(self._steps), self._columns)
        sites = [self._sites.start + edge for edge in _edges(len(self._sites), self._rows)]
        return Heat(
            signal=signal,
            steps=self._steps[edges[:-1]].tolist(),
            last_steps=self._steps[np.asarray(edges[1:], np.int64) - 1].tolist(),
            sites=sites[:-1],
            last_sites=[edge - 1 for edge in sites[1:]],
            resolution=self._resolution,
            mean=_base64(mean),
            low=_base64(low),
            high=_base64(high),
            flags=_base64(flags.astype(np.uint8)),
            least=float(np.nanmin(low)) if np.isfinite(low).any() else None,
            greatest=float(np.nanmax(high)) if np.isfinite(high).any() else None,
        )


@final
class _Bins:
    """Where the rows and columns of a block go, both in order."""

    def __init__(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> None:
        self._rows = np.flatnonzero(np.diff(rows, prepend=-1))
        self._columns = np.flatnonzero(np.diff(columns, prepend=-1))
        self.cells = np.ix_(rows[self._rows], columns[self._columns])

    def reduced(self, values: NDArray[Any], by: np.ufunc) -> NDArray[Any]:
        """Merge what goes to the same cell."""
        return np.asarray(by.reduceat(by.reduceat(values, self._columns, axis=1), self._rows, axis=0))


def _slice(places: NDArray[np.int64]) -> slice | NDArray[np.int64]:
    """Give places that follow each other as a slice.

    Example:
        >>> _slice(np.array([3, 4, 5])), _slice(np.array([3, 5]))
        (slice(3, 6, None), array([3, 5]))
    """
    ordered = len(places) > 0 and bool((np.diff(places) == 1).all())
    return slice(int(places[0]), int(places[-1]) + 1) if ordered else places


def _sizes(codes: NDArray[np.int16]) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Give the logarithms of numbers, as codes without sign, and of which there is one."""
    size = np.abs(codes.astype(np.int32))
    return size, (size > 0) & (size < INFINITE)


def _flags(codes: NDArray[np.int16]) -> NDArray[np.uint8]:
    flags = np.where(codes == 0, np.uint8(_ZERO), np.uint8(0))
    flags |= np.where(np.abs(codes.astype(np.int32)) == INFINITE, np.uint8(_INFINITE), np.uint8(0))
    flags |= np.where(codes == NAN, np.uint8(_MISSING), np.uint8(0))
    flags |= np.where((codes < 0) & (codes != NAN), np.uint8(_NEGATIVE), np.uint8(0))
    return flags


def _edges(count: int, parts: int) -> list[int]:
    """Give where each part of a count begins, and the end: number i is in part i * parts // count.

    Example:
        >>> _edges(5, 2), [i * 2 // 5 for i in range(5)]
        ([0, 3, 5], [0, 0, 0, 1, 1])
    """
    return [-(-part * count // max(parts, 1)) for part in range(parts + 1)]


def _base64(plane: NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(plane).tobytes()).decode()
