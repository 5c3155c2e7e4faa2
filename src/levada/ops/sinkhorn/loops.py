"""Sinkhorn normalisation on a CPU: the iterations of a block of matrices run side by side, in the nearest cache.

Reading streams takes its iterations from here, too.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import numpy as np

from levada.ops._numba import compiled, exp, log, over_tokens

__all__ = ["TOKENS", "normalise", "normalise_backward", "over_tokens", "sinkhorn", "sinkhorn_backward"]

TOKENS = 32  # whose iterations run side by side: they fill the vector units


@compiled
def normalise(logits, softmax, kernel, rows, columns, iterations, epsilon):
    """Make a block's factors: the matrix after step t is `rows[t + 1] kernel columns[t]`; see the reference."""
    n, tokens = logits.shape[0], logits.shape[2]
    one = logits.dtype.type(1)
    if n == 4 and tokens == TOKENS:
        flat = kernel.reshape(16 * TOKENS)
        _begin_of_four(logits.reshape(16 * TOKENS), softmax.reshape(16 * TOKENS), flat, epsilon)
        rows[0] = one
        _steps_of_four(flat, rows.reshape(rows.size), columns.reshape(columns.size), epsilon)
        return
    most, total = columns[0, 0], rows[0, 0]  # for now; one matrix beside the other, in all loops that are innermost
    for j in range(n):
        for b in range(tokens):
            most[b], total[b] = logits[0, j, b], one * 0
        for i in range(1, n):
            for b in range(tokens):
                most[b] = max(most[b], logits[i, j, b])
        for i in range(n):
            for b in range(tokens):
                kernel[i, j, b] = logits[i, j, b] - most[b]
                softmax[i, j, b] = exp(kernel[i, j, b])
                total[b] += softmax[i, j, b]
        for i in range(n):
            for b in range(tokens):
                softmax[i, j, b] /= total[b]
        for b in range(tokens):
            total[b] = log(total[b])
        for i in range(n):
            for b in range(tokens):
                kernel[i, j, b] -= total[b]
    for i in range(n):
        if epsilon != 0:
            for j in range(n):
                for b in range(tokens):
                    kernel[i, j, b] = softmax[i, j, b] + epsilon
            continue
        # The first row step undoes any factor of a row, so that none underflows whole.
        for b in range(tokens):
            most[b] = kernel[i, 0, b]
        for j in range(1, n):
            for b in range(tokens):
                most[b] = max(most[b], kernel[i, j, b])
        for j in range(n):
            for b in range(tokens):
                kernel[i, j, b] = exp(kernel[i, j, b] - most[b])
    rows[0] = one
    # Matrices are the innermost loop, of whole rows: sums over a token's entries would not fill the vector units.
    for t in range(iterations):
        for j in range(n):
            column = columns[t, j]
            if t == 0:
                column[:] = one
                continue
            before = columns[t - 1, j]
            for b in range(tokens):
                column[b] = epsilon / before[b]
            for i in range(n):
                entry, row = kernel[i, j], rows[t, i]
                for b in range(tokens):
                    column[b] += entry[b] * row[b]
            for b in range(tokens):
                column[b] = one / column[b]
        for i in range(n):
            row, before = rows[t + 1, i], rows[t, i]
            for b in range(tokens):
                row[b] = epsilon / before[b]
            for j in range(n):
                entry, column = kernel[i, j], columns[t, j]
                for b in range(tokens):
                    row[b] += entry[b] * column[b]
            for b in range(tokens):
                row[b] = one / row[b]


@compiled
def _begin_of_four(logits, softmax, kernel, epsilon):
    """Make what the steps of 4 x 4 matrices begin with; see `_steps_of_four`."""
    n = TOKENS
    for at in range(0, 4 * n, n):
        r, s, k = logits[at : at + 13 * n], softmax[at : at + 13 * n], kernel[at : at + 13 * n]
        for b in range(n):
            e, f, g, h = r[b], r[4 * n + b], r[8 * n + b], r[12 * n + b]
            most = max(max(e, f), max(g, h))
            e, f, g, h = e - most, f - most, g - most, h - most
            v, w, x, y = exp(e), exp(f), exp(g), exp(h)
            total = (v + w) + (x + y)
            s[b], s[4 * n + b], s[8 * n + b], s[12 * n + b] = v / total, w / total, x / total, y / total
            total = log(total)
            k[b], k[4 * n + b], k[8 * n + b], k[12 * n + b] = e - total, f - total, g - total, h - total
    if epsilon != 0:
        for q in range(16 * n):
            kernel[q] = softmax[q] + epsilon
        return
    for at in range(0, 16 * n, 4 * n):
        k = kernel[at : at + 4 * n]
        for b in range(n):
            e, f, g, h = k[b], k[n + b], k[2 * n + b], k[3 * n + b]
            most = max(max(e, f), max(g, h))
            k[b], k[n + b], k[2 * n + b], k[3 * n + b] = exp(e - most), exp(f - most), exp(g - most), exp(h - most)


