"""How far a receptive field reaches, and how wide the part of it is that counts, on a line or on a circle."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from levada.probe.memory import Interval, jackknifed

__all__ = ["along", "deviation", "extent", "measured", "span"]

SHARE = 0.95  # of the energy, in a span


def along(exact: Tensor, axis: int) -> Tensor:
    """Return which places of one axis are seen."""
    return exact.movedim(axis, 0).flatten(1).any(1) if exact.dim() > 1 else exact


def extent(seen: Tensor, wraps: bool) -> int:
    """From the first to the last place that is seen; on a circle, all but the longest run that is not.

    Example:
        >>> seen = torch.tensor([True, True, False, False, False, True])
        >>> extent(seen, wraps=False), extent(seen, wraps=True)
        (6, 3)
    """
    places = seen.nonzero().flatten()
    if not wraps:
        return int(places[-1] - places[0]) + 1
    return len(seen) + 1 - int(torch.cat([places, places[:1] + len(seen)]).diff().max())


def measured(energy: Tensor, axis: int, wraps: bool, quantity: Callable[[Tensor], float]) -> Interval:
    """Return a quantity of the mean energy along one axis, with its jackknife interval over cotangents.

    Args:
        energy: `(draws, *positions)`.
        axis: of the positions.
        wraps: whether its last place is beside its first: it is then cut open opposite to where the energy is.
        quantity: of the energy along the axis.
    """
    others = [other + 1 for other in range(energy.dim() - 1) if other != axis]
    line = energy.sum(others) if others else energy
    if wraps:
        line = line.roll(-_cut(line.mean(0)), 1)
    value = quantity(line.mean(0))
    left_out = [quantity(torch.cat([line[:draw], line[draw + 1 :]]).mean(0)) for draw in range(len(line))]
    low, high = jackknifed(value, left_out)
    return Interval(value, max(low, 0.0), high)


def _cut(energy: Tensor) -> int:
    """Return the place opposite to the mean direction of the energy on a circle."""
    angles = torch.arange(len(energy), dtype=torch.float64) * (2 * math.pi / len(energy))
    mean = torch.atan2((energy * angles.sin()).sum(), (energy * angles.cos()).sum())
    return round(float(mean) * len(energy) / (2 * math.pi) + len(energy) / 2) % len(energy)


def deviation(energy: Tensor) -> float:
    """Return the standard deviation of places weighted by energy."""
    share, place = energy / energy.sum(), torch.arange(len(energy), dtype=torch.float64)
    mean = (share * place).sum()
    return float((share * (place - mean).square()).sum().sqrt())


def span(energy: Tensor) -> float:
    """Length of the shortest interval that holds 95 % of the energy."""
    sums = torch.cat([torch.zeros(1, dtype=torch.float64), (energy / energy.sum()).cumsum(0)])
    ends = torch.searchsorted(sums, sums + SHARE - 1e-12)
    lengths = ends - torch.arange(len(sums))
    return float(lengths[ends < len(sums)].min())
