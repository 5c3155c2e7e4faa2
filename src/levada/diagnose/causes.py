"""What a remedy is to answer: rules that fired in a check, and what a short training of the model as it is shows."""

from __future__ import annotations

import math

import torch

from levada.diagnose.course import Course
from levada.diagnose.loss import main_output
from levada.diagnose.remedies import Subject
from levada.diagnose.remedies.computation import gives_probabilities, takes_sigmoid
from levada.diagnose.report import Report
from levada.diagnose.verify import NOTICEABLE

__all__ = ["causes", "errors", "fired"]

# A loss that is ever this many times as large as at the start, or as that of outputs of zero, was thrown out.
THROWN = 3.0


def errors(report: Report) -> set[str]:
    """Return the rules that fired as an error.

    Args:
        report: of a check.
    """
    return {f.rule for f in report.findings if f.status == "fired" and f.severity == "error"}


def fired(report: Report) -> list[str]:
    """Return the rules that fired as an error or a warning, in causal order.

    Args:
        report: of a check.
    """
    return [f.rule for f in report.findings if f.status == "fired" and f.severity != "info"]


def causes(report: Report, course: Course, subject: Subject, floor: float) -> tuple[str, ...]:
    """Return the rules that fired, and what training the model as it is shows, in causal order.

    Args:
        report: the check of the model as it is.
        course: how it trains.
        subject: the model, and what it is run on.
        floor: the loss of outputs of zero; 0 if not known.
    """
    found = fired(report)
    if subject.facts.loss in ("cross_entropy", "CrossEntropyLoss"):
        with torch.no_grad():
            batch = subject.batches[0]
            outputs = subject.model(*batch.args, **batch.kwargs)
        if gives_probabilities(main_output(outputs)):
            found.append("double_softmax")
    if takes_sigmoid(subject):
        found.append("wrong_loss")
    size = max(abs(course.start), floor)
    thrown = max(course.losses) > THROWN * size and course.end > size / 2  # and did not come back
    if not math.isfinite(course.end) or thrown or course.end - course.start > NOTICEABLE * size:
        found.append("learning_rate_too_high")
    # To fall to the loss of outputs of zero is to unlearn a scale: nothing about the data was learned.
    reached = min(course.start, floor) if floor else course.start
    if abs(course.start) >= NOTICEABLE * floor and not reached - course.end > NOTICEABLE * abs(reached):
        found.append("no_progress")
    return tuple(dict.fromkeys(found))
