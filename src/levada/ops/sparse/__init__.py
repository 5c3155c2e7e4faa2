"""Reading all streams of sparse hyper-connections, and scoring them: by that is chosen who is mixed and written."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from levada.ops._kernels import has_kernels
from levada.ops.sparse import reference
from levada.ops.sparse.autograd import READ

__all__ = ["read_and_score", "replace_rows"]


def read_and_score(
    state: Tensor, projection: Tensor, scale: Tensor, bias: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what a branch reads of streams, the weights that read, the scores of the last streams, and the streams.

    `reads = sigmoid(scale (P vec(x)) / rms(vec(x)) + bias)`, `scores = sigmoid(R layernorm(vec(x)))` and
    `x = sum_j reads_j x_j`, where R are the first rows of `projection`, one for each stream with a score, and P the
    last n

    The last result is `state` itself: a gradient that comes by it is added in the same pass as the others.

    Loops that Numba compiles run on a CPU, where `levada[cpu]` is installed, for float32 and float64; else the
    reference.

    Args:
        state: the streams, `(..., n, dim)`.
        projection: `(m + n, n dim)`, for m scores.
        scale: `(1,)`.
        bias: `(n,)`.
        epsilon: what is added to the variance, and to the mean square.
    """
    if not has_kernels(state, projection, scale, bias) or state.is_cuda:
        return *reference.read(state, projection, scale, bias, epsilon), state
    x, reads, scores, new = READ(state, projection, scale, bias, epsilon)
    return x, reads, scores, new


def replace_rows(x: Tensor, places: Tensor, rows: Tensor) -> Tensor:
    """Return a matrix with some of its rows replaced.

    Nothing is kept for the backward pass but their places; `index_copy` would keep the new rows.

    Args:
        x: `(tokens, dim)`.
        places: of the rows, each at most once.
        rows: the new ones, of the same type.
    """
    if torch.compiler.is_compiling() or not has_kernels(x, rows):
        return x.index_copy(0, places, rows)
    new: Tensor = _Replaced.apply(x, places, rows)  # type: ignore[no-untyped-call]
    return new


class _Replaced(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        return x.index_copy(0, places, rows)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None, Tensor]:
        (places,) = ctx.saved_tensors
        return cotangent.index_fill(0, places, 0), None, cotangent.index_select(0, places)
