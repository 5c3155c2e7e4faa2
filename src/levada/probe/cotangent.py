"""How much of a random cotangent at the model's output arrives at each block boundary, over any range."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, final

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from levada._errors import MeasurementError, require_at_least
from levada.probe.operation import Execution
from levada.probe.recomputation import activations_kept
from levada.probe.recorder import Recorder
from levada.probe.sites import execution_from
from levada.probe.statistics import mean_square
from levada.probe.taps import Plan, Taps, Target, plan_from

__all__ = ["Cotangents", "Value", "cotangent_rms"]

# Sizes at which neither the gradient's smaller elements underflow nor its larger ones overflow.
_TRUSTED = {torch.float16: (1e-3, 1e3), torch.float64: (1e-140, 1e140)}
_WIDE = 1e-30, 1e30  # float32 and bfloat16
_TOGETHER = 1 << 22  # elements that are stacked to be measured in one call


def cotangent_rms(
    model: nn.Module, run: Callable[[], Any], *, draws: int = 4, seed: int = 0
) -> tuple[Execution, Tensor]:
    """Return the blocks, and log10 of the gradient's root mean square at every boundary, for random cotangents.

        g_i = sqrt(mean((J_i^T c)^2)),  c ~ N(0, 1) at the output,  J_i from boundary i to the output

    One forward pass; one backward pass gives all boundaries at once. A gradient that leaves the range of its dtype is
    followed further: the backward pass is linear, so it starts again from a boundary through which everything flows,
    with the gradient there scaled to one, or from the output with another scale. No gradient is left on a parameter.
    Connections that recompute their activations keep them meanwhile.

    Args:
        model: the module whose boundaries are wanted.
        run: calls the model, e.g. `lambda: model(x)`.
        draws: number of cotangents.
        seed: of the cotangents; the global random state is not touched.

    Returns:
        The `Execution`, and a float64 tensor of shape `(draws, sites)`: -inf where nothing arrives (a detached branch),
        NaN where the value has no graph (frozen, or not on the way to the output).

    Raises:
        UsageError: if `draws` is below 1.
        MeasurementError: if the model was not called, or its output has no graph.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
        >>> _ = nn.init.eye_(net[0].weight), net[1].weight.data.copy_(1e-40 * torch.eye(4))
        >>> execution, logs = cotangent_rms(net, lambda: net(torch.ones(2, 4)), draws=1)
        >>> round((logs[0, 0] - logs[0, 1]).item(), 3)
        -40.0
    """
    require_at_least("cotangent_rms", "draws", draws, 1)
    cotangents = Cotangents(model)
    execution, sweep = cotangents.run(run)
    logs = [sweep.measure(torch.Generator().manual_seed(seed + draw)) for draw in range(draws)]
    return execution, torch.tensor(logs, dtype=torch.float64)


@final
class Cotangents:
    """Cotangents over several forward passes of one model, as `cotangent_rms` has them over one.

    The first pass is recorded. The next ones look only at the boundaries, with a few hooks; a pass that does not come
    by all of them, or that leaves another graph, took another path: it is run again and recorded.

    Args:
        model: the module whose boundaries are wanted.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        >>> cotangents = Cotangents(net)
        >>> rows = [cotangents.draw(lambda: net(torch.ones(5, 3)), seed)[1] for seed in (0, 1)]
        >>> rows[0].shape, cotangents.recorded
        (torch.Size([2]), 1)
    """

    def __init__(self, model: nn.Module) -> None:
        self.recorded = 0
        self._model = model
        self._plan: Plan | None = None
        self._values: dict[int, Value] = {}
        self._output = -1
        self._expected: set[int] = set()
        self._cuts: set[int] = set()
        self._nodes: Counter[str] = Counter()

    def draw(self, run: Callable[[], Any], seed: int) -> tuple[Execution, Tensor]:
        """Return the blocks, and log10 of the gradient's size at each for one cotangent, of shape `(sites,)`.

        Args:
            run: calls the model; it must give the same when called twice.
            seed: of the cotangent.

        Raises:
            MeasurementError: if the model was not called, or its output has no graph.
        """
        execution, sweep = self.run(run)
        return execution, torch.tensor(sweep.measure(torch.Generator().manual_seed(seed)), dtype=torch.float64)

    def run(self, run: Callable[[], Any]) -> tuple[Execution, _Sweep]:
        """Run the model once, twice if it takes another path than before, and return its boundaries' graph."""
        if self._plan is not None:
            sightings = _Sightings()
            taps = Taps(self._model, self._plan, sightings)
            taps.attach()
            try:
                with activations_kept(self._model):
                    run()
            finally:
                taps.detach()
            values = sightings.values
            if sightings.passes == 1 and self._as_recorded(values):
                return self._plan.execution, self._sweep(self._plan.execution, values)
        return self._record(run)

    def _as_recorded(self, values: Mapping[int, Value]) -> bool:
        return values.keys() == self._expected and _nodes(values[self._output].edge) == self._nodes

    def keep(self, number: int, tensor: Tensor) -> None:
        """Take a value of a pass that a `Recorder` records: its `on_value`."""
        # Inside a custom autograd function a view of an input asks for a gradient and has no place in the graph.
        if tensor.requires_grad and (tensor.grad_fn is not None or torch.is_grad_enabled()):
            self._values[number] = Value.of(tensor)

    def plan(self, recorder: Recorder, execution: Execution) -> bool:
        """Plan further passes from a recorded one; say whether its output has a graph.

        Args:
            recorder: after the model's forward, during which `keep` was called.
            execution: the blocks found in it.
        """
        values, self._values = self._values, {}
        found = next((n for n in recorder.root.outputs if n in values), None) if recorder.root is not None else None
        if found is None:
            return False
        self.recorded += 1
        self._output, self._cuts = found, _cuts(recorder, values)
        self._expected = {n for n in (found, *execution.output_of.values()) if n in values}
        self._plan = plan_from(recorder, execution, {n: [Target(n, True, None, True)] for n in self._expected})
        self._nodes = _nodes(values[found].edge)
        return True

    def _record(self, run: Callable[[], Any]) -> tuple[Execution, _Sweep]:
        self._plan, self._values = None, {}
        recorder = Recorder(self._model, on_value=self.keep)
        recorder.attach()
        try:
            with activations_kept(self._model):
                run()
        finally:
            recorder.detach()
        execution, values = (execution_from(recorder) if recorder.finished else None), self._values
        if execution is None or not self.plan(recorder, execution):
            raise MeasurementError(
                f"cotangent_rms: run() gave no output of {type(self._model).__name__} with a graph. Call model(...) "
                "inside run, with gradients enabled and at least one parameter or input that requires one."
            )
        return execution, self._sweep(execution, values)

    def _sweep(self, execution: Execution, values: Mapping[int, Value]) -> _Sweep:
        return _Sweep(values, self._output, [execution.output_of[site.name] for site in execution.sites], self._cuts)


