r"""How far back a recurrent network remembers: the gradient of its last state with respect to those before."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn

from levada._errors import MeasurementError, require_at_least
from levada._numbers import student_quantile
from levada.probe.recurrence import Recurrence
from levada.probe.recurrences import recurrences

__all__ = [
    "BACK",
    "GateStatistics",
    "Interval",
    "MemoryCurve",
    "gate_statistics",
    "horizon",
    "memory_curve",
    "memory_curves",
]

# What is left of a gradient at the horizon.
LEFT = 1e-3
# Steps back beyond which no graph is kept.
BACK = 512
# Cotangents at least: rows of the batch have one each, and go back again if they are fewer.
COTANGENTS = 16
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@final
@dataclass(frozen=True, slots=True)
class Interval:
    """A number with its 95 % interval.

    Attributes:
        value: the number.
        low: lower end.
        high: upper end.
    """

    value: float
    low: float
    high: float


@final
@dataclass(frozen=True, slots=True)
class GateStatistics:
    r"""Means of a gate over the steps and rows that it was measured at, and the memory that they imply.

    Attributes:
        gate: "forget gate" or "update gate".
        quantiles: quantile over units -> mean value of the gate, $\bar f$.
        time_scales: the same quantile -> $-1/\ln\bar f$, in steps.
        mean: over all units.
    """

    gate: str
    quantiles: Mapping[float, float]
    time_scales: Mapping[float, float]
    mean: float


@final
@dataclass(frozen=True, slots=True, eq=False)
class MemoryCurve:
    r"""The memory of one recurrence.

    Attributes:
        site: the module, with layer and direction where it has several.
        module: qualified name of the module.
        kind: mode of a recurrent module of torch, or a cell's class.
        steps: length of the sequence.
        curve: $H(k)$ for k = 0, 1, ...; float64, of shape `(steps + 1,)`, or shorter where the sequence is very long.
        parts: for a state of several tensors, `"h"` and `"c"` (else numbers) -> the curve of that part of $h_{T-k}$.
        slope: of $\ln H$ per step; negative where memory fades.
        horizon: steps at which $H$ has fallen to 1/1000; extrapolated by the slope where it has not within the
            sequence, and infinite where it does not fall.
        reached: whether $H$ did fall to 1/1000 within the sequence.
        predicted: the same curve as the measured gates alone, or weights that are independent of each other, give it;
            None for a cell that is not torch's.
        gates: statistics of the gate; None without one.
    """

    site: str
    module: str
    kind: str
    steps: int
    curve: Tensor
    parts: Mapping[str, Tensor]
    slope: Interval
    horizon: Interval
    reached: bool
    predicted: Tensor | None = None
    gates: GateStatistics | None = field(default=None)

    @property
    def tau(self) -> float:
        r"""Steps after which memory has fallen to 1/e, $-1/\text{slope}$; infinite if it does not fall."""
        return -1 / self.slope.value if self.slope.value < -1e-9 else math.inf

    @property
    def horizon_predicted(self) -> float | None:
        """The horizon of the predicted curve."""
        return None if self.predicted is None else horizon(self.predicted.log())[0]


def memory_curves(
    model: nn.Module, run: Callable[[], Any], *, cotangents: int = COTANGENTS, seed: int = 0
) -> tuple[MemoryCurve, ...]:
    r"""Measure how far back each recurrence of a model remembers.

    $$H(k) = \sqrt{\mathbb E\,\lVert \partial h_T / \partial h_{T-k}\rVert_F^2 \,/\, n}$$

    at the inputs that the model is given, where $h$ is the whole state of $n$ numbers: of an LSTM hidden state and
    cell, each a variable of its own. A cotangent $v$ that is uniform on the sphere of radius $\sqrt n$ has
    $\mathbb E\lVert J^\top v\rVert^2 = \lVert J\rVert_F^2$, so that one backward pass through the unrolled steps gives
    the whole curve, with one cotangent for each row of the batch. The slope of its logarithm is fitted by least squares
    down to 1/1000; intervals are jackknife intervals over cotangents.

    Args:
        model: any module with an `nn.RNN`, `nn.LSTM` or `nn.GRU` (any number of layers, both directions, packed
            sequences), or with a cell that a loop calls with what it returned. Layers are measured one by one, and a
            cell at the inputs that were recorded, so that feedback through other modules is left out.
        run: calls the model, e.g. `lambda: model(x)`; it is called twice, without gradients.
        cotangents: at least so many; rows of the batch go back again if they are fewer.
        seed: of the cotangents.

    Returns:
        One curve for each layer and direction.

    Shape:
        `curve` is `(steps + 1,)`. Of more than 512 steps the last 512 are followed.

    Cost:
        Two forward passes; each layer once more step by step, in double precision, and back.

    Raises:
        UsageError: if `cotangents` is below 2.
        MeasurementError: if the model has no recurrence that can be followed.

    Example:
        >>> rnn = nn.RNN(1, 8, nonlinearity="relu", bias=False)
        >>> _ = rnn.weight_hh_l0.data.copy_(0.5 * torch.eye(8)), rnn.weight_ih_l0.data.fill_(1.0)
        >>> (memory,) = memory_curves(rnn, lambda: rnn(torch.ones(20, 4, 1)))
        >>> round(memory.tau, 2), round(memory.horizon.value, 1)         # rho = 1/2
        (1.44, 10.0)

    Source: Pascanu, Mikolov and Bengio 2013, arXiv 1211.5063.
    """
    require_at_least("memory_curves", "cotangents", cotangents, 2)
    found, missing = recurrences(model, run)
    if not found:
        why = "; ".join(f"{name}: {reason}" for name, reason in missing.items())
        raise MeasurementError(
            f"memory_curves: {type(model).__name__} has no recurrence that can be followed{': ' if why else ''}{why}. "
            "It needs an nn.RNN, nn.LSTM or nn.GRU, or a cell that is called at least five times with its own output."
        )
    return tuple(memory_curve(one, cotangents=cotangents, seed=seed) for one in found)


def memory_curve(recurrence: Recurrence, *, cotangents: int = COTANGENTS, seed: int = 0) -> MemoryCurve:
    """Measure one recurrence; `memory_curves` says how.

    Args:
        recurrence: as `recurrences` finds them.
        cotangents: at least so many.
        seed: of the cotangents.
    """
    squares, names = _squares(recurrence, cotangents, torch.Generator().manual_seed(seed))
    whole = squares.sum(-1)
    logs = _log_curve(whole)
    slope, (reach, reached) = _slope(logs), horizon(logs)
    slopes, horizons = [], []
    for left_out in torch.arange(len(whole)).chunk(min(len(whole), COTANGENTS)):
        kept = torch.ones(len(whole), dtype=torch.bool)
        kept[left_out] = False
        one = _log_curve(whole[kept])
        slopes.append(_slope(one))
        horizons.append(horizon(one)[0])
    low, high = jackknifed(math.log(max(reach, 1e-9)), [math.log(max(h, 1e-9)) for h in horizons])
    total = whole[:, :1].mean()
    predicted, gates = _predicted(recurrence)
    return MemoryCurve(
        recurrence.site,
        recurrence.module,
        recurrence.kind,
        recurrence.steps,
        logs.exp(),
        {name: (squares[..., i].nanmean(0) / total).sqrt() for i, name in enumerate(names) if len(names) > 1},
        Interval(slope, *jackknifed(slope, slopes)),
        Interval(reach, min(reach, math.exp(low)), max(reach, math.exp(high))),
        reached,
        predicted,
        gates,
    )


def _squares(recurrence: Recurrence, cotangents: int, generator: torch.Generator) -> tuple[Tensor, list[str]]:
    """Return squared norms of the gradient, of shape `(samples, steps back + 1, parts)`; NaN before a row's start."""
    first = max(0, recurrence.steps - BACK)
    state = recurrence.initial
    with torch.no_grad():
        for t in range(first):
            state = recurrence.step(t, state)
    rows, steps = len(state[0]), recurrence.steps - first
    nodes: list[Tensor] = []
    with torch.enable_grad():
        for t in range(first, recurrence.steps + 1):
            # Each part of a state is a variable of its own: without the copy a cell's gradient would hold what
            # reaches it through the hidden state of the same step.
            state = tuple(s.clone() if s.requires_grad else s.detach().requires_grad_() for s in state)
            if t < recurrence.steps:
                nodes.extend(state)
                state = recurrence.step(t, state)
    if not any(s.grad_fn is not None for s in state):
        raise MeasurementError(f"memory_curve: the states of {recurrence.site} have no graph: its step is detached.")
    ends = torch.full((rows,), steps) if recurrence.lengths is None else recurrence.lengths.cpu() - first
    samples = []
    for _ in range(math.ceil(cotangents / rows)):
        v = _sphere(state, generator)
        grads = torch.autograd.grad(state, nodes, v, retain_graph=True, allow_unused=True)
        found = torch.full((rows, steps + 1, len(state)), torch.nan, dtype=torch.float64)
        found[:, 0] = torch.stack([_norms(one) for one in v], -1)
        after = torch.stack([torch.zeros(rows) if g is None else _norms(g) for g in grads], -1)
        after = after.reshape(rows, steps, len(state)).double()
        for t in range(steps):
            on = ends > t
            found[on, (ends - t)[on]] = after[on, t]
        samples.append(found)
    squares = torch.cat(samples)
    if not bool(squares[:, 0].gt(0).all()):
        raise MeasurementError("memory_curve: the state has no size.")
    return squares, ["h", "c"] if len(state) == 2 else [str(i) for i in range(len(state))]


