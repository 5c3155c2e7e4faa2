"""Writing to streams on a GPU, and projecting what was written while it is there, for the weights of the next layer.

The next layer then reads the streams once, for its branch: with the kernels that write and read, a layer moves
`(3 n + 2) dim` elements a token in all, the least that two kernels can.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator,assignment"
from __future__ import annotations

import contextlib
from typing import Any, Final

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor

from levada.ops.manifold.ahead import reference
from levada.ops.manifold.gates.triton import small
from levada.ops.manifold.products.triton import project, weights_of
from levada.ops.manifold.reference import Form
from levada.ops.manifold.triton import read_backward, read_projected, takes
from levada.ops.streams.triton import write, write_backward

__all__ = ["write_and_project", "write_and_read", "write_and_read_backward"]

# What a sweep may set: sizes of blocks, warps, stages of loads, and how many programs there should be at least.
AHEAD: Final = {"tile": 64, "bytes": 128, "num_warps": 8, "stages": 3, "programs": 132, "parts": 16}
_MOST_STREAMS = 4  # of more, a block's channels and coefficients are more than the registers hold


@triton.jit(do_not_specialize=["tokens"])
def _write_and_project(
    state, out, weights, mix, factors, new, sums, tokens,
    width: tl.constexpr, n: tl.constexpr, count: tl.constexpr, rows: tl.constexpr, span: tl.constexpr,
    tile: tl.constexpr, block: tl.constexpr, padded: tl.constexpr, stages: tl.constexpr, mixes: tl.constexpr,
    split: tl.constexpr,
):  # fmt: skip
    """Write a span of channels of all new streams of some tokens, and its part of their features and squares."""
    part = tl.program_id(1)
    token = tl.program_id(0).to(tl.int64) * tile + tl.arange(0, tile)
    real = token < tokens
    row = tl.arange(0, padded)
    coefficients = ()  # in registers from here on
    for i in tl.static_range(n):
        coefficients = coefficients + (tl.load(weights + token * n + i, mask=real, other=0.0),)  # noqa: RUF005
        if mixes:
            for j in tl.static_range(n):
                weight = tl.load(mix + (token * n + i) * n + j, mask=real, other=0.0)
                coefficients = coefficients + (weight,)  # noqa: RUF005
    each: tl.constexpr = n + 1 if mixes else 1
    total = tl.zeros([padded, tile], dtype=tl.float32)
    squares = tl.zeros([tile, block], dtype=tl.float32)
    for start in tl.range(0, span, block, num_stages=stages):
        column = part * span + start + tl.arange(0, block)
        inside = (column < width)[None, :]
        here = real[:, None] & inside
        value = tl.load(out + token[:, None] * width + column[None, :], mask=here, other=0.0).to(tl.float32)
        streams = ()
        for j in tl.static_range(n):
            place = (token * n + j)[:, None] * width + column[None, :]
            streams = streams + (tl.load(state + place, mask=here, other=0.0),)  # noqa: RUF005
        for i in tl.static_range(n):
            written = coefficients[i * each][:, None] * value
            if mixes:
                for j in tl.static_range(n):
                    written += coefficients[i * each + 1 + j][:, None] * streams[j].to(tl.float32)
            else:
                written += streams[i].to(tl.float32)
            rounded = written.to(new.dtype.element_ty)
            tl.store(new + (token * n + i)[:, None] * width + column[None, :], rounded, mask=here)
            full = rounded.to(tl.float32)
            squares += full * full
            known = (row < rows)[:, None] & inside
            factor = tl.load(
                factors + row[:, None] * (n * width) + (i * width + column)[None, :], mask=known, other=0.0
            )
            # Streams are the right factor, which tensor cores take from shared memory: as the left one they would be
            # computed in registers as these want them, of which there are not enough.
            total = tl.dot(factor, tl.trans(rounded), total, input_precision="tf32x3")
    place = (part * tokens.to(tl.int64) + token) * (count + 1)
    if split:
        total *= tl.where(row % 2 == 0, 1.0, small(factors.dtype.element_ty))[:, None]
        total = tl.sum(tl.reshape(total, (padded // 2, 2, tile)), 1)
        feature = tl.arange(0, padded // 2)
    else:
        feature = row
    tl.store(sums + place[None, :] + feature[:, None], total, mask=real[None, :] & (feature < count)[:, None])
    tl.store(sums + place + count, tl.sum(squares, 1), mask=real)


def write_and_project(
    state: Tensor, out: Tensor, weights: Tensor, mix: Tensor | None, projection: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the new streams, and of them what `levada.ops.manifold.products.triton.project` returns.

    Args:
        state: the streams, of 16 or 32 bits; more than 4 are projected by a kernel of its own, which reads them again.
        out: what the branch returned, of 16 or 32 bits.
        weights: of the output in each stream, in float32.
        mix: the matrices that mix the streams, in float32, or None.
        projection: the next layer's.
    """
    tokens, n, width = state.shape
    count = len(projection)
    if n > _MOST_STREAMS:
        new = write(state, out, weights, mix)
        return new, project(new, projection)
    factors = weights_of(projection, state.dtype)
    plan = plan_of(tokens, width, len(factors), state.dtype)
    new = torch.empty_like(state, memory_format=torch.contiguous_format)
    sums = torch.empty(plan.pop("parts"), tokens, count + 1, dtype=torch.float32, device=state.device)
    if state.numel():
        given = [x.contiguous() for x in (state, out, weights, weights if mix is None else mix)]
        with torch.cuda.device(state.device) if state.is_cuda else contextlib.nullcontext():
            _write_and_project[(triton.cdiv(tokens, plan["tile"]), len(sums))](
                *given, factors, new, sums, tokens, width=width, n=n, count=count, rows=len(factors),
                mixes=mix is not None, split=len(factors) > count, **plan,
            )  # fmt: skip
    return new, sums


