"""Attention over depth and weighted sums on a CPU: a token's part of each source is read where it lies, by its address.

All sources of a token stay in the cache between the first look, at their products, and the second.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,attr-defined,call-arg"
from __future__ import annotations

import math

from numba import carray, types  # type: ignore[import-untyped, import-not-found, unused-ignore]
from numba.extending import intrinsic  # type: ignore[import-untyped, import-not-found, unused-ignore]

from levada.ops._numba import compiled, over_tokens

__all__ = ["TOKENS", "attend", "attend_backward", "mix", "mix_backward", "over_tokens"]

CHANNELS = 128  # of a sum at a time
TOKENS = 16  # whose part of a query's gradient is one sum, however many threads there are


@intrinsic
def _pointer(context, address, like):
    """Return an address as a pointer to the elements of an array like that."""

    def make(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(like.dtype)(types.intp, like), make


@compiled
def _row(addresses, i, place, width, like):
    """Return the channels of tensor i at a place, counted in rows."""
    return _part(addresses[i], place * width, width, like)


@compiled
def _part(address, start, length, like):
    """Return elements of a tensor, counted from zero: loops over a range that begins elsewhere are not vectorised."""
    return carray(_pointer(address + start * like.itemsize, like), (length,))


@compiled
def _product(a, b):
    total = a.dtype.type(0)
    for c in range(len(a)):
        total += a[c] * b[c]
    return total


@compiled
def _sum(weights, addresses, t, out):
    """Write the weighted sum of all sources' rows, some channels at a time: each source is then one long stream."""
    for start in range(0, len(out), CHANNELS):
        _add_up(weights, addresses, t * len(out) + start, out[start : start + CHANNELS])


@compiled
def _add_up(weights, addresses, start, out):
    sources, length = len(weights), len(out)
    begun = sources % 4
    out[:] = 0
    for i in range(begun):
        w, x = weights[i], _part(addresses[i], start, length, out)
        for c in range(length):
            out[c] += w * x[c]
    for i in range(begun, sources, 4):  # in fewer passes over the sum
        w0, w1, w2, w3 = weights[i], weights[i + 1], weights[i + 2], weights[i + 3]
        x0, x1 = _part(addresses[i], start, length, out), _part(addresses[i + 1], start, length, out)
        x2, x3 = _part(addresses[i + 2], start, length, out), _part(addresses[i + 3], start, length, out)
        for c in range(length):
            out[c] += (w0 * x0[c] + w1 * x1[c]) + (w2 * x2[c] + w3 * x3[c])


@compiled
def attend(places, products, inverse, weights, query, addresses, means, epsilon, factor, normal):
    """Write means, products and `1 / rms`; `weights` is memory to work in."""
    queries, width = query.shape
    sources = len(addresses)
    one, zero = query.dtype.type(1), query.dtype.type(0)  # a product with 0 would be of float64
    for j in range(len(places)):
        t = places[j]
        for i in range(sources):
            x = _row(addresses, i, t, width, query)
            square, first, q = zero, zero, query[0]
            for c in range(width):
                square += x[c] * x[c]
                first += q[c] * x[c]
            inverse[j, i] = one / math.sqrt(square / width + epsilon)
            products[j, 0, i] = first
            for k in range(1, queries):
                products[j, k, i] = _product(query[k], x)
        for k in range(queries):
            most = products[j, k, 0] * inverse[j, 0]
            for i in range(1, sources):
                most = max(most, products[j, k, i] * inverse[j, i])
            total = zero
            for i in range(sources):
                weights[j, i] = math.exp(products[j, k, i] * inverse[j, i] - most)
                total += weights[j, i]
            for i in range(sources):
                weights[j, i] *= factor / total
                if normal:
                    weights[j, i] *= inverse[j, i]
            _sum(weights[j], addresses, t, means[k, t])


@compiled
def _products(cotangent, t, addresses, agreements):
    """Write the products of a token's cotangents and sources."""
    queries, width = cotangent.shape[0], cotangent.shape[2]
    for i in range(len(addresses)):
        x = _row(addresses, i, t, width, cotangent)
        for k in range(queries):
            agreements[k, i] = _product(cotangent[k, t], x)


