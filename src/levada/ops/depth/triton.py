"""Attention over depth and weighted sums on a GPU: a program takes a token, and reads each source where it lies.

Sources are not copied next to each other: a table on the device holds their addresses. Where registers hold all
channels of a source, attention is one kernel each way (`whole`); where a source is too wide, each look at the sources
is a kernel of its own, a block of channels at a time. The gradient of a query is added up in registers over all tokens
of a program, and then over programs, always in one order: results repeat bit by bit.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Final

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor

from levada.ops._define import empty_like
from levada.ops._device import on, past_limit
from levada.ops.depth import reference
from levada.ops.depth.table.triton import kernel, read, ready, table_of, write
from levada.ops.depth.whole import triton as whole_sources

__all__ = ["BACKWARD", "BLOCKS", "FORWARD", "attend", "attend_backward", "mix", "mix_backward", "shape_of"]
__all__ += ["takes"]

# What a sweep may set: channels of a thread, loads ahead, channels of all programs of a multiprocessor, and how many
# tokens a program has at least. A program holds all channels of all queries up to `whole`, else a `block` at a time.
FORWARD: Final = {"whole": 16384, "elements": 16, "stages": 3, "together": 32768, "tokens": 1}
BACKWARD: Final = {"whole": 8192, "elements": 16, "stages": 3, "together": 16384, "tokens": 2}
BLOCKS: Final = {"block": 2048, "elements": 16, "stages": 3, "together": 16384, "tokens": 4}
_AHEAD = 3 * 2**14  # bytes of loads ahead: what a program may have of the memory of any multiprocessor
_WARPS = 16  # at most
_WORK = {torch.float32: tl.float32, torch.float64: tl.float64}
_KINDS = {
    torch.float32: tl.float32,
    torch.float64: tl.float64,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}


@kernel
def _products(
    left, table, found, inverse, tokens, sources,
    width: tl.constexpr, queries: tl.constexpr, padded: tl.constexpr, block: tl.constexpr,
    epsilon: tl.constexpr, norms: tl.constexpr, work: tl.constexpr, stages: tl.constexpr,
    kind: tl.constexpr, mixed: tl.constexpr,
):  # fmt: skip
    """Write the products of sources with queries, and `1 / rms` if asked for `norms`; without it with cotangents."""
    token = tl.program_id(0).to(tl.int64)
    rows = tl.arange(0, padded)
    real = rows < queries
    starts = left + rows[:, None] * width
    if not norms:
        starts = left + (rows[:, None].to(tl.int64) * tokens + token) * width
    into = found + token * queries * sources + rows * sources
    columns = tl.arange(0, block)
    if block >= width:
        inside = columns < width
        row = tl.load(starts + columns[None, :], mask=real[:, None] & inside[None, :], other=0.0).to(work)
        for i in tl.range(0, sources, num_stages=stages):
            x = read(table, i, token * width + columns, inside, kind, mixed).to(work)
            tl.store(into + i, tl.sum(row * x[None, :], 1), mask=real)
            if norms:
                tl.store(inverse + token * sources + i, tl.rsqrt(tl.sum(x * x, 0) / width + epsilon))
    else:
        for i in range(sources):
            product = tl.zeros([padded, block], dtype=work)
            square = tl.zeros([block], dtype=work)
            for start in tl.range(0, width, block, num_stages=stages):
                inside = start + columns < width
                x = read(table, i, token * width + start + columns, inside, kind, mixed).to(work)
                here = real[:, None] & inside[None, :]
                product += tl.load(starts + start + columns[None, :], mask=here, other=0.0).to(work) * x[None, :]
                if norms:
                    square += x * x
            tl.store(into + i, tl.sum(product, 1), mask=real)
            if norms:
                tl.store(inverse + token * sources + i, tl.rsqrt(tl.sum(square, 0) / width + epsilon))


@kernel
def _mix(
    weights, table, sums, token_stride, tokens, sources,
    width: tl.constexpr, queries: tl.constexpr, padded: tl.constexpr, block: tl.constexpr,
    work: tl.constexpr, stages: tl.constexpr,
    kind: tl.constexpr, mixed: tl.constexpr,
):  # fmt: skip
    """Write the weighted sums of a block of channels."""
    token = tl.program_id(0).to(tl.int64)
    rows = tl.arange(0, padded)[:, None]
    columns = (tl.program_id(1) * block + tl.arange(0, block))[None, :]
    real, inside = rows < queries, columns < width
    place = token * width + columns
    own = weights + token * token_stride + rows * sources
    total = tl.zeros([padded, block], dtype=work)
    for i in tl.range(0, sources, num_stages=stages):
        x = read(table, i, place, inside, kind, mixed).to(work)
        total += tl.load(own + i, mask=real, other=0.0).to(work) * x
    tl.store(sums + (rows.to(tl.int64) * tokens * width + place), total, mask=real & inside)


@kernel
def _spread(
    cotangent, query, table, weights, by_products, by_squares, partial, token_stride, tokens, sources,
    width: tl.constexpr, queries: tl.constexpr, padded: tl.constexpr, block: tl.constexpr,
    attends: tl.constexpr, work: tl.constexpr, stages: tl.constexpr,
    kind: tl.constexpr, mixed: tl.constexpr,
):  # fmt: skip
    """Write the gradients of the sources in a block of channels; of the queries too if it `attends`.

    The table holds the gradients, then the sources.
    """
    wide = tl.full((), width, tl.int64)
    many = tl.full((), 1, tl.int64) * sources
    rows = tl.arange(0, padded)
    real = rows < queries
    columns = tl.program_id(1) * block + tl.arange(0, block)
    inside = columns < width
    here = real[:, None] & inside[None, :]
    spots = rows[:, None] * width + columns[None, :]
    stride = tl.full((), 1, tl.int64) * token_stride
    if attends:
        q = tl.load(query + spots, mask=here, other=0.0).to(work)
        by_query = tl.where(here, 0.0, q)  # zero, where the threads hold q
    for token in range(tl.program_id(0), tokens, tl.num_programs(0)):
        place = token * wide + columns
        g = tl.load(
            cotangent + (rows[:, None].to(tl.int64) * tokens * width + place[None, :]), mask=here, other=0.0
        ).to(work)
        for i in tl.range(0, sources, num_stages=stages if attends else 1):
            of_g = tl.load(weights + token * stride + rows * sources + i, mask=real, other=0.0).to(work)
            found = tl.sum(of_g[:, None] * g, 0)
            if attends:
                x = read(table, sources + i, place, inside, kind, mixed).to(work)
                of_q = tl.load(by_products + token * many * queries + rows * sources + i, mask=real, other=0.0)
                found += tl.sum(of_q[:, None] * q, 0) + tl.load(by_squares + token * many + i) * x
                by_query += of_q[:, None] * x[None, :]
            write(table, i, place, found, inside, kind, mixed)
    if attends:
        tl.store(partial + tl.program_id(0).to(tl.int64) * queries * width + spots, by_query, mask=here)


def attend(
    query: Tensor, sources: Sequence[Tensor], epsilon: float, factor: float, normal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the means, products and `1 / rms`, contiguous."""
    if not takes(query, sources):
        return reference.attend(query, sources, epsilon, factor, normal)
    *leading, width = sources[0].shape
    queries, count = query.numel() // width, len(sources)
    products, inverse = query.new_empty(*leading, queries, count), query.new_empty(*leading, count)
    means = sources[0].new_empty(*query.shape[:-1], *leading, width, dtype=reference.type_of(sources))
    if not means.numel():
        return means, products, inverse
    sources, query, tokens = ready(sources), query.contiguous(), inverse.numel() // count
    with on(query.device):
        table = table_of(sources)
        if _is_whole(FORWARD, queries, width):
            options = _options(FORWARD, queries, sources, query.dtype)
            args: tuple[Any, ...] = query, table, means, products, inverse, tokens, count, factor
            programs = _programs(FORWARD, tokens, options, query.device)
            whole_sources.attend[(programs,)](*args, normal=normal, epsilon=epsilon, **options)
        else:
            args = query, table, products, inverse, tokens, count
            options = _options(BLOCKS, queries, sources, query.dtype)
            _products[(tokens,)](*args, epsilon=epsilon, norms=True, **options)
            weights = reference.weights_of(products, inverse, factor, normal)
            _run_mix(weights, sources, table, means, queries * count, tokens)
    return means, products, inverse


