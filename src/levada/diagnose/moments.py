"""What theory carries along a network: the moments of a signal, and where an operation finds its weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor, nn

__all__ = ["LEAST_FAN_IN", "Gains", "Inputs", "Moments", "Network", "Outcome", "Reason"]

# A sum over fewer inputs is not Gaussian enough for moments of an activation to be right to a few per cent.
LEAST_FAN_IN = 8

Reason: TypeAlias = str  # why there is no number


@dataclass(frozen=True, slots=True)
class Moments:
    """A signal, per element.

    Attributes:
        second: mean square.
        spread: variance over inputs, as an unbiased estimate.
        mean: mean over the units; NaN if not known.
        gaussian: whether each unit is a sum of many independent terms of mean zero.
        sources: the linear maps it comes from; signals that share one are correlated.
    """

    second: float
    spread: float
    mean: float
    gaussian: bool
    sources: frozenset[int]


@dataclass(frozen=True, slots=True)
class Network:
    """Where an operation finds its weights and settings.

    Attributes:
        parameters: name -> parameter.
        modules: name -> module.
        shape_of: number of a value -> its shape.
        active: values whose units an activation switched since a linear map last mixed them.
    """

    parameters: Mapping[str, Tensor]
    modules: Mapping[str, nn.Module]
    shape_of: Mapping[int, tuple[int, ...]]
    active: frozenset[int] = frozenset()

    def numel(self, number: int) -> int:
        """Return the number of elements of a value."""
        return math.prod(self.shape_of[number])


Inputs: TypeAlias = Sequence[Moments | Reason]
Gains: TypeAlias = tuple[float | Reason, ...]
Outcome: TypeAlias = tuple[Moments | Reason, Gains]
