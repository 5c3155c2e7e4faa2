"""Attention over depth with all of a token's channels in registers.

Forward, a source's channels are read once: a running maximum, the sum of exponentials and the weighted sum of channels
stay in registers while the next sources are on their way to the chip. Backward, the first look at the sources gives
their products with the cotangent, from which the softmax makes the coefficients of the second look, which finds the
sources in a cache. The gradient of a query is added up in registers over all tokens of a program.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]

from levada.ops.depth.table.triton import kernel, read, write

__all__ = ["attend", "attend_backward"]


@triton.jit
def _add_pairs(a, b, c, d):
    return a + c, b + d


@kernel
def attend(
    query, table, means, products, inverse, tokens, sources, factor,
    width: tl.constexpr, queries: tl.constexpr, padded: tl.constexpr, block: tl.constexpr,
    normal: tl.constexpr, epsilon: tl.constexpr, work: tl.constexpr, stages: tl.constexpr,
    kind: tl.constexpr, mixed: tl.constexpr,
):  # fmt: skip
    """Write means, products and `1 / rms`; all channels are in registers."""
    wide = tl.full((), width, tl.int64)
    many = tl.full((), 1, tl.int64) * sources
    rows = tl.arange(0, padded)
    columns = tl.arange(0, block)
    inside = columns < width
    here = (rows < queries)[:, None] & inside[None, :]
    q = tl.load(query + rows[:, None] * width + columns[None, :], mask=here, other=0.0).to(work)
    for token in range(tl.program_id(0), tokens, tl.num_programs(0)):
        place = token * wide + columns
        most = tl.full([padded], float("-inf"), dtype=work)
        total = tl.zeros([padded], dtype=work)
        mean = tl.zeros([padded, block], dtype=work)
        for i in tl.range(0, sources, num_stages=stages):
            x = read(table, i, place, inside, kind, mixed).to(work)[None, :]
            if padded == 1:  # one exchange between warps for both
                product, square = tl.reduce((q * x, x * x), 1, _add_pairs)
            else:
                product, square = tl.sum(q * x, 1), tl.sum(x * x, 1)
            scale = tl.rsqrt(square / width + epsilon)
            score = product * scale
            above = tl.maximum(most, score)
            kept = tl.exp(most - above)
            share = tl.exp(score - above)
            most = above
            total = total * kept + share
            weight = share * scale if normal else share
            mean = mean * kept[:, None] + weight[:, None] * x
            at = token * many + i
            tl.store(products + token * many * queries + rows * sources + i, product, mask=rows < queries)
            tl.store(inverse + at + rows, scale, mask=rows < 1)
        mean = mean * (factor / total)[:, None]
        tl.store(means + (rows[:, None].to(tl.int64) * tokens * width + place[None, :]), mean, mask=here)


@kernel
def attend_backward(
    cotangent, query, table, products, inverse, scratch, partial, tokens, sources, factor,
    width: tl.constexpr, queries: tl.constexpr, padded: tl.constexpr, block: tl.constexpr,
    span: tl.constexpr, normal: tl.constexpr, work: tl.constexpr, stages: tl.constexpr,
    kind: tl.constexpr, mixed: tl.constexpr,
):  # fmt: skip
    """Write the gradients of the sources, and each program's part of those of the queries; all channels in registers.

    The table holds the sources, then their gradients. `scratch` is `(programs, 2 queries + 1, sources)`.
    """
    wide = tl.full((), width, tl.int64)
    many = tl.full((), 1, tl.int64) * sources
    rows = tl.arange(0, padded)
    real = rows < queries
    columns = tl.arange(0, block)
    inside = columns < width
    here = real[:, None] & inside[None, :]
    spots = rows[:, None] * width + columns[None, :]
    q = tl.load(query + spots, mask=here, other=0.0).to(work)
    by_query = tl.where(here, 0.0, q)  # zero, where the threads hold q
    program = tl.program_id(0).to(tl.int64)
    order = tl.arange(0, span)
    known = real[:, None] & (order < sources)[None, :]
    own = scratch + program * (2 * queries + 1) * sources
    for token in range(tl.program_id(0), tokens, tl.num_programs(0)):
        place = token * wide + columns
        g = tl.load(
            cotangent + (rows[:, None].to(tl.int64) * tokens * width + place[None, :]), mask=here, other=0.0
        ).to(work)
        for i in tl.range(0, sources, num_stages=stages):
            x = read(table, i, place, inside, kind, mixed)
            x = x.to(work)[None, :]
            tl.store(own + rows * sources + i, tl.sum(g * x, 1), mask=real)
        tl.debug_barrier()
        # `reference.coefficients` for one token
        at = rows[:, None] * sources + order[None, :]
        agreement = tl.load(own + at, mask=known, other=0.0)
        product = tl.load(products + token * many * queries + at, mask=known, other=0.0)
        scale = tl.load(inverse + token * many + order, mask=order < sources, other=0.0)
        score = tl.where((order < sources)[None, :], product * scale[None, :], float("-inf"))
        share = tl.exp(score - tl.max(score, 1)[:, None])
        share = share / tl.sum(share, 1)[:, None]
        by_weight = factor * agreement
        by_share = by_weight * scale[None, :] if normal else by_weight
        by_score = share * (by_share - tl.sum(share * by_share, 1)[:, None])
        by_scale = tl.sum(by_score * product, 0)
        weight = factor * share
        if normal:
            weight = weight * scale[None, :]
            by_scale += tl.sum(by_weight * share, 0)
        by_square = by_scale * scale * scale * scale / -width
        tl.debug_barrier()
        tl.store(own + at, weight, mask=known)
        tl.store(own + queries * sources + at, by_score * scale[None, :], mask=known)
        tl.store(own + 2 * queries * sources + order, by_square, mask=order < sources)
        tl.debug_barrier()
        last = sources - 1  # what was read last is in the nearest cache
        ahead = read(table, last, place, inside, kind, mixed)
        for back in range(sources):
            i = last - back
            x = ahead.to(work)[None, :]
            ahead = read(table, tl.maximum(i - 1, 0), place, inside & (i > 0), kind, mixed)
            of_g = tl.load(own + rows * sources + i, mask=real, other=0.0)
            of_q = tl.load(own + (queries + rows) * sources + i, mask=real, other=0.0)
            of_x = tl.load(own + 2 * queries * sources + i)
            found = tl.sum(of_g[:, None] * g + of_q[:, None] * q, 0) + of_x * tl.sum(x, 0)
            write(table, sources + i, place, found, inside, kind, mixed)
            by_query += of_q[:, None] * x
        tl.debug_barrier()  # the next token's numbers go to the same memory
    tl.store(partial + program * queries * width + spots, by_query, mask=here)
