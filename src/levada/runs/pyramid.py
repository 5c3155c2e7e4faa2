"""Detail fades with age: minimum, mean and maximum of 16 and of 256 samples, and what is kept of which.

Blocks never reach over the end of a segment, which holds at most 256 samples. What was not measured (NaN) takes no
part; a block without any measurement is NaN. Codes are in the order of the numbers: minimum and maximum are exact, and
the mean is that of the decoded numbers, encoded again.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from types import ModuleType
from typing import Any, Final

from levada._errors import import_extra
from levada.runs.codes import (
    INFINITE,
    LARGEST,
    NAN,
    OFFSET,
    OVERFLOW,
    PER_OCTAVE,
    UNDERFLOW,
    codes_from,
    decoded,
    encode,
    thresholds,
)

__all__ = [
    "FADE",
    "SEGMENT",
    "SPANS",
    "Kept",
    "blocks",
    "coarsen",
    "coarsen_by_arrow",
    "encode_by_arrow",
    "groups",
    "sites_in_group",
    "surplus",
]

SEGMENT: Final = 256
SPANS: Final = {"full": 1, "by16": 16, "by256": 256}
"""Samples in a row of each level."""
FADE: Final = 16
"""The blocks of 16 are kept that many times as long as the full detail; those of 256 for ever."""

_CHUNK = 2**20


def blocks(rows: int, span: int) -> list[tuple[int, int]]:
    """Give the first sample of each block and the one after its last.

    Example:
        >>> blocks(40, 16)
        [(0, 16), (16, 32), (32, 40)]
    """
    return [(start, min(start + span, rows)) for start in range(0, rows, span)]


def sites_in_group(rows: int) -> int:
    """Give how many sites of one signal stand together: about a million codes.

    Example:
        >>> sites_in_group(256)
        4096
    """
    return max(1, 2**20 // max(rows, 1))


def groups(num_sites: int, rows: int) -> Iterator[range]:
    """Give the sites that stand together, in order.

    Example:
        >>> list(groups(5000, 256))
        [range(0, 4096), range(4096, 5000)]
    """
    size = sites_in_group(rows)
    for start in range(0, num_sites, size):
        yield range(start, min(start + size, num_sites))


def coarsen(series: array[int], rows: int, span: int) -> tuple[array[int], array[int], array[int]]:
    """Give the codes of minimum, mean and maximum of every block, series by series.

    Args:
        series: codes, `(series, rows)` flattened.
        rows: number of samples.
        span: samples in a block.

    Example:
        >>> from levada.runs.codes import codes_from, encode
        >>> low, mean, high = coarsen(codes_from(encode([1.0, 3.0, float("nan"), 8.0])), rows=4, span=2)
        >>> decoded(low), decoded(mean), decoded(high)
        ([1.0, 8.0], [2.0, 8.0], [3.002..., 8.0])
    """
    bounds = blocks(rows, span)
    low, high, means = array("h"), array("h"), array("d")
    for start in range(0, len(series), rows):
        for first, stop in bounds:
            part: Sequence[int] = series[start + first : start + stop]
            smallest = min(part)
            if smallest == NAN:
                part = [code for code in part if code != NAN] or [NAN]
                smallest = min(part)
            low.append(smallest)
            high.append(max(part))
            means.append(sum(decoded(part)) / len(part))
    return low, codes_from(encode(means)), high


def _arrow() -> tuple[ModuleType, ModuleType]:
    pa, pc = (import_extra(name, "store", "sealing as Parquet") for name in ("pyarrow", "pyarrow.compute"))
    return pa, pc


def coarsen_by_arrow(series: array[int], rows: int, span: int) -> tuple[array[int], array[int], array[int]]:
    """Do as `coarsen`, in pyarrow, which lets other threads run meanwhile."""
    pa, pc = _arrow()
    table = pa.array(decoded([*range(2**15), *range(-(2**15), 0)]))
    per = len(blocks(rows, span))
    count = max(1, _CHUNK // rows)
    low, mean, high = array("h"), array("h"), array("h")
    keys: Any = None
    for start in range(0, len(series), count * rows):
        part = series[start : start + count * rows]
        if keys is None or len(keys) != len(part):
            keys = _keys(len(part) // rows, rows, span, per)
        codes = pa.Array.from_buffers(pa.int16(), len(part), [None, pa.py_buffer(part)])
        measured = pc.if_else(pc.equal(codes, NAN), pa.scalar(None, pa.int16()), codes)
        # As an index into the table, a negative code counts from the end.
        places = pc.bit_wise_and(measured.cast(pa.int32()), 0xFFFF)
        rows_of = pa.table({"key": keys, "code": measured, "value": table.take(places)})
        got = rows_of.group_by("key", use_threads=False).aggregate(
            [("code", "min"), ("code", "max"), ("value", "mean")]
        )
        low.extend(_int16(pc.fill_null(got["code_min"], NAN)))
        high.extend(_int16(pc.fill_null(got["code_max"], NAN)))
        mean.extend(_int16(encode_by_arrow(pc.fill_null(got["value_mean"], math.nan).combine_chunks())))
    return low, mean, high


def _int16(column: Any) -> array[int]:
    """Give the numbers of an Arrow column without nulls."""
    out = array("h")
    for chunk in getattr(column, "chunks", [column]):
        out.frombytes(memoryview(chunk.buffers()[1])[2 * chunk.offset : 2 * (chunk.offset + len(chunk))])
    return out


@cache
def _cells() -> tuple[Any, Any]:
    """Give, for each 256th of an octave, how many thresholds lie below it, and the bits of the one inside of it."""
    pa, _ = _arrow()
    bits = [round(math.ldexp(mantissa, 53)) - 2**52 for mantissa in thresholds()]
    starts = [bisect_left(bits, cell << 44) for cell in range(257)]
    inside = [bits[a] if a < b else 2**53 for a, b in pairwise(starts)]
    return pa.array(starts[:-1], pa.int64()), pa.array(inside, pa.int64())


def encode_by_arrow(values: Any) -> Any:
    """Do as `encode`, on an Arrow array of float64; the mantissa is compared with the one threshold of its cell."""
    pa, pc = _arrow()
    below, inside = _cells()
    size = pc.abs(values)
    bits = size.view(pa.int64())
    mantissa = pc.bit_wise_and(bits, 2**52 - 1)
    cell = pc.shift_right(mantissa, 44)
    place = pc.add(below.take(cell), pc.greater_equal(mantissa, inside.take(cell)).cast(pa.int64()))
    octave = pc.subtract(pc.shift_right(bits, 52), 1023)
    code = pc.add(pc.add(place, pc.multiply(octave, PER_OCTAVE)), OFFSET)
    code = pc.max_element_wise(code, UNDERFLOW)
    outside = pc.if_else(pc.is_inf(size), INFINITE, OVERFLOW)
    code = pc.if_else(pc.greater(size, LARGEST), outside, code)
    code = pc.if_else(pc.equal(size, 0.0), 0, code)
    code = pc.if_else(pc.less(values, 0.0), pc.negate(code), code)
    return pc.if_else(pc.is_nan(values), NAN, code).cast(pa.int16())


def _keys(count: int, rows: int, span: int, per: int) -> Any:
    """Number the blocks of `count` series."""
    pa, pc = _arrow()

    one = array("i", [row // span for row in range(rows)])
    within = pa.array(one * count, pa.int32())
    starts = array("i")
    for i in range(count):
        starts.extend(array("i", [i * per]) * rows)
    return pc.add(within, pa.Array.from_buffers(pa.int32(), count * rows, [None, pa.py_buffer(starts)]))


@dataclass(frozen=True, slots=True)
class Kept:
    """A sealed segment, for the decision what of it is kept: its number, first and last step, and number of samples."""

    number: int
    first: int
    last: int
    count: int

    def near(self, step: int) -> bool:
        """Say whether a step lies in the segment, or no further from it than half its length."""
        reach = (self.last - self.first) / 2
        return self.first - reach <= step <= self.last + reach


def surplus(kept: Sequence[Kept], marks: Sequence[int], keep: int) -> list[tuple[str, int]]:
    """Say which levels of which segments are no longer kept, as pairs of level and number.

    Args:
        kept: the segments in the order of writing.
        marks: steps around which the detail stays.
        keep: how many of the newest samples are kept in full.

    Example:
        >>> segments = [Kept(n, 100 * n, 100 * n + 99, 100) for n in range(4)]
        >>> surplus(segments, marks=[110], keep=150)
        []
        >>> surplus(segments, marks=[300], keep=150)
        [('full', 1), ('full', 0)]
    """
    gone, newer = [], 0
    for segment in reversed(kept):
        if not any(map(segment.near, marks)):
            gone += [
                (level, segment.number) for level, limit in (("full", keep), ("by16", FADE * keep)) if newer >= limit
            ]
        newer += segment.count
    return gone
