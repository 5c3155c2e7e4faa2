"""The learning signal shrinks on its way to the input, until the first layers are not told what to learn."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from levada.diagnose.decay import AGREEMENT, LEAST_DECADES, LEAST_FACTOR, Decay, gradient_decay
from levada.diagnose.facts import Facts, facts_of
from levada.diagnose.finding import Finding, Severity
from levada.diagnose.repair import repairs
from levada.probe.trace import Trace

__all__ = ["vanishing_gradient"]

# An update that leaves this share of the elements bit for bit the same teaches nothing.
STILL = 0.9
# One block may scale a gradient by this much (pooling, a small last layer of a branch) without being a cut.
LEAST_CUT = LEAST_DECADES
# Decades: a scale that starts at zero or at 1e-5 is past that after one step of any optimizer that can train it.
OPENED = 1.0
# With fewer, the only factor is that of the head, which may start at zero and changes all blocks alike.
LEAST_BLOCKS = 3
RULE = "vanishing_gradient"
SOURCE = "Hochreiter 1991; Schoenholz et al. 2017, arXiv 1611.01232; He et al. 2015, arXiv 1502.01852"


def vanishing_gradient(trace: Trace) -> Iterable[Finding]:
    """The gradient shrinks block by block on its way to the input, so that the first layers cannot learn.

    An error needs a decay whose interval excludes criticality, theory's agreement or an exact place, and an optimizer
    step that leaves the first layers as they were while the last ones move.

    Args:
        trace: of one check, or of a run.
    """
    facts = facts_of(trace)
    decay = gradient_decay(trace)
    if isinstance(decay, str):
        yield Finding(RULE, "info", "unknown", f"The gradient's decay over depth is not known: {decay}.")
        return
    if len(trace.sites) < LEAST_BLOCKS:
        return
    cut = _cut(trace, decay)
    gradual = decay.high < LEAST_FACTOR and decay.decades >= LEAST_DECADES
    if cut is not None and _opens(facts, cut):
        cut = None  # a branch or a layer that starts at or near zero, and that the first step opens
    if cut is None and not gradual:
        return
    names = trace.names()
    starved = range(cut) if cut is not None else _starved(decay)
    still, last_moves, tested = _still(trace, facts, starved)
    explained = cut is not None or decay.agrees(AGREEMENT)
    severity: Severity = "error" if explained and still and last_moves else "warn"
    where = {"first": names[cut], "last": names[cut]} if cut is not None else _span(names, starved)
    evidence = {
        "gradient_decay_per_block": decay.told(),
        "decades": decay.total,
        "explained_by": "place" if cut is not None else "theory" if explained else None,
        "tests": {"optimizer_first_step": tested, "freeze_training": "not made"},
    }
    yield Finding(
        rule=RULE,
        severity=severity,
        status="fired",
        claim=_cut_claim(names, cut) if cut is not None else _claim(decay, names),
        where=where,
        evidence=evidence,
        consequence=_consequence(facts, names, starved, still if last_moves else []),
        falsify=(
            f"Train twice from the same weights, on the same batches, once with {names[starved[0]]} to "
            f"{names[starved[-1]]} frozen: if the loss of the free one falls further than the spread over seeds, "
            "they do learn and this finding is wrong."
        ),
        remedies=repairs(trace, decay.value) if cut is None else (),
        source=SOURCE,
    )


def _cut(trace: Trace, decay: Decay) -> int | None:
    """Return the block across which the gradient falls by decades at once, or to exactly zero."""
    if decay.first > 0:
        before = trace["cotangent_rms"][:, decay.first - 1]
        if bool((before == 0).any()) and not bool((before > 0).any()):
            return decay.first
    for index in reversed(range(len(decay.steps))):
        if decay.steps[index] <= -LEAST_CUT + min(0.0, math.log10(decay.value)):
            return decay.first + index + 1
    return None


def _opens(facts: Facts, cut: int) -> bool:
    """Return whether the optimizer's first step lets through ten times as much at the cut."""
    before, after = facts.cotangent_log10, facts.cotangent_log10_after
    if before is None or after is None:
        return False
    falls = [float((logs[:, cut - 1] - logs[:, cut]).mean()) for logs in (before, after)]
    return falls[1] > falls[0] + OPENED


