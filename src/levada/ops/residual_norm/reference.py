"""A residual connection and the norm behind it, by plain operations: what the kernels must compute."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["along", "full_type", "residual_norm", "residual_norm_backward"]


def full_type(*tensors: Tensor | None) -> torch.dtype:
    """Return the type to compute in: float32, or wider if an argument is."""
    full = torch.float32
    for tensor in tensors:
        full = full if tensor is None else torch.promote_types(full, tensor.dtype)
    return full


def residual_norm(
    state: Tensor, out: Tensor, weight: Tensor | None, bias: Tensor | None, centred: bool, eps: float
) -> tuple[Tensor, Tensor]:
    """Return the sum, rounded to the type of the state, and that sum normalised."""
    full = full_type(state, out, weight, bias)
    new = (state.to(full) + out.to(full)).to(state.dtype)
    normed, _ = _normalise(new.to(full), centred, eps)
    return new, _affine(normed, weight, bias).to(state.dtype)


def residual_norm_backward(
    by_new: Tensor, by_normed: Tensor, new: Tensor, weight: Tensor | None, centred: bool, eps: float, shifted: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients by the sum, which state and output both get, by weight and by bias, these in full type.

    The second is empty without a weight, and the third if nothing is `shifted` by a bias.
    """
    full = full_type(new, weight)
    normed, inverse = _normalise(new.to(full), centred, eps)
    cotangent = by_normed.to(full)
    inner = cotangent if weight is None else cotangent * weight
    change = inner - normed * (inner * normed).mean(-1, keepdim=True)
    if centred:
        change = change - inner.mean(-1, keepdim=True)
    by_sum = (by_new.to(full) + inverse * change).to(new.dtype)
    nothing = new.new_empty(0, dtype=full)
    by_weight = nothing if weight is None else _over_tokens(cotangent * normed)
    return by_sum, by_weight, _over_tokens(cotangent) if shifted else nothing.clone()


def along(
    new: Tensor, weight: Tensor | None, centred: bool, eps: float, changes: tuple[Tensor | None, ...]
) -> tuple[Tensor, Tensor]:
    """Return the derivatives of both results in a direction.

    Args:
        new: the sum.
        weight: of the norm.
        centred: whether the mean is subtracted.
        eps: what is added to the mean square.
        changes: of state, output, weight and bias; None is zero.
    """
    full = full_type(new, weight)
    normed, inverse = _normalise(new.to(full), centred, eps)
    of_state, of_out, of_weight, of_bias = changes
    of_new = torch.zeros_like(new, dtype=full)
    for change in (of_state, of_out):
        of_new = of_new if change is None else of_new + change.to(full)
    moved = of_new - of_new.mean(-1, keepdim=True) if centred else of_new
    moved = inverse * (moved - normed * (moved * normed).mean(-1, keepdim=True))
    moved = moved if weight is None else moved * weight
    moved = moved if of_weight is None else moved + normed * of_weight
    moved = moved if of_bias is None else moved + of_bias
    return of_new.to(new.dtype), moved.to(new.dtype)


def _normalise(wide: Tensor, centred: bool, eps: float) -> tuple[Tensor, Tensor]:
    """Return rows of mean square one, and one over their size."""
    apart = wide - wide.mean(-1, keepdim=True) if centred else wide
    inverse = (apart.square().mean(-1, keepdim=True) + eps).rsqrt()
    return apart * inverse, inverse


def _over_tokens(x: Tensor) -> Tensor:
    return x.reshape(x.shape[:-1].numel(), x.shape[-1]).sum(0)


def _affine(normed: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    scaled = normed if weight is None else normed * weight
    return scaled if bias is None else scaled + bias
