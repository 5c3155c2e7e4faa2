"""Statistics of many tensors on a GPU: a kernel over pieces of all of them, and one that adds up the pieces.

A table of addresses and lengths goes to the device, which nobody waits for. A program takes one piece, of which each of
its lanes adds up its elements in float64, so that squares neither overflow nor vanish; the lanes' sums are added in a
tree, and those of pieces in their order. How a tensor is cut depends on the sizes alone, not on the device, so that
results repeat bit by bit. Where every tensor is one piece there is no second kernel.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor

from levada.ops._device import on
from levada.ops.statistics import reference
from levada.ops.statistics.cpu import in_any_order
from levada.ops.statistics.reference import COLUMNS

__all__ = ["BLOCK", "LEAST", "MOST", "PROGRAMS", "WARPS", "piece_of", "statistics"]

BLOCK = 2048  # elements at a time
WARPS = 8
LEAST, MOST = 2**13, 2**17  # elements of a piece
PROGRAMS = 2048  # pieces that there should be, if they are not smaller than LEAST for it
_ROWS = 256  # pieces that are added up at a time
_COUNTED = 2**8  # elements of a lane: more would not fit into its counts
_TYPES = {
    torch.float32: tl.float32,
    torch.float64: tl.float64,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}


@triton.jit
def _take(x, total, squares, largest, counts, work: tl.constexpr):
    """Add numbers to what their lanes have so far; one integer counts zeros, NaN and infinities in 8 bits each."""
    x = x.to(work)
    wide = x.to(tl.float64)
    is_nan = x != x
    size = tl.where(is_nan, 0.0, tl.abs(x))
    kind = tl.where(x == 0, 1, tl.where(is_nan, 1 << 8, tl.where(size == float("inf"), 1 << 16, 0)))
    return total + wide, squares + wide * wide, tl.maximum(largest, size), counts + kind


@triton.jit
def _measure(
    table, found,
    dtype: tl.constexpr, work: tl.constexpr, block: tl.constexpr, aligned: tl.constexpr,
):  # fmt: skip
    """Write the row of a piece."""
    piece = tl.program_id(0).to(tl.int64)
    values = tl.load(table + 2 * piece).to(tl.pointer_type(dtype))
    if aligned:
        values = tl.multiple_of(values, 16)
    count = tl.load(table + 2 * piece + 1).to(tl.int32)
    lanes = tl.arange(0, block)
    whole = count // block * block
    # The rest comes first, with a mask, which breaks up its loads; what it leaves out counts as zero, and less again.
    outside = whole + lanes >= count
    x = tl.load(values + whole + lanes, mask=whole + lanes < count, other=0.0)
    total = tl.zeros([block], dtype=tl.float64)
    squares = tl.zeros([block], dtype=tl.float64)
    largest = tl.zeros([block], dtype=work)
    total, squares, largest, counts = _take(x, total, squares, largest, tl.where(outside, -1, 0), work)
    start = 0
    while start < whole:  # not a range: Triton's interpreter takes no length that was loaded
        x = tl.load(values + start + lanes)
        total, squares, largest, counts = _take(x, total, squares, largest, counts, work)
        start += block
    row = found + 6 * piece
    tl.store(row, tl.sum(total, 0))
    tl.store(row + 1, tl.sum(squares, 0))
    tl.store(row + 2, tl.max(largest, 0).to(tl.float64))
    tl.store(row + 3, tl.sum(counts & 255, 0).to(tl.float64))
    tl.store(row + 4, tl.sum((counts >> 8) & 255, 0).to(tl.float64))
    tl.store(row + 5, tl.sum(counts >> 16, 0).to(tl.float64))


@triton.jit
def _combine(pieces, firsts, found, rows: tl.constexpr):
    """Write the row of a tensor from those of its pieces."""
    tensor = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(firsts + tensor), tl.load(firsts + tensor + 1)
    columns = tl.arange(0, 8)
    total = tl.zeros([8], dtype=tl.float64)
    largest = tl.zeros([8], dtype=tl.float64)
    while begin < end:
        piece = begin + tl.arange(0, rows)
        here = (piece < end)[:, None] & (columns < 6)[None, :]
        values = tl.load(pieces + piece[:, None] * 6 + columns[None, :], mask=here, other=0.0)
        total += tl.sum(values, 0)
        is_nan = values != values
        largest = tl.maximum(largest, tl.max(tl.where(is_nan, 0.0, values), 0))
        begin += rows
    tl.store(found + tensor * 6 + columns, tl.where(columns == 2, largest, total), mask=columns < 6)


def statistics(tensors: Sequence[Tensor]) -> Tensor:
    """Return a row for each tensor."""
    device = tensors[0].device if tensors else torch.device("cpu")
    found = torch.empty(len(tensors), len(COLUMNS), dtype=torch.float64, device=device)
    kinds: dict[torch.dtype, list[int]] = {}
    for i, tensor in enumerate(tensors):
        kinds.setdefault(tensor.dtype, []).append(i)
    for dtype, where in kinds.items():
        part = found if len(kinds) == 1 else found.new_empty(len(where), found.shape[1])
        with on(device):
            _of_type(dtype, [tensors[i] for i in where], part)
        if part is not found:
            found[_sent(torch.tensor(where), device)] = part
    return found


def piece_of(sizes: Sequence[int]) -> int:
    """Return how many elements a program takes, a power of two.

    Args:
        sizes: elements of each tensor.
    """
    most = min(MOST, _COUNTED // 2 * BLOCK)
    share: int = triton.next_power_of_2(triton.cdiv(sum(sizes), PROGRAMS))
    return min(max(share, LEAST), most)


def _of_type(dtype: torch.dtype, tensors: Sequence[Tensor], found: Tensor) -> None:
    if dtype not in _TYPES:  # of eight bits
        found.copy_(reference.statistics(tensors))
        return
    held = [in_any_order(tensor) for tensor in tensors]
    addresses, sizes = [tensor.data_ptr() for tensor in held], [tensor.numel() for tensor in held]
    options: dict[str, Any] = {
        "dtype": _TYPES[dtype],
        "work": tl.float64 if dtype is torch.float64 else tl.float32,
        "block": BLOCK,
        "aligned": all(address % 16 == 0 for address in addresses),
        "num_warps": WARPS,
    }
    piece = piece_of(sizes)
    if max(sizes) <= piece:
        table = torch.tensor([addresses, sizes]).t().contiguous()
        _measure[(len(held),)](_sent(table, found.device), found, **options)
        return
    counts, starts = torch.tensor(sizes), torch.tensor(addresses)
    parts = (counts + (piece - 1)) // piece
    firsts = torch.cat([parts.new_zeros(1), parts.cumsum(0)])
    owner = torch.repeat_interleave(torch.arange(len(parts)), parts)
    begin = (torch.arange(len(owner)) - firsts[owner]) * piece
    table = torch.stack([starts[owner] + begin * held[0].element_size(), (counts[owner] - begin).clamp_(max=piece)], 1)
    numbers = _sent(torch.cat([table.flatten(), firsts]), found.device)
    pieces = found.new_empty(len(owner), found.shape[1])
    _measure[(len(owner),)](numbers, pieces, **options)
    _combine[(len(held),)](pieces, numbers[table.numel() :], found, rows=_ROWS, num_warps=WARPS)


def _sent(numbers: Tensor, device: torch.device) -> Tensor:
    """Return numbers on the device; nobody waits for the copy."""
    return numbers.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else numbers
