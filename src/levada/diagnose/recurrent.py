"""What a check knows about memory over time: measured curves, what of the loss arrives where, and trials of repairs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from levada._numbers import sampled
from levada.probe.lyapunov import LyapunovExponents
from levada.probe.memory import MemoryCurve
from levada.probe.trace import Site, Trace

__all__ = [
    "AGREE",
    "Memory",
    "Rehearsal",
    "arrives_early",
    "curves_of",
    "grown",
    "longest",
    "measured",
    "not_followed",
    "repair_of",
    "short",
    "site_of",
]

# A sequence of fewer steps than this has no distant past.
LEAST_STEPS = 16
# Part of the sequence that a horizon must cover not to be short.
COVERED = 0.5
# Share of the loss's gradient at the best-served step that still arrives in the first half of the sequence.
FAINT, LOST = 1e-3, 1e-6
# Decades by which a gradient grows over the sequence.
GROWTH = 3.0
# Theory explains a horizon that it gives to this factor.
AGREE = 2.0
# Of a longer curve so many points are kept for a picture.
POINTS = 100

_GATED = frozenset({"LSTM", "GRU", "LSTMCell", "GRUCell"})
_RECURRENT = frozenset({"RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"})


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """Losses of some steps on one batch, by the model as it is and by a copy with a repair.

    Attributes:
        repair: name of the remedy.
        before: of the model as it is, before each step and after the last.
        after: of the copy.
    """

    repair: str
    before: tuple[float, ...]
    after: tuple[float, ...]

    @property
    def lowest(self) -> tuple[float, float]:
        """How low the loss of the model as it is gets, and that of the copy: the lowest median of three in a row."""
        return _lowest(self.before), _lowest(self.after)

    @property
    def confirms(self) -> bool:
        """Whether the copy gains a tenth of its loss and falls below the model, which gains less than half of that.

        What counts is how low each gets: a state that is held for long makes some of the steps overshoot.
        """
        low, low_repaired = self.lowest
        gain = _start(self.after) - low_repaired
        small = _start(self.before) - low < 0.5 * gain
        return gain > 0.1 * abs(_start(self.after)) and low_repaired < low and small

    @property
    def acquits(self) -> bool:
        """Whether the model as it is gains a tenth of its loss, or as much as the copy and a fiftieth, and is no worse.

        It then learns what it is asked for without a longer memory.
        """
        start, (low, low_repaired) = abs(_start(self.before)), self.lowest
        gained = _start(self.before) - low
        as_much = gained >= _start(self.after) - low_repaired and gained > 0.02 * start
        return not self.confirms and (gained > 0.1 * start or as_much)

    @property
    def thrown(self) -> bool:
        """Whether the model ends above its start, above the copy's, or at no number, while the copy's loss falls."""
        end = _medians(self.before)[-1] if self.before else math.nan
        falls = _lowest(self.after) < _start(self.after) and math.isfinite(self.after[-1])
        return falls and not (end <= _start(self.before) and end <= _start(self.after))


def _start(losses: Sequence[float]) -> float:
    return losses[0] if losses else math.nan


def _medians(losses: Sequence[float]) -> list[float]:
    """Return the median of each loss and the two before it; infinite from where one is not finite."""
    finite = [value if math.isfinite(value) else math.inf for value in losses]
    return [
        sorted(finite[max(0, i - 2) : i + 1])[min(i, 2) // 2] if math.isfinite(finite[i]) else math.inf
        for i in range(len(finite))
    ]


def _lowest(losses: Sequence[float]) -> float:
    return min(_medians(losses), default=math.nan)


@dataclass(frozen=True, slots=True)
class Memory:
    """How a model's recurrences remember.

    Attributes:
        curves: one for each layer and direction.
        arrival: name of a module -> root mean square of the loss's gradient at each step's input; of a random
            projection of the outputs without a loss.
        exponents: site of a recurrence whose gradient grows -> its largest Lyapunov exponent.
        rehearsals: name of a rule -> the trial of its repair, made where everything else spoke for the rule.
        missing: name of a module -> why it could not be followed.
    """

    curves: tuple[MemoryCurve, ...] = ()
    arrival: Mapping[str, Tensor] = field(default_factory=dict)
    exponents: Mapping[str, LyapunovExponents] = field(default_factory=dict)
    rehearsals: Mapping[str, Rehearsal] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)

    def by_module(self) -> dict[str, list[MemoryCurve]]:
        """Return the curves of each module."""
        found: dict[str, list[MemoryCurve]] = {}
        for curve in self.curves:
            found.setdefault(curve.module, []).append(curve)
        return found


def longest(curves: Sequence[MemoryCurve]) -> MemoryCurve:
    """Return the curve that reaches furthest back: a network remembers as long as its best layer."""
    return max(curves, key=lambda curve: curve.horizon.value)


def arrives_early(arrival: Tensor) -> float:
    """Return the largest gradient in the first half of a sequence, over the largest of all; NaN if there is none."""
    best = float(arrival.max())
    return float(arrival[: len(arrival) // 2].max()) / best if best > 0 and len(arrival) > 1 else math.nan


def short(curves: Sequence[MemoryCurve], arrival: Tensor | None, bar: float = FAINT) -> bool:
    """Whether a module's memory is short beside its sequence, and the loss loses the first half by it.

    Args:
        curves: of one module.
        arrival: the loss's gradient at its inputs.
        bar: share of the largest gradient that must not arrive in the first half.
    """
    curve = longest(curves)
    if arrival is None or curve.steps < LEAST_STEPS or not curve.horizon.high < COVERED * curve.steps:
        return False
    # of a state that is cut off from time to time, as under truncated backpropagation, the last piece
    return arrives_early(arrival[-curve.steps :]) < bar


def grown(curve: MemoryCurve, arrival: Tensor | None) -> float:
    """Return by how many decades a gradient grows back through time, the loss's too where it was measured; else 0."""
    logs = curve.curve.log10()
    decades = float(logs.max())
    if not curve.slope.low > 0 or not decades >= GROWTH:
        return 0.0
    if arrival is not None and bool(arrival[-1:].gt(0).all()):
        tail = arrival[-max(1, len(arrival) // 10) :].median()
        decades = min(decades, float((arrival[: max(1, len(arrival) // 2)].max() / tail).log10()))
    return decades if decades >= GROWTH else 0.0


def curves_of(curve: MemoryCurve, arrival: Tensor | None) -> dict[str, list[float] | list[int]]:
    """Return what a picture of a memory needs, each of at most `POINTS` points, evenly, with the first and the last.

    Args:
        curve: the memory.
        arrival: the gradient at each step's input; None if it was not measured.

    Returns:
        "steps_back" with "memory", and "memory_predicted" where theory has a word; "steps", from the first, with
        "gradient" over its largest.
    """
    back = sampled(len(curve.curve), POINTS)
    found: dict[str, list[float] | list[int]] = {"steps_back": back, "memory": curve.curve[back].tolist()}
    if curve.predicted is not None and len(curve.predicted) >= len(curve.curve):
        found["memory_predicted"] = curve.predicted[back].tolist()
    best = float(arrival.max()) if arrival is not None and len(arrival) else math.nan
    if arrival is not None and best > 0:
        steps = sampled(len(arrival), POINTS)
        found |= {"steps": steps, "gradient": (arrival[steps] / best).tolist()}
    return found


def measured(memory: Memory | None) -> dict[str, Any] | None:
    """Return what the summary tells: the horizon of the longest memory, and of each layer; None without recurrences.

    Args:
        memory: as `facts_of` has it.
    """
    if memory is None or not memory.curves:
        return None
    layers = []
    for curve in memory.curves:
        told: dict[str, Any] = {
            "site": curve.site,
            "kind": curve.kind,
            "steps": curve.steps,
            "value": curve.horizon.value,
            "low": curve.horizon.low,
            "high": curve.horizon.high,
            "reached": curve.reached,
            "tau": curve.tau,
            "slope": {"value": curve.slope.value, "low": curve.slope.low, "high": curve.slope.high},
            "predicted": curve.horizon_predicted,
        }
        if curve.gates is not None:
            told["gate"] = {"name": curve.gates.gate, "mean": curve.gates.mean}
            told["gate"]["quantiles"] = {str(q): value for q, value in curve.gates.quantiles.items()}
        layers.append(told)
    best = longest(memory.curves)
    return {
        "value": best.horizon.value,
        "low": best.horizon.low,
        "high": best.horizon.high,
        "steps": best.steps,
        "layers": layers,
    }


def not_followed(memory: Memory | None, sites: Sequence[Site]) -> list[str]:
    """Return notes on the recurrent layers whose memory was not measured.

    Args:
        memory: as `facts_of` has it.
        sites: of the trace.
    """
    known = {curve.module for curve in memory.curves} if memory is not None else set()
    missing = memory.missing if memory is not None else {}
    notes = []
    for site in sites:
        name = site.name.partition("#")[0]
        if site.kind in _RECURRENT and name not in known:
            why = f": {missing[name]}" if name in missing else ""
            notes.append(f"What becomes of the signal over time inside {name or site.kind} was not measured{why}.")
    return notes


def repair_of(rule: str, curves: Sequence[MemoryCurve], generator: str = "torch.Generator()") -> tuple[str, str]:
    """Return name and code of what repairs a recurrence: gates that stay open, or recurrent weights that keep the norm.

    Args:
        rule: "short_memory" or "exploding_memory".
        curves: the recurrences.
        generator: code that makes what the change draws from.
    """
    head = f"import torch\nfrom levada import initialise\ngenerator = {generator}\n"
    if rule == "short_memory" and any(curve.kind in _GATED or curve.gates is not None for curve in curves):
        horizon = max(3, max(curve.steps for curve in curves))
        return "chrono", f"{head}initialise.chrono(model, horizon={horizon}, generator=generator)"
    return "orthogonal_recurrence", f"{head}initialise.orthogonal_recurrence(model, generator=generator)"


def site_of(trace: Trace, module: str) -> str:
    """Return the block of a module, or the first one that it is in.

    Args:
        trace: with the blocks.
        module: qualified name.
    """
    names = trace.names()
    own = [n for n in names if n.partition("#")[0] == module]
    inside = [n for n in names if n.startswith(f"{module}.") or module.startswith(f"{n.partition('#')[0]}.")]
    return next(iter([*own, *inside, *names]))
