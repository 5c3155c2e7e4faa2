"""A loss that jumps above the run's own baseline, and what left its baseline before it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, final

from levada.diagnose.finding import Finding, Severity
from levada.watching.baseline import LossBaseline, times
from levada.watching.departures import Departures
from levada.watching.overshot import rate_proposal
from levada.watching.rise import jump_in_words, made_it_rise, raised, rise_in_words
from levada.watching.view import COMPARED, View

__all__ = ["Spikes", "jumps", "least_jump"]

RULE: Final = "loss_spike"
# Standard deviations above the median, and share of what was learned: both, so that neither batch noise nor an easy
# task's tiny losses are spikes.
DEVIATIONS: Final = 12.0
SHARE: Final = 0.5
# Of so many losses one may have been half as far up before: more of them are another kind of loss.
OFTEN: Final = 8
# A jump of one step alone must take the loss back to where the run began.
ALONE: Final = 1.0
# Steps, and of the last of them how many above, before a jump counts without that.
LATEST, ABOVE = 5, 3
# A loss is back when it is within this share of what was learned above its median before.
BACK: Final = 0.25
# Steps above the start after which a spike is no more a spike; and where nothing is known to have brought it about.
LASTING, UNEXPLAINED = 20, 100
# The jump of one odd batch is so many times what the next steps, on other batches, are left with.
ODD: Final = 4.0
# A lone jump is an alarm if it is so many times the largest so far of a run of which so many losses are known: a median
# absolute deviation knows nothing of tails.
LARGEST, KNOWN = 4.0, 128
# Steps of a climb that are no jump before it: a rate that was raised may take the loss up over some.
CLIMB: Final = 20
# Jumps that are information, of which so many are told.
TOLD: Final = 3
# Steps of a twentieth of the weights are far above those in use, about a thousandth of them; one as large as the
# weights leaves nothing of them, however long ago it was.
LONG, WHOLE = 0.05, 1.0
# Spikes whose loss stays up that are followed: a run that is up for good so many times over has been told of.
MOST: Final = 8
# Before there is a baseline a loss has risen steeply that is so many times the first.
STEEP: Final = 8.0


def least_jump(baseline: LossBaseline) -> float:
    """Return the loss above which `jumps` holds; infinite as long as it is not known what is usual.

    Args:
        baseline: of the losses so far.
    """
    if not baseline.ready:
        return math.inf
    return baseline.median + max(SHARE * baseline.scale, DEVIATIONS * baseline.deviation)


def jumps(baseline: LossBaseline, loss: float) -> bool:
    """Return whether a loss is far above what is usual, and the distance matters in this run.

    Where losses of several kinds take turns, as of adversaries, one of them alone makes the median. What is half as far
    above it as more than an eighth of the last ones is usual, too.

    Args:
        baseline: of the losses before it.
        loss: of one step.

    Example:
        >>> losses = LossBaseline(warm_up=8)
        >>> for step in range(40):
        ...     losses.add(step, 2.0 + 0.01 * (step % 3))
        >>> jumps(losses, 2.2), jumps(losses, 4.0)
        (False, True)
    """
    if not baseline.ready or not math.isfinite(loss):
        return False
    jump = loss - baseline.median
    if not (jump > SHARE * baseline.scale and baseline.excess(loss) > DEVIATIONS):
        return False
    before = [one for _, one in baseline.latest]
    while before and before[-1] > baseline.median:
        before.pop()  # the climb that leads up to it
    return OFTEN * sum(one - baseline.median >= 0.5 * jump for one in before) <= len(before)


@dataclass(slots=True)
class _Spike:
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
    watched: int | None = None  # the last step that was sampled shortly before
    step: float = 0.0  # beside the median block's weights, sampled before the onset, if it was far too long
    unheard: bool = False  # larger than any before in this run, by far
    after: int | None = None  # the last step that was heard before the onset, if it is not the one before
    late: bool = False  # whether it may have been back before that was heard
    begun: bool = False  # to be told


@final
class Spikes:
    """Follows every step's loss, opens a spike where it jumps, and closes it when the loss is back."""

    def __init__(self) -> None:
        self._open: _Spike | None = None
        self._last: int | None = None  # step
        self._ended: list[_Spike] = []  # those whose loss stays up, and those back since the last sample
        self._largest = 0.0  # jump of a loss above the median so far, before the climb that is under way
        self._climb: deque[float] = deque(maxlen=CLIMB)  # jumps since a loss was last at the median or below
        self._informed = 0
        self._moved, self._most = 0.0, 0.0  # the median block's step beside its weights: last, and at most

    @property
    def is_over(self) -> bool:
        """Whether no spike is open: there was none, or the last one came back, or stays."""
        return self._open is None

    def see_loss(self, step: int, loss: float, baseline: LossBaseline) -> None:
        """Take the loss of a step, before the baseline does.

        Args:
            step: its number.
            loss: its loss.
            baseline: of the losses before it.
        """
        if not math.isfinite(loss):
            return
        before, self._last = self._last, step
        gap = before is not None and step - before > 1
        if baseline.steps >= LATEST:
            self._see_jump(loss - baseline.median)
        self._see_ended(step, loss, baseline, gap=gap)
        spike = self._open
        if spike is None:
            # A loss that stays up scatters: what it came to on its way up is told already.
            known = max((one.peak for one in self._ended if one.back is None), default=-math.inf)
            if len(self._ended) >= MOST or loss <= known or not jumps(baseline, loss):
                return
            self._ended = [one for one in self._ended if one.begun or one.back is None]
            self._open = spike = _Spike(step, baseline.median, baseline.excess(loss), loss, loss)
            spike.step = max(self._moved * (self._moved >= LONG), self._most * (self._most >= WHOLE))
            spike.after = before if gap else None
            spike.unheard = baseline.steps >= KNOWN and loss - baseline.median > LARGEST * self._largest
        spike.peak = max(spike.peak, loss)
        if step > spike.onset and len(spike.next) < LATEST:
            spike.next.append(loss)
        spike.above.append(loss - spike.usual > BACK * baseline.scale)
        spike.lasting += loss > baseline.start
        spike.confirmed |= spike.peak - spike.usual >= ALONE * baseline.scale or sum(spike.above) >= ABOVE
        if len(spike.above) == LATEST and not any(spike.above):
            spike.ended = spike.back = step
            spike.late = gap
        elif min(baseline.median, baseline.recent) - spike.usual > BACK * baseline.scale:
            spike.ended, spike.level = step, baseline.now  # half of the window is up there
        if spike.ended is not None:
            self._open = None
            self._ended += [spike] if spike.confirmed else []

    def _see_ended(self, step: int, loss: float, baseline: LossBaseline, *, gap: bool) -> None:
        """Follow the spikes whose loss stays up: for how long, which tells what they are, and until it is down."""
        for spike in self._ended:
            if spike.back is None:
                spike.lasting += loss > baseline.start
                spike.back = step if baseline.recent - spike.usual <= BACK * baseline.scale else None
                spike.late = gap

    def _see_jump(self, jump: float) -> None:
        """Take how far a loss is above the median. What led up to a spike is no earlier jump that explains it."""
        if jump <= 0:
            self._largest = max(self._largest, *self._climb, 0.0)
            self._climb.clear()
            return
        if len(self._climb) == CLIMB:
            self._largest = max(self._largest, self._climb[0])
        self._climb.append(jump)

    def before(self, step: int, recent: Iterable[tuple[int, float]], baseline: LossBaseline) -> dict[str, Any] | None:
        """Return how the loss rose before a step whose loss is not finite: a spike that is open, or a steep rise.

        Args:
            step: the first whose loss is not finite.
            recent: steps and finite losses that `see_loss` does not know yet.
            baseline: of the losses that it knows.

        Returns:
            {"step", "from", "to"}; None if it did not rise.

        Example:
            >>> Spikes().before(4, [(0, 2.0), (1, 2.1), (2, 60.0), (3, 1e9)], LossBaseline())
            {'step': 2, 'from': 2.0, 'to': 1000000000.0}
        """
        later = [(s, loss) for s, loss in recent if s < step and math.isfinite(loss)]
        spike = self._open
        if spike is not None and spike.onset < step:
            peak = max([spike.peak, *(loss for _, loss in later)])
            since = {} if spike.after is None else {"after": spike.after}
            return {"step": spike.onset, "from": spike.usual, "to": peak, **since}
        usual = (
            baseline.median if baseline.ready else baseline.first if baseline.steps else later[0][1] if later else 0.0
        )
        high = [s for s, loss in later if (jumps(baseline, loss) if baseline.ready else loss >= STEEP * abs(usual) > 0)]
        if not high:
            return None
        return {"step": high[0], "from": usual, "to": max(loss for s, loss in later if s >= high[0])}

    def told(self, view: View, departures: Departures) -> list[Finding]:
        """Return a finding of each spike that is open or whose loss stays up, or was until this sample.

        Args:
            view: the sampled step.
            departures: which signals are outside their baselines, this step's seen.
        """
        ratio = view["update_ratio"]
        ratio = ratio[ratio.isfinite()]
        self._moved = float(ratio.median()) if len(ratio) else 0.0
        self._most = max(self._most, self._moved)
        followed = [*self._ended, *([] if self._open is None else [self._open])]
        self._ended = [spike for spike in self._ended if spike.back is None]  # what is back is told once
        found = [self._told(spike, view, departures) for spike in followed if spike.confirmed]
        return [finding for finding in found if finding is not None]

    def _told(self, spike: _Spike, view: View, departures: Departures) -> Finding | None:
        if spike.moved is None:
            self._explain(spike, view, departures)
        finding = _finding(spike, view)
        if not spike.begun and finding.severity == "info":
            if self._informed >= TOLD:
                return None
            self._informed += 1
        spike.begun = True
        return finding

    def _explain(self, spike: _Spike, view: View, departures: Departures) -> None:
        """Say once, with what is known at the first sample after the onset, what moved before it."""
        spike.moved = [
            {
                "site": view.blocks.names[column % view.sites],
                "signal": COMPARED[column // view.sites],
                "step": step,
                "octaves": size,
            }
            for column, step, size in departures.first_before(spike.onset)
        ]
        lately = departures.lately(spike.onset)
        spike.watched = lately[-1] if lately else None
        spike.raised = raised(view.rows, view.rates, spike.onset, view.rises)


def _finding(spike: _Spike, view: View) -> Finding:
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
        falsify=(
            f"Go on from before step {by_rate['by']} at the rate of before, {by_rate['from']:.3g}: if the loss jumps "
            "as far, the rate was not why."
            if by_rate is not None
            else "Train at a tenth of the rate: if the loss jumps as far, the steps were not why."
            if spike.step
            else "Re-run the step from its bundle, by levada replay; go on from before it without these "
            "batches: if the loss rises again, the batch was not why."
        ),
        remedies=() if by_rate is None else (rate_proposal(view.lr, by_rate["from"]),),
        source="Chowdhery et al. 2022, arXiv 2204.02311 (spikes, and skipping their batches)",
    )


