"""What the rules read at one sampled step: the sample, those before it, baselines, the loss, and the model's facts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, final

import torch
from torch import Tensor, nn

from levada.diagnose.finding import Finding
from levada.probe.trace import Site, Trace
from levada.runs.losses import optimizers_in
from levada.watching.loop.places import original, plain_name
from levada.watching.measure.sample import Sample
from levada.watching.steps.alike import Rows
from levada.watching.steps.silence import Silence
from levada.watching.verdict.baseline import ZERO, Baseline, LossBaseline, octaves

__all__ = [
    "ADAPTIVE",
    "COMPARED",
    "MANY",
    "Blocks",
    "View",
    "at_rest",
    "loss_falls",
    "membership",
    "rate_of",
    "rests",
    "whose_rate",
]

COMPARED: Final = ("signal_rms", "gradient_rms", "weight_rms", "weight_gradient_rms", "update_ratio", "zero_fraction")
"""The signals that have a baseline."""

MANY: Final = 128
"""Losses after which one that stands where it began, or above, is no slow start."""

# Losses on either side of the comparison that says whether the loss still falls.
SIDE: Final = 48

ADAPTIVE: Final = ("adam", "nadam", "radam", "rmsprop", "lion", "adafactor", "muon")
"""Beginnings of the names of optimizers that rescale gradients, in lower case."""


@final
@dataclass(frozen=True, slots=True)
class Blocks:
    """What is known of the blocks beside their signals.

    Attributes:
        sites: the blocks, in order of execution.
        resolution: per block, the distance from 1 to the next number of its weights' type, the finest where they
            differ; NaN where the model is not known, or no optimizer moves them.
        trainable: per block, whether a parameter asks for a gradient and is one that an optimizer moves, at a rate that
            is not 0; true where the model is not known.
        known: whether the model is known.
        optimizer: class name of the optimizer; "" if it is not known.
        optimizers: how many there are.
        sizes: per block, the number of elements of its output.
    """

    sites: tuple[Site, ...]
    resolution: Tensor
    trainable: Tensor
    known: bool = False
    optimizer: str = ""
    optimizers: int = 1
    sizes: Tensor = field(init=False)

    def __post_init__(self) -> None:
        sizes = torch.tensor([float(math.prod(site.shape) or 1) for site in self.sites])
        object.__setattr__(self, "sizes", sizes)

    @classmethod
    def of(cls, sites: Sequence[Site], model: nn.Module | None = None, optimizers: Sequence[Any] = ()) -> Blocks:
        """Read the facts from a model.

        Args:
            sites: its blocks.
            model: the model; None if it is not at hand.
            optimizers: its optimizers.
        """
        resolution = torch.full((len(sites),), math.nan, dtype=torch.float64)
        trainable = torch.ones(len(sites), dtype=torch.bool)
        if model is not None:
            named = original(model).named_parameters(remove_duplicate=False)
            parameters = {plain_name(name): parameter for name, parameter in named}
            moved = _moved_by(optimizers)
            for i, site in enumerate(sites):
                held = [parameters[name] for name in site.parameters if name in parameters]
                asking = [p for p in held if p.requires_grad and p.is_floating_point()]
                trainable[i] = any(not optimizers or id(p) in moved for p in asking) or not held
                # Updates are measured of matrices, so that biases that are trained alone move none.
                weights = [p for p in asking if p.dim() > 1] or asking
                if any(not optimizers or id(p) in moved for p in weights):
                    resolution[i] = min(torch.finfo(p.dtype).eps for p in asking)
        name = type(optimizers[0]).__name__ if optimizers else ""
        return cls(tuple(sites), resolution, trainable, model is not None, name, len(optimizers))

    @property
    def names(self) -> list[str]:
        """The blocks' names, in order."""
        return [site.name for site in self.sites]

    def placed(self, finding: Finding) -> Finding:
        """Return a finding of a parameter with its block named, if one holds it.

        Args:
            finding: whose place may be a parameter.
        """
        name = finding.where.get("first", "")
        site = next((site for site in self.sites if name in site.parameters), None)
        return finding if site is None else replace(finding, where={"first": site.name, "last": site.name})

    @property
    def adaptive(self) -> bool:
        """Whether the optimizer rescales gradients."""
        return self.optimizer.lower().startswith(ADAPTIVE)


