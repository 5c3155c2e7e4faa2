"""Reading the streams of hyper-connections by weights that are the same for all tokens."""

from __future__ import annotations

from torch import Tensor

from levada.ops._ahead import takes_both, write_and_read
from levada.ops._kernels import has_kernels
from levada.ops.hyper.static import reference
from levada.ops.hyper.static.autograd import READ
from levada.ops.streams import write_streams

__all__ = ["read_static", "write_and_read_static"]


def read_static(state: Tensor, read: Tensor) -> tuple[Tensor, Tensor]:
    """Return what a branch reads, and the streams to write to.

    `x = sum_j read_j x_j`

    The last result is `state` itself: a gradient that comes by it is added in the same pass as the others.

    The device chooses the kernel: loops that Numba compiles on a CPU, where `levada[cpu]` is installed, for float32 and
    float64; Triton's on a GPU, for all others than float64; else the reference.

    Args:
        state: the streams, `(..., n, dim)`.
        read: weight of each stream, `(n,)`.
    """
    if not has_kernels(state, read):
        return reference.read(state, read), state
    x, new = READ(state, read)
    return x, new


def write_and_read_static(
    state: Tensor, out: Tensor, weights: Tensor, mix: Tensor, read: Tensor
) -> tuple[Tensor, Tensor]:
    """Return what `read_static(write_streams(state, out, weights, mix), read)` does.

    Where loops on a CPU take all of it, it is one node of the graph; elsewhere it is the two operations.

    Args:
        state: the streams, `(..., n, dim)`.
        out: what the branch returned, `(..., dim)`.
        weights: of the output in each stream, `(..., n)`, or `(n,)` for all tokens.
        mix: of the streams in each other, `(..., n, n)`, or `(n, n)` for all tokens.
        read: the next layer's weights.
    """
    leading = state.shape[:-2]
    if weights.ndim == 1:
        weights, mix = weights.expand(*leading, -1), mix.expand(*leading, -1, -1)
    if not takes_both(state, out, weights, mix, read):
        return read_static(write_streams(state, out, weights, mix), read)
    x, new = write_and_read(READ, state, out, weights, mix, read)
    return x, new