def _end(spike: _Spike, loss: LossBaseline) -> str:
    """Say whether the loss came back, and when; "" while that is open."""
    if math.isnan(spike.level):
        return "" if spike.back is None else f" It was back {_by(spike)} step {spike.back}."
    stayed = f"the last few losses had a median of {spike.level:.4g} at step {spike.ended}"
    if spike.back is not None:
        return f" It stayed up: {stayed}. It was back {_by(spike)} step {spike.back}."
    last = loss.latest[-1][0]
    count, first = len(loss.latest), loss.latest[0][0]
    those = f"{count} that were heard, from step {first} on," if last - first >= count else f"{count}"
    later = "" if last == spike.ended else f", and the last {those} one of {loss.recent:.4g} at step {last}"
    return f" It did not come back: {stayed}{later}."


def _by(spike: _Spike) -> str:
    return "by" if spike.late else "at"


def _precedes(rise: Mapping[str, Any], spike: _Spike) -> bool:
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


def _odd(spike: _Spike) -> bool:
    """Whether one batch stands out from those after it, which a change of the data or of the loss does not leave so."""
    if len(spike.next) < LATEST or spike.after is not None:  # it may have been higher before it was heard
        return False
    left = sorted(spike.next)[LATEST // 2] - spike.usual
    return spike.first - spike.usual >= ODD * max(left, 0.0)


def _why(spike: _Spike) -> str:
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
    if not sentences and spike.watched is None:
        sentences = ["What moved before it is not known, as no step was sampled shortly before."]
    sentences = sentences or [f"Nothing that is watched moved before it, up to the sampled step {spike.watched}."]
    if spike.step:
        sentences.append(
            f"A step before it moved the weights of the median block by {spike.step:.2g} of themselves, where about "
            "0.001 is usual: such steps may be why, and not the batch."
        )
    elif _odd(spike):
        sentences.append(f"The batch of step {spike.onset} stands out: the steps after it are left with a fraction.")
    elif not (moved or spike.raised) and not math.isnan(spike.level):
        sentences.append("If the data or the loss function was changed there, that is why.")
    return " ".join(sentences)
