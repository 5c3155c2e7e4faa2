"""A learning rate at which the steps throw the loss up or about, or at which they do next to nothing."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable

import torch

from levada.diagnose.facts import Facts, facts_of
from levada.diagnose.finding import Finding, Proposal, Severity
from levada.diagnose.rates import FAINT, LONG, NO_MOTION, PLAIN
from levada.diagnose.rehearsal import STEPS, Course
from levada.probe.trace import Trace

__all__ = ["UNLEARNED", "learning_rate_too_high", "learning_rate_too_low", "unlearned"]

HIGH, LOW = "learning_rate_too_high", "learning_rate_too_low"
# Steps that move the weights by a tenth of themselves each do not follow a gradient that is local.
LARGE = 0.1
# The loss has been thrown up, and not merely made to jitter.
THROWN = 2.0
# At a tenth of the rate the loss falls this many times as far: the steps throw it about.
BETTER = 3.0
# A hundred thousand steps of this size, all in one direction, move the weights by less than one part in a hundred.
NEGLIGIBLE = 2.0**-24
# Ten steps gain less than this share of the loss, and at a higher rate at least so much, and so many times as much.
NO_GAIN, GAIN, MORE = 1e-3, 3e-3, 20.0
# The same of steps up to TINY, shorter than those of rates in use, and of any where it is known what holds them back.
TINY, LITTLE, LONGER, HELD = 6e-5, 0.01, 10.0, 5.0
# Below this share of the loss of zeros it has converged, and gains little at any rate.
CONVERGED = 0.05
# Above this share nothing has been learned yet.
UNLEARNED = 0.8
# A hook that leaves less than this of a gradient does more than to cap the largest.
SHRUNK = 1e-3
SOURCE = "the descent lemma: a step short beside the curvature lowers the loss; Cohen et al. 2021, arXiv 2103.00065"


def learning_rate_too_high(trace: Trace) -> Iterable[Finding]:
    """Steps raise the loss on the very batch that they are made for, or throw it about, and shorter ones lower it.

    It speaks if after the first step and after ten on one batch the loss is above its start while at a lower rate, that
    moves the weights by 3e-3 of themselves or less, it is below; and, of a model that has learned nothing yet, if it
    falls by less than a tenth of itself, and at a tenth of the rate by more than that and three times as far. An error
    needs a loss that at least doubled or is no number at the end, and weights that the first step moves by a tenth of
    themselves or more: the size of the step explains it. Steps of which the first lowers the loss and later ones throw
    it up are passed over: gradients may be clipped in the loop, which is not seen here. A rate that was assumed,
    because none was given, is not judged, nor one to which a warm-up leads.

    Args:
        trace: of one check, or of a run.
    """
    facts = facts_of(trace)
    full, lower = facts.courses.get("lr"), facts.courses.get("lower")
    if full is None or lower is None or facts.lr is None:
        return
    start = full.losses[0]
    raised = full.end > start > lower.end and not full.losses[1] <= start
    if not (raised or (unlearned(facts) and _thrown_about(full, lower))):
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
        remedies=(_rate(facts, full, lower),),
        source=SOURCE,
    )


def learning_rate_too_low(trace: Trace) -> Iterable[Finding]:
    """Ten steps do next to nothing, and longer ones lower the loss.

    It speaks if a step moves no block's weights by more than 1e-6 of themselves, ten of them on one batch gain less
    than a thousandth of the loss, and at a rate that moves the weights by a hundredth they gain three times that and
    twenty times as much. Of a model that has learned nothing yet, it speaks of steps up to 6e-5 too, if ten gain less
    than a hundredth, and at the higher rate more than that and ten times as much; and of steps of any size, if they
    gain less than a twentieth, and at the higher rate five times as much, where most of the step is held back by the
    optimizer's eps, by rounding, or by a hook that clips gradients. Plain SGD at 1e-3 and AdamW at 1e-5 are in use,
    and slow: nothing is said of them.
    An error needs updates of every block below 6e-8 of its weights, so that a hundred thousand of them move nothing. A
    converged loss is passed over: small gradients are what it should have. While a rate warms up, the one that the
    scheduler leads to is judged.

    Args:
        trace: of one check, or of a run.
    """
    facts = facts_of(trace)
    full, more = facts.courses.get("lr"), facts.courses.get("higher")
    if full is None or more is None or facts.lr is None or _converged(facts):
        return
    size, (sites, ratios) = abs(full.losses[0]), _ratios(trace)
    known = [r for r in ratios if math.isfinite(r)]
    if not known:
        return
    rate, held = _lr(facts, full), _held(facts, trace)
    step = LONG / more.scale if rate > facts.lr else max(known)  # while it warms up, the first step is another's
    still = step <= NO_MOTION and full.gain < NO_GAIN * size and more.gain > max(GAIN * size, MORE * full.gain)
    most, times = (FAINT, HELD) if held else (LITTLE, LONGER)
    slow = unlearned(facts) and bool(held or step <= TINY)
    slow = slow and full.gain < most * size and more.gain > max(LITTLE * size, times * full.gain)
    if not (still or slow):
        return
    severity: Severity = "error" if still and step < NEGLIGIBLE else "warn"
    yield Finding(
        rule=LOW,
        severity=severity,
        status="fired",
        claim=(
            f"{STEPS} steps of {facts.optimizer} at lr {rate:g} take the loss from {full.losses[0]:.6g} to "
            f"{full.end:.6g}, at lr {_lr(facts, more):.2g} to {more.end:.4g}; "
            + (held or f"a step moves no block's weights by more than {step:.2g} of themselves")
            + "."
        ),
        where={"first": sites[0], "last": sites[-1]},
        evidence={
            "loss_at_lr": list(full.losses),
            "loss_at_higher_rate": {"lr": _lr(facts, more), "losses": list(more.losses)},
            "update_ratio": step,
            "reference": "about 1e-3 of the weights per step",
            "explained_by": "theory" if severity == "error" else None,
            "tests": {"steps_on_one_batch": STEPS},
        },
        consequence=f"{0.01 / max(step, 1e-300):.0e} such steps, all one way, move the weights by a hundredth.",
        falsify="Train as long as you mean to at this rate: if the loss falls as at the larger one, this is wrong.",
        remedies=(_rate(facts, full, more),),
        source=SOURCE,
    )


def unlearned(facts: Facts) -> bool:
    """Whether the loss is known to be about that of outputs of zero, or above.

    Args:
        facts: of a check.
    """
    constant, value = facts.loss_constant, facts.loss_value
    if constant is None and facts.objective is not None:
        constant = facts.objective.of_zeros
    return constant is not None and value is not None and value >= UNLEARNED * constant > 0


def _thrown_about(full: Course, lower: Course) -> bool:
    """Whether the steps gain little, and at the lower rate much."""
    size = abs(full.losses[0])
    return 0 <= full.gain < PLAIN * size < lower.gain and lower.gain > BETTER * full.gain


def _held(facts: Facts, trace: Trace) -> str:
    """Say what holds most of a step back; "" if nothing is known to."""
    if facts.shrunk < SHRUNK:
        return f"a hook on the optimizer leaves {facts.shrunk:.1g} of the gradient"
    damped, lost = (_median(trace, name) for name in ("eps_fraction", "lost_fraction"))
    if damped > 0.5:
        return f"an eps of {facts.eps or 0.0:g} holds back {damped:.0%} of the elements of half of the blocks or more"
    return f"rounding loses {lost:.0%} of the step of half of the blocks or more" if lost > 0.5 else ""


def _median(trace: Trace, signal: str) -> float:
    known = [value for value in trace[signal].nanmean(0).tolist() if math.isfinite(value)]
    return statistics.median(known) if known else math.nan


def _lr(facts: Facts, course: Course) -> float:
    return (facts.lr or 0.0) * course.scale if math.isnan(course.lr) else course.lr


def _converged(facts: Facts) -> bool:
    """Whether the loss is small beside that of zeros; where that is not known, small gradients may be why."""
    if facts.loss_constant is None or facts.loss_value is None:
        return facts.eps is None  # what divides by the gradient's size steps as far at any size
    return abs(facts.loss_value) < CONVERGED * abs(facts.loss_constant)


def _ratios(trace: Trace) -> tuple[list[str], list[float]]:
    ratio = trace["update_ratio"]
    kept = [i for i in range(len(trace.sites)) if not bool(torch.isnan(ratio[:, i]).all())]
    return [trace.sites[i].name for i in kept], [float(ratio[:, i].nanmean()) for i in kept]


def _rate(facts: Facts, before: Course, after: Course) -> Proposal:
    return Proposal(
        "learning rate",
        f"optimizer = torch.optim.{facts.optimizer}(model.parameters(), lr={_lr(facts, after):.2g})",
        {"loss": before.end},
        {"loss": after.end},
    )
