"""How much watching costs, and how far apart samples must be to stay below what was allowed."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Collection
from typing import final

from levada._errors import UsageError, require_at_least, require_number
from levada.watching.loop.clocks import StepClock, more_time

__all__ = ["Cadence"]

_REMEMBERED = 15  # unsampled steps, whose median is what a step takes
_AT_LEAST = 0.5  # of what is allowed goes to samples, also where steps are so short that the hooks alone take it
_GOLDEN = (math.sqrt(5.0) - 1) / 2  # the share of distances that are one step longer
_SETTLED = 6  # samples before distances differ
_SAMPLES = 5  # sampled steps, whose median is what one costs
# Steps after one that asks for samples: soon, and over as long as it takes to tell what stays from what comes back.
_AFTER = (1, 3, 7, 15, 31, 63, 127)
_ANYWAY = 2  # times that they are taken whatever they cost
_SEARCH = 32  # steps that are heard behind one that a scaler skipped
_STAYS = 1024  # steps after it that are heard: a loss that jumped comes back, or not
_FREE = 0.5  # seconds of own code on steps that are not sampled, before any is not heard: nobody minds half a second
_HEARD = 2  # rounds in a row that are heard between two pauses, so that each can be compared with one before it
_SHORTEST, _LONGEST = 4, 500  # steps of a pause, and rounds
_CALM = 2.0  # times the least of the last steps that own code takes by itself; more is what other programs took
_KNOWN, _MOST = 3, 3.0  # pauses, before hearing is measured by them; times of own code that it may then cost
_MEET = 8  # steps after a sample, by when the numbers of all processes have long arrived


@final
class Cadence:
    r"""Which steps are sampled.

    A sampled step costs $c$, the larger of the time in the watch's own code and of what sampled steps take longer than
    others: a median, and the least of five, so that a pause between steps is not mistaken for it. With a step of $t$
    seconds and $u$ seconds of own code on steps that are not sampled, samples at a distance $d$ cost a share
    $(c / d + u) / t$ of the training; $d$ is the smallest number of steps, at least `every`, with which this is at most
    `max_overhead`; where $u$ alone takes more than half of that, half of it goes to samples. It shrinks by half at most
    from one sample to the next. A sample also waits until all samples so far, with it, cost no more than that share of
    all the time that was trained, but for the first ones, without which a short training had no verdict: those come as
    often as `every` says, whatever they cost, and the next one waits until they are paid for.
    Distances above 1 are soon one step longer now and then, in an order without a period: else a task whose turn comes
    every $d$ steps would be seen always or never. The first sample finds the blocks, which costs more and is not
    counted; the second one is taken to cost a step at most.

    Where hearing the steps between samples alone takes more than half of what is allowed, most of them are not heard,
    once half a second was spent on it: with each pause, of $2 u / (m t / 2)$ steps for a limit of $m$, two steps in a
    row are paid for; it is twice as long until that half second is paid back, and never above 500. What hearing costs
    is then known, of the quarters that were fastest: steps that were heard, less those of pauses. What hooks take in
    these is told with the rest, as it was estimated; nothing is throttled for it.

    A step that asks for samples gets seven, 1, 3, 7, ... 127 steps later: twice in a run whatever they cost, then where
    they are paid for already; the next one after them waits until all are. Several processes must sample the same
    steps: what one of them asks for it says with its next sample, and eight steps after that, or with the sample behind
    it if that is sooner, all of them take it as asked for: twice in a run, and all seven of them.

    Args:
        every: smallest distance.
        max_overhead: largest share.
        regardless: number of the first samples that are taken whatever they cost.

    Raises:
        UsageError: if `every` is below 1, or `max_overhead` is not above 0.

    Example:
        >>> cadence, steps = Cadence(every=2, max_overhead=0.1), []
        >>> for step in range(25):
        ...     sampled = cadence.due(step)
        ...     cadence.count(sampled, own=0.5 * sampled, seconds=1.0 + 0.5 * sampled)
        ...     if sampled:
        ...         steps.append(step)
        ...         cadence.plan(step)
        >>> steps, cadence.distance, round(cadence.overhead, 3)
        ([0, 10, 15, 20], 5, 0.074)
    """

    def __init__(self, every: int, max_overhead: float, *, regardless: int = 0) -> None:
        require_at_least("watch", "every", every, 1)
        require_number("watch", "max_overhead", max_overhead)
        if not max_overhead > 0:
            raise UsageError(
                f"watch: max_overhead must be above 0, a share of the training time such as 0.01, got {max_overhead}."
            )
        self.every = every
        self.max_overhead = max_overhead
        self.distance = every
        self._regardless = regardless
        self._next = self._planned = 0
        self._plain: deque[float] = deque(maxlen=_REMEMBERED)
        self._idle: deque[float] = deque(maxlen=_REMEMBERED)
        self._own: deque[float] = deque(maxlen=_SAMPLES)
        self._longer: deque[float] = deque(maxlen=_SAMPLES)
        self._whole: deque[float] = deque(maxlen=_SAMPLES)
        self._unheard: deque[float] = deque(maxlen=_REMEMBERED)  # seconds of a step in each of the last pauses
        self._calm = 0.0  # of `_idled`, what the watch takes where no other program has the processor meanwhile
        self.pauses = True  # whether there may be any: a step's end is told by optimizers that all step in it
        self.round = 1  # steps in which each of several optimizers that take turns has one
        self.first_pause: int | None = None  # the step at which the first one began
        self._passed_by = self._heard = 0  # since then: steps that were not heard, and that were, but for samples
        self._row = self._hears = 0  # heard since the last one; the step up to which all are
        self._trained = self._idled = 0.0  # seconds of all steps, and of own code in those that were not sampled
        self._slept = 0.0  # seconds of hooks that returned at once
        self._agreed = self._wishes = False
        self._meeting = -1
        self._asked: deque[int] = deque()  # steps that are sampled beside those that are due
        self._answered = 0
        self.samples = 0

    def due(self, step: int) -> bool:
        """Return whether a step is to be sampled."""
        if self._asked and step >= self._asked[0]:
            return True
        if step < self._next:
            return False
        # As long again at most: what it takes is then known better.
        wait = 0 if self._agreed or self._planned < self._regardless else min(self._unpaid(), self.distance)
        self._next += wait
        self.distance += wait
        return not wait

    def ask(self, step: int, *, by_all: bool = False) -> None:
        """Ask for samples of the steps after this one; nothing is asked again before all of them are there.

        Args:
            step: the present one.
            by_all: whether all of several processes do, at this step; what one asks for is kept for `wish`.
        """
        if self._agreed and not by_all:
            self._wishes = True
            return
        # What is paid for is another in each process.
        paid = self._answered < _ANYWAY or (not by_all and self.affords(len(_AFTER) * self._cost()[0]))
        if paid and not self._asked:
            self._answered += 1
            self._asked.extend(step + after for after in _AFTER)
            self.hear(step, _STAYS)

    def hear(self, step: int, steps: int = _SEARCH) -> None:
        """Make no pause in so many steps from one on; by default behind one that a scaler skipped."""
        self._hears = max(self._hears, step + steps)

    def wish(self) -> bool:
        """Return whether this one of several processes asked for samples since this was called last."""
        wishes, self._wishes = self._wishes, False
        return wishes

    def meets(self, step: int) -> bool:
        """Return whether several processes hear at the end of this step what each asked for with the last sample."""
        return step == self._meeting

    def content(self) -> None:
        """Hear that what was asked for is not needed any more; of several processes others may need it."""
        if not self._agreed:
            self._asked.clear()

    def _unpaid(self) -> int:
        """Return after how many more steps another sample keeps the share of all time within the limit."""
        cost, idle, step = self._cost()
        if not self.samples or math.isnan(step) or step <= 0 or math.isinf(self.max_overhead):
            return 0
        spent = (self.samples + 1) * cost
        allowed = self.max_overhead * self._trained
        left = max(allowed - self._idled * self._dearer(idle), _AT_LEAST * allowed)
        room = self._room(idle, self._bare(idle, step) if self._unheard else step)
        return max(0, math.ceil((spent - left) / room - 1e-9))

    def pause(self, step: int) -> int:
        """Return how many steps from this one on are not to be heard, so that those that were are paid for."""
        if not self.pauses or self._calm <= _FREE or math.isinf(self.max_overhead):
            return 0
        _, idle, each = self._cost()
        idle = min(idle, _CALM * min(self._idle))
        row = _HEARD * self.round
        if self._agreed or self._asked or not each > 0 or self._row < row or step < self._hears:
            return 0
        share = _AT_LEAST * self.max_overhead
        rate = share / 2 if (owed := share * self._trained < 2 * _FREE) else share  # what was free is not paid back yet
        heard = idle * self._dearer(idle)
        over = self._calm * self._dearer(idle) + heard - rate * self._trained - _FREE * owed
        if not over > 0:
            return 0
        pays = (over + (row - 1) * heard) / (rate * self._bare(idle, each))
        steps = min(math.ceil(pays), _LONGEST * self.round, self._next - step)
        if steps < _SHORTEST:
            return 0
        self.first_pause, self._row = step if self.first_pause is None else self.first_pause, 0
        return steps

    def _dearer(self, idle: float) -> float:
        """Return by what the own code of a step must be multiplied for what hearing it takes, torch's part included."""
        if len(self._unheard) < _KNOWN or not idle > 0:
            return 1.0
        # A quarter of them: on a busy machine every other step has to wait, for longer than it takes.
        return min(max((_quarter(self._plain) - _quarter(self._unheard)) / idle, 1.0), _MOST)

    def _bare(self, idle: float, step: float) -> float:
        """Return the seconds of a step that is not heard."""
        return statistics.median(self._unheard) if self._unheard else max(step - idle, 0.1 * step)

    def _room(self, idle: float, step: float) -> float:
        """Return the seconds that each step pays towards a sample."""
        return max(self.max_overhead * step - idle, _AT_LEAST * self.max_overhead * step)

    def affords(self, seconds: float) -> bool:
        """Return whether so much more keeps the share of all time so far within the limit."""
        return self._taken() + seconds <= self.max_overhead * self._trained

    def plan(self, step: int, distance: int | None = None) -> None:
        """Choose the next sampled step after this one; with a distance that several processes agreed on, if given."""
        self._planned += 1
        if distance is None:  # one measurement that is too low must not undo what others showed
            distance = max(self.wanted(), self.distance // 2)
        else:
            self._agreed, self._meeting = True, step + _MEET
        self.distance = max(distance, self.every)
        self._next = step + self.distance + (self._turn() if self.distance > 1 and self.samples > _SETTLED else 0)
        while self._asked and self._asked[0] <= step:
            self._asked.popleft()

    def _turn(self) -> int:
        """Return 1 or 0 in an order that no period has: samples fall on every phase of what recurs in a training."""
        return math.floor((self.samples + 1) * _GOLDEN) - math.floor(self.samples * _GOLDEN)

    def count(self, sampled: bool, *, own: float, seconds: float | None = None) -> None:
        """Take the time of a step: seconds in the watch's own code, and what the whole step took, where it is known."""
        self._row += 1
        if sampled:
            self.samples += 1
            if self.samples == 2:  # the first one found the blocks
                self._own.clear()
            self._own.append(own)
        else:
            self._idle.append(own)
            self._idled += own
            self._calm += min(own, _CALM * min(self._idle))
            self._heard += self.first_pause is not None
        if seconds is not None:
            self.timed(sampled, seconds)

    def take(self, clock: StepClock) -> None:
        """Take the time of the steps that a clock knows by now."""
        for sampled, steps, seconds in clock.read():
            self.timed(sampled, seconds, steps)

    def timed(self, sampled: bool, seconds: float, steps: int = 1) -> None:
        """Take what a whole step took, or several that were not heard."""
        self._trained += seconds
        if steps > 1:
            self._passed_by += steps
            self._unheard.append(seconds / steps)
        elif not sampled:
            self._plain.append(seconds)
        elif len(self._plain) >= 3 or (self._plain and self.samples > 1):  # the first steps of a run are slow
            self._longer.append(seconds - statistics.median(self._plain))
        else:
            self._whole.append(seconds)

    def sleep(self, seconds: float) -> None:
        """Hear what hooks took in a pause at least."""
        self._slept += seconds

    def _cost(self) -> tuple[float, float, float]:
        """Return what a sampled step costs, what the watch does on the others, and what a step takes."""
        own = statistics.median(self._own) if self._own else 0.0
        # The least of several: whatever else slows a step, such as other programs, is not the watch's.
        longer = min(self._longer) if len(self._longer) > 1 else 0.0
        idle = statistics.median(self._idle) if self._idle else 0.0
        if self._plain:
            step = statistics.median(self._plain)
        else:  # every step is sampled
            step = statistics.median(self._whole) - own if self._whole else math.nan
        cost = max(own, longer)
        if self.samples == 1 and not math.isnan(step):
            cost = min(cost, step)
        return cost, idle, step

    @property
    def overhead(self) -> float:
        """Share of the training time so far that went into watching; NaN until a step was timed."""
        return math.nan if math.isnan(self._cost()[2]) else (self._taken() + self._slept) / self._trained

    def _taken(self) -> float:
        """Return the seconds that watching took so far."""
        cost, idle, _ = self._cost()
        return self.samples * cost + self._idled * self._dearer(idle)

    @property
    def paid_in(self) -> float:
        """Seconds of training after which the overhead is within the limit; infinity where hooks alone take more.

        The first samples are taken whatever they cost, so that a short training ends before they are paid for.
        """
        cost, idle, step = self._cost()
        over = self._taken() - self.max_overhead * self._trained
        if math.isnan(step) or math.isinf(self.max_overhead) or over <= 0:
            return 0
        share = _AT_LEAST * self.max_overhead
        # By all steps so far: of the last few the machine may have kept some waiting.
        short = self.first_pause is not None or self._idled * self._dearer(idle) > share * self._trained
        if self.pauses and not self._agreed and short:
            # What was free, and the samples so far, are within a half each.
            whole = max(2 * _FREE, self.samples * cost) / share
            return max(whole - self._trained, over / share)  # what is heard meanwhile takes the other half
        allowed = self.max_overhead * step
        each = allowed - (idle if idle < allowed else min(self._idle))  # on a busy machine the watch's code waits, too
        return over / each * step if each > 0 else math.inf

    @property
    def heard(self) -> str:
        """How many steps are heard, and since when not all are; "" while all are."""
        if not self._passed_by or not self._heard:
            return ""
        return f", 1 step in {1 + self._passed_by / self._heard:,.0f} heard since step {self.first_pause:,}"

    @property
    def asleep(self) -> str:
        """How much of it hooks took in pauses at least: their code was warmer where it was timed; "" if not known."""
        return f", at least {100 * self._slept / self._trained:.2g} % by hooks in pauses" if self._slept > 0 else ""

    @property
    def told(self) -> str:
        """The overhead in words, as it is, and where it is more than was allowed, what brings it there."""
        if math.isnan(self.overhead):
            return "overhead not measured yet"
        told, limit = (f"{100 * share:.2g} %" for share in (self.overhead, self.max_overhead))
        more = 0 if f"{100 * self._taken() / self._trained:.2g} %" == limit else self.paid_in
        then = f"{100 * (self.max_overhead + self._slept / self._trained):.2g} %"
        until = f" (steps are too short for {limit})"
        until = until if math.isinf(more) else f" ({then} after {more_time(more)})" if more else ""
        return f"overhead {told}{until}{self.asleep}{self.heard}"

    def wanted(self) -> int:
        """Return the distance that keeps the overhead below the limit, as far as measured."""
        cost, idle, step = self._cost()
        if self._planned < self._regardless or math.isnan(step) or step <= 0:
            return self.every
        most = cost / self._room(idle, step)
        return max(self.every, math.ceil(most - 1e-9), self._unpaid() if self._agreed else 0)


def _quarter(values: Collection[float]) -> float:
    """Return what a quarter of them are not above."""
    return sorted(values)[len(values) // 4]
