"""Writing to streams on a CPU: each token's streams are read once, while they are in the cache."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from levada.ops._numba import array_at, compiled, over_addresses, over_tokens

__all__ = ["over_addresses", "over_tokens", "write", "write_at", "write_backward", "write_backward_at"]


@compiled
def write(state, out, weights, mix, new, mixes):
    """Write the new streams."""
    tokens, n, width = state.shape
    for t in range(tokens):
        for i in range(n):
            w = weights[t, i]
            if not mixes:
                for c in range(width):
                    new[t, i, c] = state[t, i, c] + w * out[t, c]
            elif n == 4:  # the usual number, in one pass
                m0, m1, m2, m3 = mix[t, i, 0], mix[t, i, 1], mix[t, i, 2], mix[t, i, 3]
                for c in range(width):
                    kept = m0 * state[t, 0, c] + m1 * state[t, 1, c] + m2 * state[t, 2, c] + m3 * state[t, 3, c]
                    new[t, i, c] = kept + w * out[t, c]
            else:
                for c in range(width):
                    new[t, i, c] = w * out[t, c]
                for j in range(n):
                    m = mix[t, i, j]
                    for c in range(width):
                        new[t, i, c] += m * state[t, j, c]


@compiled
def write_backward(cotangent, state, out, weights, mix, by_state, by_out, by_weights, by_mix, mixes):
    """Write the gradients."""
    tokens, n, width = state.shape
    zero = weights.dtype.type(0)  # a number times a literal would be a double, and so would be all sums
    for t in range(tokens):
        by_out[t] = 0
        for i in range(n):
            w, total = weights[t, i], zero
            for c in range(width):
                g = cotangent[t, i, c]
                total += g * out[t, c]
                by_out[t, c] += w * g
            by_weights[t, i] = total
        if not mixes:
            continue
        for j in range(n):
            if n == 4:
                m0, m1, m2, m3 = mix[t, 0, j], mix[t, 1, j], mix[t, 2, j], mix[t, 3, j]
                s0 = s1 = s2 = s3 = zero
                for c in range(width):
                    x = state[t, j, c]
                    g0, g1, g2, g3 = cotangent[t, 0, c], cotangent[t, 1, c], cotangent[t, 2, c], cotangent[t, 3, c]
                    s0 += g0 * x
                    s1 += g1 * x
                    s2 += g2 * x
                    s3 += g3 * x
                    by_state[t, j, c] = m0 * g0 + m1 * g1 + m2 * g2 + m3 * g3
                by_mix[t, 0, j], by_mix[t, 1, j], by_mix[t, 2, j], by_mix[t, 3, j] = s0, s1, s2, s3
            else:
                by_state[t, j] = 0
                for i in range(n):
                    m, total = mix[t, i, j], zero
                    for c in range(width):
                        g = cotangent[t, i, c]
                        total += g * state[t, j, c]
                        by_state[t, j, c] += m * g
                    by_mix[t, i, j] = total


@compiled
def write_at(addresses, first, end, n, width, mixes, one):
    """Do what `write` does, with the addresses of its arrays."""
    tokens = end - first
    state = array_at(addresses[0], first, (tokens, n, width), one)
    out = array_at(addresses[1], first, (tokens, width), one)
    weights = array_at(addresses[2], first, (tokens, n), one)
    mix = array_at(addresses[3], first, (tokens, n, n if mixes else 1), one)
    new = array_at(addresses[4], first, (tokens, n, width), one)
    write(state, out, weights, mix, new, mixes)


@compiled
def write_backward_at(addresses, first, end, n, width, mixes, one):
    """Do what `write_backward` does, with the addresses of its arrays."""
    tokens = end - first
    cotangent = array_at(addresses[0], first, (tokens, n, width), one)
    state = array_at(addresses[1], first, (tokens, n, width), one)
    out = array_at(addresses[2], first, (tokens, width), one)
    weights = array_at(addresses[3], first, (tokens, n), one)
    mix = array_at(addresses[4], first, (tokens, n, n if mixes else 1), one)
    by_state = array_at(addresses[5], first, (tokens, n, width), one)
    by_out = array_at(addresses[6], first, (tokens, width), one)
    by_weights = array_at(addresses[7], first, (tokens, n), one)
    by_mix = array_at(addresses[8], first, (tokens, n, n if mixes else 1), one)
    write_backward(cotangent, state, out, weights, mix, by_state, by_out, by_weights, by_mix, mixes)
