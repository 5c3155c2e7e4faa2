"""What all golden vectors are made with: numbers that depend on a name alone, and a pass with all that comes of it."""

from __future__ import annotations

import math
import random
from typing import Any

import torch
from torch import Tensor, nn

Case = dict[str, Any]


def drawn(name: str, *shape: int, scale: float = 1.0) -> Tensor:
    """Return numbers that depend on a name alone, exact in float32 and short in decimal.

    Args:
        name: what they are for.
        shape: of the tensor.
        scale: the largest.
    """
    source = random.Random(name)  # of which Python promises that random() stays as it is
    numbers = [round(256 * scale * (2 * source.random() - 1)) / 256 for _ in range(math.prod(shape))]
    return torch.tensor(numbers, dtype=torch.float64).reshape(shape)


def listed(x: Tensor) -> list[float]:
    """Return all numbers in one list."""
    return [float(value) for value in x.detach().flatten()]


def set_parameters(name: str, module: nn.Module) -> dict[str, list[float]]:
    """Give every parameter numbers of its own, so that no term is zero; return them by name.

    What hyper-connections start from stays near: mixed at random, equal streams can nearly cancel, and a normalisation
    would blow up the rounding errors of what is left.
    """
    with torch.no_grad():
        for key, parameter in module.named_parameters():
            if key.endswith(("static_read", "static_mix", "static_write")):
                centre = parameter.clone()
            else:
                centre = torch.full_like(parameter, 1.0 if key.endswith(("norm.weight", "scale")) else 0.0)
            parameter.copy_(centre + drawn(f"{name}.{key}", *parameter.shape, scale=0.5))
    return {key: listed(parameter) for key, parameter in module.named_parameters()}


def passed(name: str, module: nn.Module, x: Tensor) -> Case:
    """Run forward and backward; return everything that goes in and comes out."""
    values = set_parameters(name, module)
    x = x.requires_grad_()
    y = module(x)
    cotangent = drawn(f"{name}.cotangent", *y.shape)
    y.backward(cotangent)
    gradients = {key: listed(parameter.grad) for key, parameter in module.named_parameters()}  # type: ignore[arg-type]
    assert x.grad is not None
    return {
        "name": name, "rows": x.shape[0], "input": listed(x), "parameters": values, "cotangent": listed(cotangent),
        "output": listed(y), "byInput": listed(x.grad), "byParameter": gradients,
    }  # fmt: skip


def rms(x: Tensor) -> float:
    """Return the root mean square."""
    return float(x.detach().square().mean().sqrt())
