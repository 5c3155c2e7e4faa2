"""Reading streams by weights of all tokens on a CPU: each token's streams are read once, in the cache."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import numpy as np

from levada.ops._numba import compiled, over_tokens

__all__ = ["over_tokens", "read", "read_backward"]


@compiled
def read(state, x, weights):
    """Write what the branch reads."""
    tokens, n, width = state.shape
    for t in range(tokens):
        if n == 4:  # the usual number, in one pass
            w0, w1, w2, w3 = weights[0], weights[1], weights[2], weights[3]
            for c in range(width):
                x[t, c] = w0 * state[t, 0, c] + w1 * state[t, 1, c] + w2 * state[t, 2, c] + w3 * state[t, 3, c]
        else:
            x[t] = 0
            for j in range(n):
                w = weights[j]
                for c in range(width):
                    x[t, c] += w * state[t, j, c]


@compiled
def read_backward(by_x, by_new, state, by_state, weights, adds):
    """Write the gradient by the streams.

    Returns:
        Those by the weights, in float64.
    """
    tokens, n, width = state.shape
    sums = np.zeros(n)
    for t in range(tokens):
        for j in range(n):
            w = weights[j]
            total = by_x.dtype.type(0)
            if adds:
                for c in range(width):
                    g = by_x[t, c]
                    total += g * state[t, j, c]
                    by_state[t, j, c] = by_new[t, j, c] + w * g
            else:
                for c in range(width):
                    g = by_x[t, c]
                    total += g * state[t, j, c]
                    by_state[t, j, c] = w * g
            sums[j] += total
    return sums
