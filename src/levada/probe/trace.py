"""The trace: signals by site and step, as numbers; what every diagnostic reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from levada._errors import UsageError
from levada._numbers import json_ready, restore_numbers

__all__ = ["SIGNALS", "Signal", "Site", "Trace"]


@dataclass(frozen=True, slots=True)
class Signal:
    """What a column of a trace holds.

    Attributes:
        name: key in `Trace.values`.
        unit: its unit; "1" for a ratio or a share.
        meaning: the definition, one sentence.
    """

    name: str
    unit: str
    meaning: str


SIGNALS: Mapping[str, Signal] = {
    s.name: s
    for s in (
        Signal("signal_rms", "signal", "root mean square of the block's output, per element"),
        Signal(
            "signal_spread",
            "signal",
            "root mean square of the output minus its mean over the batch: what tells inputs apart",
        ),
        Signal(
            "gradient_rms",
            "loss/signal",
            "root mean square of the loss's gradient with respect to the block's output, per element",
        ),
        Signal(
            "cotangent_rms",
            "1",
            "as gradient_rms, for a random unit-variance cotangent at the model's output instead of a loss",
        ),
        Signal("zero_fraction", "1", "share of exact zeros in the outputs of the block's activations"),
        Signal(
            "dead_fraction",
            "1",
            "share of the activations' units that are flat (zero slope) for every input of the batch",
        ),
        Signal(
            "saturated_fraction",
            "1",
            "share of the activations' elements whose slope is below 1/100 of its largest, for bounded activations",
        ),
        Signal("nonfinite", "1", "share of NaN or Inf in the block's output"),
        Signal("gradient_nonfinite", "1", "share of NaN or Inf in the gradient"),
        Signal("weight_rms", "weight", "root mean square of the block's parameters with two or more dimensions"),
        Signal("weight_gradient_rms", "loss/weight", "root mean square of those parameters' gradient"),
        Signal("update_ratio", "1", "root mean square of the optimizer's update over that of the parameters"),
        Signal(
            "lost_fraction",
            "1",
            "share of the parameters' elements that have a gradient and whose value the update does not change",
        ),
        Signal(
            "eps_fraction",
            "1",
            "share of those elements whose root of the second moment is below the optimizer's eps, which shortens "
            "their steps",
        ),
        Signal(
            "gradient_snr",
            "1",
            "size of the mean of those parameters' gradients over their standard deviation, over batches or sampled "
            "steps",
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Site:
    """A block boundary: the output of a module, in order of execution.

    Attributes:
        name: qualified name of the module; its second call in one forward pass is `name#2`.
        order: place in the order of execution, from 0.
        kind: the module's class name.
        shape: shape of the output in the first pass.
        parameters: qualified names of the parameters that act between the previous boundary and this one.
    """

    name: str
    order: int
    kind: str
    shape: tuple[int, ...]
    parameters: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Trace:
    """Signals by step and site.

    `trace["gradient_rms"]` is a signal at all steps and sites, `trace.at("gradient_rms", "layers.3")` at one site,
    `trace.names()` the sites; what was not measured is NaN.

    Attributes:
        sites: block boundaries in order of execution.
        steps: the sampled steps.
        values: signal name -> float64 tensor of shape `(len(steps), len(sites))`; NaN where not measured.
        context: facts that diagnostics need and no site has: "optimizer", "lr", "loss", "depth", ...
    """

    sites: tuple[Site, ...]
    steps: tuple[int, ...]
    values: Mapping[str, Tensor]
    context: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, signal: str) -> Tensor:
        """Return the `(steps, sites)` values of a signal; all NaN if it was not measured."""
        if signal in self.values:
            return self.values[signal]
        return torch.full((len(self.steps), len(self.sites)), float("nan"), dtype=torch.float64)

    def names(self) -> Sequence[str]:
        """Return the names of the sites in order."""
        return [site.name for site in self.sites]

    def at(self, signal: str, site: str) -> Tensor:
        """Return one signal of one site over the steps, of shape `(steps,)`.

        Raises:
            UsageError: if the trace has no such site.
        """
        names = self.names()
        if site not in names:
            raise UsageError(f"Trace.at: no site {site!r}; the sites are: {', '.join(names)}.")
        return self[signal][:, names.index(site)]

    def to_dict(self) -> dict[str, Any]:
        """Return the trace in types that JSON has; a number that is not finite becomes "nan", "inf" or "-inf".

        Example:
            >>> site = Site("0", 0, "Linear", (4, 2), ("0.weight",))
            >>> trace = Trace((site,), (0,), {"nonfinite": torch.tensor([[float("inf")]], dtype=torch.float64)})
            >>> trace.to_dict()["values"]
            {'nonfinite': [['inf']]}
            >>> Trace.from_dict(trace.to_dict()).sites == trace.sites
            True
        """
        return {
            "sites": [json_ready(asdict(site)) for site in self.sites],
            "steps": list(self.steps),
            "values": {name: json_ready(values.tolist()) for name, values in self.values.items()},
            "context": json_ready(dict(self.context), "Trace.context"),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Trace:
        """Return the trace that `to_dict` wrote. What was a tuple in the context comes back as a list.

        Args:
            data: from `to_dict`, perhaps through JSON.
        """
        sites = tuple(
            Site(s["name"], s["order"], s["kind"], tuple(s["shape"]), tuple(s["parameters"])) for s in data["sites"]
        )
        shape = len(data["steps"]), len(sites)
        values = {
            name: torch.tensor([[float(v) for v in row] for row in rows], dtype=torch.float64).reshape(shape)
            for name, rows in data["values"].items()
        }
        return cls(sites, tuple(data["steps"]), values, restore_numbers(data["context"]))