@compiled
def _coefficients(agreements, products, inverse, width, factor, normal, weights, by_products, by_squares):
    """Write what cotangents, queries and sources are multiplied by: `reference.coefficients` for one token."""
    queries, sources = agreements.shape
    zero, one = agreements.dtype.type(0), agreements.dtype.type(1)
    by_squares[:] = 0
    for k in range(queries):
        most = products[k, 0] * inverse[0]
        for i in range(1, sources):
            most = max(most, products[k, i] * inverse[i])
        total, mean = zero, zero
        for i in range(sources):
            weights[k, i] = math.exp(products[k, i] * inverse[i] - most)
            total += weights[k, i]
        for i in range(sources):
            weights[k, i] /= total
            mean += weights[k, i] * factor * agreements[k, i] * (inverse[i] if normal else one)
        for i in range(sources):
            share, scale = weights[k, i], inverse[i] if normal else one
            by_score = share * (factor * agreements[k, i] * scale - mean)
            by_products[k, i] = by_score * inverse[i]
            by_squares[i] += by_score * products[k, i]
            if normal:
                by_squares[i] += share * factor * agreements[k, i]
            weights[k, i] = factor * share * scale
    for i in range(sources):
        by_squares[i] *= inverse[i] * inverse[i] * inverse[i] / -width


@compiled
def attend_backward(starts, partial, work, cotangent, query, addresses, gradients, products, inverse, factor, normal):
    """Write the gradients of the sources, and of the queries for each block of tokens; `work` is memory to work in."""
    queries, width = query.shape
    sources, tokens = len(addresses), cotangent.shape[1]
    for j in range(len(starts)):
        partial[j] = 0
        agreements, weights, by_products = work[j, 0], work[j, 1], work[j, 2]
        by_squares = work[j, 3, 0]
        for t in range(starts[j], min(starts[j] + TOKENS, tokens)):
            _products(cotangent, t, addresses, agreements)
            _coefficients(agreements, products[t], inverse[t], width, factor, normal, weights, by_products, by_squares)
            for i in range(sources):
                x, new = _row(addresses, i, t, width, query), _row(gradients, i, t, width, query)
                a, b, s = weights[0, i], by_products[0, i], by_squares[i]
                g, q, of_q = cotangent[0, t], query[0], partial[j, 0]
                for c in range(width):
                    new[c] = a * g[c] + b * q[c] + s * x[c]
                    of_q[c] += b * x[c]
                for k in range(1, queries):
                    a, b = weights[k, i], by_products[k, i]
                    g, q, of_q = cotangent[k, t], query[k], partial[j, k]
                    for c in range(width):
                        new[c] += a * g[c] + b * q[c]
                        of_q[c] += b * x[c]


@compiled
def mix(places, weights, addresses, sums, shared):
    """Write the weighted sums; `shared` weights are one row for all tokens."""
    for j in range(len(places)):
        t = places[j]
        own = weights[0 if shared else t]
        for k in range(len(own)):
            _sum(own[k], addresses, t, sums[k, t])


@compiled
def mix_backward(places, agreements, cotangent, weights, addresses, gradients, shared):
    """Write the gradients of the sources, and the products of cotangents and sources."""
    queries, width = cotangent.shape[0], cotangent.shape[2]
    zero = cotangent.dtype.type(0)
    for j in range(len(places)):
        t = places[j]
        own = weights[0 if shared else t]
        for i in range(len(addresses)):
            x, new = _row(addresses, i, t, width, cotangent), _row(gradients, i, t, width, cotangent)
            g, w, total = cotangent[0, t], own[0, i], zero
            for c in range(width):
                total += g[c] * x[c]
                new[c] = w * g[c]
            agreements[j, 0, i] = total
            for k in range(1, queries):
                g, w = cotangent[k, t], own[k, i]
                agreements[j, k, i] = _product(g, x)
                for c in range(width):
                    new[c] += w * g[c]
