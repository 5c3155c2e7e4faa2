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

from levada._numbers import student_quantile
from levada.diagnose.facts import facts_of
from levada.probe.trace import Trace

__all__ = [
    "AGREEMENT",
    "LEAST_DECADES",
    "LEAST_FACTOR",
    "LEAST_STEPS",
    "Decay",
    "correlation_decay",
    "gradient_decay",
    "sensitivity_decay",
    "signal_decay",
    "size_decay",
]

# A factor within 10 % of 1 per block is what finite width does to a network at criticality.
LEAST_FACTOR = 0.9
# Over 58 architectures of timm as they start, the factor per block taken over the whole span stays below 2.6 decades.
LEAST_DECADES = 3.0
# Theory's gain and the measured one, in decades per block: 12 %. Width 256 agrees to 2 %, width 32 to about 6 %.
AGREEMENT = 0.05
# Differences between inputs are rounding below this many times the resolution of the number type.
RESOLVED = 8.0

# The factor per block is a mean of log factors without the outermost tenth on either side, so that one block that
# differs (a stage's end, a branch that starts at zero, a cut) does not speak for the others; rules look at such blocks
# by place.
TRIMMED = 0.1
# Below this many blocks nothing is trimmed: what remains would not tell their scatter.
LEAST_TRIMMED = 6
# Fewer blocks show no law of depth: an interval over them may exist, an error rests on none.
LEAST_STEPS = 4
# An interval that is wider than two decades of one block says nothing of the factor: what the blocks have is said.
USEFUL = 100.0
# Theory must cover this share of the blocks before its mean gain speaks for the network.
LEAST_COVERAGE = 0.5


@dataclass(frozen=True, slots=True)
class Decay:
    """The factor per block, in the direction in which the quantity travels, and how it was found.

    The interval is Yuen's for a trimmed mean (winsorised variance, Student's t), widened by the error over draws. It is
    about the factor of a block like these, under draws like these: not about other initialisations of the model, and
    for a span that `steepest` chose, about the blocks of that span.

    Attributes:
        value: trimmed mean factor per block.
        low: lower end of its 95 % interval, over draws and over blocks; 0 where one block tells no scatter.
        high: upper end; infinite where one block tells no scatter.
        predicted: theory's factor per block; None where it covers less than half of the blocks.
        compared: the measured factor over just the blocks that theory covers; None as before.
        covered: share of the blocks that theory covers.
        steps: measured factor of each block in log10, in order of execution; one fewer than boundaries.
        first: index of the first boundary used.
        last: index of the last boundary used.
        draws: number of draws.
        rows: as `steps`, for each draw.
        expected: theory's factor of each block in log10; NaN where it has none.

    Source: Yuen 1974, Biometrika 61, 165-170.
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
    rows: tuple[tuple[float, ...], ...]
    expected: tuple[float, ...]

    @property
    def decades(self) -> float:
        """Decades lost along the whole span at this factor per block; negative if it grows."""
        return -math.log10(self.value) * (self.last - self.first)

    @property
    def total(self) -> float:
        """Decades lost between the two ends, as measured; negative if it grows."""
        return -sum(self.steps)

    def steepest(self, *, grows: bool = False) -> Decay | None:
        """Return the decay over the contiguous blocks that lose most, or None if no block loses more than is tolerated.

        Each block may lose the tolerated factor `LEAST_FACTOR`; the span maximises the loss beyond that, so that blocks
        at criticality on either side do not join it and hide it.

        Args:
            grows: look for the span that grows most instead.
        """
        tolerated = -math.log10(LEAST_FACTOR)
        excess = [(step if grows else -step) - tolerated for step in self.steps]
        best, chosen, running, start = 0.0, None, 0.0, 0
        for index, value in enumerate(excess):
            if running <= 0:
                running, start = 0.0, index
            running += value
            if running > best:
                best, chosen = running, (start, index + 1)
        if chosen is None:
            return None
        begin, end = chosen
        rows = torch.tensor(self.rows, dtype=torch.float64)[:, begin:end]
        return _fitted(rows, torch.tensor(self.expected[begin:end], dtype=torch.float64), self.first + begin)

    def spread_out(self, *, grows: bool = False) -> float:
        """Return the decades lost between the ends if no block lost more than the second most does; 0 for one block.

        So one block that differs speaks at most as loudly as the next, and blocks that are alike lose nothing by it.

        Args:
            grows: the decades gained instead.
        """
        changes = sorted(step if grows else -step for step in self.steps)
        return sum(changes[:-1]) + changes[-2] if len(changes) > 1 else 0.0

    def excludes_criticality(self, *, grows: bool = False) -> bool:
        """Whether enough blocks lie, with the whole interval of their factor, below `LEAST_FACTOR` (or above 1 / it).

        Args:
            grows: above.
        """
        beyond = self.low > 1 / LEAST_FACTOR if grows else self.high < LEAST_FACTOR
        return len(self.steps) >= LEAST_STEPS and beyond

    def agrees(self, tolerance: float) -> bool:
        """Whether theory's factor and the measured one are within `tolerance` decades per block."""
        if self.predicted is None or self.compared is None or min(self.predicted, self.compared) <= 0:
            return False
        return abs(math.log10(self.predicted / self.compared)) <= tolerance

    @property
    def _one_factor(self) -> bool:
        """Whether the interval says something of a factor that all blocks have."""
        return self.high <= USEFUL * self.low

    def told(self) -> dict[str, Any]:
        """Return the values for a report; the blocks' own factors where an interval says nothing."""
        told: dict[str, Any] = {"value": self.value, "draws": self.draws, "blocks": len(self.steps)}
        if len(self.steps) > 1:
            told |= {"low": self.low, "high": self.high}
            told |= {} if self._one_factor else {"least": _power(min(self.steps)), "most": _power(max(self.steps))}
        if self.predicted is not None:
            told |= {"predicted": self.predicted, "predicted_share": self.covered}
        return told

    def decades_of(self, span: Decay) -> dict[str, float]:
        """Return what is lost over a span; and over all blocks that could be measured, where these are others.

        Args:
            span: some of them.
        """
        told = {"decades": span.total}
        return told if len(span.steps) == len(self.steps) else {**told, "decades_over_all_blocks_measured": self.total}

    def interval(self, digits: int = 3) -> str:
        """Return the interval and theory's value, for a sentence.

        Args:
            digits: significant ones.
        """
        theory = (
            f"theory says {self.predicted:.{digits}g}" if self.predicted is not None else "theory has no value here"
        )
        if len(self.steps) < 2:
            return f"one block; {theory}"
        if not self._one_factor:
            least, most = (f"{_power(end(self.steps)):.{digits}g}" for end in (min, max))
            return f"no one factor can be told: its {len(self.steps)} blocks have {least} to {most}; {theory}"
        return f"95 % interval {self.low:.{digits}g} to {self.high:.{digits}g}; {theory}"


