"""Products of streams with weights on a GPU, by tensor cores on the way past: the projection, and the way back.

Forward, `_project` reads the streams once for the projection and the sum of squares. Backward, `_by_state` writes the
streams' gradient and adds up the projection's, in one pass.

Products with streams of 16 bits are exact: the other factor is split into two parts of their type, so that in bfloat16
the error is that of 16 bits, with sums in float32; in float16, whose second part counts 2^-11, it is that of 22 bits,
and of 2^-36 where weights are so small that there are no such numbers. Float32 is multiplied as three products of TF32.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator,assignment"
from __future__ import annotations

from typing import Any, Final

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor

from levada.ops._device import as_float32, on
from levada.ops.manifold.gates.triton import small, split_in_two, split_weight

__all__ = ["BY_STATE", "PROJECT", "by_state_of", "plan_of", "plan_of_state", "project", "weights_of"]

# What a sweep may set: sizes of blocks, warps and stages of loads; `programs` is how many there should be at least.
PROJECT: Final = {"tile": 128, "bytes": 128, "rows": 256, "num_warps": 8, "num_stages": 4, "programs": 256, "parts": 16}
BY_STATE: Final = {"tile": 64, "block": 64, "rows": 128, "num_warps": 4, "stages": 3, "programs": 1056}


@triton.jit
def _split_weights(weights, parts, size, block: tl.constexpr):
    """Write each row's two parts, one below the other."""
    place = tl.program_id(1) * block + tl.arange(0, block)
    row = tl.program_id(0).to(tl.int64)
    value = tl.load(weights + row * size + place, mask=place < size, other=0.0)
    high, low = split_weight(value, parts.dtype.element_ty)
    tl.store(parts + 2 * row * size + place, high, mask=place < size)
    tl.store(parts + (2 * row + 1) * size + place, low, mask=place < size)


@triton.jit
def _waited(total, tokens):
    """Return the same sums, for which the product that made them is waited for.

    A block of streams is used twice, by a product and by itself, and Triton 3.6 keeps no memory more for it than loads
    ahead need: on an H100 the next load would overwrite what an asynchronous product still reads. A use of the sums
    inside of the loop makes it wait (triton-lang/triton, issue 6691).
    """
    return total * (tokens > 0).to(tl.float32)