def attend_backward(
    cotangent: Tensor,
    query: Tensor,
    sources: Sequence[Tensor],
    products: Tensor,
    inverse: Tensor,
    factor: float,
    normal: bool,
) -> tuple[Tensor, list[Tensor]]:
    """Return the gradients, contiguous."""
    if not takes(query, sources):
        return reference.attend_backward(cotangent, query, sources, products, inverse, factor, normal)
    width, count = sources[0].shape[-1], len(sources)
    found = [empty_like(x) for x in sources]
    if not cotangent.numel():
        return torch.zeros_like(query, memory_format=torch.contiguous_format), found
    queries, tokens = query.numel() // width, sources[0].numel() // width
    sources, query, (cotangent,) = ready(sources), query.contiguous(), ready([cotangent])
    products, inverse = products.contiguous(), inverse.contiguous()
    whole = _is_whole(BACKWARD, queries, width)
    options = _options(BACKWARD if whole else BLOCKS, queries, sources, query.dtype)
    with on(query.device):
        programs = _programs(BACKWARD if whole else BLOCKS, tokens, options, query.device)
        partial = query.new_empty(programs, *query.shape)
        if whole:
            scratch = query.new_empty(programs, 2 * queries + 1, count)
            args: tuple[Any, ...] = cotangent, query, table_of([*sources, *found]), products, inverse, scratch, partial
            span = triton.next_power_of_2(count)
            whole_sources.attend_backward[(programs,)](
                *args, tokens, count, factor, span=span, normal=normal, **options
            )
        else:
            table, agreements = table_of([*found, *sources]), torch.empty_like(products)
            _agree(cotangent, sources, table[count:], agreements)
            parts = reference.coefficients(agreements, products, inverse, factor, normal, width)
            args = cotangent, query, table, *(x.contiguous() for x in parts), partial, queries * count, tokens, count
            _spread[programs, triton.cdiv(width, options["block"])](*args, attends=True, **options)
    return partial.sum(0), found