def write_and_read(
    state: Tensor, out: Tensor, weights: Tensor, mix: Tensor | None,
    projection: Tensor, scale: Tensor, bias: Tensor, *options: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Return the new streams, and of them what the next branch reads, the next weights, features and norms."""
    form = Form(*options)
    if not takes(state, form):
        return reference.write_and_read(state, out, weights, mix, projection, scale, bias, *options)
    new, sums = write_and_project(state, out, weights, mix, projection)
    return new, *read_projected(new, sums, scale, bias, form)


def write_and_read_backward(*arguments: Any) -> tuple[Tensor, ...]:
    """Return the gradients; see the reference.

    By two kernels in a row: the gradient by the new streams is whole only when all of a token's channels are read.
    """
    by_new, by_x, by_reads, by_writes, by_mix, *written = arguments[:9]
    by_written, *by_parameters = read_backward(by_x, by_reads, by_writes, by_mix, by_new, *arguments[9:])
    by_state, *others = write_backward(by_written, *written)
    return by_written if written[3] is None else by_state, *others, *by_parameters


def plan_of(tokens: int, width: int, rows: int, dtype: torch.dtype) -> dict[str, Any]:
    """Return how the work is divided: `parts` spans of channels, tiles of tokens."""
    block = min(AHEAD["bytes"] // dtype.itemsize, max(16, triton.next_power_of_2(width)))
    tile = min(AHEAD["tile"], max(16, triton.next_power_of_2(tokens)))
    parts, tiles = 1, triton.cdiv(tokens, tile)
    while parts < AHEAD["parts"] and parts * tiles < AHEAD["programs"] and width >= 4 * block * parts:
        parts *= 2
    span = triton.cdiv(triton.cdiv(width, parts), block) * block
    return {
        "parts": triton.cdiv(width, span),
        "span": span,
        "tile": tile,
        "block": block,
        "padded": max(16, triton.next_power_of_2(rows)),
        "stages": AHEAD["stages"],
        "num_warps": AHEAD["num_warps"],
    }
