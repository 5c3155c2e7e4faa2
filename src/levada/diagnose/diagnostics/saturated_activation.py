"""A bounded activation is driven to its ends, where its slope is all but zero."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from levada.diagnose.facts import facts_of
from levada.diagnose.finding import Finding, Proposal, Severity
from levada.probe.trace import Trace

__all__ = ["saturated", "saturated_activation"]

# At a variance of 1 no tanh and no sigmoid has as many as one element in a hundred there; at 9 a tanh has 0.32.
MOSTLY = 0.5
# Then not one element in a hundred passes more than a hundredth of its gradient: with two more such layers
# nothing does.
WHOLLY = 0.99
# Zero on both sides of these is their purpose, and half of them at zero is health: dead units are another rule's.
HARD = frozenset({"relu6", "hardtanh", "hardsigmoid"})
RULE = "saturated_activation"
SOURCE = "Glorot and Bengio 2010"


def saturated_activation(trace: Trace) -> Iterable[Finding]:
    """Bounded activations sit at their ends, where the slope is below a hundredth of its largest.

    An error needs nearly all elements saturated at an exact place, and an optimizer step that leaves that place's
    weights as they are.

    Args:
        trace: of one check, or of a run.
    """
    facts = facts_of(trace)
    share = trace["saturated_fraction"].nanmean(0)
    hit = saturated(trace)
    if not hit:
        return
    names = trace.names()
    ratio, lost = trace["update_ratio"].nanmean(0), trace["lost_fraction"].nanmean(0)
    first = hit[0]
    still = float(ratio[first]) < facts.resolution / 2 or float(lost[first]) > 0.9
    moving = bool((ratio[torch.isfinite(ratio)] >= facts.resolution).any())
    severity: Severity = "error" if float(share[first]) >= WHOLLY and still and moving else "warn"
    size = float(trace["signal_rms"].nanmean(0)[max(0, first - 1)])
    weight = float(trace["weight_rms"].nanmean(0)[first])
    yield Finding(
        rule=RULE,
        severity=severity,
        status="fired",
        claim=(
            f"At {names[first]} {float(share[first]):.0%} of the activation's elements have a slope below 1/100 of its "
            f"largest, and at {len(hit)} of {len(names)} blocks more than {MOSTLY:.0%} have."
        ),
        where={"first": names[first], "last": names[hit[-1]]},
        evidence={
            "saturated_fraction": {names[i]: float(share[i]) for i in hit},
            "reference": "below 0.01 for pre-activations of variance 1",
            "input_rms": size if math.isfinite(size) else None,
            "weight_rms": weight if math.isfinite(weight) else None,
            "tests": {
                "optimizer_first_step": {"update_ratio": float(ratio[first]), "lost_fraction": float(lost[first])}
            },
        },
        consequence="Those elements pass almost no gradient on: what is before them learns from the few others.",
        falsify=(
            "Divide the weights of the block by ten: if the loss falls no faster over some hundred "
            "steps, it did no harm."
        ),
        remedies=(
            Proposal(
                "initialise.glorot",
                "from levada import initialise\ninitialise.glorot(model)",
                {"saturated_fraction": float(share[first])},
                {},
            ),
        ),
        source=SOURCE,
    )


def saturated(trace: Trace) -> list[int]:
    """Return the numbers of the blocks whose activation is at its ends for most elements, and is not made for that.

    Args:
        trace: of one check, or of a run.
    """
    share, known = trace["saturated_fraction"].nanmean(0), facts_of(trace).activations
    return [i for i, s in enumerate(trace.sites) if float(share[i]) > MOSTLY and not set(known.get(s.name, ())) & HARD]
