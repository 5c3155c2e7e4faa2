r"""Directions that a gradient keeps on its way: an effective rank of the Jacobian between the first and last block.

Two independent cotangents at the last boundary arrive at the first one with some cosine. One over its mean square is
the number $R$ of equal singular values that would do the same, and for singular values that differ about
$(\operatorname{tr} J^T J)^2 / \operatorname{tr} (J^T J)^2$. Once it is near 1, every error of the output says the same
to the first layers. For layers of $n$ units with independent weights it falls from $n$ to 1 about as
$1/(R - 1) = 1/(n - 1) + kL$ with depth $L$: in tanh networks of width 64 with weights of variance 2/64, $64 k$ lies
between 1.5 (10 layers) and 1.1 (80 layers).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from levada._numbers import student_quantile
from levada.probe import Execution
from levada.probe.cotangent import Value
from levada.probe.jacobian import cotangent_for, pull_back

__all__ = ["Directions", "directions_between"]

# A gradient that keeps fewer directions tells the first layers one thing only.
LEAST = 2.0
_COTANGENTS = 4
# Cosines of a smaller gradient are rounding, or have left the range of float32.
_TRUSTED = 1e-30, 1e30


@dataclass(frozen=True, slots=True)
class Directions:
    """How many directions a gradient keeps.

    Attributes:
        value: one over the mean squared cosine between the gradients of one input; at least 1.
        low: lower end of its 95 % interval over the inputs of the batch.
        high: upper end.
        blocks: number of blocks between the two boundaries.
        units: as many directions as there could be: elements of one input at the narrower boundary.
    """

    value: float
    low: float
    high: float
    blocks: int
    units: int

    def depth(self, rank: float) -> float:
        """Return the depth at which two directions are left, if after `blocks` there are `rank`; infinite if none go.

        Args:
            rank: `value`, or an end of its interval.

        Example:
            >>> round(Directions(4.0, 3.5, 4.5, blocks=20, units=10**6).depth(4.0), 2)
            60.0
        """
        if rank >= self.units or self.units <= LEAST:
            return math.inf
        start = 1 / (self.units - 1)
        lost = 1 / (rank - 1) - start if rank > 1 else math.inf
        return self.blocks * (1 / (LEAST - 1) - start) / lost


def directions_between(values: Mapping[int, Value], execution: Execution, seed: int) -> Directions | None:
    """Send random cotangents from the last boundary before the head to the first one, on a graph that is there.

    Args:
        values: numbers of the recorded values -> their places in the graph, which stays.
        execution: the blocks.
        seed: of the cotangents.

    Returns:
        The directions, or None where there are no two boundaries, or nothing that is a number arrives.
    """
    sites = execution.sites[:-1] if len(execution.sites) > 2 else execution.sites
    at = [i for i, site in enumerate(sites) if execution.output_of[site.name] in values]
    if len(at) < 2:
        return None
    first, last = (values[execution.output_of[sites[i].name]] for i in (at[0], at[-1]))
    cotangents = torch.stack([cotangent_for(last, None, seed + draw) for draw in range(_COTANGENTS)])
    try:
        found = pull_back("the last block with respect to the first", first, last, cotangents)
    except Exception:  # a backward pass that does not run: said where all gradients are asked for
        return None
    separate = len(first.shape) > 1 and len(last.shape) > 1 and first.shape[0] == last.shape[0]
    squares = _squared_cosines(found.flatten(2) if separate else found.flatten(1)[:, None])
    if not len(squares):
        return None
    units = min(math.prod(value.shape[1:] if separate else value.shape) for value in (first, last))
    mean, half = float(squares.mean()), math.inf
    if len(squares) > 1:
        half = student_quantile(len(squares) - 1) * float(squares.std()) / math.sqrt(len(squares))
    low, high = 1 / min(1.0, mean + half), 1 / (mean - half) if mean > half else math.inf
    return Directions(1 / mean, low, high, at[-1] - at[0], units)


def _squared_cosines(gradients: Tensor) -> Tensor:
    """Return the mean squared cosine between gradients of each input: `(draws, inputs, features)` -> `(inputs,)`."""
    sizes = torch.linalg.vector_norm(gradients, dim=2, dtype=torch.float64)
    told = ((sizes > _TRUSTED[0]) & (sizes < _TRUSTED[1])).all(0)
    units = gradients[:, told].double() / sizes[:, told, None]
    cosines = torch.einsum("kbd,jbd->bkj", units, units)
    draws = len(gradients)
    return (cosines.square().sum((1, 2)) - draws) / (draws * (draws - 1))
