"""A signal by block and step, merged until it can be seen: what is worst in a cell is never hidden by the rest."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, NamedTuple, final

__all__ = ["MAX_COLUMNS", "MAX_ROWS", "Grid", "Row", "gather"]

MAX_COLUMNS: Final = 200
MAX_ROWS: Final = 120


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
    """One column while it is filled: sums of logarithms, and what hides them."""

    def __init__(self, sites: int, size: int) -> None:
        self._starts = range(0, sites, size)
        self._size = size
        self._total = [0.0] * len(self._starts)
        self._number = [0] * len(self._starts)
        self._hidden = [0.0] * len(self._starts)  # -inf, or inf, which is worse

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
                self._total[i] += total
                self._number[i] += len(values)
                continue
            finite = [value for value in values if value > 0 and math.isfinite(value)]
            self._total[i] += sum(map(math.log10, finite))
            self._number[i] += len(finite)
            if bad or any(map(math.isinf, values)) or any(map(math.isinf, ends)):
                self._hidden[i] = math.inf
            elif 0.0 in values or 0.0 in ends:
                self._hidden[i] = self._hidden[i] or -math.inf

    def cells(self) -> list[float]:
        means = zip(self._hidden, self._total, self._number, strict=True)
        return [hidden or (total / number if number else math.nan) for hidden, total, number in means]


def gather(sites: Sequence[str], rows: Iterable[Row], total: int) -> Grid:
    """Merge a signal into a grid of at most `MAX_ROWS` rows and `MAX_COLUMNS` columns.

    Args:
        sites: names of the blocks.
        rows: the samples, in the order of their steps.
        total: how many there are.

    Cost:
        One pass over the values; no more than a column is kept.

    Example:
        >>> gather(["a", "b"], [Row(0, 0, [1.0, 0.0]), Row(20, 20, [0.01, 0.1])], 2).cells
        ((0.0, -2.0), (-inf, -1.0))
    """
    size = max(1, math.ceil(len(sites) / MAX_ROWS))
    width = max(1, math.ceil(total / MAX_COLUMNS))
    names = tuple((sites[i], sites[min(i + size, len(sites)) - 1]) for i in range(0, len(sites), size))
    columns: list[tuple[int, int]] = []
    drawn: list[list[float]] = []
    several = iter(rows)
    while part := list(islice(several, width)):
        column = _Column(len(sites), size)
        for row in part:
            column.add(row)
        columns.append((part[0].first, part[-1].last))
        drawn.append(column.cells())
    return Grid(names, tuple(columns), tuple(zip(*drawn, strict=True)) if drawn else ())
