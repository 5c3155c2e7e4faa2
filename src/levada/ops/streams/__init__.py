"""Writing to several streams: each is mixed of all, and gets its part of what a branch returned."""

from __future__ import annotations

import torch
from torch import Tensor

from levada._errors import UsageError
from levada.ops.streams.autograd import differentiable_write

__all__ = ["fit", "write_streams"]


def write_streams(state: Tensor, out: Tensor, weights: Tensor, mix: Tensor | None = None) -> Tensor:
    """Return streams after a layer has written to them.

    `x'_i = sum_j mix_ij x_j + weights_i out`, where mix is the identity if it is left out

    Sums are computed in the type of `weights` and returned in that of the streams, whatever autocast says. Derivatives
    exist of any order, backward and, outside of what is compiled, forward. Without `mix` no gradient needs the streams,
    and they are not kept for the backward pass.

    The device chooses the kernel: loops that Numba compiles on a CPU, where `levada[cpu]` is installed, for float32 and
    float64; Triton's on a GPU; else the reference.

    Args:
        state: the streams.
        out: what the branch returned.
        weights: of the output in each stream.
        mix: `mix[..., i, j]` is the weight of stream j in the new stream i.

    Shape:
        `state` is `(..., n, dim)`, `out` `(..., dim)`, `weights` `(..., n)` and `mix` `(..., n, n)`; the leading axes
        of weights and mix are broadcast to those of the streams, and the result is as `state`.

    Cost:
        No parameters. Moves `(2 n + 1) dim` elements per token forward; backward `(3 n + 2) dim`, without mix
        `(n + 2) dim`. Keeps its arguments for the backward pass, without `mix` all but `state`.

    Raises:
        UsageError: if shapes do not fit, a type is not a real floating one, or devices differ.

    Example:
        >>> streams = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> mix = torch.tensor([[0.5, 0.5], [0.0, 1.0]])
        >>> write_streams(streams, torch.ones(2), torch.tensor([0.0, 2.0]), mix)
        tensor([[0.5000, 0.5000],
                [2.0000, 3.0000]])

    Source: Xie et al., 2025, arXiv 2512.24880 (mHC), whose second kernel it is.
    """
    if state.ndim < 2 or not state.is_floating_point():
        raise UsageError(
            f"write_streams: state must be (..., n, dim), of real floating point, got {tuple(state.shape)} of "
            f"{state.dtype}. Give the streams, the channels last."
        )
    *leading, n, dim = state.shape
    weights = _require_fit("weights", weights, (*leading, n), state)
    full = torch.promote_types(torch.promote_types(weights.dtype, state.dtype), torch.float32)
    if mix is not None:
        mix = _in_type(_require_fit("mix", mix, (*leading, n, n), state), full)
    out = _require_fit("out", out, (*leading, dim), state)
    flat = state if len(leading) == 1 else state.reshape(-1, n, dim)
    return differentiable_write(flat, out, _in_type(weights, full), mix, state.shape)


def _in_type(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if x.dtype == dtype else x.to(dtype)  # a call that changes nothing takes a microsecond


def _require_fit(name: str, x: Tensor, shape: tuple[int, ...], state: Tensor) -> Tensor:
    """Return it with tokens as the first axis."""
    if not x.is_floating_point() or x.device != state.device:
        raise UsageError(
            f"write_streams: {name} must be of real floating point, on {state.device} as the streams are, got "
            f"{x.dtype} on {x.device}. Convert it first."
        )
    least = 2 if name == "mix" else 1
    if x.shape == shape:  # as layers give it
        return x if x.ndim == least + 1 else x.reshape(-1, *shape[len(shape) - least :])
    if (
        x.ndim < least
        or x.ndim > len(shape)
        or any(
            a not in (1, b) or (a != b and k >= x.ndim - least)
            for k, (a, b) in enumerate(zip(x.shape, shape[len(shape) - x.ndim :], strict=True))
        )
    ):
        raise UsageError(
            f"write_streams: {name} must be {shape} for streams {tuple(state.shape)}, or broadcast to it, got "
            f"{tuple(x.shape)}. Reshape it."
        )
    return x.expand(shape).reshape(-1, *shape[len(shape) - least :])


def fit(state: Tensor, out: Tensor, weights: Tensor, mix: Tensor | None) -> bool:
    """Return whether nothing has to be broadcast or refused.

    Args:
        state: as for `write_streams`, as all of them.
        out: likewise.
        weights: likewise.
        mix: likewise.
    """
    *leading, n, dim = state.shape
    return (
        out.shape == (*leading, dim)
        and weights.shape == (*leading, n)
        and (mix is None or mix.shape == (*leading, n, n))
    )
