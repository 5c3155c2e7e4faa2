"""Two inputs close to each other: how alike their signals and their gradients are, first boundary to last."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from levada.inputs import Batch

__all__ = ["Neighbours", "compare", "moved"]

# Distance between an input and its neighbour, over the input's own size: cosine 0.995 with independent noise.
DISTANCE = 0.1
_STREAM = 0x6C65_7661


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Cosines between an input of the batch and the same input moved a little, with their intervals over inputs.

    Attributes:
        site: the boundary at which gradients were compared: the first that has one.
        gradient: mean cosine of the loss's gradients there.
        low: lower end of its 95 % interval.
        high: upper end.
        signal_first: mean cosine of the signals at that boundary.
        signal_last: mean cosine of the signals at the last boundary; NaN if they have one number for each input.
        blocks: number of boundaries from the first to the last.
        gain_shared: how far the loss of the moved inputs falls when a few steps are made on the others, over how far
            theirs falls; None where that was not tested, or theirs does not fall.
    """

    site: str
    gradient: float
    low: float
    high: float
    signal_first: float
    signal_last: float
    blocks: int
    gain_shared: float | None = None


def moved(batch: Batch, seed: int) -> Batch | None:
    """Return the batch with noise of a tenth of its size on every floating input, or None if there is none.

    Args:
        batch: the batch.
        seed: of the noise.
    """
    # Not the seed itself: what the user made with it would be the noise once more.
    generator = torch.Generator().manual_seed(_STREAM + seed)
    found = 0

    def near(value: Any) -> Any:
        nonlocal found
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dim() < 2:
            return value
        found += 1
        size = float(value.double().square().mean().sqrt())
        noise = torch.randn(value.shape, generator=generator) * (DISTANCE * size)
        return value + noise.to(value.device, value.dtype)

    args = tuple(near(value) for value in batch.args)
    kwargs = {key: near(value) for key, value in batch.kwargs.items()}
    return replace(batch, args=args, kwargs=kwargs) if found else None


def compare(
    names: Sequence[str],
    first: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
    second: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
) -> Neighbours | None:
    """Compare signals and gradients, by site, of the inputs and of their neighbours.

    Args:
        names: the boundaries in order.
        first: signals, and gradients, of the inputs.
        second: those of their neighbours.
    """
    both = [n for n in names if n in first[1] and n in second[1] and first[1][n].shape == second[1][n].shape]
    ends = [n for n in names if n in first[0] and n in second[0] and first[0][n].shape == second[0][n].shape]
    ends = [n for n in ends if first[0][n].dim() > 0]  # a loss that the model returns has no rows to compare
    if not both or len(ends) < 2:
        return None
    cosines = _cosines(first[1][both[0]], second[1][both[0]])
    known = cosines[~cosines.isnan()]
    if len(known) < 4:
        return None
    mean, error = float(known.mean()), 1.96 * float(known.std()) / math.sqrt(len(known))
    start, end = (float(_cosines(first[0][n], second[0][n]).nanmean()) for n in (ends[0], ends[-1]))
    return Neighbours(both[0], mean, mean - error, mean + error, start, end, len(names) - names.index(both[0]))


def _cosines(a: Tensor, b: Tensor) -> Tensor:
    if a.dim() < 2:
        return a.new_empty(0)  # one number for each input has a sign, and no direction
    a, b = a.flatten(1).double(), b.flatten(1).double()
    # Sizes are taken first: the gradients of a deep network may be below the smallest square.
    a, b = (x / x.abs().amax(1, keepdim=True) for x in (a, b))
    return torch.nn.functional.cosine_similarity(a, b, dim=1, eps=0.0)
