"""Reading the streams of hyper-connections on a CPU: products and tanh of PyTorch's, and loops that Numba compiles."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from levada.ops._cpu import array_of, blocks_of, loops_for, rows_of
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
    static = _static(own)
    weights, offset = _stacked(loops, own)
    options = offset, static.dtype.type(epsilon), own.shift is not None
    said = state.new_empty(rows_of(state), n, n + 2)
    with full_precision(state):
        for part in blocks_of(state):
            some, found, spoken = state[part], features[part], said[: part.stop - part.start]
            torch.mm(some.view(-1, width), weights.t(), out=found.view(-1, n + 2))
            loops.over_tokens(loops.normalise, [some, found, spoken, norms[part]], *options)
            made = reads[part], mix[part], writes[part], x[part]
            loops.over_tokens(loops.combine, [some, spoken.tanh_(), *made], static)
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
    weights, offset = _stacked(loops, own)
    said = (features + torch.from_numpy(offset)).tanh_()
    by_weights = torch.zeros_like(weights)
    options = _static(own), adds
    sums = []
    with full_precision(state):
        for part in blocks_of(state):
            streams, found = state[part].view(-1, width), by_found[part].view(-1, n + 2)
            tensors = [*(y[part] for y in arrived), state[part], said[part], features[part], norms[part]]
            sums += loops.over_tokens(loops.read_backward, [*tensors, by_state[part], by_found[part]], *options)
            by_weights.addmm_(found.t(), streams)
            by_state[part].view(-1, width).addmm_(found, weights)
    totalled = torch.from_numpy(sum(sums)).to(state.dtype)
    by_read, by_mix, by_write, by_scales, _ = torch.split(totalled, [n, n * n, n, 2, n + 2])
    by_projection, by_gain = empty_like(own.projection), empty_like(own.gain)
    by_shift = state.new_empty(0) if own.shift is None else empty_like(own.shift)
    by_own = (x.numpy() for x in (by_projection, by_gain, by_shift))
    loops.by_rows(by_weights.numpy(), sum(sums), *_arrays(own), *by_own)
    by_static = by_read.clone(), by_mix.clone().view(n, n), by_write.clone()  # no two results in one memory
    return by_state, *by_static, by_projection, *(y.clone() for y in torch.split(by_scales, 1)), by_gain, by_shift


def _static(own: Parameters) -> Any:
    """Return the weights of all tokens and the scales behind each other, in memory of their own."""
    # Memory that NumPy shares is no more resizable, as sharding wants that of parameters to be.
    parts = own.read, own.mix, own.write, own.mix_scale, own.write_scale
    return torch.cat([x.detach().flatten() for x in parts]).numpy()


def _arrays(own: Parameters) -> list[Any]:
    shift = own.gain.new_empty(0) if own.shift is None else own.shift
    return [array_of(x) for x in (own.projection, own.gain, shift)]


def _stacked(loops: ModuleType, own: Parameters) -> tuple[Tensor, Any]:
    """Return what `reference.stacked` does, the second as an array."""
    weights = empty_like(own.projection)
    offset = weights.new_empty(len(weights)).numpy()
    loops.stack(*_arrays(own), weights.numpy(), offset)
    return weights, offset