@final
@dataclass(frozen=True, slots=True)
class View:
    """A sampled step, as the rules see it; the baselines do not hold it yet.

    Attributes:
        blocks: the blocks.
        rows: the last samples, the present one last.
        baseline: of the signals in `COMPARED`, one after the other.
        loss: what the loss is and was, the present step's included.
        silence: of `weight_gradient_rms`, this step's seen.
        longest: per block, the largest `update_ratio` of the run so far.
        rates: the learning rates of all samples, as far as they are known: step and rate of each change.
        model: the model, if it is at hand.
        off: for how long all units but one in a thousand have been off, as `silence`.
        rises: the last steps at which the learning rate had at least doubled, each behind the one heard before it.
        inputs: what is known of the rows of the batches.
        severed: weights that never had a gradient, though their layer has shown that they should; what it is lost in.
    """

    blocks: Blocks
    rows: tuple[Sample, ...]
    baseline: Baseline
    loss: LossBaseline
    silence: Silence
    longest: Tensor
    rates: tuple[tuple[int, float], ...] = ()
    model: nn.Module | None = None
    off: Silence | None = None
    rises: tuple[tuple[int, int], ...] = ()
    inputs: Rows = field(default_factory=Rows)
    severed: Mapping[str, str] = field(default_factory=dict)

    @property
    def sample(self) -> Sample:
        """The present sample."""
        return self.rows[-1]

    @property
    def step(self) -> int:
        """The present step."""
        return self.sample.step

    @property
    def sites(self) -> int:
        """The number of blocks."""
        return len(self.blocks.sites)

    def __getitem__(self, signal: str) -> Tensor:
        """Return a signal of the present step, of shape `(sites,)`; NaN where it was not measured."""
        return values_of(self.sample, signal, self.sites)

    @property
    def columns(self) -> Tensor:
        """What has a baseline: each signal of `COMPARED` of each block."""
        return torch.cat([self[signal] for signal in COMPARED])

    def rise(self, signal: str) -> Tensor:
        """Return, in octaves, how far a signal is above what it usually is; NaN without a baseline."""
        return octaves(self[signal]) - self._part(self.baseline.centre, signal)

    def rise_from_start(self, signal: str) -> Tensor:
        """Return, in octaves, how far a signal is above its first baseline; NaN without one."""
        return octaves(self[signal]) - self._part(self.baseline.anchor, signal)

    def anchor(self, signal: str) -> Tensor:
        """Return the first baseline of a signal, as a value."""
        begin = COMPARED.index(signal) * self.sites
        return self.baseline.anchor[begin : begin + self.sites].double().exp2()

    def _part(self, column: Tensor, signal: str) -> Tensor:
        begin = COMPARED.index(signal) * self.sites
        part = column[begin : begin + self.sites]
        return torch.where(part > ZERO, part, math.nan)  # what was zero has no size to be compared with

    @property
    def trace(self) -> Trace:
        """The last samples as a trace, for what `check` measures over depth."""
        values = {
            signal: torch.stack([values_of(sample, signal, self.sites) for sample in self.rows])
            for signal in ("signal_rms", "gradient_rms")
        }
        return Trace(self.blocks.sites, tuple(sample.step for sample in self.rows), values)

    @property
    def lr(self) -> float:
        """The present learning rate; NaN if it is not known."""
        return float(self.sample.scalars.get("lr", math.nan))

    @property
    def rate_is_settled(self) -> bool:
        """Whether the learning rate is known, does not rise, and is at least half of the highest that there was.

        While it warms up, or after it has decayed, small steps are what was asked for.
        """
        if not self.lr > 0 or not self.rates:
            return False
        risen = self.lr > float(self.rows[0].scalars.get("lr", math.nan)) * (1 + 1e-6)
        return not risen and self.lr >= 0.5 * max(rate for _, rate in self.rates)

    @property
    def given_back(self) -> float:
        """Share of what the run has learned, or of a quarter of its first loss, by which the loss is above its best."""
        return self.loss.lasting_rise / self.loss.scale if self.loss.ready and self.loss.scale else math.nan

    @property
    def nothing_learned(self) -> bool:
        """Whether the loss is known, for long enough, and has come below its start neither clearly nor by much.

        By much is a twentieth of its size; clearly is half of its spread, as a loss with a large constant in it does.
        """
        loss = self.loss
        if loss.steps < 2 * loss.warm_up or loss.fell:
            return False
        return loss.start - loss.median <= 0.5 * loss.spread

    @property
    def stands(self) -> bool:
        """Whether the loss stands where it began, over as many steps as are remembered.

        It has come below its start by less than a hundredth of that, or by no more than half of its spread.
        """
        loss = self.loss
        if loss.steps < MANY or loss.fell:
            return False
        return loss.start - loss.median <= max(0.5 * loss.spread, 0.01 * abs(loss.start))

    @property
    def stuck(self) -> bool:
        """Whether the loss is that of a constant prediction, or above, after as many steps as are remembered."""
        return self.loss.steps >= MANY and self.loss.no_better


