"""What kernels for a CPU have in common that read streams: their loops, parameters as arrays, tokens by blocks."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any, Final

import torch
from torch import Tensor

from levada.ops import _kernels
from levada.ops._loading import import_kernels

__all__ = ["TOGETHER", "added", "array_of", "blocks_of", "loops_for", "number_of", "rows_of"]

TOGETHER: Final = 2**20  # elements of the streams that one thread takes at a time; of fewer, products are slow

_TYPE, _ON_CPU = operator.attrgetter("dtype"), operator.attrgetter("is_cpu")


def loops_for(module: str, state: Tensor, *others: Tensor | None) -> ModuleType | None:
    """Return a module of loops if they take these tensors, and there is something to do.

    Args:
        module: dotted name.
        state: the streams.
        *others: the parameters.
    """
    # Called four times a layer: no frame of Python for each tensor.
    given = [state, *[x for x in others if x is not None]]
    kinds = {*map(_TYPE, given)}
    if not _kernels._FOUND or len(kinds) > 1 or not kinds <= _kernels.TYPES or not all(map(_ON_CPU, given)):
        return None
    if not state.numel():
        return None
    return import_kernels(module, "numba")


def array_of(x: Tensor) -> Any:
    """Return a copy of a parameter: memory that NumPy shares cannot be resized, as sharding wants parameters' to be."""
    return x.detach().clone(memory_format=torch.contiguous_format).numpy()


@functools.cache
def number_of(dtype: torch.dtype) -> Any:
    """Return a one of NumPy's: the type that loops compute in, which no address tells.

    Args:
        dtype: of the tensors.
    """
    return torch.ones((), dtype=dtype).numpy()[()]


def added(parts: Sequence[Any], dtype: torch.dtype) -> Any:
    """Return the sum of arrays in float64, rounded to a type: sums that threads or blocks made, in their order.

    Args:
        parts: the arrays.
        dtype: of the result, which is an array too.
    """
    total = parts[0] if len(parts) == 1 else sum(parts)
    return total.astype(str(dtype).removeprefix("torch."))


def rows_of(state: Tensor) -> int:
    """Return how many tokens are taken at a time, which stay in a processor's cache between one step and the next.

    Args:
        state: tokens first.
    """
    return min(max(1, TOGETHER * torch.get_num_threads() // state[0].numel()), len(state))


def blocks_of(state: Tensor) -> Iterator[Callable[[Tensor], Tensor]]:
    """Yield for each block of tokens what takes it from a tensor; one that is all of them costs no view.

    Args:
        state: tokens first.
    """
    rows = rows_of(state)
    if rows == len(state):
        yield lambda x: x
        return
    for start in range(0, len(state), rows):
        yield operator.itemgetter(slice(start, min(start + rows, len(state))))
