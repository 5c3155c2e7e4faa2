"""Reading streams on a CPU, products and all: a block's streams stay in the cache between the looks at them.

The Sinkhorn iterations of a block of tokens run side by side, and are made again in the backward pass.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import math

import numpy as np

from levada.ops._numba import array_at, compiled, exp, over_addresses
from levada.ops._tiles import add_product, add_product_transposed, write_dots
from levada.ops.sinkhorn.loops import TOKENS, normalise, normalise_backward

__all__ = ["over_addresses", "read_at", "read_backward_at"]


@compiled
def _fill(found, start, scale, bias, transposed, logits):
    """Take a block's logits of the matrix from those of its tokens; what is over at the end repeats the last token."""
    n = logits.shape[0]
    for b in range(logits.shape[2]):
        t = min(start + b, len(found) - 1)
        for i in range(n):
            for j in range(n):
                k = n * (2 + j) + i if transposed else n * (2 + i) + j
                logits[i, j, b] = found[t, k] * scale[2] + bias[k]


@compiled
def _gate(found, start, scale, bias, gates):
    """Take the sigmoids of the logits that read and write, one token beside the other, so that they are whole vectors.

    What is over at the end repeats the last token.
    """
    n, one = gates.shape[0] // 2, gates.dtype.type(1)
    for b in range(gates.shape[1]):
        t = min(start + b, len(found) - 1)
        for k in range(2 * n):
            gates[k, b] = found[t, k]
    for k in range(2 * n):
        factor, offset = scale[k // n], bias[k]
        for b in range(gates.shape[1]):
            gates[k, b] = one / (one + exp(-(gates[k, b] * factor + offset)))


@compiled
def read(
    state, found, inverse, x, reads, writes, mix, given, projection, scale, bias,
    mixes, iterations, epsilons, transposed, apart,
):  # fmt: skip
    """Write what the branch reads and the weights, and for the way back projected features and one over the norms.

    The branch reads by the weights that are given: those which are written here, or others. Products are made here, or
    apart, and lie in `found`.
    """
    tokens, n, width = state.shape
    one = state.dtype.type(1)  # a literal would make loops of doubles
    gates = np.empty((2 * n, TOKENS), state.dtype)
    block = np.empty((n, n, TOKENS), state.dtype), np.empty((n, n, TOKENS), state.dtype)
    logits = np.empty((n, n, TOKENS), state.dtype)
    rows, columns = np.empty((iterations + 1, n, TOKENS), state.dtype), np.empty((iterations, n, TOKENS), state.dtype)
    streams = state.reshape(tokens, n * width)
    for start in range(0, tokens, TOKENS):
        end = min(start + TOKENS, tokens)
        if not apart:
            write_dots(found[start:end], streams[start:end], projection)
        for t in range(start, end):
            total = state.dtype.type(0)  # a number times a literal would be a double, too
            for j in range(n):
                for c in range(width):
                    total += state[t, j, c] * state[t, j, c]
            inverse[t] = 1 / math.sqrt(total / (n * width) + epsilons[3])
            for k in range(found.shape[1]):
                found[t, k] *= inverse[t]
        _gate(found, start, scale, bias, gates)
        for t in range(start, end):
            b = t - start
            for i in range(n):
                reads[t, i] = gates[i, b] + epsilons[1]
                writes[t, i] = (one + one) * gates[n + i, b] + epsilons[2]
            if n == 4:
                r0, r1, r2, r3 = given[t, 0], given[t, 1], given[t, 2], given[t, 3]
                for c in range(width):
                    x[t, c] = r0 * state[t, 0, c] + r1 * state[t, 1, c] + r2 * state[t, 2, c] + r3 * state[t, 3, c]
            else:
                x[t] = 0
                for j in range(n):
                    r = given[t, j]
                    for c in range(width):
                        x[t, c] += r * state[t, j, c]
        if mixes:
            _fill(found, start, scale, bias, transposed, logits)
            normalise(logits, block[0], block[1], rows, columns, iterations, epsilons[0])
            for t in range(start, end):
                b = t - start
                for i in range(n):
                    for j in range(n):
                        mix[t, i, j] = block[1][i, j, b] * rows[iterations, i, b] * columns[iterations - 1, j, b]


@compiled
def read_backward(
    by_x, by_reads, by_writes, by_mix, by_new, state, found, inverse, by_state, given, by_given,
    projection, scale, bias, by_features, mixes, iterations, epsilons, transposed, adds, asked, handed, apart,
):  # fmt: skip
    """Write the gradient by the state.

    Where the weights that the branch read by were handed on, and not made here, theirs is written, too. Where products
    are made apart, what they are made of is written to `by_features`, and nothing adds to the projection's gradient.

    Returns:
        The gradients by scale and bias, in float64, and by the projection.
    """
    tokens, n, width = state.shape
    one = state.dtype.type(1)  # a literal would make loops of doubles
    zero, share = state.dtype.type(0), one / state.dtype.type(n * width)  # `one * 0` would be a double
    by_scale, by_bias = np.zeros(len(scale)), np.zeros(len(bias))  # float64: thousands of tokens cancel
    by_factor, factors = np.zeros(len(bias)), np.empty(len(bias), state.dtype)  # of each logit, not of each kind
    for k in range(len(bias)):
        factors[k] = scale[min(k // n, 2)]
    gates = np.empty((2 * n, TOKENS), state.dtype)
    softmax, kernel = np.empty((n, n, TOKENS), state.dtype), np.empty((n, n, TOKENS), state.dtype)
    logits, gradient = np.empty((n, n, TOKENS), state.dtype), np.empty((n, n, TOKENS), state.dtype)
    rows, columns = np.empty((iterations + 1, n, TOKENS), state.dtype), np.empty((iterations, n, TOKENS), state.dtype)
    parts, by_row = np.empty((2 * iterations, n, TOKENS), state.dtype), np.empty((n, TOKENS), state.dtype)
    by_column = np.empty((n, TOKENS), state.dtype)  # one array of three would have no layout that is known
    by_logits, reads = np.empty(len(bias), state.dtype), np.empty(n, state.dtype)
    by_found = np.empty((TOKENS, len(bias)), state.dtype)
    by_projection = np.zeros((0 if apart else len(bias), n * width), state.dtype)
    streams, by_streams = state.reshape(tokens, n * width), by_state.reshape(tokens, n * width)
    for start in range(0, tokens, TOKENS):
        if mixes:
            _fill(found, start, scale, bias, transposed, logits)
            normalise(logits, softmax, kernel, rows, columns, iterations, epsilons[0])
            for b in range(TOKENS):
                t = min(start + b, tokens - 1)
                for i in range(n):
                    for j in range(n):
                        gradient[i, j, b] = by_mix[t, i, j]
            normalise_backward(
                gradient, softmax, kernel, rows, columns, iterations, epsilons[0], parts, by_row, by_column
            )
        end = min(start + TOKENS, tokens)
        _gate(found, start, scale, bias, gates)
        for t in range(start, end):
            for i in range(n):
                sigma = gates[i, t - start]
                by_read = by_reads[t, i] if asked else zero
                g = zero if handed else by_read
                for c in range(width):
                    g += by_x[t, c] * state[t, i, c]
                if handed:
                    reads[i], by_given[t, i], g = given[t, i], g, by_read
                else:
                    reads[i] = sigma + epsilons[1]
                by_logits[i] = g * sigma * (one - sigma)
                sigma = gates[n + i, t - start]
                by_logits[n + i] = (one + one) * by_writes[t, i] * sigma * (one - sigma)
                if mixes:
                    for j in range(n):
                        k = n * (2 + j) + i if transposed else n * (2 + i) + j
                        by_logits[k] = gradient[i, j, t - start]
            along = zero  # of the projected features, by which the norm goes back
            for k in range(len(bias)):
                product = by_logits[k] * found[t, k]
                by_bias[k] += by_logits[k]
                by_factor[k] += product
                along += product * factors[k]
                by_found[t - start, k] = by_logits[k] * factors[k] * inverse[t]
            shrink = along * inverse[t] * inverse[t] * share
            for j in range(n):
                r = reads[j]
                if adds:
                    for c in range(width):
                        by_state[t, j, c] = by_new[t, j, c] + r * by_x[t, c] - shrink * state[t, j, c]
                else:
                    for c in range(width):
                        by_state[t, j, c] = r * by_x[t, c] - shrink * state[t, j, c]
        if apart:
            by_features[start:end] = by_found[: end - start]
        else:
            add_product(by_streams[start:end], by_found[: end - start], projection)
            add_product_transposed(by_projection, by_found[: end - start], streams[start:end])
    for k in range(len(bias)):
        by_scale[min(k // n, 2)] += by_factor[k]
    return by_scale, by_bias, by_projection


@compiled
def read_at(addresses, first, end, n, width, one, mixes, iterations, epsilons, transposed, apart):
    """Do what `read` does, with the addresses of its arrays."""
    tokens, kinds, rows = end - first, 3 if mixes else 2, n * (2 + n) if mixes else 2 * n
    state = array_at(addresses[0], first, (tokens, n, width), one)
    found = array_at(addresses[1], first, (tokens, rows), one)
    inverse = array_at(addresses[2], first, (tokens,), one)
    x = array_at(addresses[3], first, (tokens, width), one)
    reads = array_at(addresses[4], first, (tokens, n), one)
    writes = array_at(addresses[5], first, (tokens, n), one)
    mix = array_at(addresses[6], first, (tokens, n if mixes else 0, n), one)
    given = array_at(addresses[7], first, (tokens, n), one)
    projection = array_at(addresses[8], 0, (rows, n * width), one)
    scale, bias = array_at(addresses[9], 0, (kinds,), one), array_at(addresses[10], 0, (rows,), one)
    read(
        state, found, inverse, x, reads, writes, mix, given, projection, scale, bias,
        mixes, iterations, epsilons, transposed, apart,
    )  # fmt: skip


@compiled
def read_backward_at(
    addresses, first, end, n, width, one, mixes, iterations, epsilons, transposed, adds, asked, handed, apart
):
    """Do what `read_backward` does, with the addresses of its arrays."""
    tokens, kinds, rows = end - first, 3 if mixes else 2, n * (2 + n) if mixes else 2 * n
    state = array_at(addresses[0], first, (tokens, n, width), one)
    by_x = array_at(addresses[1], first, (tokens, width), one)
    by_reads = array_at(addresses[2], first, (tokens, n), one)
    by_writes = array_at(addresses[3], first, (tokens, n), one)
    by_mix = array_at(addresses[4], first, (tokens, n if mixes else 0, n), one)
    by_new = array_at(addresses[5], first, (tokens, n, width), one)
    found = array_at(addresses[6], first, (tokens, rows), one)
    inverse = array_at(addresses[7], first, (tokens,), one)
    by_state = array_at(addresses[8], first, (tokens, n, width), one)
    given, by_given = array_at(addresses[9], first, (tokens, n), one), array_at(addresses[10], first, (tokens, n), one)
    projection = array_at(addresses[11], 0, (rows, n * width), one)
    scale, bias = array_at(addresses[12], 0, (kinds,), one), array_at(addresses[13], 0, (rows,), one)
    by_features = array_at(addresses[14], first, (tokens, rows), one)
    return read_backward(
        by_x, by_reads, by_writes, by_mix, by_new, state, found, inverse, by_state, given, by_given,
        projection, scale, bias, by_features, mixes, iterations, epsilons, transposed, adds, asked, handed, apart,
    )  # fmt: skip
