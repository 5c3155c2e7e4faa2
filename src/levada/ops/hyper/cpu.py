"""Reading the streams of hyper-connections on a CPU: by loops that Numba compiles; else the reference."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import torch
from torch import Tensor

from levada.ops._cpu import added, loops_for, number_of
from levada.ops._define import empty_like
from levada.ops._loading import or_reference
from levada.ops.hyper import reference
from levada.ops.hyper.reference import Parameters

__all__ = ["read", "read_backward"]

_LOOPS = "levada.ops.hyper.loops"


@or_reference
def read(state: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return what the branch reads, the weights that read, mix and write, and features and norms for the way back."""
    *given, epsilon = arguments
    own = Parameters(*given)
    loops = loops_for(_LOOPS, state, *own)
    if loops is None:
        return reference.read_and_keep(state, *arguments)
    tokens, n, width = state.shape
    state = state.contiguous()
    shapes = [(width,), (n,), (n, n), (n,), (n, n + 2), (n, 2)]
    found = x, reads, mix, writes, features, norms = tuple(state.new_empty(tokens, *shape) for shape in shapes)
    one, centred = number_of(state.dtype), own.shift is not None
    tensors = [state, *found, *map(Tensor.contiguous, _without_none(own))]
    loops.over_addresses(loops.read_at, tensors, n, width, one, type(one)(epsilon), centred)
    return x, reads, mix, writes, features, norms


@or_reference
def read_backward(*arguments: Any) -> tuple[Tensor, ...]:
    """Return the gradients by state and `Parameters`; see the reference."""
    by_x, by_reads, by_mix, by_writes, by_new, state, *given, features, norms, _ = arguments
    own = Parameters(*given)
    loops = loops_for(_LOOPS, state, *own)
    if loops is None:
        return reference.read_backward(*arguments)
    _, n, width = state.shape
    state = state.contiguous()
    by_state = empty_like(state)
    by_reads = torch.zeros_like(by_writes) if by_reads is None else by_reads
    arrived = by_x, by_reads, by_mix, by_writes, state if by_new is None else by_new, features, norms
    read, _, _, *others = map(Tensor.contiguous, _without_none(own))  # no gradient needs what mixes and writes
    one, centred = number_of(state.dtype), own.shift is not None
    tensors = [state, *map(Tensor.contiguous, arrived), by_state, read, *others]
    found = loops.over_addresses(loops.read_backward_at, tensors, n, width, one, centred, by_new is not None)
    total, by_weights = (functools.reduce(lambda x, y: x + y, parts) for parts in zip(*found, strict=True))
    by_projection, by_gain = empty_like(own.projection), empty_like(own.gain)
    by_shift = state.new_empty(0) if own.shift is None else empty_like(own.shift)
    projection, _, _, gain, shift = others
    written = tuple(map(Tensor.data_ptr, (projection, gain, shift, by_projection, by_gain, by_shift)))
    loops.by_rows_at(written, by_weights, total, n + 2, width, one, centred)
    ends = itertools.accumulate((n, n * n, n, 1, 1))
    parts = (total[end - size : end] for end, size in zip(ends, (n, n * n, n, 1, 1), strict=True))
    by_read, by_mix, by_write, *by_scales = (torch.from_numpy(added([part], state.dtype)) for part in parts)
    return by_state, by_read, by_mix.view(n, n), by_write, by_projection, *by_scales, by_gain, by_shift


def _without_none(own: Parameters) -> list[Tensor]:
    """Return the parameters; where there is no shift another in its place, which nobody reads."""
    return [own.gain if x is None else x for x in own]
