"""Linear pieces of rectified networks of one input, counted exactly: layer by layer, kink by kink."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Layers", "breakpoints", "evaluate", "num_crossings", "num_pieces"]

Layers = Sequence[tuple[Tensor, Tensor]]
"""(weight, bias) of each layer, `(out, in)` and `(out,)`; ReLU follows each but the last."""


def evaluate(layers: Layers, x: Tensor) -> Tensor:
    """Apply a rectified network, in float64.

    Args:
        layers: the network.
        x: its inputs.

    Shape:
        `(num, in)` -> `(num, out)`.

    Returns:
        Its outputs.
    """
    state = x.double()
    for index, (weight, bias) in enumerate(layers):
        state = torch.addmm(bias.double(), state.relu() if index else state, weight.double().T)
    return state


def breakpoints(layers: Layers, low: float, high: float) -> Tensor:
    """Return where a network of one input may change its slope.

    Between the kinks of the layers before it a unit is affine, so that it has one zero there at most, which the values
    at both ends give.

    Args:
        layers: the network; its first weight is `(units, 1)`.
        low: left end of the interval.
        high: right end.

    Returns:
        The ends and the kinks between them, sorted, float64.

    Example:
        >>> tent = [(torch.ones(2, 1), torch.tensor([0.0, -0.5])), (torch.tensor([[2.0, -4.0]]), torch.zeros(1))]
        >>> breakpoints(tent, 0.0, 1.0).tolist()
        [0.0, 0.5, 1.0]
    """
    found = torch.tensor([low, high], dtype=torch.float64)
    for depth in range(1, len(layers)):
        units = evaluate(layers[:depth], found.unsqueeze(1))
        left, right = units[:-1], units[1:]
        interval, unit = torch.nonzero((left * right) < 0, as_tuple=True)
        a, b = left[interval, unit], right[interval, unit]
        start, end = found[interval], found[interval + 1]
        kinks = start + (end - start) * (a / (a - b))
        found = torch.cat([found, kinks]).unique()  # type: ignore[no-untyped-call]
    return found


def num_pieces(layers: Layers, low: float, high: float) -> int:
    """Count the linear pieces of a network of one input and one output.

    Slopes that differ by less than 1e-9 of the steepest count as one.

    Args:
        layers: the network.
        low: left end of the interval.
        high: right end.

    Returns:
        The number of pieces in the interval.

    Example:
        >>> from levada.theory import sawtooth_layers
        >>> num_pieces(sawtooth_layers(5), 0.0, 1.0)
        32
    """
    x = breakpoints(layers, low, high)
    slopes = evaluate(layers, x.unsqueeze(1)).flatten().diff() / x.diff()
    return 1 + int((slopes.diff().abs() > 1e-9 * slopes.abs().max()).sum())


def num_crossings(layers: Layers, low: float, high: float) -> int:
    """Count how often a network of one input and one output changes its sign.

    Args:
        layers: the network.
        low: left end of the interval.
        high: right end.

    Returns:
        The number of changes of sign in the interval, 0 counting as positive.

    Example:
        >>> wave = [(torch.ones(2, 1), torch.tensor([0.0, -0.5])), (torch.tensor([[2.0, -4.0]]), torch.tensor([-0.5]))]
        >>> num_crossings(wave, 0.0, 1.0)
        2
    """
    x = breakpoints(layers, low, high)
    return int((evaluate(layers, x.unsqueeze(1)).flatten() >= 0).diff().sum())
