"""A loss that jumps above the run's own baseline, and what left its baseline before it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import Any, Final, final

from levada.diagnose.finding import Finding
from levada.watching.verdict.baseline import LossBaseline
from levada.watching.verdict.departures import Departures
from levada.watching.verdict.rise import earlier_rise, raised
from levada.watching.verdict.spike_words import LATEST, RULE, Spike, finding_of
from levada.watching.verdict.view import COMPARED, View

__all__ = ["RULE", "Spikes", "jumps", "least_jump"]

# Standard deviations above the median, and share of what was learned: both, so that neither batch noise nor an easy
# task's tiny losses are spikes.
DEVIATIONS: Final = 12.0
SHARE: Final = 0.5
# Of so many losses one may have been half as far up before: more of them are another kind of loss.
OFTEN: Final = 8
# A jump of one step alone must take the loss back to where the run began.
ALONE: Final = 1.0
# Of the last steps how many above, before a jump counts without that.
ABOVE: Final = 3
# A loss is back when it is within this share of what was learned above its median before.
BACK: Final = 0.25
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


@final
class Spikes:
    """Follows every step's loss, opens a spike where it jumps, and closes it when the loss is back."""

    def __init__(self) -> None:
        self._open: Spike | None = None
        self._last: int | None = None  # step
        self._ended: list[Spike] = []  # those whose loss stays up, and those back since the last sample
        self._largest = 0.0  # jump of a loss above the median so far, before the climb that is under way
        self._climb: deque[float] = deque(maxlen=CLIMB)  # jumps since a loss was last at the median or below
        self._informed = 0
        # The median block's step beside its weights, and its number: the last, and the longest.
        self._moved, self._most = (0.0, 0), (0.0, 0)

    @property
    def is_over(self) -> bool:
        """Whether no spike is open: there was none, or the last one came back, or stays."""
        return self._open is None

    @property
    def onset(self) -> int | None:
        """The step at which the jump began that is open; None without one."""
        return None if self._open is None else self._open.onset

    def see_loss(self, step: int, loss: float, baseline: LossBaseline, *, heard: bool | None = None) -> None:
        """Take the loss of a step, before the baseline does.

        Args:
            step: its number.
            loss: its loss.
            baseline: of the losses before it.
            heard: whether those since the last one were heard; left out, there were none if the numbers follow.
        """
        if not math.isfinite(loss):
            return
        before, self._last = self._last, step
        gap = before is not None and (step - before > 1 if heard is None else not heard)
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
            self._open = spike = Spike(step, baseline.median, baseline.excess(loss), loss, loss)
            long = [one for one, least in ((self._moved, LONG), (self._most, WHOLE)) if one[0] >= least]
            spike.step, spike.stepped = max(long, default=(0.0, 0))
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
        self._moved = float(ratio.median()) if len(ratio) else 0.0, view.step
        self._most = max(self._most, self._moved)
        followed = [*self._ended, *([] if self._open is None else [self._open])]
        self._ended = [spike for spike in self._ended if spike.back is None]  # what is back is told once
        found = [self._told(spike, view, departures) for spike in followed if spike.confirmed]
        return [finding for finding in found if finding is not None]

    def _told(self, spike: Spike, view: View, departures: Departures) -> Finding | None:
        if spike.moved is None:
            self._explain(spike, view, departures)
        finding = finding_of(spike, view)
        if not spike.begun and finding.severity == "info":
            if self._informed >= TOLD:
                return None
            self._informed += 1
        spike.begun = True
        return finding

    def _explain(self, spike: Spike, view: View, departures: Departures) -> None:
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
        spike.earlier = earlier_rise(view.rates, view.rises, spike.onset)
