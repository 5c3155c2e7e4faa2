"""A softmax before a loss that takes one itself: the loss cannot fall, and its gradient is small."""

from __future__ import annotations

import math
from collections.abc import Iterable

from levada.diagnose.facts import facts_of
from levada.diagnose.finding import Finding, Proposal, Severity
from levada.probe.trace import Trace

__all__ = ["double_softmax"]

RULE = "double_softmax"
# The loss of the best distributions, beside what the second softmax makes of them.
AGREEMENT = 0.01
# What takes its own softmax does not see a number that is added to all outputs of a row.
UNSEEN = 1e-3
SOURCE = "softmax of a one-hot distribution has e / (e + C - 1) at its largest"


def double_softmax(trace: Trace) -> Iterable[Finding]:
    """The model returns probabilities, and the loss takes a softmax of them again.

    An error needs outputs of which every row is a distribution, a loss that does not change when a number is added to
    all outputs of a row, as only a softmax inside it explains, and a loss that stays at ln(1 + (C - 1)/e) for outputs
    that are certain and right, where large logits give next to nothing. Log-probabilities are harmless: a second
    log-softmax leaves them as they are.

    Args:
        trace: of one check, or of a run.
    """
    told = facts_of(trace).objective
    if told is None or not told.sums_to_one or told.shift is None or told.floor is None or told.classes < 2:
        return
    if abs(told.shift) > UNSEEN:
        return
    floor = math.log1p((told.classes - 1) / math.e)
    agrees = abs(told.floor - floor) <= AGREEMENT * floor
    lower = told.floor_of_logits is not None and told.floor_of_logits < 0.5 * told.floor
    severity: Severity = "error" if agrees and lower else "warn"
    last = trace.names()[-1]
    yield Finding(
        rule=RULE,
        severity=severity,
        status="fired",
        claim=(
            f"The outputs are probabilities of {told.classes} classes, and the loss takes a softmax of them again: "
            f"right and certain outputs give {told.floor:.4g}, and nothing gives less."
        ),
        where={"first": last, "last": last},
        evidence={
            "floor_of_the_loss": {"value": told.floor, "predicted": floor},
            "reference": "ln(1 + (C - 1)/e), the cross-entropy of a one-hot distribution given as logits",
            "explained_by": "theory" if agrees else None,
            "tests": {"loss_when_1_is_added": told.shift, "loss_of_large_logits": told.floor_of_logits},
        },
        consequence="The loss cannot fall below that, its gradient is small, and certain answers are punished.",
        falsify="Add a number to all outputs of a row: if the loss changes, it takes no softmax itself.",
        remedies=(
            Proposal(
                "remove the softmax",
                "# return the logits, and take softmax(logits, -1) only where probabilities are wanted",
                {"least_loss": told.floor},
                {"least_loss": told.floor_of_logits},
            ),
        ),
        source=SOURCE,
    )