def mix(weights: Tensor, sources: Sequence[Tensor]) -> Tensor:
    """Return the weighted sums, contiguous."""
    if not takes(weights, sources):
        return reference.mix(weights, sources)
    sums = sources[0].new_empty(*weights.shape[-2:-1], *sources[0].shape, dtype=reference.type_of(sources))
    if sums.numel():
        sources = ready(sources)
        with on(sums.device):
            tokens = sources[0].numel() // sources[0].shape[-1]
            _run_mix(weights, sources, table_of(sources), sums, _stride(weights), tokens)
    return sums


def mix_backward(cotangent: Tensor, weights: Tensor, sources: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Return the gradients, contiguous."""
    if not takes(weights, sources):
        return reference.mix_backward(cotangent, weights, sources)
    (*leading, width), count = sources[0].shape, len(sources)
    found = [empty_like(x) for x in sources]
    agreements = weights.new_empty(*(leading if weights.ndim < 3 else ()), *weights.shape)
    if not cotangent.numel():
        return torch.zeros_like(weights, memory_format=torch.contiguous_format), found
    ways, tokens = cotangent.numel() // sources[0].numel(), sources[0].numel() // width
    sources, weights, (cotangent,) = ready(sources), weights.contiguous(), ready([cotangent])
    with on(cotangent.device):
        table, options = table_of([*found, *sources]), _options(BLOCKS, ways, sources, weights.dtype)
        _agree(cotangent, sources, table[count:], agreements)
        args = cotangent, weights, table, weights, weights, weights, agreements, _stride(weights), tokens, count
        _spread[tokens, triton.cdiv(width, options["block"])](*args, attends=False, **options)
    return agreements.view(-1, *weights.shape).sum(0) if weights.ndim < 3 else agreements, found


def takes(first: Tensor, sources: Sequence[Tensor]) -> bool:
    """Return whether the kernels take these: the table tells no more than two types of sources apart.

    Args:
        first: queries or weights, in whose type is computed.
        sources: of one type, or of float32 and one of 16 bits.
    """
    types = {x.dtype for x in sources}
    apart = len(types) == 1 or (len(types) == 2 and torch.float32 in types and torch.float64 not in types)
    if apart and first.dtype in _WORK and all(x.itemsize <= first.dtype.itemsize and x in _KINDS for x in types):
        return True
    kinds = [str(x).removeprefix("torch.") for x in (first.dtype, *sorted(types, key=str))]
    past_limit(
        f"queries or weights of {kinds[0]} for sources of {' and '.join(kinds[1:])}",
        "queries and weights of float32 or float64, and no narrower than the sources, which are of one type, or of "
        "float32 and one of 16 bits",
    )
    return False


def shape_of(chosen: dict[str, int], queries: int, width: int, dtype: torch.dtype) -> dict[str, Any]:
    """Return what a kernel is compiled for.

    Args:
        chosen: channels of a thread, and loads ahead; all channels at once if it has no `block`.
        queries: number of queries.
        width: of a source.
        dtype: to compute in.
    """
    padded = triton.next_power_of_2(queries)
    block = triton.next_power_of_2(width)
    if "block" in chosen:
        block = min(max(chosen["block"] // padded, 16), block)
    threads = min(padded * block // chosen["elements"], block // 8)  # that read 16 bytes each of a narrow source
    return {
        "width": width,
        "queries": queries,
        "padded": padded,
        "block": block,
        "work": _WORK[dtype],
        "stages": chosen["stages"],
        "num_warps": min(max(threads // 32, 1), _WARPS),
    }


def _options(chosen: dict[str, int], queries: int, sources: list[Tensor], dtype: torch.dtype) -> dict[str, Any]:
    """Return what a kernel is compiled for, the types of the sources too."""
    types = {x.dtype for x in sources}
    narrow = min(types, key=lambda x: x.itemsize)
    options = shape_of(chosen, queries, sources[0].shape[-1], dtype)
    each = options["block"] * sum(x.itemsize for x in types)
    options["stages"] = min(options["stages"], 1 + _AHEAD // each)
    return {**options, "kind": _KINDS[narrow], "mixed": len(types) > 1}


def _is_whole(chosen: dict[str, int], queries: int, width: int) -> bool:
    """Return whether a program holds all channels."""
    return triton.next_power_of_2(queries) * triton.next_power_of_2(width) <= chosen["whole"]  # type: ignore[no-any-return]


def _run_mix(weights: Tensor, sources: list[Tensor], table: Tensor, sums: Tensor, stride: int, tokens: int) -> None:
    ways, count = weights.shape[-2] if weights.ndim > 1 else 1, weights.shape[-1]
    options = _options(BLOCKS, ways, sources, weights.dtype)
    grid = tokens, triton.cdiv(options["width"], options["block"])
    _mix[grid](weights.contiguous(), table, sums, stride, tokens, count, **options)


def _agree(cotangent: Tensor, sources: list[Tensor], table: Tensor, agreements: Tensor) -> None:
    """Write the products of cotangents and sources."""
    width, count = cotangent.shape[-1], len(sources)
    tokens = sources[0].numel() // width
    queries = agreements.numel() // (tokens * count)
    options = _options(BACKWARD if _is_whole(BACKWARD, queries, width) else BLOCKS, queries, sources, agreements.dtype)
    args = cotangent, table, agreements, agreements, tokens, count
    _products[(tokens,)](*args, epsilon=0.0, norms=False, **options)


def _stride(weights: Tensor) -> int:
    """Return the distance of one token's weights from the next one's."""
    return 0 if weights.ndim < 3 else weights.shape[-2] * weights.shape[-1]


def _programs(chosen: dict[str, int], tokens: int, options: dict[str, Any], device: torch.device) -> int:
    """Return how many programs share the tokens: about as many as the device holds at once."""
    tokens = triton.cdiv(tokens, chosen["tokens"])
    if device.type != "cuda":
        return min(tokens, 2)
    each = max(chosen["together"] // int(options["padded"] * options["block"]), 2)
    return min(tokens, _multiprocessors(device) * each)


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
