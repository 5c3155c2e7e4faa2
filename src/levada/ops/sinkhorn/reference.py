"""Sinkhorn normalisation by plain operations, with its exact gradient: what the kernels must compute."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["backward", "normalise", "sinkhorn", "sinkhorn_backward", "steps_at_once"]


def sinkhorn(logits: Tensor, iterations: int, epsilon: float) -> Tensor:
    """Return the matrices; only the logits are kept for their derivatives, of any order, backward and forward."""
    # The compiler takes no function that has a forward-mode derivative.
    function = _Sinkhorn if torch.compiler.is_compiling() else _ForwardSinkhorn
    mix: Tensor = function.apply(logits, iterations, epsilon)  # type: ignore[no-untyped-call]
    return mix


def normalise(logits: Tensor, iterations: int, epsilon: float) -> Tensor:
    """Return the matrices, contiguous."""
    kernel, rows, columns = _normalise(logits, iterations, epsilon)[1][-1]
    return (kernel * rows[-1] * columns[-1]).movedim((0, 1), (-2, -1)).contiguous()


class _Steps(NamedTuple):
    """Steps in a row, in which the matrix is `row * kernel * column`.

    Attributes:
        kernel: the matrix before the steps, `(n, n, ...)`; where it is the first, any factor of a row is left out.
        rows: the factors of rows, `(n, 1, ...)`, at the start and after each step.
        columns: the factors of columns, `(1, n, ...)`, in each step.
    """

    kernel: Tensor
    rows: list[Tensor]
    columns: list[Tensor]


def steps_at_once(n: int, dtype: torch.dtype) -> int:
    """Return how many steps may pass until no entry that the kernel lost could have grown to what rounding loses.

    Where rows sum to 1, columns sum to at most n, so that rows are divided by at least 1 / n after them; and likewise
    columns: no step multiplies an entry by more than n^2.
    """
    room = math.log2(torch.finfo(dtype).eps / torch.finfo(dtype).tiny) - 3
    return max(1, int(room / (2 * math.log2(n)))) if n > 1 else int(room)


def _normalise(logits: Tensor, iterations: int, epsilon: float) -> tuple[Tensor, list[_Steps]]:
    """Return the softmax of each column, with which the first step begins, and all steps from there.

    Batches last: sums over rows or columns are then sums of whole arrays. Without epsilon the first row step undoes any
    factor of a row, so that a row may be divided by its largest entry. What underflows then is zero until the factors
    are absorbed: a new kernel is made of the logarithms, in which nothing was lost. With epsilon no entry is below it.
    """
    logs = logits.movedim((-2, -1), (0, 1)).contiguous().log_softmax(0)
    softmax = logs.exp()
    if epsilon:
        kernel, at_once = softmax + epsilon, iterations
    else:
        logs = logs - logs.amax(1, keepdim=True)
        kernel, at_once = logs.exp(), steps_at_once(logits.shape[-1], logits.dtype)
    if iterations <= at_once:
        del logs  # so that what the steps go over stays in the cache
        return softmax, [_scale(kernel, range(iterations), epsilon)]
    found = [_scale(kernel, range(at_once), 0.0)]
    for start in range(at_once, iterations, at_once):
        logs = logs + found[-1].rows[-1].log() + found[-1].columns[-1].log()
        found.append(_scale(logs.exp(), range(start, min(iterations, start + at_once)), 0.0))
    return softmax, found


def _scale(kernel: Tensor, steps: range, epsilon: float) -> _Steps:
    row, column = torch.ones_like(kernel[:, :1]), torch.ones_like(kernel[:1])
    rows, columns = [row], []
    for step in steps:
        if step:
            total = (kernel * row).sum(0, keepdim=True)
            column = (total + epsilon / column if epsilon else total).reciprocal()
        columns.append(column)
        total = (kernel * column).sum(1, keepdim=True)
        row = (total + epsilon / row if epsilon else total).reciprocal()
        rows.append(row)
    return _Steps(kernel, rows, columns)


def sinkhorn_backward(logits: Tensor, cotangent: Tensor, iterations: int, epsilon: float) -> Tensor:
    """Return the gradient by the logits, by operations that have derivatives themselves."""
    softmax, found = _normalise(logits, iterations, epsilon)
    kernel, rows, columns = found[-1]
    # Gradients by the logarithms of the last factors, and by the kernel: less what goes by way of the sums.
    by_kernel = cotangent.movedim((-2, -1), (0, 1)) * rows[-1] * columns[-1]
    by_entry = by_kernel * kernel
    by_row, by_column = by_entry.sum(1, keepdim=True), by_entry.sum(0, keepdim=True)
    parts = []
    for place in range(len(found) - 1, -1, -1):
        kernel, rows, columns = found[place]
        for step in range(len(columns) - 1, -1, -1):
            row, column = rows[step], columns[step]
            part = by_row * rows[step + 1]
            by_kernel = torch.addcmul(by_kernel, part, column, value=-1)
            if not step and not place:
                break
            by_column = torch.addcmul(by_column, column, (kernel * part).sum(0, keepdim=True), value=-1)
            carried = epsilon * part / row if epsilon else torch.zeros_like(part)
            part = by_column * column
            by_kernel = torch.addcmul(by_kernel, row, part, value=-1)
            by_row = torch.addcmul(carried, row, (kernel * part).sum(1, keepdim=True), value=-1)
            by_column = epsilon * part / columns[step - 1] if epsilon else torch.zeros_like(part)
        # Absorbed factors cancel in the gradient by the logarithms: what a kernel was made of does not matter.
        parts.append((softmax if epsilon else kernel) * by_kernel)
        by_kernel = torch.zeros_like(by_kernel)
    by_logits = functools.reduce(torch.add, parts)
    by_logits = by_logits - softmax * by_logits.sum(0, keepdim=True)
    return by_logits.movedim((0, 1), (-2, -1))


def backward(logits: Tensor, cotangent: Tensor, iterations: int, epsilon: float) -> Tensor:
    """Return the same, contiguous."""
    return sinkhorn_backward(logits, cotangent, iterations, epsilon).contiguous()


class _Sinkhorn(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, iterations: int, epsilon: float) -> Tensor:
        return normalise(logits, iterations, epsilon)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int, float], output: Tensor) -> None:
        logits, ctx.iterations, ctx.epsilon = inputs
        ctx.save_for_backward(logits)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None, None]:
        (logits,) = ctx.saved_tensors
        return sinkhorn_backward(logits, cotangent, ctx.iterations, ctx.epsilon), None, None


class _ForwardSinkhorn(_Sinkhorn):
    generate_vmap_rule = False  # it would take `jvp` under its vmap, where no primal can be had of a dual number

    @staticmethod
    def vmap(info: Any, dims: Any, logits: Tensor, iterations: int, epsilon: float) -> tuple[Tensor, int]:
        mix: Tensor = _ForwardSinkhorn.apply(logits.movedim(dims[0], 0), iterations, epsilon)  # type: ignore[no-untyped-call]
        return mix, 0

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int, float], output: Tensor) -> None:
        _Sinkhorn.setup_context(ctx, inputs, output)
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        # PyTorch calls this with all forward modes off: one around this one would take what follows for constant.
        with forward_ad._set_fwd_grad_enabled(True):  # type: ignore[no-untyped-call, unused-ignore]
            (logits,) = ctx.saved_tensors
            primal = forward_ad.unpack_dual(logits).primal  # type: ignore[no-untyped-call]
            return _along(primal, tangent, ctx.iterations, ctx.epsilon)


def _along(logits: Tensor, tangent: Tensor, iterations: int, epsilon: float) -> Tensor:
    """Return the derivative of the matrix along a change of the logits."""
    softmax, found = _normalise(logits, iterations, epsilon)
    # Derivatives of the logarithms: of the first kernel, and of all factors so far, absorbed or not.
    of_kernel = tangent.movedim((-2, -1), (0, 1))
    of_kernel = of_kernel - (softmax * of_kernel).sum(0, keepdim=True)
    if epsilon:
        of_kernel = softmax / found[0].kernel * of_kernel
    of_row, of_column = torch.zeros_like(softmax[:, :1]), torch.zeros_like(softmax[:1])
    for place, (kernel, rows, columns) in enumerate(found):
        for step, (row, column) in enumerate(zip(rows, columns, strict=False)):
            if step or place:
                carried = epsilon / columns[step - 1] * of_column if epsilon else 0.0
                of_column = carried - (kernel * row * (of_kernel + of_row)).sum(0, keepdim=True)
                of_column = column * of_column
            carried = epsilon / row * of_row if epsilon else 0.0
            of_row = carried - (kernel * column * (of_kernel + of_column)).sum(1, keepdim=True)
            of_row = rows[step + 1] * of_row
    kernel, rows, columns = found[-1]
    derivative = kernel * rows[-1] * columns[-1] * (of_kernel + of_row + of_column)
    return derivative.movedim((0, 1), (-2, -1))
