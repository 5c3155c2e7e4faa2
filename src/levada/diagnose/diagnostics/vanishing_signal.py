"""The difference between inputs dies on its way to the output: the last layers cannot tell them apart."""

from __future__ import annotations

import math
from collections.abc import Iterable

from levada.diagnose.decay import AGREEMENT, LEAST_DECADES, LEAST_FACTOR, Decay, signal_decay
from levada.diagnose.facts import Facts, facts_of
from levada.diagnose.finding import Finding, Severity
from levada.diagnose.repair import repairs
from levada.probe.trace import Trace

__all__ = ["vanishing_signal"]

# Inputs that differ at the output by a hundredth of a rounding error are one input to the loss. (A network
# of 20 default
# ReLU layers ends between a half and one rounding error, and an adaptive optimizer may still rescue it.)
INDISTINCT = 0.01
LEAST_BLOCKS = 3
RULE = "vanishing_signal"
SOURCE = "Poole et al. 2016, arXiv 1606.05340; Schoenholz et al. 2017, arXiv 1611.01232"


def vanishing_signal(trace: Trace) -> Iterable[Finding]:
    """The difference between inputs dies on its way to the output, although the signal may keep its size.

    An error needs a decay whose interval excludes criticality, theory's agreement or an exact place, and an output that
    is the same for all inputs to well below the resolution of its numbers.

    Args:
        trace: of one check, or of a run.
    """
    facts = facts_of(trace)
    decay = signal_decay(trace)
    if isinstance(decay, str) or len(trace.sites) < LEAST_BLOCKS:
        return  # a batch of one, or too few blocks, has no difference to follow
    cut = _cut(trace, decay)
    gradual = decay.high < LEAST_FACTOR and decay.decades >= LEAST_DECADES
    if cut is None and not gradual:
        return
    if not gradual and _opens(facts):
        return  # a branch that starts at or near zero, and that the first step opens
    names = trace.names()
    indistinct, tested = _indistinct(facts)
    explained = cut is not None or decay.agrees(AGREEMENT)
    severity: Severity = "error" if explained and indistinct and not _opens(facts) else "warn"
    theory = f"; theory says {decay.predicted:.3g}" if decay.predicted is not None else "; theory has no value here"
    claim = (
        f"From {names[decay.first]} to {names[decay.last]} the difference between inputs shrinks by a factor of "
        f"{decay.value:.3g} per block (95 % interval {decay.low:.3g} to {decay.high:.3g}{theory}), by "
        f"10^{decay.total:.1f} in all."
    )
    if cut is not None:
        claim = f"Inputs that differ before {names[cut]} come out of it all but the same."
    yield Finding(
        rule=RULE,
        severity=severity,
        status="fired",
        claim=claim,
        where={"first": names[cut if cut is not None else _faded(decay)], "last": names[-1 if cut is None else cut]},
        evidence={
            "signal_decay_per_block": decay.told(),
            "decades": decay.total,
            "explained_by": "place" if cut is not None else "theory" if explained else None,
            "output_spread": facts.output_spread,
            "output_spread_after_step": facts.output_spread_after,
            "tests": {"output_depends_on_input": tested, "training": "not made"},
        },
        consequence=(
            "The output is the same for every input of the batch: only its mean can be learned."
            if indistinct
            else "Inputs are told apart by small differences only; training starts slowly."
        ),
        falsify=(
            "Compare the outputs for two inputs in float64: if they differ by more than a float32 "
            "rounding error, it is wrong."
        ),
        remedies=repairs(trace, decay.value) if cut is None else (),
        source=SOURCE,
    )


def _cut(trace: Trace, decay: Decay) -> int | None:
    """Return the block across which the spread falls to exactly zero, or by decades at once."""
    after = trace["signal_spread"][:, decay.last + 1 : decay.last + 2]
    if after.numel() and bool((after == 0).all()) and decay.last + 1 < len(trace.sites) - 1:
        return decay.last + 1
    for index, step in enumerate(decay.steps):
        if step <= -LEAST_DECADES + min(0.0, math.log10(decay.value)):
            return decay.first + index + 1
    return None


def _faded(decay: Decay) -> int:
    """Return the first boundary where the spread is below the first one's by decades."""
    fallen = 0.0
    for index, step in enumerate(decay.steps):
        fallen -= step
        if fallen >= LEAST_DECADES:
            return decay.first + index + 1
    return decay.last


def _opens(facts: Facts) -> bool:
    return facts.output_spread_after is not None and facts.output_spread_after > facts.resolution


def _indistinct(facts: Facts) -> tuple[bool, str]:
    if facts.output_spread is None:
        return False, "not made: the batch has one input, or the output could not be measured"
    how = "in float64" if facts.output_spread_exact else "in the model's own precision"
    told = f"spread over size of the output, {how}: {facts.output_spread:.3g}; resolution {facts.resolution:.3g}"
    # In the model's own precision a spread of rounding errors and one of zero are the only ones to tell from a signal.
    limit = INDISTINCT * facts.resolution if facts.output_spread_exact else 0.0
    return facts.output_spread <= limit, told