def _starved(decay: Decay) -> range:
    """Return the boundaries where the gradient is below the last one's by decades."""
    fallen, last = 0.0, decay.first
    for index in reversed(range(len(decay.steps))):
        fallen -= decay.steps[index]
        if fallen >= LEAST_DECADES:
            last = decay.first + index
            break
    return range(decay.first, last + 1)


def _still(trace: Trace, facts: Facts, starved: Sequence[int]) -> tuple[list[int], bool, dict[str, Any] | str]:
    """Return the first blocks that the optimizer's step leaves as they are, and whether it moves the last ones."""
    ratio, lost = trace["update_ratio"].nanmean(0), trace["lost_fraction"].nanmean(0)
    gradient = trace["weight_gradient_rms"].nanmean(0)
    ours = [i for i in starved if math.isfinite(float(ratio[i]))]
    others = [i for i in range(starved[-1] + 1, len(trace.sites)) if math.isfinite(float(ratio[i]))]
    if not ours or not others:
        return [], False, "not made: no update of these blocks was measured"
    stands = [float(ratio[i]) < facts.resolution / 2 or float(lost[i]) >= STILL for i in ours]
    moves = [float(ratio[i]) >= facts.resolution and not float(lost[i]) >= STILL for i in others]
    told = {
        "optimizer": facts.optimizer,
        "lr": facts.lr,
        "first_update_ratio": float(ratio[ours[0]]),
        "first_lost_fraction": float(lost[ours[0]]),
        "last_update_ratio": float(ratio[others[-1]]),
        "first_gradient_over_eps": float(gradient[ours[0]]) / facts.eps if facts.eps else None,
        "standing_still": sum(stands),
        "of": len(ours),
    }
    prefix = next((i for i, stand in enumerate(stands) if not stand), len(stands))
    return ours[:prefix], any(moves), told


def _span(names: Sequence[str], starved: Sequence[int]) -> dict[str, str]:
    return {"first": names[starved[0]], "last": names[starved[-1]]}


def _claim(decay: Decay, names: Sequence[str]) -> str:
    theory = f"; theory says {decay.predicted:.3g}" if decay.predicted is not None else "; theory has no value here"
    return (
        f"From {names[decay.last]} back to {names[decay.first]} the gradient shrinks by a factor "
        f"of {decay.value:.3g} per "
        f"block (95 % interval {decay.low:.3g} to {decay.high:.3g}{theory}), by 10^{decay.total:.1f} in all."
    )


def _cut_claim(names: Sequence[str], cut: int) -> str:
    return (
        f"The gradient all but ends at {names[cut]}: what leaves it towards the input is smaller by decades, or zero."
    )


def _consequence(facts: Facts, names: Sequence[str], starved: Sequence[int], still: Sequence[int]) -> str:
    reach = still or starved
    span = f"{names[reach[0]]} to {names[reach[-1]]}" if len(reach) > 1 else names[reach[0]]
    if still and facts.lr is None:
        return f"The optimizer's step leaves the weights of {span} as they are."
    if still:
        return f"The first step of {facts.optimizer} at lr {facts.lr:g} leaves the weights of {span} as they are."
    if facts.optimizer is None:
        return f"{span} may learn slowly; no optimizer was measured."
    adaptive = facts.eps is not None and facts.optimizer.lower().startswith(("adam", "nadam", "radam", "rmsprop"))
    if adaptive:
        return (
            f"{facts.optimizer} rescales the gradients of {span}, so that their weights do move; whether in a useful "
            "direction is not known from one step."
        )
    return f"{span} learn more slowly than the last layers, in proportion to their gradients."
