"""The weights of tokens on a GPU: a token's Sinkhorn iterations are in registers, forward and again on the way back.

A program takes so many tokens that each of its threads has one entry of their matrices. The factors of all steps are
kept in registers, too: two numbers a step and thread.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator,assignment"
from __future__ import annotations

from typing import Any, Final

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]

from levada.ops.manifold.reference import Form
from levada.ops.sinkhorn.triton import normalise, normalise_backward
from levada.ops.sinkhorn.triton import options_of as sinkhorn_options

__all__ = [
    "GATES",
    "add_parts",
    "gates",
    "gates_backward",
    "options_of",
    "small",
    "split_in_two",
    "split_weight",
    "store_by_logits",
]

# What a sweep may set: entries of the tokens' matrices that a program takes, and its warps.
GATES: Final = {"elements": 128, "num_warps": 4}


@triton.jit
def split_in_two(x, kind: tl.constexpr):
    """Return two parts of a type with fewer bits: their sum is x up to the rounding of the second."""
    high = x.to(kind)
    return high, (x - high.to(tl.float32)).to(kind)


@triton.jit
def small(kind: tl.constexpr):
    """Return what the second part of a weight is in units of: float16 has no numbers for it as it is."""
    return 2.0**-11 if kind == tl.float16 else 1.0


@triton.jit
def split_weight(x, kind: tl.constexpr):
    """Return two parts of a type with fewer bits, of which the second counts `small`."""
    high = x.to(kind)
    return high, ((x - high.to(tl.float32)) / small(kind)).to(kind)


@triton.jit
def add_parts(sums, place, mask, stride, parts: tl.constexpr):
    """Return the sum of what spans of channels left."""
    total = tl.load(sums + place, mask=mask, other=0.0)
    for part in tl.static_range(1, parts):
        total += tl.load(sums + part * stride + place, mask=mask, other=0.0)
    return total


@triton.jit
def _sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def _places(tokens, n: tl.constexpr, padded: tl.constexpr, together: tl.constexpr, transposed: tl.constexpr):
    """Return a program's tokens, its streams, masks of vectors and matrices, and where a matrix and its logits are."""
    token = tl.program_id(0).to(tl.int64) * together + tl.arange(0, together)
    stream = tl.arange(0, padded)
    vectors = (token < tokens)[:, None] & (stream < n)[None, :]
    i, j = stream[None, :, None], stream[None, None, :]
    matrices = (token < tokens)[:, None, None] & (i < n) & (j < n)
    feature = 2 * n + (j * n + i if transposed else i * n + j)
    return token, stream, vectors, matrices, i * n + j, feature


@triton.jit(do_not_specialize=["tokens", "size"])
def gates(
    sums, scale, bias, reads, writes, mix, features, inverse, tokens, size,
    parts: tl.constexpr, n: tl.constexpr, padded: tl.constexpr, count: tl.constexpr,
    together: tl.constexpr, mixes: tl.constexpr, iterations: tl.constexpr, epsilon: tl.constexpr,
    read_epsilon: tl.constexpr, write_epsilon: tl.constexpr, norm_epsilon: tl.constexpr, transposed: tl.constexpr,
    work: tl.constexpr,
):  # fmt: skip
    """Make the weights of tokens of what was projected; keep the features, divided, and one over the norms."""
    token, stream, vectors, matrices, entry, feature = _places(tokens, n, padded, together, transposed)
    stride = tokens.to(tl.int64) * (count + 1)
    start = token * (count + 1)
    squares = add_parts(sums, start + count, token < tokens, stride, parts)
    one_over = 1 / tl.sqrt(squares / size + norm_epsilon)
    tl.store(inverse + token, one_over, mask=token < tokens)
    first, row = stream[None, :], token[:, None] * n + stream[None, :]
    found = add_parts(sums, start[:, None] + first, vectors, stride, parts) * one_over[:, None]
    tl.store(features + token[:, None] * count + first, found, mask=vectors)
    logit = found * tl.load(scale) + tl.load(bias + first, mask=first < n, other=0.0)
    tl.store(reads + row, _sigmoid(logit) + read_epsilon, mask=vectors)
    found = add_parts(sums, start[:, None] + n + first, vectors, stride, parts) * one_over[:, None]
    tl.store(features + token[:, None] * count + n + first, found, mask=vectors)
    logit = found * tl.load(scale + 1) + tl.load(bias + n + first, mask=first < n, other=0.0)
    tl.store(writes + row, 2 * _sigmoid(logit) + write_epsilon, mask=vectors)
    if mixes:
        found = add_parts(sums, start[:, None, None] + feature, matrices, stride, parts) * one_over[:, None, None]
        tl.store(features + token[:, None, None] * count + feature, found, mask=matrices)
        logit = found * tl.load(scale + 2) + tl.load(bias + feature, mask=matrices, other=0.0)
        real = tl.broadcast_to((stream < n)[None, :], (together, padded))
        inside = real[:, :, None] & real[:, None, :]
        _, kernel, rows, columns = normalise(logit, inside, real, real, iterations, epsilon, work)
        found = kernel * rows[iterations][:, :, None] * columns[iterations - 1][:, None, :]
        tl.store(mix + token[:, None, None] * n * n + entry, found, mask=matrices)


