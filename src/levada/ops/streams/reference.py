"""Writing to streams, by plain operations: what the kernels must compute."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["along", "write", "write_backward"]


def write(state: Tensor, out: Tensor, weights: Tensor, mix: Tensor | None) -> Tensor:
    """Return `mix @ state + weights out`, computed in the type of the weights."""
    full = weights.dtype
    written = weights.unsqueeze(-1) * out.unsqueeze(-2)
    mixed = state if mix is None else _product(mix, state.to(full))
    return (mixed + written).to(state.dtype)


def write_backward(
    cotangent: Tensor, state: Tensor, out: Tensor, weights: Tensor, mix: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients by state, output, weights and mix; the first and the last are empty where nothing is mixed.

    The gradient by the state is the cotangent there.
    """
    full = cotangent.to(weights.dtype)
    by_out = (weights.unsqueeze(-1) * full).sum(-2)
    by_weights = (full * out.unsqueeze(-2)).sum(-1)
    if mix is None:
        return state.new_empty(0), by_out.to(out.dtype), by_weights, weights.new_empty(0)
    by_state, by_mix = _product(mix.mT, full), _outer(full, state.to(full.dtype))
    return by_state.to(state.dtype), by_out.to(out.dtype), by_weights, by_mix


def along(
    state: Tensor, out: Tensor, weights: Tensor, mix: Tensor | None,
    of_state: Tensor, of_out: Tensor, of_weights: Tensor, of_mix: Tensor | None,
) -> Tensor:  # fmt: skip
    """Return the derivative along a change of each: the operation is linear in each, and of the second degree."""
    changed = write(of_state, of_out, weights, mix) + write(torch.zeros_like(state), out, of_weights, None)
    if mix is not None and of_mix is not None:
        changed = changed + _product(of_mix, state.to(of_mix.dtype)).to(state.dtype)
    return changed


def _product(mix: Tensor, state: Tensor) -> Tensor:
    """Return the streams mixed: sums of whole rows, as one small matrix product a token is far slower."""
    first, *others = (
        column.unsqueeze(-1) * stream.unsqueeze(-2)
        for column, stream in zip(mix.unbind(-1), state.unbind(-2), strict=True)
    )
    return sum(others, first)


def _outer(cotangent: Tensor, state: Tensor) -> Tensor:
    return torch.stack([(cotangent * stream.unsqueeze(-2)).sum(-1) for stream in state.unbind(-2)], -1)
