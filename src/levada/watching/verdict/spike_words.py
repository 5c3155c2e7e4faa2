"""What is told of a jump of the loss: what it came to, what moved before it, and how grave that is."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from levada.diagnose.finding import Finding, Severity
from levada.watching.verdict.baseline import LossBaseline, times
from levada.watching.verdict.overshot import rate_proposal
from levada.watching.verdict.rise import jump_in_words, made_it_rise, rise_in_words
from levada.watching.verdict.view import View

__all__ = ["LATEST", "RULE", "Spike", "finding_of"]

RULE: Final = "loss_spike"
# Steps above the start after which a spike is no more a spike; and where nothing is known to have brought it about.
LASTING, UNEXPLAINED = 20, 100
# The jump of one odd batch is so many times what the next steps, on other batches, are left with.
ODD: Final = 4.0
LATEST: Final = 5  # steps behind a jump that tell what it is


@dataclass(slots=True)
class Spike:
    """A jump of the loss, and what is known of it."""

    onset: int
    usual: float
    excess: float
    peak: float
    first: float
    next: list[float] = field(default_factory=list)
    above: deque[bool] = field(default_factory=lambda: deque(maxlen=LATEST))
    lasting: int = 0
    confirmed: bool = False
    ended: int | None = None
    level: float = math.nan  # at which the loss stayed, where it did not come back at once
    back: int | None = None  # the step at which it had come back
    moved: list[dict[str, Any]] | None = None
    raised: dict[str, Any] | None = None
    earlier: dict[str, Any] | None = None  # a rise of the learning rate longer ago
    watched: int | None = None  # the last step that was sampled shortly before
    step: float = 0.0  # beside the median block's weights, sampled before the onset, if it was far too long
    stepped: int = 0  # the number of that step
    unheard: bool = False  # larger than any before in this run, by far
    after: int | None = None  # the last step that was heard before the onset, if it is not the one before
    late: bool = False  # whether it may have been back before that was heard
    begun: bool = False  # to be told


def finding_of(spike: Spike, view: View) -> Finding:
    """Return what is told of a spike.

    Args:
        spike: it, explained.
        view: the present sample.
    """
    moved = spike.moved or []
    # The loss of a step precedes its update: a rate that was first seen there did not raise it.
    by_rate = spike.raised if spike.raised is not None and _precedes(spike.raised, spike) else None
    caused = bool(moved) or by_rate is not None
    severity: Severity = "warn" if spike.unheard and (caused or _odd(spike)) else "info"
    stays = spike.peak if spike.ended is None else spike.level
    grown = view.loss.grown
    lost = not stays < grown * view.loss.start or (spike.ended is None and grown == 1)
    if spike.lasting >= LASTING and caused and lost:
        severity = "error"
    elif spike.lasting >= UNEXPLAINED and not stays < view.loss.untrained * grown:
        severity = "warn"
    first = moved[0] if moved else None
    if severity == "info" or not made_it_rise(by_rate, view.lr, spike.onset):
        by_rate = None  # nothing to repair, or another rate by now
    return Finding(
        rule=RULE,
        severity=severity,
        status="fired",
        claim=(
            f"The loss jumped {jump_in_words(spike.onset, spike.after)} from {spike.usual:.4g} to {spike.peak:.4g} at "
            f"most, {spike.excess:.3g} standard deviations above its median.{_end(spike, view.loss)} {_why(spike)}"
            f"{_harder(view.loss)}"
        ),
        where={"first": first["site"], "last": first["site"]} if first else {},
        evidence={
            "step": spike.onset,
            "after": spike.after,
            "loss_before": spike.usual,
            "loss_peak": spike.peak,
            "deviations": spike.excess,
            "start": view.loss.start,
            "grew": {"constant_loss": grown, "inputs": view.loss.inputs_grown if grown > 1 else 1.0},
            "moved_first": moved[:20],
            "learning_rate": spike.raised,
            "update_ratio": spike.step or None,
            "long_step": spike.stepped if spike.step else None,
            "ended_at": spike.ended,
            "back_at": spike.back,
            "stays_at": None if math.isnan(spike.level) else spike.level,
            "explained_by": "baseline" if caused else None,
            "tests": {"steps_above_the_start": spike.lasting},
        },
        consequence=(
            f"What was learned is lost: the loss has stayed above {_reference(view)}."
            if severity == "error"
            else "What was learned may come back by itself, or not."
        ),
        falsify=_falsify(spike, by_rate),
        remedies=() if by_rate is None else (rate_proposal(view.lr, by_rate["from"]),),
        source="Chowdhery et al. 2022, arXiv 2204.02311 (spikes, and skipping their batches)",
    )


def _falsify(spike: Spike, by_rate: Mapping[str, Any] | None) -> str:
    """Say what would show wrong what the jump is laid to."""
    return (
        f"Go on from before step {by_rate['by']} at the rate of before, {by_rate['from']:.3g}: if the loss jumps "
        "as far, the rate was not why."
        if by_rate is not None
        else "Train at a tenth of the rate: if the loss jumps as far, the steps were not why."
        if spike.step
        else "Re-run the step from its bundle, by levada replay; go on from before it without these "
        "batches: if the loss rises again, the batch was not why."
    )


def _end(spike: Spike, loss: LossBaseline) -> str:
    """Say whether the loss came back, and when; "" while that is open."""
    if math.isnan(spike.level):
        return "" if spike.back is None else f" It was back {_by(spike)} step {spike.back}."
    stayed = f"the last {loss.few} losses had a median of {spike.level:.4g} at step {spike.ended}"
    if spike.back is not None:
        return f" It stayed up: {stayed}. It was back {_by(spike)} step {spike.back}."
    last = loss.latest[-1][0]
    count, first = len(loss.latest), loss.latest[0][0]
    those = f"{count} that were heard, from step {first} on," if last - first >= count else f"{count}"
    later = "" if last == spike.ended else f", and the last {those} one of {loss.recent:.4g} at step {last}"
    return f" It did not come back: {stayed}{later}."


def _by(spike: Spike) -> str:
    return "by" if spike.late else "at"


def _precedes(rise: Mapping[str, Any], spike: Spike) -> bool:
    """Whether a rate rose before the loss did, or may have, where the steps between were not heard."""
    return bool(rise["by"] < spike.onset or (spike.after is not None and rise["after"] + 1 < spike.onset))


def _reference(view: View) -> str:
    """Name what a loss is compared with: one of no update, or of a few, if that is lower."""
    loss = view.loss
    name = (
        "that of the untrained model" if loss.start >= loss.first else f"{loss.start:.4g}, the median of the first few"
    )
    return name if loss.grown == 1 else f"{loss.grown:.3g} times {name}"


def _harder(loss: LossBaseline) -> str:
    """Say that targets and inputs have grown, and by how much; "" if they have not, or it is not known."""
    if loss.grown == 1:
        return ""
    return (
        f" The task has grown: on the last sampled batches inputs are {loss.inputs_grown:.3g} times as large as on the "
        f"first ones, and a prediction that is the same for every input would have {loss.grown:.3g} times the loss."
    )


def _odd(spike: Spike) -> bool:
    """Whether one batch stands out from those after it, which a change of the data or of the loss does not leave so."""
    if len(spike.next) < LATEST or spike.after is not None:  # it may have been higher before it was heard
        return False
    left = sorted(spike.next)[LATEST // 2] - spike.usual
    return spike.first - spike.usual >= ODD * max(left, 0.0)


def _why(spike: Spike) -> str:
    moved, sentences = spike.moved or [], []
    if spike.raised is not None:
        sentences.append(rise_in_words(spike.raised))
    if moved:
        first = moved[0]
        more = f", as did {len(moved) - 1} more" if len(moved) > 1 else ""
        sentences.append(
            f"First {first['signal']} of {first['site']} left its own baseline, at step {first['step']}, "
            f"{times(first['octaves'])} it{more}."
        )
    if spike.raised is None and spike.earlier is not None:
        ago = spike.onset - spike.earlier["by"]
        sentences.insert(0, f"{rise_in_words(spike.earlier)[:-1]}, {ago} steps before it.")
    if not moved and spike.raised is None:
        besides = " else" if spike.earlier is not None else ""
        sentences.append(
            f"What{besides} moved before it is not known, as no step was sampled shortly before."
            if spike.watched is None
            else f"Nothing{besides} that is watched moved before it, up to the sampled step {spike.watched}."
        )
    if spike.step:
        ago = spike.onset - spike.stepped
        far = f", {ago} steps before it," if ago > 1 else ""
        sentences.append(
            f"Step {spike.stepped}{far} moved the weights of the median block by {spike.step:.2g} of themselves, where "
            "about 0.001 is usual: such steps may be why, and not the batch."
        )
    elif _odd(spike):
        sentences.append(f"The batch of step {spike.onset} stands out: the steps after it are left with a fraction.")
    elif not (moved or spike.raised or spike.earlier) and not math.isnan(spike.level):
        sentences.append("If the data or the loss function was changed there, that is why.")
    return " ".join(sentences)
