"""Statistics of many tensors on a CPU: by a loop that Numba compiles, in threads where there is much."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from types import ModuleType
from typing import Final

import torch
from torch import Tensor

from levada.ops._define import import_kernels
from levada.ops.statistics import reference

__all__ = ["in_any_order", "statistics"]

_PIECE: Final = 2**18  # elements that one thread adds up: as many for any number of threads, so that sums are the same
_TYPES: Final = {torch.float32, torch.float64, torch.bfloat16, torch.float16}


def statistics(tensors: Sequence[Tensor], wanted: Sequence[int] = ()) -> Tensor:
    """Return a row for each tensor.

    Args:
        tensors: all of them.
        wanted: of each, which columns: others may be anything then; all if left out.
    """
    loops = import_kernels("levada.ops.statistics.loops", "numba")
    kinds: dict[torch.dtype, list[int]] = {}
    for i, tensor in enumerate(tensors):
        kinds.setdefault(tensor.dtype, []).append(i)
    if loops is None or not kinds.keys() <= _TYPES:
        return reference.statistics(tensors)
    found = torch.empty(len(tensors), len(reference.COLUMNS), dtype=torch.float64)
    for dtype, where in kinds.items():
        if len(kinds) == 1:
            _measure(loops, dtype, tensors, wanted, found)
        else:
            part = found.new_empty(len(where), found.shape[1])
            _measure(loops, dtype, [tensors[i] for i in where], [wanted[i] for i in where] if wanted else (), part)
            found[torch.tensor(where)] = part
    return found


def in_any_order(tensor: Tensor) -> Tensor:
    """Return a tensor whose memory holds the same numbers, side by side: without a copy where it has no gaps."""
    if tensor.is_contiguous():
        return tensor
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    return tensor.detach().permute(order).contiguous()


def _measure(
    loops: ModuleType, dtype: torch.dtype, tensors: Sequence[Tensor], wanted: Sequence[int], found: Tensor
) -> None:
    loop = loops.LOOPS[str(dtype)]
    held = [tensor if tensor.is_contiguous() else in_any_order(tensor) for tensor in tensors]
    sizes = [tensor.numel() for tensor in held]
    numbers = array("q", [tensor.data_ptr() for tensor in held])
    numbers.extend(sizes)
    numbers.extend(wanted if wanted else [reference.ALL] * len(sizes))
    columns = torch.frombuffer(numbers, dtype=torch.int64).view(3, len(sizes))  # a tensor of a list takes longer
    pointers, counts, parts_wanted = columns
    if max(sizes) <= _PIECE:
        loops.over_tokens(loop, [*columns, found], work=sum(sizes))
        return
    parts = (counts + (_PIECE - 1)) // _PIECE
    firsts = torch.cat([parts.new_zeros(1), parts.cumsum(0)])
    owner = torch.repeat_interleave(torch.arange(len(parts)), parts)
    begin = (torch.arange(len(owner)) - firsts[owner]) * _PIECE
    starts = pointers[owner] + begin * held[0].element_size()
    lengths = (counts[owner] - begin).clamp_(max=_PIECE)
    pieces = found.new_empty(len(owner), found.shape[1])
    loops.over_tokens(loop, [starts, lengths, parts_wanted[owner], pieces], work=sum(sizes))
    loops.combine(pieces.numpy(), firsts.numpy(), found.numpy())
