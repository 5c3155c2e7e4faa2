"""Inputs of a size, or with a mean, that a first layer is not drawn for."""

from __future__ import annotations

import math
from collections.abc import Iterable

from levada.diagnose.facts import Facts, facts_of
from levada.diagnose.finding import Finding, Proposal, Severity
from levada.diagnose.rates import LARGE, OFF_CENTRE, SMALL
from levada.diagnose.surroundings import InputScale
from levada.probe.trace import Trace

__all__ = ["unscaled_input"]

RULE = "unscaled_input"
# Ten steps gain this share of what they gain on standardised inputs, or less.
BEHIND = 0.5
# A course that falls this many times as far as on standardised inputs is evidence against the rule.
AHEAD = 2.0
# Standardised inputs gain at least this share of the loss, so that there is something to be behind.
WORTH = 0.02
SOURCE = "LeCun et al. 1998, Efficient BackProp; Glorot and Bengio 2010: inputs of mean 0 and variance 1"


def unscaled_input(trace: Trace) -> Iterable[Finding]:
    """The inputs are far from mean 0 and variance 1, for which the first layer's weights are drawn.

    It speaks of floating inputs that a linear map or a convolution reads first, with a root mean square above 10 or
    below 1/1000, or a mean of ten times what the features vary by. An error needs that ten steps from the same weights
    leave the loss above its start, or gain less than half of what they gain where every feature is standardised, and
    end above it; or that they end in no number, and those on standardised inputs gain. It is information if no step
    raises the loss and it falls by twice as much as on standardised inputs. Where a normalisation follows the first
    layer, only that test makes it a warning.

    Args:
        trace: of one check, or of a run.
    """
    facts = facts_of(trace)
    found = facts.inputs
    if found is None:
        return
    wrong = _wrong(found)
    if not wrong:
        return
    harmed, tested = _harmed(facts)
    if found.normalised and not harmed:
        return
    ahead = not harmed and _ahead(facts)
    severity: Severity = "info" if ahead else "error" if harmed and not found.normalised else "warn"
    first = trace.names()[0]
    told = ", ".join(wrong)
    yield Finding(
        rule=RULE,
        severity=severity,
        status="fired",
        claim=f"The inputs that {found.reader or first} reads {told}; its weights are drawn for mean 0, variance 1.",
        where={"first": first, "last": first},
        evidence={
            "input_rms": found.rms,
            "input_mean": found.mean,
            "input_deviation": found.deviation,
            "largest_feature_over_smallest": found.features,
            "reference": "mean 0, variance 1",
            "explained_by": "theory",
            "tests": {"steps_on_standardised_inputs": tested},
        },
        consequence="None in ten steps: they gain more than on standardised inputs." if ahead else _consequence(found),
        falsify="Train twice from the same weights, once with standardised inputs: if that is no better, it is wrong.",
        remedies=(
            Proposal(
                "standardise",
                "mean, deviation = inputs.mean(0), inputs.std(0)   # of the training set\n"
                "inputs = (inputs - mean) / deviation.clamp_min(1e-6)",
                {"input_rms": found.rms},
                {"input_rms": 1.0},
            ),
        ),
        source=SOURCE,
    )


def _wrong(found: InputScale) -> list[str]:
    wrong = []
    if found.rms > LARGE:
        wrong.append(f"have a root mean square of {found.rms:.3g}")
    if 0 < found.rms < SMALL:
        wrong.append(f"have a root mean square of {found.rms:.3g}")
    if found.deviation > 0 and abs(found.mean) > OFF_CENTRE * found.deviation:
        wrong.append(f"have a mean of {found.mean:.3g} and vary by {found.deviation:.3g}")
    return wrong


def _harmed(facts: Facts) -> tuple[bool, object]:
    raw, plain = facts.courses.get("lr"), facts.courses.get("standardised")
    if raw is None or plain is None:
        return False, "not made"
    worth = plain.gain > (WORTH * abs(plain.losses[0]) if math.isfinite(raw.end) else 0.0)
    behind = raw.gain < BEHIND * plain.gain and raw.end > plain.end
    return worth and behind, {"loss": list(raw.losses), "loss_standardised": list(plain.losses)}


def _ahead(facts: Facts) -> bool:
    raw, plain = facts.courses.get("lr"), facts.courses.get("standardised")
    if raw is None or plain is None or max(raw.losses) > raw.losses[0]:
        return False
    return plain.losses[0] - raw.end > max(0.0, AHEAD * plain.gain)  # a loss too large at first is no merit


def _consequence(found: InputScale) -> str:
    if found.rms > LARGE:
        return "What the first layer returns is as much too large: activations saturate, and steps overshoot."
    if found.rms < SMALL:
        return "What the first layer returns is its bias: inputs are hardly told apart, and its weights hardly learn."
    return "The first layer sees the mean, and the differences between inputs as a small ripple on it."
