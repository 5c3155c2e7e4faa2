"""Derivatives of reading streams through gates, of any order backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from levada.ops._define import Kernel, define, empty_like, is_direct, one_by_one, triton_or_reference
from levada.ops.gated import cpu, reference

__all__ = ["differentiable_read"]

_KERNELS = "levada.ops.gated.triton"


def differentiable_read(state: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the branch reads, the weights that write, and the streams to write to; tokens first."""
    if torch.compiler.is_compiling():
        x, writes, _, _ = _READ(state, *others)
        return x, writes, state
    found: tuple[Tensor, Tensor, Tensor] = _Read.apply(state, *others)  # type: ignore[no-untyped-call]
    return found


class _Read(torch.autograd.Function):
    """What the operation gives, and the streams themselves: a gradient that comes by them is added in the same pass.

    On a CPU, where nobody looks at operations, the kernel is called without the dispatcher.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        x, writes, *kept = (cpu.read if is_direct(*arguments[:5]) else _READ)(*arguments)
        _keep(ctx, arguments, kept)
        return x, writes, arguments[0]

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        return _gradients(ctx, *cotangents)


def _keep(ctx: Any, arguments: tuple[Any, ...], kept: Any) -> None:
    *tensors, ctx.epsilon = arguments
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *kept)


def _context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[2:])
    _keep(ctx, inputs, output[2:])


def _gradients(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
    by_x, by_writes, by_new = cotangents
    state, *parameters, found, inverse = ctx.saved_tensors
    *_, down, _, projection = parameters
    tokens, _, width = state.shape
    given = (
        state.new_zeros(tokens, width) if by_x is None else by_x,
        found.new_zeros(tokens, found.shape[1] - len(down)) if by_writes is None else by_writes,
        by_new,
        *(state, *parameters),
    )
    # The backward pass of the backward pass goes through the reference, whose parts have all derivatives.
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        *gradients, by_projection = reference.read_backward(*given, None, None, ctx.epsilon)
    else:
        function: Kernel = cpu.read_backward if is_direct(*given, found) else _READ_BACKWARD
        *gradients, by_projection = function(*given, found, inverse, ctx.epsilon)
    return *gradients, None if projection is None else by_projection, None


def _fake(
    state: Tensor, gain: Tensor, down: Tensor, up: Tensor, projection: Tensor | None, epsilon: float
) -> tuple[Tensor, ...]:
    tokens, n, width = state.shape
    rows = 0 if projection is None else len(projection)
    full = torch.promote_types(state.dtype, torch.float32)
    kept = (state.new_empty(tokens, size, dtype=full) for size in (rows, len(down) + rows, n))
    return state.new_empty(tokens, width), *kept


def _backward_fake(*arguments: Any) -> tuple[Tensor, ...]:
    *tensors, projection = arguments[3:8]
    by_projection = arguments[8].new_empty(0, tensors[2].shape[1]) if projection is None else empty_like(projection)
    return *map(empty_like, tensors), by_projection


_READ: Kernel = define(
    "streams_read_gated",
    "(Tensor state, Tensor gain, Tensor down, Tensor up, Tensor? projection, float epsilon) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    reference=reference.read_and_keep,
    kernels={"CPU": cpu.read, "CUDA": triton_or_reference(_KERNELS, "read", reference.read_and_keep)},
    fake=_fake,
    vmap=lambda info, dims, *arguments: one_by_one(_READ, info, dims, *arguments),
    setup_context=_context,
    backward=lambda ctx, *cotangents: _gradients(ctx, *cotangents[:2], None),
)
_READ_BACKWARD: Kernel = define(
    "streams_read_gated_backward",
    "(Tensor by_x, Tensor by_writes, Tensor? by_new, Tensor state, Tensor gain, Tensor down, Tensor up, "
    "Tensor? projection, Tensor found, Tensor inverse, float epsilon) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
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
