"""Updates smaller than the spacing of the weights' numbers, and gradients below the smallest float16."""

from __future__ import annotations

import math
from collections.abc import Iterable

from levada.diagnose.facts import Facts, facts_of
from levada.diagnose.finding import Finding, Proposal, Severity
from levada.probe.trace import Trace

__all__ = ["lost_update"]

RULE = "lost_update"
# In half precision a healthy step changes a part of the elements; of this share the step is all but lost.
LOST = 0.9
# Weights spread over a factor of some sizes: half a unit in the last place of the typical one, and twice that.
HALF_UNIT = 0.5
# Of the loss that the exact step gains, the rounded one gains no more than this.
KEPT = 0.5
# Share of the gradient's elements that float16 makes zero.
FLUSHED, MOSTLY = 0.1, 0.5
SOURCE = "IEEE 754 rounding to nearest; Micikevicius et al. 2018, arXiv 1710.03740 (loss scaling, float32 weights)"


def lost_update(trace: Trace) -> Iterable[Finding]:
    """The optimizer's updates are below half a unit in the last place of the weights, so that adding them is nothing.

    An error needs nine tenths of the elements unchanged, an exact update smaller than the spacing of the weights'
    numbers, which explains it, and the same step made in float32, which lowers the loss at least twice as far. For
    float16 the gradients count too: an error needs more than half of their elements at zero, which a larger loss
    brings back.

    Args:
        trace: of one check, or of a run.
    """
    facts = facts_of(trace)
    yield from list(_flushed(trace, facts)) or _rounded(trace, facts)


def _rounded(trace: Trace, facts: Facts) -> Iterable[Finding]:
    found = facts.rounding
    lost = trace["lost_fraction"].nanmean(0)
    if found is None or found.lost < LOST:
        yield from _in_a_run(trace, facts)
        return
    hit = [i for i in range(len(trace.sites)) if float(lost[i]) >= LOST]
    if not hit:
        return
    exact, rounded = found.loss_before - found.loss_exact, found.loss_before - found.loss_rounded
    small = found.ratio < HALF_UNIT * facts.resolution * 2
    gains = exact > 0 and rounded < KEPT * exact
    severity: Severity = "error" if small and gains else "warn"
    names = trace.names()
    yield Finding(
        rule=RULE,
        severity=severity,
        status="fired",
        claim=(
            f"{found.lost:.0%} of the weights that get a gradient are left as they were by the first step of "
            f"{facts.optimizer} at lr {facts.lr:g}: the update is {found.ratio:.2g} of the weights, and their numbers "
            f"are {facts.resolution:.2g} apart."
        ),
        where={"first": names[hit[0]], "last": names[hit[-1]]},
        evidence={
            "lost_fraction": found.lost,
            "update_ratio": found.ratio,
            "reference": f"half the distance between neighbouring numbers, {facts.resolution / 2:.2g} of them",
            "explained_by": "theory" if small else None,
            "tests": {"gain_of_exact_step": exact, "gain_of_rounded_step": rounded},
        },
        consequence="Most weights never move, however many steps of this size are made: each is rounded away.",
        falsify="Hold the weights in float32, cast for the forward pass: if the loss falls no faster, this is wrong.",
        remedies=(
            Proposal(
                "float32 weights",
                "model.float()\nwith torch.autocast(device_type, dtype=torch.bfloat16):\n    loss = ...",
                {"lost_fraction": found.lost},
                {"update_ratio": found.ratio},
            ),
        ),
        source=SOURCE,
    )


def _in_a_run(trace: Trace, facts: Facts) -> Iterable[Finding]:
    """Speak, as a warning, of most updates lost on every sampled step of a training run."""
    if facts.optimizer is not None or trace.context.get("optimizer") is None or len(trace.steps) < 2:
        return
    lost, gradient = trace["lost_fraction"], trace["weight_gradient_rms"]
    hit = [
        i
        for i in range(len(trace.sites))
        if bool((lost[:, i] >= LOST).all()) and bool((gradient[:, i] > 0).all()) and not _at_rest(trace)
    ]
    if not hit or 2 * len(hit) < int(lost.isfinite().any(0).sum()):
        return
    names, share = trace.names(), float(lost[:, hit].mean())
    yield Finding(
        rule=RULE,
        severity="warn",
        status="fired",
        claim=f"On every sampled step the update leaves {share:.0%} of the weights of {len(hit)} blocks as they were.",
        where={"first": names[hit[0]], "last": names[hit[-1]]},
        evidence={"lost_fraction": share, "tests": {"gain_of_exact_step": "not made"}},
        consequence="Those weights do not move: each update is rounded away.",
        falsify="Hold the weights in float32: if the loss falls no faster, it is wrong.",
        source=SOURCE,
    )


def _at_rest(trace: Trace) -> bool:
    """Whether a rate of zero, as at the start of a warm-up, was among the sampled ones."""
    rates = trace.context.get("lr") or ()
    return any(rate is not None and not rate > 0 for rate in rates) if isinstance(rates, tuple | list) else False


def _flushed(trace: Trace, facts: Facts) -> Iterable[Finding]:
    share = facts.flushed
    if share is None or share < FLUSHED:
        return
    names = trace.names()
    gradient = trace["weight_gradient_rms"].nanmean(0)
    known = [i for i in range(len(names)) if math.isfinite(float(gradient[i]))]
    if not known:
        return
    first = min(known, key=lambda i: float(gradient[i]))
    yield Finding(
        rule=RULE,
        severity="error" if share >= MOSTLY else "warn",
        status="fired",
        claim=(
            f"{share:.0%} of the gradient's elements are zero in float16 and are not when the loss is 4096 times as "
            f"large: they are below its smallest number, 6e-8. The smallest are at {names[first]}."
        ),
        where={"first": names[first], "last": names[known[-1]]},
        evidence={
            "flushed_fraction": share,
            "reference": "smallest float16 6e-8",
            "explained_by": "theory",
            "tests": {"gradient_of_larger_loss": "not zero"},
        },
        consequence="What those elements would teach is lost before the optimizer sees it.",
        falsify="Scale the loss up and the gradients down again: if training does not improve, it is wrong.",
        remedies=(
            Proposal(
                "loss scale",
                "scaler = torch.amp.GradScaler()\n"
                "scaler.scale(loss).backward()\nscaler.step(optimizer)\nscaler.update()",
                {"flushed_fraction": share},
            ),
        ),
        source=SOURCE,
    )
