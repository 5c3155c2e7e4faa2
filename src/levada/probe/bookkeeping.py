"""What a training loop does around the model: which gradients it clears, and what in the model acts by mode."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

__all__ = ["Clearing", "acts_by_mode"]

# Parameters whose gradients are watched: the smallest ones, which cost least.
_WATCHED = 4
# Roundings in a sum of gradients, relative to the largest.
_CLOSE = 1e-4
# Distance of a logarithm to base 2 from a whole number, for half-precision gradients too.
_POWER = 1e-3


def acts_by_mode(module: nn.Module) -> bool:
    """Return whether a module does something else in training than in evaluation.

    Args:
        module: any module; its children are not looked at.

    Example:
        >>> [acts_by_mode(m) for m in (nn.Dropout(0.1), nn.Dropout(0.0), nn.BatchNorm1d(2), nn.Linear(2, 2))]
        [True, False, True, False]
    """
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    if isinstance(module, nn.RNNBase | nn.MultiheadAttention):
        return module.dropout > 0
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats


@dataclass(slots=True)
class _Watched:
    """One parameter between two steps."""

    parameter: nn.Parameter
    old: Tensor | None = None  # what was there when the first gradient arrived
    arrived: Tensor | None = None
    kept: list[Tensor] = field(default_factory=list)  # whether something was there, at each arrival
    absent: bool = False


@final
class Clearing:
    """Watches whether gradients are cleared between two steps of an optimizer.

    Gradients were kept if none was zero or absent when another arrived, from one step to the next; nothing is copied
    to the host before `told`.

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        learning = [(name, p) for name, p in model.named_parameters() if p.requires_grad and p.numel() > 0]
        self._parameters = dict(sorted(learning, key=lambda item: item[1].numel())[:_WATCHED])
        self._watched: dict[str, _Watched] = {}
        self._handles: list[RemovableHandle] = []
        self._steps: list[list[tuple[str, Tensor, Tensor, Tensor]]] = []

    def attach(self) -> None:
        """Watch from now, directly after a step, to the next one."""
        self._watched = {name: _Watched(p) for name, p in self._parameters.items() if p.requires_grad}
        for watched in self._watched.values():
            self._handles.append(watched.parameter.register_hook(_hook(watched)))  # type: ignore[no-untyped-call]

    def before_step(self) -> None:
        """Take what arrived, before the optimizer reads it."""
        seen = [(name, w) for name, w in self._watched.items() if w.arrived is not None]
        if seen:
            self._steps.append([_verdict(name, w) for name, w in seen])
        self.detach()

    def detach(self) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._watched = {}

    @property
    def scale(self) -> float:
        """What the loss was multiplied by, as the last watched step shows: 1 if by nothing, or by what is not known.

        A scaler divides the gradients by its scale, a power of two, after they arrived and before the step.
        """
        ratios = [float(ratio) for _, _, _, ratio in self._steps[-1]] if self._steps else []
        exact = all(r > 1.5 and abs(math.log2(r) - round(math.log2(r))) < _POWER for r in ratios if math.isfinite(r))
        known = [r for r in ratios if math.isfinite(r)]
        return max(known) if known and exact and max(known) < 1.01 * min(known) else 1.0

    def told(self) -> Mapping[str, Any] | None:
        """Return how many steps were watched, on how many all gradients were kept, and which parameter showed it."""
        if not self._steps:
            return None
        kept = [all(bool(k) for _, k, _, _ in step) for step in self._steps]
        exact = [all(bool(e) for _, _, e, _ in step) for step in self._steps]
        return {
            "steps": len(kept),
            "kept": sum(kept),
            "exact": sum(k and e for k, e in zip(kept, exact, strict=True)),
            "parameter": self._steps[-1][0][0],
        }


def _hook(watched: _Watched) -> Any:
    def arrive(gradient: Tensor) -> None:
        with torch.no_grad():
            there = watched.parameter.grad
            if there is None or there.layout is not torch.strided or gradient.layout is not torch.strided:
                watched.absent = True
            else:
                watched.kept.append((there != 0).any())
            if watched.arrived is None:
                watched.old = None if there is None else there.detach().clone()
                watched.arrived = gradient.detach().clone()
            elif watched.arrived.layout is gradient.layout:
                watched.arrived = watched.arrived + gradient.detach()

    return arrive


def _verdict(name: str, watched: _Watched) -> tuple[str, Tensor, Tensor, Tensor]:
    false, ratio = torch.tensor(False), _ratio(watched)
    if watched.absent or watched.old is None or watched.arrived is None:
        return name, false, false, ratio
    kept = torch.stack(watched.kept).all()
    now = watched.parameter.grad
    if now is None or now.layout is not torch.strided:
        return name, kept, false, ratio
    sum_of = watched.old + watched.arrived
    return name, kept, ((now - sum_of).abs().amax() <= _CLOSE * sum_of.abs().amax()), ratio


def _ratio(watched: _Watched) -> Tensor:
    """Return what arrived over what the step is made with; NaN where something else was there too."""
    now, arrived = watched.parameter.grad, watched.arrived
    if now is None or arrived is None or now.layout is not torch.strided or arrived.layout is not torch.strided:
        return torch.tensor(math.nan)
    before = watched.old
    mixed = torch.tensor(False) if before is None else (before != 0).any()
    return torch.where(mixed, math.nan, arrived.abs().amax().double() / now.abs().amax().double())
