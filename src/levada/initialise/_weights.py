"""Which weights of a module an initialisation sets, and the numbers that it needs to know about each."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from levada._errors import UsageError
from levada.connection import Connection, require_module

__all__ = ["Weight", "gauss_", "glorot_", "orthogonal_matrix", "weights"]

LINEAR_MAPS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True, slots=True)
class Weight:
    """One linear map.

    Attributes:
        site: name in the module, with the part for a packed weight: `layers.0.branch.linear`, `attention.query`.
        module: the module that owns it.
        value: the weight, or the part of it that is this map; shape `(dim_out, dim_in / groups, *kernel)`.
        bias: the bias, or its part.
        groups: number of groups of a convolution.
    """

    site: str
    module: nn.Module
    value: Tensor
    bias: Tensor | None
    groups: int = 1

    @property
    def fan_in(self) -> int:
        """Number of inputs of one output."""
        return self.value[0].numel()

    @property
    def fan_out(self) -> int:
        """Number of outputs that one input reaches."""
        return self.value[:, 0].numel() // self.groups


def weights(module: nn.Module, owner: str) -> list[Weight]:
    """Return the weights to set, in the order in which they were registered.

    They are those of `nn.Linear`, `nn.Conv1d`, `nn.Conv2d` and `nn.Conv3d`, and the projections of
    `nn.MultiheadAttention`. What a connection learned to mix with is its own affair: of a `Connection` only the module
    called `shortcut` is entered.

    Args:
        module: where to look.
        owner: the initialisation that asks, for the message.

    Raises:
        UsageError: if it is no module, or there is none, or one is parametrised (weight norm), so that setting it would
            have no effect.
    """
    require_module(module, owner)
    found = list(_enter(module, "", owner, set()))
    if not found:
        raise UsageError(f"{owner}: found no Linear, Conv or MultiheadAttention to set in {type(module).__name__}.")
    return found


def _enter(module: nn.Module, site: str, owner: str, seen: set[nn.Module]) -> Iterator[Weight]:
    if module in seen:
        return
    seen.add(module)
    if isinstance(module, LINEAR_MAPS):
        if not isinstance(module._parameters.get("weight"), nn.Parameter):
            raise UsageError(
                f"{owner}: the weight of {site or 'the module'} is computed from other parameters and cannot be set. "
                "Initialise before adding weight norm or another parametrisation."
            )
        groups = module.groups if not isinstance(module, nn.Linear) else 1
        yield Weight(site, module, module.weight.data, None if module.bias is None else module.bias.data, groups)
    elif isinstance(module, nn.MultiheadAttention):
        yield from _projections(module, site)
    elif isinstance(module, Connection):
        shortcut = getattr(module, "shortcut", None)
        if isinstance(shortcut, nn.Module):
            yield from _enter(shortcut, _join(site, "shortcut"), owner, seen)
    else:
        for name, child in module.named_children():
            yield from _enter(child, _join(site, name), owner, seen)


def _projections(module: nn.MultiheadAttention, site: str) -> Iterator[Weight]:
    names = ("query", "key", "value")
    packed = module.in_proj_weight
    parts = packed.data.chunk(3) if packed is not None else [getattr(module, f"{n[0]}_proj_weight").data for n in names]
    biases = [None] * 3 if module.in_proj_bias is None else list(module.in_proj_bias.data.chunk(3))
    for name, value, bias in zip(names, parts, biases, strict=True):
        yield Weight(_join(site, name), module, value, bias)
    out = module.out_proj
    yield Weight(_join(site, "output"), module, out.weight.data, None if out.bias is None else out.bias.data)


def _join(site: str, name: str) -> str:
    return f"{site}.{name}" if site else name


def gauss_(weight: Weight, variance: float, generator: Generator | None, bias_variance: float = 0.0) -> None:
    """Draw `W ~ N(0, variance)` and `b ~ N(0, bias_variance)`."""
    weight.value.normal_(0.0, variance**0.5, generator=generator)
    if weight.bias is not None:
        # Without a draw where it is zero, equal generators give equal weights with and without biases.
        if bias_variance:
            weight.bias.normal_(0.0, bias_variance**0.5, generator=generator)
        else:
            weight.bias.zero_()


def glorot_(weight: Weight, gain: float, generator: Generator | None) -> None:
    """Draw `W ~ U(-a, a)`, `a = gain sqrt(6 / (fan_in + fan_out))`, and set `b = 0`."""
    bound = gain * math.sqrt(6 / (weight.fan_in + weight.fan_out))
    weight.value.uniform_(-bound, bound, generator=generator)
    if weight.bias is not None:
        weight.bias.zero_()


def orthogonal_matrix(rows: int, columns: int, like: Tensor, generator: Generator | None) -> Tensor:
    """Draw a matrix with orthonormal rows or columns, uniformly over these."""
    # There is no QR below single precision.
    dtype = like.dtype if like.dtype == torch.float64 else torch.float32
    tall = torch.empty(max(rows, columns), min(rows, columns), dtype=dtype, device=like.device)
    q, r = torch.linalg.qr(tall.normal_(generator=generator))
    q = q * r.diagonal().sign()  # QR alone is not uniform over the orthogonal matrices
    matrix: Tensor = q if rows >= columns else q.mT
    return matrix
