"""A learning rate at which the steps throw the loss up, or at which they do nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from levada.diagnose.facts import Facts, facts_of
from levada.diagnose.finding import Finding, Proposal, Severity
from levada.diagnose.rehearsal import STEPS, Course
from levada.probe.trace import Trace

__all__ = ["learning_rate_too_high", "learning_rate_too_low"]

HIGH, LOW = "learning_rate_too_high", "learning_rate_too_low"
# Steps that move the weights by a tenth of themselves each do not follow a gradient that is local.
LARGE = 0.1
# The loss has been thrown up, and not merely made to jitter.
THROWN = 2.0
# A hundred thousand steps of this size, all in one direction, move the weights by less than one part in a hundred.
NEGLIGIBLE = 2.0**-24
# Ten steps gain less than this share of the loss, and at a hundred times the rate at least this much more.
NO_GAIN, GAIN, MORE = 1e-3, 3e-3, 20.0
# Below this share of the loss of zeros it has converged, and gains little at any rate.
CONVERGED = 0.05
SOURCE = "the descent lemma: a step short beside the curvature lowers the loss; Cohen et al. 2021, arXiv 2103.00065"


def learning_rate_too_high(trace: Trace) -> Iterable[Finding]:
    """The first steps raise the loss on the very batch that they are made for, and shorter ones lower it.

    It speaks if after ten steps on one batch the loss is above its start while at a lower rate, that moves the weights
    by 3e-3 of themselves or less, it is below. An error needs a loss that at least doubled or is no number at the end,
    and weights that the first step moves by a tenth of themselves or more: the size of the step explains it. A rate
    that was assumed, because none was given, is not judged.

    Args:
        trace: of one check, or of a run.
    """
    facts = facts_of(trace)
    full, lower = facts.courses.get("lr"), facts.courses.get("lower")
    if full is None or lower is None or facts.lr is None:
        return
    start = full.losses[0]
    if not full.end > start or not lower.end < start:
        return
    sites, ratios = _ratios(trace)
    if not sites:
        return
    thrown = full.end > THROWN * abs(max(start, facts.loss_constant or 0.0))
    largest = max(range(len(sites)), key=lambda i: ratios[i] if not math.isnan(ratios[i]) else -1.0)
    moved = ratios[largest]
    severity: Severity = "error" if thrown and not moved < LARGE else "warn"
    yield Finding(
        rule=HIGH,
        severity=severity,
        status="fired",
        claim=(
            f"{len(full.losses) - 1} steps of {facts.optimizer} at lr {facts.lr:g} on one batch take the loss from "
            f"{start:.4g} to {full.end:.4g}; at lr {facts.lr * lower.scale:.2g}, to {lower.end:.4g}."
        ),
        where={"first": sites[0], "last": sites[-1]},
        evidence={
            "loss_at_lr": list(full.losses),
            "loss_at_lower_rate": {"lr": facts.lr * lower.scale, "losses": list(lower.losses)},
            "update_ratio": {sites[largest]: moved},
            "reference": "about 1e-3 of the weights per step",
            "explained_by": "theory" if not moved < LARGE else None,
            "tests": {
                "steps_on_one_batch": len(full.losses) - 1,
            },
        },
        consequence="The steps overshoot: the loss rises or jumps about, and may end as no number.",
        falsify="Train some hundred steps at this rate: if the loss falls as at the lower one, this is wrong.",
        remedies=(_rate(facts, lower.scale, full, lower),),
        source=SOURCE,
    )


def learning_rate_too_low(trace: Trace) -> Iterable[Finding]:
    """Ten steps do next to nothing, and longer ones lower the loss.

    It speaks if a step moves no block's weights by more than 1e-6 of themselves, ten of them on one batch gain less
    than a thousandth of the loss, and at a rate that moves the weights by a hundredth they gain three times that and
    twenty times as much. An error needs updates of every block below 6e-8 of its weights, so that
    a hundred thousand of them move nothing. A converged loss is passed over: small gradients are what it should have.

    Args:
        trace: of one check, or of a run.
    """
    facts = facts_of(trace)
    full, more = facts.courses.get("lr"), facts.courses.get("higher")
    if full is None or more is None or facts.lr is None or _converged(facts):
        return
    size = abs(full.losses[0])
    if not (full.gain < NO_GAIN * size and more.gain > GAIN * size and more.gain > MORE * full.gain):
        return
    sites, ratios = _ratios(trace)
    known = [r for r in ratios if math.isfinite(r)]
    if not known:
        return
    severity: Severity = "error" if max(known) < NEGLIGIBLE else "warn"
    yield Finding(
        rule=LOW,
        severity=severity,
        status="fired",
        claim=(
            f"{STEPS} steps of {facts.optimizer} at lr {facts.lr:g} take the loss from {full.losses[0]:.6g} to "
            f"{full.end:.6g}, at lr {facts.lr * more.scale:.2g} to {more.end:.4g}; a step moves no block's weights by "
            f"more than {max(known):.2g} of themselves."
        ),
        where={"first": sites[0], "last": sites[-1]},
        evidence={
            "loss_at_lr": list(full.losses),
            "loss_at_higher_rate": {"lr": facts.lr * more.scale, "losses": list(more.losses)},
            "update_ratio": max(known),
            "reference": "about 1e-3 of the weights per step",
            "explained_by": "theory" if max(known) < NEGLIGIBLE else None,
            "tests": {"steps_on_one_batch": STEPS},
        },
        consequence=f"{0.01 / max(*known, 1e-300):.0e} such steps, all one way, move the weights by a hundredth.",
        falsify="Train as long as you mean to at this rate: if the loss falls as at the larger one, this is wrong.",
        remedies=(_rate(facts, more.scale, full, more),),
        source=SOURCE,
    )


def _converged(facts: Facts) -> bool:
    """Whether the loss is small beside that of zeros; where that is not known, small gradients may be why."""
    if facts.loss_constant is None or facts.loss_value is None:
        return facts.eps is None  # what divides by the gradient's size steps as far at any size
    return abs(facts.loss_value) < CONVERGED * abs(facts.loss_constant)


def _ratios(trace: Trace) -> tuple[list[str], list[float]]:
    ratio = trace["update_ratio"]
    kept = [i for i in range(len(trace.sites)) if not bool(torch.isnan(ratio[:, i]).all())]
    return [trace.sites[i].name for i in kept], [float(ratio[:, i].nanmean()) for i in kept]


def _rate(facts: Facts, factor: float, before: Course, after: Course) -> Proposal:
    rate = (facts.lr or 0.0) * factor
    return Proposal(
        "learning rate",
        f"optimizer = torch.optim.{facts.optimizer}(model.parameters(), lr={rate:.2g})",
        {"loss": before.end},
        {"loss": after.end},
    )
