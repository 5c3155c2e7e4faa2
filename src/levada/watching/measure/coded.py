"""Numbers of a tensor as the 16-bit codes that a run keeps, made where the tensor is."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from levada.runs.codes import INFINITE, LARGEST, NAN, OFFSET, OVERFLOW, PER_OCTAVE, UNDERFLOW, thresholds

__all__ = ["codes_of", "rest_of", "to_bytes"]


@cache
def _cells(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return, for each 256th of an octave, how many thresholds lie below it, and the one inside of it, or 1."""
    places = torch.tensor(thresholds(), dtype=torch.float64)
    edges = 0.5 + torch.arange(257, dtype=torch.float64) / 512
    below = torch.bucketize(edges, places)
    inside = torch.where(below[1:] > below[:-1], torch.cat([places, places.new_ones(1)])[below[:-1]], 1.0)
    return below[:-1].to(device), inside.to(device)


def codes_of(values: Tensor) -> Tensor:
    """Give the 16-bit codes of numbers, on their device: the bytes of `levada.runs.codes.encode`.

    Args:
        values: real numbers.

    Shape:
        Output: int16, as `values`.

    Cost: a comparison of each mantissa with the one threshold of its 256th of an octave.

    Example:
        >>> codes_of(torch.tensor([1.0, -2.0, 0.0, float("nan")]))
        tensor([ 16381, -16509,      0, -32768], dtype=torch.int16)
    """
    size = values.detach().double().abs()
    mantissa, exponent = torch.frexp(size)
    below, inside = _cells(size.device)
    cell = ((mantissa - 0.5) * 512).long().clamp_(0, 255)  # of what is 0 or not finite, any
    place = below[cell] + (mantissa >= inside[cell])
    codes = (place + PER_OCTAVE * (exponent.long() - 1) + OFFSET).clamp_(UNDERFLOW, INFINITE)
    codes = torch.where(size > LARGEST, torch.where(size.isinf(), INFINITE, OVERFLOW), codes)
    codes = torch.where(size == 0, 0, codes)
    codes = torch.where(values < 0, -codes, codes)
    return torch.where(values.isnan(), NAN, codes).short()


def rest_of(values: Tensor) -> Tensor:
    """Return what the codes of numbers leave out: number and code together are right to 8e-6.

    Args:
        values: real numbers.

    Shape:
        Output: float64, as `values`; NaN where a number is not finite.

    Example:
        >>> values = torch.tensor([0.9926, 0.0, float("inf")], dtype=torch.float64)
        >>> rest_of(values)                                  # of 0.9946, the number of the nearest code
        tensor([-0.0020,  0.0000,     nan], dtype=torch.float64)
    """
    wide = values.detach().double()
    codes = codes_of(wide).double()
    coded = torch.exp2((codes.abs() - OFFSET) / PER_OCTAVE).copysign(codes)
    return torch.where(wide.isfinite(), torch.where(codes == 0, wide, wide - coded), math.nan)


def to_bytes(codes: Tensor) -> bytes:
    """Give the bytes of a tensor of codes on the host; needs no numpy."""
    buffer = bytearray(2 * codes.numel())
    if buffer:
        torch.frombuffer(buffer, dtype=torch.int16).copy_(codes.reshape(-1))
    return bytes(buffer)
