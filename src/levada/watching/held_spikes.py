"""What the ledger of a run hears of the spikes of its loss."""

from __future__ import annotations

from levada.watching.departures import Departures
from levada.watching.ledger import Ledger
from levada.watching.spike import RULE, Spikes
from levada.watching.view import View

__all__ = ["hold_spikes"]


def hold_spikes(spikes: Spikes, ledger: Ledger, view: View, departures: Departures, step: int) -> set[tuple[str, str]]:
    """Tell of spikes that are open, stay up or were up until now; return them as cases of the ledger.

    Args:
        spikes: of the losses so far.
        ledger: where they are told.
        view: the sampled step.
        departures: which signals are outside their baselines.
        step: the present one.
    """
    held = set()
    for spike in spikes.told(view, departures):
        key = RULE, str(spike.evidence["step"])
        told = ledger.last(key)
        renew = told is not None and any(spike.evidence[end] != told.evidence[end] for end in ("ended_at", "back_at"))
        ledger.hold(key, spike, step, confirm=1, renew=renew)
        held.add(key)
    return held
