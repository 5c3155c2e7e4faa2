"""The learning signal shrinks on its way to the input, until the first layers are not told what to learn."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from levada.diagnose.decay import AGREEMENT, LEAST_DECADES, Decay, gradient_decay
from levada.diagnose.facts import Facts, facts_of
from levada.diagnose.finding import Finding, Severity
from levada.diagnose.repair import repairs
from levada.probe.trace import Trace

__all__ = ["vanishing_gradient"]

# An update that leaves this share of the elements bit for bit the same teaches nothing.
STILL = 0.9
# A hundred thousand steps of this size, all in one direction, move the weights by less than one part in a hundred.
NEGLIGIBLE = 2.0**-24
# Later blocks move if the step changes this many times as large a share of their elements: in half precision a healthy
# step changes a part of them only.
LIVELIER = 2.0
# One block may scale a gradient by this much (pooling, a small last layer of a branch) without being a cut.
LEAST_CUT = LEAST_DECADES
# Decades: a scale that starts at zero or at 1e-5 is past that after one step of any optimizer that can train it.
OPENED = 1.0
# With fewer, the only factor is that of the head, which may start at zero and changes all blocks alike.
LEAST_BLOCKS = 3
RULE = "vanishing_gradient"
_SHARED = (
    "Their parameters act in later blocks too and learn there; what is not learned is how the output depends on "
    "what came early."
)
SOURCE = "Hochreiter 1991; Schoenholz et al. 2017, arXiv 1611.01232; He et al. 2015, arXiv 1502.01852"


def vanishing_gradient(trace: Trace) -> Iterable[Finding]:
    """The gradient shrinks block by block on its way to the input, so that the first layers cannot learn.

    It speaks if the contiguous blocks that lose most lose three decades, the largest single loss counted as the second
    largest. An error needs a factor over these blocks whose interval excludes criticality, with theory's agreement, or
    an exact place; and an optimizer step that leaves the blocks before them as they were while later ones move. Where
    the parameters act in later blocks too, they learn there, and nothing is an error.

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
    span = decay.steepest()
    gradual = span is not None and span.spread_out() >= LEAST_DECADES
    if cut is not None and _opens(facts, cut):
        cut = None  # a branch or a layer that starts at or near zero, and that the first step opens
    if cut is None and not gradual:
        return
    span = decay if span is None or not gradual else span
    names = trace.names()
    starved = range(cut) if cut is not None else _starved(decay, span)
    still, last_moves, tested = _still(trace, facts, starved)
    lawful = span.excludes_criticality() and span.agrees(AGREEMENT)
    shared = _shared(trace, starved)
    severity: Severity = "error" if (cut is not None or lawful) and still and last_moves and not shared else "warn"
    if shared and starved[0] > decay.first:
        severity = "info"  # a fixed point that is iterated: what is before it is reached by other ways
    reach = (still if last_moves else []) or starved  # the same layers as the consequence names
    yield Finding(
        rule=RULE,
        severity=severity,
        status="fired",
        claim=_cut_claim(names, cut) if cut is not None else _claim(decay, span, names),
        where={"first": names[cut], "last": names[cut]} if cut is not None else _where(names, decay, span),
        evidence={
            "gradient_decay_per_block": span.told(),
            **decay.decades_of(span),
            "starved": [names[starved[0]], names[starved[-1]]],
            "explained_by": "place" if cut is not None else "theory" if span.agrees(AGREEMENT) else None,
            "tests": {"optimizer_first_step": tested, "freeze_training": "not made"},
        },
        consequence=_SHARED if shared else _consequence(facts, names, starved, still if last_moves else [], tested),
        falsify=(
            f"Train twice from the same weights, on the same batches, once with {_reach(names, reach)} "
            "frozen: if the loss of the free one falls further than the spread over seeds, "
            "they do learn and this finding is wrong."
        ),
        remedies=repairs(trace, span.value) if cut is None else (),
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


def _starved(decay: Decay, span: Decay) -> range:
    """Return the boundaries before the span's fall where the gradient is, and stays, below its start's by decades."""
    fallen, ends = 0.0, (span.first, span.first)
    reached = False
    for boundary in reversed(range(decay.first, span.last)):
        fallen -= decay.steps[boundary - decay.first]
        if fallen >= LEAST_DECADES:
            ends, reached = (boundary, ends[1] if reached else boundary), True
        elif reached:
            break
    return range(ends[0], ends[1] + 1)


def _still(trace: Trace, facts: Facts, starved: Sequence[int]) -> tuple[list[int], bool, dict[str, Any] | str]:
    """Return the first blocks that the optimizer's step leaves as they are, and whether it moves later ones."""
    ratio, lost = trace["update_ratio"].nanmean(0).tolist(), trace["lost_fraction"].nanmean(0).tolist()
    gradient = trace["weight_gradient_rms"].nanmean(0)
    ours = [i for i in starved if math.isfinite(ratio[i])]
    others = [i for i in range(starved[-1] + 1, len(trace.sites)) if math.isfinite(ratio[i])]
    if not ours or not others:
        return [], False, "not made: no update of these blocks was measured"
    changed = {i: _changed(ratio[i], lost[i], facts.resolution) for i in (*ours, *others)}
    stands = [ratio[i] < NEGLIGIBLE or changed[i] <= 1 - STILL for i in ours]
    prefix = next((i for i, stand in enumerate(stands) if not stand), len(stands))
    still = ours[:prefix]
    most = max((changed[i] for i in still if ratio[i] >= NEGLIGIBLE), default=0.0)
    moves = any(ratio[i] >= NEGLIGIBLE and changed[i] > max(1 - STILL, LIVELIER * most) for i in others)
    told = {
        "optimizer": facts.optimizer,
        "lr": facts.lr,
        "first_update_ratio": ratio[ours[0]],
        "first_lost_fraction": lost[ours[0]],
        "last_update_ratio": ratio[others[-1]],
        "share_changed": {"first": changed[ours[0]], "last": changed[others[-1]]},
        "still_at_most": {
            "update_ratio": max((ratio[i] for i in still), default=None),
            "share_changed": max((changed[i] for i in still), default=None),
        },
        "first_gradient_over_eps": float(gradient[ours[0]]) / facts.eps if facts.eps else None,
        "standing_still": sum(stands),
        "of": len(ours),
    }
    return still, moves, told


def _changed(ratio: float, lost: float, resolution: float) -> float:
    """Return the share of a block's elements that the step changes; a gradient that is all zero changes none."""
    if ratio == 0:
        return 0.0
    if math.isfinite(lost):
        return 1 - lost
    return 1.0 if ratio >= resolution else 0.0  # a trace without the count, where only the size is known


def _shared(trace: Trace, starved: Sequence[int]) -> bool:
    """Return whether every parameter of the starved blocks acts in a later block too, and learns there."""
    own = {name for i in starved for name in trace.sites[i].parameters}
    later = {name for site in trace.sites[starved[-1] + 1 :] for name in site.parameters}
    return bool(own) and own <= later


def _where(names: Sequence[str], decay: Decay, span: Decay) -> dict[str, str]:
    """Name the blocks of the fall; the very first has no boundary before it, and starves with the next."""
    first = span.first if span.first == decay.first else span.first + 1
    return {"first": names[first], "last": names[span.last]}


def _claim(decay: Decay, span: Decay, names: Sequence[str]) -> str:
    whole = "" if len(span.steps) == len(decay.steps) else f"; by 10^{decay.total:.1f} over all blocks measured"
    return (
        f"From {names[span.last]} back to {names[span.first]} the gradient shrinks by a factor of {span.value:.3g} per "
        f"block ({span.interval()}), by 10^{span.total:.1f} in all{whole}."
    )


def _cut_claim(names: Sequence[str], cut: int) -> str:
    return (
        f"The gradient all but ends at {names[cut]}: what leaves it towards the input is smaller by decades, or zero."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.995 else "100 %"


def _reach(names: Sequence[str], blocks: Sequence[int]) -> str:
    return f"{names[blocks[0]]} to {names[blocks[-1]]}" if len(blocks) > 1 else names[blocks[0]]


def _consequence(
    facts: Facts, names: Sequence[str], starved: Sequence[int], still: Sequence[int], tested: dict[str, Any] | str
) -> str:
    reach = still or starved
    span = _reach(names, reach)
    if still and not isinstance(tested, str):
        step = "The optimizer's step" if facts.lr is None else f"The first step of {facts.optimizer} at lr {facts.lr:g}"
        most = tested["still_at_most"]
        if most["share_changed"] == 0:
            return f"{step} leaves the weights of {span} as they are."
        return (
            f"{step} all but leaves the weights of {span} as they are: it moves them by at most "
            f"{most['update_ratio']:.2g} of their size, and changes at most {_percent(most['share_changed'])} of their "
            "elements."
        )
    if facts.optimizer is None:
        return f"{span} may learn slowly; no optimizer was measured."
    adaptive = facts.eps is not None and facts.optimizer.lower().startswith(("adam", "nadam", "radam", "rmsprop"))
    if adaptive:
        return (
            f"{facts.optimizer} rescales the gradients of {span}, so that their weights do move; whether in a useful "
            "direction is not known from one step."
        )
    return f"{span} learn more slowly than the last layers, in proportion to their gradients."
