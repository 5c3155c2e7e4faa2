"""Sinkhorn normalisation on a CPU: the iterations of a block of matrices run side by side, in the nearest cache.

Reading streams takes its iterations from here, too.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import math

import numpy as np

from levada.ops._numba import compiled, exp, over_tokens

__all__ = ["TOKENS", "normalise", "normalise_backward", "over_tokens", "sinkhorn", "sinkhorn_backward"]

TOKENS = 32  # whose iterations run side by side: they fill the vector units


@compiled
def normalise(logits, softmax, kernel, rows, columns, iterations, epsilon):
    """Make a block's factors: the matrix after step t is `rows[t + 1] kernel columns[t]`; see the reference."""
    n, tokens = logits.shape[0], logits.shape[2]
    one = logits.dtype.type(1)
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
            total[b] = math.log(total[b])
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
def normalise_backward(by_mix, softmax, kernel, rows, columns, iterations, epsilon, part, by_row, by_column):
    """Put the gradient by a block's logits in the place of that by its matrices."""
    n, tokens = by_mix.shape[0], by_mix.shape[2]
    by_row[:] = 0
    by_column[:] = 0
    for i in range(n):
        for j in range(n):
            for b in range(tokens):
                by_mix[i, j, b] *= rows[iterations, i, b] * columns[iterations - 1, j, b]
                entry = by_mix[i, j, b] * kernel[i, j, b]
                by_row[i, b] += entry
                by_column[j, b] += entry
    for t in range(iterations - 1, -1, -1):
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
    part, by_row = np.empty((n, TOKENS), work), np.empty((n, TOKENS), work)
    by_column = np.empty((n, TOKENS), work)
    for start in range(0, tokens, TOKENS):
        for b in range(TOKENS):
            t = min(start + b, tokens - 1)
            for i in range(n):
                for j in range(n):
                    block[i, j, b], gradient[i, j, b] = logits[t, i, j], cotangent[t, i, j]
        normalise(block, softmax, kernel, rows, columns, iterations, epsilon[0])
        normalise_backward(gradient, softmax, kernel, rows, columns, iterations, epsilon[0], part, by_row, by_column)
        for t in range(start, min(start + TOKENS, tokens)):
            for i in range(n):
                for j in range(n):
                    by_logits[t, i, j] = gradient[i, j, t - start]
