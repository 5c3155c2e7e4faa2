"""A residual connection and the norm behind it, in one pass over memory."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from levada._errors import UsageError
from levada.ops._define import is_direct
from levada.ops._kernels import TYPES
from levada.ops.residual_norm import cpu
from levada.ops.residual_norm.autograd import differentiable_residual_norm, direct_residual_norm

__all__ = ["residual_norm"]


def residual_norm(
    state: Tensor,
    out: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    centred: bool = False,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    r"""Return what a residual connection makes of a branch's output, and that normalised for the next branch.

    `y = x + f` and `z = (y - m) / sqrt(mean((y - m)^2) + eps) * weight + bias` over the channels, where m is zero, as
    in an RMS norm, or with `centred` the mean of y, as in a layer norm

    The sum is rounded to the type of the state before it is normalised, as two operations would, and everything else
    computed in float32, or float64, whatever autocast says. Kernels keep y alone for the backward pass. Derivatives
    exist of any order, backward and, outside of what is compiled, forward.

    The device chooses the kernel: on a CPU, for tensors all of float32 or float64, loops that Numba compiles, where
    `levada[cpu]` is installed, and elsewhere PyTorch's own RMS norm; Triton's on a GPU, up to 16,384 channels; else the
    reference, with a warning if it is for the width.

    Args:
        state: the stream x.
        out: what the branch returned, f.
        weight: of each channel; one if left out.
        bias: of each channel; zero if left out.
        centred: whether to subtract the mean.
        eps: what is added to the mean square.

    Shape:
        `state` and `out` are `(..., dim)`, alike; `weight` and `bias` `(dim,)`; both results are as `state`, in its
        type.

    Cost:
        Moves `4 dim` elements per token forward and `4 dim` backward; addition and norm one after the other move
        `5 dim` forward.

    Raises:
        UsageError: if shapes or devices differ, a type is not a real floating one, or `eps` is negative.

    Example:
        >>> import torch
        >>> y, z = residual_norm(torch.tensor([1.0, -2.0]), torch.tensor([2.0, 6.0]), eps=0.0)
        >>> y.tolist(), (z * 12.5**0.5).tolist()
        ([3.0, 4.0], [3.0, 4.0])

    Source: Zhang and Sennrich, 2019, arXiv 1910.07467 (RMSNorm); Ba et al., 2016, arXiv 1607.06450 (layer norm).
    """
    given = state, out, weight, bias
    if not torch.compiler.is_compiling() and eps >= 0 and _fit(*given) and cpu.takes(*given) and is_direct(*given):
        return direct_residual_norm(*given, centred, eps)
    _require(*given, eps)
    if not centred and _by_torch(*given):
        return _with_torch(state + out, weight, bias, eps)
    width = state.shape[-1]
    rows = [x.reshape(state.shape[:-1].numel(), width) for x in (state, out)]
    new, normed = differentiable_residual_norm(*rows, weight, bias, centred, eps)
    return new.view(state.shape), normed.view(state.shape)


def _fit(state: Tensor, out: Tensor, weight: Tensor | None, bias: Tensor | None) -> bool:
    """Return whether shapes do, which is all that is to be asked of tensors that kernels on a CPU take."""
    shape = state.shape
    if not shape or out.shape != shape:
        return False
    row = shape[-1:]
    return (weight is None or weight.shape == row) and (bias is None or bias.shape == row)


def _require(state: Tensor, out: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> None:
    if state.ndim < 1 or not state.is_floating_point():
        raise UsageError(
            f"residual_norm: state must be (..., dim), of real floating point, got {tuple(state.shape)} of "
            f"{state.dtype}. Give the stream, the channels last."
        )
    shapes = {"out": state.shape, "weight": state.shape[-1:], "bias": state.shape[-1:]}
    for (name, shape), x in zip(shapes.items(), (out, weight, bias), strict=True):
        if x is not None and (x.shape != shape or not x.is_floating_point() or x.device != state.device):
            raise UsageError(
                f"residual_norm: {name} must be {tuple(shape)}, of real floating point, on {state.device} as the state "
                f"is, got {tuple(x.shape)} of {x.dtype} on {x.device}. Reshape or convert it."
            )
    if not eps >= 0:
        raise UsageError(f"residual_norm: eps must be at least 0, got {eps!r}. It is added to a mean square.")


def _by_torch(state: Tensor, out: Tensor, weight: Tensor | None, bias: Tensor | None) -> bool:
    """Return whether PyTorch's own RMS norm does the same, and faster than plain operations, where there are no loops.

    Its layer norm is faster too, and wrong in derivatives of second order forward, and of third.
    """
    if state.device.type != "cpu" or torch.compiler.is_compiling() or cpu.takes(state):
        return False
    alike = all(x is None or x.dtype == state.dtype for x in (out, weight, bias))
    return alike and state.dtype in TYPES and state.numel() > 0


def _with_torch(new: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    normed = functional.rms_norm(new, list(new.shape[-1:]), weight, eps)
    return new, normed if bias is None else normed + bias
