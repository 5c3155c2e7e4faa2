"""What a recurrent layer remembers is gone long before the sequence is over, and the loss hangs on its end alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from levada.diagnose.facts import facts_of
from levada.diagnose.finding import Finding, Proposal, Severity
from levada.diagnose.recurrent import (
    AGREE,
    LOST,
    Memory,
    arrives_early,
    curves_of,
    longest,
    repair_of,
    short,
    site_of,
)
from levada.diagnose.tried import finding_of
from levada.probe.memory import MemoryCurve
from levada.probe.trace import Trace

__all__ = ["short_memory"]

RULE = "short_memory"
SOURCE = "Pascanu et al. 2013, arXiv 1211.5063; Tallec and Ollivier 2018, arXiv 1804.11188 (forget bias)"


def short_memory(trace: Trace) -> Iterable[Finding]:
    """A recurrent layer forgets within a part of the sequence, and the loss sees nothing of what came before.

    It speaks if the horizon, the steps after which the gradient of the last state is down to 1/1000, covers less than
    half of a sequence of 16 steps or more with its whole interval, and less than 1/1000 of the loss's gradient arrives
    at the inputs of the first half. A loss that reads every step, as a language model's or a tagger's, or that pools
    over steps, loses nothing so and is left alone. It is an info, and a warning where less than a millionth arrives
    unless a trial on this batch shows that the model as it is gains well: what it is asked for may need no memory. An
    error also needs a horizon that the measured gates or the recurrent weights' size explain, and that in the trial a
    copy with a longer memory gains while the model as it is does not.

    Where half of all steps or more, at the end, are the same in all rows, as of padding, and the horizon is shorter
    than these, it is a warning if the model learns more with them left out, in each of three orders of the batches.

    Args:
        trace: of one check, or of a run.
    """
    facts = facts_of(trace)
    memory, trial = facts.memory, facts.trials.get("padding")
    if trial is not None:
        told = trial.measured
        seen = (
            f"The last {told['same_at_the_end']} of the {told['steps']} steps that {told['module']} reads are the same "
        )
        seen += "in all rows and steps, as of padding or of a silence that it does not reach over"
        yield finding_of(RULE, trial, seen, "What is read at the end is what is left of the inputs by then.", SOURCE)
    if memory is None:
        return
    for name, curves in memory.by_module().items():
        arrival = memory.arrival.get(name)
        if arrival is not None and short(curves, arrival):
            yield _finding(trace, memory, curves, arrives_early(arrival[-longest(curves).steps :]))


def _finding(trace: Trace, memory: Memory, curves: Sequence[MemoryCurve], early: float) -> Finding:
    curve = longest(curves)
    told = curve.horizon_predicted
    explained = told is not None and 1 / AGREE < curve.horizon.value / told < AGREE
    trial = memory.rehearsals.get(RULE)
    lost = early < LOST and facts_of(trace).loss is not None
    severity: Severity = "info" if not lost or (trial is not None and trial.acquits) else "warn"
    if lost and explained and trial is not None and trial.confirms:
        severity = "error"
    site = site_of(trace, curve.module)
    why = ""
    if curve.gates is not None:
        why = f"; its {curve.gates.gate}s are at {curve.gates.mean:.2f} on average"
    name, patch = repair_of(RULE, curves)
    return Finding(
        rule=RULE,
        severity=severity,
        status="fired",
        claim=(
            f"{curve.site or curve.kind} remembers {curve.horizon.value:.1f} steps "
            f"[{curve.horizon.low:.1f}, {curve.horizon.high:.1f}] of {curve.steps}, and {early:.1g} of the loss's "
            f"gradient arrives in the first half of the sequence{why}."
        ),
        where={"first": site, "last": site},
        evidence={
            "memory_horizon": {"value": curve.horizon.value, "low": curve.horizon.low, "high": curve.horizon.high},
            "steps": curve.steps,
            "reference": f"half of the sequence, {curve.steps / 2:g} steps",
            "horizon_predicted": told,
            "gradient_in_first_half": early,
            "explained_by": "theory" if explained else None,
            "curves": curves_of(curve, memory.arrival[curve.module][-curve.steps :]),
            "tests": {"repaired_copy": _tested(memory)},
        },
        consequence=(
            "What stands in the first half of a sequence has no part in what is learned."
            if severity != "info"
            else "What stands in the first half of a sequence is learned late or not at all, where it is needed."
        ),
        falsify=(
            "Shuffle the first halves of the sequences between rows, and train: if the loss is as low, nothing in them "
            "was needed, and a longer memory would not help."
        ),
        remedies=(Proposal(name, patch, {"horizon": curve.horizon.value}, {"horizon": float(curve.steps)}),),
        source=SOURCE,
    )


def _tested(memory: Memory) -> object:
    trial = memory.rehearsals.get(RULE)
    if trial is None:
        return "not made"
    return {"repair": trial.repair, "loss": list(trial.before), "loss_repaired": list(trial.after)}