def _sphere(state: tuple[Tensor, ...], generator: torch.Generator) -> list[Tensor]:
    v = [torch.randn(s.shape, generator=generator, dtype=torch.float64) for s in state]
    size = torch.stack([one.square().sum(-1) for one in v]).sum(0)
    scale = (sum(s.shape[-1] for s in state) / size).sqrt()[:, None]
    return [(one * scale).to(s.device, s.dtype) for one, s in zip(v, state, strict=True)]


def _norms(value: Tensor) -> Tensor:
    return value.detach().double().square().sum(-1).cpu()


def _log_curve(squares: Tensor) -> Tensor:
    """Return ln H(k) of some samples, up to the longest row among them."""
    means = squares.nanmean(0)
    return (means[~means.isnan()] / means[0]).log() / 2


def _slope(logs: Tensor) -> float:
    """Fit ln H over the steps until it has fallen to 1/1000, or over all; at least over three."""
    finite = logs.isfinite()
    usable = len(logs) if bool(finite.all()) else int((~finite).long().argmax())
    if usable < 2:
        return -math.inf
    above = (logs[:usable] >= math.log(LEFT)).nonzero()
    end = min(usable, max(int(above[-1]) + 2 if len(above) else 0, 3))
    # The first step also turns the cotangent into what the recurrence keeps: no part of the slope, if there are more.
    start = 1 if end > 3 else 0
    k = torch.arange(start, end, dtype=torch.float64)
    y = logs[start:end]
    return float(((k - k.mean()) * (y - y.mean())).sum() / (k - k.mean()).square().sum())


