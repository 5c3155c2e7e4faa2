"""Reading the streams of hyper-connections, whose weights each stream decides by itself."""

from __future__ import annotations

from torch import Tensor

from levada.ops._ahead import takes_both, write_and_read
from levada.ops._kernels import has_kernels
from levada.ops.hyper import reference
from levada.ops.hyper.autograd import READ
from levada.ops.hyper.reference import Parameters
from levada.ops.streams import write_streams

__all__ = ["Parameters", "read_hyper", "write_and_read_hyper"]


def read_hyper(state: Tensor, own: Parameters, epsilon: float = 1e-5) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return what a branch reads, the weights that read, mix and write, and the streams to write to.

    `z_j = gain (x_j - mean(x_j)) / std(x_j) + shift`, `p_j | q_j | r_j = tanh(projection z_j)`,
    `reads_j = read_j + mix_scale p_j`, `mixed_ij = mix_ij + mix_scale q_ji`, `writes_j = write_j + write_scale r_j` and
    `x = sum_j reads_j x_j`; without `shift` streams are divided by their root mean square, and no mean is taken out

    The last result is `state` itself: a gradient that comes by it is added in the same pass as the others. The
    normalised streams are not kept for the backward pass, which makes them again.

    The device chooses the kernel: loops that Numba compiles on a CPU, where `levada[cpu]` is installed, for float32 and
    float64; Triton's on a GPU, for all others than float64; else the reference.

    Args:
        state: the streams, `(..., n, dim)`.
        own: the layer's parameters.
        epsilon: what is added to the variance of a stream, or to its mean square.
    """
    if not has_kernels(state, *(x for x in own if x is not None)):
        return *reference.read(state, own, epsilon), state
    x, reads, mix, writes, new = READ(state, *own, epsilon)
    return x, reads, mix, writes, new


def write_and_read_hyper(
    state: Tensor, out: Tensor, weights: Tensor, mix: Tensor, own: Parameters, epsilon: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return what `read_hyper(write_streams(state, out, weights, mix), own, epsilon)` does.

    Where loops on a CPU take all of it, it is one node of the graph; elsewhere it is the two operations.

    Args:
        state: the streams, `(..., n, dim)`.
        out: what the branch returned, `(..., dim)`.
        weights: of the output in each stream, `(..., n)`.
        mix: of the streams in each other, `(..., n, n)`.
        own: the next layer's parameters.
        epsilon: what is added to the variance of a stream, or to its mean square.
    """
    if not takes_both(state, out, weights, mix, *own):
        return read_hyper(write_streams(state, out, weights, mix), own, epsilon)
    x, reads, made, writes, new = write_and_read(READ, state, out, weights, mix, *own, epsilon)
    return x, reads, made, writes, new
