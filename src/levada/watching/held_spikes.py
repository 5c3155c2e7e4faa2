"""What the ledger of a run hears of its loss: spikes, and that it is far above its lowest."""

from __future__ import annotations

import math
from typing import Final

from levada.diagnose.finding import Finding
from levada.watching.baseline import LossBaseline
from levada.watching.departures import Departures
from levada.watching.ledger import Ledger
from levada.watching.spike import RULE, Spikes
from levada.watching.view import View

__all__ = ["ABOVE", "above_lowest", "hold_spikes"]

ABOVE: Final = "loss_above_best"
# So many times its lowest, and such a share of what was learned above it, is worth to know.
TIMES, SHARE = 2.0, 0.005


def hold_spikes(
    spikes: Spikes, ledger: Ledger, view: View, departures: Departures, step: int, *, ending: bool = False
) -> set[tuple[str, str]]:
    """Tell of spikes that are open, stay up or were up until now; return what is held as cases of the ledger.

    Args:
        spikes: of the losses so far.
        ledger: where they are told.
        view: the sampled step.
        departures: which signals are outside their baselines.
        step: the present one.
        ending: whether the run ends, so that the sentences are to hold at its end.
    """
    held = set()
    for spike in spikes.told(view, departures):
        key = RULE, str(spike.evidence["step"])
        told = ledger.last(key)
        renew = told is not None and any(spike.evidence[end] != told.evidence[end] for end in ("ended_at", "back_at"))
        ledger.hold(key, spike, step, confirm=1, renew=renew or ending)
        held.add(key)
    if not held and (above := above_lowest(view.loss)) is not None:  # a spike that holds says so
        ledger.hold((ABOVE, ""), above, step, renew=ending)
        held.add((ABOVE, ""))
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
    return Finding(
        rule=ABOVE,
        severity="info",
        status="fired",
        claim=(
            f"The loss is {recent / lowest:.3g} times its lowest: the last {count} losses have a median of "
            f"{recent:.4g} at step {last}, and the lowest {count} in a row had one of {lowest:.4g}, up to step "
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
