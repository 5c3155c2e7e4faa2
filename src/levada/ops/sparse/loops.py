"""Reading streams that are scored on a CPU: a token's streams stay in the cache between the looks at them."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import numpy as np

from levada.ops._numba import array_at, compiled, exp, one_over_root, over_addresses

__all__ = ["over_addresses", "read_at", "read_backward_at"]


@compiled
def _read(state, x, reads, scores, found, norms, sums, scale, bias, epsilon):
    """Write the weights, the scores, what the branch reads and the norms; `found` has products and becomes logits."""
    tokens, n, width = state.shape
    rows = found.shape[1]
    routed = rows - n
    one = state.dtype.type(1)  # a literal would make loops of doubles
    zero, share = state.dtype.type(0), one / state.dtype.type(n * width)
    for t in range(tokens):
        mean = zero
        for j in range(n):
            for c in range(width):
                mean += state[t, j, c]
        mean *= share
        total = zero
        for j in range(n):
            for c in range(width):
                total += (state[t, j, c] - mean) * (state[t, j, c] - mean)
        variance = total * share
        one_over = one_over_root(variance + epsilon, one)
        of_squares = one_over_root(variance + mean * mean + epsilon, one)
        norms[t, 0], norms[t, 1], norms[t, 2] = one_over, of_squares, mean
        for k in range(routed):
            found[t, k] = (found[t, k] - mean * sums[k]) * one_over
            scores[t, k] = one / (one + exp(-found[t, k]))
        for j in range(n):
            found[t, routed + j] *= of_squares
            reads[t, j] = one / (one + exp(-(found[t, routed + j] * scale[0] + bias[j])))
        for c in range(width):
            x[t, c] = zero
        last = n - n % 4
        for j in range(0, last, 4):
            r0, r1, r2, r3 = reads[t, j], reads[t, j + 1], reads[t, j + 2], reads[t, j + 3]
            for c in range(width):
                part = r0 * state[t, j, c] + r1 * state[t, j + 1, c]
                x[t, c] += part + r2 * state[t, j + 2, c] + r3 * state[t, j + 3, c]
        for j in range(last, n):
            r = reads[t, j]
            for c in range(width):
                x[t, c] += r * state[t, j, c]


@compiled
def _read_backward(
    by_state, by_x, by_reads, by_scores, by_new, state, found, norms, by_found, sums, scale, bias, adds
):  # fmt: skip
    """Write gradients by products with the streams, and by the state but for the way through these.

    Returns:
        In float64, sums for what rows of scores add up to, bias and scale.
    """
    tokens, n, width = state.shape
    rows = found.shape[1]
    routed = rows - n
    one = state.dtype.type(1)  # a literal would make loops of doubles
    zero, share = state.dtype.type(0), one / state.dtype.type(n * width)
    total, reads = np.zeros(rows + 1), np.empty(n, state.dtype)  # float64: thousands of tokens cancel
    for t in range(tokens):
        one_over, of_squares, mean = norms[t, 0], norms[t, 1], norms[t, 2]
        along, shift = zero, zero
        for k in range(routed):
            score = one / (one + exp(-found[t, k]))
            g = by_scores[t, k] * score * (one - score)
            along += g * found[t, k]
            by_found[t, k] = g * one_over
            shift += by_found[t, k] * sums[k]
            total[k] += by_found[t, k] * mean
        shrink = along * one_over * one_over * share
        shift = shrink * mean - shift * share
        along = zero
        for j in range(n):
            g = by_reads[t, j]
            for c in range(width):
                g += by_x[t, c] * state[t, j, c]
            logit = found[t, routed + j]
            reads[j] = one / (one + exp(-(logit * scale[0] + bias[j])))
            g *= reads[j] * (one - reads[j])
            total[routed + j] += g
            along += g * logit
            by_found[t, routed + j] = g * scale[0] * of_squares
        total[rows] += along
        shrink += along * scale[0] * of_squares * of_squares * share
        for j in range(n):
            r = reads[j]
            if adds:
                for c in range(width):
                    by_state[t, j, c] = by_new[t, j, c] + r * by_x[t, c] - shrink * state[t, j, c] + shift
            else:
                for c in range(width):
                    by_state[t, j, c] = r * by_x[t, c] - shrink * state[t, j, c] + shift
    return total


@compiled
def read_at(addresses, first, end, n, width, rows, one, epsilon):
    """Do what `_read` does, with the addresses of its arrays."""
    tokens = end - first
    state = array_at(addresses[0], first, (tokens, n, width), one)
    x, reads = array_at(addresses[1], first, (tokens, width), one), array_at(addresses[2], first, (tokens, n), one)
    scores = array_at(addresses[3], first, (tokens, rows - n), one)
    found, norms = array_at(addresses[4], first, (tokens, rows), one), array_at(addresses[5], first, (tokens, 3), one)
    sums, scale = array_at(addresses[6], 0, (rows - n,), one), array_at(addresses[7], 0, (1,), one)
    _read(state, x, reads, scores, found, norms, sums, scale, array_at(addresses[8], 0, (n,), one), epsilon)


@compiled
def read_backward_at(addresses, first, end, n, width, rows, one, adds):
    """Do what `_read_backward` does, with the addresses of its arrays."""
    tokens = end - first
    by_state = array_at(addresses[0], first, (tokens, n, width), one)
    by_x, by_reads = (
        array_at(addresses[1], first, (tokens, width), one),
        array_at(addresses[2], first, (tokens, n), one),
    )
    by_scores = array_at(addresses[3], first, (tokens, rows - n), one)
    by_new = array_at(addresses[4], first, (tokens, n, width), one)
    state = array_at(addresses[5], first, (tokens, n, width), one)
    found, norms = array_at(addresses[6], first, (tokens, rows), one), array_at(addresses[7], first, (tokens, 3), one)
    by_found = array_at(addresses[8], first, (tokens, rows), one)
    sums, scale = array_at(addresses[9], 0, (rows - n,), one), array_at(addresses[10], 0, (1,), one)
    bias = array_at(addresses[11], 0, (n,), one)
    return _read_backward(
        by_state, by_x, by_reads, by_scores, by_new, state, found, norms, by_found, sums, scale, bias, adds
    )  # fmt: skip