@compiled
def _quotient(one, epsilon, before, k0, k1, k2, k3, v0, v1, v2, v3):
    return one / (epsilon / before + ((k0 * v0 + k1 * v1) + (k2 * v2 + k3 * v3)))


@compiled
def _steps_of_four(k, rows, columns, epsilon):
    """Take the steps of 4 x 4 matrices: flat arrays at constant distances, which the compiler knows not to overlap.

    Entry (i, j) of all matrices begins at `(4 i + j) TOKENS`; a step's rows and columns are `4 TOKENS` numbers.
    """
    one, step, n = k.dtype.type(1), 4 * TOKENS, TOKENS
    columns[:step] = one
    for at in range(0, len(columns), step):
        r, s, c = rows[at : at + step], rows[at + step : at + 2 * step], columns[at : at + step]
        if at > 0:
            p = columns[at - step : at]
            for b in range(TOKENS):
                v, w, x, y = r[b], r[n + b], r[2 * n + b], r[3 * n + b]
                e, f, g, h = k[b], k[4 * n + b], k[8 * n + b], k[12 * n + b]
                c[b] = _quotient(one, epsilon, p[b], e, f, g, h, v, w, x, y)
                e, f, g, h = k[n + b], k[5 * n + b], k[9 * n + b], k[13 * n + b]
                c[n + b] = _quotient(one, epsilon, p[n + b], e, f, g, h, v, w, x, y)
                e, f, g, h = k[2 * n + b], k[6 * n + b], k[10 * n + b], k[14 * n + b]
                c[2 * n + b] = _quotient(one, epsilon, p[2 * n + b], e, f, g, h, v, w, x, y)
                e, f, g, h = k[3 * n + b], k[7 * n + b], k[11 * n + b], k[15 * n + b]
                c[3 * n + b] = _quotient(one, epsilon, p[3 * n + b], e, f, g, h, v, w, x, y)
        for b in range(TOKENS):
            v, w, x, y = c[b], c[n + b], c[2 * n + b], c[3 * n + b]
            e, f, g, h = k[b], k[n + b], k[2 * n + b], k[3 * n + b]
            s[b] = _quotient(one, epsilon, r[b], e, f, g, h, v, w, x, y)
            e, f, g, h = k[4 * n + b], k[5 * n + b], k[6 * n + b], k[7 * n + b]
            s[n + b] = _quotient(one, epsilon, r[n + b], e, f, g, h, v, w, x, y)
            e, f, g, h = k[8 * n + b], k[9 * n + b], k[10 * n + b], k[11 * n + b]
            s[2 * n + b] = _quotient(one, epsilon, r[2 * n + b], e, f, g, h, v, w, x, y)
            e, f, g, h = k[12 * n + b], k[13 * n + b], k[14 * n + b], k[15 * n + b]
            s[3 * n + b] = _quotient(one, epsilon, r[3 * n + b], e, f, g, h, v, w, x, y)


