"""The learning signal grows on its way to the input, until one step destroys what the first layers hold."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from levada.diagnose.decay import AGREEMENT, LEAST_DECADES, gradient_decay
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

    It speaks if the contiguous blocks that gain most gain three decades, the largest single gain counted as the second
    largest. An error needs a growth whose interval excludes criticality, theory's agreement, and a first optimizer step
    on this batch that leaves numbers that are not finite: a large gradient alone may be clipped or rescaled and train.
    Growth that batch normalisation explains is a warning at most: it makes weights scale-free.

    Args:
        trace: of one check, or of a run.
    """
    facts = facts_of(trace)
    decay = gradient_decay(trace)
    span = None if isinstance(decay, str) else decay.steepest(grows=True)
    if isinstance(decay, str) or span is None or span.spread_out(grows=True) < LEAST_DECADES:
        return  # that the decay is not known is said once, by vanishing_gradient
    names = trace.names()
    normalised = sum(name in facts.batch_normalised for name in names) * 2 > len(names)
    overflown, tested = _overflown(trace, facts)
    ratios = _beside_weights(trace, range(span.first, span.last))
    lawful = span.excludes_criticality(grows=True) and span.agrees(AGREEMENT)
    severity: Severity = "error" if lawful and overflown and not normalised else "warn"
    cause = ""
    if normalised:
        cause = (
            " Batch normalisation without a skip does this at the start: it multiplies the gradient by about "
            f"sqrt(pi / (pi - 1)) = {math.sqrt(math.pi / (math.pi - 1)):.4f} per layer of ReLU."
        )
    whole = "" if len(span.steps) == len(decay.steps) else f"; by 10^{-decay.total:.1f} over all blocks measured"
    first = span.first if span.first == decay.first else span.first + 1
    yield Finding(
        rule=RULE,
        severity=severity,
        status="fired",
        claim=(
            f"From {names[span.last]} back to {names[span.first]} the gradient grows by a factor of {span.value:.4g} "
            f"per block ({span.interval(4)}), by 10^{-span.total:.1f} in all{whole}.{cause}"
        ),
        where={"first": names[first], "last": names[span.last]},
        evidence={
            "gradient_decay_per_block": span.told(),
            **decay.decades_of(span),
            "explained_by": "theory" if span.agrees(AGREEMENT) else None,
            "tests": {
                "loss_after_first_step": tested,
                "first_step_beside_weights": ratios,
                "longer_training": "not made",
            },
        },
        consequence=_consequence(facts, overflown, ratios),
        falsify=(
            "Train some hundred steps at this learning rate: if the loss falls as it does at half "
            "the depth, no harm follows."
        ),
        remedies=repairs(trace, span.value),
        source=SOURCE,
    )


def _consequence(facts: Facts, overflown: bool, ratios: Mapping[str, float]) -> str:
    step = f"The first step of {facts.optimizer} at lr {facts.lr:g}" if facts.lr is not None else "A step"
    if overflown:
        return f"{step} leaves numbers that are not finite: there is no second step."
    before, after = facts.loss_value, facts.loss_after
    if before is not None and after is not None and after > BLOW_UP * abs(max(before, facts.loss_constant or 0.0)):
        return f"{step} takes the loss from {before:.4g} to {after:.4g}; training may recover from it, or not."
    large = {site: ratio for site, ratio in ratios.items() if ratio >= REPLACED}
    if large:
        site, ratio = next(iter(large.items()))
        return f"{step} moves the weights of {site} by {ratio:.3g} times their own size: what they held is gone."
    return (
        "One learning rate does not fit the first and the last layers; warm-up, clipping or an optimizer that rescales "
        "gradients may hide it."
    )


def _beside_weights(trace: Trace, grown: range) -> dict[str, float]:
    """Return the first step's size beside the weights, for the first blocks that get a grown gradient."""
    ratio = trace["update_ratio"].nanmean(0)
    ratios = {trace.sites[i].name: float(ratio[i]) for i in grown if math.isfinite(float(ratio[i]))}
    return dict(list(ratios.items())[:5])


def _overflown(trace: Trace, facts: Facts) -> tuple[bool, dict[str, Any] | str]:
    """Return whether the gradient, the step, or the loss on the same batch after it is not finite."""
    if facts.loss_value is None or facts.loss_after is None:
        return False, "not made: there was no loss, or no step"
    step = bool(torch.isinf(trace["update_ratio"]).any())
    finite = math.isfinite(facts.loss_value) and math.isfinite(facts.loss_after)
    return step or not finite, {
        "loss_before": facts.loss_value,
        "loss_after": facts.loss_after,
        "step_overflows": step,
        "optimizer": facts.optimizer,
        "lr": facts.lr,
    }
