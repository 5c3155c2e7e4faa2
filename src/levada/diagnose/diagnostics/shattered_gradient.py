"""Inputs that are close to each other get gradients that have nothing to do with each other."""

from __future__ import annotations

import math
from collections.abc import Iterable

from levada.diagnose.facts import Facts, facts_of
from levada.diagnose.finding import Finding, Proposal, Severity
from levada.probe.trace import Trace
from levada.theory import gradient_correlation

__all__ = ["shattered_gradient"]

RULE = "shattered_gradient"
# A cosine of 0.1 is one part in a hundred of the gradient's energy in common.
SHATTERED = 0.1
# Theory's cosine up to which it explains a measured one below `SHATTERED`.
EXPLAINED = 0.2
# The step that these gradients make helps the inputs, and this much of that its neighbours.
SHARED = 0.2
_RECTIFIERS = frozenset({"relu"})
SOURCE = "Balduzzi et al. 2017, arXiv 1702.08591; the cosine by mean-field theory as in Schoenholz et al. 2017"


def shattered_gradient(trace: Trace) -> Iterable[Finding]:
    """Neighbouring inputs get unrelated gradients at the first block, so that a step for one is noise for the other.

    Each input is compared with itself plus a tenth of noise (cosine 0.995). It speaks if the interval of the mean
    cosine of the two gradients is below 0.1. An error needs theory's agreement, which a chain of ReLU layers without
    normalisation has, and a first step that lowers the loss of the inputs and less than a fifth as much that of their
    neighbours. Not looked for in models of few blocks, or without floating inputs.

    Args:
        trace: of one check, or of a run.
    """
    facts = facts_of(trace)
    found = facts.neighbours
    if found is None or not found.high < SHATTERED:
        return
    predicted = _predicted(facts)
    shared = found.gain_shared
    agrees = predicted is not None and predicted < EXPLAINED
    severity: Severity = "error" if agrees and shared is not None and shared < SHARED else "warn"
    chaotic = found.signal_last < 0.5 * found.signal_first
    ends = f"from a cosine of {found.signal_first:.3g} to {found.signal_last:.3g} at the last block"
    cause = f" Their signals part too, {ends}." if chaotic else ""
    last = trace.names()[-1]
    yield Finding(
        rule=RULE,
        severity=severity,
        status="fired",
        claim=(
            f"Behind {found.blocks} blocks the gradients at {found.site} of inputs that differ by a tenth have a "
            f"cosine of {found.gradient:.2g} [{found.low:.2g}, {found.high:.2g}].{cause}"
        ),
        where={"first": found.site, "last": last},
        evidence={
            "gradient_cosine": {"value": found.gradient, "low": found.low, "high": found.high, "predicted": predicted},
            "signal_cosine": {"first": found.signal_first, "last": found.signal_last},
            "explained_by": "theory" if agrees else None,
            "tests": {"gain_of_neighbours": shared if shared is not None else "not made"},
        },
        consequence="The first blocks are pushed at random by the inputs: what one teaches, another undoes.",
        falsify="Train half as deep a model with the same settings: if it learns no faster, this is wrong.",
        remedies=(
            Proposal(
                "residual",
                "from levada import ReZero, Stack\nnet = Stack(blocks, ReZero, dim=dim)  # with skips it decays slowly",
                {"gradient_cosine": found.gradient},
            ),
        ),
        source=SOURCE,
    )


def _predicted(facts: Facts) -> float | None:
    """Return theory's cosine for a chain of ReLU layers, whose correlation map does not depend on their scale."""
    found = facts.neighbours
    used = {name for names in facts.activations.values() for name in names}
    if (
        found is None
        or not facts.chain
        or facts.normalised
        or used != _RECTIFIERS
        or not math.isfinite(found.signal_first)
    ):
        return None
    layers = sum(bool(names) for names in facts.activations.values())
    if layers < 1:
        return None
    start = min(max(found.signal_first, -1.0), 1.0)
    return float(gradient_correlation("relu", 2.0, 0.0, layers, start)[-1])
