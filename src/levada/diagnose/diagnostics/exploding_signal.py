"""The signal grows from block to block until the loss can no longer be lowered from there."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from levada.diagnose.decay import AGREEMENT, LEAST_DECADES, LEAST_FACTOR, Decay, size_decay
from levada.diagnose.facts import Facts, facts_of
from levada.diagnose.finding import Finding, Severity
from levada.diagnose.repair import repairs
from levada.probe.trace import Trace

__all__ = ["exploding_signal"]

# A loss this many times that of an output of zeros is made by the signal's size, not by wrong answers.
MUCH_WORSE = 1000.0
LEAST_BLOCKS = 3
RULE = "exploding_signal"
SOURCE = "Glorot and Bengio 2010; He et al. 2015, arXiv 1502.01852; Hayou et al. 2021, arXiv 2010.12859"


def exploding_signal(trace: Trace) -> Iterable[Finding]:
    """The signal grows block by block until the outputs, and with them the loss, are out of scale.

    An error needs a growth whose interval excludes criticality, theory's agreement, and a loss far above that of an
    output of zeros.

    Args:
        trace: of one check, or of a run.
    """
    facts = facts_of(trace)
    growth = size_decay(trace)
    if isinstance(growth, str) or len(trace.sites) < LEAST_BLOCKS:
        return
    if growth.low <= 1 / LEAST_FACTOR or growth.decades > -LEAST_DECADES:
        return
    names = trace.names()
    worse, tested = _worse(facts)
    explained = growth.agrees(AGREEMENT)
    severity: Severity = "error" if explained and worse else "warn"
    theory = f"; theory says {growth.predicted:.3g}" if growth.predicted is not None else "; theory has no value here"
    size = float(trace["signal_rms"][:, -1].nanmean())
    yield Finding(
        rule=RULE,
        severity=severity,
        status="fired",
        claim=(
            f"From {names[growth.first]} to {names[growth.last]} the signal grows by a factor of "
            f"{growth.value:.3g} per "
            f"block (95 % interval {growth.low:.3g} to {growth.high:.3g}{theory}); the output's root mean square is "
            f"{size:.3g}."
        ),
        where={"first": names[_grown(growth)], "last": names[-1]},
        evidence={
            "growth_per_block": growth.told(),
            "output_rms": size,
            "explained_by": "theory" if explained else None,
            "tests": {"loss_beside_that_of_zeros": tested, "training": "not made"},
        },
        consequence=(
            f"The loss starts at {facts.loss_value:.4g}, where an output of zeros has {facts.loss_constant:.4g}."
            if worse
            else "The outputs' scale depends on depth; half-precision numbers overflow first."
        ),
        falsify="Divide the outputs by their root mean square and train: if nothing improves, the scale was harmless.",
        remedies=repairs(trace, growth.value),
        source=SOURCE,
    )


def _grown(growth: Decay) -> int:
    grown = torch.tensor(growth.steps).cumsum(0)
    places = (grown >= LEAST_DECADES).nonzero()
    return growth.first + 1 + int(places[0]) if len(places) else growth.last


def _worse(facts: Facts) -> tuple[bool, dict[str, Any] | str]:
    if facts.loss_value is None or facts.loss_constant is None:
        return False, "not made: there was no loss of outputs and targets"
    told = {"loss": facts.loss_value, "loss_of_zeros": facts.loss_constant}
    return not math.isfinite(facts.loss_value) or facts.loss_value > MUCH_WORSE * abs(facts.loss_constant), told
