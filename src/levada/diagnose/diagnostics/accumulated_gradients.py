"""Gradients that are never cleared: every step is made with the sum of all gradients so far."""

from __future__ import annotations

from collections.abc import Iterable

from levada.diagnose.finding import Finding, Proposal, Severity
from levada.probe.trace import Trace

__all__ = ["accumulated_gradients"]

RULE = "accumulated_gradients"
# Fewer steps may be an exception that somebody wrote.
LEAST_STEPS = 2
SOURCE = "torch.Tensor.backward adds to .grad"


def accumulated_gradients(trace: Trace) -> Iterable[Finding]:
    """The gradients of the step before were still there when the next ones arrived, and were added to.

    It is known in a run only: between two steps of the optimizer no gradient of a watched parameter was zero or absent
    when another arrived. Micro-steps of accumulation begin with cleared gradients and are passed over, as are models
    whose gradients another's loss adds to before they are cleared. An error needs that on every sampled step but the
    first, at least two, and that the gradient which the step was made with is exactly the old one plus what arrived;
    where something changed it between, as clipping does, it is a warning.

    Args:
        trace: of one check, or of a run.
    """
    told = trace.context.get("accumulated")
    if not told or told["kept"] < LEAST_STEPS or 2 * told["kept"] <= told["steps"]:
        return
    kept, steps, exact = told["kept"], told["steps"], told["exact"]
    severity: Severity = "error" if kept == steps and exact == kept else "warn"
    names = trace.names()
    first = next((s.name for s in trace.sites if told["parameter"] in s.parameters), names[0])
    yield Finding(
        rule=RULE,
        severity=severity,
        status="fired",
        claim=(
            f"On {kept} of {steps} sampled steps the gradient of the step before was still in {told['parameter']}.grad "
            "when the next one arrived, and was added to."
        ),
        where={"first": first, "last": names[-1]},
        evidence={
            "steps_with_old_gradients": kept,
            "of": steps,
            "reference": "a gradient that is zero or absent when the first of a step arrives",
            "explained_by": "place",
            "tests": {"gradient_is_old_plus_new": f"on {exact} of {kept} steps"},
        },
        consequence="The steps follow the sum of all gradients since the start, which grows and is out of date.",
        falsify="Print that gradient before each backward pass: if it is zero or None, this is wrong.",
        remedies=(Proposal("zero_grad", "optimizer.zero_grad()  # before loss.backward(), in every step"),),
        source=SOURCE,
    )
