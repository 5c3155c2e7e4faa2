"""What the blocks are built from: the types of their options, and the widths that activations ask for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from torch import nn

from levada._errors import UsageError
from levada.connection import require_maker

__all__ = ["Activation", "Norm", "activate", "divide", "normalise", "widening"]

Activation: TypeAlias = Callable[[], nn.Module]
Norm: TypeAlias = Callable[[int], nn.Module] | None


def normalise(norm: Norm, dim: int) -> nn.Module:
    """Build the normalisation of width `dim`; the identity where there is none."""
    if norm is None:
        return nn.Identity()
    require_maker(norm, "norm", "nn.LayerNorm")
    return norm(dim)


def activate(activation: Activation) -> nn.Module:
    """Build the activation."""
    require_maker(activation, "activation", "nn.ReLU")
    return activation()


def widening(activation: nn.Module) -> int:
    """Return how many times wider than its input the activation's output is: twice if it keeps both signs."""
    return 2 if getattr(activation, "keeps_both_signs", False) else 1


def divide(owner: str, width: int, parts: int, what: str) -> int:
    """Return `width / parts`, or raise where it is not a whole number."""
    if width % parts:
        raise UsageError(f"{owner}: {what} must divide the width {width}, got {parts}.")
    return width // parts
