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

__all__ = ["LOOPS", "combine", "over_tokens"]

_CHUNK: Final = 1024


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
def _of_itself(raw, patterns):
    patterns[:] = raw


def _sums(floats, bits):
    """Make the sums over a chunk for one type of numbers, in this type, and in float64 with a look for what is none."""
    # The bits of floats that are not negative are in the order of the floats.
    sign = bits(np.iinfo(bits).max)
    infinity = floats(np.inf).view(bits)

    @compiled
    def add_up(values, patterns):
        total = squares = floats(0)
        largest = zeros = bits(0)
        for i in range(len(patterns)):
            x = values[i]
            total += x
            squares += x * x
            pattern = patterns[i] & sign
            largest = max(largest, pattern)
            zeros += bits(pattern == 0)
        return total, squares, largest, zeros

    @compiled
    def add_up_again(values, patterns, row):
        total = squares = 0.0
        nan = infinite = largest = bits(0)
        for i in range(len(patterns)):
            x = np.float64(values[i])
            total += x
            squares += x * x
            pattern = patterns[i] & sign
            nan += bits(pattern > infinity)
            infinite += bits(pattern == infinity)
            largest = max(largest, pattern if pattern <= infinity else bits(0))
        row[0] += total
        row[1] += squares
        row[4] += nan
        row[5] += infinite
        return largest

    return add_up, add_up_again


def _loop(raw, widen, floats, bits, least, most):
    """Make the loop for one type of numbers; chunks whose largest is from `least` to `most` keep their first sums."""
    add_up, add_up_again = _sums(floats, bits)
    least, most = floats(least).view(bits), floats(most).view(bits)
    as_it_is = widen is _of_itself

    @compiled
    def measure(pointers, counts, found):
        """Write a row for each tensor."""
        widened = np.empty(1 if as_it_is else _CHUNK, bits)
        for t in range(len(pointers)):
            given = carray(_pointer(pointers[t]), (counts[t],), raw)
            row = found[t]
            row[:] = 0
            most_here = bits(0)
            for begin in range(0, counts[t], _CHUNK):
                piece = given[begin : begin + _CHUNK]
                if as_it_is:
                    patterns = piece.view(bits)
                else:
                    patterns = widened[: len(piece)]
                    widen(piece, patterns)
                values = patterns.view(floats)
                total, squares, largest, zeros = add_up(values, patterns)
                row[3] += zeros
                if (0 < largest < least) or largest > most:
                    largest = add_up_again(values, patterns, row)
                else:
                    row[0] += total
                    row[1] += squares
                most_here = max(most_here, largest)
            row[2] = bits(most_here).view(floats)

    return measure


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


LOOPS: Final = {
    "torch.float32": _loop(np.int32, _of_itself, np.float32, np.int32, 1e-13, 1e13),
    "torch.float64": _loop(np.int64, _of_itself, np.float64, np.int64, 0.0, np.finfo(np.float64).max),
    "torch.bfloat16": _loop(np.uint16, _of_bfloat16, np.float32, np.int32, 1e-13, 1e13),
    "torch.float16": _loop(np.uint16, _of_float16, np.float32, np.int32, 1e-13, 1e13),
}
"""The loops by the name of their type."""
