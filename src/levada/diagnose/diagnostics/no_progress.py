"""A training that stands still at every rate that was tried."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable

from levada.diagnose.diagnostics.learning_rate import unlearned
from levada.diagnose.facts import facts_of
from levada.diagnose.finding import Finding
from levada.diagnose.rates import FAINT, LONG, STALLED
from levada.diagnose.rehearsal import STEPS
from levada.probe.trace import Trace

__all__ = ["no_progress"]

RULE = "no_progress"
# A loss that changes by more than this share is not standing still, whichever way it goes.
CHANGED = 0.01
# Steps of a size that follows a gradient, beside the weights; the share of the loss that they gain is of the order of
# what the weights move in a model that learns, and not a hundredth of that.
SOME, DEAF = 2e-3, 0.01
RATES = "lower", "higher", "highest"


def no_progress(trace: Trace) -> Iterable[Finding]:
    """Steps that move the weights leave the loss as it is, at the rate that was chosen and at others.

    It speaks of a model that has learned nothing yet if ten steps on one batch gain less than a thousandth of the loss
    at each of two rates or more, while at one of them a step moves the weights of the median block by a hundredth of
    themselves, and the loss stands where it was; and if at the rate that was chosen they gain less than a twentieth,
    and at every rate at which a step moves those weights by two thousandths to a hundredth of themselves less than a
    hundredth of what the weights move: longer steps may then leave the flat place. Why is not known, or a rule before
    this one says it: this is a warning and never more.

    Args:
        trace: of one check, or of a run.
    """
    facts = facts_of(trace)
    full = facts.courses.get("lr")
    others = [course for name in RATES if (course := facts.courses.get(name)) is not None]
    if full is None or not others or facts.lr is None or not unlearned(facts):
        return
    size, courses = abs(full.losses[0]), [full, *others]
    ratio = trace["update_ratio"].nanmean(0).tolist()
    sites = [site.name for site, value in zip(trace.sites, ratio, strict=True) if math.isfinite(value)]
    step = statistics.median(value for value in ratio if math.isfinite(value)) if sites else 0.0
    long = [c for c in courses if step * c.scale >= LONG * (1 - 1e-6) and abs(c.gain) < CHANGED * size]
    if not long or max(course.gain for course in courses) >= STALLED * size:
        long = [c for c in courses if SOME <= step * c.scale <= LONG * (1 + 1e-6)]
        deaf = all(abs(c.gain) < DEAF * STEPS * step * c.scale * size for c in long)
        if not long or not deaf or full.gain >= FAINT * size:
            return
    most, best = long[-1], max(others, key=lambda course: course.gain)
    gains = [
        f"{max(course.gain, 0.0) / size:.2g} of itself at lr {facts.lr * course.scale:.2g}" for course in (full, best)
    ]
    yield Finding(
        rule=RULE,
        severity="warn",
        status="fired",
        claim=(
            f"{STEPS} steps of {facts.optimizer} on one batch lower the loss of {full.losses[0]:.4g} by "
            f"{' and '.join(gains)}, though one step at lr {facts.lr * most.scale:.2g} moves the weights of the median "
            f"block by {step * most.scale:.2g} of themselves."
        ),
        where={"first": sites[0], "last": sites[-1]},
        evidence={
            "loss_at_lr": list(full.losses),
            "loss_at_higher_rate": {"lr": facts.lr * best.scale, "losses": list(best.losses)},
            "update_ratio": step,
            "loss_of_zeros": facts.loss_constant,
            "explained_by": None,
            "tests": {"steps_on_one_batch": STEPS},
        },
        consequence="The loss hardly answers to the weights: what is trained is not learned from, at any rate.",
        falsify="Train some hundred steps on this one batch: if the loss falls well, this is wrong.",
        source="a model that learns can learn one batch by heart: Zhang et al. 2017, arXiv 1611.03530",
    )
