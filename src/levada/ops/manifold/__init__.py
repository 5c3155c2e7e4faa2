"""Reading several streams by weights that they decide themselves."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from levada.ops._define import is_observed
from levada.ops._kernels import has_kernels
from levada.ops.manifold import reference
from levada.ops.manifold.autograd import differentiable_read
from levada.ops.manifold.reference import Form

__all__ = ["Form", "read_streams"]


def read_streams(
    state: Tensor, projection: Tensor, scale: Tensor, bias: Tensor, form: Form
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:
    """Return what a branch reads of streams, the weights that read, write and mix, and the streams to write to.

    `a | b | c = scale (projection vec(x)) / rms(vec(x)) + bias`, `reads = sigmoid(a)`, `writes = 2 sigmoid(b)`,
    `mix = sinkhorn(c)` and `x = sum_j reads_j x_j`

    The last result is `state` itself: a gradient that comes by it is added in the same pass as the others.

    The device chooses the kernel: loops that Numba compiles on a CPU, where `levada[cpu]` is installed, for float32 and
    float64; Triton's on a GPU, for all others than float64, up to 7 streams in 16 bits, 10 in float32, and 64
    iterations; else the reference.

    Args:
        state: the streams, `(..., n, dim)`.
        projection: `(2 n + n^2, n dim)`; `(2 n, n dim)` without mixing.
        scale: `(3,)`, or `(2,)`.
        bias: `(2 n + n^2,)`, or `(2 n,)`.
        form: which of the connections' forms.
    """
    if not _takes_operation(state, projection, scale, bias):
        return *reference.read(state, projection, scale, bias, form), state
    x, reads, writes, mix, new = differentiable_read(state, projection, scale, bias, form)
    return x, reads, writes, mix if form.mixes else None, new


def _takes_operation(state: Tensor, *parameters: Tensor) -> bool:
    """Return whether the operation takes it, by kernels or without: unlike others, it has rules for `torch.func`."""
    if torch.compiler.is_compiling():
        return has_kernels(state, *parameters)
    plain = forward_ad._current_level >= 0 or is_observed()
    return not plain and all(type(x) in _PLAIN for x in (state, *parameters))


_PLAIN = (Tensor, torch.nn.Parameter)
