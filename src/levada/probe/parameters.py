"""Weights, their gradients and the optimizer's update, read at the optimizer's boundary."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import final

import torch
from torch import Tensor, nn

from levada.probe.statistics import mean_square
from levada.stacking import whole_of

__all__ = ["COLUMNS", "ParameterReading"]

COLUMNS = ("weight", "gradient", "update", "lost", "moving", "count")


@final
class ParameterReading:
    """Mean squares of weights, gradients and update of one optimizer step.

    Parameters of one shape are stacked; the stack taken before the step is also the copy that the update needs.

    Args:
        parameters: by name; those with fewer than two dimensions are left out.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        groups: dict[Hashable, list[tuple[str, nn.Parameter]]] = {}
        for name, parameter in parameters.items():
            if parameter.dim() >= 2 and parameter.numel():
                key = (parameter.shape, parameter.dtype, parameter.device, parameter.requires_grad)
                groups.setdefault(key, []).append((name, parameter))
        self._groups = list(groups.values())
        self._before: list[Tensor] = []

    def before(self) -> None:
        """Copy the weights."""
        with torch.no_grad():
            self._before = [_stack([p for _, p in group]) for group in self._groups]

    def after(self) -> tuple[list[list[str]], list[Tensor]]:
        """Return the names, and per group of one shape a tensor with a row for each name and the columns `COLUMNS`.

        "count" is the number of elements, "moving" the share of them that have a gradient, and "lost" the share of
        these that the step left as they were.
        What a frozen parameter does not have is NaN; the gradient of a parameter that no gradient reached is zero.
        """
        names, blocks = [], []
        with torch.no_grad():
            for group, before in zip(self._groups, self._before, strict=True):
                names.append([name for name, _ in group])
                blocks.append(self._measure([p for _, p in group], before))
        self._before = []
        return names, blocks

    def _measure(self, parameters: list[nn.Parameter], before: Tensor) -> Tensor:
        weight = mean_square(before)
        columns = [weight, *(torch.full_like(weight, math.nan) for _ in COLUMNS[1:-1])]
        if parameters[0].requires_grad:
            after = _stack(parameters, copy=False)
            whole = whole_of(parameters)
            gradient = _stack([_dense(p) for p in parameters], copy=False) if whole is None else _dense(whole)
            columns[1] = mean_square(gradient)
            change = _wide(after) - _wide(before)
            columns[2] = mean_square(change)
            dims = tuple(range(1, before.dim()))
            moving = torch.ne(gradient, 0.0, out=torch.empty_like(change))  # floats: faster than booleans
            count = moving.sum(dims).to(weight.dtype)
            columns[3] = torch.eq(change, 0.0, out=change).mul_(moving).sum(dims).to(weight.dtype) / count
            columns[4] = count / before[0].numel()
        columns.append(torch.full_like(weight, before[0].numel()))
        return torch.stack([column.to(weight.dtype) for column in columns], dim=1)


def _stack(values: list[Tensor] | list[nn.Parameter], *, copy: bool = True) -> Tensor:
    if len(values) == 1:
        return values[0].detach().clone()[None] if copy else values[0].detach()[None]
    whole = whole_of(values)
    if whole is not None:
        return whole.detach().clone() if copy else whole.detach()
    return torch.stack([value.detach() for value in values])


def _wide(value: Tensor) -> Tensor:
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def _dense(parameter: Tensor) -> Tensor:
    gradient = parameter.grad
    if gradient is None:
        return torch.zeros_like(parameter)
    return gradient.to_dense() if gradient.is_sparse else gradient.detach()
