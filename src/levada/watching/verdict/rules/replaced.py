"""Steps that are many times as large as the weights, and leave nothing of what these were drawn for."""

from __future__ import annotations

from typing import Final

from levada.diagnose.finding import Finding, Proposal
from levada.watching.verdict.overshot import lower_rate, rate_proposal
from levada.watching.verdict.view import View, values_of

__all__ = ["DESCENT", "lower", "replaced"]

TIMES: Final = 10.0  # of the weights: a rate in use moves them by about a thousandth, and what is drawn small by more
HIGH: Final = 10.0  # times its start at which a loss is lost, whatever scatters
LEARNED: Final = 0.05  # share of its start, or of what a constant prediction has, by which a loss is lower

DESCENT: Final = (
    "the descent lemma: a step short beside the curvature lowers the loss; Cohen et al. 2021, arXiv 2103.00065"
)


def lower(view: View, moved: float) -> tuple[Proposal, ...]:
    """Return the rate to train at instead, if one is known.

    Args:
        view: the sampled step.
        moved: by how much of themselves a step moved the weights.
    """
    return (rate_proposal(view.lr, lower_rate(view.lr, moved)),) if view.lr > 0 else ()


def replaced(view: View, most: float) -> Finding | None:
    """Return what tells that a step replaced the weights, while the loss is no lower for it; None if none did.

    It is information: weights that were drawn near zero on purpose are moved so far, too, and learn. Once the losses
    tell what is usual it is a warning where it shows what came of it: no gradient reaches most of the blocks, exactly,
    or the loss is ten times that of the start.

    Args:
        view: the sampled step.
        most: the longest step of the run, of the median block.
    """
    loss, sites = view.loss, view.sites
    # Zeros have the loss of a constant, below which one that began above it has not learned.
    learned = loss.learned > LEARNED * abs(loss.start) and not loss.best > (1 - LEARNED) * loss.constant
    if not most >= TIMES or not loss.steps or learned:
        return None
    trained = view.blocks.trainable
    cut = int((trained & (values_of(view.rows[-1], "weight_gradient_rms", sites) == 0)).sum())
    dark, high = 2 * cut > int(trained.sum()), loss.start > 0 and min(loss.now, loss.recent) >= HIGH * loss.start
    names, told = (
        view.blocks.names,
        f"the loss is {loss.now:.4g} after {loss.steps} steps, and began at {loss.first:.4g}",
    )
    if dark:
        told += f"; the gradient of {cut} of {int(trained.sum())} blocks is exactly zero"
    return Finding(
        rule="learning_rate_too_high",
        severity="warn" if loss.ready and (dark or high) else "info",
        status="fired",
        claim=(
            f"A step moved the weights of the median block by {most:.2g} of themselves, which leaves nothing of what "
            f"they were drawn for: {told}."
        ),
        where={"first": names[0], "last": names[-1]},
        evidence={
            "longest": most,
            "lr": view.lr,
            "without_a_gradient": cut,
            "reference": "about 1e-3 of the weights per step",
            "explained_by": "theory",
            "tests": {"loss": {"first": loss.first, "now": loss.now, "best": loss.best}},
        },
        consequence="The model is another one than was initialised, and may have no gradient to learn by.",
        falsify="Train from the start at a tenth of the rate: if the loss stays there too, this is wrong.",
        remedies=lower(view, most),
        source=DESCENT,
    )
