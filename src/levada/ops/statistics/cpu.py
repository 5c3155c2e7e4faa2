"""Statistics of many tensors on a CPU: by a loop that Numba compiles, in threads where there is much."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from operator import attrgetter
from types import ModuleType
from typing import Final

import torch
from torch import Tensor

from levada.ops._loading import import_kernels, or_reference
from levada.ops.statistics import reference

__all__ = ["in_any_order", "statistics"]

_PIECE: Final = 2**18  # elements that one thread adds up: as many for any number of threads, so that sums are the same
_DTYPE: Final = attrgetter("dtype")
_TYPES: Final = {torch.float32, torch.float64, torch.bfloat16, torch.float16}


@or_reference
def statistics(tensors: Sequence[Tensor], wanted: Sequence[int] = ()) -> Tensor:
    """Return a row for each tensor.

    Args:
        tensors: all of them.
        wanted: of each, which columns: others may be anything then; all if left out.
    """
    loops = import_kernels("levada.ops.statistics.loops", "numba")
    dtypes = [*map(_DTYPE, tensors)]
    kinds = {*dtypes}
    if loops is None or not kinds <= _TYPES:
        return reference.statistics(tensors)
    if len(kinds) == 1:
        return _measured(loops, dtypes[0], tensors, wanted)
    found = torch.empty(len(tensors), len(reference.COLUMNS), dtype=torch.float64)
    for dtype in kinds:
        where = [i for i, other in enumerate(dtypes) if other is dtype]
        part = [tensors[i] for i in where]
        found[torch.tensor(where)] = _measured(loops, dtype, part, [wanted[i] for i in where] if wanted else ())
    return found


def in_any_order(tensor: Tensor) -> Tensor:
    """Return a tensor whose memory holds the same numbers, side by side: without a copy where it has no gaps."""
    if tensor.is_contiguous():
        return tensor
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    return tensor.detach().permute(order).contiguous()


def _measured(loops: ModuleType, dtype: torch.dtype, tensors: Sequence[Tensor], wanted: Sequence[int]) -> Tensor:
    # `map` over torch's own methods takes half the time of a loop, of a thousand small tensors.
    held = tensors if all(map(Tensor.is_contiguous, tensors)) else [*map(in_any_order, tensors)]
    sizes = [*map(Tensor.numel, held)]
    numbers = array("q", map(Tensor.data_ptr, held))
    numbers.extend(sizes)
    numbers.extend(wanted if wanted else [reference.ALL] * len(sizes))
    if max(sizes) <= _PIECE:
        return torch.from_numpy(loops.rows(str(dtype), numbers, len(sizes), sum(sizes)))
    pointers, counts, parts_wanted = torch.frombuffer(numbers, dtype=torch.int64).view(3, len(sizes))
    parts = (counts + (_PIECE - 1)) // _PIECE
    firsts = torch.cat([parts.new_zeros(1), parts.cumsum(0)])
    owner = torch.repeat_interleave(torch.arange(len(parts)), parts)
    begin = (torch.arange(len(owner)) - firsts[owner]) * _PIECE
    starts = pointers[owner] + begin * held[0].element_size()
    lengths = (counts[owner] - begin).clamp_(max=_PIECE)
    found = torch.empty(len(sizes), len(reference.COLUMNS), dtype=torch.float64)
    pieces = found.new_empty(len(owner), found.shape[1])
    loops.over_tokens(loops.LOOPS[str(dtype)], [starts, lengths, parts_wanted[owner], pieces], work=sum(sizes))
    loops.combine(pieces.numpy(), firsts.numpy(), found.numpy())
    return found
