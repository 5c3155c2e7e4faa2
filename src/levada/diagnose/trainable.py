r"""How deep a model like this one could be and still train: from depth scales, measured before training.

With $f$ the factor of a block on a quantity, its depth scale is $\xi = 1/|\ln f|$: blocks over which it changes by a
factor $e$. Two quantities limit the depth. What becomes of differences between inputs: $1 - c$, with $c$ the
correlation of the signals of two inputs, vanishes over $\xi_c$ in order; in chaos the differences of neighbours grow,
which the product of signal and gradient, that is, the effect of a relative change, shows going back. And the mean
square of the gradient itself, over $\xi_\nabla$, unless an optimizer rescales it. A network trains to about six times
the former scale, ten times the latter.

At criticality neither changes, and what is left is the spread of the Jacobian's singular values: the depth at which a
gradient keeps two directions.

Source: Schoenholz, Gilmer, Ganguli, Sohl-Dickstein 2017, arXiv 1611.01232 (depth scales); Pennington, Schoenholz,
Ganguli 2017, arXiv 1711.04735 (the spread of singular values grows with depth). The multiple of ten, and the two
directions, are this library's, from the calibration half of its benchmark.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from levada.diagnose.decay import LEAST_STEPS, Decay, correlation_decay, gradient_decay, sensitivity_decay
from levada.diagnose.facts import Facts, facts_of
from levada.probe.trace import Trace

__all__ = ["GRADIENT_SCALES", "SCALES", "TrainableDepth", "depths", "trainability", "trainable_depth"]

# Schoenholz et al. found tanh networks to train up to about six times the correlation's depth scale.
SCALES = 6.0
# The same for the mean square of the gradient, under optimizers that do not rescale it.
GRADIENT_SCALES = 10.0
_ADAPTIVE = ("adam", "nadam", "radam", "rmsprop")
Limit: TypeAlias = Literal["correlation", "gradient", "directions"]


@dataclass(frozen=True, slots=True)
class TrainableDepth:
    """A depth, in blocks; infinite where nothing changes with depth.

    Attributes:
        value: blocks.
        low: lower end of the interval, from the 95 % interval of the factor per block.
        high: upper end.
        predicted: the same from theory's factors; None where theory does not cover half of the blocks.
        limited_by: what sets it.
        blocks: how many blocks the model has, its head aside.
    """

    value: float
    low: float
    high: float
    predicted: float | None
    limited_by: Limit
    blocks: int

    def told(self) -> dict[str, Any]:
        """Return the values for a report."""
        told: dict[str, Any] = {"value": self.value, "low": self.low, "high": self.high}
        if self.predicted is not None:
            told["predicted"] = self.predicted
        return {**told, "limited_by": self.limited_by, "blocks": self.blocks}


@dataclass(frozen=True, slots=True)
class _Bound:
    """A depth that one quantity allows, in blocks."""

    value: float
    low: float
    high: float
    predicted: float | None
    limit: Limit


def trainable_depth(trace: Trace) -> TrainableDepth | str:
    """Return the depth to which a model of such blocks trains, or why it is not known.

    Args:
        trace: of one check.

    Example:
        >>> import math, torch
        >>> from torch import nn
        >>> from levada import theory
        >>> from levada.diagnose.check import examine
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(*(m for _ in range(20) for m in (nn.Linear(256, 256), nn.Tanh())), nn.Linear(256, 4))
        >>> for layer in net[::2]:
        ...     _ = nn.init.normal_(layer.weight, 0, 256**-0.5), nn.init.normal_(layer.bias, 0, 0.05**0.5)
        >>> _, trace = examine(net, torch.randn(32, 256), optimizer="SGD", lr=0.1)
        >>> found = trainable_depth(trace)
        >>> found.low < theory.trainable_depth("tanh", 1.0, 0.05) < found.high, found.limited_by
        (True, 'correlation')

    Source: Schoenholz et al. 2017, arXiv 1611.01232 (six depth scales).
    """
    bounds = _bounds(trace)
    if isinstance(bounds, str):
        return bounds
    least = min(bounds, key=lambda bound: bound.value)
    known = [bound.predicted for bound in bounds if bound.predicted is not None]
    return TrainableDepth(
        value=least.value,
        low=min(bound.low for bound in bounds),
        high=min(bound.high for bound in bounds),
        predicted=min(known) if len(known) == sum(bound.limit != "directions" for bound in bounds) else None,
        limited_by=least.limit,
        blocks=_blocks(trace),
    )


def trainability(trace: Trace) -> float | None:
    """Return trainable depth over depth: the larger, the likelier the model is to train; None if it is not known.

    Args:
        trace: of one check, with the optimizer that will train.
    """
    found = trainable_depth(trace)
    return None if isinstance(found, str) else found.value / found.blocks


def depths(trace: Trace) -> dict[str, Any]:
    """Return what the summary of a check says of depth: by name a mapping, or the reason why it is not known.

    Args:
        trace: of one check.
    """
    found = trainable_depth(trace)
    told: dict[str, Any] = {"trainable_depth": found if isinstance(found, str) else found.told()}
    if "effective_depth" in trace.context:
        told["effective_depth"] = trace.context["effective_depth"]
    return told


def _bounds(trace: Trace) -> list[_Bound] | str:
    """Return the depths that differences between inputs, the gradient where it counts, and its directions allow."""
    facts = facts_of(trace)
    wanted: list[tuple[Decay | str, float, Limit]] = [
        (correlation_decay(trace), -1.0, "correlation"),
        (sensitivity_decay(trace), 2.0, "correlation"),
    ]
    if not _rescales(facts):
        gradient = gradient_decay(trace)
        wanted += [(gradient, 2.0, "gradient"), (gradient, -2.0, "gradient")]
    bounds = []
    for decay, power, limit in wanted:
        if isinstance(decay, str):
            return decay
        if len(decay.steps) < LEAST_STEPS:
            return f"fewer than {LEAST_STEPS} blocks show no law of depth"
        bounds.append(_bound(decay, power, limit))
    found = facts.directions
    if found is not None and found.blocks >= LEAST_STEPS:
        low, high = found.depth(found.low), found.depth(found.high)
        bounds.append(_Bound(found.depth(found.value), low, high, None, "directions"))
    return bounds


def _bound(decay: Decay, power: float, limit: Limit) -> _Bound:
    """Return some scales of a quantity's power: of its growth, or of its fall if the power is negative."""
    scales = GRADIENT_SCALES if limit == "gradient" else SCALES

    def depth(factor: float) -> float:
        rate = power * (math.log(factor) if factor > 0 else -math.inf)
        return scales / rate if rate > 0 else math.inf

    low, high = sorted((depth(decay.low), depth(decay.high)))
    predicted = None if decay.predicted is None else depth(decay.predicted)
    return _Bound(depth(decay.value), low, high, predicted, limit)


def _rescales(facts: Facts) -> bool:
    return facts.eps is not None and facts.optimizer is not None and facts.optimizer.lower().startswith(_ADAPTIVE)


def _blocks(trace: Trace) -> int:
    return max(1, len(trace.sites) - 1)
