"""Loops over the tokens of tensors on a CPU, compiled by Numba: imported by kernels alone, which are imported late."""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numba  # type: ignore[import-untyped, import-not-found, unused-ignore]
import numpy as np
import torch
from numba import carray, types  # type: ignore[import-untyped, import-not-found, unused-ignore]
from numba.extending import intrinsic, overload  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor

__all__ = ["array_at", "compiled", "exp", "log", "one_over_root", "over_addresses", "over_table", "over_tokens", "tanh"]

_Function = Callable[[Any], Any]

_WORTH_A_THREAD: Final = 2**15  # elements: a thread takes some microseconds to begin

# Sums may be reordered, so that they fill the vector units; NaN and infinities stay what they are.
_OPTIONS: Final[dict[str, Any]] = {
    "nogil": True,
    "fastmath": {"reassoc", "contract", "nsz", "arcp"},
    "error_model": "numpy",
}


def compiled(function: Callable[..., Any]) -> Any:
    """Return a function that Numba compiles at its first call, and keeps on disk where a folder can be written to.

    Args:
        function: of arrays and numbers.
    """
    try:
        made = numba.njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # it found none: each process compiles its own
        return numba.njit(**_OPTIONS)(function)
    # Numba asks whether the function's own file is what it was, not those of the functions that it calls.
    kept: Any = getattr(getattr(made, "_cache", None), "_cache_file", None)
    if hasattr(kept, "_source_stamp"):
        kept._source_stamp = kept._source_stamp, _SOURCES
    return made


def _sources() -> str:
    """Return what changes with any function that is compiled."""
    names = {"_numba.py", "_tiles.py", "loops.py", "tiles.py"}
    paths = sorted(path for path in Path(__file__).parent.rglob("*.py") if path.name in names)
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


_SOURCES: Final = _sources()


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="levada-ops")


if hasattr(os, "register_at_fork"):  # a child has none of its parent's threads, and would wait for them
    os.register_at_fork(after_in_child=_pool.cache_clear)


def _array(x: Tensor) -> Any:
    return (x.detach() if x.requires_grad else x).numpy()  # a call is a microsecond, of which there are dozens a layer


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
    arrays = [_array(given) if isinstance(given, Tensor) else given for given in tensors]
    tokens = len(arrays[0])
    ends = _ends(tokens, (work or max(array.size for array in arrays)) if torch.get_num_threads() > 1 else 0)
    if len(ends) == 2:
        return [function(*arrays, *options)]
    calls = [[*(array[a:b] for array in arrays), *options] for a, b in itertools.pairwise(ends)]
    return _together(function, calls, arrays)


def over_addresses(function: Callable[..., Any], tensors: Sequence[Tensor], *options: Any) -> list[Any]:
    """Call a compiled function with the addresses of tensors, the first and the end of its tokens, and options.

    An array of a tensor takes a microsecond to make, of which a layer of some hundred tokens needs dozens; and memory
    that NumPy shares cannot be resized, as sharding wants parameters' to be.

    Args:
        function: makes its arrays by `array_at`.
        tensors: contiguous, on the CPU, tokens first in the first, the largest; some are written to.
        *options: handed on.

    Returns:
        What each call returned, in the order of the tokens.

    Raises:
        ValueError: if a tensor is not contiguous: its numbers would be taken for others.
    """
    if not all(map(Tensor.is_contiguous, tensors)):
        strides = [x.stride() for x in tensors]
        raise ValueError(f"tensors of which addresses are taken must be contiguous, got strides {strides}. Copy them.")
    addresses = tuple(map(Tensor.data_ptr, tensors))
    if torch.get_num_threads() == 1:
        return [function(addresses, 0, tensors[0].shape[0], *options)]
    ends = _ends(len(tensors[0]), tensors[0].numel())
    if len(ends) == 2:
        return [function(addresses, 0, ends[1], *options)]
    return _together(function, [[addresses, a, b, *options] for a, b in itertools.pairwise(ends)], tensors)


def over_table(
    function: Callable[..., Any], tensors: Sequence[Tensor], tokens: int, *options: Any, work: int = 0
) -> list[Any]:
    """Call a compiled function with an array of tensors' addresses, a first token and the end, and options.

    Unlike a tuple, an array of any length is of one type, for which the function is compiled once.

    Args:
        function: makes its arrays by `array_at`.
        tensors: contiguous, on the CPU; some are written to.
        tokens: number of them, or of whatever is divided among threads.
        *options: handed on.
        work: number of elements that are read.

    Returns:
        What each call returned, in the order of the tokens.
    """
    table = np.array([*map(Tensor.data_ptr, tensors)])
    ends = _ends(tokens, work)
    if len(ends) == 2:
        return [function(table, 0, tokens, *options)]
    return _together(function, [[table, a, b, *options] for a, b in itertools.pairwise(ends)], tensors)