def loss_falls(view: View) -> bool | None:
    """Whether the loss fell over the last steps by more than it scatters between medians of as many; None of few."""
    fall = view.loss.fall(SIDE)
    return None if math.isnan(fall) else fall > max(2 * view.loss.spread / math.sqrt(SIDE), 1e-3 * abs(view.loss.start))


def at_rest(view: View) -> bool:
    """Whether the loss is small beside its start: small gradients are then what it should have."""
    loss = view.loss
    return loss.ready and abs(loss.now) < 0.05 * abs(loss.start)


def rate_of(optimizers: Sequence[Any]) -> float:
    """Return the rate of the first group; NaN if it is not known without waiting.

    Args:
        optimizers: the optimizers.
    """
    rate = optimizers[0].param_groups[0].get("lr") if optimizers else None
    if rate is None or (isinstance(rate, Tensor) and rate.device.type != "cpu"):
        return math.nan
    return float(rate)


def whose_rate(optimizers: Sequence[Any]) -> str:
    """Say whose `rate_of` is, where those of several optimizers differ, behind a space; else "".

    Args:
        optimizers: the optimizers.
    """
    if len({rate_of([one]) for one in optimizers}) < 2:
        return ""
    return f" in {optimizers_in(1, [type(one).__name__ for one in optimizers])}, the one whose rate is followed"


def membership(optimizers: Sequence[Any]) -> tuple[tuple[int, int, bool], ...]:
    """Return what tells that other parameters are moved than before.

    That is each group's size, how many of it ask for a gradient, and whether its rate is 0.

    Args:
        optimizers: the optimizers.
    """
    groups = [group for each in optimizers for group in each.param_groups]
    return tuple((len(g["params"]), sum(p.requires_grad for p in g["params"]), rests(g)) for g in groups)


def _moved_by(optimizers: Sequence[Any]) -> set[int]:
    groups = [group for each in optimizers for group in each.param_groups if not rests(group)]
    return {id(parameter) for group in groups for parameter in group["params"]}


def rests(group: Any) -> bool:
    """Return whether the rate of a group is 0; False where it would have to be waited for.

    Args:
        group: of an optimizer.
    """
    rate = group.get("lr")
    if isinstance(rate, Tensor) and rate.device.type != "cpu":
        return False  # it would have to be waited for
    return rate is not None and float(rate) == 0.0


def values_of(sample: Sample, signal: str, sites: int) -> Tensor:
    """Return a signal of a sample, of shape `(sites,)`; all NaN if it was not measured.

    Args:
        sample: the sample.
        signal: the signal's name.
        sites: number of blocks.
    """
    values = sample.values.get(signal)
    return torch.full((sites,), math.nan, dtype=torch.float64) if values is None else values
