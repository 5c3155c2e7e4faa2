"""Sinkhorn normalisation on a GPU: a matrix stays in registers through all iterations, there and again on the way back.

A program takes so many matrices that each of its threads has one entry of them. The factors of all steps are kept in
registers, too: two numbers a step and thread. Reading streams takes its iterations from here.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator,assignment"
from __future__ import annotations

import functools
import warnings
from typing import Any, Final

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor

from levada.ops._define import empty_like
from levada.ops._device import on
from levada.ops.sinkhorn import reference

__all__ = ["MATRICES", "MOST_ITERATIONS", "normalise", "normalise_backward", "options_of", "sinkhorn"]
__all__ += ["sinkhorn_backward"]

# What a sweep may set: entries of the matrices that a program takes, and its warps.
MATRICES: Final = {"elements": 128, "num_warps": 4}
MOST_ITERATIONS: Final = 64  # all steps' factors are in registers
_MOST_ROWS = 16
_TYPES = {torch.float32, torch.float64}


@triton.jit
def normalise(logits, real, real_row, real_column, iterations: tl.constexpr, epsilon: tl.constexpr, work: tl.constexpr):
    """Return the softmax of columns, the kernel and all factors of rows and columns; see the reference.

    The matrix after step t is `rows[t + 1] kernel columns[t]`.
    """
    logits = logits.to(work)
    most = tl.where(real_column, tl.max(tl.where(real, logits, -float("inf")), 1), 0.0)
    softmax = tl.where(real, tl.exp(logits - most[:, None, :]), 0.0)
    total = tl.where(real_column, tl.sum(softmax, 1), 1.0)
    softmax = softmax / total[:, None, :]
    if epsilon == 0:  # the first row step undoes any factor of a row, so that none underflows whole
        logs = logits - most[:, None, :] - tl.log(total)[:, None, :]
        most_of_row = tl.where(real_row, tl.max(tl.where(real, logs, -float("inf")), 2), 0.0)
        kernel = tl.where(real, tl.exp(logs - most_of_row[:, :, None]), 0.0)
    else:
        kernel = tl.where(real, softmax + epsilon, 0.0)
    row = tl.full(real_row.shape, 1.0, dtype=work)
    column = tl.full(real_column.shape, 1.0, dtype=work)
    rows, columns = (row,), ()  # all that is in these is in registers
    for step in tl.static_range(iterations):
        if step > 0:
            total = tl.sum(kernel * row[:, :, None], 1)
            if epsilon != 0:
                total += epsilon / column
            column = 1 / tl.where(real_column, total, 1.0)
        columns = columns + (column,)  # noqa: RUF005
        total = tl.sum(kernel * column[:, None, :], 2)
        if epsilon != 0:
            total += epsilon / row
        row = 1 / tl.where(real_row, total, 1.0)
        rows = rows + (row,)  # noqa: RUF005
    return softmax, kernel, rows, columns


@triton.jit
def normalise_backward(by_mix, softmax, kernel, rows, columns, iterations: tl.constexpr, epsilon: tl.constexpr):
    """Return the gradient by the logits."""
    by_kernel = by_mix.to(kernel.dtype) * rows[iterations][:, :, None] * columns[iterations - 1][:, None, :]
    entry = by_kernel * kernel
    by_row, by_column = tl.sum(entry, 2), tl.sum(entry, 1)
    for back in tl.static_range(iterations):
        row, column = rows[iterations - 1 - back], columns[iterations - 1 - back]
        part = by_row * rows[iterations - back]
        by_kernel -= part[:, :, None] * column[:, None, :]
        by_column -= column * tl.sum(kernel * part[:, :, None], 1)
        if back < iterations - 1:
            by_row = tl.zeros_like(part)
            if epsilon != 0:
                by_row = epsilon * part / row
            part = by_column * column
            by_kernel -= row[:, :, None] * part[:, None, :]
            by_row -= row * tl.sum(kernel * part[:, None, :], 2)
            by_column = tl.zeros_like(part)
            if epsilon != 0:
                by_column = epsilon * part / columns[iterations - 2 - back]
    by_logits = by_kernel * kernel if epsilon == 0 else by_kernel * softmax
    return by_logits - softmax * tl.sum(by_logits, 1)[:, None, :]


@triton.jit
def _places(tokens, n: tl.constexpr, padded: tl.constexpr, together: tl.constexpr):
    """Return where a program's entries are, which of them there are, and which rows or columns there are."""
    token = tl.program_id(0).to(tl.int64) * together + tl.arange(0, together)
    stream = tl.arange(0, padded)
    i, j = stream[None, :, None], stream[None, None, :]
    matrices = (token < tokens)[:, None, None] & (i < n) & (j < n)
    real = tl.broadcast_to((stream < n)[None, :], (together, padded))
    return token[:, None, None] * (n * n) + i * n + j, matrices, real


