"""Reading the streams of hyper-connections on a CPU, products and all: of a stream there are few, by rows in the cache.

Arrays are indexed, and sliced once for 32 tokens: to hand on a slice takes as long as to add up a hundred channels.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import numpy as np

from levada.ops._numba import array_at, compiled, one_over_root, over_addresses, tanh
from levada.ops._tiles import add_product, add_product_transposed, write_dots

__all__ = ["by_rows_at", "over_addresses", "read_at", "read_backward_at"]

_TOKENS = 32  # whose tanh is taken at once, and whose gradients are added up in their own type


@compiled
def _stack(projection, gain, shift):
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
def _read(state, x, reads, mix, writes, found, norms, read, mixed, write, scales, weights, offset, epsilon, centred):
    """Write the weights, what the branch reads, the products with normalised streams, and the norms."""
    tokens, n, width = state.shape
    rows = n + 2
    one = state.dtype.type(1)  # a literal would make loops of doubles
    zero, share = state.dtype.type(0), one / state.dtype.type(width)  # `one * 0` would be a double
    said = np.empty(_TOKENS * n * rows, state.dtype)
    streams, products = state.reshape(tokens * n, width), found.reshape(tokens * n, rows)
    for start in range(0, tokens, _TOKENS):
        end = min(start + _TOKENS, tokens)
        write_dots(products[n * start : n * end], streams[n * start : n * end], weights)
        for t in range(start, end):
            for j in range(n):
                mean = zero
                for c in range(width if centred else 0):
                    mean += state[t, j, c]
                mean *= share
                total = zero
                for c in range(width):
                    total += (state[t, j, c] - mean) * (state[t, j, c] - mean)
                inverse = one_over_root(total * share + epsilon, one)
                norms[t, j, 0], norms[t, j, 1] = inverse, mean
                place = ((t - start) * n + j) * rows
                for k in range(rows):
                    found[t, j, k] *= inverse
                    said[place + k] = found[t, j, k] + offset[k]
        for place in range((end - start) * n * rows):
            said[place] = tanh(said[place])
        for t in range(start, end):
            for j in range(n):
                place = ((t - start) * n + j) * rows
                reads[t, j] = read[j] + scales[0] * said[place]
                writes[t, j] = write[j] + scales[1] * said[place + rows - 1]
                for i in range(n):
                    mix[t, i, j] = mixed[i, j] + scales[0] * said[place + 1 + i]
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
def _read_backward(
    by_x, by_reads, by_mix, by_writes, by_new, state, found, norms, by_state,
    read, scales, weights, offset, adds,
):  # fmt: skip
    """Write the gradient by the state.

    Returns:
        Sums for the parameters, in float64: those for the static ones, the two scales, and what is added to products;
        and those for what streams are multiplied by.
    """
    tokens, n, width = state.shape
    rows = n + 2
    one = state.dtype.type(1)  # a literal would make loops of doubles
    zero, share = state.dtype.type(0), one / state.dtype.type(width)  # `one * 0` would be a double
    sums, by_weights = np.zeros(n * rows + 2 + rows), np.zeros((rows, width))
    said, some = np.empty(_TOKENS * n * rows, state.dtype), np.empty((rows, width), state.dtype)
    back = np.empty((_TOKENS * n, rows), state.dtype)
    streams, by_streams = state.reshape(tokens * n, width), by_state.reshape(tokens * n, width)
    for start in range(0, tokens, _TOKENS):
        end = min(start + _TOKENS, tokens)
        for t in range(start, end):
            for j in range(n):
                place = ((t - start) * n + j) * rows
                for k in range(rows):
                    said[place + k] = found[t, j, k] + offset[k]
        for place in range((end - start) * n * rows):
            said[place] = tanh(said[place])
        for t in range(start, end):
            for j in range(n):
                g = by_reads[t, j]
                for c in range(width):
                    g += by_x[t, c] * state[t, j, c]
                sums[j] += g
                along = zero
                inverse, mean = norms[t, j, 0], norms[t, j, 1]
                row = (t - start) * n + j
                weight = read[j] + scales[0] * said[row * rows]
                for k in range(rows):
                    factor = scales[0]
                    if k == rows - 1:
                        g, factor = by_writes[t, j], scales[1]
                        sums[n * (n + 1) + j] += g
                    elif k:
                        g = by_mix[t, k - 1, j]
                        sums[n * k + j] += g
                    spoken = said[row * rows + k]
                    sums[n * rows + (k == rows - 1)] += g * spoken
                    here = g * factor * (one - spoken * spoken)
                    along += here * found[t, j, k]
                    back[row, k] = here * inverse
                    sums[n * rows + 2 + k] += here
                shrink = share * along * inverse * inverse
                shift = -shrink * mean  # of a mean of zero where it is not taken out
                for c in range(width):
                    part = weight * by_x[t, c] - shrink * state[t, j, c] - shift
                    by_state[t, j, c] = by_new[t, j, c] + part if adds else part
        several = n * (end - start)
        add_product(by_streams[n * start : n * end], back[:several], weights)
        some[:] = 0
        add_product_transposed(some, back[:several], streams[n * start : n * end])
        for k in range(rows):
            for c in range(width):
                by_weights[k, c] += some[k, c]
    return sums, by_weights


@compiled
def _by_rows(by_weights, sums, projection, gain, shift, by_projection, by_gain, by_shift):
    """Write the gradients by projection, gain and shift; see the reference."""
    rows, width = projection.shape
    kind = projection.dtype.type
    by_gain[:] = 0
    by_shift[:] = 0
    for k in range(rows):
        by_offset, mean = kind(sums[len(sums) - rows + k]), gain[0] * 0
        if len(shift):
            total = 0.0
            for c in range(width):
                total += by_weights[k, c]
            mean = kind(total / width)
        for c in range(width):
            found = kind(by_weights[k, c]) - mean
            by_projection[k, c] = found * gain[c]
            by_gain[c] += found * projection[k, c]
        for c in range(len(shift)):
            by_projection[k, c] += by_offset * shift[c]
            by_shift[c] += by_offset * projection[k, c]


@compiled
def read_at(addresses, first, end, n, width, one, epsilon, centred):
    """Do what `_read` does, with the addresses of its arrays; the last five are the parameters."""
    tokens, rows = end - first, n + 2
    state = array_at(addresses[0], first, (tokens, n, width), one)
    x, reads = array_at(addresses[1], first, (tokens, width), one), array_at(addresses[2], first, (tokens, n), one)
    mix, writes = array_at(addresses[3], first, (tokens, n, n), one), array_at(addresses[4], first, (tokens, n), one)
    found = array_at(addresses[5], first, (tokens, n, rows), one)
    norms = array_at(addresses[6], first, (tokens, n, 2), one)
    read, mixed = array_at(addresses[7], 0, (n,), one), array_at(addresses[8], 0, (n, n), one)
    write, scales = array_at(addresses[9], 0, (n,), one), np.empty(2, found.dtype)
    scales[0], scales[1] = array_at(addresses[11], 0, (1,), one)[0], array_at(addresses[12], 0, (1,), one)[0]
    gain = array_at(addresses[13], 0, (width,), one)
    shift = array_at(addresses[14], 0, (width if centred else 0,), one)
    weights, offset = _stack(array_at(addresses[10], 0, (rows, width), one), gain, shift)
    _read(state, x, reads, mix, writes, found, norms, read, mixed, write, scales, weights, offset, epsilon, centred)


@compiled
def read_backward_at(addresses, first, end, n, width, one, centred, adds):
    """Do what `_read_backward` does, with the addresses of its arrays; the last are the parameters but two."""
    tokens, rows = end - first, n + 2
    state = array_at(addresses[0], first, (tokens, n, width), one)
    by_x, by_reads = (
        array_at(addresses[1], first, (tokens, width), one),
        array_at(addresses[2], first, (tokens, n), one),
    )
    by_mix = array_at(addresses[3], first, (tokens, n, n), one)
    by_writes = array_at(addresses[4], first, (tokens, n), one)
    by_new = array_at(addresses[5], first, (tokens, n, width), one)
    found = array_at(addresses[6], first, (tokens, n, rows), one)
    norms = array_at(addresses[7], first, (tokens, n, 2), one)
    by_state = array_at(addresses[8], first, (tokens, n, width), one)
    read, scales = array_at(addresses[9], 0, (n,), one), np.empty(2, found.dtype)
    scales[0], scales[1] = array_at(addresses[11], 0, (1,), one)[0], array_at(addresses[12], 0, (1,), one)[0]
    gain = array_at(addresses[13], 0, (width,), one)
    shift = array_at(addresses[14], 0, (width if centred else 0,), one)
    weights, offset = _stack(array_at(addresses[10], 0, (rows, width), one), gain, shift)
    return _read_backward(
        by_x, by_reads, by_mix, by_writes, by_new, state, found, norms, by_state,
        read, scales, weights, offset, adds,
    )  # fmt: skip


@compiled
def by_rows_at(addresses, by_weights, sums, rows, width, one, centred):
    """Do what `_by_rows` does, with addresses: of projection, gain and shift, and of their gradients."""
    own = width if centred else 0
    projection, gain = array_at(addresses[0], 0, (rows, width), one), array_at(addresses[1], 0, (width,), one)
    by_projection = array_at(addresses[3], 0, (rows, width), one)
    by_gain, by_shift = array_at(addresses[4], 0, (width,), one), array_at(addresses[5], 0, (own,), one)
    shift = array_at(addresses[2], 0, (own,), one)
    _by_rows(by_weights, sums, projection, gain, shift, by_projection, by_gain, by_shift)
