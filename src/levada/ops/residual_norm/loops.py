"""A residual connection and the norm behind it on a CPU: a token is read once, and is in the cache for the rest."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"
from __future__ import annotations

import numpy as np

from levada.ops._numba import array_at, compiled, one_over_root, over_table
from levada.ops.residual_norm.tiles import (
    VECTOR,
    add_rows,
    sum_row,
    sum_squares,
    write_gradient,
    write_normed,
    write_sums,
)

__all__ = ["over_table", "residual_norm", "residual_norm_backward"]

_TOKENS = 64  # whose gradients by weight and bias are added up in their own type
_TOGETHER = 2048  # elements of rows that go through each step before the next: what a row waits for, others do not


@compiled
def _rows_of(width):
    """Return how many rows stay in the nearest cache, at most as many as are added up in their own type."""
    return max(1, min(_TOKENS, _TOGETHER // width))


@compiled
def _write_moments(new, first, last, moments, centred, eps):
    """Write rows' means, zero if they are not to be subtracted, and one over their sizes then; given their totals."""
    width = new.shape[1]
    whole = width - width % (VECTOR // new.itemsize)
    count, one = new.dtype.type(width), new.dtype.type(1)
    for t in range(first, last):
        mean = moments[t - first, 0] / count if centred else one * 0
        moments[t - first, 0] = mean
        squares = sum_squares(new, t * width, whole, mean)
        for c in range(whole, width):
            squares += (new[t, c] - mean) * (new[t, c] - mean)
        moments[t - first, 1] = squares / count
    for j in range(last - first):
        moments[j, 1] = one_over_root(moments[j, 1] + eps, one)


@compiled
def residual_norm(table, first, last, width, centred, eps):
    """Write sums and what they are normalised; the table is of state, output, these two, weight and bias."""
    size = last - first, width
    state, out = array_at(table[0], first, size, eps), array_at(table[1], first, size, eps)
    new, normed = array_at(table[2], first, size, eps), array_at(table[3], first, size, eps)
    weight, bias = array_at(table[4], 0, (width,), eps), array_at(table[5], 0, (width,), eps)
    whole, rows = width - width % (VECTOR // new.itemsize), _rows_of(width)
    moments = np.empty((rows, 2), new.dtype)
    for begin in range(0, last - first, rows):
        end = min(begin + rows, last - first)
        for t in range(begin, end):
            total = add_rows(state, out, new, t * width, whole)
            for c in range(whole, width):
                y = state[t, c] + out[t, c]
                new[t, c] = y
                total += y
            moments[t - begin, 0] = total
        _write_moments(new, begin, end, moments, centred, eps)
        for t in range(begin, end):
            mean, inverse = moments[t - begin, 0], moments[t - begin, 1]
            write_normed(new, normed, weight, bias, t * width, whole, (mean, inverse))
            for c in range(whole, width):
                normed[t, c] = (new[t, c] - mean) * inverse * weight[c] + bias[c]


@compiled
def residual_norm_backward(table, first, last, width, centred, eps):
    """Write the gradients by the sums, and return those by weight and bias, added up in float64.

    The table is of what arrives by sum and normalised sum, of the sum, its gradient, and the weight.
    """
    size = last - first, width
    by_new, by_normed = array_at(table[0], first, size, eps), array_at(table[1], first, size, eps)
    new, by_sum = array_at(table[2], first, size, eps), array_at(table[3], first, size, eps)
    weight = array_at(table[4], 0, (width,), eps)
    by_weight, by_bias = np.zeros(width), np.zeros(width)
    of_weight, of_bias = np.zeros(width, new.dtype), np.zeros(width, new.dtype)
    whole, rows = width - width % (VECTOR // new.itemsize), _rows_of(width)
    count, zero = new.dtype.type(width), new.dtype.type(0)
    moments = np.empty((rows, 4), new.dtype)
    for begin in range(0, last - first, rows):
        end = min(begin + rows, last - first)
        for t in range(begin, end if centred else begin):
            total = sum_row(new, t * width, whole)
            for c in range(whole, width):
                total += new[t, c]
            moments[t - begin, 0] = total
        _write_moments(new, begin, end, moments, centred, eps)
        for t in range(begin, end):
            mean, inverse = moments[t - begin, 0], moments[t - begin, 1]
            total, aligned = write_sums(new, by_normed, weight, of_weight, of_bias, (t * width, whole), (mean, inverse))
            for c in range(whole, width):
                apart, inner = (new[t, c] - mean) * inverse, by_normed[t, c] * weight[c]
                of_weight[c] += by_normed[t, c] * apart
                of_bias[c] += by_normed[t, c]
                total += inner
                aligned += inner * apart
            moments[t - begin, 2], moments[t - begin, 3] = total / count if centred else zero, aligned / count
        for t in range(begin, end):
            row = moments[t - begin]
            write_gradient(new, by_normed, weight, by_new, by_sum, (t * width, whole), (row[0], row[1], row[2], row[3]))
            for c in range(whole, width):
                apart, inner = (new[t, c] - row[0]) * row[1], by_normed[t, c] * weight[c]
                by_sum[t, c] = by_new[t, c] + row[1] * (inner - apart * row[3] - row[2])
        if begin // _TOKENS < end // _TOKENS or end == last - first:
            by_weight += of_weight
            by_bias += of_bias
            of_weight[:] = 0
            of_bias[:] = 0
    of_weight[:] = by_weight
    of_bias[:] = by_bias
    return of_weight, of_bias
