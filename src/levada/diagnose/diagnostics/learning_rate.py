"""A learning rate at which the steps throw the loss up or about, or at which they do next to nothing."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable

import torch

from levada.diagnose.facts import Facts, facts_of
from levada.diagnose.finding import Finding, Proposal, Severity
from levada.diagnose.plateau import LENGTH, LESS, STANDS
from levada.diagnose.rates import FAINT, LITTLE, LONG, MEAGRE, NO_MOTION, PLAIN, UNDAMPED
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
TINY, LONGER, HELD = 6e-5, 10.0, 5.0
# Gain of steps whose size does not follow the gradient's, of which MEAGRE ones are short.
SPARSE = 0.02
# Without eps the loss falls so many times as far, and comes so many times as far below that of zeros.
FREED, BELOW = 2.0, 3.0
# An eps that is in use, beside which a loss, and not eps, is at fault.
USUAL = 1e-6
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
    falls by less than a tenth of itself, and at a tenth of the rate by more than that and three times as far. Where the
    first step moves the weights of the median block by a tenth of themselves or more, and the optimizer rescales
    gradients, it speaks too if in 40 steps over all batches the loss falls less than three quarters as far as at a
    tenth of the rate, or in the second half of them less than a quarter as far and ends above, in each of two orders of
    the batches: it comes to a halt on a plateau. An error needs a loss that at least doubled or is no number at the
    end, and weights of the median block that the first step moves by a tenth of themselves or more: the size of the
    step explains it. Steps of which the first lowers the loss and later ones throw it up are passed over: gradients may
    be clipped in the loop, which is not seen here. A rate that was assumed, because none was given, is not judged, nor
    one to which a warm-up leads.

    Args:
        trace: of one check, or of a run.
    """
    facts = facts_of(trace)
    sites, ratios = _ratios(trace)
    pair = _too_high(facts)
    if pair is None or facts.lr is None or not sites:
        return
    full, lower = pair
    start = full.losses[0]
    thrown = full.end > THROWN * abs(max(start, facts.loss_constant or 0.0))
    # That of a single block may be large because its weights are small, as those of a head are.
    moved = _median(trace, "update_ratio")
    severity: Severity = "error" if thrown and not moved < LARGE else "warn"
    where = f"{full.batches} batches in turn" if full.batches > 1 else "one batch"
    yield Finding(
        rule=HIGH,
        severity=severity,
        status="fired",
        claim=(
            f"{len(full.losses) - 1} steps of {facts.optimizer} at lr {facts.lr:g} on {where} take the loss from "
            f"{start:.4g} to {full.end:.4g}; at lr {facts.lr * lower.scale:.2g}, to {lower.end:.4g}."
        ),
        where={"first": sites[0], "last": sites[-1]},
        evidence={
            "loss_at_lr": list(full.losses),
            "loss_at_lower_rate": {"lr": facts.lr * lower.scale, "losses": list(lower.losses)},
            "update_ratio": {site: ratio for site, ratio in zip(sites, ratios, strict=True) if math.isfinite(ratio)},
            "reference": "about 1e-3 of the weights per step",
            "explained_by": "theory" if not moved < LARGE else None,
            "tests": {"steps_on_one_batch": len(full.losses) - 1} if full.batches == 1 else {"steps": LENGTH},
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
    than a hundredth, and at the higher rate more than that and ten times as much; the same of steps up to 7e-4 of an
    optimizer that rescales gradients, if they gain less than a fiftieth, on each of two batches; and of steps of any
    size, if they gain less than a twentieth, and at the higher rate five times as much, where most of the step is held
    back by the optimizer's eps, by rounding, or by a hook that clips gradients. Where eps holds it back, and with a
    smaller eps the same steps bring the loss clearly below that of outputs of zero, that is said. Plain SGD at 1e-3 is
    in use, and slow, and so is AdamW at 1e-5 of a wide model, or one that has learned, whose loss then falls faster:
    nothing is said of them, nor of AdamW at 1e-5 on one batch alone. An error needs updates of every block below 6e-8
    of its weights, so that a hundred thousand of them move nothing. A converged loss is passed over: small gradients
    are what it should have. While a rate warms up, the one that the scheduler leads to is judged.

    Args:
        trace: of one check, or of a run.
    """
    facts = facts_of(trace)
    full, more, free = facts.courses.get("lr"), facts.courses.get("higher"), _freed(facts)
    sites, ratios = _ratios(trace)
    known = [r for r in ratios if math.isfinite(r)]
    if full is None or facts.lr is None or not known:
        return
    if free is not None:
        yield _damped(trace, facts, full, free)
    if free is not None or more is None or _converged(facts):
        return
    size, rate, held = abs(full.losses[0]), _lr(facts, full), _held(facts, trace)
    step = LONG / more.scale if rate > facts.lr else max(known)  # while it warms up, the first step is another's
    still = step <= NO_MOTION and full.gain < NO_GAIN * size and more.gain > max(GAIN * size, MORE * full.gain)
    if not (still or (unlearned(facts) and _slow(facts, step, bool(held)))):
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


def _damped(trace: Trace, facts: Facts, full: Course, free: Course) -> Finding:
    """Speak of an eps that holds steps back, which go far with a smaller one."""
    sites, ratios = _ratios(trace)
    eps, step = facts.eps or 0.0, max(r for r in ratios if math.isfinite(r))
    remedy = ("eps", "for group in optimizer.param_groups:\n    group['eps'] = 1e-08")
    if eps <= USUAL:  # then it is the loss that is faint
        remedy = ("loss scale", f"loss = {1 / max(abs(full.losses[0]), 1e-30):.1g} * loss  # about 1")
    return Finding(
        rule=LOW,
        severity="warn",
        status="fired",
        claim=(
            f"{STEPS} steps of {facts.optimizer} at lr {_lr(facts, full):g} take the loss from {full.losses[0]:.6g} to "
            f"{full.end:.6g}, and to {free.end:.4g} with an eps of {UNDAMPED * eps:.1g}; {_held(facts, trace)}: "
            "the gradients are smaller than it."
        ),
        where={"first": sites[0], "last": sites[-1]},
        evidence={
            "loss_at_lr": list(full.losses),
            "loss_with_smaller_eps": list(free.losses),
            "update_ratio": step,
            "reference": "gradients far above eps",
            "explained_by": "theory",
            "tests": {"steps_on_one_batch": STEPS},
        },
        consequence="A step is in proportion to the gradient, as of plain SGD, and is as small as that is.",
        falsify="Train as long as you mean to with this eps: if the loss falls as with a smaller one, this is wrong.",
        remedies=(Proposal(*remedy, {"loss": full.end}, {"loss": free.end}),),
        source="Kingma and Ba 2015, arXiv 1412.6980, algorithm 1",
    )


def _slow(facts: Facts, step: float, held: bool) -> bool:
    """Whether the steps of a fresh model gain little, and at the higher rate many times as much."""
    full, more = facts.courses["lr"], facts.courses["higher"]
    most, times = (FAINT, HELD) if held else (LITTLE, LONGER)
    if (held or step <= TINY) and _gains(full, more, most, times):
        return True
    if facts.eps is None or not step <= MEAGRE or not _gains(full, more, SPARSE, LONGER):
        return False
    second, higher = facts.courses.get("second"), facts.courses.get("second_higher")
    return second is not None and higher is not None and _gains(second, higher, SPARSE, LONGER)


def _gains(full: Course, more: Course, most: float, times: float) -> bool:
    """Whether one course gains less than a share of the loss, and the other that and so many times as much."""
    size = abs(full.losses[0])
    return full.gain < most * size and more.gain > max(LITTLE * size, times * full.gain)


def unlearned(facts: Facts) -> bool:
    """Whether the loss is known to be about that of outputs of zero, or above.

    Args:
        facts: of a check.
    """
    constant, value = _constant(facts), facts.loss_value
    return constant is not None and value is not None and value >= UNLEARNED * constant > 0


def _constant(facts: Facts) -> float | None:
    """Return the loss of outputs of zero; None if it is not known."""
    if facts.loss_constant is None and facts.objective is not None:
        return facts.objective.of_zeros
    return facts.loss_constant


def _too_high(facts: Facts) -> tuple[Course, Course] | None:
    """Return the courses at the rate that was chosen and at a lower one, if they show that it is too high."""
    full, lower = facts.courses.get("lr"), facts.courses.get("lower")
    if full is not None and lower is not None:
        start = full.losses[0]
        raised = full.end > start > lower.end and not full.losses[1] <= start
        if raised or (unlearned(facts) and _thrown_about(full, lower)):
            return full, lower
    pairs = [(facts.courses.get(f"{order}long"), facts.courses.get(f"{order}long_lower")) for order in ("", "second_")]
    known = [(long, short) for long, short in pairs if long is not None and short is not None]
    if len(known) == len(pairs) and unlearned(facts) and all(_halts(*pair, _constant(facts)) for pair in known):
        return known[0]
    return None


def _halts(full: Course, lower: Course, constant: float | None) -> bool:
    """Whether the loss falls clearly less far than at the lower rate, by which it falls far, or falls no further.

    A loss above that of zeros falls to it at any rate, which is no learning.
    """
    start = min(lower.losses[0], constant if constant is not None else math.inf)
    less = start - full.end < LESS * (start - lower.end)
    halts = full.end > lower.end and full.late < STANDS * lower.late
    return start - lower.end > PLAIN * abs(start) and (less or halts)


def _freed(facts: Facts) -> Course | None:
    """Return the course with a smaller eps, if the loss falls with it and hardly without."""
    full, free, constant = facts.courses.get("lr"), facts.courses.get("undamped"), _constant(facts)
    if full is None or free is None or constant is None or not unlearned(facts):
        return None
    rest = constant - full.end if full.end < constant else 0.0
    falls = free.gain > max(LITTLE * abs(full.losses[0]), FREED * full.gain) and free.end < constant
    return free if full.end > UNLEARNED * constant and falls and constant - free.end > BELOW * rest else None


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
    constant = _constant(facts)
    if constant is None or facts.loss_value is None:
        return facts.eps is None  # what divides by the gradient's size steps as far at any size
    return abs(facts.loss_value) < CONVERGED * abs(constant)


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