def gradient_decay(trace: Trace) -> Decay | str:
    """Return the gradient's factor per block towards the input, or the reason why there is none.

    The last boundary, the model's output, is left out where three others remain: the head changes all blocks alike.

    Args:
        trace: with `cotangent_rms`, or else `gradient_rms`; draws are its rows.
    """
    return _per_block(*_gradients(trace), _last(trace), towards_input=True)


def sensitivity_decay(trace: Trace) -> Decay | str:
    """Return the factor per block, towards the input, on what a relative change of the signal does to the output.

    It is the product of gradient and signal: what all signals, and so all gradients, are multiplied by leaves it as it
    is. Above 1, inputs that are alike are driven apart (chaos); below 1, inputs that differ become alike (order).

    Args:
        trace: with `cotangent_rms` and `signal_rms`; draws are the rows of the former.
    """
    logs, predicted = _gradients(trace)
    sizes = _known([p.signal for p in facts_of(trace).predictions])
    growth = sizes.log10().diff() if sizes.numel() == len(trace.sites) else torch.full_like(predicted, math.nan)
    signal = trace["signal_rms"].log10().nanmean(0)
    return _per_block(logs + signal, predicted - growth, _last(trace), towards_input=True)


def signal_decay(trace: Trace) -> Decay | str:
    """Return the factor per block, towards the output, on the difference between inputs, or why there is none.

    Args:
        trace: with `signal_spread`; draws are its rows.
    """
    spread = trace["signal_spread"]
    rounding = RESOLVED * facts_of(trace).resolution * trace["signal_rms"]
    logs = torch.where(spread <= rounding, 0.0, spread).log10()
    return _towards_output(trace, logs, [p.spread for p in facts_of(trace).predictions])


def size_decay(trace: Trace) -> Decay | str:
    """Return the factor per block, towards the output, on the signal's root mean square, or why there is none.

    Args:
        trace: with `signal_rms`; draws are its rows.
    """
    return _towards_output(trace, trace["signal_rms"].log10(), [p.signal for p in facts_of(trace).predictions])


