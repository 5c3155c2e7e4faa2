"""What the numbers' precision takes from an optimizer step: the same step without rounding, and larger gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from levada.diagnose.trial import widened
from levada.diagnose.update import Factory, Update, first_update
from levada.inputs import Batch

__all__ = ["Rounding", "exact_step", "flushed"]

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
    """

    lost: float
    ratio: float
    loss_before: float
    loss_exact: float
    loss_rounded: float


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
                torch.manual_seed(0)
                losses.append(float(loss(twin(*wide.args, **wide.kwargs), wide)))
    except Exception:  # any code may refuse a copy or another type: then the finding stays a warning
        return None
    names = list(update.after)
    return Rounding(update.lost(names), exact.ratio(names), *losses)


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
