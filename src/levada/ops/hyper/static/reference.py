"""Reading streams by weights of all tokens, by plain operations: what the kernels must compute."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["read", "read_and_keep", "read_backward"]


def read(state: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted sum of the streams, computed in float32 or wider."""
    full = torch.promote_types(state.dtype, torch.float32)
    return (weights.to(full).unsqueeze(-1) * state).sum(-2).to(state.dtype)


def read_and_keep(state: Tensor, weights: Tensor) -> tuple[Tensor]:
    """Return the same alone: nothing is kept for the way back."""
    return (read(state, weights),)


def read_backward(by_x: Tensor, by_new: Tensor | None, state: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients by state and weights, by operations that have derivatives themselves.

    Args:
        by_x: gradient by what the branch read.
        by_new: by the state from elsewhere, or None.
        state: the streams, tokens first.
        weights: of each stream.
    """
    full = torch.promote_types(state.dtype, torch.float32)
    by_x = by_x.to(full).unsqueeze(-2)
    by_weights = (by_x * state).sum((0, 2))
    by_state = weights.to(full).unsqueeze(-1) * by_x
    by_state = by_state if by_new is None else by_state + by_new
    return by_state.to(state.dtype), by_weights.to(weights.dtype)
