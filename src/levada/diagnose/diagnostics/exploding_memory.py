"""The gradient of a recurrent layer grows step by step on its way into the past."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from levada.diagnose.facts import Facts, facts_of
from levada.diagnose.finding import Finding, Proposal, Severity
from levada.diagnose.recurrent import Memory, curves_of, grown, repair_of, site_of
from levada.probe.lyapunov import LyapunovExponents
from levada.probe.memory import MemoryCurve
from levada.probe.trace import Trace

__all__ = ["exploding_memory"]

RULE = "exploding_memory"
# A first step that multiplies the loss by ten did not follow the gradient's direction.
BLOW_UP = 10.0
SOURCE = "Pascanu et al. 2013, arXiv 1211.5063 (and clipping); Vogt et al. 2020, arXiv 2006.14123 (Lyapunov exponents)"


def exploding_memory(trace: Trace) -> Iterable[Finding]:
    """The gradient of a recurrent layer grows by a thousand or more over the sequence, back in time.

    It speaks if the gradient of the last state grows by three decades, at a rate whose interval is above zero, and that
    of the loss is a thousand times larger at an input of the first half than at the last steps. It is a warning. An
    error also needs a largest Lyapunov exponent above zero by two standard errors, and a functional test: the first
    optimizer step multiplies the loss by ten or leaves no number, or in a trial on this batch a copy with orthogonal
    recurrent weights gains, while the model as it is gains less than half of that, or ends above both their starts.
    A large gradient alone may be clipped and train.

    Args:
        trace: of one check, or of a run.
    """
    facts = facts_of(trace)
    memory = facts.memory
    if memory is None:
        return
    for curve in memory.curves:
        decades = grown(curve, memory.arrival.get(curve.module))
        if decades:
            yield _finding(trace, facts, memory, curve, decades)


def _finding(trace: Trace, facts: Facts, memory: Memory, curve: MemoryCurve, decades: float) -> Finding:
    exponent = memory.exponents.get(curve.site)
    chaotic = exponent is not None and float(exponent.values[0] - 2 * exponent.errors[0]) > 0
    thrown, tested = _thrown(facts, memory)
    severity: Severity = "error" if chaotic and thrown and facts.loss is not None else "warn"
    site = site_of(trace, curve.module)
    factor = math.exp(curve.slope.value)
    name, patch = repair_of(RULE, [curve])
    return Finding(
        rule=RULE,
        severity=severity,
        status="fired",
        claim=(
            f"In {curve.site or curve.kind} the gradient grows by a factor of {factor:.3g} per step "
            f"[{math.exp(curve.slope.low):.3g}, {math.exp(curve.slope.high):.3g}] into the past, by 10^{decades:.1f} "
            f"within {curve.steps} steps{_said(exponent)}."
        ),
        where={"first": site, "last": site},
        evidence={
            "growth_per_step": {
                "value": factor,
                "low": math.exp(curve.slope.low),
                "high": math.exp(curve.slope.high),
            },
            "decades": decades,
            "steps": curve.steps,
            "reference": "1 per step, where gradients keep their size",
            "lyapunov_exponent": None
            if exponent is None
            else {"value": float(exponent.values[0]), "error": float(exponent.errors[0])},
            "explained_by": "theory" if chaotic else None,
            "curves": curves_of(curve, memory.arrival.get(curve.module)),
            "tests": tested,
        },
        consequence="The first steps of a sequence drown all others in the gradient, and one step may undo the rest.",
        falsify="Train some hundred steps with and without clipping: if the loss falls alike, no harm follows.",
        remedies=(
            Proposal(name, patch, {"growth_per_step": factor}, {"growth_per_step": 1.0}),
            Proposal("clip", "torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)   # before each step"),
        ),
        source=SOURCE,
    )


def _said(exponent: LyapunovExponents | None) -> str:
    if exponent is None:
        return ""
    return f"; its largest Lyapunov exponent is {float(exponent.values[0]):.3f} +- {float(exponent.errors[0]):.3f}"


def _thrown(facts: Facts, memory: Memory) -> tuple[bool, dict[str, Any]]:
    """Return whether training throws the loss out, and what was tested."""
    before, after, trial = facts.loss_value, facts.loss_after, memory.rehearsals.get(RULE)
    stepped = (
        before is not None and after is not None and not after <= BLOW_UP * abs(max(before, facts.loss_constant or 0.0))
    )
    tested: dict[str, Any] = {"loss_before": before, "loss_after": after, "repaired_copy": "not made"}
    if trial is not None:
        tested["repaired_copy"] = {
            "repair": trial.repair,
            "loss": list(trial.before),
            "loss_repaired": list(trial.after),
        }
    return stepped or (trial is not None and (trial.confirms or trial.thrown)), tested
