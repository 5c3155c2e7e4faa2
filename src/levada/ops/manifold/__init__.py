"""Reading several streams by weights that they decide themselves."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from levada._errors import UsageError
from levada.ops._define import is_observed
from levada.ops._kernels import has_kernels
from levada.ops.manifold import reference
from levada.ops.manifold.autograd import differentiable_read
from levada.ops.manifold.reference import Form

__all__ = ["Form", "fit_reading", "read_streams"]


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

    Raises:
        UsageError: if shapes do not fit, a type is not a real floating one, or devices differ.
    """
    if not fit_reading(state, projection, scale, bias, form):
        raise _misfit(state, projection, scale, bias, form)
    if not _takes_operation(state, projection, scale, bias):
        return *reference.read(state, projection, scale, bias, form), state
    x, reads, writes, mix, new = differentiable_read(state, projection, scale, bias, form)
    return x, reads, writes, mix if form.mixes else None, new


def fit_reading(state: Tensor, projection: Tensor, scale: Tensor, bias: Tensor, form: Form) -> bool:
    """Return whether `read_streams` takes these: kernels find their way in memory by the streams' shape alone.

    Args:
        state: as for `read_streams`, as all of them.
        projection: likewise.
        scale: likewise.
        bias: likewise.
        form: likewise.
    """
    if state.ndim < 2:
        return False
    for x, shape in zip((projection, scale, bias), _shapes(state, form), strict=True):
        if x.shape != shape or not x.is_floating_point() or x.device != state.device:
            return False
    return state.is_floating_point()


def _shapes(state: Tensor, form: Form) -> tuple[tuple[int, ...], ...]:
    n, dim = state.shape[-2:]
    rows = n * (2 + n) if form.mixes else 2 * n
    return (rows, n * dim), (3 if form.mixes else 2,), (rows,)


def _misfit(state: Tensor, projection: Tensor, scale: Tensor, bias: Tensor, form: Form) -> UsageError:
    if state.ndim < 2 or not state.is_floating_point():
        return UsageError(
            f"read_streams: state must be (..., n, dim), of real floating point, got {tuple(state.shape)} of "
            f"{state.dtype}. Give the streams, the channels last."
        )
    given = {"projection": projection, "scale": scale, "bias": bias}
    expected = dict(zip(given, _shapes(state, form), strict=True))
    for name, x in given.items():
        if not x.is_floating_point() or x.device != state.device:
            return UsageError(
                f"read_streams: {name} must be of real floating point, on {state.device} as the streams are, got "
                f"{x.dtype} on {x.device}. Convert it first."
            )
    name = next(name for name, x in given.items() if x.shape != expected[name])
    return UsageError(
        f"read_streams: {name} must be {expected[name]} for streams {tuple(state.shape)}, "
        f"{'with' if form.mixes else 'without'} mixing, got {tuple(given[name].shape)}. Make it for these streams."
    )


def _takes_operation(state: Tensor, *parameters: Tensor) -> bool:
    """Return whether the operation takes it, by kernels or without: unlike others, it has rules for `torch.func`."""
    if torch.compiler.is_compiling():
        return has_kernels(state, *parameters)
    plain = forward_ad._current_level >= 0 or is_observed()
    return not plain and _PLAIN.issuperset(map(type, (state, *parameters)))


_PLAIN = frozenset({Tensor, torch.nn.Parameter})