class _Sightings:
    """The values that taps come by, each at its first sight; what is seen twice has the graph of the version seen."""

    def __init__(self) -> None:
        self.values: dict[int, Value] = {}
        self.passes = 0

    def begin(self) -> bool:
        """Measure every pass; a second one makes the run one that must be recorded."""
        self.passes += 1
        return self.passes == 1

    def end(self, completed: bool) -> None:
        """Keep what was seen."""

    def see(self, target: Target, tensor: Tensor) -> None:
        """Keep a value's place in the graph."""
        if tensor.requires_grad:
            self.values[target.site] = Value.of(tensor)

    def see_again(self, target: Target, tensor: Tensor) -> None:
        """Pass over what is computed outside of the model's call."""


def _nodes(edge: GradientEdge) -> Counter[str]:
    """Return how many nodes of each kind the graph behind an edge has."""
    pending: list[Any] = [edge.node]
    seen: set[Any] = set()
    while pending:
        node = pending.pop()
        if node is not None and node not in seen:
            seen.add(node)
            pending.extend(following for following, _ in node.next_functions)
    return Counter(type(node).__name__ for node in seen)


@dataclass(frozen=True, slots=True)
class Value:
    """A value's place in the graph."""

    edge: GradientEdge
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor) -> Self:
        """Return where a tensor stands now; what overwrites it later makes another edge."""
        return cls(get_gradient_edge(tensor), tuple(tensor.shape), tensor.dtype, tensor.device)

    @property
    def trusted(self) -> tuple[float, float]:
        """Sizes between which a gradient of this type is neither cut off below nor above."""
        return _TRUSTED.get(self.dtype, _WIDE)


