"""Sums of squares on a CPU: as fast as in float32, as good as in float64.

A sum of equal numbers in float32 rounds: by 1e-5 at 2^14 elements, by 1e-3 at 2^20. One in float64 takes five times as
long. Norms of rows of 2^8 elements in float32, whose squares are added in float64, round by 1e-7 and take no longer
than one in float32. A fused call over a list is a loop there: small tensors of one shape are faster as a stack.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

__all__ = ["squares_of_rows", "sums_of_squares"]

_TRUSTED: Final = 1e-28, 1e28  # mean squares that a float32 sum gets right
_ROW = 2**8
_ONCE = 2**14  # elements of a single row, where the call is what costs
_SHORT = 2**12  # elements of a tensor that is stacked
_STACK = 2**17  # elements of a stack that fits into a cache


def sums_of_squares(values: Sequence[Tensor]) -> Tensor:
    """Return the sum of squares of each tensor, in float64; all are dense, of one type below float64, on the CPU.

    Example:
        >>> sums_of_squares([torch.full((2**11, 2**10), 2.0), torch.tensor(2.0**-100)]).tolist() == [2.0**23, 2.0**-200]
        True
    """
    shapes: dict[torch.Size, list[int]] = {}
    for i, value in enumerate(values):
        shapes.setdefault(value.shape, []).append(i)
    parts, places = [], []
    for shape, where in shapes.items():
        count = max(shape.numel(), 1)
        places += where
        if not shape.numel():  # shards of a process that holds nothing of them
            parts.append(torch.zeros(len(where), dtype=torch.float64))
            continue
        if count > _SHORT or len(where) == 1:
            parts += [_long(values[i]) for i in where]
            continue
        together = _STACK // count
        for start in range(0, len(where), together):
            rows = torch.stack([values[i] for i in where[start : start + together]]).view(-1, shape.numel())
            parts.append(squares_of_rows(rows))
    result = torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)
    if places == list(range(len(places))):
        return result
    ordered = torch.empty_like(result)
    ordered[torch.tensor(places)] = result
    return ordered


def squares_of_rows(rows: Tensor) -> Tensor:
    """Return the sum of squares of each row, in float64.

    Shape:
        `(rows, count) -> (rows,)`
    """
    if len(rows) == 1 and rows.shape[1] <= _ONCE:
        wide: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
        return wide.square()
    return _checked(_of_rows(rows), max(rows.shape[1], 1), rows)


def _of_rows(rows: Tensor) -> Tensor:
    """Return the sum of squares of each row, in float64 but added up in float32."""
    length = rows.shape[1]
    if length > _ROW:
        whole = length - length % _ROW
        pieces = rows[:, :whole].view(len(rows), -1, _ROW)
        sums: Tensor = torch.linalg.vector_norm(pieces, dim=2, dtype=torch.float32).double().square_().sum(1)
        return sums if whole == length else sums + _of_rows(rows[:, whole:])
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float32)
    return norms.double().square_()


def _checked(squares: Tensor, count: int, rows: Tensor) -> Tensor:
    """Return the sums of squares of rows, again where float32 has lost them."""
    trusted = (squares > _TRUSTED[0] * count) & (squares < _TRUSTED[1] * count)
    if trusted.all():
        return squares
    lost = ~trusted
    wide: Tensor = torch.linalg.vector_norm(rows if len(rows) == 1 else rows[lost], dim=1, dtype=torch.float64)
    squares[lost] = wide.square()
    return squares


def _long(value: Tensor) -> Tensor:
    if value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last):
        value = value.permute(0, 2, 3, 1)
    flat = value.reshape(-1)
    whole = len(flat) // _ROW * _ROW
    total = _of_rows(flat[:whole].view(-1, _ROW)).sum() if whole else torch.zeros((), dtype=torch.float64)
    if whole < len(flat):
        total = total + _of_rows(flat[None, whole:]).sum()
    return _checked(total.reshape(1), max(len(flat), 1), flat[None])
