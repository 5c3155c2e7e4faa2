r"""How much a signal or a gradient changes per block: a slope over depth, its interval, and theory's value beside it.

For $r_l$ the root mean square at boundary $l$ and $n_l$ its number of elements, gradients are compared by
$\log_{10}(r_l \sqrt{n_l})$, so that a change of width alone is no decay; signals by $\log_{10} r_l$, which weights of
variance proportional to 1/fan_in keep.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from levada.diagnose.facts import facts_of
from levada.probe.trace import Trace

__all__ = ["AGREEMENT", "LEAST_DECADES", "LEAST_FACTOR", "Decay", "gradient_decay", "signal_decay", "size_decay"]

# A factor within 10 % of 1 per block is what finite width does to a network at criticality.
LEAST_FACTOR = 0.9
# Over 58 architectures of timm as they start, the factor per block taken over the whole span stays below 2.6 decades.
LEAST_DECADES = 3.0
# Theory's gain and the measured one, in decades per block: 12 %. Width 256 agrees to 2 %, width 32 to about 6 %.
AGREEMENT = 0.05
# Differences between inputs are rounding below this many times the resolution of the number type.
RESOLVED = 8.0

# The factor per block is a mean of log factors without the outermost tenth on either side, so that one block
# that differs
# (a stage's end, a branch that starts at zero, a cut) does not speak for the others; rules look at such
# blocks by place.
TRIMMED = 0.1
# 1.4826 makes a standard deviation of a median absolute deviation; such a trimmed mean has 1.06 times a
# mean's variance.
_ERROR = 1.4826 * math.sqrt(1.06)
# Theory must cover this share of the blocks before its mean gain speaks for the network.
LEAST_COVERAGE = 0.5
# The two-sided 97.5 % quantile of Student's t for 1, 2, ... degrees of freedom.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


@dataclass(frozen=True, slots=True)
class Decay:
    """The factor per block, in the direction in which the quantity travels, and how it was found.

    Attributes:
        value: trimmed mean factor per block.
        low: lower end of its 95 % interval, over draws and over blocks.
        high: upper end.
        predicted: theory's factor per block; None where it covers less than half of the blocks.
        compared: the measured factor over just the blocks that theory covers; None as before.
        covered: share of the blocks that theory covers.
        steps: measured factor of each block in log10, in order of execution; one fewer than boundaries.
        first: index of the first boundary used.
        last: index of the last boundary used.
        draws: number of draws.
    """

    value: float
    low: float
    high: float
    predicted: float | None
    compared: float | None
    covered: float
    steps: tuple[float, ...]
    first: int
    last: int
    draws: int

    @property
    def decades(self) -> float:
        """Decades lost along the whole span at this factor per block; negative if it grows."""
        return -math.log10(self.value) * (self.last - self.first)

    @property
    def total(self) -> float:
        """Decades lost between the two ends, as measured; negative if it grows."""
        return -sum(self.steps)

    def agrees(self, tolerance: float) -> bool:
        """Whether theory's factor and the measured one are within `tolerance` decades per block."""
        if self.predicted is None or self.compared is None or min(self.predicted, self.compared) <= 0:
            return False
        return abs(math.log10(self.predicted / self.compared)) <= tolerance

    def told(self) -> dict[str, Any]:
        """Return the values for a report."""
        told = {"value": self.value, "low": self.low, "high": self.high, "draws": self.draws}
        if self.predicted is not None:
            told |= {"predicted": self.predicted, "predicted_share": self.covered}
        return told


def gradient_decay(trace: Trace) -> Decay | str:
    """Return the gradient's factor per block towards the input, or the reason why there is none.

    The last boundary, the model's output, is left out where three others remain: the head changes all blocks alike.

    Args:
        trace: with `cotangent_rms`, or else `gradient_rms`; draws are its rows.
    """
    facts = facts_of(trace)
    measured = facts.cotangent_log10
    if measured is None or not bool(torch.isfinite(measured).any()):
        cotangent = trace["cotangent_rms"]
        measured = (cotangent if bool(torch.isfinite(cotangent).any()) else trace["gradient_rms"]).log10()
    sizes = torch.tensor([float(math.prod(site.shape) or 1) for site in trace.sites], dtype=torch.float64)
    logs = measured + 0.5 * sizes.log10()
    gains = _known([p.gain for p in facts.predictions])
    widths = 0.5 * (sizes[:-1].log10() - sizes[1:].log10())
    predicted = gains[1:].log10() + widths if gains.numel() == len(trace.sites) else torch.full_like(widths, math.nan)
    last = len(trace.sites) - (1 if len(trace.sites) < 3 else 2)
    return _per_block(logs, predicted, last, towards_input=True)


