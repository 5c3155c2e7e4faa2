"""Training in evaluation mode, or evaluation in training mode, where dropout or batch normalisation make it matter."""

from __future__ import annotations

import math
from collections.abc import Iterable

from levada.diagnose.facts import facts_of
from levada.diagnose.finding import Finding, Proposal, Severity
from levada.diagnose.surroundings import Mode
from levada.probe.trace import Trace

__all__ = ["train_mode"]

RULE = "train_mode"
# The output differs by a tenth of itself: another function, and not another estimate of the same.
ANOTHER = 0.1
_UNTESTED = {"change_of_output": "not made"}
SOURCE = "torch.nn.Module.train: batch normalisation and dropout act by mode"


def train_mode(trace: Trace) -> Iterable[Finding]:
    """The model holds dropout or batch normalisation and is in evaluation mode, or is evaluated in training mode.

    Whether a model is about to be trained is not known from a check: evaluation mode is a warning where batch
    normalisation that learns would normalise by running statistics and the output in training mode differs by a tenth
    of itself, and information otherwise, as for a part of the model alone. In a run, steps of the optimizer made in
    evaluation mode are a warning, and passes without gradients in training mode are information: both may be meant.

    Args:
        trace: of one check, or of a run.
    """
    mode = facts_of(trace).mode
    if mode is not None:
        yield from _before(trace, mode)
        return
    yield from _during(trace)


def _before(trace: Trace, mode: Mode) -> Iterable[Finding]:
    if not mode.evaluating:
        return
    first = mode.evaluating[0]
    count = len(mode.evaluating)
    whole = not mode.training
    another = mode.change is not None and mode.change > ANOTHER
    severity: Severity = "warn" if whole and mode.batch_norms and another else "info"
    if not whole and not mode.batch_norms:
        return  # batch normalisation that is frozen, and dropout that somebody switched off
    subject = "The model is" if whole else f"The model is in training mode and {first} is"
    change = (
        f"; in training mode the output differs by {mode.change:.2g} of its size" if mode.change is not None else ""
    )
    yield Finding(
        rule=RULE,
        severity=severity,
        status="fired",
        claim=(
            f"{subject} in evaluation mode, with {count} modules that act differently in training, {first} first"
            f"{change}."
        ),
        where=_where(trace, first),
        evidence={
            "modules": list(mode.evaluating[:20]),
            "batch_normalisations_that_learn": len(mode.batch_norms),
            "tests": {"change_of_output": _number(mode.change)},
        },
        consequence=(
            "Batch normalisation does not normalise the batch, and its running statistics are never updated."
            if mode.batch_norms
            else "Dropout does nothing."
        ),
        falsify="If it is meant to be evaluated, or fine-tuned so, nothing is wrong.",
        remedies=(Proposal("train", "model.train()  # before the training loop, and again after each evaluation"),),
        source=SOURCE,
    )


def _during(trace: Trace) -> Iterable[Finding]:
    acting = tuple(trace.context.get("acting") or ())
    modes = trace.context.get("training")
    if not acting or not isinstance(modes, tuple | list) or not modes:
        return
    wrong = sum(not training for training in modes)
    if wrong:
        yield Finding(
            rule=RULE,
            severity="warn",
            status="fired",
            claim=f"{wrong} of {len(modes)} sampled steps began in evaluation mode, with {acting[0]} in the model.",
            where=_where(trace, acting[0]),
            evidence={
                "steps": wrong,
                "of": len(modes),
                "modules": list(acting[:20]),
                "tests": _UNTESTED,
            },
            consequence="Dropout does nothing, and batch normalisation uses statistics that nothing updates.",
            falsify="If it is fine-tuned so on purpose, nothing is wrong.",
            remedies=(Proposal("train", "model.train()  # after each evaluation"),),
            source=SOURCE,
        )
    evaluated = int(trace.context.get("evaluated_in_training", 0))
    if evaluated:
        yield Finding(
            rule=RULE,
            severity="info",
            status="fired",
            claim=f"{evaluated} passes without gradients were made in training mode, with {acting[0]} in the model.",
            where=_where(trace, acting[0]),
            evidence={"passes": evaluated, "modules": list(acting[:20]), "tests": _UNTESTED},
            consequence="In an evaluation dropout was on, and what was evaluated changed the running statistics.",
            falsify="If they update running statistics, or sample dropout, on purpose, nothing is wrong.",
            remedies=(Proposal("eval", "model.eval()  # before evaluation, and model.train() after it"),),
            source=SOURCE,
        )


def _where(trace: Trace, module: str) -> dict[str, str]:
    """Return the block of a module that may be no block itself: the first whose name it is, or that is inside it."""
    names = list(trace.names())
    near = [n for n in names if n == module or module.startswith(f"{n}.") or n.startswith(f"{module}.")]
    place = near[0] if near else names[0]
    return {"first": place, "last": place}


def _number(value: float | None) -> float | str:
    return value if value is not None and math.isfinite(value) else "not made"
