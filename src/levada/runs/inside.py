"""What a watched run keeps of the inside of its layers: mixing matrices of streams, and gates of recurrences."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

from levada.runs.reading import Reading
from levada.runs.signals import Signals

__all__ = [
    "EVENT",
    "GAINS",
    "GateSeries",
    "MixedLayer",
    "chains_in",
    "entry",
    "gates_of",
    "largest_in",
    "mixed_at",
    "rest",
    "why_not",
]

EVENT: Final = "coefficients"
"""Says what of the inside of layers is recorded, and what cannot be seen."""

DEVIATIONS: Final = "mixing_row_deviation", "mixing_column_deviation"
GAINS: Final = "composite_forward_gain", "composite_backward_gain"


GATES: Final = "gate_mean", "gate_low", "gate_high", "gate_horizon"
"""Mean over units, 5 % and 95 % quantile over units, and the steps after which the gates alone leave 1/1000."""


def entry(i: int, j: int) -> str:
    """Give the name of an entry of a mixing matrix: what stream i gets of stream j."""
    return f"mix_{i}_{j}"


def rest(name: str) -> str:
    """Give the name of what the code of a number leaves out: a second code, to be added."""
    return f"{name}_rest"


@final
@dataclass(frozen=True, slots=True)
class MixedLayer:
    """How one layer mixed its streams at one step.

    Attributes:
        name: of the connection.
        chain: number of the chain that it belongs to, in its process.
        matrix: row i is what stream i gets of each; mean over tokens.
        told: deviations and gains by name; NaN where not measured.
    """

    name: str
    chain: int
    matrix: list[list[float]]
    told: Mapping[str, float]


def mixed_at(signals: Signals, step: int | None = None) -> tuple[int, int, list[MixedLayer]] | None:
    """Give the layers of a process at a sample, or at the block of samples of which alone the means are kept.

    Args:
        signals: the part "mixing".
        step: the newest row up to this step; the last one if left out.

    Returns:
        First and last step of the row, and the layers; None if there is no such row.
    """
    steps = signals.steps
    at = len(steps) if step is None else bisect_right(steps, step)
    if not at:
        return None
    first = steps[at - 1]
    names = set(signals.names)
    told: dict[str, list[float]] = {}
    last = first
    for name in signals.names:
        found = signals.read(name, first=first, last=first)
        rows = [
            (row, end) for row, start, end in zip(found, found.steps, found.last_steps, strict=True) if start == first
        ]
        if rows:
            told[name], last = rows[0]
    layers = []
    for i, site in enumerate(signals.sites):
        n = _streams(site)
        if n and all(entry(a, b) in names for a in range(n) for b in range(n)):
            missing = [math.nan] * len(signals.sites)
            matrix = [[_whole(told, entry(a, b), i) for b in range(n)] for a in range(n)]
            numbers = {name: told.get(name, missing)[i] for name in (*DEVIATIONS, *GAINS)}
            chain = site.get("chain")
            layers.append(MixedLayer(str(site["name"]), chain if isinstance(chain, int) else 0, matrix, numbers))
    return first, last, layers


def _whole(told: Mapping[str, Sequence[float]], name: str, site: int) -> float:
    coarse = told[name][site] if name in told else math.nan
    fine = told[rest(name)][site] if rest(name) in told else 0.0
    return coarse + fine if math.isfinite(fine) else coarse


def _streams(site: Mapping[str, Any]) -> int:
    shape = site.get("shape")
    good = isinstance(shape, list) and len(shape) == 2 and shape[0] == shape[1] and isinstance(shape[0], int)
    return shape[0] if isinstance(shape, list) and good and 0 < shape[0] <= 64 else 0


@final
@dataclass(frozen=True, slots=True)
class GateSeries:
    """What the gates of one recurrence were, by sampled step.

    Attributes:
        site: the module, with layer and direction.
        gate: "forget gate", "update gate" or "carry gate".
        steps: first step of each row.
        mean: mean over units.
        low: 5 % quantile over units.
        high: 95 % quantile over units.
        horizon: steps back at which the gates alone leave 1/1000.
    """

    site: str
    gate: str
    steps: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]
    horizon: list[float]


def gates_of(signals: Signals, first: int | None = None, last: int | None = None) -> list[GateSeries]:
    """Give the gates of a process over steps.

    Args:
        signals: the part "gates".
        first: first step.
        last: last step.
    """
    steps: list[int] = []
    told: dict[str, list[list[float]]] = {}
    for name in GATES:
        rows = signals.read(name, first=first, last=last) if name in signals.names else []
        fine = signals.read(rest(name), first=first, last=last) if rest(name) in signals.names else []
        if isinstance(rows, Reading):
            steps = rows.steps
        pairs = zip(rows, fine, strict=True) if len(fine) == len(rows) else ((row, [0.0] * len(row)) for row in rows)
        told[name] = [[a + b if math.isfinite(b) else a for a, b in zip(row, more, strict=True)] for row, more in pairs]
    if any(len(rows) != len(steps) for rows in told.values()):
        return []
    return [
        GateSeries(str(site["name"]), str(site.get("gate") or "gate"), steps, *([r[i] for r in told[n]] for n in GATES))
        for i, site in enumerate(signals.sites)
    ]


def chains_in(layers: Sequence[MixedLayer]) -> Iterator[list[MixedLayer]]:
    """Give the layers chain by chain."""
    chains: dict[int, list[MixedLayer]] = {}
    for layer in layers:
        chains.setdefault(layer.chain, []).append(layer)
    yield from chains.values()


def largest_in(chain: Sequence[MixedLayer]) -> dict[str, float]:
    """Give the largest of each number over the layers of a chain, as a check tells them; NaN where none is known.

    Args:
        chain: at least one layer.

    Example:
        >>> told = [{"composite_forward_gain": gain} for gain in (1.0, math.nan, 1.5)]
        >>> largest_in([MixedLayer("layers.0", 0, [], one) for one in told])
        {'composite_forward_gain': 1.5}
    """
    known = {key: [one.told[key] for one in chain if not math.isnan(one.told[key])] for key in chain[0].told}
    return {key: max(values, default=math.nan) for key, values in known.items()}


def why_not(events: Iterable[Mapping[str, Any]], what: str) -> str:
    """Say why a watched run has no record of something.

    Args:
        events: of its processes.
        what: "mixing" or "gates".
    """
    said = [event[what] for event in events if event.get("type") == EVENT and isinstance(event.get(what), Mapping)]
    if not said:
        return "It was not recorded: taking it was off, no step was sampled, or an earlier levada wrote the run."
    compiled = max((one["compiled"] for one in said if isinstance(one.get("compiled"), int)), default=0)
    if compiled:
        what_runs = "layer with streams runs" if compiled == 1 else "layers with streams run"
        return f"{compiled:,} {what_runs} compiled, where matrices cannot be seen."
    unseen = [pair for one in said for pair in _unseen(one)]
    if unseen:
        told = "; ".join(f"{name} cannot be seen: {why}" for name, why in dict(unseen).items())
        return f"The gates of {told}."
    return {"mixing": "The model has no layers that mix streams.", "gates": "The model has no recurrence with gates."}[
        what
    ]


def _unseen(said: Mapping[str, Any]) -> list[tuple[str, str]]:
    held = said.get("unseen")
    return [(str(name), str(why)) for name, why in held.items()][:4] if isinstance(held, Mapping) else []
