"""A residual connection and the norm behind it on a CPU: a token is read once, and is in the cache for the rest."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import numpy as np

from levada.ops._numba import compiled, over_tokens

__all__ = ["over_tokens", "residual_norm", "residual_norm_backward"]

_TOKENS = 64  # whose gradients by weight and bias are added up in their own type


@compiled
def _moments(row, centred, eps):
    """Return a row's mean, zero if it is not to be subtracted, and one over its size then."""
    total = squares = row[0] * 0
    if centred:
        for c in range(len(row)):
            total += row[c]
    mean = total / row.dtype.type(len(row))
    for c in range(len(row)):
        apart = row[c] - mean
        squares += apart * apart
    return mean, row.dtype.type(1) / np.sqrt(squares / row.dtype.type(len(row)) + eps)


@compiled
def residual_norm(state, out, new, normed, weight, bias, centred, eps):
    """Write sums and what they are normalised."""
    for t in range(len(state)):
        x, f, row, found = state[t], out[t], new[t], normed[t]
        for c in range(len(row)):
            row[c] = x[c] + f[c]
        mean, inverse = _moments(row, centred, eps)
        for c in range(len(row)):
            found[c] = (row[c] - mean) * inverse * weight[c] + bias[c]


@compiled
def residual_norm_backward(by_new, by_normed, new, by_sum, weight, centred, eps, shifted):
    """Write the gradients by the sums, and return those by weight and bias, in float64."""
    width = new.dtype.type(new.shape[1])
    by_weight, by_bias = np.zeros(new.shape[1]), np.zeros(new.shape[1])
    of_weight, of_bias = np.zeros(new.shape[1], new.dtype), np.zeros(new.shape[1], new.dtype)
    normed, inner = np.empty(new.shape[1], new.dtype), np.empty(new.shape[1], new.dtype)
    for t in range(len(new)):
        row, cotangent, direct, found = new[t], by_normed[t], by_new[t], by_sum[t]
        mean, inverse = _moments(row, centred, eps)
        # Few arrays in a loop, or the compiler does not see that they lie apart; a row is in the nearest cache.
        for c in range(len(row)):
            normed[c] = (row[c] - mean) * inverse
        for c in range(len(row)):
            of_weight[c] += cotangent[c] * normed[c]
        if shifted:
            for c in range(len(row)):
                of_bias[c] += cotangent[c]
        total = aligned = inverse * 0
        for c in range(len(row)):
            inner[c] = cotangent[c] * weight[c]
            total += inner[c]
            aligned += inner[c] * normed[c]
        total = total / width if centred else inverse * 0
        aligned /= width
        for c in range(len(row)):
            found[c] = direct[c] + inverse * (inner[c] - normed[c] * aligned - total)
        if t % _TOKENS == _TOKENS - 1 or t == len(new) - 1:
            by_weight += of_weight
            by_bias += of_bias
            of_weight[:] = 0
            of_bias[:] = 0
    return by_weight, by_bias