@triton.jit(do_not_specialize=["tokens"])
def _sinkhorn(
    logits, mix, tokens,
    n: tl.constexpr, padded: tl.constexpr, together: tl.constexpr,
    iterations: tl.constexpr, epsilon: tl.constexpr, work: tl.constexpr,
):  # fmt: skip
    place, matrices, real = _places(tokens, n, padded, together)
    inside = real[:, :, None] & real[:, None, :]
    logit = tl.load(logits + place, mask=matrices, other=0.0)
    _, kernel, rows, columns = normalise(logit, inside, real, real, iterations, epsilon, work)
    tl.store(mix + place, kernel * rows[iterations][:, :, None] * columns[iterations - 1][:, None, :], mask=matrices)


@triton.jit(do_not_specialize=["tokens"])
def _sinkhorn_backward(
    logits, cotangent, by_logits, tokens,
    n: tl.constexpr, padded: tl.constexpr, together: tl.constexpr,
    iterations: tl.constexpr, epsilon: tl.constexpr, work: tl.constexpr,
):  # fmt: skip
    place, matrices, real = _places(tokens, n, padded, together)
    inside = real[:, :, None] & real[:, None, :]
    logit = tl.load(logits + place, mask=matrices, other=0.0)
    softmax, kernel, rows, columns = normalise(logit, inside, real, real, iterations, epsilon, work)
    g = tl.load(cotangent + place, mask=matrices, other=0.0)
    g = normalise_backward(g, softmax, kernel, rows, columns, iterations, epsilon)
    tl.store(by_logits + place, g, mask=matrices)


def sinkhorn(logits: Tensor, iterations: int, epsilon: float) -> Tensor:
    """Return the matrices, contiguous."""
    if not _takes(logits, iterations):
        return reference.normalise(logits, iterations, epsilon)
    mix = empty_like(logits)
    if logits.numel():
        options = options_of(logits.shape[-1], iterations, epsilon, logits.dtype, MATRICES)
        with on(logits.device):
            _sinkhorn[(triton.cdiv(len(logits), options["together"]),)](
                logits.contiguous(), mix, len(logits), **options
            )
    return mix


def sinkhorn_backward(logits: Tensor, cotangent: Tensor, iterations: int, epsilon: float) -> Tensor:
    """Return the gradient by the logits, contiguous."""
    if not _takes(logits, iterations):
        return reference.backward(logits, cotangent, iterations, epsilon)
    found = empty_like(logits)
    if logits.numel():
        options = options_of(logits.shape[-1], iterations, epsilon, logits.dtype, MATRICES)
        with on(logits.device):
            _sinkhorn_backward[(triton.cdiv(len(logits), options["together"]),)](
                logits.contiguous(), cotangent.contiguous(), found, len(logits), **options
            )
    return found


def options_of(n: int, iterations: int, epsilon: float, dtype: torch.dtype, chosen: dict[str, int]) -> dict[str, Any]:
    """Return a kernel's constants and warps.

    Args:
        n: rows of a matrix.
        iterations: how often they are normalised.
        epsilon: in the sums.
        dtype: of the logits.
        chosen: entries that a program takes, and warps.
    """
    padded = max(2, triton.next_power_of_2(n))
    # Past so many iterations an entry that underflowed could matter.
    lasting = epsilon or iterations <= reference.steps_at_once(n, torch.float32)
    return {
        "n": n,
        "padded": padded,
        "together": max(1, chosen["elements"] // padded**2),
        "iterations": iterations,
        "epsilon": epsilon,
        "work": tl.float32 if lasting and dtype != torch.float64 else tl.float64,
        "num_warps": max(chosen["num_warps"], padded**2 // 32),
    }


def _takes(logits: Tensor, iterations: int) -> bool:
    """Return whether the kernels take these; what is past their limits the reference gets, with a word."""
    n = logits.shape[-1]
    if n > _MOST_ROWS or iterations > MOST_ITERATIONS:
        _warn(n, iterations)
        return False
    return logits.dtype in _TYPES


@functools.cache  # which makes the warning the only one of its kind
def _warn(n: int, iterations: int) -> None:
    warnings.warn(
        f"sinkhorn: {iterations} iterations over matrices of {n} rows: the kernels for a GPU take at most "
        f"{MOST_ITERATIONS} and {_MOST_ROWS}. The reference runs, by plain operations, which is slow.",
        RuntimeWarning,
        stacklevel=3,
    )
