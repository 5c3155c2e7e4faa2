"""Derivatives of a residual connection and the norm behind it, of any order, backward and forward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from levada.ops._define import Kernel, define, empty_like, is_direct, one_more_axis, triton_or_reference
from levada.ops._fitting import Signature, axes
from levada.ops.residual_norm import cpu, reference

__all__ = ["differentiable_residual_norm", "direct_residual_norm"]

_KERNELS = "levada.ops.residual_norm.triton"
Given = tuple[Tensor, Tensor, Tensor | None, Tensor | None, bool, float]


def differentiable_residual_norm(*given: Any) -> tuple[Tensor, Tensor]:
    """Return the sum and what it is normalised, of arguments that were checked: tokens first, alike."""
    # Only a function has a forward-mode derivative, and the compiler takes none that has.
    function = _FORWARD if torch.compiler.is_compiling() else _ResidualNorm.apply
    new, normed = function(*given)
    return new, normed


def direct_residual_norm(*given: Any) -> tuple[Tensor, Tensor]:
    """Return the same without the dispatcher, which would take as long as the work on some hundred tokens.

    Of arguments that there are loops for, with any axes of tokens, where nobody looks at operations.
    """
    new, normed = _Direct.apply(*given)  # type: ignore[no-untyped-call]
    return new, normed


def _context(ctx: Any, inputs: Given, output: tuple[Tensor, Tensor]) -> None:
    state, out, weight, bias, ctx.centred, ctx.eps = inputs
    ctx.types = [None if x is None else x.dtype for x in (state, out, weight, bias)]
    ctx.save_for_backward(output[0], *([] if weight is None else [weight]))


def _derivative(ctx: Any, by_new: Tensor, by_normed: Tensor) -> tuple[Tensor | None, ...]:
    new, weight = (*ctx.saved_tensors, None)[:2]
    shifted = ctx.types[3] is not None
    function = reference.residual_norm_backward if _is_wanted_again() else _BACKWARD
    found = function(by_new, by_normed, new, weight, ctx.centred, ctx.eps, shifted)
    by = found[0], found[0], found[1] if weight is not None else None, found[2] if shifted else None
    return *(x if x is None else x.to(dtype) for x, dtype in zip(by, ctx.types, strict=True)), None, None


class _Direct(torch.autograd.Function):
    """The sum and its norm, by a function, of tensors of one type with any axes of tokens."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, Tensor]:
        new, normed = cpu.residual_norm(*given)
        ctx.save_for_backward(new, given[2])
        ctx.options = *given[4:], given[3] is not None
        return new, normed

    @staticmethod
    def backward(ctx: Any, by_new: Tensor, by_normed: Tensor) -> tuple[Tensor | None, ...]:
        new, weight = ctx.saved_tensors
        again = _is_wanted_again()
        if again or is_direct(by_new, by_normed, new, weight):
            function = reference.residual_norm_backward if again else cpu.residual_norm_backward
            by_sum, by_weight, by_bias = function(by_new, by_normed, new, weight, *ctx.options)
        else:
            rows = [x.reshape(-1, new.shape[-1]) for x in (by_new, by_normed, new)]
            by_rows, by_weight, by_bias = _BACKWARD(*rows, weight, *ctx.options)
            by_sum = by_rows.view(new.shape)
        shifted = ctx.options[-1]
        return by_sum, by_sum, None if weight is None else by_weight, by_bias if shifted else None, None, None