@triton.jit(do_not_specialize=["tokens"])
def _project(
    state, weights, sums, tokens,
    size: tl.constexpr, count: tl.constexpr, rows: tl.constexpr, span: tl.constexpr, tile: tl.constexpr,
    block: tl.constexpr, padded: tl.constexpr, split: tl.constexpr, even: tl.constexpr, centred: tl.constexpr,
):  # fmt: skip
    """Write each span's part of the projected features, and behind them its part of the sum of squares.

    Where they are centred they are squares of what is over the mean of the first channels, as those of numbers far from
    zero would cancel in the variance; and behind them are the sum of the same and that mean.
    """
    groups: tl.constexpr = (rows + padded - 1) // padded
    group = tl.program_id(0) % groups
    part = tl.program_id(1)
    token = (tl.program_id(0) // groups).to(tl.int64) * tile + tl.arange(0, tile)
    near = tl.minimum(token, tokens - 1)  # what is over is read, and not written
    row = group * padded + tl.arange(0, padded)
    total = tl.zeros([tile, padded], dtype=tl.float32)
    squares = tl.zeros([tile, block], dtype=tl.float32)
    if centred:
        first = tl.arange(0, block)[None, :]
        x = tl.load(state + near[:, None] * size + first, mask=first < size, other=0.0)
        anchor = tl.sum(x.to(tl.float32), 1) / min(block, size)
        over = tl.zeros([tile, block], dtype=tl.float32)
    for start in range(0, span, block):
        column = part * span + start + tl.arange(0, block)
        if even:
            x = tl.load(state + near[:, None] * size + column[None, :])
            weight = tl.load(weights + row[:, None] * size + column[None, :], mask=(row < rows)[:, None], other=0.0)
        else:
            here = (column < size)[None, :]
            x = tl.load(state + near[:, None] * size + column[None, :], mask=here, other=0.0)
            here = (row < rows)[:, None] & here
            weight = tl.load(weights + row[:, None] * size + column[None, :], mask=here, other=0.0)
        total = _waited(total, tokens)
        total = tl.dot(x, tl.trans(weight), total, input_precision="tf32x3")
        full = x.to(tl.float32)
        if centred:
            full = tl.where((column < size)[None, :], full - anchor[:, None], 0.0)
            over += full
        squares += full * full
    place = (part * tokens.to(tl.int64) + token) * (count + (3 if centred else 1))
    if split:
        total *= tl.where(row % 2 == 0, 1.0, small(weights.dtype.element_ty))[None, :]
        total = tl.sum(tl.reshape(total, (tile, padded // 2, 2)), 2)
        feature = group * (padded // 2) + tl.arange(0, padded // 2)
    else:
        feature = row
    real = (token < tokens)[:, None] & (feature < count)[None, :]
    tl.store(sums + place[:, None] + feature[None, :], total, mask=real)
    if group == 0:
        tl.store(sums + place + count, tl.sum(squares, 1), mask=token < tokens)
        if centred:
            tl.store(sums + place + count + 1, tl.sum(over, 1), mask=token < tokens)
            tl.store(sums + place + count + 2, anchor, mask=token < tokens)


@triton.jit
def _load_by_logits(by_logits, token, real, row, count: tl.constexpr, split: tl.constexpr):
    """Return what `_store_by_logits` stored, in two parts."""
    mask = real[:, None] & (row < count)[None, :]
    if split:
        place = 2 * token[:, None] * count + row[None, :]
        high = tl.load(by_logits + place, mask=mask, other=0.0)
        low = tl.load(by_logits + place + count, mask=mask, other=0.0)
    else:
        high = tl.load(by_logits + token[:, None] * count + row[None, :], mask=mask, other=0.0)
        low = high
    return high, low


@triton.jit
def _load_weights(weights, row, place, mask, size: tl.constexpr, kind: tl.constexpr, split: tl.constexpr):
    value = tl.load(weights + row[:, None] * size + place[None, :], mask=mask, other=0.0)
    high, low = value, value
    if split:
        high, low = split_in_two(value, kind)
    return high, low


@triton.jit
def _times(high, low, weight, rest, total, split: tl.constexpr):
    """Return total + (high + low) (weight + rest), less the product of the small parts."""
    if split:
        total = tl.dot(low, weight, total)
        total = tl.dot(high, rest, total)
        total = tl.dot(high, weight, total)
    else:
        total = tl.dot(high, weight, total, input_precision="tf32x3")
    return total


@triton.jit(do_not_specialize=["tokens"])
def _by_state(
    by_x, by_new, state, by_logits, factors, weights, by_state, by_weights, tokens,
    span: tl.constexpr, width: tl.constexpr, n: tl.constexpr, count: tl.constexpr, tile: tl.constexpr,
    block: tl.constexpr, padded: tl.constexpr, stages: tl.constexpr, adds: tl.constexpr, split: tl.constexpr,
    each: tl.constexpr,
):  # fmt: skip
    """Write the streams' gradient for a block of channels of one stream, and sums for the weights over its tokens.

    What the branch read has one gradient for `each` tokens in a row.
    """
    groups: tl.constexpr = (count + padded - 1) // padded
    kind: tl.constexpr = state.dtype.element_ty
    j = tl.program_id(0) % n  # side by side, as they all read the same gradient of what the branch read
    column = (tl.program_id(0) // n) * block + tl.arange(0, block)
    inside = (column < width)[None, :]
    group = tl.program_id(2)
    part = tl.num_programs(1) - 1 - tl.program_id(1)  # what `_by_reads` read last may still be in the cache
    row = group * padded + tl.arange(0, padded)
    total = tl.zeros([block, padded], dtype=tl.float32)
    if groups == 1:
        mask = (row < count)[:, None] & inside
        weight, rest = _load_weights(weights, row, j * width + column, mask, n * width, kind, split)
    for start in tl.range(0, span, tile, num_stages=stages):
        token = (part * span + start + tl.arange(0, tile)).to(tl.int64)
        real = token < tokens
        here = real[:, None] & inside
        place = (token * n + j)[:, None] * width + column[None, :]
        x = tl.load(state + place, mask=here, other=0.0)
        high, low = _load_by_logits(by_logits, token, real, row, count, split)
        if groups == 1 or group == 0:
            value = tl.zeros([tile, block], dtype=tl.float32)
            if groups == 1:
                value = _times(high, low, weight, rest, value, split)
            else:
                for q in tl.static_range(groups):
                    some = q * padded + tl.arange(0, padded)
                    mask = (some < count)[:, None] & inside
                    weight, rest = _load_weights(weights, some, j * width + column, mask, n * width, kind, split)
                    d, e = _load_by_logits(by_logits, token, real, some, count, split)
                    value = _times(d, e, weight, rest, value, split)
            whose = token if each == 1 else token // each
            g = tl.load(by_x + whose[:, None] * width + column[None, :], mask=here, other=0.0).to(tl.float32)
            reads = tl.load(factors + token * (n + 1) + j, mask=real, other=0.0)
            shrink = tl.load(factors + token * (n + 1) + n, mask=real, other=0.0)
            value += reads[:, None] * g - shrink[:, None] * x.to(tl.float32)
            if adds:
                value += tl.load(by_new + place, mask=here, other=0.0).to(tl.float32)
            tl.store(by_state + place, value, mask=here)
        if split:
            total = tl.dot(tl.trans(x), low, total)
            total = _waited(tl.dot(tl.trans(x), high, total), tokens)
        else:
            total = tl.dot(tl.trans(x.to(tl.float32)), high, total, input_precision="tf32x3")
    place = (part.to(tl.int64) * count + row)[None, :] * (n * width) + (j * width + column)[:, None]
    tl.store(by_weights + place, total, mask=(column < width)[:, None] & (row < count)[None, :])


def project(state: Tensor, projection: Tensor, *, centred: bool = False) -> Tensor:
    """Return parts of the projected features, and of the sum of squares behind them, `(parts, tokens, count + 1)`.

    Args:
        state: the streams, contiguous.
        projection: `(count, n dim)`.
        centred: take squares, and behind them sums, over the mean of the first channels, which comes last: two more.
    """
    tokens, count = len(state), len(projection)
    size = state.shape[1] * state.shape[2]
    weights = weights_of(projection, state.dtype)
    plan = plan_of(tokens, size, len(weights), state.dtype)
    if centred:  # one sum more for each element of a block
        plan["num_warps"] = PROJECT["num_warps"]
    size_of = count + (3 if centred else 1)
    sums = torch.empty(plan.pop("parts"), tokens, size_of, dtype=torch.float32, device=state.device)
    if state.numel():
        with on(state.device):
            _project[(plan.pop("programs"), len(sums))](
                state, weights, sums, tokens, size=size, count=count, rows=len(weights), split=len(weights) > count,
                centred=centred, **plan,
            )  # fmt: skip
    return sums


def weights_of(projection: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the projection as factors of streams: for those of 16 bits two rows for each, which add up to it."""
    weights = as_float32(projection)
    if dtype == torch.float32:
        return weights
    count, size = weights.shape
    parts = torch.empty(2 * count, size, dtype=dtype, device=weights.device)
    with on(weights.device):
        _split_weights[(count, triton.cdiv(size, 1024))](weights, parts, size, block=1024)
    return parts


def by_state_of(
    by_x: Tensor, by_new: Tensor | None, state: Tensor, by_logits: Tensor, factors: Tensor, weights: Tensor,
    *, each: int = 1,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the gradients by the streams and by the weights that they are multiplied by.

    Args:
        by_x: gradient by what the branch read, contiguous; one for `each` tokens in a row.
        by_new: gradient by the streams from elsewhere, or None.
        state: the streams, contiguous.
        by_logits: gradient by the products: rows in float32, or two for each in the streams' type.
        factors: of a token, each stream's weight in what was read, and what its streams shrink by.
        weights: in float32.
        each: see `by_x`.
    """
    tokens, n, width = state.shape
    count, by_state = len(weights), torch.empty_like(state)
    plan = plan_of_state(tokens, n, width, count, state.dtype)
    by_weights = torch.empty(plan.pop("parts"), count, n * width, dtype=torch.float32, device=state.device)
    with on(state.device):
        _by_state[(plan.pop("blocks"), len(by_weights), triton.cdiv(count, plan["padded"]))](
            by_x, by_x if by_new is None else by_new.contiguous(), state, by_logits, factors, weights, by_state,
            by_weights, tokens, width=width, n=n, count=count, adds=by_new is not None,
            split=by_logits.shape[1] > count, each=each, **plan,
        )  # fmt: skip
    return by_state, by_weights.sum(0)


def plan_of(tokens: int, size: int, rows: int, dtype: torch.dtype) -> dict[str, Any]:
    """Return how `_project` divides its work: `parts` spans of channels, tiles of tokens, groups of rows."""
    padded = padded_of(rows, PROJECT["rows"] * 2 // dtype.itemsize)
    tile = min(PROJECT["tile"], max(16, triton.next_power_of_2(tokens)))
    block = min(PROJECT["bytes"] // dtype.itemsize, max(16, triton.next_power_of_2(size)))
    programs = triton.cdiv(tokens, tile) * triton.cdiv(rows, padded)
    wanted = PROJECT["programs"] if padded <= 64 else PROJECT["programs"] // 2  # as many as fit side by side
    parts = 1
    while parts < PROJECT["parts"] and parts * programs < wanted and size >= 8 * block * parts:
        parts *= 2
    span = triton.cdiv(triton.cdiv(size, parts), block) * block
    parts = triton.cdiv(size, span)
    return {
        "parts": parts,
        "programs": programs,
        "span": span,
        "tile": tile,
        "block": block,
        "padded": padded,
        "even": span * parts == size,
        "num_warps": PROJECT["num_warps"] if tile * padded >= 2**12 else 4,
        "num_stages": PROJECT["num_stages"],
    }


def plan_of_state(tokens: int, n: int, width: int, count: int, dtype: torch.dtype) -> dict[str, Any]:
    """Return how `_by_state` divides its work: blocks of channels, parts of tokens, `span` tokens each."""
    tile, block = BY_STATE["tile"], min(BY_STATE["block"], max(16, triton.next_power_of_2(width)))
    narrow = dtype == torch.bfloat16
    # The sums of many rows leave few registers: more warps share them, or fewer rows are taken at once.
    many = count > (64 if narrow else 16)
    rows = BY_STATE["rows"] if narrow and count <= BY_STATE["rows"] else BY_STATE["rows"] // 2
    padded = padded_of(count, rows)
    blocks = n * triton.cdiv(width, block)
    tiles = triton.cdiv(tokens, tile)
    each = tiles // min(tiles, triton.cdiv(BY_STATE["programs"], blocks * triton.cdiv(count, padded)))
    span = tile * triton.next_power_of_2(each + 1) // 2  # few spans, as each is compiled
    return {
        "blocks": blocks,
        "parts": triton.cdiv(tokens, span),
        "span": span,
        "tile": tile,
        "block": block,
        "padded": padded,
        "stages": 2 if padded > 32 else BY_STATE["stages"],
        "num_warps": 8 if many else BY_STATE["num_warps"],
    }


def padded_of(rows: int, most: int) -> int:
    """Return how many rows of weights a program takes."""
    return int(min(most, max(16, triton.next_power_of_2(rows))))
