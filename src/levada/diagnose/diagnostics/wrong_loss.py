"""A loss that does not look at the model, is constant, or is compared with targets that do not fit it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
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
# What a bounded last function leaves, over ln C: this much is an error, and less than the second is no matter.
HIGH, LOW = 0.25, 0.1
# Share of rows whose right class gets no gradient through a ReLU.
SILENCED = 0.25
SOURCE = "the definition of the losses of torch.nn"


def wrong_loss(trace: Trace) -> Iterable[Finding]:
    """The loss does not depend on the model, is constant, or compares outputs with targets that do not fit.

    Each case is tested on the loss alone, with outputs put in by hand. Errors: a loss without a graph to the outputs;
    one that is the same for all outputs; a squared or absolute error over all pairs of outputs and targets, as shapes
    that broadcast make it; a negative log-likelihood of what are no log-probabilities, which falls without end when a
    number is added to the outputs; a binary cross-entropy with targets outside [0, 1], which falls without end too; and
    targets of which most are out of reach of the last activation, if coming as close as it can leaves most of the loss;
    a softmax across another dimension than the classes; a bounded function before a softmax, if its range leaves a
    floor of a quarter of ln C; and a ReLU before a softmax behind which a class is at zero in every row. Warnings: a
    loss that falls without end the more wrong the answers are, since ascent may be meant; another sum over the outputs
    that is the same whichever row a target stands in; several classes at once in a cross-entropy, fewer targets out of
    reach, a lower floor, other logits at zero, and outputs that are all compared with the number of the class.

    Args:
        trace: of one check, or of a run.
    """
    facts = facts_of(trace)
    told = facts.objective
    if told is None:
        return
    for case in _CASES:
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
    if told.broadcast is None or not told.crosstalk or told.pairs is None:
        return None
    outputs, targets = told.broadcast
    return (
        "error" if told.pairs else "warn",
        f"Outputs of shape {outputs} and targets of shape {targets} are broadcast: every output is compared with every "
        "target.",
        "The best that can be learned is the mean of the targets.",
        {
            "tests": {
                "gradient_of_a_row_when_another_target_changes": "changes",
                "error_over_all_pairs": told.pairs or "another",
            }
        },
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


def _falling(told: Objective, facts: Facts) -> _Case:
    found = told.answers.falling
    if found is None:
        return None
    return (
        "warn",
        f"The loss {facts.loss} is {found.right:.4g} for right outputs, {found.wrong:.4g} for wrong ones and "
        f"{found.far:.4g} for outputs ten times as wrong: it falls without end, as one of the wrong sign does, or one "
        "by which ascent is meant (unlearning, an adversary, rewards that are all negative).",
        "The model learns to be as wrong as it can.",
        {"tests": {"loss_of_right_wrong_far_wrong": [found.right, found.wrong, found.far], "each_row": "alike"}},
    )


def _unpaired(told: Objective, facts: Facts) -> _Case:
    if told.answers.unpaired is None:
        return None
    own, mean = told.answers.unpaired
    kind = told.answers.pairs
    what = f"it is the {kind} error of every output to every" if kind else "every output is compared with every"
    return (
        "error" if kind else "warn",
        f"The loss {facts.loss} is the same whichever row a target stands in: {what} "
        f"target. Outputs that equal their targets give {own:.4g}, the mean of the targets for every row {mean:.4g}.",
        "The best that can be learned is the mean of the targets, or what else stands for all of them.",
        {
            "tests": {
                "loss_when_targets_change_rows": "the same",
                "loss_of_targets_and_of_their_mean": [own, mean],
                "error_over_all_pairs": kind or "another",
            }
        },
    )


def _numbers(told: Objective, facts: Facts) -> _Case:
    if told.answers.numbers is None:
        return None
    best, here = told.answers.numbers
    return (
        "warn",
        f"The loss {facts.loss} does not say which output belongs to which class: it is the same when the "
        f"{told.classes} outputs change places, and {best:.4g} of {here:.4g} if all equal the number of the class.",
        "The outputs learn a number in place of a class, and classes whose numbers are close are taken for alike.",
        {"tests": {"loss_when_outputs_change_places": "the same", "loss_of_the_number": best, "loss": here}},
    )


def _across(told: Objective, facts: Facts) -> _Case:
    if told.answers.across is None or told.answers.floor_across is None:
        return None
    floor, predicted = told.answers.floor_across
    if predicted <= SUMS or abs(floor - predicted) > AGREEMENT * predicted:
        return None
    return (
        "error",
        f"The loss {facts.loss} takes its softmax across dimension {told.answers.across} of the outputs, not across "
        f"the classes: certain and right outputs give {floor:.4g}, the mean of ln n for a class that stands there n "
        "times.",
        "Rows compete for a class in place of classes for a row, and how likely a class is cannot be learned.",
        {"floor": floor, "predicted": predicted, "tests": {"loss_when_all_rows_change_alike": "the same"}},
    )


def _confined(told: Objective, facts: Facts) -> _Case:
    found = told.answers.confined
    if found is None or told.sums_to_one or found.free > 0.5 * found.floor:
        return None
    share = found.floor / math.log(told.classes)
    if share < LOW:
        return None
    agrees = abs(found.floor - found.predicted) <= SUMS * found.predicted
    return (
        "error" if agrees and share >= HIGH else "warn",
        "The outputs pass a function whose range is bounded, and the loss takes a softmax of them: the best outputs in "
        f"that range give {found.floor:.4g}, large logits {found.free:.4g}, and equal ones "
        f"{math.log(told.classes):.4g}.",
        "The loss cannot fall below that, and its gradient vanishes on the way there.",
        {
            "floor_of_the_loss": {"value": found.floor, "predicted": found.predicted},
            "tests": {"loss_of_large_logits": found.free},
        },
    )


def _rectified(told: Objective, facts: Facts) -> _Case:
    found = told.answers
    if not found.dead and found.silenced < SILENCED:
        return None
    sure = found.raised is not None and found.raised < 0
    dead = f"; {len(found.dead)} of {told.classes} classes are there in every row" if found.dead else ""
    return (
        "error" if sure else "warn",
        f"The outputs pass a ReLU, and the loss takes a softmax of them: the right class is at zero in "
        f"{found.silenced:.0%} of the rows{dead}.",
        "No gradient passes there that would raise the right class.",
        {
            "right_class_at_zero": found.silenced,
            "classes": list(found.dead),
            "tests": {"loss_if_those_are_raised": found.raised},
        },
    )


_CASES: tuple[Callable[[Objective, Facts], _Case], ...] = (
    _detached,
    _constant,
    _broadcast,
    _likelihood,
    _falling,
    _unpaired,
    _across,
    _numbers,
    _outside,
    _several,
    _unreachable,
    _confined,
    _rectified,
)