def _cuts(recorder: Recorder, values: Mapping[int, Value]) -> set[int]:
    """Return the values through which everything flows: nothing made before them is read after them."""
    last_use: dict[int, int] = {}
    for event in recorder.root.walk() if recorder.root is not None else ():
        for number in event.operation.inputs:
            last_use[number] = max(last_use.get(number, -1), max(event.outputs))
    cuts, latest, pending = set(), -1, sorted(values)
    for index, number in enumerate(pending):
        producer = recorder.producers.get(number)
        end = max(producer.outputs) if producer is not None else number
        siblings = [last_use.get(n, -1) for n in pending[index + 1 :] if n <= end] if end > number else []
        if max([latest, *siblings]) <= end:
            cuts.add(number)
        latest = max(latest, last_use.get(number, -1))
    return cuts


class _Sweep:
    """Backward passes over one graph.

    Args:
        values: what the graph holds, by number.
        output: number of the model's output.
        boundaries: numbers of the boundaries, in order of execution.
        cuts: values from which the backward pass may start again.
    """

    def __init__(self, values: Mapping[int, Value], output: int, boundaries: list[int], cuts: set[int]) -> None:
        self._values = values
        self._output = output
        self._boundaries = boundaries
        self._cuts = cuts

    def measure(self, generator: torch.Generator) -> list[float]:
        """Return log10 of the size at each boundary for one cotangent."""
        value = self._values[self._output]
        cotangent = torch.randn(value.shape, generator=generator, dtype=torch.float32).to(value.device, value.dtype)
        found: dict[int, float] = {}
        start, offset = (self._output, cotangent), 0.0
        rough: dict[int, float] = {}
        while True:
            restart = self._backward(*start, offset, found, rough)
            if restart is None:
                break
            start, offset = restart
        for scale in (-30.0, 30.0):  # what goes around the cuts is followed a little further
            if any(n in rough and n not in found for n in self._boundaries) and value.dtype != torch.float16:
                self._backward(self._output, cotangent * 10.0**scale, -scale, found, rough)
        return [found.get(n, rough.get(n, math.nan)) for n in self._boundaries]

    def _backward(
        self, start: int, cotangent: Tensor, offset: float, found: dict[int, float], rough: dict[int, float]
    ) -> tuple[tuple[int, Tensor], float] | None:
        """Go back from `start` to all boundaries not yet found; return where to start again, if anywhere."""
        wanted = [n for n in dict.fromkeys(self._boundaries) if n in self._values and n <= start and n not in found]
        if not wanted:
            return None
        gradients = torch.autograd.grad(
            self._values[start].edge,
            [self._values[n].edge for n in wanted],
            cotangent,
            retain_graph=True,
            allow_unused=True,
        )
        best: tuple[int, Tensor, float] | None = None
        lost = False
        sizes = _sizes(gradients)
        for index, (number, gradient) in enumerate(zip(wanted, gradients, strict=True)):
            if gradient is None:
                rough[number] = -math.inf
                continue
            size = sizes[index]
            low, high = self._values[number].trusted
            if low <= size <= high:
                found[number] = math.log10(size) + offset
                if number in self._cuts and number < start and (best is None or number < best[0]):
                    best = number, gradient, size
            else:
                lost = True
                rough[number] = math.log10(size) + offset if size > 0 else (-math.inf if size == 0 else math.nan)
        if not lost or best is None:
            return None
        return (best[0], best[1] / best[2]), offset + math.log10(best[2])


def _sizes(gradients: Sequence[Tensor | None]) -> dict[int, float]:
    """Return the root mean square of each gradient that there is, those of one shape together."""
    alike: dict[tuple[Any, ...], list[int]] = {}
    for index, gradient in enumerate(gradients):
        if gradient is not None:
            alike.setdefault((gradient.shape, gradient.dtype, gradient.device), []).append(index)
    sizes: dict[int, float] = {}
    for (shape, _, _), indices in alike.items():
        rows = max(1, _TOGETHER // max(1, math.prod(shape)))
        for start in range(0, len(indices), rows):
            chunk = indices[start : start + rows]
            found = [g for g in (gradients[i] for i in chunk) if g is not None]
            squares = mean_square(torch.stack(found) if len(found) > 1 else found[0][None])
            sizes.update((i, math.sqrt(square)) for i, square in zip(chunk, squares.flatten().tolist(), strict=True))
    return sizes