def _is_wanted_again() -> bool:
    """Return whether the backward pass has one, which goes through the reference: its parts have all derivatives."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


class _ResidualNorm(torch.autograd.Function):
    """The sum and its norm, by the kernel of the device."""

    backward = staticmethod(_derivative)

    @staticmethod
    def forward(*given: Any) -> tuple[Tensor, Tensor]:
        new, normed = _FORWARD(*given)
        return new, normed

    @staticmethod
    def setup_context(ctx: Any, inputs: Given, output: tuple[Tensor, Tensor]) -> None:
        _context(ctx, inputs, output)
        ctx.scaled = inputs[2] is not None
        ctx.save_for_forward(output[0], *([inputs[2]] if ctx.scaled else []))

    @staticmethod
    def jvp(ctx: Any, *changes: Any) -> tuple[Tensor, Tensor]:
        # PyTorch calls this with all forward modes off: one around this one would take what follows for constant.
        with forward_ad._set_fwd_grad_enabled(True):  # type: ignore[no-untyped-call, unused-ignore]
            primals = [forward_ad.unpack_dual(x).primal for x in ctx.saved_tensors]  # type: ignore[no-untyped-call]
            new, weight = (*primals, None)[:2]
            return reference.along(new, weight, ctx.centred, ctx.eps, changes[:4])

    # PyTorch's own rule would take `jvp` under its vmap, where no primal can be had of a dual number.
    @staticmethod
    def vmap(info: Any, dims: Any, *given: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return _vmap(differentiable_residual_norm, info, dims, *given)


def _vmap(function: Any, info: Any, dims: tuple[int | None, ...], *given: Any) -> tuple[Any, tuple[int, ...]]:
    """Call with one more axis of tokens, which the axis of `vmap` is; with weights of its own by the reference."""
    if dims[2] is not None or dims[3] is not None:
        return torch.vmap(reference.residual_norm, in_dims=tuple(dims))(*given), (0, 0)
    return one_more_axis(function, info, dims, *given[:2], options=given[2:]), (0, 0)


def _backward_vmap(info: Any, dims: Any, *given: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    return torch.vmap(reference.residual_norm_backward, in_dims=tuple(dims))(*given), (0, 0, 0)


def _shapes(state: Tensor, out: Tensor, weight: Tensor | None, bias: Tensor | None, *_: Any) -> tuple[Any, ...]:
    tokens, dim = axes("state", state, "tokens", "dim")
    return (tokens, dim), (tokens, dim), (dim,), (dim,)


def _backward_shapes(by_new: Tensor, by_normed: Tensor, new: Tensor, *_: Any) -> tuple[Any, ...]:
    tokens, dim = axes("new", new, "tokens", "dim")
    return (tokens, dim), (tokens, dim), (tokens, dim), (dim,)


def _fake(state: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return empty_like(state), empty_like(state)


def _backward_fake(
    by_new: Tensor, by_normed: Tensor, new: Tensor, weight: Tensor | None, centred: bool, eps: float, shifted: bool
) -> tuple[Tensor, Tensor, Tensor]:
    full, width = reference.full_type(new, weight), new.shape[-1]
    by_weight = new.new_empty(0 if weight is None else width, dtype=full)
    return empty_like(new), by_weight, new.new_empty(width if shifted else 0, dtype=full)


_FORWARD: Kernel = define(
    "residual_norm",
    Signature(
        "(Tensor state, Tensor out, Tensor? weight, Tensor? bias, bool centred, float eps) -> (Tensor, Tensor)",
        _shapes,
    ),
    reference=reference.residual_norm,
    kernels={"CPU": cpu.residual_norm, "CUDA": triton_or_reference(_KERNELS, "residual_norm", reference.residual_norm)},
    fake=_fake,
    vmap=lambda info, dims, *given: _vmap(_FORWARD, info, dims, *given),
    setup_context=_context,
    backward=_derivative,
)
_BACKWARD: Kernel = define(
    "residual_norm_backward",
    Signature(
        "(Tensor by_new, Tensor by_normed, Tensor new, Tensor? weight, bool centred, float eps, bool shifted) "
        "-> (Tensor, Tensor, Tensor)",
        _backward_shapes,
    ),
    reference=reference.residual_norm_backward,
    kernels={
        "CPU": cpu.residual_norm_backward,
        "CUDA": triton_or_reference(_KERNELS, "residual_norm_backward", reference.residual_norm_backward),
    },
    fake=_backward_fake,
    vmap=_backward_vmap,
    setup_context=None,
    backward=None,
)