@compiled
def _back_of_four(by_mix, k, rows, columns, epsilon, by_row, by_column, by_rows, by_columns):
    """Go back through the same: what each step takes from the gradient is kept, and taken off at the end."""
    step, n = 4 * TOKENS, TOKENS
    for at in range(len(columns) - step, -1, -step):
        r, s, c = rows[at : at + step], rows[at + step : at + 2 * step], columns[at : at + step]
        q = by_rows[at : at + step]
        for b in range(TOKENS):
            v, w, x, y = by_row[b], by_row[n + b], by_row[2 * n + b], by_row[3 * n + b]
            v, w, x, y = v * s[b], w * s[n + b], x * s[2 * n + b], y * s[3 * n + b]
            q[b], q[n + b], q[2 * n + b], q[3 * n + b] = v, w, x, y
            by_row[b], by_row[n + b] = epsilon * v / r[b], epsilon * w / r[n + b]
            by_row[2 * n + b], by_row[3 * n + b] = epsilon * x / r[2 * n + b], epsilon * y / r[3 * n + b]
            e, f, g, h = k[b], k[4 * n + b], k[8 * n + b], k[12 * n + b]
            by_column[b] -= c[b] * ((e * v + f * w) + (g * x + h * y))
            e, f, g, h = k[n + b], k[5 * n + b], k[9 * n + b], k[13 * n + b]
            by_column[n + b] -= c[n + b] * ((e * v + f * w) + (g * x + h * y))
            e, f, g, h = k[2 * n + b], k[6 * n + b], k[10 * n + b], k[14 * n + b]
            by_column[2 * n + b] -= c[2 * n + b] * ((e * v + f * w) + (g * x + h * y))
            e, f, g, h = k[3 * n + b], k[7 * n + b], k[11 * n + b], k[15 * n + b]
            by_column[3 * n + b] -= c[3 * n + b] * ((e * v + f * w) + (g * x + h * y))
        if at == 0:
            break
        p, q = columns[at - step : at], by_columns[at : at + step]
        for b in range(TOKENS):
            v, w, x, y = by_column[b], by_column[n + b], by_column[2 * n + b], by_column[3 * n + b]
            v, w, x, y = v * c[b], w * c[n + b], x * c[2 * n + b], y * c[3 * n + b]
            q[b], q[n + b], q[2 * n + b], q[3 * n + b] = v, w, x, y
            by_column[b], by_column[n + b] = epsilon * v / p[b], epsilon * w / p[n + b]
            by_column[2 * n + b], by_column[3 * n + b] = epsilon * x / p[2 * n + b], epsilon * y / p[3 * n + b]
            e, f, g, h = k[b], k[n + b], k[2 * n + b], k[3 * n + b]
            by_row[b] -= r[b] * ((e * v + f * w) + (g * x + h * y))
            e, f, g, h = k[4 * n + b], k[5 * n + b], k[6 * n + b], k[7 * n + b]
            by_row[n + b] -= r[n + b] * ((e * v + f * w) + (g * x + h * y))
            e, f, g, h = k[8 * n + b], k[9 * n + b], k[10 * n + b], k[11 * n + b]
            by_row[2 * n + b] -= r[2 * n + b] * ((e * v + f * w) + (g * x + h * y))
            e, f, g, h = k[12 * n + b], k[13 * n + b], k[14 * n + b], k[15 * n + b]
            by_row[3 * n + b] -= r[3 * n + b] * ((e * v + f * w) + (g * x + h * y))
    by_columns[:step] = 0
    for at in range(0, len(columns), step):
        r, v = rows[at : at + step], by_rows[at : at + step]
        c, w = columns[at : at + step], by_columns[at : at + step]
        for b in range(TOKENS):  # all entries in one loop: before each, the compiler looks for memory that overlaps
            e, f, g, h = c[b], c[n + b], c[2 * n + b], c[3 * n + b]
            p, q, s, u = w[b], w[n + b], w[2 * n + b], w[3 * n + b]
            x, y = v[b], r[b]
            by_mix[b] -= x * e + y * p
            by_mix[n + b] -= x * f + y * q
            by_mix[2 * n + b] -= x * g + y * s
            by_mix[3 * n + b] -= x * h + y * u
            x, y = v[n + b], r[n + b]
            by_mix[4 * n + b] -= x * e + y * p
            by_mix[5 * n + b] -= x * f + y * q
            by_mix[6 * n + b] -= x * g + y * s
            by_mix[7 * n + b] -= x * h + y * u
            x, y = v[2 * n + b], r[2 * n + b]
            by_mix[8 * n + b] -= x * e + y * p
            by_mix[9 * n + b] -= x * f + y * q
            by_mix[10 * n + b] -= x * g + y * s
            by_mix[11 * n + b] -= x * h + y * u
            x, y = v[3 * n + b], r[3 * n + b]
            by_mix[12 * n + b] -= x * e + y * p
            by_mix[13 * n + b] -= x * f + y * q
            by_mix[14 * n + b] -= x * g + y * s
            by_mix[15 * n + b] -= x * h + y * u


