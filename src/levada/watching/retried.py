"""Steps from the state that a bundle keeps, at the rate that it had and at a lower one: what the rate does there."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import nn

from levada._numbers import written
from levada.diagnose.finding import Finding
from levada.watching.bundle import Bundle
from levada.watching.overshot import rate_proposal

__all__ = ["RULES", "Retried", "retried"]

RULES: Final = ("learning_rate_too_high", "loss_spike", "numerical_overflow")
"""Rules of whose bundles a lower rate is tried."""
STEPS: Final = 10
LEAST: Final = 2e-6
# The loss has been thrown up, and not merely made to jitter.
THROWN: Final = 2.0
NAME: Final = "learning_rate_too_high"


@final
@dataclass(frozen=True, slots=True)
class Retried:
    """What some steps on one batch did.

    Attributes:
        told: a sentence on it, or on why none were made.
        rate: the rate of the bundle, and the lower one; NaN if no steps were made.
        losses: before each step and after the last, at either rate; they end at the first that is not finite.
    """

    told: str
    rates: tuple[float, float] = (math.nan, math.nan)
    losses: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())

    def finding(self, kept: Bundle) -> Finding | None:
        """Return that the rate is too high, where the bundle was kept for that and the steps show it.

        An error needs the run's own finding too: alone, a loss that rose may be that of a batch that stands out.

        Args:
            kept: the step.
        """
        full, lower = self.losses
        if kept.rule != NAME or not full or not _end(lower) < full[0] < _end(full):
            return None
        return Finding(
            rule=NAME,
            severity="error" if kept.finding and _end(full) > THROWN * abs(full[0]) else "warn",
            status="fired",
            claim=self.told,
            evidence={
                "loss_at_lr": list(full),
                "loss_at_lower_rate": {"lr": self.rates[1], "losses": list(lower)},
                "lr": self.rates[0],
                "explained_by": "theory",
                "tests": {"steps_on_one_batch": STEPS},
            },
            consequence="The steps overshoot: the loss rises or jumps about, and may end as no number.",
            falsify="Go on from this step at the lower rate, on all data: if the loss rises too, this is wrong.",
            remedies=(rate_proposal(*self.rates),),
            source="the descent lemma: a step short beside the curvature lowers the loss",
        )


def retried(kept: Bundle, model: nn.Module, once: Callable[[], float], prepared: Callable[[], Any]) -> Retried | None:
    """Make steps on the kept batch from the kept state, at the rate that the optimizer had and at a lower one.

    Args:
        kept: the step.
        model: the model; it is left with the kept weights.
        once: runs forward and backward, and returns the loss; NaN without a loss function.
        prepared: context in which the model has the kept weights when it is entered.

    Returns:
        None where the bundle was kept for something else.

    Cost:
        10 training steps at the rate, and as many at a tenth of it; at a hundredth and less, down to a millionth, if
        the loss does not fall.
    """
    if kept.rule not in RULES:
        return None
    found = _lacking(kept, model)
    if isinstance(found, str):
        return Retried(f"No other learning rate was tried: {found}.")
    name, state = found
    rate = float(state["param_groups"][0]["lr"])

    def course(factor: float) -> tuple[float, ...]:
        with prepared():
            optimizer = getattr(torch.optim, name)(list(model.parameters()), lr=rate)
            optimizer.load_state_dict(state)
            for group in optimizer.param_groups:
                group["lr"] = float(group["lr"]) * factor
            return _course(once, optimizer)

    full = course(1.0)
    less, factor = full, 1.0
    while math.isfinite(full[0]) and factor > LEAST and (less is full or not _end(less) < full[0]):
        factor *= 0.1
        less = course(factor)
    with prepared():
        model.zero_grad()
    if not math.isfinite(full[0]):
        return Retried(
            f"No other learning rate was tried: with the weights that are kept the loss is {written(full[0])} already, "
            f"and no rate goes on from there. Go back to weights of before, and train at {_named(kept)}."
        )
    told = (
        f"From the state that is kept, {STEPS} steps of {name} on this batch take the loss from {full[0]:.4g} to "
        f"{written(full[-1])} at a learning rate of {rate:.3g}, and to {written(less[-1])} at {rate * factor:.2g}."
    )
    return Retried(told, (rate, rate * factor), (full, less))


def _lacking(kept: Bundle, model: nn.Module) -> tuple[str, Mapping[str, Any]] | str:
    """Return the optimizer's name and state, or what the bundle lacks for a step of it."""
    names: Sequence[str] = kept.facts.get("optimizers", ())
    states = kept.values.get("optimizer")
    if int(kept.facts.get("pass", 1)) > 1 or len(names) > 1:
        return "the step is made of several passes or optimizers"
    if not states or not names or "weights" not in kept.values:
        return "the bundle holds no weights, or nothing of the optimizer"
    kind, state = getattr(torch.optim, names[0], None), states[0]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)) or len(state["param_groups"]) != 1:
        return f"{names[0]} is none of torch.optim, or has several groups"
    if len(numbers) != sum(1 for _ in model.parameters()) or not float(state["param_groups"][0].get("lr", 0)) > 0:
        return "the optimizer does not hold all parameters, or has no rate"
    return names[0], state


def _named(kept: Bundle) -> str:
    """Return the rate that the finding of the bundle names, in words."""
    lower = kept.finding.get("evidence", {}).get(NAME, {}).get("lower")
    return f"a lower one, as {lower:.2g}" if lower else "a lower one, as the run's finding names it"


def _course(once: Callable[[], float], optimizer: torch.optim.Optimizer) -> tuple[float, ...]:
    losses: list[float] = []
    for step in range(STEPS + 1):
        optimizer.zero_grad()
        losses.append(once())
        if step == STEPS or not math.isfinite(losses[-1]):
            break
        optimizer.step()
    return tuple(losses)


def _end(losses: Sequence[float]) -> float:
    return losses[-1] if losses and math.isfinite(losses[-1]) else math.inf
