"""What the ledger of a run hears of its loss: spikes, that it is far above its lowest, and that its sign is odd."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

from levada.diagnose.finding import Finding
from levada.watching.verdict.baseline import LossBaseline
from levada.watching.verdict.ledger import Ledger
from levada.watching.verdict.overshot import SIGN
from levada.watching.verdict.spike import RULE
from levada.watching.verdict.view import View

__all__ = ["LOSSES", "above_lowest", "hold_spikes", "maximised"]

ABOVE: Final = "loss_above_best"
LOSSES: Final = (RULE, ABOVE, SIGN)
"""The rules of what is told here."""

# So many times its lowest, and such a share of what was learned above it, is worth to know.
TIMES, SHARE = 2.0, 0.005


def hold_spikes(
    spikes: Iterable[Finding],
    ledger: Ledger,
    view: View,
    step: int,
    *,
    ending: bool = False,
    accounted: bool = False,
) -> set[tuple[str, str]]:
    """Tell of spikes that are open, stay up or were up until now; return what is held as cases of the ledger.

    Args:
        spikes: what is told of those of the losses so far.
        ledger: where they are told.
        view: the sampled step.
        step: the present one.
        ending: whether the run ends, so that the sentences are to hold at its end.
        accounted: whether another rule's alarm says why the loss jumps, so that no jump is told beside it.
    """
    held = set()
    for spike in spikes:
        if accounted:
            continue
        key = RULE, str(spike.evidence["step"])
        told = ledger.last(key)
        renew = told is not None and any(spike.evidence[end] != told.evidence[end] for end in ("ended_at", "back_at"))
        ledger.hold(key, spike, step, confirm=1, renew=renew or ending)
        held.add(key)
    if not (held or accounted) and (above := above_lowest(view.loss)) is not None:  # a spike that holds says so
        ledger.hold((ABOVE, ""), above, step, renew=ending)
        held.add((ABOVE, ""))
    if (sign := maximised(view.loss)) is not None:
        ledger.hold((SIGN, ""), sign, step, renew=ending)
        held.add((SIGN, ""))
    return held


def above_lowest(loss: LossBaseline) -> Finding | None:
    """Return the information that a loss is a few times its lowest, and stays there; None if it is not.

    A harder task, a restart of the schedule or an adversary that learns raise a loss as too long steps do, so that it
    is no alarm. It stays if the median of all losses that are remembered is up, too, and not of the last ones alone.

    Args:
        loss: of the run so far.

    Example:
        >>> losses = LossBaseline()
        >>> for step in range(600):
        ...     losses.add(step, 4.0 if step < 50 else 0.016 + 0.0001 * (step % 7) if step < 400 else 0.061)
        >>> above_lowest(losses).claim[:34]
        'The loss is 3.74 times its lowest:'
    """
    lowest, recent = loss.lowest, loss.recent
    if not (loss.ready and 0 < lowest < math.inf and loss.lasting_rise > 0):
        return None
    if min(recent, loss.median) < TIMES * lowest or recent - lowest < SHARE * loss.scale:
        return None
    last, count = loss.latest[-1][0], len(loss.latest)
    row = "in a row" if loss.steps > last - loss.first_step else "in a row of those that were heard"
    return Finding(
        rule=ABOVE,
        severity="info",
        status="fired",
        claim=(
            f"The loss is {recent / lowest:.3g} times its lowest: the last {count} losses have a median of "
            f"{recent:.4g} at step {last}, and the lowest {count} {row} had one of {lowest:.4g}, up to step "
            f"{loss.lowest_step}."
        ),
        evidence={
            "step": loss.lowest_step,
            "lowest": lowest,
            "now": recent,
            "last": last,
            "of_what_was_learned": (recent - lowest) / loss.scale,
            "reference": "the losses in a row whose median was the lowest",
            "explained_by": "baseline",
            "tests": {"ranks": "above those of its lowest stretch by Mann and Whitney's U, or by their scatter"},
        },
        consequence="The weights of the step of the lowest loss were better at this task, if that is the same still.",
        falsify="Give the weights of both steps the same batches: if the losses are equal, the task became harder.",
        source="Mann and Whitney 1947, whether one of two random variables is stochastically larger than the other",
    )


def maximised(loss: LossBaseline) -> Finding | None:
    """Return what tells that a loss is maximised, as where its sign is reversed; None if nothing does.

    A cross entropy and a mean square are never negative: a negative multiple of one, which falls, is maximised. That is
    a warning, as who unlearns means it. Of another loss nothing is known but how it falls: information, where that has
    no bound so far.

    Args:
        loss: of the run so far.

    Example:
        >>> losses = LossBaseline()
        >>> for step in range(600):
        ...     losses.add(step, -2.3 - 1e-3 * step ** 3)
        >>> maximised(losses).claim[:65]
        'The loss is negative and falls without a bound so far: the last 3'
    """
    known = loss.maximised
    if not (known or loss.falling.unbounded):
        return None
    last, fold = loss.latest[-1][0], loss.falling.fold
    what = "is a negative multiple of a cross entropy or a mean square" if known else "is negative"
    how = "and falls" if not loss.falling.unbounded else "and falls without a bound so far"
    return Finding(
        rule=SIGN,
        severity="warn" if known else "info",
        status="fired",
        claim=(
            f"The loss {what} {how}: the last {len(loss.latest)} have a median of {loss.recent:.4g} at step {last}, "
            f"after {loss.start:.4g} at first"
            f"{f', {fold:.3g} times its size then' if fold >= 2 else ''}. "
            + (
                "So the error is maximised: its sign is reversed, or that of the step, unless that is meant."
                if known
                else "The sign of the loss or of the step may be reversed, if it is no reward or log density."
            )
        ),
        evidence={
            "step": last,
            "start": loss.start,
            "now": loss.recent,
            "fold": fold,
            "power": loss.falling.power,
            "constant_loss": loss.constant if known else None,
            "explained_by": "theory" if known else None,
            "tests": {"marks": loss.falling.marks},
        },
        consequence="The model unlearns what the loss measures, and its outputs grow until they overflow.",
        falsify="Turn the sign of the loss and train as long: if what you judge the model by is worse, this is wrong.",
        source="By definition: minus the logarithm of a probability, and a square, are at least 0",
    )
