"""Attention over depth and weighted sums on a CPU: a token's part of each source is read where it lies, by its address.

All sources of a token stay in the cache between the first look, at their products, and the second.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import math

import numpy as np

from levada.ops._numba import array_at, compiled, exp, over_table
from levada.ops.depth.tiles import write_gradients, write_products, write_shares, write_squares, write_sum

__all__ = ["ELEMENTS", "TOKENS", "attend", "attend_backward", "mix", "mix_backward", "over_table"]

ELEMENTS = 4096  # of a source whose products with one weight are one sum, and are read before the next source's
TOKENS = 16  # whose part of a query's gradient is one sum, however many threads there are


@compiled
def _shares(products, inverse, weights):
    """Write a softmax over depth: every number's share of its sum."""
    most = products[0] * inverse[0]
    for i in range(1, len(inverse)):
        most = max(most, products[i] * inverse[i])
    total = most * 0
    for i in range(len(inverse)):
        weights[i] = exp(products[i] * inverse[i] - most)
    for i in range(len(inverse)):
        total += weights[i]
    for i in range(len(inverse)):
        weights[i] /= total


@compiled
def attend(table, first, last, sizes, epsilon, factor, normal):
    """Write means, products and `1 / rms` of tokens; the table is of sources, means, the two others and queries."""
    sources, queries, width = sizes
    products = array_at(table[sources + queries], first, (last - first, queries, sources), epsilon)
    inverse = array_at(table[sources + queries + 1], first, (last - first, sources), epsilon)
    query, weights, one = table[sources + queries + 2], np.empty(sources, products.dtype), products.dtype.type(1)
    for j in range(last - first):
        start, own = (first + j) * width, inverse[j]
        write_squares(products[j, 0], own, table, start, query, width)
        for i in range(sources):
            own[i] = one / math.sqrt(own[i] / width + epsilon)
        for k in range(queries):
            if k > 0:
                write_products(products[j, k], table, start, query + k * width * weights.itemsize, width, False)
            _shares(products[j, k], own, weights)
            for i in range(sources):
                weights[i] *= factor * own[i] if normal else factor
            write_sum(table[sources + k], weights, table, start, width, False)


@compiled
def _coefficients(agreements, products, inverse, width, factor, normal, found, by_squares):
    """Write what sources, cotangents and queries are multiplied by: `reference.coefficients` for one token."""
    queries, sources = agreements.shape
    zero, one = agreements.dtype.type(0), agreements.dtype.type(1)
    by_squares[:] = 0
    for k in range(queries):
        weights, by_products, mean = found[k, 1], found[k, 2], zero
        _shares(products[k], inverse, weights)
        for i in range(sources):
            mean += weights[i] * factor * agreements[k, i] * (inverse[i] if normal else one)
        for i in range(sources):
            share, scale = weights[i], inverse[i] if normal else one
            by_score = share * (factor * agreements[k, i] * scale - mean)
            by_products[i] = by_score * inverse[i]
            by_squares[i] += by_score * products[k, i]
            if normal:
                by_squares[i] += share * factor * agreements[k, i]
            weights[i] = factor * share * scale
    for i in range(sources):
        by_squares[i] *= inverse[i] * inverse[i] * inverse[i] / -width


@compiled
def attend_backward(table, first, last, tokens, sizes, factor, normal):
    """Write the gradients of the sources, and of the queries for each block of tokens.

    The table is of sources, their gradients, cotangents, products, `1 / rms`, queries, and the blocks' sums.
    """
    sources, queries, width = sizes
    given, kept = 2 * sources, 2 * sources + queries
    products = array_at(table[kept], 0, (tokens, queries, sources), factor)
    inverse = array_at(table[kept + 1], 0, (tokens, sources), factor)
    partial = array_at(table[kept + 3], first, (last - first, queries, width), factor)
    agreements, found = np.empty((queries, sources), partial.dtype), np.empty((queries, 3, sources), partial.dtype)
    row = width * partial.itemsize
    for j in range(last - first):
        partial[j] = 0
        for t in range((first + j) * TOKENS, min((first + j + 1) * TOKENS, tokens)):
            for k in range(queries):
                write_products(agreements[k], table, t * width, table[given + k] + t * row, width, k == 0)
            _coefficients(agreements, products[t], inverse[t], width, factor, normal, found, found[0, 0])
            for k in range(queries):
                both = table[given + k] + t * row, table[kept + 2] + k * row
                write_gradients(found[k], table, sources, t * width, both, partial[j, k], k > 0)


@compiled
def mix(table, first, last, tokens, sizes, together, shared, like):
    """Write the weighted sums of some tokens at a time; the table is of sources, sums and weights.

    `shared` weights are the same for all: rows of some tokens are then one long row. Others are of one token at a time.
    """
    sources, ways, width = sizes
    weights = array_at(table[sources + ways], 0, (1 if shared else tokens, ways, sources), like)
    for j in range(first, last):
        own, start = weights[0 if shared else j], j * together * width
        length = min(together, tokens - j * together) * width
        for k in range(ways):
            write_sum(table[sources + k], own[k], table, start, length, k == 0)


@compiled
def mix_backward(table, first, last, tokens, sizes, together, shared, like):
    """Write the gradients of the sources, and the products of cotangents and sources, of some tokens at a time.

    The table is of sources, their gradients, cotangents, weights, and products.
    """
    sources, ways, width = sizes
    given, kept = 2 * sources, 2 * sources + ways
    weights = array_at(table[kept], 0, (1 if shared else tokens, ways, sources), like)
    agreements = array_at(table[kept + 1], first, (last - first, ways, sources), like)
    for j in range(first, last):
        own, start = weights[0 if shared else j], j * together * width
        length = min(together, tokens - j * together) * width
        for k in range(ways):
            row = table[given + k] + start * agreements.itemsize
            write_shares(agreements[j - first, k], own[k], table, sources, start, row, length, k > 0)
