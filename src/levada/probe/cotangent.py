"""How much of a random cotangent at the model's output arrives at each block boundary, over any range."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from levada._errors import MeasurementError, require_at_least
from levada.probe.operation import Execution
from levada.probe.recorder import Recorder
from levada.probe.sites import execution_from
from levada.probe.statistics import mean_square

__all__ = ["cotangent_rms"]

# Sizes at which neither the gradient's smaller elements underflow nor its larger ones overflow.
_TRUSTED = {torch.float16: (1e-3, 1e3), torch.float64: (1e-140, 1e140)}
_WIDE = 1e-30, 1e30  # float32 and bfloat16


def cotangent_rms(
    model: nn.Module, run: Callable[[], Any], *, draws: int = 4, seed: int = 0
) -> tuple[Execution, Tensor]:
    """Return the blocks, and log10 of the gradient's root mean square at every boundary, for random cotangents.

        g_i = sqrt(mean((J_i^T c)^2)),  c ~ N(0, 1) at the output,  J_i from boundary i to the output

    One forward pass; one backward pass gives all boundaries at once. A gradient that leaves the range of its dtype is
    followed further: the backward pass is linear, so it starts again from a boundary through which everything flows,
    with the gradient there scaled to one, or from the output with another scale. No gradient is left on a parameter.

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
    values: dict[int, _Value] = {}

    def keep(number: int, tensor: Tensor) -> None:
        if tensor.requires_grad:  # the edge belongs to this version: what overwrites the tensor comes later
            values[number] = _Value(get_gradient_edge(tensor), tuple(tensor.shape), tensor.dtype, tensor.device)

    recorder = Recorder(model, on_value=keep)
    recorder.attach()
    try:
        run()
    finally:
        recorder.detach()
    root = recorder.root
    output = next((n for n in root.outputs if n in values), None) if root is not None and recorder.finished else None
    if output is None:
        raise MeasurementError(
            f"cotangent_rms: run() gave no output of {type(model).__name__} with a graph. Call model(...) inside run, "
            "with gradients enabled and at least one parameter or input that requires one."
        )
    execution = execution_from(recorder)
    boundaries = [execution.output_of[site.name] for site in execution.sites]
    sweep = _Sweep(values, output, boundaries, _cuts(recorder, values))
    logs = [sweep.measure(torch.Generator().manual_seed(seed + draw)) for draw in range(draws)]
    return execution, torch.tensor(logs, dtype=torch.float64)


@dataclass(frozen=True, slots=True)
class _Value:
    """A value's place in the graph."""

    edge: GradientEdge
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @property
    def trusted(self) -> tuple[float, float]:
        return _TRUSTED.get(self.dtype, _WIDE)


def _cuts(recorder: Recorder, values: Mapping[int, _Value]) -> set[int]:
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

    def __init__(self, values: Mapping[int, _Value], output: int, boundaries: list[int], cuts: set[int]) -> None:
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
        for number, gradient in zip(wanted, gradients, strict=True):
            if gradient is None:
                rough[number] = -math.inf
                continue
            size = math.sqrt(mean_square(gradient[None]).item())
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
