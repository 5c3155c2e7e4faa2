"""Try remedies on copies of a model: the same batches and seeds with and without, an interval, no new error."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev
from typing import Any, final

from torch import nn

from levada._errors import MeasurementError, UsageError
from levada._numbers import student_quantile
from levada.diagnose.course import Clock, Course, Spent, Training, copied
from levada.diagnose.remedies import Patch, Remedy, Subject
from levada.inputs import raised

__all__ = ["Trial", "Trials", "effect_of", "ranked"]

# A remedy that lowers the loss by less than this share of it is not worth a change.
NOTICEABLE = 0.02
# Between losses this close, as a share, a remedy is chosen by what it leaves and by how little it changes.
CLOSE = 0.05
# This many remedies that help are enough to choose from.
MOST = 3


@final
@dataclass(frozen=True, slots=True)
class Trial:
    """One remedy, and what it did.

    The effect of one seed is the difference of the losses after training, over the larger of them and of the loss of
    outputs of zero: 0.9 says that a tenth of the loss is left, a negative one that it is larger with the remedy.

    Attributes:
        name: name of the remedy.
        causes: the rules that it answers here.
        size: how much it changes, from 1, a number of the training recipe, to 5, how the blocks are connected.
        patch: the change, in code.
        effect: mean over seeds; None if it was not tried.
        low: lower end of its 95 % interval (Student's t over seeds); None with a single seed.
        high: upper end.
        before: losses after training as it is, by seed; the loss of each step by seed, and its mean.
        after: the same with the remedy.
        seeds: seeds that `effect` is of. The first look at a remedy has a seed of its own, which is not among them.
        said: what became of it, in words.
        proposed: whether it helps and brings no new error.
        verdict: the check's verdict on the repaired copy; "" if it was not made.
        left: rules that fired before and still fire there.
    """

    name: str
    causes: tuple[str, ...]
    size: int
    patch: str
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    before: Mapping[str, Any] = field(default_factory=dict)
    after: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    said: str = "not tried"
    proposed: bool = False
    verdict: str = ""
    left: tuple[str, ...] = ()

    @property
    def helps(self) -> bool:
        """Whether the loss falls noticeably further with it, with an interval above zero."""
        return self.effect is not None and self.low is not None and self.low > 0 and self.effect >= NOTICEABLE


def effect_of(before: float, after: float, floor: float = 0.0) -> float:
    """Return by which share of the larger one two losses differ; positive if the second is smaller.

    Args:
        before: without the remedy; infinite if the training did not stay finite.
        after: with it.
        floor: a loss that counts as the larger one if both are below it.

    Example:
        >>> effect_of(2.0, 0.5), effect_of(0.5, 2.0), effect_of(math.inf, 2.0), effect_of(0.02, 0.01, floor=2.0)
        (0.75, -0.75, 1.0, 0.005)
    """
    if not (math.isfinite(before) and math.isfinite(after)):
        return float(math.isfinite(after)) - float(math.isfinite(before))
    size = max(abs(before), abs(after), floor)
    return (before - after) / size if size > 0 else 0.0


def ranked(trials: Sequence[Trial], floor: float = 0.0) -> list[Trial]:
    """Sort by the loss that is left, and what is as good by what it leaves and changes.

    All of them are compared with the same trainings of the model as it is, so that the order is that of the effects;
    effects alone would not tell apart what repairs a training that does not stay finite. Of what is as good, the one
    after which fewer rules fire comes first, then the smaller change.

    Args:
        trials: with losses.
        floor: as for `effect_of`.

    Example:
        >>> one = Trial("one", (), 5, "", after={"loss": 0.100})
        >>> other = Trial("other", (), 1, "", after={"loss": 0.102})
        >>> [trial.name for trial in ranked([one, other], floor=2.0)]
        ['other', 'one']
    """
    left = sorted(trials, key=lambda t: _left(t))
    order = []
    while left:
        close = [t for t in left if effect_of(_left(t), _left(left[0]), floor) < CLOSE]
        order.append(min(close, key=lambda t: (len(t.left), t.size, _left(t))))
        left.remove(order[-1])
    return order


def _left(trial: Trial) -> float:
    return float(trial.after.get("loss", math.inf))


@final
class Trials:
    """Remedies on copies of one model.

    Args:
        model: copied, never changed.
        training: what copies are trained with.
        subject: what remedies look at.
        seeds: the first is for the first look, the others for the verification.
        steps: of one training.
        clock: when to stop.
        done: called after each training with how many were made.
    """

    def __init__(
        self,
        model: nn.Module,
        training: Training,
        subject: Subject,
        *,
        seeds: Sequence[int],
        steps: int,
        clock: Clock,
        done: Callable[[int], None],
    ) -> None:
        self.model, self.training, self.subject = model, training, subject
        self.seeds, self.steps, self.clock, self.done = tuple(seeds), steps, clock, done
        self.floor = abs(subject.facts.loss_constant or 0.0)
        if not math.isfinite(self.floor):
            self.floor = 0.0
        self.as_it_is: dict[int, Course] = {}
        self.count = 0

    def baseline(self, seed: int) -> Course:
        """Return how the model as it is trains from a seed; the training is made once."""
        if seed not in self.as_it_is:
            self.as_it_is[seed] = self.training(copied(self.model), Patch(), seed, self.steps, self.clock)
            self._count()
        return self.as_it_is[seed]

    def repaired(self, patch: Patch) -> nn.Module:
        """Return a copy with a change made to it."""
        return patch.change(copied(self.model), self.subject.inputs)

    def written(self, remedy: Remedy, seed: int) -> Patch | None:
        """Return a remedy's change as it is drawn from a seed; None if it does not apply."""
        return remedy.write(replace(self.subject, seed=seed))

    def attempted(self, remedy: Remedy) -> Patch | str | None:
        """Return the change as the first seed draws it, or why it could not be written; None if it does not apply."""
        try:
            return self.written(remedy, self.seeds[0])
        except Exception as error:  # it looks at somebody's model, whose code may raise anything
            return _refused(error)

    def look(self, trial: Trial, remedy: Remedy) -> Trial:
        """Try a remedy once, to see whether more is worth its time.

        Raises:
            Spent: if the time is over.
        """
        return self._made(trial, remedy, self.seeds[:1])

    def verify(self, trial: Trial, remedy: Remedy) -> Trial:
        """Try a remedy with all seeds but the one of the first look, which chose it.

        Raises:
            Spent: if the time is over.
        """
        return self._made(trial, remedy, self.seeds[1:])

    def _made(self, trial: Trial, remedy: Remedy, seeds: Sequence[int]) -> Trial:
        before = [self.baseline(seed) for seed in seeds]
        after = []
        for seed in seeds:
            course = self._with(remedy, seed)
            if isinstance(course, str):
                return replace(trial, effect=None, said=course)
            after.append(course)
            self._count()
        effects = [effect_of(b.end, a.end, self.floor) for b, a in zip(before, after, strict=True)]
        low, high = _interval(effects)
        return replace(
            trial,
            effect=fmean(effects),
            low=low,
            high=high,
            before=_told(before),
            after=_told(after),
            seeds=tuple(seeds),
        )

    def _with(self, remedy: Remedy, seed: int) -> Course | str:
        """Return how the model trains with a remedy, or why it does not."""
        try:
            patch = self.written(remedy, seed)
            if patch is None:
                return "does not apply"
            return self.training(self.repaired(patch), patch, seed, self.steps, self.clock)
        except Spent:
            raise
        except Exception as error:  # what a change makes of somebody's model may raise anything
            return _refused(error)

    def _count(self) -> None:
        self.count += 1
        self.done(self.count)


def _refused(error: Exception) -> str:
    if isinstance(error, UsageError | MeasurementError):
        return f"does not apply: {error}"
    return f"with it the model or its training fails: {raised(error)}"


def _interval(effects: Sequence[float]) -> tuple[float | None, float | None]:
    if len(effects) < 2:
        return None, None
    half = student_quantile(len(effects) - 1) * stdev(effects) / math.sqrt(len(effects))
    return fmean(effects) - half, fmean(effects) + half


def _told(courses: Sequence[Course]) -> dict[str, Any]:
    return {
        "loss": fmean(course.end for course in courses),
        "losses": [course.end for course in courses],
        "curves": [list(course.losses) for course in courses],
        "curve": [fmean(values) for values in zip(*(course.losses for course in courses), strict=True)],
    }
