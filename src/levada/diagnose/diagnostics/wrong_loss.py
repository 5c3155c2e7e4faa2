"""A loss that does not look at the model, is constant, or is compared with targets that do not fit it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from levada.diagnose.facts import Facts, facts_of
from levada.diagnose.finding import Finding, Severity
from levada.diagnose.objective import Objective
from levada.probe.trace import Trace

__all__ = ["wrong_loss"]

RULE = "wrong_loss"
# Share of targets that the output cannot reach: below it, they may be errors in the data.
UNREACHABLE, MOSTLY = 0.1, 0.5
# A likelihood falls by exactly what is added to its log-probabilities.
AGREEMENT = 1e-3
# Roundings of half precision in a sum of probabilities.
SUMS = 1e-2
SOURCE = "the definition of the losses of torch.nn"


def wrong_loss(trace: Trace) -> Iterable[Finding]:
    """The loss does not depend on the model, is constant, or compares outputs with targets that do not fit.

    Each case is tested on the loss alone, with outputs put in by hand. Errors: a loss without a graph to the outputs;
    one that is the same for all outputs; shapes that broadcast so that a row's gradient depends on another row's
    target; a negative log-likelihood of what are no log-probabilities, which falls without end when a number is added
    to the outputs; a binary cross-entropy with targets outside [0, 1], which falls without end too; and targets of
    which most are out of reach of the last activation, if coming as close as it can leaves most of the loss. Several
    classes at once in a cross-entropy, and fewer targets out of reach, are warnings.

    Args:
        trace: of one check, or of a run.
    """
    facts = facts_of(trace)
    told = facts.objective
    if told is None:
        return
    for case in (_detached, _constant, _broadcast, _likelihood, _outside, _several, _unreachable):
        found = case(told, facts)
        if found is not None:
            severity, claim, consequence, evidence = found
            last = trace.names()[-1]
            yield Finding(
                rule=RULE,
                severity=severity,
                status="fired",
                claim=claim,
                where={"first": last, "last": last},
                evidence={"loss": facts.loss_value, "explained_by": "theory", **evidence},
                consequence=consequence,
                falsify="Call the loss on these outputs and targets by hand, and on others.",
                source=SOURCE,
            )
            return


_Case = tuple[Severity, str, str, Mapping[str, Any]] | None


def _detached(told: Objective, facts: Facts) -> _Case:
    if told.attached is not False:
        return None
    still = " and is the same for other outputs" if told.moves is False else ""
    return (
        "error",
        f"The loss {facts.loss} has no graph to the model's outputs, which have one{still}.",
        "No parameter gets a gradient: nothing is learned.",
        {"tests": {"loss.requires_grad": False, "loss_of_other_outputs": _words(told.moves)}},
    )


def _constant(told: Objective, facts: Facts) -> _Case:
    if told.moves is not False:
        return None
    one = " There is one class: its probability is 1, whatever the output." if told.classes == 1 else ""
    return (
        "error",
        f"The loss {facts.loss} is {facts.loss_value:.4g} for these outputs and for any others.{one}",
        "Its gradient is zero everywhere: nothing is learned.",
        {"tests": {"loss_of_other_outputs": "the same"}},
    )


def _words(moves: bool | None) -> str:
    return "not made" if moves is None else "differs" if moves else "the same"


def _broadcast(told: Objective, facts: Facts) -> _Case:
    if told.broadcast is None or not told.crosstalk:
        return None
    outputs, targets = told.broadcast
    return (
        "error",
        f"Outputs of shape {outputs} and targets of shape {targets} are broadcast: every output is compared with every "
        "target.",
        "The best that can be learned is the mean of the targets.",
        {"tests": {"gradient_of_a_row_when_another_target_changes": "changes"}},
    )


def _likelihood(told: Objective, facts: Facts) -> _Case:
    if told.shift is None or told.normaliser is None or told.classes < 2 or not told.reads_targets:
        return None
    if abs(told.shift + 1) > AGREEMENT or told.normaliser < SUMS:
        return None
    what = "probabilities" if told.sums_to_one else "outputs that are no log-probabilities"
    return (
        "error",
        f"The loss {facts.loss} is a negative log-likelihood and is given {what}: the log of their sum is "
        f"{told.normaliser:.3g}, not 0, and adding 1 to all outputs lowers the loss by {-told.shift:.4g}.",
        "The loss falls without end by raising all outputs alike, and no class is told from another.",
        {"normaliser": told.normaliser, "tests": {"loss_when_1_is_added": told.shift}},
    )


def _outside(told: Objective, facts: Facts) -> _Case:
    if not told.below or facts.loss not in ("binary_cross_entropy_with_logits", "BCEWithLogitsLoss"):
        return None
    endless = told.loss_extreme is not None and told.loss_extreme < 0
    return (
        "error" if endless else "warn",
        f"{told.below:.0%} of the targets of {facts.loss} are outside [0, 1].",
        "The loss falls without end as the outputs grow.",
        {"targets_outside": told.below, "tests": {"loss_of_large_outputs": told.loss_extreme}},
    )


def _several(told: Objective, facts: Facts) -> _Case:
    named = facts.loss in ("cross_entropy", "CrossEntropyLoss")
    if not named or told.row_sums is None or told.row_sums <= SUMS or told.below:
        return None
    return (
        "warn",
        f"The targets of {facts.loss} are floating and a row of them is {told.row_sums:.3g} away from a sum of 1: they "
        "are no distributions over the classes.",
        "Classes that are not exclusive compete: binary_cross_entropy_with_logits takes several at once.",
        {"row_sums": told.row_sums, "tests": {"training": "not made"}},
    )


def _unreachable(told: Objective, facts: Facts) -> _Case:
    if told.outside < UNREACHABLE or told.loss_within is None or facts.loss_value is None:
        return None
    most = told.outside >= MOSTLY and told.loss_within >= MOSTLY * facts.loss_value > 0
    low, high = told.reach
    return (
        "error" if most else "warn",
        f"{told.outside:.0%} of the targets are outside of what {told.produced_by} can return, {low:g} to {high:g}: "
        f"coming as close as it can leaves a loss of {told.loss_within:.4g} of {facts.loss_value:.4g}.",
        "Those targets cannot be learned: the last activation is driven to its end instead.",
        {"targets_outside": told.outside, "tests": {"loss_of_the_nearest_outputs": told.loss_within}},
    )
