"""Loops over the tokens of tensors on a CPU, compiled by Numba where that is installed."""

from __future__ import annotations

import functools
import importlib.util
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import torch
from torch import Tensor

__all__ = ["compiled", "is_installed", "over_tokens"]

_WORTH_A_THREAD: Final = 2**15  # elements: a thread takes some microseconds to begin


@functools.cache
def is_installed() -> bool:
    """Return whether there is Numba; looking for it imports nothing."""
    return importlib.util.find_spec("numba") is not None


def compiled(function: Callable[..., None]) -> Callable[..., None]:
    """Return a function of arrays that is compiled at its first call, for the types of that call, and kept on disk.

    Sums may be reordered, so that they fill the vector units; NaN and infinities stay what they are.

    Args:
        function: loops over its first axis; it releases Python's lock.
    """
    made: list[Callable[..., None]] = []

    @functools.wraps(function)
    def run(*args: Any) -> None:
        if not made:
            import numba  # type: ignore[import-untyped, import-not-found, unused-ignore]

            flags = {"reassoc", "contract", "nsz", "arcp"}
            made.append(numba.njit(nogil=True, cache=True, fastmath=flags, error_model="numpy")(function))
        made[0](*args)

    return run


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="levada-ops")


def over_tokens(function: Callable[..., None], tensors: Sequence[Tensor], *options: Any) -> None:
    """Call a compiled function with the arrays of tensors, tokens divided among PyTorch's number of threads.

    What a token gives does not depend on which thread computes it.

    Args:
        function: takes the arrays, then the options.
        tensors: contiguous, on the CPU, all with tokens as the first axis; some are written to.
        *options: handed on.
    """
    arrays = [tensor.detach().numpy() for tensor in tensors]
    tokens, size = len(tensors[0]), max(tensor.numel() for tensor in tensors)
    threads = max(1, min(torch.get_num_threads(), size // _WORTH_A_THREAD, tokens))
    if threads == 1:
        function(*arrays, *options)
        return
    ends = [tokens * i // threads for i in range(threads + 1)]
    parts = [[array[a:b] for array in arrays] for a, b in itertools.pairwise(ends)]
    waiting = [_pool(threads - 1).submit(function, *part, *options) for part in parts[1:]]
    function(*parts[0], *options)
    for one in waiting:
        one.result()
