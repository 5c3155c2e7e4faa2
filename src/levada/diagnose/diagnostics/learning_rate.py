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
NO_GAIN, GAIN, MORE = 1e-3, 1e-2, 20.0
SOURCE = (
    "the descent lemma: a step lowers the loss if it is short beside the curvature; Cohen et al. 2021, arXiv 2103.00065"
)


def learning_rate_too_high(trace: Trace) -> Iterable[Finding]:
    """The first steps raise the loss on the very batch that they are made for, and a tenth of the rate lowers it.

    It speaks if after ten steps on one batch the loss is above its start while at a tenth of the rate it is below.
    An error needs a loss that at least doubled or is no number at the end, and weights that the first step moves by a
    tenth of themselves or more: the size of the step explains it.

    Args:
        trace: of one check, or of a run.
    """
    facts = facts_of(trace)
    full, tenth = facts.courses.get("lr"), facts.courses.get("lr / 10")
    if full is None or tenth is None or facts.lr is None:
        return
    start = full.losses[0]
    if not full.end > start or not tenth.end < start:
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
            f"{start:.4g} to {full.end:.4g}; at lr {facts.lr / 10:g}, to {tenth.end:.4g}."
        ),
        where={"first": sites[0], "last": sites[-1]},
        evidence={
            "loss_at_lr": list(full.losses),
            "loss_at_tenth_of_lr": list(tenth.losses),
            "update_ratio": {sites[largest]: moved},
            "reference": "about 1e-3 of the weights per step",
            "explained_by": "theory" if not moved < LARGE else None,
            "tests": {
                "steps_on_one_batch": STEPS,
                "loss_after_first_step": full.losses[1] if len(full.losses) > 1 else None,
            },
        },
        consequence="The steps overshoot: the loss rises or jumps about, and may end as no number.",
        falsify="Train some hundred steps at this rate, without warm-up: if the loss falls as at a tenth of it, it is wrong.",
        remedies=(_rate(facts, 0.1, full, tenth),),
        source=SOURCE,
    )


def learning_rate_too_low(trace: Trace) -> Iterable[Finding]:
    """Ten steps do next to nothing, and at a hundred times the rate they lower the loss.

    It speaks if ten steps on one batch gain less than a thousandth of the loss, and at a hundred times the rate more
    than a hundredth and twenty times as much. An error needs updates of every block below 6e-8 of its weights, so that
    a hundred thousand of them move nothing. A converged loss gains at no rate, and is passed over.

    Args:
        trace: of one check, or of a run.
    """
    facts = facts_of(trace)
    full, more = facts.courses.get("lr"), facts.courses.get("lr * 100")
    if full is None or more is None or facts.lr is None:
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
            f"{full.end:.6g}, at lr {100 * facts.lr:g} to {more.end:.4g}; a step moves no block's weights by more than "
            f"{max(known):.2g} of themselves."
        ),
        where={"first": sites[0], "last": sites[-1]},
        evidence={
            "loss_at_lr": list(full.losses),
            "loss_at_hundred_times_lr": list(more.losses),
            "update_ratio": max(known),
            "reference": "about 1e-3 of the weights per step",
            "explained_by": "theory" if max(known) < NEGLIGIBLE else None,
            "tests": {"steps_on_one_batch": STEPS},
        },
        consequence=f"At this rate some {math.ceil(0.01 / max(*known, 1e-300)):.0e} steps move the weights by one hundredth.",
        falsify="Train as long as you mean to at this rate: if the loss falls as at a hundred times it, it is wrong.",
        remedies=(_rate(facts, 100.0, full, more),),
        source=SOURCE,
    )


def _ratios(trace: Trace) -> tuple[list[str], list[float]]:
    ratio = trace["update_ratio"]
    kept = [i for i in range(len(trace.sites)) if not bool(torch.isnan(ratio[:, i]).all())]
    return [trace.sites[i].name for i in kept], [float(ratio[:, i].nanmean()) for i in kept]


def _rate(facts: Facts, factor: float, before: Course, after: Course) -> Proposal:
    rate = (facts.lr or 0.0) * factor
    return Proposal(
        "learning rate",
        f"optimizer = torch.optim.{facts.optimizer}(model.parameters(), lr={rate:g})",
        {"loss": before.end},
        {"loss": after.end},
    )
