"""Targets that do not follow from the inputs beside which they stand."""

from __future__ import annotations

from collections.abc import Iterable

from levada.diagnose.facts import facts_of
from levada.diagnose.finding import Finding
from levada.diagnose.pairing import CHANCE, Pairing
from levada.diagnose.trials import STEPS
from levada.probe.trace import Trace

__all__ = ["mispaired_targets"]

RULE = "mispaired_targets"
SOURCE = (
    "Székely, Rizzo and Bakirov 2007, arXiv 0803.4101 (distance covariance); Zhang et al. 2017, arXiv 1611.03530 (nets "
    "that learn random labels by heart)"
)


def mispaired_targets(trace: Trace) -> Iterable[Finding]:
    """Inputs and targets of several batches show no relation, where one would have been found.

    It looks at up to 256 rows, and is silent as soon as one of the distance covariances of inputs, as they
    are or standardised, and targets is as large in one of 999 permutations of twenty. Then it needs one of two things.
    Either the targets fit the inputs in another order: those of the batch or the row before or after, of the other end
    of the batch, or, where targets are what other inputs hold, of the row that holds them. If after 60 steps a batch
    that was held out is told from permuted targets in that order, and not in the order given, this is an error; of a
    batch or row before or after it is a warning, because a series in order looks alike. Or a relation would have been
    found: one that is planted in half of the rows is, along each of the three directions in which inputs differ most,
    and the model learns one from as many rows, while it learns nothing of the targets as they are on two held-out
    batches. Then it is a warning: a relation that is harder to see, or data drawn at random to try a model, look the
    same. Rows that tell of others or hold what these are asked for, as windows of a series do, inputs that differ in
    all directions alike, indices, and fewer than 48 rows are passed over.

    Args:
        trace: of one check, or of a run.
    """
    found = facts_of(trace).pairing
    if found is None or found.doubt:
        return
    # What the model learns as it is given needs no other order.
    if (found.held and min(found.held) <= CHANCE) or not (found.order or found.learned):
        return
    names = trace.names()
    yield Finding(
        rule=RULE,
        severity="error" if found.order and found.learned and not _beside(found) else "warn",
        status="fired",
        claim=_claim(found),
        where={"first": names[0], "last": names[-1]},
        evidence={
            "chance_of_relation": found.chance,
            "reference": f"at most {CHANCE:g} where targets follow from inputs",
            "order": found.order or None,
            "explained_by": "place" if found.order else None,
            "tests": {
                "chance_in_that_order": found.fits if found.order else "no order was found",
                "chance_where_planted": list(found.planted) if found.planted else "not made",
                "chance_held_out": list(found.held) if found.held else "not made",
                "chance_held_out_control": list(found.control) if found.control else "not made",
            },
        },
        consequence="The model can learn its batches by heart, and nothing that holds for others.",
        falsify=(
            "Look at some rows beside their targets; or train on some batches and compare with others."
            + (
                " If rows are a series in order, the next may hold what this one is asked for."
                if _beside(found)
                else ""
            )
        ),
        source=SOURCE,
    )


def _beside(found: Pairing) -> bool:
    """Whether the order is that of a series, whose next row may hold what this one is asked for."""
    return found.order.endswith(("after", "before"))


def _claim(found: Pairing) -> str:
    told = (
        f"In {found.rows} rows the targets have no relation to the inputs: permuted ones have as much of one with a "
        f"chance of {found.chance:.2g}"
    )
    if found.order:
        told += f". They fit the inputs of {found.order}, where that chance is at most {found.fits:.2g}"
    elif found.planted:
        told += f", and of {max(found.planted):.2g} at most where half of them are made to follow from the inputs"
    if found.learned:
        what = "in that order" if found.order else "made to follow from the inputs"
        told += (
            f". After {STEPS} steps on other batches the loss of a held-out one is as low for permuted targets with a "
            f"chance of {min(found.held):.2g}, and of {max(found.control):.2g} with targets {what}"
        )
    return f"{told}."
