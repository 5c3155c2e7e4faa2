"""Batches whose rows are all the same one, of which nothing can be learned but a constant."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from levada.diagnose.finding import Finding, Proposal
from levada.watching.verdict.rules.depth import RISEN
from levada.watching.verdict.view import View

__all__ = ["constant_inputs"]

LOOK: Final = Proposal(
    "look at the data",
    "print((batch == batch[:1]).all(), batch.unique().numel())  # right before the model is called",
)


def constant_inputs(view: View) -> Iterable[Finding]:
    """All rows of a batch are the same one, on samples with 128 rows or more in a row, against the run's own habit.

    It is a warning where the loss says the same: it is that of a prediction that is the same for every input, or rows
    differed before and it has given back a quarter of what was learned. Else it is information if rows differed
    before, or if nothing was learned; and nothing where the loss falls all the same, as the first dimension may be
    time, the model may know its inputs by another way, or draw them.
    """
    rows, loss = view.inputs, view.loss
    if not rows.sure or rows.since is None:
        return
    no_better = loss.no_better
    changed = rows.differed is not None
    suffers = no_better or (changed and view.given_back >= RISEN)
    if not (suffers or changed or view.nothing_learned):
        return
    before = f"; up to step {rows.differed} they differed" if changed else ""
    stands = f"is not clearly below that of a prediction that is the same for every input, {loss.constant:.4g}"
    was = f"was {loss.best:.4g} at its best" if changed else f"began at {loss.start:.4g}"
    yield Finding(
        rule="constant_inputs",
        severity="warn" if suffers else "info",
        status="fired",
        claim=(
            f"All {rows.count} rows of what the model is given are the same one, on every sampled step from "
            f"{rows.since} on{before}. The loss, {loss.now:.4g}, {stands if no_better else was}."
        ),
        where={},
        evidence={
            "rows": rows.count,
            "first_sampled": rows.since,
            "last_that_differed": rows.differed,
            "constant_loss": loss.constant,
            "reference": "rows of a batch that differ",
            "explained_by": "theory" if no_better else "baseline" if changed else None,
            "tests": {"loss": {"start": loss.start, "best": loss.best, "now": loss.now}},
        },
        consequence="Nothing tells one input from another: what can be learned is a constant, and not more.",
        falsify="Compare the rows of a batch right before the model is called: two that differ show this wrong.",
        remedies=(LOOK,),
        source="a function has one value at one argument; the best constant has the entropy, or variance, of targets",
    )
