"""What was measured on one sampled step: on the device until it is asked for, then numbers by site."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias, final

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from levada._errors import MeasurementError
from levada.probe.collector import Slot, to_host
from levada.probe.operation import Execution
from levada.probe.parameters import COLUMNS
from levada.probe.taps import Target
from levada.probe.trace import Site, Trace

__all__ = ["Reading", "Readings"]

Rows: TypeAlias = list[tuple[list[Slot], int, Tensor]]


class _Mean:
    """Weighted means by signal and site; NaN where nothing was added."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, int], tuple[float, float]] = {}

    def add(self, signal: str, site: int, value: float, weight: float) -> None:
        total, weights = self._sums.get((signal, site), (0.0, 0.0))
        self._sums[signal, site] = total + value * weight, weights + weight

    def get(self, signal: str, site: int) -> float:
        total, weights = self._sums.get((signal, site), (0.0, 0.0))
        return total / weights if weights else math.nan


@final
class Reading:
    """The state of one sampled step, and what it measured.

    Args:
        step: its number.
        training: whether the model was in training mode.
    """

    def __init__(self, step: int, training: bool) -> None:
        self.step = step
        self.training = training
        self.passes = 0
        self.open = True
        self.lr: float | Tensor | None = None
        self.values: list[tuple[Slot, int]] = []  # what was seen, with the number of its elements
        self.without_graph: set[Slot] = set()
        self.expected: set[Slot] = set()  # values through which a gradient may come
        self.arrived: set[Slot] = set()
        self.reached: set[int] = set()  # passes that a backward pass reached
        self.handles: list[RemovableHandle] = []
        self._failed: set[int] = set()
        self._signal_sites: dict[int, list[int]] = {}
        self._activity_sites: dict[int, list[int]] = {}
        self._slots: list[list[tuple[list[Slot], int]]] = []
        self._names: list[list[str]] = []
        self._host: Callable[[], list[list[list[float]]]] | None = None
        self._device: list[Tensor] = []

    def begin(self) -> None:
        """Begin a forward pass."""
        self.passes += 1

    def abandon(self) -> None:
        """Leave the pass that failed out of the averages."""
        self._failed.add(self.passes)

    def assign(self, candidate: int, targets: Iterable[Target]) -> None:
        """Say what a candidate value of the first pass turned out to be."""
        for target in targets:
            sites = self._signal_sites if target.signal else self._activity_sites
            sites.setdefault(candidate, []).append(target.site)
            if target.signal and (self.passes, candidate) in self.without_graph:
                self.without_graph.add((self.passes, target.site))

    def close(self) -> None:
        """Take no more gradients."""
        self.open = False
        for handle in self.handles:
            handle.remove()
        self.handles.clear()

    def take(self, *kinds: Rows) -> None:
        """Take the rows of signal, activity and gradient."""
        self._slots = [[(slots, count) for slots, count, _ in rows] for rows in kinds]
        self._device = [block for rows in kinds for _, _, block in rows]

    def take_parameters(self, names: list[list[str]], blocks: list[Tensor]) -> None:
        """Take the rows of the parameters."""
        self._names = names
        self._device.extend(blocks)

    def pack(self) -> None:
        """Put everything into one buffer on its device."""
        if isinstance(self.lr, Tensor):
            self._device.append(self.lr.detach().reshape(1, 1).double())
        self._host = to_host(self._device)
        self._device = []

    def by_site(self, sites: Sequence[Site]) -> dict[str, list[float]]:
        """Copy to the host, and return the signals by site."""
        assert self._host is not None  # packed before
        blocks = iter(self._host())
        mean = _Mean()
        dropped = set(self._failed)
        if self.reached:  # then a pass without a backward pass was an evaluation
            dropped.update(index for index in range(1, self.passes + 1) if index not in self.reached)
        self._add_signals(mean, blocks, dropped)
        parameters: dict[str, list[float]] = {}
        for names in self._names:
            parameters.update(zip(names, next(blocks), strict=True))
        if isinstance(self.lr, Tensor):
            self.lr = next(blocks)[0][0]
        return _signals(mean, sites, parameters)

    def _add_signals(self, mean: _Mean, blocks: Any, dropped: set[int]) -> None:
        columns = (
            (("square", "nonfinite", "deviation"), self._signal_sites),
            (("zero_fraction", "dead_fraction", "saturated_fraction"), self._activity_sites),
            (("gradient", "gradient_nonfinite", ""), self._signal_sites),
        )
        for held, (signals, sites) in zip(self._slots, columns, strict=True):
            for slots, count in held:
                for (index, site), row in zip(slots, next(blocks), strict=True):
                    if index in dropped:
                        continue
                    for place in sites.get(site, ()) if site < 0 else (site,):
                        for signal, value in zip(signals, row, strict=True):
                            if not (math.isnan(value) and signal not in ("square", "gradient")):
                                mean.add(signal, place, value, count)
        for slot, count in self.values:
            if slot in self.expected and slot not in self.arrived and slot[0] in self.reached - dropped:
                for place in self._signal_sites.get(slot[1], ()) if slot[1] < 0 else (slot[1],):
                    mean.add("gradient", place, 0.0, count)


