"""Reading the streams of hyper-connections on a CPU: products and tanh of PyTorch's, and loops that Numba compiles."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from levada.ops._cpu import added, blocks_of, loops_for, rows_of
from levada.ops._define import empty_like
from levada.ops._precision import full_precision
from levada.ops.hyper import reference
from levada.ops.hyper.reference import Parameters

__all__ = ["read", "read_backward"]

_LOOPS = "levada.ops.hyper.loops"


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
    x, reads, mix, writes, features, norms = (state.new_empty(tokens, *shape) for shape in shapes)
    arrays = _arrays(own)
    weights, offset = map(torch.from_numpy, loops.stack(*arrays[1:]))
    options = offset.numpy(), arrays[0].dtype.type(epsilon), own.shift is not None
    said = state.new_empty(rows_of(state), n, n + 2)
    with full_precision(state):
        for part in blocks_of(state):
            some, found = part(state), part(features)
            spoken = said[: len(some)]
            torch.mm(some.view(-1, width), weights.t(), out=found.view(-1, n + 2))
            loops.over_tokens(loops.normalise, [some, found, spoken, part(norms)], *options)
            made = map(part, (reads, mix, writes, x))
            loops.over_tokens(loops.combine, [some, spoken.tanh_(), *made], arrays[0])
    return x, reads, mix, writes, features, norms


def read_backward(*arguments: Any) -> tuple[Tensor, ...]:
    """Return the gradients by state and `Parameters`; see the reference."""
    by_x, by_reads, by_mix, by_writes, by_new, state, *given, features, norms, _ = arguments
    own = Parameters(*given)
    loops = loops_for(_LOOPS, state, *own)
    if loops is None:
        return reference.read_backward(*arguments)
    tokens, n, width = state.shape
    state = state.contiguous()
    adds = by_new is not None
    by_state, by_found = empty_like(state), torch.empty_like(features)
    by_reads = state.new_zeros(tokens, n) if by_reads is None else by_reads
    arrived = [y.contiguous() for y in (by_x, by_reads, by_mix, by_writes, by_new if adds else state)]
    arrays = _arrays(own)
    weights, offset = map(torch.from_numpy, loops.stack(*arrays[1:]))
    said = (features + offset).tanh_()
    by_weights = torch.zeros_like(weights)
    options = arrays[0], adds
    sums = []
    with full_precision(state):
        for part in blocks_of(state):
            tensors = [*map(part, (*arrived, state, said, features, norms, by_state, by_found))]
            sums += loops.over_tokens(loops.read_backward, tensors, *options)
            found = tensors[-1].view(-1, n + 2)
            by_weights.addmm_(found.t(), part(state).view(-1, width))
            tensors[-2].view(-1, width).addmm_(found, weights)
    total = added(sums, torch.float64)
    by_projection, by_gain = empty_like(own.projection), empty_like(own.gain)
    by_shift = state.new_empty(0) if own.shift is None else empty_like(own.shift)
    loops.by_rows(by_weights.numpy(), total, *arrays[1:], *(x.numpy() for x in (by_projection, by_gain, by_shift)))
    ends = itertools.accumulate((n, n * n, n, 1, 1))
    parts = (total[end - size : end] for end, size in zip(ends, (n, n * n, n, 1, 1), strict=True))
    by_read, by_mix, by_write, *by_scales = (torch.from_numpy(added([part], state.dtype)) for part in parts)
    return by_state, by_read, by_mix.view(n, n), by_write, by_projection, *by_scales, by_gain, by_shift


def _arrays(own: Parameters) -> list[Any]:
    """Return the weights of all tokens and the scales behind each other, projection, gain and shift, in one copy."""
    # Memory that NumPy shares is no more resizable, as sharding wants that of parameters to be.
    static = own.read, own.mix, own.write, own.mix_scale, own.write_scale
    others = own.projection, own.gain, *(() if own.shift is None else (own.shift,))
    flat = torch.cat([x.detach().reshape(-1) for x in (*static, *others)]).numpy()
    rows, width = own.projection.shape
    first, last = rows * (rows - 2) + 2, rows * (rows - 2) + 2 + rows * width
    projection = flat[first:last].reshape(rows, width)
    return [flat[:first], projection, flat[last : last + width], flat[last + width :]]
