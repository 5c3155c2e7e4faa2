"""The linear scan on a GPU: tiles of steps scanned side by side, and their ends scanned in turn.

A tile is `_STEPS` steps of `_WIDTH` elements. One kernel reduces every tile to the pair (product of its gates, its end
state from zero); these pairs are a sequence `_STEPS` times shorter, scanned in the same way; a second kernel scans each
tile again from the state that the tile before it ends with. For 100,000 steps that is five kernels, and a and b are
read twice. Rounding grows with the logarithm of the number of steps, as the tree over which they are combined does.

With logarithms the product of gates stays a sum of logarithms, so that gates near 1 lose nothing on the way.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor

from levada.ops._define import empty_like
from levada.ops._device import on

__all__ = ["scan", "scan_backward"]

_STEPS = 64
_WIDTH = 32
_WARPS = 4
_WORK = {torch.float32: tl.float32, torch.float64: tl.float64}


@triton.jit
def _times(x, y):
    """Multiply; zero times what has overflowed is zero, as it would be step by step."""
    infinity = float("inf")
    lost = ((x == 0) & (tl.abs(y) == infinity)) | ((y == 0) & (tl.abs(x) == infinity))
    return tl.where(lost, 0.0, x * y)


@triton.jit
def _follow(gate, state, later_gate, later_state):
    return _times(gate, later_gate), _times(later_gate, state) + later_state


@triton.jit
def _follow_log(gate, state, later_gate, later_state):
    return gate + later_gate, _times(tl.exp(later_gate), state) + later_state


@triton.jit
def _scan_tile(
    gates, values, tile, columns, steps, width,
    log: tl.constexpr, reverse: tl.constexpr, span: tl.constexpr, work: tl.constexpr,
):  # fmt: skip
    """Return a tile's rows, its mask, and the running products of gates and states from zero."""
    order = tile.to(tl.int64) * span + tl.arange(0, span)
    rows = steps - 1 - order if reverse else order
    mask = (order < steps)[:, None] & (columns < width)[None, :]
    places = rows[:, None] * width + columns[None, :]
    neutral = 0.0 if log else 1.0
    value = tl.load(values + places, mask=mask, other=0.0).to(work)
    if reverse:  # what a gradient is multiplied by on its way to this row is the next row's gate
        gate = tl.load(gates + places + width, mask=mask & (order > 0)[:, None], other=neutral).to(work)
    else:
        gate = tl.load(gates + places, mask=mask, other=neutral).to(work)
    if log:
        product, state = tl.associative_scan((gate, value), 0, _follow_log)
    else:
        product, state = tl.associative_scan((gate, value), 0, _follow)
    return rows, mask, product, state


@triton.jit
def _reduce_tiles(
    gates, values, products, ends, steps, width,
    log: tl.constexpr, reverse: tl.constexpr, span: tl.constexpr, wide: tl.constexpr, work: tl.constexpr,
):  # fmt: skip
    """Write the product of each tile's gates and its end state from zero, `(tiles, width)`."""
    blocks = tl.cdiv(width, wide)
    tile = tl.program_id(0) // blocks
    columns = (tl.program_id(0) % blocks) * wide + tl.arange(0, wide)
    _, _, product, state = _scan_tile(gates, values, tile, columns, steps, width, log, reverse, span, work)
    last = (tl.arange(0, span) == span - 1)[:, None]
    place = tile.to(tl.int64) * width + columns
    tl.store(products + place, tl.sum(tl.where(last, product, 0.0), 0), mask=columns < width)
    tl.store(ends + place, tl.sum(tl.where(last, state, 0.0), 0), mask=columns < width)


@triton.jit
def _scan_tiles(
    gates, values, initial, ends, found, states, first, by_gate, steps, width,
    log: tl.constexpr, reverse: tl.constexpr, span: tl.constexpr, wide: tl.constexpr, work: tl.constexpr,
):  # fmt: skip
    """Write each tile's states to `found`, beginning with the end of the tile before it; in reverse also `by_gate`."""
    blocks = tl.cdiv(width, wide)
    tile = tl.program_id(0) // blocks
    columns = (tl.program_id(0) % blocks) * wide + tl.arange(0, wide)
    inside = columns < width
    rows, mask, product, state = _scan_tile(gates, values, tile, columns, steps, width, log, reverse, span, work)
    if tile == 0:
        carried = tl.load(initial + columns, mask=inside, other=0.0).to(work)
    else:
        carried = tl.load(ends + (tile.to(tl.int64) - 1) * width + columns, mask=inside, other=0.0).to(work)
    factor = tl.exp(product) if log else product
    state += _times(factor, carried[None, :])
    places = rows[:, None] * width + columns[None, :]
    tl.store(found + places, state, mask=mask)
    if reverse:
        here = (rows > 0)[:, None]
        before = tl.load(states + places - width, mask=mask & here, other=0.0).to(work)
        start = tl.load(first + columns, mask=inside, other=0.0).to(work)
        change = state * tl.where(here, before, start[None, :])
        if log:
            change *= tl.exp(tl.load(gates + places, mask=mask, other=0.0).to(work))
        tl.store(by_gate + places, change, mask=mask)


def scan(gate: Tensor, value: Tensor, initial: Tensor, log: bool) -> Tensor:
    """Return the states, contiguous."""
    states = empty_like(value)
    if states.numel():
        with on(value.device):
            _run(_rows(gate), _rows(value), initial.contiguous(), states, log)
    return states


def scan_backward(
    cotangent: Tensor, gate: Tensor, states: Tensor, initial: Tensor, log: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients by gates, values and initial state, contiguous."""
    by_gate = empty_like(states)
    by_value = torch.empty_like(by_gate)
    full = torch.promote_types(states.dtype, torch.float32)
    if states.numel():
        with on(states.device):
            kept = _rows(states), initial.contiguous(), by_gate
            _run(_rows(gate), _rows(cotangent), torch.zeros_like(kept[1]), by_value, log, kept)
    leading = gate[0].to(full).exp() if log else gate[0].to(full)
    return by_gate, by_value, (leading * by_value[0]).to(initial.dtype)


def _rows(x: Tensor) -> Tensor:
    return x.reshape(len(x), -1).contiguous()


def _run(
    gates: Tensor,
    values: Tensor,
    initial: Tensor,
    found: Tensor,
    log: bool,
    kept: tuple[Tensor, Tensor, Tensor] | None = None,
) -> None:
    """Scan into `found`; with what the backward pass has `kept`, from the last step on, and the gates' gradient too."""
    steps, width = values.shape
    full = torch.promote_types(values.dtype, torch.float32)
    tiles = triton.cdiv(steps, _STEPS)
    wide = min(_WIDTH, triton.next_power_of_2(width))
    grid = (tiles * triton.cdiv(width, wide),)
    options = {
        "log": log,
        "reverse": kept is not None,
        "span": _STEPS,
        "wide": wide,
        "work": _WORK[full],
        "num_warps": _WARPS,
    }
    ends = initial
    if tiles > 1:
        products = torch.empty(tiles, width, dtype=full, device=values.device)
        sums, ends = torch.empty_like(products), torch.empty_like(products)
        _reduce_tiles[grid](gates, values, products, sums, steps, width, **options)
        _run(products, sums, initial, ends, log)
    states, first, by_gate = kept or (found, initial, found)
    _scan_tiles[grid](gates, values, initial, ends, found, states, first, by_gate, steps, width, **options)
