"""What the numbers' precision takes from an optimizer step: the same step without rounding, and larger gradients."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from levada._seeding import reseed
from levada.diagnose.trial import widened
from levada.diagnose.update import Factory, Update, first_update
from levada.inputs import Batch

__all__ = ["Broken", "Rounding", "broken_step", "exact_step", "flushed"]

# What a loss is multiplied by to lift its gradients out of where float16 flushes them.
LIFT = 2.0**12


@dataclass(frozen=True, slots=True)
class Rounding:
    """One optimizer step in the model's numbers, and in float32.

    Attributes:
        lost: share of all elements with a gradient that the step leaves as they were.
        ratio: root mean square of the exact update over that of the weights.
        loss_before: loss in float32 before the step.
        loss_exact: in float32 after the exact step.
        loss_rounded: in float32 after the step as the model's numbers took it.
        finite: whether the step in float32 leaves every weight finite.
    """

    lost: float
    ratio: float
    loss_before: float
    loss_exact: float
    loss_rounded: float
    finite: bool = True


@dataclass(frozen=True, slots=True)
class Broken:
    """A first optimizer step that makes finite weights NaN or Inf out of finite gradients.

    Attributes:
        parameters: those that it breaks.
        share: of the elements of all parameters with a gradient, those that it breaks.
        no_eps: whether what the optimizer divides by is zero there: its eps is zero in these numbers.
        exact: whether the same step in float32 breaks none; None if it could not be made.
        gain: what that step gains on the batch; NaN if it could not be made.
    """

    parameters: tuple[str, ...]
    share: float
    no_eps: bool
    exact: bool | None = None
    gain: float = math.nan


def broken_step(gradients: Mapping[str, Tensor], before: Mapping[str, Tensor], update: Update) -> Broken | None:
    """Return what the step breaks, or None if nothing.

    Args:
        gradients: parameter name -> gradient.
        before: parameter name -> its value before the step.
        update: the step.

    Example:
        >>> model = nn.Linear(2, 2, bias=False)
        >>> gradients = {"weight": torch.tensor([[1.0, 0.0], [1.0, 1.0]])}
        >>> step = first_update(model, gradients, lambda weights: torch.optim.Adam(weights, eps=0.0))
        >>> broken_step(gradients, dict(model.named_parameters()), step).share  # 0 / 0
        0.25
    """
    broken: dict[str, int] = {}
    count, no_eps = 0, False
    for name, after in update.after.items():
        count += after.numel()
        if math.isfinite(update.squares[name][0]):
            continue
        gradient = gradients[name].to_dense()
        bad = ~torch.isfinite(after) & torch.isfinite(gradient) & torch.isfinite(before[name])
        if bool(bad.any()):
            broken[name] = int(bad.sum())
            # Adam and its kin divide by a root that is zero where the square of the gradient is.
            no_eps |= update.eps is not None and bool(torch.tensor(update.eps, dtype=after.dtype) == 0)
    return Broken(tuple(broken), sum(broken.values()) / count, no_eps) if broken else None


def exact_step(
    model: nn.Module,
    gradients: Mapping[str, Tensor],
    update: Update,
    factory: Factory,
    batch: Batch,
    loss: Callable[[Any, Batch], Tensor],
) -> Rounding | None:
    """Make the step on a copy in float32, or return None if the model cannot be copied or run so.

    Args:
        model: the model.
        gradients: parameter name -> gradient.
        update: the step in the model's own numbers.
        factory: builds the optimizer.
        batch: the batch.
        loss: of outputs and batch.
    """
    try:
        twin = copy.deepcopy(model).float()
        wide = widened(batch, torch.float32)
        exact = first_update(twin, {name: g.float() for name, g in gradients.items()}, factory)
        losses = []
        state = {name: p.detach().clone() for name, p in twin.named_parameters()}
        rounded = {name: value.float() for name, value in update.after.items()}
        for values in (state, exact.after, rounded):
            with torch.no_grad():
                for name, value in {**state, **values}.items():
                    twin.get_parameter(name).copy_(value)
                reseed(0)
                losses.append(float(loss(twin(*wide.args, **wide.kwargs), wide)))
    except Exception:  # any code may refuse a copy or another type: then the finding stays a warning
        return None
    names = list(update.after)
    finite = all(bool(torch.isfinite(value).all()) for value in exact.after.values())
    before, after, stepped = losses
    return Rounding(update.lost(names), exact.ratio(names), before, after, stepped, finite)


def flushed(small: Mapping[str, Tensor | None], large: Mapping[str, Tensor | None]) -> float:
    """Return the share of gradient elements that are zero, and are not when the loss is larger.

    Args:
        small: parameter name -> gradient of the loss.
        large: of `LIFT` times the loss.

    Example:
        >>> flushed({"w": torch.tensor([0.0, 0.0, 1.0])}, {"w": torch.tensor([1.0, 0.0, 4096.0])})
        0.3333333333333333
    """
    gone = count = 0
    for name, gradient in small.items():
        other = large.get(name)
        if gradient is None or other is None or gradient.is_sparse:
            continue
        gone += int(((gradient == 0) & (other != 0)).sum())
        count += gradient.numel()
    return gone / count if count else 0.0
