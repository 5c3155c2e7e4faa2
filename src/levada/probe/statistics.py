"""Statistics of many tensors of one shape at once, in few passes over memory, exact down to the smallest float32.

A sum of squares in float32 loses everything below 1e-23 and overflows above 1e19, where a vanishing gradient soon is.
On a CPU the fast float32 sum is taken first and the rows out of range are summed again in float64 (reading a flag is
free there); on an accelerator, where reading it would wait for the device, all rows are summed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from levada.probe.squares import squares_of_rows

__all__ = ["Limits", "activity", "in_memory_order", "limits", "mean_square", "moments"]

_CANCELLED = 1e-2  # below this share of the mean square, the difference of two mean squares has lost digits


def mean_square(stack: Tensor) -> Tensor:
    """Return the mean square of each row, in float64 (in float32 where the device has nothing wider).

    Args:
        stack: floating or complex tensor.

    Shape:
        `(rows, ...)` -> `(rows,)`.

    Example:
        >>> mean_square(torch.tensor([[3e-30, 4e-30], [3.0, 4.0]])).tolist()
        [1.2500000079276921e-59, 12.5]
    """
    if stack.dim() == 1:  # rows of single numbers, such as a model that returns its loss
        stack = stack[:, None]
    if stack.is_complex():  # the mean over numbers, not over their two parts
        return 2 * mean_square(torch.view_as_real(stack.resolve_conj()))
    if stack.device.type == "cpu" and stack.dtype != torch.float64:
        rows = stack.flatten(1) if stack.is_contiguous() else in_memory_order(stack)
        return squares_of_rows(rows) / rows.shape[1]
    if stack.dtype in (torch.float16, torch.bfloat16):
        stack = stack.float()
    count = stack[0].numel()
    dims = tuple(range(1, stack.dim()))
    if stack.device.type == "mps":
        largest = torch.linalg.vector_norm(stack, math.inf, dim=dims, keepdim=True)
        scale = torch.where(largest > 0, largest, 1.0)
        norm: Tensor = torch.linalg.vector_norm(stack / scale, dim=dims) * scale.flatten()
    else:
        norm = torch.linalg.vector_norm(stack, dim=dims, dtype=torch.float64)
    return norm.square() / count


def in_memory_order(stack: Tensor) -> Tensor:
    """Return the rows as `(rows, elements)`, where possible without a copy: the order of a row's elements may differ.

    Args:
        stack: any tensor of at least two dimensions.

    Example:
        >>> in_memory_order(torch.arange(6.0).view(1, 2, 3).mT)
        tensor([[0., 1., 2., 3., 4., 5.]])
    """
    order = sorted(range(1, stack.dim()), key=lambda d: stack.stride(d), reverse=True)
    return stack.permute(0, *order).flatten(1)


def moments(stack: Tensor, *, spread: bool) -> Tensor:
    """Return mean square, share of NaN or Inf, and mean square of the deviation from the mean over the batch.

    Args:
        stack: floating tensor; its dimension 1 is the batch.
        spread: whether to measure the deviation; else, and for a batch of one, its column is NaN.

    Shape:
        `(rows, batch, ...)` -> `(rows, 3)`.
    """
    if stack.dim() == 1:
        stack = stack[:, None]
    square = mean_square(stack)
    count = stack[0].numel()
    bad = ~torch.isfinite(square)
    share = torch.zeros_like(square)
    if stack.device.type != "cpu":
        share = (~torch.isfinite(stack)).flatten(1).sum(1) / count
    elif bad.any():
        share[bad] = (~torch.isfinite(stack[bad])).flatten(1).sum(1).double() / count
    deviation = torch.full_like(square, math.nan)
    if spread and stack.dim() > 1 and stack.shape[1] > 1:
        deviation = _deviation(stack, square)
    return torch.stack((square, share.to(square.dtype), deviation), dim=1)


def _deviation(stack: Tensor, square: Tensor) -> Tensor:
    wide = torch.float32 if stack.device.type == "mps" else torch.float64
    if stack.device.type != "cpu":
        rows = stack.to(wide)
        return mean_square(rows - rows.mean(1, keepdim=True))
    if stack.dtype in (torch.float16, torch.bfloat16):
        stack = stack.float()
    result = square - mean_square(stack.mean(1))
    cancelled = result < _CANCELLED * square
    if cancelled.any():
        rows = stack[cancelled].double()
        result[cancelled] = mean_square(rows - rows.mean(1, keepdim=True))
    return result


@dataclass(frozen=True, slots=True)
class Limits:
    """Where an activation's slope is small, read off its output.

    Attributes:
        floor: outputs at or below it are flat; None if the range has two ends.
        centre: middle of a range with two ends.
        flat: distance from the centre at which the slope is zero.
        saturated: distance from the centre beyond which the slope is below 1/100 of its largest.
    """

    floor: float | None = None
    centre: float = 0.0
    flat: float | None = None
    saturated: float | None = None


# sigmoid: slope y (1 - y); tanh: 1 - y^2; erf: exp(-x^2) 2/sqrt(pi); softsign: (1 - |y|)^2; arctan: 1/(1 + x^2)
_LIMITS: Mapping[str, Limits] = {
    "relu": Limits(floor=0.0),
    "sigmoid": Limits(None, 0.5, 0.5, 0.5 * math.sqrt(0.99)),
    "tanh": Limits(None, 0.0, 1.0, math.sqrt(0.99)),
    "erf": Limits(None, 0.0, 1.0, math.erf(math.sqrt(math.log(100.0)))),
    "softsign": Limits(None, 0.0, 1.0, 0.9),
    "arctan": Limits(None, 0.0, math.pi / 2, math.atan(math.sqrt(99.0))),
    "relu6": Limits(None, 3.0, 3.0, 3.0),
    "hardsigmoid": Limits(None, 0.5, 0.5, 0.5),
}


def limits(name: str, options: Mapping[str, Any]) -> Limits:
    """Return the limits of an activation by its canonical name; empty ones if it is never flat.

    Args:
        name: canonical name, as in `Operation.name`.
        options: `Operation.options`.

    Example:
        >>> limits("hardtanh", {"min_val": -2.0, "max_val": 0.0}).centre, limits("gelu", {}) == Limits()
        (-1.0, True)
    """
    if name == "hardtanh":
        low, high = float(options["min_val"]), float(options["max_val"])
        edge = (high - low) / 2 * (1 - 1e-6)  # the subtraction of the centre rounds
        return Limits(None, (high + low) / 2, edge, edge)
    return _LIMITS.get(name, Limits())


def activity(stack: Tensor, limit: Limits, channel: int) -> Tensor:
    """Return the shares of exact zeros, of units that are flat for the whole batch, and of saturated elements.

    Args:
        stack: outputs of an activation.
        limit: the activation's limits; the columns that it does not define are NaN.
        channel: the dimension of a row that counts units.

    Shape:
        `(rows, batch, ...)` -> `(rows, 3)`.
    """
    if stack.dtype in (torch.float16, torch.bfloat16):
        stack = stack.float()
    count = stack[0].numel()
    wide = torch.float32 if stack.device.type == "mps" else torch.float64
    dims = tuple(range(1, stack.dim()))
    others = tuple(d for d in dims if d != channel + 1) or dims
    hit = torch.empty_like(stack)  # comparing into floats is 4 to 7 times faster than into booleans
    zero = torch.eq(stack, 0.0, out=hit).sum(dims).to(wide) / count
    dead = saturated = torch.full_like(zero, math.nan)
    if limit.floor is not None:
        dead = (stack.amax(others) <= limit.floor).to(wide).flatten(1).mean(1)
    elif limit.flat is not None and limit.saturated is not None:
        distance = (stack - limit.centre).abs_()
        saturated = torch.ge(distance, limit.saturated, out=hit).sum(dims).to(wide) / count
        dead = (distance.amin(others) >= limit.flat).to(wide).flatten(1).mean(1)
    return torch.stack((zero, dead, saturated), dim=1)
