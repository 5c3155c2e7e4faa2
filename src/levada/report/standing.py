"""What a page calls a watched run, in a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from levada.report.words import headline, sentence
from levada.runs.frames import Damage
from levada.runs.standing import Standing

__all__ = ["headline_read", "lead_read"]


def _headline_of(standing: Standing, fired: Sequence[Mapping[str, Any]]) -> str:
    """Say in a line what a run may be called.

    Args:
        standing: of the run.
        fired: the findings that hold.
    """
    if standing.verdict == "healthy":
        seen = "vanishing_gradient" in standing.judged  # else no gradient was measured, or of too few blocks
        told = "The learning signal reached every block" if seen else "The rules that could judge it found nothing"
        if fired:  # notes, which may say that no gradient reaches the weights of a block
            told = "There was no alarm"
        return f"{told}{standing.until[1:]}"
    if standing.verdict == "unknown":
        return standing.headline
    return headline({"verdict": standing.verdict, "findings": fired})


def headline_read(
    standing: Standing,
    fired: Sequence[Mapping[str, Any]],
    lost: Sequence[str],
    damage: Damage | None,
    *,
    ended: bool = True,
) -> str:
    """Say in a line what a run may be called, and whether that rests on a part of what was written.

    Args:
        standing: of the run.
        fired: the findings that hold.
        lost: what of its signals cannot be read.
        damage: of its log.
        ended: whether it was judged at its end; else why it is not judged is as old as its last sample.
    """
    if damage is not None and standing.verdict == "unknown":
        return "Not known, as the event log is damaged"
    said = standing.until if standing.verdict == "unknown" and not ended else ""
    return _headline_of(standing, fired) + said + (", in what can be read" if (lost or damage) and not fired else "")


def lead_read(standing: Standing, damage: Damage | None) -> str:
    """Say in smaller type what the headline leaves out; "" if it says all.

    Args:
        standing: of the run.
        damage: of its log.

    Example:
        >>> lead_read(Standing((), ("loss_spike",), sampled=202, steps=600, reached=580), None)
        'What came after was not sampled, but every trained block still had some gradient at step 580.'
        >>> lead_read(Standing((), ("loss_spike",), sampled=599, steps=600), None)
        ''
    """
    if standing.verdict == "unknown" and damage is not None:
        return "What the rules said cannot be read to its end."
    if standing.verdict == "healthy" and standing.until:
        return f"What came after was not sampled{f', but {standing.beyond}' if standing.beyond else ''}."
    told = standing.elaborated if standing.verdict == "unknown" else ""
    return f"{sentence(told)}." if told else ""
