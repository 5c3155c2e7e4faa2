"""Steps from the state that a bundle keeps, at the rate that it had and at a lower one: what the rate does there."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import nn

from levada._numbers import written
from levada.diagnose.finding import Finding
from levada.inputs import raised
from levada.watching.verdict.bundle import Bundle
from levada.watching.verdict.overshot import rate_proposal

__all__ = ["RULES", "Retried", "retried", "unjudged"]

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
        """Return that the rate is too high, where the bundle was kept for that or for a spike, and the steps show it.

        An error needs the run's own finding too: alone, a loss that rose may be that of a batch that stands out. Of a
        spike it needs steps that end in NaN or Inf, and steps that throw the loss up to be told at all: one batch makes
        it jitter.

        Args:
            kept: the step.
        """
        full, lower = self.losses
        if kept.rule not in (NAME, "loss_spike") or not full or not _end(lower) < full[0] < _end(full):
            return None
        thrown = _end(full) > THROWN * abs(full[0])
        if kept.rule != NAME and not thrown:
            return None
        return Finding(
            rule=NAME,
            severity="error" if kept.finding and thrown and (kept.rule == NAME or _end(full) == math.inf) else "warn",
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
    try:
        return _tried(kept, model, once, prepared)
    except Exception as error:  # an optimizer that wants more than a gradient, a state of another model
        return Retried(f"No other learning rate was tried: a step of the optimizer raised {raised(error)}")


def unjudged(kept: Bundle, again: Retried | None) -> dict[str, str]:
    """Return rule -> why a step that was kept for it does not show it when it is run again.

    Args:
        kept: the step.
        again: the steps that were made from it; None if none were.
    """
    if kept.rule not in (NAME, "loss_spike"):
        return {kept.rule: "the run's finding compares samples, and one pass does not show it"} if kept.finding else {}
    if again is not None and again.losses[0]:
        return {}
    why = "one pass does not show why a loss rises: with --loss, and the targets noted, steps are made from here"
    return {kept.rule: why if again is None else again.told}


def _tried(kept: Bundle, model: nn.Module, once: Callable[[], float], prepared: Callable[[], Any]) -> Retried:
    found = _lacking(kept, model)
    if isinstance(found, str):
        return Retried(f"No other learning rate was tried: {found}.")
    name, state, groups = found
    rates = [float(group["lr"]) for group in state["param_groups"]]
    rate = max(rates)

    def course(factor: float) -> tuple[float, ...]:
        with prepared():
            optimizer = getattr(torch.optim, name)([{"params": group} for group in groups], lr=rate)
            optimizer.load_state_dict(copy.deepcopy(state))  # which takes the moments themselves, and steps move them
            for group in optimizer.param_groups:
                group["lr"] = float(group["lr"]) * factor
            return _course(once, optimizer)

    full = course(1.0)
    less, factor = full, 1.0
    while math.isfinite(full[0]) and factor > LEAST and (less is full or not _end(less) < full[0]):
        factor *= 0.1
        less = course(factor)
    model.zero_grad()
    if not math.isfinite(full[0]):
        return Retried(
            f"No other learning rate was tried: with the weights that are kept the loss is {written(full[0])} already, "
            f"and no rate goes on from there. Go back to weights of before{_named(kept)}."
        )
    others = " (the highest of its groups, the others in proportion)" if min(rates) < rate else ""
    told = (
        f"From the state that is kept, {STEPS} steps of {name} on this batch take the loss from {full[0]:.4g} to "
        f"{written(full[-1])} at a learning rate of {rate:.3g}{others}, and to {written(less[-1])} at "
        f"{rate * factor:.2g}."
    )
    return Retried(told, (rate, rate * factor), (full, less))


def _lacking(kept: Bundle, model: nn.Module) -> tuple[str, Mapping[str, Any], list[list[nn.Parameter]]] | str:
    """Return the optimizer's name, state, and parameters by group, or what the bundle lacks for a step of it."""
    names: Sequence[str] = kept.facts.get("optimizers", ())
    states = kept.values.get("optimizer")
    if int(kept.facts.get("pass", 1)) > 1 or len(names) > 1:
        return "the step is made of several passes or optimizers"
    if not states or not names or "weights" not in kept.values:
        return "the bundle holds no weights, or nothing of the optimizer"
    kind, state = getattr(torch.optim, names[0], None), states[0]
    if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
        return f"{names[0]} is none of torch.optim"
    if not max((float(group.get("lr", 0)) for group in state["param_groups"]), default=0.0) > 0:
        return f"{names[0]} has no learning rate above 0"
    groups = _groups(kept, model, state)
    return groups if isinstance(groups, str) else (names[0], state, groups)


def _groups(kept: Bundle, model: nn.Module, state: Mapping[str, Any]) -> list[list[nn.Parameter]] | str:
    """Return the model's parameters as the optimizer had them in groups, by their names, or why they are not known."""
    counts = [len(group["params"]) for group in state["param_groups"]]
    own = dict(model.named_parameters(remove_duplicate=False))
    told = kept.facts.get("optimizer_parameters") or ()
    if told and [len(group) for group in told[0]] == counts:
        strange = [name for group in told[0] for name in group if name not in own]
        if strange:
            return f"the optimizer held {strange[0]}, which the model has not"
        return [[own[name] for name in group] for group in told[0]]
    if len(counts) > 1:
        return "the optimizer has several groups, and the bundle does not name their parameters"
    parameters = list(model.parameters())
    if counts != [len(parameters)]:
        return "the optimizer does not hold all parameters, and the bundle does not name those that it held"
    for number, parameter in zip(state["param_groups"][0]["params"], parameters, strict=True):
        shapes = [v.shape for v in state["state"].get(number, {}).values() if isinstance(v, torch.Tensor) and v.dim()]
        if parameter.shape not in [*shapes, *[parameter.shape] * (not shapes)]:
            return "the optimizer had the parameters in another order than the model, which the bundle does not name"
    return [parameters]


def _named(kept: Bundle) -> str:
    """Return what to do about the rate, in words, if the run's finding names a lower one; "" if it blames none."""
    lower = kept.finding.get("evidence", {}).get(NAME, {}).get("lower") or kept.facts.get("lower_rate")
    return f", and train at a lower one, as {lower:.2g}" if lower else ""


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
