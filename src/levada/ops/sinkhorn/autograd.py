"""Derivatives of Sinkhorn normalisation, of any order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from levada.ops._define import (
    Kernel,
    define,
    empty_like,
    is_direct,
    is_observed,
    is_special,
    one_more_axis,
    triton_or_reference,
)
from levada.ops._fitting import Signature, axes, require_iterations
from levada.ops.sinkhorn import cpu, reference

__all__ = ["differentiable_sinkhorn"]

_KERNELS = "levada.ops.sinkhorn.triton"


def differentiable_sinkhorn(logits: Tensor, iterations: int, epsilon: float) -> Tensor:
    """Return the matrices of logits that were checked."""
    function = _function(logits, iterations, epsilon)
    if function is reference.sinkhorn:
        return reference.sinkhorn(logits, iterations, epsilon)
    *leading, n, _ = logits.shape
    mix: Tensor = function(logits.reshape(-1, n, n), iterations, epsilon)
    return mix.view(*leading, n, n)


def _function(logits: Tensor, iterations: int, epsilon: float) -> Kernel:
    """Return what computes: what has rules for plain operations alone gets these.

    The compiler makes better kernels of the reference than the operation has without any.
    """
    if torch.compiler.is_compiling():
        return _SINKHORN if logits.is_cuda or cpu.takes(logits, iterations, epsilon) else reference.sinkhorn
    return reference.sinkhorn if is_observed() or is_special(logits) else _Sinkhorn.apply


def _context(ctx: Any, inputs: tuple[Tensor, int, float], output: Tensor) -> None:
    logits, ctx.iterations, ctx.epsilon = inputs
    ctx.save_for_backward(logits)


def _derivative(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None, None]:
    (logits,) = ctx.saved_tensors
    # The backward pass of the backward pass goes through the reference, whose parts have all derivatives.
    again = torch.is_grad_enabled() or forward_ad._current_level >= 0
    function = reference.sinkhorn_backward if again and not torch.compiler.is_compiling() else _SINKHORN_BACKWARD
    return function(logits, cotangent, ctx.iterations, ctx.epsilon), None, None


class _Sinkhorn(torch.autograd.Function):
    """The matrices, by the kernel of the device; a CPU's is a plain function where nobody looks at operations."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, iterations: int, epsilon: float) -> Tensor:
        _context(ctx, (logits, iterations, epsilon), logits)
        function = cpu.sinkhorn if is_direct(logits) else _SINKHORN
        mix: Tensor = function(logits, iterations, epsilon)
        return mix

    backward = staticmethod(_derivative)


def _vmap(info: Any, dims: Any, logits: Tensor, iterations: int, epsilon: float) -> tuple[Tensor, int]:
    return one_more_axis(_SINKHORN, info, dims, logits, options=(iterations, epsilon)), 0


def _backward_vmap(info: Any, dims: Any, *given: Any) -> tuple[Tensor, int]:
    return one_more_axis(_SINKHORN_BACKWARD, info, dims, *given[:2], options=given[2:]), 0


def _shapes(logits: Tensor, *others: Any) -> tuple[tuple[int, ...], ...]:
    """Return as many shapes as there are tensors: the operation's, or with a cotangent its gradient's."""
    matrices, n, _ = axes("logits", logits, "matrices", "n", "n")
    require_iterations(others[-2])
    return ((matrices, n, n),) * (len(others) - 1)


def _fake(logits: Tensor, *_: Any) -> Tensor:
    return empty_like(logits)


_SINKHORN: Kernel = define(
    "sinkhorn",
    Signature(
        "(Tensor logits, int iterations, float epsilon) -> Tensor",
        _shapes,
    ),
    reference=reference.normalise,
    kernels={"CPU": cpu.sinkhorn, "CUDA": triton_or_reference(_KERNELS, "sinkhorn", reference.normalise)},
    fake=_fake,
    vmap=_vmap,
    setup_context=_context,
    backward=_derivative,
)
_SINKHORN_BACKWARD: Kernel = define(
    "sinkhorn_backward",
    Signature(
        "(Tensor logits, Tensor cotangent, int iterations, float epsilon) -> Tensor",
        _shapes,
        lambda logits, cotangent, *_: (None, logits.dtype),
    ),
    reference=reference.backward,
    kernels={
        "CPU": cpu.sinkhorn_backward,
        "CUDA": triton_or_reference(_KERNELS, "sinkhorn_backward", reference.backward),
    },
    fake=_fake,
    vmap=_backward_vmap,
    setup_context=None,
    backward=None,
)
