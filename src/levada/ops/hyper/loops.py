"""Reading the streams of hyper-connections on a CPU: all but products and tanh.

Arrays are indexed, never sliced: to hand on a slice takes as long as to add up a hundred channels.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import math

import numpy as np

from levada.ops._numba import compiled, over_tokens

__all__ = ["by_rows", "combine", "normalise", "over_tokens", "read_backward", "stack"]


@compiled
def stack(projection, gain, shift):
    """Return what normalised streams are multiplied by, and what is added to the products; see the reference."""
    rows, width = projection.shape
    weights, offset = np.empty_like(projection), np.empty(rows, projection.dtype)
    for k in range(rows):
        offset[k], mean = 0, gain[0] * 0
        for c in range(width):
            weights[k, c] = projection[k, c] * gain[c]
            mean += weights[k, c]
        if len(shift):
            mean /= gain.dtype.type(width)
            for c in range(width):
                weights[k, c] -= mean
                offset[k] += projection[k, c] * shift[c]
    return weights, offset


@compiled
def normalise(state, found, said, norms, offset, epsilon, centred):
    """Take products with streams to those with normalised ones, and write what tanh is taken of, and the norms."""
    tokens, n, width = state.shape
    one = state.dtype.type(1)  # a literal would make loops of doubles
    share = one / state.dtype.type(width)
    for t in range(tokens):
        for j in range(n):
            mean = state[t, j, 0] * 0
            if centred:
                for c in range(width):
                    mean += state[t, j, c]
            mean *= share
            total = mean * 0
            for c in range(width):
                total += (state[t, j, c] - mean) * (state[t, j, c] - mean)
            inverse = one / math.sqrt(total * share + epsilon)
            norms[t, j, 0], norms[t, j, 1] = inverse, mean
            for k in range(n + 2):
                found[t, j, k] *= inverse
                said[t, j, k] = found[t, j, k] + offset[k]


@compiled
def combine(state, said, reads, mix, writes, x, static):
    """Write the weights, and what the branch reads."""
    tokens, n, width = state.shape
    mix_scale, write_scale = static[n * (n + 2)], static[n * (n + 2) + 1]
    for t in range(tokens):
        for j in range(n):
            reads[t, j] = static[j] + mix_scale * said[t, j, 0]
            writes[t, j] = static[n * (n + 1) + j] + write_scale * said[t, j, n + 1]
            for i in range(n):
                mix[t, i, j] = static[n * (i + 1) + j] + mix_scale * said[t, j, 1 + i]
        if n == 4:  # the usual number, in one pass
            r0, r1, r2, r3 = reads[t, 0], reads[t, 1], reads[t, 2], reads[t, 3]
            for c in range(width):
                x[t, c] = r0 * state[t, 0, c] + r1 * state[t, 1, c] + r2 * state[t, 2, c] + r3 * state[t, 3, c]
        else:
            x[t] = 0
            for j in range(n):
                r = reads[t, j]
                for c in range(width):
                    x[t, c] += r * state[t, j, c]


@compiled
def read_backward(
    by_x, by_reads, by_mix, by_writes, by_new, state, said, features, norms, by_state, by_found,
    static, adds,
):  # fmt: skip
    """Write gradients by products with the streams, and by the state but for the way through these.

    Returns:
        Sums for the parameters, in float64: for the static ones, the two scales, and what is added to products.
    """
    tokens, n, width = state.shape
    rows = n + 2
    one = state.dtype.type(1)  # a literal would make loops of doubles
    share = one / state.dtype.type(width)
    sums = np.zeros(n * rows + 2 + rows)
    for t in range(tokens):
        for j in range(n):
            g = by_reads[t, j]
            for c in range(width):
                g += by_x[t, c] * state[t, j, c]
            sums[j] += g
            weight = static[j]
            along = weight * 0
            inverse, mean = norms[t, j, 0], norms[t, j, 1]
            weight += static[n * rows] * said[t, j, 0]
            for k in range(rows):
                factor = static[n * rows]
                if k == rows - 1:
                    g, factor = by_writes[t, j], static[n * rows + 1]
                    sums[n * (n + 1) + j] += g
                elif k:
                    g = by_mix[t, k - 1, j]
                    sums[n * k + j] += g
                spoken = said[t, j, k]
                sums[n * rows + (k == rows - 1)] += g * spoken
                here = g * factor * (one - spoken * spoken)
                along += here * features[t, j, k]
                by_found[t, j, k] = here * inverse
                sums[n * rows + 2 + k] += here
            shrink = share * along * inverse * inverse
            shift = -shrink * mean  # of a mean of zero where it is not taken out
            if adds:
                for c in range(width):
                    found = weight * by_x[t, c] - shrink * state[t, j, c] - shift
                    by_state[t, j, c] = by_new[t, j, c] + found
            else:
                for c in range(width):
                    by_state[t, j, c] = weight * by_x[t, c] - shrink * state[t, j, c] - shift
    return sums


@compiled
def by_rows(by_weights, sums, projection, gain, shift, by_projection, by_gain, by_shift):
    """Write the gradients by projection, gain and shift; see the reference."""
    rows, width = projection.shape
    by_gain[:] = 0
    by_shift[:] = 0
    for k in range(rows):
        by_offset, mean = projection.dtype.type(sums[len(sums) - rows + k]), gain[0] * 0
        if len(shift):
            for c in range(width):
                mean += by_weights[k, c]
            mean /= gain.dtype.type(width)
        for c in range(width):
            found = by_weights[k, c] - mean
            by_projection[k, c] = found * gain[c]
            by_gain[c] += found * projection[k, c]
        for c in range(len(shift)):
            by_projection[k, c] += by_offset * shift[c]
            by_shift[c] += by_offset * projection[k, c]
