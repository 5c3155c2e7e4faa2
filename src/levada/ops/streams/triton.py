"""Writing to streams on a GPU: a program takes one token's channels a block at a time, all streams in registers.

Every element is read once and written once: forward `2 n + 1` a token and channel, backward `3 n + 2`. The sums of the
backward pass, over channels, stay in registers, so that they are added up in one order: results repeat bit by bit.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

from typing import Any

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor

from levada.ops._define import empty_like
from levada.ops._device import on, past_limit
from levada.ops.streams import reference

__all__ = ["BACKWARD", "FORWARD", "MOST_STREAMS", "shape_of", "takes", "write", "write_backward"]

# Channels at a time, of all streams together, and warps: the best of a sweep on an H100, in docs/lab-book.md.
FORWARD = {"elements": 16384, "num_warps": 8}
BACKWARD = {"elements": 4096, "num_warps": 2}
_LEAST = 64
MOST_STREAMS = 16  # of 32 registers spill, and kernels take a minute to compile
_WORK = {torch.float32: tl.float32, torch.float64: tl.float64}


@triton.jit
def _load_column(mix, token, j, rows, n: tl.constexpr, work: tl.constexpr):
    """Return the weights of stream j in all new streams."""
    return tl.load(mix + token * n * n + rows * n + j, mask=rows < n, other=0.0).to(work)


@triton.jit
def _write(
    state, out, weights, mix, new,
    width: tl.constexpr, n: tl.constexpr, padded: tl.constexpr, block: tl.constexpr,
    mixes: tl.constexpr, work: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    rows = tl.arange(0, padded)
    columns = tl.program_id(1) * block + tl.arange(0, block)
    inside = columns < width
    here = (rows < n)[:, None] & inside[None, :]
    places = (token * n + rows)[:, None] * width + columns[None, :]
    weight = tl.load(weights + token * n + rows, mask=rows < n, other=0.0).to(work)
    value = tl.load(out + token * width + columns, mask=inside, other=0.0).to(work)
    total = weight[:, None] * value[None, :]
    if mixes:
        for j in tl.static_range(n):
            stream = tl.load(state + (token * n + j) * width + columns, mask=inside, other=0.0).to(work)
            total += _load_column(mix, token, j, rows, n, work)[:, None] * stream[None, :]
    else:
        total += tl.load(state + places, mask=here, other=0.0).to(work)
    tl.store(new + places, total, mask=here)


@triton.jit
def _write_backward(
    cotangent, state, out, weights, mix, by_state, by_out, by_weights, by_mix,
    width: tl.constexpr, n: tl.constexpr, padded: tl.constexpr, block: tl.constexpr,
    mixes: tl.constexpr, work: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    rows = tl.arange(0, padded)
    weight = tl.load(weights + token * n + rows, mask=rows < n, other=0.0).to(work)
    of_weights = tl.zeros([padded], dtype=work)
    of_mix = tl.zeros([padded, padded], dtype=work)
    for start in range(0, width, block):
        columns = start + tl.arange(0, block)
        inside = columns < width
        here = (rows < n)[:, None] & inside[None, :]
        g = tl.load(cotangent + (token * n + rows)[:, None] * width + columns[None, :], mask=here, other=0.0).to(work)
        value = tl.load(out + token * width + columns, mask=inside, other=0.0).to(work)
        of_weights += tl.sum(g * value[None, :], 1)
        tl.store(by_out + token * width + columns, tl.sum(weight[:, None] * g, 0), mask=inside)
        if mixes:
            for j in tl.static_range(n):
                place = (token * n + j) * width + columns
                stream = tl.load(state + place, mask=inside, other=0.0).to(work)
                of_mix += tl.where(rows[None, :] == j, tl.sum(g * stream[None, :], 1)[:, None], 0.0)
                column = _load_column(mix, token, j, rows, n, work)
                tl.store(by_state + place, tl.sum(column[:, None] * g, 0), mask=inside)
    tl.store(by_weights + token * n + rows, of_weights, mask=rows < n)
    if mixes:
        real = (rows < n)[:, None] & (rows < n)[None, :]
        tl.store(by_mix + token * n * n + rows[:, None] * n + rows[None, :], of_mix, mask=real)


def write(state: Tensor, out: Tensor, weights: Tensor, mix: Tensor | None) -> Tensor:
    """Return the new streams, contiguous."""
    if not takes(state):
        return reference.write(state, out, weights, mix)
    new = empty_like(state)
    if state.numel():
        options = _options(FORWARD, False, state, weights, mix)
        with on(state.device):
            grid = len(state), triton.cdiv(options["width"], options["block"])
            _write[grid](*_contiguous(state, out, weights, mix), new, **options)
    return new


def write_backward(
    cotangent: Tensor, state: Tensor, out: Tensor, weights: Tensor, mix: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients, contiguous; the first and the last are empty where nothing is mixed."""
    if not takes(state):
        return reference.write_backward(cotangent, state, out, weights, mix)
    found = [empty_like(x) for x in (out, weights)]
    by_state = state.new_empty(0) if mix is None else empty_like(state)
    by_mix = weights.new_empty(0) if mix is None else empty_like(mix)
    if not state.numel():
        return by_state, found[0], found[1].zero_(), by_mix.zero_()
    with on(state.device):
        given = _contiguous(cotangent, state, out, weights, mix)
        options = _options(BACKWARD, True, state, weights, mix)
        _write_backward[(len(state),)](*given, by_state, *found, by_mix, **options)
    return by_state, *found, by_mix  # type: ignore[return-value]


def takes(state: Tensor) -> bool:
    """Return whether the kernels take these: what is past their limit they leave to the reference.

    Args:
        state: the streams.
    """
    n = state.shape[1]
    if n > MOST_STREAMS:
        past_limit(f"{n} streams that are written", f"at most {MOST_STREAMS}")
    return n <= MOST_STREAMS


def shape_of(chosen: dict[str, int], padded: int, width: int, *, even: bool) -> dict[str, int]:
    """Return how many channels a program takes at a time, and its warps.

    Args:
        chosen: elements and warps.
        padded: number of streams, as a power of two.
        width: of a stream.
        even: take fewer channels at a time, if the last ones would else be far fewer than those before.
    """
    block = min(max(chosen["elements"] // padded, _LEAST), triton.next_power_of_2(width))
    while even and block > _LEAST and -width % block > width // 8:
        block //= 2
    return {"block": block, "num_warps": chosen["num_warps"]}


def _options(chosen: dict[str, int], even: bool, state: Tensor, weights: Tensor, mix: Tensor | None) -> dict[str, Any]:
    padded = triton.next_power_of_2(state.shape[1])
    return {
        "width": state.shape[2],
        "n": state.shape[1],
        "padded": padded,
        "mixes": mix is not None,
        "work": _WORK.get(weights.dtype, tl.float32),
        **shape_of(chosen, padded, state.shape[2], even=even),
    }


def _contiguous(*tensors: Tensor | None) -> list[Tensor]:
    """Return memory to read from; what is left out is not read."""
    given = [None if x is None else x.contiguous() for x in tensors]
    return [given[0] if x is None else x for x in given]  # type: ignore[misc]
