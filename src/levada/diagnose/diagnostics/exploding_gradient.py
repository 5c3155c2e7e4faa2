"""The learning signal grows on its way to the input, until one step destroys what the first layers hold."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from levada.diagnose.decay import AGREEMENT, LEAST_DECADES, LEAST_FACTOR, Decay, gradient_decay
from levada.diagnose.facts import Facts, facts_of
from levada.diagnose.finding import Finding, Severity
from levada.diagnose.repair import repairs
from levada.probe.trace import Trace

__all__ = ["exploding_gradient"]

# A first step that multiplies the loss by ten did not follow the gradient's direction, but was thrown out.
BLOW_UP = 10.0
# A step as large as the weights leaves nothing of what they were; a usual one is a thousandth of them.
REPLACED = 1.0
RULE = "exploding_gradient"
SOURCE = "Pascanu et al. 2013, arXiv 1211.5063; Yang et al. 2019, arXiv 1902.08129 (batch normalisation)"


def exploding_gradient(trace: Trace) -> Iterable[Finding]:
    """The gradient grows block by block on its way to the input, so that one step destroys the first layers.

    An error needs a growth whose interval excludes criticality, theory's agreement, and a first optimizer step that
    multiplies the loss. Growth that batch normalisation explains is a warning at most: it makes weights scale-free.

    Args:
        trace: of one check, or of a run.
    """
    facts = facts_of(trace)
    decay = gradient_decay(trace)
    if isinstance(decay, str) or decay.low <= 1 / LEAST_FACTOR or decay.decades > -LEAST_DECADES:
        return  # that the decay is not known is said once, by vanishing_gradient
    names = trace.names()
    normalised = sum(name in facts.batch_normalised for name in names) * 2 > len(names)
    grown = range(decay.first, _grown(decay) + 1)
    blown, tested = _blown(facts)
    replaced, ratios = _replaced(trace, grown)
    explained = decay.agrees(AGREEMENT)
    severity: Severity = "error" if explained and (blown or replaced) and not normalised else "warn"
    theory = f"; theory says {decay.predicted:.4g}" if decay.predicted is not None else "; theory has no value here"
    cause = ""
    if normalised:
        cause = (
            " Batch normalisation without a skip does this at the start: it multiplies the gradient by about "
            f"sqrt(pi / (pi - 1)) = {math.sqrt(math.pi / (math.pi - 1)):.4f} per layer of ReLU."
        )
    yield Finding(
        rule=RULE,
        severity=severity,
        status="fired",
        claim=(
            f"From {names[decay.last]} back to {names[decay.first]} the gradient grows by a "
            f"factor of {decay.value:.4g} per "
            f"block (95 % interval {decay.low:.4g} to {decay.high:.4g}{theory}), by "
            f"10^{-decay.total:.1f} in all.{cause}"
        ),
        where={"first": names[decay.first], "last": names[grown[-1]]},
        evidence={
            "gradient_decay_per_block": decay.told(),
            "decades": decay.total,
            "explained_by": "theory" if explained else None,
            "tests": {
                "loss_after_first_step": tested,
                "first_step_beside_weights": ratios,
                "longer_training": "not made",
            },
        },
        consequence=_consequence(facts, blown, ratios if replaced else {}),
        falsify=(
            "Train some hundred steps at this learning rate: if the loss falls as it does at half "
            "the depth, no harm follows."
        ),
        remedies=repairs(trace, decay.value),
        source=SOURCE,
    )


def _consequence(facts: Facts, blown: bool, replaced: Mapping[str, float]) -> str:
    step = f"The first step of {facts.optimizer} at lr {facts.lr:g}" if facts.lr is not None else "A step"
    if blown:
        return f"{step} takes the loss from {facts.loss_value:.4g} to {facts.loss_after:.4g}."
    if replaced:
        site, ratio = next(iter(replaced.items()))
        return f"{step} moves the weights of {site} by {ratio:.3g} times their own size: what they held is gone."
    return (
        "One learning rate does not fit the first and the last layers; warm-up, clipping or an optimizer that rescales "
        "gradients may hide it."
    )


def _replaced(trace: Trace, grown: range) -> tuple[bool, dict[str, float]]:
    """Return whether the first step is larger than the weights of a block that got a grown gradient, and its ratios."""
    ratio = trace["update_ratio"].nanmean(0)
    ratios = {trace.sites[i].name: float(ratio[i]) for i in grown if math.isfinite(float(ratio[i]))}
    return any(value >= REPLACED for value in ratios.values()), dict(list(ratios.items())[:5])


def _blown(facts: Facts) -> tuple[bool, dict[str, Any] | str]:
    if facts.loss_value is None or facts.loss_after is None:
        return False, "not made: there was no loss, or no step"
    reference = max(facts.loss_value, facts.loss_constant or 0.0)
    blown = not math.isfinite(facts.loss_after) or facts.loss_after > BLOW_UP * abs(reference)
    return blown, {
        "loss_before": facts.loss_value,
        "loss_after": facts.loss_after,
        "optimizer": facts.optimizer,
        "lr": facts.lr,
    }


def _grown(decay: Decay) -> int:
    """Return the last boundary where the gradient is above the last one's by decades."""
    grown = 0.0
    for index in reversed(range(len(decay.steps))):
        grown += decay.steps[index]
        if grown >= LEAST_DECADES:
            return decay.first + index
    return decay.first
