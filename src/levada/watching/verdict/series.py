"""The losses of a run as rules read them: one series, or one of each optimizer where those that take turns differ."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, final

from levada.diagnose.finding import Finding
from levada.runs.losses import optimizers_in
from levada.watching.verdict.baseline import LossBaseline
from levada.watching.verdict.departures import Departures
from levada.watching.verdict.lowest import median_of
from levada.watching.verdict.spike import Spikes
from levada.watching.verdict.view import View

__all__ = ["LossSeries", "kinds_apart", "kinds_of"]

# Losses of two optimizers are others if of so many changes from the turn of one to that of the other all but one rise,
# and of as many back all but one fall, by such a share of their size; and half of them by more than so many deviations
# of a single loss: numbers that are drawn alike go up and down in turns for a while, too, if not so far.
CHANGES, OTHER, APART = 16, 0.05, 3.0
MOST: Final = 16  # turns of a kind that are told apart


@final
@dataclass(slots=True, eq=False)
class _Series:
    """Losses that are compared with each other, and their jumps."""

    loss: LossBaseline = field(default_factory=LossBaseline)
    spikes: Spikes = field(default_factory=Spikes)

    heard: bool = True  # each step since the last of these

    def see(self, step: int, loss: float) -> None:
        self.spikes.see_loss(step, loss, self.loss, heard=self.heard)
        self.loss.add(step, loss)
        self.heard = True


@final
class LossSeries:
    """Keeps the losses of a run, and those of each optimizer apart once they are seen to be others.

    Of a generator and a discriminator, or an actor and a critic, each steps by a loss of its own, and what one series
    of both does says nothing: its median is one of them alone. Optimizers that take turns with one loss, as blocks that
    are trained one after the other, show no such difference, and theirs stays one series.

    Attributes:
        mixed: whether the losses of optimizers that take turns differ.

    Example:
        >>> losses = LossSeries()
        >>> for step in range(200):
        ...     losses.see(step, 7.0 if step % 2 else 1.0, turn=1 + step % 2)
        >>> losses.mixed, losses.loss.steps, {turn: one.now for turn, one in losses.each}
        (True, 0, {1: 1.0, 2: 7.0})
    """

    def __init__(self) -> None:
        self.mixed, self._none = False, LossBaseline()
        self._whole, self._of = _Series(), dict[int, _Series]()
        self._step: int | None = None
        self._last: tuple[int, float] | None = None
        self._changes: dict[tuple[int, int], deque[float]] = {}
        self._jumps: dict[int, int] = {}  # the turn of each step at which a jump began

    @property
    def loss(self) -> LossBaseline:
        """Of the run; without a loss where it has several."""
        return self._none if self.mixed else self._whole.loss

    @property
    def spikes(self) -> Spikes:
        """Jumps of it."""
        return self._whole.spikes

    @property
    def each(self) -> Iterator[tuple[int, LossBaseline]]:
        """The turns, by the optimizers that step in them, and their losses."""
        return ((turn, one.loss) for turn, one in sorted(self._of.items()))

    @property
    def is_over(self) -> bool:
        """Whether no jump is open."""
        every = self._of.values() if self.mixed else (self._whole,)
        return all(one.spikes.is_over for one in every)

    @property
    def most(self) -> int:
        """Losses of the series that has the most."""
        return max((one.loss.steps for one in self._of.values()), default=0)

    def see(self, step: int, loss: float, turn: int | None = 0) -> None:
        """Take the loss of a step.

        Args:
            step: its number.
            loss: its loss.
            turn: which optimizers stepped, by the sum of 1, 2, 4, ... of them; 0 if all did, None if the step was not
                made.
        """
        gap = self._step is not None and step - self._step > 1
        self._step = step
        for one in (self._whole, *self._of.values()) if gap else ():
            one.heard = False
        self._whole.see(step, loss)
        if turn is None or (not turn and not self._of):
            return
        if turn in self._of or len(self._of) < MOST:
            self._of.setdefault(turn, _Series()).see(step, loss)
        if self._whole.spikes.onset == step:
            self._jumps[step] = turn
        if not self.mixed and math.isfinite(loss) and turn in self._of:
            self._compare(turn, loss)

    def _compare(self, turn: int, loss: float) -> None:
        last, self._last = self._last, (turn, loss)
        if last is None or last[0] == turn:
            return
        self._changes.setdefault((last[0], turn), deque(maxlen=CHANGES)).append(loss - last[1])
        there, back = (self._changes.get(way, ()) for way in ((last[0], turn), (turn, last[0])))
        if len(there) == len(back) == CHANGES:
            far = OTHER * max(abs(loss), abs(last[1]))
            up, down = (there, back) if sum(there) > 0 else (back, there)
            one, other = (self._of[which].loss.jitter for which in (turn, last[0]))
            clear = min(sum(x > far for x in up), sum(-x > far for x in down)) >= CHANGES - 1
            self.mixed = clear and median_of([abs(x) for x in (*up, *down)]) > APART * max(one, other)

    def before(
        self, step: int, recent: Iterable[tuple[int, float]], turn_of: Callable[[int], int | None]
    ) -> tuple[dict[str, Any] | None, Sequence[tuple[int, float]], LossBaseline]:
        """Return how a loss rose before one that is not finite, as `Spikes.before`; that series' last losses, and it.

        Of several series it is the one whose loss rose first; without a rise, that of the last step.

        Args:
            step: the first whose loss is not finite.
            recent: steps and finite losses that `see` does not know yet.
            turn_of: gives the turn of a step that has ended.
        """
        recent = [one for one in recent if one[0] < step]
        each = self._of if self.mixed else {0: self._whole}
        found = []
        for turn, one in each.items():
            new = [(at, loss) for at, loss in recent if not self.mixed or turn_of(at) == turn]
            losses = [*one.loss.latest, *new]
            last = losses[-1][0] if losses else -1
            jump = one.spikes.before(step, new, one.loss)
            found.append((math.inf if jump is None else jump["step"], -last, jump, losses, one.loss))
        _, _, jump, losses, loss = min(found, key=lambda one: one[:2])
        return jump, losses, loss

    def told(self, view: View, departures: Departures, optimizers: Sequence[Any]) -> list[Finding]:
        """Return a finding of each jump that is open, stays up, or was until now.

        Args:
            view: the sampled step.
            departures: which signals are outside their baselines.
            optimizers: of the training.
        """
        if not self.mixed:
            found = self._whole.spikes.told(view, departures)
            return [self._of_turn(one, optimizers) for one in found]
        told: list[Finding] = []
        for turn, one in self._of.items():
            whose = f"The loss of {optimizers_in(turn, kinds_of(optimizers))} jumped"
            for finding in one.spikes.told(replace(view, loss=one.loss), departures):
                claim = finding.claim.replace("The loss jumped", whose, 1)
                told.append(replace(finding, claim=claim, evidence={**finding.evidence, "turn": turn}))
        return told

    def _of_turn(self, finding: Finding, optimizers: Sequence[Any]) -> Finding:
        """Say of which optimizer the step of a jump was, where others have other steps."""
        turn = self._jumps.get(finding.evidence["step"], 0)
        if not turn:
            return finding
        return replace(
            finding,
            claim=f"{finding.claim} That was a step of {optimizers_in(turn, kinds_of(optimizers))}.",
            evidence={**finding.evidence, "turn": turn},
        )


def kinds_of(optimizers: Iterable[Any]) -> list[str]:
    """Return the class of each optimizer.

    Args:
        optimizers: of a watch.
    """
    return [type(one).__name__ for one in optimizers]


def kinds_apart(watch: Any) -> list[str]:
    """Return the class of each optimizer of a watch whose optimizers have losses of their own; of others nothing.

    Args:
        watch: one, or what stands for it.
    """
    losses = getattr(getattr(watch, "judge", None), "losses", None)
    return kinds_of(watch.optimizers) if losses is not None and losses.mixed else []
