"""Numbers as 16-bit logarithms: 128 to the octave over the range of float32, and a code for everything outside it.

    k = round(128 log2 |x|),    code = sign(x) (k + 16381)

| code | what it says |
|---|---|
| 0 | zero |
| 1 | underflow: not zero, and below the smallest number that has a code, 2^(-16379.5/128) = 3.0e-39 |
| 2 to 32765 | 2^((code - 16381)/128); the last one is the largest number of float32 |
| 32766 | overflow: finite, and beyond the largest number of float32 |
| 32767 | infinity |
| -32768 | NaN |

A negative code is the negative number. Codes are in the order of the numbers, so that the smallest and the largest of
codes are those of the numbers. A decoded number is wrong by at most 2^(1/256) - 1 = 0.28 %; powers of two are exact.

The roots of two behind both directions are integer roots, and a number is placed by comparing its mantissa with 128
of them, so that every machine, and every device, gives the same codes.
"""

from __future__ import annotations

import math
import sys
from array import array
from bisect import bisect_right
from collections.abc import Iterable
from functools import cache
from typing import Final

__all__ = [
    "INFINITE",
    "LARGEST",
    "NAN",
    "OFFSET",
    "OVERFLOW",
    "PER_OCTAVE",
    "UNDERFLOW",
    "codes_from",
    "decode",
    "decoded",
    "encode",
    "thresholds",
    "to_bytes",
]

PER_OCTAVE: Final = 128
OFFSET: Final = 16381
UNDERFLOW: Final = 1
OVERFLOW: Final = 32766
INFINITE: Final = 32767
NAN: Final = -32768
LARGEST: Final = 2.0**128 * (1 - 2.0**-24)
"""The largest number of float32."""

# What the two codes that stand for a range are decoded as; both are encoded as what they were.
_BELOW, _BEYOND = 2.0**-149, 2.0**128


def _root(n: int) -> float:
    """Return 2^(n/256) for 0 <= n < 256, by the integer 256th root: the same bits on every machine."""
    power = 1 << (n + 256 * 60)
    for _ in range(8):
        power = math.isqrt(power)
    return power / (1 << 60)


@cache
def thresholds() -> tuple[float, ...]:
    """Return the mantissas in [1/2, 1) at which a code ends and the next begins."""
    return tuple(_root(2 * j + 1) / 2 for j in range(PER_OCTAVE))


def _code(x: float) -> int:
    if x != x:
        return NAN
    if x == 0.0:
        return 0
    size = abs(x)
    if size > LARGEST:
        code = INFINITE if math.isinf(size) else OVERFLOW
    else:
        mantissa, exponent = math.frexp(size)
        code = max(bisect_right(thresholds(), mantissa) + PER_OCTAVE * (exponent - 1) + OFFSET, UNDERFLOW)
    return code if x > 0 else -code


def encode(floats: Iterable[float]) -> bytes:
    """Give the codes of numbers, two bytes each, little-endian.

    Args:
        floats: any numbers, NaN and infinities among them.

    Cost: about half a microsecond a number; `levada.watching.record.recording.codes_of` does the same on a tensor.

    Example:
        >>> list(decode(encode([1.0, -0.5, 0.0, float("inf")])))
        [1.0, -0.5, 0.0, inf]
        >>> round(decode(encode([0.1]))[0], 5)
        0.10011
    """
    return to_bytes(array("h", map(_code, floats)))


def to_bytes(codes: array[int]) -> bytes:
    """Give the little-endian bytes of codes."""
    if sys.byteorder == "big":
        codes = codes[:]
        codes.byteswap()
    return codes.tobytes()


def codes_from(data: bytes | memoryview) -> array[int]:
    """Give the codes in little-endian bytes as an array of 16-bit integers.

    Example:
        >>> codes_from(encode([1.0, 0.0]))
        array('h', [16381, 0])
    """
    codes = array("h")
    codes.frombytes(data)
    if sys.byteorder == "big":
        codes.byteswap()
    return codes


@cache
def _table() -> tuple[float, ...]:
    """Return what the codes stand for, by code; a negative code counts from the end, as indices do."""
    roots = [_root(2 * r) for r in range(PER_OCTAVE)]
    positive = [math.ldexp(roots[k % PER_OCTAVE], k // PER_OCTAVE) for k in range(2 - OFFSET, OVERFLOW - OFFSET - 1)]
    positive = [_BELOW, *positive, LARGEST, _BEYOND, math.inf]
    return (0.0, *positive, math.nan, *(-x for x in reversed(positive)))


def decoded(codes: Iterable[int]) -> list[float]:
    """Give the numbers that codes stand for.

    Example:
        >>> decoded([16381, -16381, 16381 + 128, 0, -32768])
        [1.0, -1.0, 2.0, 0.0, nan]
    """
    return list(map(_table().__getitem__, codes))


def decode(data: bytes | memoryview) -> array[float]:
    """Give the numbers that little-endian codes stand for; an underflow is 2^-149, an overflow 2^128.

    Args:
        data: what `encode` gave, two bytes a number.

    Raises:
        ValueError: if the number of bytes is odd.

    Example:
        >>> decode(encode([2.0, 4.0]))
        array('d', [2.0, 4.0])
    """
    return array("d", map(_table().__getitem__, codes_from(data)))