@compiled
def normalise_backward(by_mix, softmax, kernel, rows, columns, iterations, epsilon, parts, by_row, by_column):
    """Put the gradient by a block's logits in the place of that by its matrices; `parts` has two for each iteration."""
    n, tokens = by_mix.shape[0], by_mix.shape[2]
    part = parts[0]
    by_row[:] = 0
    by_column[:] = 0
    for i in range(n):
        for j in range(n):
            for b in range(tokens):
                by_mix[i, j, b] *= rows[iterations, i, b] * columns[iterations - 1, j, b]
                entry = by_mix[i, j, b] * kernel[i, j, b]
                by_row[i, b] += entry
                by_column[j, b] += entry
    of_four = n == 4 and tokens == TOKENS
    if of_four:
        flat, half = parts.reshape(parts.size), parts.size // 2
        _back_of_four(
            by_mix.reshape(16 * TOKENS), kernel.reshape(16 * TOKENS), rows.reshape(rows.size),
            columns.reshape(columns.size), epsilon, by_row.reshape(4 * TOKENS), by_column.reshape(4 * TOKENS),
            flat[:half], flat[half:],
        )  # fmt: skip
    for t in range(-1 if of_four else iterations - 1, -1, -1):
        for i in range(n):
            for b in range(tokens):
                part[i, b] = by_row[i, b] * rows[t + 1, i, b]
                by_row[i, b] = epsilon * part[i, b] / rows[t, i, b]
        for i in range(n):
            for j in range(n):
                for b in range(tokens):
                    by_mix[i, j, b] -= part[i, b] * columns[t, j, b]
                    by_column[j, b] -= columns[t, j, b] * kernel[i, j, b] * part[i, b]
        if t == 0:
            break
        for j in range(n):
            for b in range(tokens):
                part[j, b] = by_column[j, b] * columns[t, j, b]
                by_column[j, b] = epsilon * part[j, b] / columns[t - 1, j, b]
        for i in range(n):
            for j in range(n):
                for b in range(tokens):
                    by_mix[i, j, b] -= rows[t, i, b] * part[j, b]
                    by_row[i, b] -= rows[t, i, b] * kernel[i, j, b] * part[j, b]
    for j in range(n):
        for b in range(tokens):
            total = by_mix[0, j, b] * 0
            for i in range(n):
                by_mix[i, j, b] *= softmax[i, j, b] if epsilon != 0 else kernel[i, j, b]
                total += by_mix[i, j, b]
            for i in range(n):
                by_mix[i, j, b] -= softmax[i, j, b] * total


@compiled
def sinkhorn(logits, mix, iterations, epsilon):
    """Write the matrices, computed in the type of `epsilon`; what is over in the last block repeats the last one."""
    tokens, n, work = logits.shape[0], logits.shape[1], epsilon.dtype
    block, softmax = np.empty((n, n, TOKENS), work), np.empty((n, n, TOKENS), work)
    kernel = np.empty((n, n, TOKENS), work)
    rows, columns = np.empty((iterations + 1, n, TOKENS), work), np.empty((iterations, n, TOKENS), work)
    for start in range(0, tokens, TOKENS):
        for b in range(TOKENS):
            t = min(start + b, tokens - 1)
            for i in range(n):
                for j in range(n):
                    block[i, j, b] = logits[t, i, j]
        normalise(block, softmax, kernel, rows, columns, iterations, epsilon[0])
        for t in range(start, min(start + TOKENS, tokens)):
            b = t - start
            for i in range(n):
                for j in range(n):
                    mix[t, i, j] = kernel[i, j, b] * rows[iterations, i, b] * columns[iterations - 1, j, b]


@compiled
def sinkhorn_backward(logits, cotangent, by_logits, iterations, epsilon):
    """Write the gradient by the logits."""
    tokens, n, work = logits.shape[0], logits.shape[1], epsilon.dtype
    block, gradient = np.empty((n, n, TOKENS), work), np.empty((n, n, TOKENS), work)
    softmax, kernel = np.empty((n, n, TOKENS), work), np.empty((n, n, TOKENS), work)
    rows, columns = np.empty((iterations + 1, n, TOKENS), work), np.empty((iterations, n, TOKENS), work)
    parts, by_row = np.empty((2 * iterations, n, TOKENS), work), np.empty((n, TOKENS), work)
    by_column = np.empty((n, TOKENS), work)
    for start in range(0, tokens, TOKENS):
        for b in range(TOKENS):
            t = min(start + b, tokens - 1)
            for i in range(n):
                for j in range(n):
                    block[i, j, b], gradient[i, j, b] = logits[t, i, j], cotangent[t, i, j]
        normalise(block, softmax, kernel, rows, columns, iterations, epsilon[0])
        normalise_backward(gradient, softmax, kernel, rows, columns, iterations, epsilon[0], parts, by_row, by_column)
        for t in range(start, min(start + TOKENS, tokens)):
            for i in range(n):
                for j in range(n):
                    by_logits[t, i, j] = gradient[i, j, t - start]
