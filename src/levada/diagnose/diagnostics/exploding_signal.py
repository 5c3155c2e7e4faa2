"""The signal grows from block to block, by decades, so that the outputs' scale is a matter of depth."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from levada.diagnose.decay import AGREEMENT, LEAST_DECADES, size_decay
from levada.diagnose.facts import Facts, facts_of
from levada.diagnose.finding import Finding, Severity
from levada.diagnose.repair import repairs
from levada.probe.trace import Trace

__all__ = ["exploding_signal"]

LEAST_BLOCKS = 3
# A cross-entropy of this many times that of outputs of zero: out of scale at any depth.
OUT_OF_SCALE = 100.0
RULE = "exploding_signal"
SOURCE = "Glorot and Bengio 2010; He et al. 2015, arXiv 1502.01852; Hayou et al. 2021, arXiv 2010.12859"


def exploding_signal(trace: Trace) -> Iterable[Finding]:
    """The signal grows block by block until the outputs, and with them the loss, are out of scale.

    It speaks if the contiguous blocks that gain most gain three decades, the largest single gain counted as the second
    largest. An error needs a growth whose interval excludes criticality, theory's agreement, and a loss that is not
    finite, at once or after the optimizer's first step on this batch: a large finite scale alone can be unlearned.

    Args:
        trace: of one check, or of a run.
    """
    facts = facts_of(trace)
    growth = size_decay(trace)
    span = None if isinstance(growth, str) or len(trace.sites) < LEAST_BLOCKS else growth.steepest(grows=True)
    if isinstance(growth, str) or span is None or span.spread_out(grows=True) < LEAST_DECADES:
        yield from _out_of_scale(trace, facts)
        return
    names = trace.names()
    overflown, tested = _overflown(facts)
    lawful = span.excludes_criticality(grows=True) and span.agrees(AGREEMENT)
    severity: Severity = "error" if lawful and overflown else "warn"
    size = float(trace["signal_rms"][:, -1].nanmean())
    whole = "" if len(span.steps) == len(growth.steps) else f", by 10^{-growth.total:.1f} over all blocks measured"
    first = span.first if span.first == growth.first else span.first + 1
    yield Finding(
        rule=RULE,
        severity=severity,
        status="fired",
        claim=(
            f"From {names[span.first]} to {names[span.last]} the signal grows by a factor of {span.value:.3g} per "
            f"block ({span.interval()}), by 10^{-span.total:.1f} in all{whole}; the output's root mean square "
            f"is {size:.3g}."
        ),
        where={"first": names[first], "last": names[span.last]},
        evidence={
            "growth_per_block": span.told(),
            **growth.decades_of(span),
            "output_rms": size,
            "explained_by": "theory" if span.agrees(AGREEMENT) else None,
            "tests": {"loss_before_and_after_first_step": tested, "training": "not made"},
        },
        consequence=_consequence(facts, overflown),
        falsify="Divide the outputs by their root mean square and train: if nothing improves, the scale was harmless.",
        remedies=repairs(trace, span.value),
        source=SOURCE,
    )


def _out_of_scale(trace: Trace, facts: Facts) -> Iterable[Finding]:
    """Speak where the outputs are too large though no run of blocks says why: too few blocks, or one of them."""
    if facts.loss != "cross_entropy" or facts.loss_value is None or not facts.loss_constant:
        return
    if not facts.loss_value > OUT_OF_SCALE * facts.loss_constant:
        return
    names, sizes = trace.names(), trace["signal_rms"].nanmean(0)
    yield Finding(
        rule=RULE,
        severity="warn",
        status="fired",
        claim=f"The outputs' root mean square is {float(sizes[-1]):.3g}.",
        where={"first": names[int(sizes.nan_to_num(0.0).argmax())], "last": names[-1]},
        evidence={"output_rms": float(sizes[-1]), "loss": facts.loss_value, "loss_of_zeros": facts.loss_constant},
        consequence=_consequence(facts, _overflown(facts)[0]),
        falsify="Divide the outputs by their root mean square and train: if nothing improves, the scale was harmless.",
        source=SOURCE,
    )


def _consequence(facts: Facts, overflown: bool) -> str:
    if overflown:
        return (
            f"The loss is {facts.loss_value:.4g}, and {facts.loss_after:.4g} after the first step of "
            f"{facts.optimizer}: not finite, so that nothing can follow."
        )
    if facts.loss_value is None or facts.loss_constant is None:
        return "The outputs' scale depends on depth; half-precision numbers overflow first."
    return (
        f"The loss starts at {facts.loss_value:.4g}, where an output of zeros has {facts.loss_constant:.4g}: the "
        "scale is to be unlearned first, which an optimizer that rescales gradients often does; half precision "
        "overflows first."
    )


def _overflown(facts: Facts) -> tuple[bool, dict[str, Any] | str]:
    """Return whether the loss, before or after the optimizer's first step on this batch, is not finite."""
    if facts.loss_value is None or facts.loss_after is None:
        return False, "not made: there was no loss, or no step"
    told = {"loss": facts.loss_value, "loss_after": facts.loss_after, "loss_of_zeros": facts.loss_constant}
    return not (math.isfinite(facts.loss_value) and math.isfinite(facts.loss_after)), told
