"""What is done to each element of streams that are read through gates, on a CPU: all but the products and sigmoids."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import math

import numpy as np

from levada.ops._numba import compiled, over_tokens

__all__ = ["average", "by_gates", "by_streams", "normalise", "over_tokens"]

_FEW = 32


@compiled
def normalise(state, inverse, features, gain, epsilon, known):
    """Write each stream over its root mean square, times its gain; the norms are written too, or known."""
    tokens, n, width = state.shape
    for t in range(tokens):
        for j in range(n):
            if not known:
                total = state.dtype.type(0)  # a number times a literal would be a double
                for c in range(width):
                    total += state[t, j, c] * state[t, j, c]
                inverse[t, j] = 1 / math.sqrt(total / width + epsilon)
            factor = inverse[t, j]
            for c in range(width):
                features[t, j, c] = factor * gain[j, c] * state[t, j, c]


@compiled
def average(gate, features, x):
    """Write the gated mean of the streams."""
    tokens, n, width = features.shape
    share = x.dtype.type(1 / n)
    for t in range(tokens):
        if n == 4:  # the usual number, in one pass
            for c in range(width):
                first = gate[t, 0, c] * features[t, 0, c] + gate[t, 1, c] * features[t, 1, c]
                x[t, c] = share * (first + gate[t, 2, c] * features[t, 2, c] + gate[t, 3, c] * features[t, 3, c])
        else:
            x[t] = 0
            for j in range(n):
                for c in range(width):
                    x[t, c] += share * gate[t, j, c] * features[t, j, c]


@compiled
def by_gates(by_x, gate, features, by_features):
    """Write the gradient by the features, but for the way by the gates, and that by their logits over the gates."""
    tokens, n, width = features.shape
    one = by_x.dtype.type(1)  # a literal would make loops of doubles
    share = by_x.dtype.type(1 / n)
    for t in range(tokens):
        for j in range(n):
            for c in range(width):
                g, b = gate[t, j, c], share * by_x[t, c]
                by_features[t, j, c] = b * g
                gate[t, j, c] = b * features[t, j, c] * g * (one - g)


@compiled
def by_streams(by_new, state, inverse, by_state, gain, adds):
    """Take the gradient by the features to that by the streams, in place.

    Returns:
        The gradient by the gain, in float64.
    """
    tokens, n, width = state.shape
    by_gain = np.zeros((n, width))  # float64, as thousands of tokens cancel: a few at a time in the streams' type
    some = np.zeros((n, width), state.dtype)
    for t in range(tokens):
        for j in range(n):
            factor = inverse[t, j]
            total = state.dtype.type(0)
            for c in range(width):
                along = by_state[t, j, c] * state[t, j, c]
                total += along * gain[j, c]
                some[j, c] += along * factor
            shrink = total * factor * factor * factor / state.dtype.type(width)
            if adds:
                for c in range(width):
                    found = factor * gain[j, c] * by_state[t, j, c] - shrink * state[t, j, c]
                    by_state[t, j, c] = by_new[t, j, c] + found
            else:
                for c in range(width):
                    by_state[t, j, c] = factor * gain[j, c] * by_state[t, j, c] - shrink * state[t, j, c]
        if t % _FEW == _FEW - 1 or t == tokens - 1:
            for j in range(n):
                for c in range(width):
                    by_gain[j, c] += some[j, c]
                    some[j, c] = 0
    return by_gain
