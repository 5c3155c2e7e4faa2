"""Writing to several streams and reading them for the next layer, in one pass over them."""

from __future__ import annotations

import torch
from torch import Tensor

from levada.ops._kernels import has_kernels
from levada.ops.manifold import Form, fit_reading, read_streams
from levada.ops.manifold.ahead.autograd import differentiable_pass
from levada.ops.streams import fit, write_streams

__all__ = ["write_and_read"]


def write_and_read(
    state: Tensor,
    out: Tensor,
    weights: Tensor,
    mix: Tensor | None,
    projection: Tensor,
    scale: Tensor,
    bias: Tensor,
    form: Form,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:
    """Return what `read_streams(write_streams(state, out, weights, mix), projection, scale, bias, form)` does.

    `x'_i = sum_j mix_ij x_j + weights_i out`, of which `x, reads, writes, mix` are made as by `read_streams`

    New streams are read for the next branch while they are there. Where the device has no kernel for it, or somebody
    looks at operations, these are the two operations: loops by blocks of tokens on a CPU, for what both have loops for;
    on a GPU Triton's, from compute capability 9.0 on, up to 4 streams.

    Args:
        state: the streams, `(..., n, dim)`.
        out: what the branch returned, `(..., dim)`.
        weights: of the output in each stream, `(..., n)`.
        mix: of the streams in each other, `(..., n, n)`; None for the identity.
        projection: the next layer's, as `scale`, `bias` and `form`; see `read_streams`.
        scale: likewise.
        bias: likewise.
        form: likewise.

    Raises:
        UsageError: as the two do.
    """
    tensors = (state, out, weights, projection, scale, bias, *(() if mix is None else (mix,)))
    fitting = fit(state, out, weights, mix) and fit_reading(state, projection, scale, bias, form)
    if not (fitting and has_kernels(*tensors) and _in_one_pass(state)):
        return read_streams(write_streams(state, out, weights, mix), projection, scale, bias, form)
    new, x, reads, writes, made = differentiable_pass(state, out, weights, mix, projection, scale, bias, *form)
    return x, reads, writes, made if form.mixes else None, new


def _in_one_pass(state: Tensor) -> bool:
    """Return whether the kernels of the device do both at once."""
    if not state.is_cuda:
        return True
    if state.dtype == torch.float64 or state.shape[-2] > _MOST_STREAMS:
        return False
    return torch.cuda.get_device_capability(state.device)[0] >= 9


_MOST_STREAMS = 4  # of more, a GPU's registers do not hold a block's channels and coefficients
