"""Derivatives of writing to streams, of any order, backward and forward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from levada.ops._define import define, empty_like, is_direct, one_more_axis, triton_or_reference
from levada.ops._fitting import Signature, axes
from levada.ops._reading import go_back
from levada.ops.streams import cpu, reference

__all__ = ["differentiable_write", "gradients"]

_KERNELS = "levada.ops.streams.triton"


def differentiable_write(
    state: Tensor, out: Tensor, weights: Tensor, mix: Tensor | None, shape: tuple[int, ...]
) -> Tensor:
    """Return the new streams, of arguments that were checked: tokens first, alike.

    Args:
        state: the streams.
        out: what the branch returned.
        weights: of the output in each stream.
        mix: of the streams in each other.
        shape: of the result.
    """
    # Only a function has a forward-mode derivative, and the compiler takes none that has.
    if torch.compiler.is_compiling():
        new: Tensor = _WRITE(state, out, weights, mix).view(shape)
        return new
    if torch._C._is_tracing():  # sizes are tensors then
        return reference.write(state, out, weights, mix).view(shape)
    function = _Write if torch._C._functorch.peek_interpreter_stack() is None else _Transformed
    if torch._C._len_torch_function_stack():  # whoever looks at operations sees one that has a gradient
        new = function.apply(state, out, weights, mix, tuple(state.shape)).view(shape)  # type: ignore[no-untyped-call]
    else:
        new = function.apply(state, out, weights, mix, tuple(shape))  # type: ignore[no-untyped-call]
    return new


def _context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    state, out, weights, mix = inputs
    ctx.mixes = mix is not None
    ctx.dtype = state.dtype
    # Without mixing no gradient needs the streams: they are not kept.
    ctx.save_for_backward(*((state, out, weights, mix) if ctx.mixes else (out, weights)))


def gradients(*given: Tensor | None) -> tuple[Tensor, ...]:
    """Return the gradients by streams, output, weights and mix; the first and the last are empty without a mix.

    Args:
        *given: the gradient by the new streams, and the four, tokens first.
    """
    return go_back("write_backward", reference, cpu, _WRITE_BACKWARD, given, (), ())


def _derivative(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
    if ctx.mixes:
        state, out, weights, mix = ctx.saved_tensors
    else:
        (out, weights), mix = ctx.saved_tensors, None
        state = cotangent
    by_state, by_out, by_weights, by_mix = gradients(cotangent, state, out, weights, mix)
    return (by_state, by_out, by_weights, by_mix) if ctx.mixes else (cotangent, by_out, by_weights, None)


def _written(state: Tensor, out: Tensor, weights: Tensor, mix: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    function = cpu.write if is_direct(state, out, weights, mix) else _WRITE
    new: Tensor = function(state, out, weights, mix)
    if new.shape == shape:
        return new
    with torch._C._AutoDispatchBelowADInplaceOrView():  # else it is a view, and FSDP2 warns of what returns views
        return new.view(shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.shape = inputs
    _context(ctx, tuple(tensors), output)
    ctx.flat = inputs[0].shape
    if forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None:  # a dozen calls
        ctx.save_for_forward(*(x for x in tensors if x is not None))


class _Write(torch.autograd.Function):
    """The new streams, by the kernel of the device."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> Tensor:
        new = _written(*given)
        _keep(ctx, given, new)
        return new

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        flat = cotangent if cotangent.shape == ctx.flat else cotangent.reshape(ctx.flat)
        return *_derivative(ctx, flat), None

    @staticmethod
    def jvp(ctx: Any, *given: Any) -> Tensor:
        *changes, _ = given
        # PyTorch calls this with all forward modes off: one around this one would take what follows for constant.
        with forward_ad._set_fwd_grad_enabled(True):  # type: ignore[no-untyped-call, unused-ignore]
            primals = [forward_ad.unpack_dual(x).primal for x in ctx.saved_tensors]  # type: ignore[no-untyped-call]
            return reference.along(*primals, *([] if ctx.mixes else [None]), *changes).view(ctx.shape)


class _Transformed(torch.autograd.Function):
    """The same for `torch.func`, which asks for a context that is set up afterwards.

    It is not taken elsewhere, as PyTorch looks at the signature of such a function at each call: 20 microseconds.
    """

    forward = staticmethod(_written)
    setup_context = staticmethod(_keep)
    backward = staticmethod(_Write.backward)
    jvp = staticmethod(_Write.jvp)

    # PyTorch's own rule would take `jvp` under its vmap, where no primal can be had of a dual number.
    @staticmethod
    def vmap(info: Any, dims: Any, *given: Any) -> tuple[Tensor, int]:
        *tensors, shape = given

        def write(state: Tensor, out: Tensor, weights: Tensor, mix: Tensor | None) -> Tensor:
            return differentiable_write(state, out, weights, mix, state.shape)

        new, axis = _vmap(write, info, dims[:-1], *tensors)
        return new.reshape(info.batch_size, *shape), axis


def _vmap(function: Any, info: Any, dims: tuple[int | None, ...], *tensors: Tensor | None) -> tuple[Any, int]:
    return one_more_axis(function, info, dims, *tensors), 0


def _backward_vmap(info: Any, dims: Any, *tensors: Tensor | None) -> tuple[tuple[Tensor, ...], int]:
    found = torch.vmap(reference.write_backward, in_dims=tuple(dims))(*tensors)  # type: ignore[arg-type]
    return found, tuple(0 for _ in found)  # type: ignore[return-value]


def _shapes(state: Tensor, out: Tensor, weights: Tensor, mix: Tensor | None) -> tuple[tuple[int, ...], ...]:
    tokens, n, dim = axes("state", state, "tokens", "n", "dim")
    return (tokens, n, dim), (tokens, dim), (tokens, n), (tokens, n, n)


def _fake(state: Tensor, out: Tensor, weights: Tensor, mix: Tensor | None) -> Tensor:
    return empty_like(state)


def _backward_fake(
    cotangent: Tensor, state: Tensor, out: Tensor, weights: Tensor, mix: Tensor | None
) -> tuple[Tensor, ...]:
    if mix is None:
        return state.new_empty(0), empty_like(out), empty_like(weights), weights.new_empty(0)
    return empty_like(state), empty_like(out), empty_like(weights), empty_like(mix)


_WRITE = define(
    "streams_write",
    Signature(
        "(Tensor state, Tensor out, Tensor weights, Tensor? mix) -> Tensor",
        _shapes,
    ),
    reference=reference.write,
    kernels={"CPU": cpu.write, "CUDA": triton_or_reference(_KERNELS, "write", reference.write)},
    fake=_fake,
    vmap=lambda info, dims, *tensors: _vmap(_WRITE, info, dims, *tensors),  # type: ignore[has-type]
    setup_context=_context,
    backward=_derivative,
)
_WRITE_BACKWARD = define(
    "streams_write_backward",
    Signature(
        "(Tensor cotangent, Tensor state, Tensor out, Tensor weights, Tensor? mix) -> (Tensor, Tensor, Tensor, Tensor)",
        lambda cotangent, *written: (written[0].shape, *_shapes(*written)),
    ),
    reference=reference.write_backward,
    kernels={
        "CPU": cpu.write_backward,
        "CUDA": triton_or_reference(_KERNELS, "write_backward", reference.write_backward),
    },
    fake=_backward_fake,
    vmap=_backward_vmap,
    setup_context=None,
    backward=None,
)
