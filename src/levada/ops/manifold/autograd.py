"""Derivatives of reading streams, of any order backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from levada.ops._define import Kernel, define, empty_like, is_direct, one_by_one, triton_or_reference
from levada.ops.manifold import cpu, reference
from levada.ops.manifold.reference import Form

__all__ = ["FORM", "differentiable_read"]

_KERNELS = "levada.ops.manifold.triton"


def differentiable_read(
    state: Tensor, projection: Tensor, scale: Tensor, bias: Tensor, form: Form
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return what the branch reads, the weights that read, write and mix, and the streams to write to."""
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:
        function = _READ if torch.compiler.is_compiling() else _Transformed.apply
        *leading, n, width = state.shape
        found_flat = function(state.reshape(-1, n, width).contiguous(), projection, scale, bias, *form)
        x, reads, writes, mix = (y.view(*leading, *y.shape[1:]) for y in found_flat[:4])
        return x, reads, writes, mix, state
    found: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] = _Read.apply(state, projection, scale, bias, *form)  # type: ignore[no-untyped-call]
    return found


class _Read(torch.autograd.Function):
    """What the operation gives, and the streams themselves: a gradient that comes by them is added in the same pass.

    An operation's result may not be its argument: only a function can hand the streams on. On a CPU it calls the kernel
    itself: nothing is left to dispatch, which would take as long as the work on few tokens. Tokens become the first
    axis, and leading axes again, in here: each would be a node of the graph out there.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        state, *others = arguments
        *leading, n, width = state.shape
        function = cpu.read if is_direct(state, *others[:3]) else _READ
        *found, features, inverse = function(state.reshape(-1, n, width), *others)
        _keep(ctx, arguments, (features, inverse))
        with torch._C._AutoDispatchBelowADInplaceOrView():  # else they are views, and FSDP2 warns of these
            return *(y.view(*leading, *y.shape[1:]) for y in found), state

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        return _gradients(ctx, *cotangents)


class _Transformed(torch.autograd.Function):
    """The operation for `torch.func`, whose functions may not hand an argument on and keep it."""

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = _READ(*arguments)
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _context(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        return _derivative(ctx, *cotangents)

    @staticmethod
    def vmap(info: Any, dims: Any, *arguments: Any) -> tuple[Any, Any]:
        return _vmap(_Transformed.apply, info, dims, *arguments)


def _keep(ctx: Any, arguments: tuple[Any, ...], found: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*arguments[:4], *found)
    ctx.form = Form(*arguments[4:])


def _context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[4:])
    _keep(ctx, inputs, output[4:])


def _derivative(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
    return _gradients(ctx, *cotangents[:4], None)


def _gradients(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
    by_x, by_reads, by_writes, by_mix, by_new = cotangents
    given_state, projection, scale, bias, features, inverse = ctx.saved_tensors
    form = ctx.form
    *leading, n, width = given_state.shape
    if len(leading) == 1:
        state = given_state
    else:
        state = given_state.reshape(-1, n, width)
        by_x, by_reads, by_writes, by_mix, by_new = (
            None if y is None else y.reshape(-1, *y.shape[len(leading) :]) for y in cotangents
        )
    tokens = len(state)
    given = (
        state.new_zeros(tokens, width) if by_x is None else by_x,
        by_reads,
        features.new_zeros(tokens, n) if by_writes is None else by_writes,
        features.new_zeros(tokens, n if form.mixes else 0, n) if by_mix is None else by_mix,
        by_new,
        *(state, projection, scale, bias),
    )
    found: tuple[Tensor, ...]
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        # The backward pass of the backward pass goes through the reference, whose parts have all derivatives.
        found = reference.read_backward(*given, None, None, *form)
    else:
        function = cpu.read_backward if is_direct(*given, features) else _READ_BACKWARD
        found = function(*given, features, inverse, *form)
    by_state, *others = found
    return by_state.view(given_state.shape), *others, *(None for _ in form)


def _vmap(function: Any, info: Any, dims: Any, *arguments: Any) -> tuple[Any, Any]:
    """Call with one more axis of tokens, which the axis of `vmap` is, unless parameters have it too."""
    state, *others = arguments
    if any(dim is not None for dim in dims[1:]):
        return one_by_one(function, info, dims, *arguments)
    found = function(state.movedim(dims[0], 0).flatten(0, 1), *others)
    return tuple(y.unflatten(0, (info.batch_size, -1)) for y in found), (0,) * len(found)


def _fake(state: Tensor, projection: Tensor, scale: Tensor, bias: Tensor, *options: Any) -> tuple[Tensor, ...]:
    tokens, n, width = state.shape
    shapes = [(n,), (n,), (n if Form(*options).mixes else 0, n), (projection.shape[0],), ()]
    full = torch.promote_types(state.dtype, torch.float32)
    return state.new_empty(tokens, width), *(state.new_empty(tokens, *shape, dtype=full) for shape in shapes)


def _backward_fake(*arguments: Any) -> tuple[Tensor, ...]:
    return tuple(empty_like(x) for x in arguments[5:9])


FORM = (
    "bool mixes, int iterations, float epsilon, float read_epsilon, float write_epsilon, float norm_epsilon, "
    "bool transposed"
)
_READ: Kernel = define(
    "streams_read",
    f"(Tensor state, Tensor projection, Tensor scale, Tensor bias, {FORM}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference=reference.read_and_keep,
    kernels={"CPU": cpu.read, "CUDA": triton_or_reference(_KERNELS, "read", reference.read_and_keep)},
    fake=_fake,
    vmap=lambda info, dims, *arguments: _vmap(_READ, info, dims, *arguments),
    setup_context=_context,
    backward=_derivative,
)
_READ_BACKWARD: Kernel = define(
    "streams_read_backward",
    "(Tensor by_x, Tensor? by_reads, Tensor by_writes, Tensor by_mix, Tensor? by_new, Tensor state, Tensor projection, "
    f"Tensor scale, Tensor bias, Tensor features, Tensor inverse, {FORM}) -> (Tensor, Tensor, Tensor, Tensor)",
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
