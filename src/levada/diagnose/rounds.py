"""One round of remedies on a model: look at all that answer a cause, verify the best, check what they repaired."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict, final

import torch

from levada._errors import MeasurementError, UsageError
from levada.diagnose.causes import errors, fired
from levada.diagnose.check import examine
from levada.diagnose.course import Clock, Spent
from levada.diagnose.facts import Facts, facts_of
from levada.diagnose.loss import LossLike
from levada.diagnose.remedies import Patch, Remedy
from levada.diagnose.report import Report
from levada.diagnose.update import OptimizerLike
from levada.diagnose.verify import MOST, NOTICEABLE, Trial, Trials, ranked
from levada.inputs import Batch

__all__ = ["LEAST_TRIALS", "Checked", "How", "Kept", "Round"]

LEAST_TRIALS = 3


class How(TypedDict, total=False):
    """How the model is trained: arguments of `check` that mean the same here."""

    loss: LossLike
    optimizer: OptimizerLike
    lr: float | None
    seed: int


@final
class Kept:
    """Batches that can be read again and again, though they came from something that can be read once.

    Args:
        batches: all of them.
    """

    def __init__(self, batches: Sequence[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


@final
@dataclass(frozen=True, slots=True)
class Checked:
    """A copy that a remedy repaired, as a check sees it.

    Attributes:
        patch: what was changed.
        report: of the check.
        facts: what it knows beside the signals.
    """

    patch: Patch
    report: Report
    facts: Facts


@final
@dataclass(slots=True)
class Round:
    """Remedies for some causes, on one model.

    Attributes:
        made: the trainings.
        remedies: what to try, by name.
        how: as for `fix`.
        clock: of the whole call, for the checks; that of the trainings is in `made`.
        before: the check of the model without any of the remedies.
        named: makes the name of a trial from that of its remedy.
        checks: what the checks of repaired copies said, by name of the trial.
        spent: whether time ran out.
    """

    made: Trials
    remedies: Mapping[str, Remedy]
    how: How
    clock: Clock
    before: Report
    named: Callable[[str], str] = str
    checks: dict[str, Checked] = field(default_factory=dict)
    spent: bool = False

    def run(self, reasons: Sequence[str]) -> list[Trial]:
        """Return what became of every remedy that answers one of these causes.

        Args:
            reasons: names of rules.
        """
        return self._without_new_errors(self._tried(reasons))

    def best(self, trials: Sequence[Trial]) -> list[Trial]:
        """Return what is proposed, the best first.

        What is steady comes first, then what leaves no error: that repairs more, whatever the loss says.

        Args:
            trials: of this round.
        """
        proposed = ranked([t for t in trials if t.proposed], self.made.floor)
        return sorted(proposed, key=lambda t: (not t.steady, bool(errors(self.checks[t.name].report))))

    def remedy(self, trial: Trial) -> Remedy:
        """Return the remedy of a trial.

        Args:
            trial: of this round.
        """
        return next(remedy for name, remedy in self.remedies.items() if self.named(name) == trial.name)

    def _written(self, reasons: Sequence[str]) -> dict[str, Trial]:
        """Write all changes; what changes the loss says what all of them are judged by, the first one first."""
        trials: dict[str, Trial] = {}
        start = self.made.start(self.made.seeds[0]) or Patch()
        seen, judge = {str(start)}, None
        for name, remedy in self.remedies.items():
            answered = tuple(cause for cause in reasons if cause in remedy.causes)
            patch = self.made.attempted(remedy) if answered else None
            trial = Trial(self.named(name), answered, remedy.size, "", does=remedy.sentence)
            if isinstance(patch, str):
                trials[name] = replace(trial, said=patch)
            # Two learning rates may come to the same, and outputs change their meaning once.
            elif patch is not None and str(patch) not in seen and not (start.measure and patch.loss != start.loss):
                seen.add(str(patch))
                says = patch.says.removeprefix(start.says).strip()
                trials[name] = replace(trial, patch=str(patch), does=says or remedy.sentence)
                if patch.loss != start.loss or (patch.measure and not start.measure):
                    judge = judge or patch
        if judge is not None:
            self.made.judge_by(judge)
        return trials

    def _tried(self, reasons: Sequence[str]) -> list[Trial]:
        """Look at every remedy that answers a cause, and verify the best."""
        trials = self._written(reasons)
        names = {trial.name: name for name, trial in trials.items()}
        try:
            for name in [name for name, trial in trials.items() if trial.patch]:
                trials[name] = self.made.look(trials[name], self.remedies[name])
            hopeful = [t for t in trials.values() if t.effect is not None and t.effect > 0]
            for trial in _varied(ranked(hopeful, self.made.floor)):
                if sum(t.helps and t.steady for t in trials.values()) == MOST:
                    break
                name = names[trial.name]
                trials[name] = self.made.verify(trial, self.remedies[name])
            for trial in ranked([t for t in trials.values() if _unsure(t)], self.made.floor):
                if any(t.helps and t.steady for t in trials.values()):
                    break  # more seeds are for what is left with nothing
                name = names[trial.name]
                trials[name] = self.made.verify(trial, self.remedies[name], more=True)
        except Spent:
            self.spent = True
        return [_said(trial) for trial in trials.values()]

    def _without_new_errors(self, trials: Sequence[Trial]) -> list[Trial]:
        """Check the copies that remedies repaired, and propose those that bring no error."""
        known, told = errors(self.before), {t.name: t for t in trials}
        for trial in ranked([t for t in trials if t.helps], self.made.floor):
            if self.clock.left < (0.0 if not self.checks else self.before.seconds):
                told[trial.name] = replace(trial, said="helps, but no time was left to check the repaired model")
                continue
            try:
                checked = self._checked(trial)
            except (UsageError, MeasurementError) as error:
                why = str(error).removeprefix("check: ")
                told[trial.name] = replace(trial, said=f"helps, but the repaired model cannot be checked: {why}")
                continue
            self.checks[trial.name] = checked
            new = sorted(errors(checked.report) - known)
            left = tuple(rule for rule in fired(self.before) if rule in fired(checked.report))
            said = f"helps, but brings {', '.join(new)}" if new else "helps, no new error"
            if not trial.steady:
                said += "; its loss spikes on the way"
            told[trial.name] = replace(trial, said=said, proposed=not new, verdict=checked.report.verdict, left=left)
        return list(told.values())

    def _checked(self, trial: Trial) -> Checked:
        patch = self.made.written(self.remedy(trial), self.how.get("seed", 0))
        assert patch is not None  # it was tried
        repaired, training = self.made.repaired(patch), self.made.training

        def build(given: Any) -> torch.optim.Optimizer:
            parameters = list(given)
            return patch.prepare(training.factory(parameters), parameters)

        batches = Kept([_raw(training.fitted(batch, repaired)) for batch in training.batches])
        how: How = {**self.how, "optimizer": build, "lr": None}
        if patch.loss:
            how["loss"] = patch.loss_function(training.loss)
        report, trace = examine(repaired, batches, **how, budget=max(0.0, self.clock.left))
        return Checked(patch, report, facts_of(trace))


def _raw(batch: Batch) -> Any:
    return (dict(batch.kwargs) if batch.kwargs else batch.args, batch.targets)


def _varied(trials: Sequence[Trial]) -> list[Trial]:
    """Put the best of each size of change first, so that three learning rates do not crowd out what treats a cause."""
    first: dict[int, Trial] = {}
    for trial in trials:
        first.setdefault(trial.size, trial)
    return sorted(trials, key=lambda t: first[t.size] is not t)


def _unsure(trial: Trial) -> bool:
    """Return whether a remedy seems to help, and its seeds are too few to tell."""
    return len(trial.seeds) >= LEAST_TRIALS and not trial.helps and (trial.effect or 0.0) >= NOTICEABLE


def _said(trial: Trial) -> Trial:
    if trial.effect is None:
        return trial
    if len(trial.seeds) < LEAST_TRIALS:
        return replace(trial, said="does not help" if trial.effect <= 0 else "not verified")
    hopeless = trial.high is not None and trial.high < NOTICEABLE
    return replace(trial, said="helps" if trial.helps else "does not help" if hopeless else "not sure")