def signal_decay(trace: Trace) -> Decay | str:
    """Return the factor per block, towards the output, on the difference between inputs, or why there is none.

    Args:
        trace: with `signal_spread`; draws are its rows.
    """
    spreads = _known([p.spread for p in facts_of(trace).predictions])
    predicted = spreads.log10().diff() if spreads.numel() == len(trace.sites) else torch.full((0,), math.nan)
    last = len(trace.sites) - (1 if len(trace.sites) < 3 else 2)
    spread = trace["signal_spread"]
    rounding = RESOLVED * facts_of(trace).resolution * trace["signal_rms"]
    logs = torch.where(spread <= rounding, 0.0, spread).log10()
    return _per_block(logs, predicted, last, towards_input=False)


def size_decay(trace: Trace) -> Decay | str:
    """Return the factor per block, towards the output, on the signal's root mean square, or why there is none.

    Args:
        trace: with `signal_rms`; draws are its rows.
    """
    sizes = _known([p.signal for p in facts_of(trace).predictions])
    predicted = sizes.log10().diff() if sizes.numel() == len(trace.sites) else torch.full((0,), math.nan)
    last = len(trace.sites) - (1 if len(trace.sites) < 3 else 2)
    return _per_block(trace["signal_rms"].log10(), predicted, last, towards_input=False)


def _known(values: Sequence[float | None]) -> Tensor:
    return torch.tensor([math.nan if v is None else v for v in values], dtype=torch.float64)


def _per_block(logs: Tensor, predicted: Tensor, last: int, *, towards_input: bool) -> Decay | str:
    """Take the factor per block from rows of log10 values over the order of execution."""
    logs = logs[~torch.isnan(logs).all(1), : last + 1]
    reached = torch.isfinite(logs).all(0)
    if not len(logs) or not bool(reached.any()):
        return "nothing finite and above zero was measured at any boundary"
    # Where the quantity is exactly zero or not finite there is no logarithm: use the longest run of good boundaries
    # that ends where the quantity starts its way.
    first, last = _run(reached.tolist(), from_end=towards_input)
    if last - first < 1:
        return "there are fewer than two boundaries to compare"
    logs = logs[:, first : last + 1]
    sign = -1.0 if towards_input else 1.0
    slopes = torch.tensor([_central(sign * row.diff()) for row in logs], dtype=torch.float64)
    steps = sign * logs.mean(0).diff()
    slope = float(slopes.mean())
    error_draws = 0.0
    if len(slopes) > 1:
        error_draws = _quantile(len(slopes) - 1) * float(slopes.std()) / math.sqrt(len(slopes))
    error_blocks = 0.0
    if len(steps) > 1:
        scatter = float((steps - steps.median()).abs().median())
        error_blocks = _quantile(len(steps) - 1) * _ERROR * scatter / math.sqrt(len(steps))
    half = math.hypot(error_draws, error_blocks)
    expected = sign * predicted[first:last] if not towards_input else predicted[first:last]
    known = torch.isfinite(expected)
    covered = float(known.double().mean()) if expected.numel() else 0.0
    spoken = covered >= LEAST_COVERAGE
    return Decay(
        value=10**slope,
        low=10 ** (slope - half),
        high=10 ** (slope + half),
        predicted=10 ** _central(expected[known]) if spoken else None,
        compared=10 ** _central(steps[known]) if spoken else None,
        covered=covered,
        steps=tuple(steps.tolist()),
        first=first,
        last=last,
        draws=len(slopes),
    )


def _run(good: Sequence[bool], *, from_end: bool) -> tuple[int, int]:
    """Return the ends of the run of True that touches the side where the quantity starts its way."""
    places = [i for i, ok in enumerate(good) if ok]
    if not from_end:
        first = last = places[0]
        while last + 1 < len(good) and good[last + 1]:
            last += 1
        return first, last
    first = last = places[-1]
    while first > 0 and good[first - 1]:
        first -= 1
    return first, last


def _central(steps: Tensor) -> float:
    """Return the mean without the outermost tenth, at least one, on either side; with fewer than three, the mean."""
    drop = math.ceil(TRIMMED * len(steps)) if len(steps) > 2 else 0
    return float(steps.sort().values[drop : len(steps) - drop].mean())


def _quantile(freedom: int) -> float:
    return _T[freedom - 1] if freedom <= len(_T) else 1.96 + 2.5 / freedom