def _ends(tokens: int, work: int) -> list[int]:
    threads = torch.get_num_threads()
    threads = max(1, min(threads, work // _WORTH_A_THREAD, tokens)) if threads > 1 else 1
    return [tokens * i // threads for i in range(threads + 1)]


def _together(function: Callable[..., Any], calls: Sequence[Sequence[Any]], memory: Sequence[Any]) -> list[Any]:
    # The caller may be interrupted here: what loops of other threads still write to must not be given up before.
    waiting = [_pool(len(calls) - 1).submit(_holding, memory, function, call) for call in calls[1:]]
    first = function(*calls[0])
    return [first, *(one.result() for one in waiting)]


def _holding(memory: Sequence[Any], function: Callable[..., Any], call: Sequence[Any]) -> Any:
    """Call a function, and keep the memory whose addresses it has until it returns."""
    return function(*call)


@intrinsic  # type: ignore[misc, unused-ignore]
def _pointer(context, address, start, like):  # type: ignore[no-untyped-def]
    """Return a pointer to a number like that, so many of them behind an address."""

    def make(context, builder, signature, args):  # type: ignore[no-untyped-def]
        base = builder.inttoptr(args[0], context.get_value_type(signature.return_type))
        return builder.gep(base, [args[1]])

    return types.CPointer(like)(types.intp, types.intp, like), make


@compiled
def array_at(address, first, shape, like):  # type: ignore[no-untyped-def]
    """Return a contiguous tensor's array, from a row on.

    Args:
        address: of the tensor.
        first: row, a number that is counted along the first axis.
        shape: of the rest of the tensor, from there on.
        like: a number of its type.
    """
    start = first
    for axis in range(1, len(shape)):
        start *= shape[axis]
    return carray(_pointer(address, start, like), shape)


# Neither reordered nor contracted but to fused products, as what it makes of a number does not depend on others.
_exactly = numba.njit(nogil=True, fastmath={"contract"}, error_model="numpy")


@_exactly
def one_over_root(x, one):  # type: ignore[no-untyped-def]
    """Return 1 / sqrt(x), of infinity 0: where quotients may be products, an estimate is made of which infinity is NaN.

    Args:
        x: a number.
        one: of its type.
    """
    return one / math.sqrt(x)


@_exactly
def _exp_single(x):  # type: ignore[no-untyped-def]
    """Return exp of a float32 within 1.5e-7 of it, by operations that the vector units have; libm's is a call each."""
    single, whole = np.float32, np.int32
    y = min(max(x, single(-104)), single(89))  # zero and infinity beyond
    k = np.floor(y * single(1.4426950408889634) + single(0.5))
    r = (y - k * single(0.693359375)) - k * single(-2.12194440e-4)  # of log 2, the first part times k is exact
    total = single(1.9875691500e-4)
    total = total * r + single(1.3981999507e-3)
    total = total * r + single(8.3334519073e-3)
    total = total * r + single(4.1665795894e-2)
    total = total * r + single(1.6666665459e-1)
    total = total * r + single(5.0000001201e-1)
    total = total * r * r + r + single(1)
    half = whole(k) >> 1  # 2^k in two factors, as neither 2^128 nor 2^-150 is a float32
    first, second = whole((half + 127) << 23).view(single), whole((whole(k) - half + 127) << 23).view(single)
    return total * first * second if x == x else x  # of NaN no whole number is defined


@_exactly
def _log_single(x):  # type: ignore[no-untyped-def]
    """Return the logarithm of a float32 that is at least 1, in the same way."""
    single, whole = np.float32, np.int32
    bits = single(x).view(whole)
    k = whole(bits >> 23) - whole(126)
    m = whole((bits & whole(0x007FFFFF)) | whole(0x3F000000)).view(single)  # x = m 2^k, with m between a half and one
    low = m < single(0.707106781)
    m = (m + m if low else m) - single(1)
    e = single(k - whole(1) if low else k)
    z = m * m
    total = single(7.0376836292e-2)
    total = total * m - single(1.1514610310e-1)
    total = total * m + single(1.1676998740e-1)
    total = total * m - single(1.2420140846e-1)
    total = total * m + single(1.4249322787e-1)
    total = total * m - single(1.6668057665e-1)
    total = total * m + single(2.0000714765e-1)
    total = total * m - single(2.4999993993e-1)
    total = total * m + single(3.3333331174e-1)
    small = total * m * z - single(2.12194440e-4) * e - single(0.5) * z
    return m + small + single(0.693359375) * e if x < single(np.inf) else x  # of NaN nothing is as it says


@_exactly
def _tanh_single(x):  # type: ignore[no-untyped-def]
    """Return tanh of a float32 in the same way; of small numbers by a polynomial, as they would cancel in the other."""
    single = np.float32
    size, z = abs(x), x * x
    large = single(1) - single(2) / (_exp_single(size + size) + single(1))
    total = single(-5.70498872745e-3)
    total = total * z + single(2.06390887954e-2)
    total = total * z + single(-5.37397155531e-2)
    total = total * z + single(1.33314422036e-1)
    total = total * z + single(-3.33332819422e-1)
    small = total * z * x + x
    return small if size < single(0.625) else (-large if x < single(0) else large)


def _of_each_type(single: Any, double: Any) -> Callable[[_Function], _Function]:
    """Return what makes a name stand for one function of a float32, and for another of a float64, where it compiles."""

    def register(function: _Function) -> _Function:
        @overload(function, inline="always")  # type: ignore[misc, unused-ignore]
        def choose(x):  # type: ignore[no-untyped-def]
            return (lambda x: single(x)) if x == types.float32 else (lambda x: double(x))

        return function

    return register


@_of_each_type(_exp_single, math.exp)
def exp(x: Any) -> Any:
    """Return the exponential of a number, in compiled functions."""
    raise NotImplementedError


@_of_each_type(_log_single, math.log)
def log(x: Any) -> Any:
    """Return the logarithm of a number that is at least 1, in compiled functions."""
    raise NotImplementedError


@_of_each_type(_tanh_single, math.tanh)
def tanh(x: Any) -> Any:
    """Return the hyperbolic tangent of a number, in compiled functions."""
    raise NotImplementedError
