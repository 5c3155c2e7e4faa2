"""Reading streams by weights that were handed on, by plain operations: what the kernels must compute."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from levada.ops.manifold import reference
from levada.ops.manifold.reference import Form

__all__ = ["read", "read_and_keep", "read_backward"]


def read(
    state: Tensor, handed: Tensor, projection: Tensor, scale: Tensor, bias: Tensor, form: Form
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return what the branch reads, and the weights that read next, write and mix."""
    _, reads, writes, mix = reference.read(state, projection, scale, bias, form)
    return _sum(state, handed), reads, writes, mix


def read_and_keep(
    state: Tensor, handed: Tensor, projection: Tensor, scale: Tensor, bias: Tensor, *options: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the same, and for the way back the projected features, divided by the norms, and one over the norms.

    Where nothing is mixed the weights that would are empty, `(..., 0, n)`.
    """
    _, *others = reference.read_and_keep(state, projection, scale, bias, *options)
    reads, writes, mix, features, inverse = others
    return _sum(state, handed), reads, writes, mix, features, inverse


def read_backward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients by state, handed weights, projection, scale and bias, by operations that have derivatives.

    Args:
        *arguments: in turn the gradients by what the branch read, by the weights that read next (or None), write and
            mix, and by the state from elsewhere (or None); the five arguments of `read`, tokens first; features and
            norms that were kept (both None to make them again, as derivatives of this need); the form.
    """
    by_x, by_reads, by_writes, by_mix, by_new, state, handed, *others = arguments
    full = torch.promote_types(state.dtype, torch.float32)
    wide = by_x.to(full).unsqueeze(-2)
    by_handed = (wide * state).sum(-1)
    by_sum = handed.to(full).unsqueeze(-1) * wide
    arrives = by_sum if by_new is None else by_new + by_sum
    nothing = torch.zeros_like(by_x)  # by the sum that other weights would give
    by_state, *by_others = reference.read_backward(nothing, by_reads, by_writes, by_mix, arrives, state, *others)
    by_projection, by_scale, by_bias = by_others
    return by_state, by_handed.to(handed.dtype), by_projection, by_scale, by_bias


def _sum(state: Tensor, handed: Tensor) -> Tensor:
    full = torch.promote_types(state.dtype, torch.float32)
    return (handed.to(full).unsqueeze(-1) * state).sum(-2).to(state.dtype)
