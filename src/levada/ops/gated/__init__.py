"""Reading several streams through a gate for each element."""

from __future__ import annotations

from torch import Tensor

from levada.ops._kernels import has_kernels
from levada.ops.gated import reference
from levada.ops.gated.autograd import READ

__all__ = ["read_gated"]


def read_gated(
    state: Tensor, gain: Tensor, down: Tensor, up: Tensor, projection: Tensor | None = None, epsilon: float = 1e-6
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what a branch reads of streams through gates, the weights that write, and the streams to write to.

    `r_i = gain_i x_i / rms(x_i)`, `G = sigmoid(up silu(down vec(r) / n))`, `writes = 2 sigmoid(projection vec(r) / n)`
    and `x = (1 / n) sum_i G_i * r_i`

    The last result is `state` itself: a gradient that comes by it is added in the same pass as the others. Neither the
    normalised streams nor the gates are kept for the backward pass, which makes them again.

    The device chooses the kernel: loops that Numba compiles between products of PyTorch's on a CPU, where `levada[cpu]`
    is installed, for float32 and float64; Triton's on a GPU, for all others than float64; else the reference.

    Args:
        state: the streams, `(..., n, dim)`.
        gain: `(n, dim)`.
        down: `(rank, n dim)`.
        up: `(n dim, rank)`.
        projection: `(n, n dim)`; without it there are no weights that write: `(..., 0)`.
        epsilon: what is added to the mean square of a stream.
    """
    tensors = (state, gain, down, up, *(() if projection is None else (projection,)))
    if not has_kernels(*tensors):
        return *reference.read(state, gain, down, up, projection, epsilon), state
    x, writes, new = READ(state, gain, down, up, projection, epsilon)
    return x, writes, new