@triton.jit
def store_by_logits(by_logits, token, feature, value, mask, count: tl.constexpr, split: tl.constexpr):
    """Store tokens' or streams' gradients; in types with fewer bits, one's first parts and then the second."""
    if split:
        high, low = split_in_two(value, by_logits.dtype.element_ty)
        tl.store(by_logits + 2 * token * count + feature, high, mask=mask)
        tl.store(by_logits + (2 * token + 1) * count + feature, low, mask=mask)
    else:
        tl.store(by_logits + token * count + feature, value, mask=mask)


@triton.jit(do_not_specialize=["tokens", "size"])
def gates_backward(
    by_reads, by_writes, by_mix, features, inverse, scale, bias, by_logits, factors, by_scale, by_bias, tokens, size,
    n: tl.constexpr, padded: tl.constexpr, count: tl.constexpr, together: tl.constexpr,
    split: tl.constexpr, mixes: tl.constexpr, iterations: tl.constexpr, epsilon: tl.constexpr,
    read_epsilon: tl.constexpr, transposed: tl.constexpr, work: tl.constexpr,
):  # fmt: skip
    """Write tokens' gradients by what was projected, what streams are multiplied by, and sums for scale and bias."""
    token, stream, vectors, matrices, entry, feature = _places(tokens, n, padded, together, transposed)
    first, row = stream[None, :], token[:, None] * n + stream[None, :]
    program = tl.program_id(0).to(tl.int64)
    kinds: tl.constexpr = 3 if mixes else 2
    one_over = tl.load(inverse + token, mask=token < tokens, other=0.0)
    factor = tl.load(scale)
    place = token[:, None] * count + first
    found = tl.load(features + place, mask=vectors, other=0.0)
    sigma = _sigmoid(found * factor + tl.load(bias + first, mask=first < n, other=0.0))
    tl.store(factors + token[:, None] * (n + 1) + first, sigma + read_epsilon, mask=vectors)
    g = tl.load(by_reads + row, mask=vectors, other=0.0) * sigma * (1 - sigma)
    store_by_logits(by_logits, token[:, None], first, g * factor * one_over[:, None], vectors, count, split)
    tl.store(by_bias + program * count + stream, tl.sum(g, 0), mask=stream < n)
    tl.store(by_scale + program * kinds, tl.sum(g * found))
    along = tl.sum(g * found, 1) * factor
    factor = tl.load(scale + 1)
    place += n
    found = tl.load(features + place, mask=vectors, other=0.0)
    sigma = _sigmoid(found * factor + tl.load(bias + n + first, mask=first < n, other=0.0))
    g = 2 * tl.load(by_writes + row, mask=vectors, other=0.0) * sigma * (1 - sigma)
    store_by_logits(by_logits, token[:, None], n + first, g * factor * one_over[:, None], vectors, count, split)
    tl.store(by_bias + program * count + n + stream, tl.sum(g, 0), mask=stream < n)
    tl.store(by_scale + program * kinds + 1, tl.sum(g * found))
    along += tl.sum(g * found, 1) * factor
    if mixes:
        factor = tl.load(scale + 2)
        place = token[:, None, None] * count + feature
        found = tl.load(features + place, mask=matrices, other=0.0)
        logit = found * factor + tl.load(bias + feature, mask=matrices, other=0.0)
        real = tl.broadcast_to((stream < n)[None, :], (together, padded))
        inside = real[:, :, None] & real[:, None, :]
        softmax, kernel, rows, columns = normalise(logit, inside, real, real, iterations, epsilon, work)
        g = tl.load(by_mix + token[:, None, None] * n * n + entry, mask=matrices, other=0.0)
        g = normalise_backward(g, softmax, kernel, rows, columns, iterations, epsilon).to(tl.float32)
        value = g * factor * one_over[:, None, None]
        store_by_logits(by_logits, token[:, None, None], feature, value, matrices, count, split)
        sums = tl.sum(g, 0)[None, :, :]
        tl.store(by_bias + program * count + feature, sums, mask=(first < n)[:, :, None] & (first < n)[:, None, :])
        tl.store(by_scale + program * kinds + 2, tl.sum(g * found))
        along += tl.sum(tl.sum(g * found, 2), 1) * factor
    shrink = along * one_over * one_over / size
    tl.store(factors + token * (n + 1) + n, shrink, mask=token < tokens)


def options_of(n: int, count: int, form: Form) -> dict[str, Any]:
    """Return the constants and options that both kernels have in common."""
    return {
        "count": count,
        "mixes": form.mixes,
        "read_epsilon": form.read_epsilon,
        "transposed": form.transposed,
        **sinkhorn_options(n, form.iterations, form.epsilon, torch.float32, GATES),
    }
