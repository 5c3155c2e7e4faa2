"""Reading several streams by weights that were handed on, while they decide by which the next layer reads."""

from __future__ import annotations

from typing import TypeAlias

from torch import Tensor

from levada._errors import UsageError
from levada.ops._ahead import takes_both, write_and_read
from levada.ops._kernels import has_kernels
from levada.ops.manifold.handed import reference
from levada.ops.manifold.handed.autograd import READ
from levada.ops.manifold.reference import Form
from levada.ops.streams import write_streams

__all__ = ["Own", "read_handed", "write_and_read_handed"]

Own: TypeAlias = tuple[Tensor, Tensor, Tensor]  # projection, scale and bias


def read_handed(
    state: Tensor, handed: Tensor, projection: Tensor, scale: Tensor, bias: Tensor, form: Form
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:
    """Return what a branch reads, the weights that read next, write and mix, and the streams to write to.

    `x = sum_j handed_j x_j`; `reads`, `writes` and `mix` are those of `levada.ops.manifold.read_streams`

    The last result is `state` itself: a gradient that comes by it is added in the same pass as the others.

    The device chooses the kernel: loops that Numba compiles on a CPU, where `levada[cpu]` is installed, for float32 and
    float64; Triton's on a GPU, within the limits of `read_streams`; else the reference.

    Args:
        state: the streams, `(..., n, dim)`.
        handed: the weight of each stream in what is read, `(..., n)`.
        projection: `(2 n + n^2, n dim)`; `(2 n, n dim)` without mixing.
        scale: `(3,)`, or `(2,)`.
        bias: `(2 n + n^2,)`, or `(2 n,)`.
        form: which of the connections' forms.

    Raises:
        UsageError: if there is not one weight for each stream of each token.
    """
    _require_fitting(state, handed)
    if not has_kernels(state, handed, projection, scale, bias):
        return *reference.read(state, handed, projection, scale, bias, form), state
    if handed.ndim != 2:
        handed = handed.reshape(-1, handed.shape[-1])
    x, reads, writes, mix, new = READ(state, handed, projection, scale, bias, *form)
    return x, reads, writes, mix if form.mixes else None, new


def write_and_read_handed(
    state: Tensor, out: Tensor, weights: Tensor, mix: Tensor | None, handed: Tensor, own: Own, form: Form
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:
    """Return what `read_handed(write_streams(state, out, weights, mix), handed, ...)` does.

    Where loops on a CPU take all of it, it is one node of the graph; elsewhere it is the two operations.

    Args:
        state: the streams, `(..., n, dim)`.
        out: what the branch returned, `(..., dim)`.
        weights: of the output in each stream, `(..., n)`.
        mix: of the streams in each other, `(..., n, n)`; None for the identity.
        handed: the weight of each new stream in what is read of them, `(..., n)`.
        own: the next layer's projection, scale and bias.
        form: the next layer's.

    Raises:
        UsageError: if there is not one weight for each stream of each token.
    """
    _require_fitting(state, handed)
    if mix is None or not takes_both(state, out, weights, mix, handed, *own):
        return read_handed(write_streams(state, out, weights, mix), handed, *own, form)
    if handed.ndim != 2:
        handed = handed.reshape(-1, handed.shape[-1])
    x, reads, writes, made, new = write_and_read(READ, state, out, weights, mix, handed, *own, *form)
    return x, reads, writes, made if form.mixes else None, new


def _require_fitting(state: Tensor, handed: Tensor) -> None:
    if handed.shape != state.shape[:-1]:
        raise UsageError(
            f"read_handed: there must be one weight for each stream of each token, {tuple(state.shape[:-1])}, got "
            f"{tuple(handed.shape)}. Reshape them: in another order they would be other tokens'."
        )
