"""What was measured on one sampled step: on the device until it is asked for, then numbers by site."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias, final

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from levada._errors import MeasurementError
from levada.probe.collector import Slot, to_host
from levada.probe.execution import Execution
from levada.probe.mixing import in_passes
from levada.probe.parameters import COLUMNS
from levada.probe.streams import Sample, on_host
from levada.probe.taps import Target
from levada.probe.trace import Site, Trace

__all__ = ["Reading", "Readings"]

Rows: TypeAlias = list[tuple[list[Slot], int, Tensor]]


class _Mean:
    """Weighted means by site of columns of numbers; NaN where nothing was added."""

    def __init__(self, num_sites: int, columns: int) -> None:
        self._sums = torch.zeros(num_sites, columns, dtype=torch.float64)
        self._weights = torch.zeros(num_sites, columns, dtype=torch.float64)

    def add(self, sites: Tensor, values: Tensor, weights: Tensor) -> None:
        """Add rows. NaN in column 0 is a number like others; in the other columns it counts as not measured."""
        known = ~values.isnan()
        known[:, 0] = True
        shares = weights.unsqueeze(-1) * known
        self._sums.index_add_(0, sites, torch.where(known, values, 0.0) * shares)
        self._weights.index_add_(0, sites, shares)

    def get(self) -> Tensor:
        """Return the means, of shape `(sites, columns)`."""
        return self._sums / self._weights  # 0 / 0 is NaN


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
        self.scale = 1.0
        self.open = True
        self.lr: float | Tensor | None = None
        self.values: list[tuple[Slot, int]] = []  # what was seen, with the number of its elements
        self.without_graph: set[Slot] = set()
        self.expected: set[Slot] = set()  # values through which a gradient may come
        self.arrived: set[Slot] = set()
        self.handles: list[RemovableHandle] = []
        self._failed: set[int] = set()
        self._signal_sites: dict[int, list[int]] = {}
        self._activity_sites: dict[int, list[int]] = {}
        self._slots: list[list[tuple[list[Slot], int]]] = []
        self._names: list[str] = []
        self._samples: list[tuple[int, Sample]] = []
        self._unpack: Callable[[], list[Sample]] | None = None
        self.mixing: Mapping[str, Any] = {}  # what a trace's context tells of it
        self._host: Callable[[], list[Tensor]] | None = None
        self._device: list[Tensor] = []

    def begin(self, scale: float = 1.0) -> None:
        """Begin a forward pass whose loss is multiplied by `scale`."""
        if scale < self.scale and self.passes:  # a scaler that lowers its scale has skipped the step of those before
            self._failed.update(range(1, self.passes + 1))
        self.passes += 1
        self.scale = scale

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
        self._names = [name for group in names for name in group]
        self._device.extend(blocks)

    def take_mixing(self, samples: list[tuple[int, Sample]]) -> None:
        """Take what the layers with several streams read, mixed and wrote."""
        self._samples = list(samples)

    def forget(self) -> None:
        """Drop what `by_site` needed."""
        self.values, self._slots, self._names, self._host = [], [], [], None
        self._samples, self._unpack = [], None
        for slots in (self.without_graph, self.expected, self.arrived):
            slots.clear()
        self._signal_sites.clear()
        self._activity_sites.clear()

    def pack(self) -> None:
        """Put everything into one buffer on its device."""
        if isinstance(self.lr, Tensor):
            self._device.append(self.lr.detach().reshape(1, 1).double())
        self._host = to_host(self._device)
        self._device = []
        self._unpack = on_host([sample for _, sample in self._samples])

    def by_site(self, sites: Sequence[Site], places: dict[str, list[int]]) -> dict[str, Tensor]:
        """Copy to the host, and return the signals by site.

        Args:
            sites: the sites.
            places: parameter -> indices of the sites at which it acts.
        """
        assert self._host is not None  # packed before
        blocks = [block.double() for block in self._host()]
        if isinstance(self.lr, Tensor):
            self.lr = blocks.pop().item()
        reached = {index for index, _ in self.arrived}
        # Where some passes were followed by a backward pass, the others were evaluations.
        counted = (reached or set(range(1, self.passes + 1))) - self._failed
        result: dict[str, Tensor] = {}
        names = (
            ("signal_rms", "nonfinite", "signal_spread"),
            ("zero_fraction", "dead_fraction", "saturated_fraction"),
            ("gradient_rms", "gradient_nonfinite", ""),
        )
        candidates = self._signal_sites, self._activity_sites, self._signal_sites
        for kind, (held, columns, of) in enumerate(zip(self._slots, names, candidates, strict=True)):
            mean = _Mean(len(sites), 3)
            own, blocks = blocks[: len(held)], blocks[len(held) :]
            if held:
                rows = [(slot, n) for slots, n in held for slot in slots]
                self._add(mean, rows, torch.cat(own), of, counted)
            if kind == 2:
                rows = [(s, n) for s, n in self.values if s in self.expected and s not in self.arrived]
                self._add(mean, rows, torch.zeros(len(rows), 3, dtype=torch.float64), of, counted & reached)
            for name, values in zip(columns, mean.get().unbind(1), strict=True):
                if name:
                    result[name] = values.sqrt() if name.startswith(("signal", "gradient_rms")) else values
        result["gradient_rms"] = result["gradient_rms"] / self.scale
        result.update(_parameter_signals(len(sites), self._names, blocks, places))
        if self._samples and self._unpack is not None:
            passes = [number for number, _ in self._samples]
            known = [(n, s) for n, s in zip(passes, self._unpack(), strict=True) if n in counted]
            mixing, self.mixing = in_passes(known, sites)
            result.update(mixing)
        return result

    @staticmethod
    def _add(
        mean: _Mean, rows: list[tuple[Slot, int]], values: Tensor, candidates: dict[int, list[int]], counted: set[int]
    ) -> None:
        """Add the rows of the passes that count, each to its site or to the sites that its candidate became."""
        chosen = [
            (row, site, count)
            for row, ((index, slot), count) in enumerate(rows)
            if index in counted
            for site in ((slot,) if slot >= 0 else candidates.get(slot, ()))
        ]
        if chosen:
            index, sites, counts = torch.tensor(chosen).unbind(1)
            picked = values[index]
            # Column 0 is a mean square: NaN there is a NaN among the elements, and must show. Elsewhere it says that
            # the statistic does not exist.
            mean.add(sites, picked, counts.double())


def _parameter_signals(
    num_sites: int, names: list[str], blocks: list[Tensor], places: dict[str, list[int]]
) -> dict[str, Tensor]:
    """Average over the parameters of each site; what is NaN (frozen, no gradient) does not count."""
    weights, trained, moving = _Mean(num_sites, 1), _Mean(num_sites, 3), _Mean(num_sites, 1)
    pairs = [(row, site) for row, name in enumerate(names) for site in places.get(name, ())]
    if pairs:
        rows, sites = torch.tensor(pairs).unbind(1)
        table = dict(zip(COLUMNS, torch.cat(blocks)[rows].unbind(1), strict=True))
        count = table["count"]
        weights.add(sites, table["weight"][:, None], count)
        free = ~table["update"].isnan()
        columns = torch.stack([table["weight"], table["gradient"], table["update"]], dim=1)
        trained.add(sites[free], columns[free], count[free])
        moved = free & (table["moving"] > 0)
        moving.add(sites[moved], table["lost"][moved, None], (count * table["moving"])[moved])
    weight, gradient, update = trained.get().unbind(1)
    ratio = torch.where(weight > 0, update / weight, math.nan)
    return {
        "weight_rms": weights.get()[:, 0].sqrt(),
        "weight_gradient_rms": gradient.sqrt(),
        "update_ratio": ratio.sqrt(),
        "lost_fraction": moving.get()[:, 0],
    }


@final
class Readings:
    """All sampled steps; each is copied to the host when the next one ends, so that training does not wait for it."""

    def __init__(self) -> None:
        self._open: list[Reading] = []
        self._done: list[tuple[Reading, dict[str, Tensor]]] = []
        self._places: dict[str, list[int]] = {}

    def add(self, reading: Reading, sites: Sequence[Site]) -> None:
        """Add a sampled step."""
        reading.pack()
        self._resolve(sites)
        self._open.append(reading)

    def _resolve(self, sites: Sequence[Site]) -> None:
        if not self._places:
            for site in sites:
                for name in site.parameters:
                    self._places.setdefault(name, []).append(site.order)
        for reading in self._open:
            self._done.append((reading, reading.by_site(sites, self._places)))
            reading.forget()
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
        signals = dict.fromkeys(signal for _, numbers in self._done for signal in numbers)
        missing = torch.full((len(execution.sites),), torch.nan, dtype=torch.float64)
        values = {s: torch.stack([numbers.get(s, missing) for _, numbers in self._done]) for s in signals}
        facts = {
            "lr": tuple(reading.lr for reading in readings),
            "training": tuple(reading.training for reading in readings),
            "passes": tuple(reading.passes for reading in readings),
            "depth": len(execution.sites),
            "note": execution.note,
            **readings[-1].mixing,
        }
        return Trace(execution.sites, tuple(reading.step for reading in readings), values, {**context, **facts})