def horizon(logs: Tensor) -> tuple[float, bool]:
    """Return where a curve falls to 1/1000 for good, and whether it does within what was measured.

    Args:
        logs: logarithms of the curve, from 0 steps back on; float64, on the host.
    """
    bar = math.log(LEFT)
    above = (logs >= bar).nonzero()
    last = int(above[-1]) if len(above) else 0
    if last + 1 < len(logs):
        here, there = float(logs[last]), float(logs[last + 1])
        return last + ((here - bar) / (here - there) if math.isfinite(there) else 1.0), True
    slope = _slope(logs)
    return (last + (bar - float(logs[last])) / slope if slope < -1e-9 else math.inf), False


def jackknifed(value: float, parts: list[float]) -> tuple[float, float]:
    """Return the 95 % interval of a number from what it is with each part of the sample left out."""
    if not all(math.isfinite(p) for p in [value, *parts]):
        return min([value, *parts]), max([value, *parts])
    n = len(parts)
    mean = sum(parts) / n
    half = student_quantile(n - 1) * math.sqrt((n - 1) / n * sum((p - mean) ** 2 for p in parts))
    return value - half, value + half


def _factors(recurrence: Recurrence) -> tuple[Tensor, Tensor] | None:
    """Return the factor on each unit's own memory, `(steps, rows, dim)`, and which of them a row has."""
    if recurrence.carry is None:
        return None
    state, seen = recurrence.initial, []
    with torch.no_grad():
        for t in range(recurrence.steps):
            seen.append(recurrence.carry(t, state).double().cpu())
            state = recurrence.step(t, state)
    factors = torch.stack(seen)
    times = torch.arange(len(factors))[:, None].expand(factors.shape[:2])
    ends = torch.full((factors.shape[1],), len(factors)) if recurrence.lengths is None else recurrence.lengths.cpu()
    return factors, times < ends


def _predicted(recurrence: Recurrence) -> tuple[Tensor | None, GateStatistics | None]:
    found = _factors(recurrence)
    if found is None:
        return None, None
    factors, on = found
    logs = torch.where(on[..., None], factors.log(), torch.zeros((), dtype=torch.float64))
    back = logs.flip(0).cumsum(0)  # padded steps multiply by one, so that a row starts at its own end
    curve = torch.cat([torch.ones(1, dtype=torch.float64), (2 * back).exp().mean((1, 2)).sqrt()])
    if not recurrence.gate:
        return curve[: BACK + 1], None
    return curve[: BACK + 1], _statistics(recurrence.gate, factors[on])


def _statistics(gate: str, values: Tensor) -> GateStatistics:
    units = values.mean(0)
    told = {q: float(units.quantile(q)) for q in QUANTILES}
    scales = {q: -1 / math.log(f) if 0 < f < 1 else math.inf for q, f in told.items()}
    return GateStatistics(gate, told, scales, float(units.mean()))


def gate_statistics(recurrence: Recurrence) -> GateStatistics | None:
    r"""Return what the forget gates of an LSTM, or the update gates of a GRU, are at the inputs that it was given.

    Each unit's gate is averaged over steps and rows; quantiles are over units, and a mean gate of $\bar f$ implies a
    memory of $-1/\ln\bar f$ steps. What PyTorch draws gives about 1/2, so 1.44 steps, and 10 until 1/1000 is left.

    Args:
        recurrence: as `recurrences` finds them.

    Returns:
        None for what has no gate, or is not torch's.

    Example:
        >>> lstm = nn.LSTM(3, 100)
        >>> found, _ = recurrences(lstm, lambda: lstm(torch.randn(30, 4, 3)))
        >>> 0.4 < gate_statistics(found[0]).mean < 0.6
        True

    Source: Gers, Schmidhuber and Cummins 2000; Tallec and Ollivier 2018, arXiv 1804.11188.
    """
    found = _factors(recurrence)
    return None if found is None or not recurrence.gate else _statistics(recurrence.gate, found[0][found[1]])
