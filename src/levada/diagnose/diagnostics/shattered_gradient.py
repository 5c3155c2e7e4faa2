"""Inputs that are close to each other get gradients that have nothing to do with each other."""

from __future__ import annotations

import math
from collections.abc import Iterable

from levada.diagnose.attempts import ALIKE
from levada.diagnose.facts import Facts, facts_of
from levada.diagnose.finding import Finding, Proposal, Severity
from levada.probe.trace import Trace
from levada.theory import gradient_correlation

__all__ = ["shattered_gradient"]

RULE = "shattered_gradient"
# A cosine of 0.25 is one part in sixteen of the gradient's energy in common.
SHATTERED = ALIKE
# Theory's cosine up to which it explains a measured one: at finite width it is larger than the limit.
EXPLAINED = 0.25
# Steps that help the inputs help their neighbours by this much of that.
SHARED = 0.2
_RECTIFIERS = frozenset({"relu"})
SOURCE = "Balduzzi et al. 2017, arXiv 1702.08591; the cosine by mean-field theory as in Schoenholz et al. 2017"


def shattered_gradient(trace: Trace) -> Iterable[Finding]:
    """Neighbouring inputs get unrelated gradients at the first block, so that a step for one is noise for the other.

    Each input is compared with itself plus a tenth of noise (cosine 0.995). A small cosine alone says little: healthy
    convolutional networks with batch normalisation start so, and what helps an input helps its neighbour. It speaks if
    the interval of the mean cosine is below 0.25 and ten steps that lower the loss of the inputs lower that of their
    neighbours less than a fifth as much. Where steps at the given rate are shorter than 3/1000 of the weights, as while
    it warms up, steps of a hundredth are tried too, and those that lower the loss more are judged. An error needs
    theory's agreement too, in a chain without normalisation: the mean-field cosine of ReLU layers, or signals of
    neighbours that part as well (chaos). Not looked for in models of few blocks, or without floating inputs.

    Args:
        trace: of one check, or of a run.
    """
    facts = facts_of(trace)
    found = facts.neighbours
    if found is None or not found.high < SHATTERED or found.gain_shared is None or not found.gain_shared < SHARED:
        return
    predicted = _predicted(facts)
    chaotic = found.signal_last < 0.5 * found.signal_first
    plain = facts.chain and not facts.normalised
    agrees = (predicted is not None and predicted < EXPLAINED) or (chaotic and plain)
    severity: Severity = "error" if agrees else "warn"
    ends = f"from a cosine of {found.signal_first:.3g} to {found.signal_last:.3g} at the last block"
    cause = f" Their signals part too, {ends}." if chaotic else ""
    last = trace.names()[-1]
    yield Finding(
        rule=RULE,
        severity=severity,
        status="fired",
        claim=(
            f"Behind {found.blocks} blocks the gradients at {found.site} of inputs that differ by a tenth have a "
            f"cosine of {found.gradient:.2g} [{found.low:.2g}, {found.high:.2g}], and ten steps gain them "
            f"{found.gain_shared:.2g} of what they gain the inputs.{cause}"
        ),
        where={"first": found.site, "last": last},
        evidence={
            "gradient_cosine": {"value": found.gradient, "low": found.low, "high": found.high, "predicted": predicted},
            "signal_cosine": {"first": found.signal_first, "last": found.signal_last},
            "explained_by": "theory" if agrees else None,
            "tests": {"gain_of_neighbours": found.gain_shared},
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