def _signals(mean: _Mean, sites: Sequence[Site], parameters: dict[str, list[float]]) -> dict[str, list[float]]:
    result: dict[str, list[float]] = {}

    def put(signal: str, value: float) -> None:
        result.setdefault(signal, []).append(value)

    for site in sites:
        for signal, source in (("signal_rms", "square"), ("signal_spread", "deviation"), ("gradient_rms", "gradient")):
            put(signal, _root(mean.get(source, site.order)))
        for signal in ("nonfinite", "gradient_nonfinite", "zero_fraction", "dead_fraction", "saturated_fraction"):
            put(signal, mean.get(signal, site.order))
        rows = [dict(zip(COLUMNS, parameters[name], strict=True)) for name in site.parameters if name in parameters]
        trained = [row for row in rows if not math.isnan(row["update"])]
        weight = _average(trained, "weight")
        put("weight_rms", _root(_average(rows, "weight")))
        put("weight_gradient_rms", _root(_average(trained, "gradient")))
        put("update_ratio", _root(_average(trained, "update") / weight) if weight else math.nan)
        moving = [row | {"count": row["count"] * row["moving"]} for row in trained if row["moving"] > 0]
        put("lost_fraction", _average(moving, "lost"))
    return result


def _average(rows: list[dict[str, float]], column: str) -> float:
    count = sum(row["count"] for row in rows)
    return sum(row[column] * row["count"] for row in rows) / count if count else math.nan


def _root(square: float) -> float:
    return math.sqrt(square) if square >= 0 else (0.0 if square < 0 else math.nan)


@final
class Readings:
    """All sampled steps; each is copied to the host when the next one ends, so that training does not wait for it."""

    def __init__(self) -> None:
        self._open: list[Reading] = []
        self._done: list[tuple[Reading, dict[str, list[float]]]] = []

    def add(self, reading: Reading, sites: Sequence[Site]) -> None:
        """Add a sampled step."""
        reading.pack()
        self._resolve(sites)
        self._open.append(reading)

    def _resolve(self, sites: Sequence[Site]) -> None:
        self._done.extend((reading, reading.by_site(sites)) for reading in self._open)
        self._open.clear()

    def trace(self, execution: Execution, context: dict[str, Any]) -> Trace:
        """Return the trace of all steps.

        Raises:
            MeasurementError: if there is none.
        """
        self._resolve(execution.sites)
        if not self._done:
            raise MeasurementError(
                "Probe.trace: no sampled step was completed. A step ends with optimizer.step(), or with probe.step() "
                "for a probe without an optimizer."
            )
        readings = [reading for reading, _ in self._done]
        signals = self._done[0][1]
        values = {
            signal: torch.tensor([numbers[signal] for _, numbers in self._done], dtype=torch.float64)
            for signal in signals
        }
        facts = {
            "lr": tuple(reading.lr for reading in readings),
            "training": tuple(reading.training for reading in readings),
            "passes": tuple(reading.passes for reading in readings),
            "depth": len(execution.sites),
            "note": execution.note,
        }
        return Trace(execution.sites, tuple(reading.step for reading in readings), values, {**context, **facts})
