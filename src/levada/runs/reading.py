"""What is read of signals: rows of numbers, or as many codes as a segment holds."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

__all__ = ["Planes", "Reading", "spread"]


@final
class Reading(list[list[float]]):
    """Rows of numbers in the order of steps: one row a sample, or a block of samples, and in it one number a site.

    Attributes:
        steps: first step of each row.
        last_steps: last step of each row; for a single sample the same.
        times: when the first sample of each row was taken.
        counts: number of samples of each row: 1, or up to 16 or 256 where only their minimum, mean (the row's
            numbers) and maximum are kept.
        low: the rows' minima.
        high: the rows' maxima.
    """

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int] = []
        self.last_steps: list[int] = []
        self.times: list[float] = []
        self.counts: list[int] = []
        self.low: list[list[float]] = []
        self.high: list[list[float]] = []


@final
@dataclass(frozen=True, slots=True)
class Planes:
    """A signal in one segment, as it is kept.

    Attributes:
        columns: the place of each of its sites among those of the signals.
        rows: of each row that counts its place in a plane, first and last step, and number of samples.
        planes: the codes site by site, as many for each; or those of minimum, mean and maximum.
    """

    columns: Sequence[int]
    rows: Sequence[tuple[int, int, int, int]]
    planes: Sequence[array[int]]


def spread(values: list[float], columns: Sequence[int], count: int) -> list[float]:
    """Put the numbers of an older site table where the sites stand now.

    Args:
        values: one a site.
        columns: the places of these sites.
        count: how many places there are; the others are NaN.
    """
    out = [math.nan] * count
    for column, value in zip(columns, values, strict=True):
        out[column] = value
    return out