def correlation_decay(trace: Trace) -> Decay | str:
    """Return the factor per block, towards the output, on `1 - c` of the mean correlation c between inputs, or why not.

    `1 - c` is the squared spread over the squared signal, but for a factor of the batch's size.

    Args:
        trace: with `signal_spread` and `signal_rms`; draws are its rows.
    """
    spread, size = trace["signal_spread"], trace["signal_rms"]
    rounding = RESOLVED * facts_of(trace).resolution * size
    told = [
        None if p.spread is None or not p.signal else (p.spread / p.signal) ** 2 for p in facts_of(trace).predictions
    ]
    return _towards_output(trace, 2 * (torch.where(spread <= rounding, 0.0, spread) / size).log10(), told)


def _gradients(trace: Trace) -> tuple[Tensor, Tensor]:
    """Return log10 of the gradient at each boundary, freed of its width, and log10 of theory's gain across each."""
    facts = facts_of(trace)
    measured = facts.cotangent_log10
    if measured is None or not bool(torch.isfinite(measured).any()):
        cotangent = trace["cotangent_rms"]
        measured = (cotangent if bool(torch.isfinite(cotangent).any()) else trace["gradient_rms"]).log10()
    sizes = torch.tensor([float(math.prod(site.shape) or 1) for site in trace.sites], dtype=torch.float64)
    gains = _known([p.gain for p in facts.predictions])
    widths = 0.5 * (sizes[:-1].log10() - sizes[1:].log10())
    predicted = gains[1:].log10() + widths if gains.numel() == len(trace.sites) else torch.full_like(widths, math.nan)
    return measured + 0.5 * sizes.log10(), predicted


def _towards_output(trace: Trace, logs: Tensor, told: Sequence[float | None]) -> Decay | str:
    sizes = _known(told)
    predicted = sizes.log10().diff() if sizes.numel() == len(trace.sites) else torch.full((0,), math.nan)
    return _per_block(logs, predicted, _last(trace), towards_input=False)


def _last(trace: Trace) -> int:
    """Return the last boundary to follow: the head is left out where three others remain."""
    return len(trace.sites) - (1 if len(trace.sites) < 3 else 2)


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
    sign = -1.0 if towards_input else 1.0
    expected = predicted[first:last] if towards_input else sign * predicted[first:last]
    return _fitted(sign * logs[:, first : last + 1].diff(), expected, first)


def _fitted(rows: Tensor, expected: Tensor, first: int) -> Decay:
    """Fit the factor and its interval.

    Args:
        rows: log10 of the factor of each block, one row for each draw.
        expected: theory's; NaN or empty where there is none.
        first: index of the first boundary.
    """
    steps, slopes = rows.mean(0), torch.stack([_central(row) for row in rows])
    slope, half = float(slopes.mean()), _half_width(steps)
    if len(slopes) > 1:
        half = math.hypot(half, student_quantile(len(slopes) - 1) * float(slopes.std()) / math.sqrt(len(slopes)))
    if expected.numel() != steps.numel():
        expected = torch.full_like(steps, math.nan)
    known = torch.isfinite(expected)
    covered = float(known.double().mean())
    spoken = covered >= LEAST_COVERAGE
    return Decay(
        value=_power(slope),
        low=_power(slope - half),
        high=_power(slope + half),
        predicted=_power(float(_central(expected[known]))) if spoken else None,
        compared=_power(float(_central(steps[known]))) if spoken else None,
        covered=covered,
        steps=tuple(steps.tolist()),
        first=first,
        last=first + len(steps),
        draws=len(rows),
        rows=tuple(tuple(row) for row in rows.tolist()),
        expected=tuple(expected.tolist()),
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


def _trimmed(num: int) -> int:
    """Return how many of `num` values are left out on either side."""
    return math.ceil(TRIMMED * num) if num >= LEAST_TRIMMED else 0


def _central(steps: Tensor) -> Tensor:
    """Return the trimmed mean."""
    drop = _trimmed(len(steps))
    return steps.sort().values[drop : len(steps) - drop].mean()


def _half_width(steps: Tensor) -> float:
    """Return half the 95 % interval of the trimmed mean, from the winsorised variance; infinite for one value."""
    drop, num = _trimmed(len(steps)), len(steps)
    kept = num - 2 * drop
    if kept < 2:
        return math.inf
    ordered = steps.sort().values
    winsorised = ordered.clamp(float(ordered[drop]), float(ordered[num - drop - 1]))
    error = math.sqrt((num - 1) * float(winsorised.var()) / (kept * (kept - 1)))
    return student_quantile(kept - 1) * error


def _power(exponent: float) -> float:
    """Return ten to the power; infinite, or zero, beyond what a float64 holds."""
    return 10.0**exponent if exponent < 308 else math.inf
