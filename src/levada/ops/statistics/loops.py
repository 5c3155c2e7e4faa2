"""Statistics of many tensors on a CPU: each is read once, a thousand elements at a time, by its address.

Within a thousand elements sums are in float32, which fills the vector units; between them in float64. Where float32
would lose them, because squares overflow or vanish, those elements are added up again in float64, while they are in the
cache. NaN and infinities are looked for only where the largest bits say that there are any.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call,attr-defined,call-arg"
from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba import carray, types  # type: ignore[import-untyped, import-not-found, unused-ignore]
from numba.extending import intrinsic  # type: ignore[import-untyped, import-not-found, unused-ignore]

from levada.ops._numba import compiled, over_tokens
from levada.ops.statistics.reference import SQUARES, ZEROS

__all__ = ["LOOPS", "combine", "copy", "differences", "over_tokens", "rows"]

_CHUNK: Final = 1024
# Of floats that are not negative the bits are in the order of the floats: all without the sign, those of infinity, and
# those between which the largest of a thousand elements may be for their squares to be added up in their own type; and
# between which the sum of these squares may be, where nothing else is known.
_SINGLE: Final = (
    np.int32(0x7FFFFFFF),
    np.float32(np.inf).view(np.int32),
    np.float32(1e-13).view(np.int32),
    np.float32(1e13).view(np.int32),
    np.float32(1e-24),
    np.float32(1e28),
)
_DOUBLE: Final = (
    np.int64(0x7FFFFFFFFFFFFFFF),
    np.float64(np.inf).view(np.int64),
    np.int64(0),
    np.finfo(np.float64).max.view(np.int64),
    np.float64(0.0),
    np.finfo(np.float64).max,
)


@intrinsic  # type: ignore[misc, unused-ignore]
def _pointer(context: Any, address: Any) -> Any:
    """Return an address as a pointer."""

    def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.voidptr(address), make


@compiled
def _of_bfloat16(raw, patterns):
    """Write numbers of bfloat16 as the bits of float32."""
    for i in range(len(raw)):
        patterns[i] = np.int32(np.uint32(raw[i]) << np.uint32(16))


@compiled
def _of_float16(raw, patterns):
    """Write numbers of float16 as the bits of float32."""
    values = patterns.view(np.float32)
    for i in range(len(raw)):
        patterns[i] = np.int32(raw[i] & 0x7FFF) << 13
    for i in range(len(raw)):  # exponents count from elsewhere: a product moves them, of the smallest numbers too
        values[i] *= np.float32(2.0**112)
    for i in range(len(raw)):
        size = np.int32(raw[i] & 0x7FFF)
        if size >= 0x7C00:  # infinite, or NaN
            patterns[i] = 0x7F800000 | (size << 13)
        patterns[i] |= np.int32(np.uint32(raw[i] & 0x8000) << np.uint32(16))


@compiled
def _add_up(values, patterns, sign):
    total = squares = values.dtype.type(0)
    largest = zeros = patterns.dtype.type(0)
    for i in range(len(patterns)):
        x = values[i]
        total += x
        squares += x * x
        pattern = patterns[i] & sign
        largest = max(largest, pattern)
        zeros += patterns.dtype.type(pattern == 0)
    return total, squares, largest, zeros


@compiled
def _add_up_again(values, patterns, sign, infinity):
    total = squares = 0.0
    nan = infinite = largest = patterns.dtype.type(0)
    for i in range(len(patterns)):
        x = np.float64(values[i])
        total += x
        squares += x * x
        pattern = patterns[i] & sign
        nan += patterns.dtype.type(pattern > infinity)
        infinite += patterns.dtype.type(pattern == infinity)
        largest = max(largest, pattern if pattern <= infinity else patterns.dtype.type(0))
    return total, squares, largest, nan, infinite


@compiled
def _squares_of(values):
    squares = values.dtype.type(0)
    for i in range(len(values)):
        squares += values[i] * values[i]
    return squares


@compiled
def _zeros_of(patterns, sign):
    zeros = patterns.dtype.type(0)
    for i in range(len(patterns)):
        zeros += patterns.dtype.type((patterns[i] & sign) == 0)
    return zeros


@compiled
def _take(values, patterns, limits, wanted, row):
    """Add a thousand elements to a row, and return the bits of the largest."""
    sign, infinity, least, most, least_square, most_square = limits
    if wanted == ZEROS:
        row[3] += _zeros_of(patterns, sign)
        return sign * 0
    if wanted == SQUARES:
        square = _squares_of(values)
        if least_square < square < most_square:
            row[1] += square
            return sign * 0
    total, squares, largest, zeros = _add_up(values, patterns, sign)
    row[3] += zeros
    if (0 < largest < least) or largest > most:
        exact, exact_squares, largest, nan, infinite = _add_up_again(values, patterns, sign, infinity)
        row[0] += exact
        row[1] += exact_squares
        row[4] += nan
        row[5] += infinite
    else:
        row[0] += total
        row[1] += squares
    return largest


def _loop(bits, kind, limits):
    """Return the loop over tensors of a type in which it computes.

    Args:
        bits: the type of its bits.
        kind: the type.
        limits: of its bits.
    """

    @compiled
    def loop(pointers, counts, wanted, found):
        for t in range(len(pointers)):
            given = carray(_pointer(pointers[t]), (counts[t],), bits)
            found[t] = 0
            largest = 0
            for begin in range(0, len(given), _CHUNK):
                patterns = given[begin : begin + _CHUNK]
                largest = max(largest, _take(patterns.view(kind), patterns, limits, wanted[t], found[t]))
            found[t, 2] = bits(largest).view(kind)

    return loop


def _widened_loop(half):
    """Return the loop over tensors of 16 bits, which are written as the bits of float32 by the way.

    Args:
        half: whether they are of float16, not of bfloat16; a function in this place would be compiled in each process.
    """

    @compiled
    def loop(pointers, counts, wanted, found):
        widened = np.empty(_CHUNK, np.int32)
        for t in range(len(pointers)):
            given = carray(_pointer(pointers[t]), (counts[t],), np.uint16)
            found[t] = 0
            largest = 0
            for begin in range(0, len(given), _CHUNK):
                patterns = widened[: min(_CHUNK, len(given) - begin)]
                if half:
                    _of_float16(given[begin : begin + _CHUNK], patterns)
                else:
                    _of_bfloat16(given[begin : begin + _CHUNK], patterns)
                largest = max(largest, _take(patterns.view(np.float32), patterns, _SINGLE, wanted[t], found[t]))
            found[t, 2] = np.int32(largest).view(np.float32)

    return loop


@compiled
def copy(pointers, counts, targets, found):
    """Copy tensors of float32, and write the sum of squares of each."""
    for t in range(len(pointers)):
        given = carray(_pointer(pointers[t]), (counts[t],), np.int32)
        onto = carray(_pointer(targets[t]), (counts[t],), np.int32)
        row = np.zeros(6)
        for begin in range(0, len(given), _CHUNK):
            patterns = onto[begin : begin + _CHUNK]
            patterns[:] = given[begin : begin + _CHUNK]
            _take(patterns.view(np.float32), patterns, _SINGLE, SQUARES, row)
        found[t] = row[1]


@compiled
def differences(pointers, counts, targets, found):
    """Write the sum of squares of the difference of tensors of float32, which is taken in float32."""
    change = np.empty(_CHUNK, np.float32)
    for t in range(len(pointers)):
        given = carray(_pointer(pointers[t]), (counts[t],), np.float32)
        before = carray(_pointer(targets[t]), (counts[t],), np.float32)
        row = np.zeros(6)
        for begin in range(0, len(given), _CHUNK):
            now, then = given[begin : begin + _CHUNK], before[begin : begin + _CHUNK]
            for i in range(len(now)):
                change[i] = now[i] - then[i]
            part = change[: len(now)]
            _take(part, part.view(np.int32), _SINGLE, SQUARES, row)
        found[t] = row[1]


@compiled
def combine(pieces, firsts, found):
    """Write the row of each tensor from those of its pieces, in their order; `firsts` ends with how many there are."""
    for t in range(len(found)):
        found[t, :] = 0
        for piece in range(firsts[t], firsts[t + 1]):
            for column in range(found.shape[1]):
                if column == 2:
                    found[t, 2] = max(found[t, 2], pieces[piece, 2])
                else:
                    found[t, column] += pieces[piece, column]


def rows(dtype: str, numbers, count: int, work: int):
    """Return the row of each tensor.

    Args:
        dtype: the name of their type.
        numbers: addresses, lengths and what is wanted, `count` of each: in memory, as integers of 64 bits.
        count: how many tensors there are.
        work: of how many elements all are together.
    """
    found = np.empty((count, 6))
    over_tokens(LOOPS[dtype], [*np.frombuffer(numbers, np.int64).reshape(3, count), found], work=work)
    return found


LOOPS: Final = {
    "torch.float32": _loop(np.int32, np.float32, _SINGLE),
    "torch.float64": _loop(np.int64, np.float64, _DOUBLE),
    "torch.bfloat16": _widened_loop(False),
    "torch.float16": _widened_loop(True),
}
"""The loops by the name of the type: each writes a row for each tensor."""
