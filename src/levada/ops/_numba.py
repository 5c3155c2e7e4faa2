"""Loops over the tokens of tensors on a CPU, compiled by Numba: imported by kernels alone, which are imported late."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numba  # type: ignore[import-untyped, import-not-found, unused-ignore]
import torch
from torch import Tensor

__all__ = ["compiled", "over_tokens"]

_WORTH_A_THREAD: Final = 2**15  # elements: a thread takes some microseconds to begin

# Sums may be reordered, so that they fill the vector units; NaN and infinities stay what they are.
compiled: Final[Callable[[Callable[..., Any]], Callable[..., Any]]] = numba.njit(
    nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz", "arcp"}, error_model="numpy"
)


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="levada-ops")


def over_tokens(function: Callable[..., Any], tensors: Sequence[Any], *options: Any, work: int = 0) -> list[Any]:
    """Call a compiled function with the arrays of tensors, tokens divided among PyTorch's number of threads.

    What a token gives does not depend on which thread computes it.

    Args:
        function: takes the arrays, then the options.
        tensors: contiguous, on the CPU, all with tokens as the first axis; some are written to. Arrays are taken too.
        *options: handed on.
        work: number of elements that are read, where it is not the size of the largest tensor.

    Returns:
        What each call returned, in the order of the tokens.
    """
    arrays = [given.detach().numpy() if isinstance(given, Tensor) else given for given in tensors]
    tokens, size = len(arrays[0]), work or max(array.size for array in arrays)
    threads = max(1, min(torch.get_num_threads(), size // _WORTH_A_THREAD, tokens))
    if threads == 1:
        return [function(*arrays, *options)]
    ends = [tokens * i // threads for i in range(threads + 1)]
    parts = [[array[a:b] for array in arrays] for a, b in itertools.pairwise(ends)]
    waiting = [_pool(threads - 1).submit(function, *part, *options) for part in parts[1:]]
    first = function(*parts[0], *options)
    return [first, *(one.result() for one in waiting)]
