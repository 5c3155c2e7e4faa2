"""Derivatives of reading the streams of hyper-connections, of any order backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from levada.ops._define import Kernel, define, empty_like, is_direct, one_by_one, triton_or_reference
from levada.ops.hyper import cpu, reference
from levada.ops.hyper.reference import Parameters

__all__ = ["differentiable_read"]

_KERNELS = "levada.ops.hyper.triton"


def differentiable_read(
    state: Tensor, own: Parameters, epsilon: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return what the branch reads, the weights that read, mix and write, and the streams to write to."""
    if torch.compiler.is_compiling():
        *leading, n, width = state.shape
        made = _READ(state.reshape(-1, n, width), *own, epsilon)[:4]
        x, reads, mix, writes = (y.view(*leading, *y.shape[1:]) for y in made)
        return x, reads, mix, writes, state
    found: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] = _Read.apply(state, *own, epsilon)  # type: ignore[no-untyped-call]
    return found


class _Read(torch.autograd.Function):
    """What the operation gives, and the streams themselves: a gradient that comes by them is added in the same pass.

    On a CPU, where nobody looks at operations, the kernel is called without the dispatcher. Tokens become the first
    axis, and leading axes again, in here: each would be a node of the graph out there.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        state, *others = arguments
        *leading, n, width = state.shape
        function = cpu.read if is_direct(state, *others[:-1]) else _READ
        *found, features, norms = function(state.reshape(-1, n, width), *others)
        _keep(ctx, arguments, (features, norms))
        with torch._C._AutoDispatchBelowADInplaceOrView():  # else they are views, and FSDP2 warns of these
            return *(y.view(*leading, *y.shape[1:]) for y in found), state

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        return _gradients(ctx, *cotangents)


def _keep(ctx: Any, arguments: tuple[Any, ...], kept: tuple[Tensor, ...]) -> None:
    *tensors, ctx.epsilon = arguments
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *kept)


def _context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[4:])
    _keep(ctx, inputs, output[4:])


def _gradients(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
    state, *given, features, norms = ctx.saved_tensors
    own = Parameters(*given)
    *leading, n, width = state.shape
    flat, tokens = state.reshape(-1, n, width), len(features)
    by_x, by_reads, by_mix, by_writes, by_new = (
        None if y is None else y.reshape(-1, *y.shape[len(leading) :]) for y in cotangents
    )
    arguments = (
        state.new_zeros(tokens, width) if by_x is None else by_x,
        by_reads,
        features.new_zeros(tokens, n, n) if by_mix is None else by_mix,
        features.new_zeros(tokens, n) if by_writes is None else by_writes,
        by_new,
        flat,
        *own,
    )
    found: tuple[Tensor, ...]
    # The backward pass of the backward pass goes through the reference, whose parts have all derivatives.
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        found = reference.read_backward(*arguments, None, None, ctx.epsilon)
    else:
        function: Kernel = cpu.read_backward if is_direct(*arguments, features) else _READ_BACKWARD
        found = function(*arguments, features, norms, ctx.epsilon)
    by_state, *others, by_shift = found
    return by_state.view(state.shape), *others, None if own.shift is None else by_shift, None


def _fake(state: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    tokens, n, width = state.shape
    full = torch.promote_types(state.dtype, torch.float32)
    shapes = [(n,), (n, n), (n,), (n, n + 2), (n, 2)]
    return state.new_empty(tokens, width), *(state.new_empty(tokens, *shape, dtype=full) for shape in shapes)


def _backward_fake(*arguments: Any) -> tuple[Tensor, ...]:
    *tensors, shift = arguments[5:14]
    return *map(empty_like, tensors), arguments[8].new_empty(0) if shift is None else empty_like(shift)


_OWN = (
    "Tensor state, Tensor read, Tensor mix, Tensor write, Tensor projection, Tensor mix_scale, Tensor write_scale, "
    "Tensor gain, Tensor? shift"
)
_READ: Kernel = define(
    "streams_read_hyper",
    f"({_OWN}, float epsilon) -> ({', '.join(['Tensor'] * 6)})",
    reference=reference.read_and_keep,
    kernels={"CPU": cpu.read, "CUDA": triton_or_reference(_KERNELS, "read", reference.read_and_keep)},
    fake=_fake,
    vmap=lambda info, dims, *arguments: one_by_one(_READ, info, dims, *arguments),
    setup_context=_context,
    backward=lambda ctx, *cotangents: _gradients(ctx, *cotangents[:4], None),
)
_READ_BACKWARD: Kernel = define(
    "streams_read_hyper_backward",
    f"(Tensor by_x, Tensor? by_reads, Tensor by_mix, Tensor by_writes, Tensor? by_new, {_OWN}, Tensor features, "
    f"Tensor norms, float epsilon) -> ({', '.join(['Tensor'] * 9)})",
    reference=reference.read_backward,
    kernels={
        "CPU": cpu.read_backward,
        "CUDA": triton_or_reference(_KERNELS, "read_backward", reference.read_backward),
    },
    fake=_backward_fake,
    vmap=lambda info, dims, *arguments: one_by_one(_READ_BACKWARD, info, dims, *arguments),
    setup_context=None,
    backward=None,
)
