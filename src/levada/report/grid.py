"""A signal by block and step, merged until it can be seen: what is worst in a cell is never hidden by the rest."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, NamedTuple, final

__all__ = ["INFINITE", "MAX_COLUMNS", "MAX_ROWS", "NAN", "ZERO", "Fine", "Grid", "Row", "gather"]

MAX_COLUMNS: Final = 200
MAX_ROWS: Final = 120
MAX_FINE_ROWS: Final = 512
MAX_CELLS: Final = 2**18
# What a cell holds beside numbers, as the pages' figures name it.
ZERO, INFINITE, NAN = 1, 2, 4


class Row(NamedTuple):
    """A sample of a signal, or a stretch of them.

    Attributes:
        first: its first step.
        last: its last step.
        values: of each block; NaN where nothing was measured.
        bad: share of NaN and Inf at each block; empty if that is not known.
        low: of a stretch the least of each block, where a zero would show.
        high: of a stretch the greatest.
    """

    first: int
    last: int
    values: Sequence[float]
    bad: Sequence[float] = ()
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@final
@dataclass(frozen=True, slots=True)
class Grid:
    """Cells by rows and columns.

    Attributes:
        rows: first and last block of each row.
        columns: first and last step of each column.
        cells: by row, then column: the logarithm to base 10 of the signal, -inf where one value is exactly zero, inf
            where one is no finite number, NaN where nothing was measured.
    """

    rows: tuple[tuple[str, str], ...]
    columns: tuple[tuple[int, int], ...]
    cells: tuple[tuple[float, ...], ...]

    @property
    def low(self) -> tuple[float, int, int] | None:
        """The lowest finite cell and where it is, row and column; None if there is none."""
        return min(self._finite(), default=None)

    @property
    def high(self) -> tuple[float, int, int] | None:
        """The highest finite cell and where it is."""
        return max(self._finite(), default=None)

    def _finite(self) -> Iterable[tuple[float, int, int]]:
        return (
            (value, i, j) for i, row in enumerate(self.cells) for j, value in enumerate(row) if math.isfinite(value)
        )

    def count(self, value: float) -> int:
        """Count the cells of this value; infinities are values here."""
        return sum(cell == value for row in self.cells for cell in row)


@final
class _Column:
    """One column while it is filled: sums of logarithms, the least and the greatest, and what hides them."""

    def __init__(self, sites: int, size: int) -> None:
        self._starts = range(0, sites, size)
        self._size = size
        number = len(self._starts)
        self.total = array("d", bytes(8 * number))
        self.count = array("q", bytes(8 * number))
        self.low = array("d", [math.inf]) * number
        self.high = array("d", bytes(8 * number))
        self.marks = bytearray(number)

    def add(self, row: Row) -> None:
        for i, start in enumerate(self._starts):
            part = slice(start, start + self._size)
            values, bad = row.values[part], any(share > 0 for share in row.bad[part])
            ends = [*row.low[part], *row.high[part]]
            try:
                total = sum(map(math.log10, values))
                plain = math.isfinite(total) and not bad and not ends
            except ValueError:
                plain = False
            if plain:
                self._sum(i, total, values, values)
                continue
            finite = [value for value in values if value > 0 and math.isfinite(value)]
            self._sum(i, sum(map(math.log10, finite)), finite, [*finite, *_positive(ends)])
            if bad:
                self.marks[i] |= NAN
            if any(map(math.isinf, values)) or any(map(math.isinf, ends)):
                self.marks[i] |= INFINITE
            if 0.0 in values or 0.0 in ends:
                self.marks[i] |= ZERO

    def _sum(self, i: int, total: float, values: Sequence[float], ends: Sequence[float]) -> None:
        self.total[i] += total
        self.count[i] += len(values)
        if ends:
            self.low[i] = min(self.low[i], *ends)
            self.high[i] = max(self.high[i], *ends)

    def merge(self, other: _Column, factor: int) -> None:
        """Add a column whose rows are finer: `factor` of them make one."""
        for i, (total, count, mark) in enumerate(zip(other.total, other.count, other.marks, strict=True)):
            self.total[i // factor] += total
            self.count[i // factor] += count
            self.marks[i // factor] |= mark

    def cells(self) -> list[float]:
        return [
            math.inf if mark & (INFINITE | NAN) else -math.inf if mark else total / count if count else math.nan
            for mark, total, count in zip(self.marks, self.total, self.count, strict=True)
        ]


def _positive(values: Iterable[float]) -> Iterable[float]:
    return (value for value in values if value > 0 and math.isfinite(value))


@final
class Fine:
    """A signal by block and step in as many cells as a page can zoom into, and the `Grid` of it that is drawn.

    Args:
        sites: names of the blocks.
        rows: the samples, in the order of their steps.
        total: of them.

    Attributes:
        sites: names of the blocks.
        total: how many samples there are.
        edges: the first block of each row of cells, and behind the last one the number of blocks.
        columns: first and last step of each column.
        single: whether every cell is one block at one step.

    Cost:
        One pass over the values; no more than the cells is kept, about `MAX_CELLS`.
    """

    def __init__(self, sites: Sequence[str], rows: Iterable[Row], total: int) -> None:
        self.sites, self.total = sites, total
        size = max(1, math.ceil(len(sites) / MAX_FINE_ROWS))
        self.edges = [*range(0, len(sites), size), len(sites)]
        width = max(1, math.ceil(total * (len(self.edges) - 1) / MAX_CELLS))
        self.columns: list[tuple[int, int]] = []
        self._held: list[_Column] = []
        several = iter(rows)
        alone = True
        while part := list(islice(several, width)):
            column = _Column(len(sites), size)
            for row in part:
                column.add(row)
                alone &= not row.low
            self.columns.append((part[0].first, part[-1].last))
            self._held.append(column)
        self.single = alone and size == 1 and width == 1

    def logs(self) -> list[list[float]]:
        """Give the mean logarithm to base 10 of each column's cells; NaN where a cell has no number above zero."""
        return [
            [total / count if count else math.nan for total, count in zip(c.total, c.count, strict=True)]
            for c in self._held
        ]

    def ends(self) -> tuple[list[list[float]], list[list[float]]]:
        """Give the least and the greatest number of each column's cells; NaN where there is none above zero."""
        low = [[x if x < math.inf else math.nan for x in column.low] for column in self._held]
        return low, [[x or math.nan for x in column.high] for column in self._held]

    def marks(self) -> list[bytes]:
        """Give what each column's cells hold beside numbers: sums of `ZERO`, `INFINITE` and `NAN`."""
        return [bytes(column.marks) for column in self._held]

    def grid(self) -> Grid:
        """Merge the cells until they can be seen: at most `MAX_ROWS` rows and `MAX_COLUMNS` columns."""
        count = len(self.edges) - 1
        down = max(1, math.ceil(count / MAX_ROWS))
        right = max(1, math.ceil(len(self._held) / MAX_COLUMNS))
        drawn: list[list[float]] = []
        columns: list[tuple[int, int]] = []
        for start in range(0, len(self._held), right):
            column = _Column(count, down)
            for each in self._held[start : start + right]:
                column.merge(each, down)
            drawn.append(column.cells())
            part = self.columns[start : start + right]
            columns.append((part[0][0], part[-1][1]))
        names = tuple(
            (self.sites[self.edges[i]], self.sites[self.edges[min(i + down, count)] - 1]) for i in range(0, count, down)
        )
        return Grid(names, tuple(columns), tuple(zip(*drawn, strict=True)) if drawn else ())


def gather(sites: Sequence[str], rows: Iterable[Row], total: int) -> Grid:
    """Merge a signal into a grid of at most `MAX_ROWS` rows and `MAX_COLUMNS` columns.

    Args:
        sites: names of the blocks.
        rows: the samples, in the order of their steps.
        total: how many there are.

    Example:
        >>> gather(["a", "b"], [Row(0, 0, [1.0, 0.0]), Row(20, 20, [0.01, 0.1])], 2).cells
        ((0.0, -2.0), (-inf, -1.0))
    """
    return Fine(sites, rows, total).grid()
