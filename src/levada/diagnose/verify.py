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
from levada.diagnose.loss import Loss
from levada.diagnose.remedies import Patch, Remedy, Subject, adjusted
from levada.inputs import raised

__all__ = ["Trial", "Trials", "compared", "effect_of", "ranked"]

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
    outputs of zero: 0.9 of a loss above that of zeros says that a tenth of it is left, a negative one that the loss is
    larger with the remedy.

    Attributes:
        name: name of the remedy.
        causes: the rules that it answers here.
        size: how much it changes, from 1, a number of the training recipe, to 5, how the blocks are connected.
        patch: the change, in code.
        effect: mean over seeds; None if it was not tried.
        low: lower end of its 95 % interval (Student's t over seeds); None with a single seed.
        high: upper end.
        before: losses after training as it is, by seed, and where they settle; the loss of each step by seed, and its
            mean.
        after: the same with the remedy.
        seeds: seeds that `effect` is of. The first look at a remedy has a seed of its own, which is not among them.
        said: what became of it, in words.
        proposed: whether it helps and brings no new error.
        verdict: the check's verdict on the repaired copy; "" if it was not made.
        left: rules that fired before and still fire there.
        does: what it does, a sentence.
        steady: whether the loss stays finite with every seed and never climbs by as much as it is with nothing
            learned.
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
    does: str = ""
    steady: bool = True

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
    """Sort by steadiness, then by the loss that is left, and what is as good by what it leaves and changes.

    A training whose loss spikes, or is no number, with any seed comes after all that are steady. The loss that is left
    is the mean over seeds of the worse of that at the end and of the median over the last quarter of the steps. All are
    compared with the same trainings of the model as it is, by the same loss, so that the order is that of the effects;
    effects alone would not tell apart what repairs a training that does not stay finite. Of what is as good, the one
    after which fewer rules fire comes first, then the smaller change.

    Args:
        trials: with losses.
        floor: as for `effect_of`.

    Example:
        >>> one = Trial("one", (), 5, "", after={"loss": 0.100})
        >>> other = Trial("other", (), 1, "", after={"loss": 0.102})
        >>> wild = Trial("wild", (), 1, "", after={"loss": 0.001}, steady=False)
        >>> [trial.name for trial in ranked([wild, one, other], floor=2.0)]
        ['other', 'one', 'wild']
    """
    left = sorted(trials, key=lambda t: (not t.steady, _left(t)))
    order = []
    while left:
        best = left[0]
        close = [t for t in left if t.steady == best.steady and effect_of(_left(t), _left(best), floor) < CLOSE]
        order.append(min(close, key=lambda t: (len(t.left), t.size, _left(t))))
        left.remove(order[-1])
    return order


def _left(trial: Trial) -> float:
    return float(trial.after.get("settled", trial.after.get("loss", math.inf)))


@final
class Trials:
    """Remedies on copies of one model.

    Args:
        model: copied, never changed.
        training: what copies are trained with.
        subject: what remedies look at.
        seeds: the first is for the first look, the others for the verification: half of them, and all where those
            leave it unsure.
        steps: of one training.
        clock: when to stop.
        done: called after each training.
        base: a remedy that both sides have, if others are tried on top of it, and what those look at: the copy that it
            repaired, whose model is made again for each seed.
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
        done: Callable[[], None],
        base: tuple[Remedy, Subject] | None = None,
    ) -> None:
        self.model, self.training, self.subject = model, training, subject
        self.seeds, self.steps, self.clock, self.done = tuple(seeds), steps, clock, done
        self.base: Remedy | None = None
        self.onto: Subject | None = None
        if base is not None:
            self.base, self.onto = base
        self.judged = self.measure = ""
        self.floor = _floor(subject.facts.loss_constant)
        self.as_it_is: dict[tuple[int, str], Course] = {}
        self.with_it: dict[tuple[str, int], Course] = {}

    def judge_by(self, patch: Patch) -> None:
        """Judge both sides by the loss that a patch puts in, if it changes the loss or what the outputs mean.

        A loss that is at fault judges nothing: a learning rate that lowers it may raise the right one.

        Args:
            patch: of a remedy that answers a cause.
        """
        self.measure, self.judged = patch.measure or patch.loss, patch.judged
        out = self.subject.outputs
        if self.measure and out is not None:
            self.floor = _floor(self._judge(Patch()).of_zeros(out, self.subject.batches[0]))

    def _judge(self, patch: Patch) -> Loss:
        """Return what a copy with a patch is judged by: its own loss if that gives its outputs another meaning."""
        return patch.adjust(self.training.loss) if patch.measure else adjusted(self.training.loss, self.measure)

    def baseline(self, seed: int) -> Course:
        """Return how the model as it is, or with the base, trains from a seed; the training is made once."""
        key = seed, self.measure
        if key not in self.as_it_is:
            patch = self.start(seed) or Patch()
            self.as_it_is[key] = self._trained(patch, seed)
            self.done()
        return self.as_it_is[key]

    def start(self, seed: int) -> Patch | None:
        """Return the change that both sides have, as it is drawn from a seed; None if there is none."""
        return None if self.base is None else self.base.write(replace(self.subject, seed=seed))

    def repaired(self, patch: Patch) -> nn.Module:
        """Return a copy with a change made to it."""
        return patch.change(copied(self.model), self.subject.inputs)

    def written(self, remedy: Remedy, seed: int) -> Patch | None:
        """Return a remedy's change as it is drawn from a seed, after the base's; None if it does not apply."""
        start = self.start(seed)
        if start is None or self.onto is None:
            return remedy.write(replace(self.subject, seed=seed))
        patch = remedy.write(replace(self.onto, model=self.repaired(start), seed=seed))
        return None if patch is None else start.then(patch)

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

    def verify(self, trial: Trial, remedy: Remedy, *, more: bool = False) -> Trial:
        """Try a remedy with seeds other than that of the first look, which chose it.

        Args:
            trial: of the remedy.
            remedy: what is tried.
            more: with twice as many. Each look proposes what does nothing in 2.5 % of cases, both in at most 5 %.

        Raises:
            Spent: if the time is over.
        """
        return self._made(trial, remedy, self.seeds[1:] if more else self.seeds[1 : 1 + len(self.seeds) // 2])

    def _made(self, trial: Trial, remedy: Remedy, seeds: Sequence[int]) -> Trial:
        before = [self.baseline(seed) for seed in seeds]
        for seed in seeds:
            if (trial.name, seed) not in self.with_it:
                course = self._with(remedy, seed)
                if isinstance(course, str):
                    return replace(trial, effect=None, said=course)
                self.with_it[trial.name, seed] = course
        return compared(trial, before, [self.with_it[trial.name, seed] for seed in seeds], seeds, self.floor)

    def _with(self, remedy: Remedy, seed: int) -> Course | str:
        """Return how the model trains with a remedy, or why it does not."""
        try:
            patch = self.written(remedy, seed)
            if patch is None:
                return "does not apply"
            course = self._trained(patch, seed)
        except Spent:
            raise
        except Exception as error:  # what a change makes of somebody's model may raise anything
            return _refused(error)
        self.done()  # what this raises is the user's
        return course

    def _trained(self, patch: Patch, seed: int) -> Course:
        return self.training(self.repaired(patch), patch, seed, self.steps, self.clock, self._judge(patch))


def compared(
    trial: Trial, before: Sequence[Course], after: Sequence[Course] | None, seeds: Sequence[int], floor: float
) -> Trial:
    """Return a trial with its losses and its effect.

    Args:
        trial: of one remedy.
        before: trainings without it, a seed each.
        after: with it; None to keep what the trial has.
        seeds: of both.
        floor: as for `effect_of`.
    """
    as_it_is, repaired = _told(before), trial.after if after is None else _told(after)
    effects = [effect_of(b, a, floor) for b, a in zip(as_it_is["losses"], repaired["losses"], strict=True)]
    low, high = _interval(effects)
    return replace(
        trial,
        effect=fmean(effects),
        low=low,
        high=high,
        before=as_it_is,
        after=repaired,
        seeds=tuple(seeds),
        steady=trial.steady if after is None else not any(course.spikes(floor) for course in after),
    )


def _floor(value: float | None) -> float:
    return abs(value) if value is not None and math.isfinite(value) else 0.0


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
        "settled": fmean(course.settled for course in courses),
        "curves": [list(course.losses) for course in courses],
        "curve": [fmean(values) for values in zip(*(course.losses for course in courses), strict=True)],
    }
