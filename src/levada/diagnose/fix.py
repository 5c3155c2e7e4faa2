"""Repair a model: find causes, try the remedies that answer them, and propose what verifiably helps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict, Unpack, final

import torch
from torch import Tensor, nn

from levada._errors import MeasurementError, UsageError
from levada.diagnose.causes import causes, errors, fired
from levada.diagnose.check import examine
from levada.diagnose.compiled import eager, unwrapped
from levada.diagnose.course import Clock, Course, Spent, Training, copied
from levada.diagnose.facts import Facts, facts_of
from levada.diagnose.finding import Finding, Proposal
from levada.diagnose.loss import Loss, LossLike, resolve_loss
from levada.diagnose.preserve import preserve
from levada.diagnose.remedies import REMEDIES, Patch, Remedy, Subject, calls
from levada.diagnose.repaired import Fix, Outcome
from levada.diagnose.report import Report
from levada.diagnose.update import DEFAULT, OptimizerLike, resolve_optimizer
from levada.diagnose.verify import MOST, NOTICEABLE, Trial, Trials, ranked
from levada.inputs import MAX_BATCHES, Batch, read_batches, require_model

__all__ = ["How", "fix"]

LEAST_STEPS, LEAST_TRIALS = 50, 3
# The part of the budget that the first check may take.
CHECKED = 0.25
# About as many remedies answer a cause.
LOOKS = 12
# Trainings of a few steps, of which the fastest says what a step costs.
TIMED = 3

Progress = Callable[[int, int], None]


class How(TypedDict, total=False):
    """How the model is trained: arguments of `check` that mean the same here."""

    loss: LossLike
    optimizer: OptimizerLike
    lr: float | None
    seed: int


def fix(
    model: nn.Module,
    batch: Any = None,
    *,
    budget: float = 120.0,
    trials: int = LEAST_TRIALS,
    steps: int = 100,
    remedies: Mapping[str, Remedy] = REMEDIES,
    progress: Progress | None = None,
    **how: Unpack[How],
) -> Fix:
    """Say what repairs a model, after trying it: every remedy that answers a cause, on copies of the model.

    Causes are what `check` finds, and what a short training of the model as it is shows: a loss that does not fall or
    is thrown out. Each remedy is code. It is run on a copy, and the copy is trained beside one of the model as it is,
    on the same batches, with the same random numbers. One seed looks which remedies help at all; the best are verified
    with other seeds. A remedy is proposed if the loss falls further by at least 2 %, the 95 % interval over seeds is
    above zero, and a check of the repaired copy shows no error that was not there before.

    The model comes back as it was: parameters, buffers, mode, hooks, gradients and every random number generator, also
    after an error or an interruption.

    Args:
        model: any module that can be copied.
        batch: as for `check`, with targets; up to four batches are trained on, or random halves of a single one.
        budget: seconds for all of it; steps are fewer, but at least 50, where it is short.
        trials: number of seeds of the verification, at least 3.
        steps: optimizer steps of each training, at least 50.
        remedies: what to try, by name.
        progress: called with the trainings that are done and the number that is expected.
        **how: `loss`, `optimizer`, `lr` and `seed`, as for `check`.

    Returns:
        The `Fix`.

    Raises:
        UsageError: if something that was given cannot be used.
        MeasurementError: if the model cannot be measured or copied.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> layers = [m for _ in range(12) for m in (nn.Linear(16, 16), nn.ReLU())]
        >>> model = nn.Sequential(*layers, nn.Linear(16, 2))
        >>> for p in model.parameters():
        ...     p.data *= 0.1
        >>> fixed = fix(model, (torch.randn(32, 16), torch.arange(32) % 2), steps=50, optimizer="SGD", lr=0.05)
        >>> fixed.outcome, fixed.before.verdict, fixed.after.verdict
        ('repaired', 'error', 'healthy')
        >>> fixed.patch.splitlines()[0]
        '# After building the model:'
    """
    clock = Clock(budget)
    require_model(model, "fix")
    _require(budget, trials, steps, how)
    inner, compiled = unwrapped(model)
    try:
        with preserve(inner, how.get("seed", 0)), eager(compiled):
            return _Repair(inner, _kept(batch), clock, remedies, how, progress or (lambda done, total: None)).run(
                trials, steps
            )
    except (UsageError, MeasurementError) as error:
        raise type(error)(f"fix: {str(error).removeprefix('check: ').removeprefix('fix: ')}") from error


def _require(budget: float, trials: int, steps: int, how: How) -> None:
    if not (isinstance(budget, int | float) and 0 < budget < math.inf):
        raise UsageError(f"fix: budget must be a positive number of seconds, got {budget!r}.")
    for name, value, least in (("trials", trials, LEAST_TRIALS), ("steps", steps, LEAST_STEPS)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise UsageError(f"fix: {name} must be an integer of at least {least}, got {value!r}.")
    unknown = set(how) - set(How.__annotations__)
    if unknown:
        known = ", ".join(sorted(How.__annotations__))
        raise UsageError(f"fix: there is no argument {min(unknown)!r}. How it trains is said by {known}.")


@final
class _Kept:
    """Batches that can be read again and again, though they came from something that can be read once."""

    def __init__(self, batches: Sequence[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def _kept(batch: Any) -> Any:
    if batch is None or isinstance(batch, Tensor | Mapping | tuple | list) or hasattr(batch, "keys"):
        return batch
    return _Kept(list(itertools.islice(batch, MAX_BATCHES))) if hasattr(batch, "__iter__") else batch


@dataclass(slots=True)
class _Repair:
    """One call of `fix`, inside of what protects the model."""

    model: nn.Module
    batch: Any
    clock: Clock
    remedies: Mapping[str, Remedy]
    how: How
    progress: Progress

    def run(self, trials: int, steps: int) -> Fix:
        """Find causes, look, verify, choose."""
        before, trace = examine(self.model, self.batch, **self.how, budget=CHECKED * max(0.0, self.clock.left))
        facts, seed = facts_of(trace), self.how.get("seed", 0)
        least = f"{LEAST_STEPS} steps of {trials} seeds with and without a remedy"
        short = f"A budget of {self.clock.budget:g} s does not allow {least}."
        if self.clock.left < _fewest(trials) * trace.context["pace"].quickest:
            return self._unknown(before, short)  # even if a step were no more than a forward pass
        batches = read_batches(self.model, self.batch, "fix")
        training = self._training(batches, facts)
        subject = self._subject(before, facts, batches)
        steps = self._affordable(training, steps, trials, before)
        if not steps:
            return self._unknown(before, short)
        expected = 1 + LOOKS + (1 + MOST) * trials
        made = Trials(
            self.model,
            training,
            subject,
            seeds=range(seed, seed + trials + 1),
            steps=steps,
            clock=self._training_clock(before),
            done=lambda count: self.progress(count, max(count, expected)),
        )
        try:
            course = made.baseline(seed)
        except Spent:
            return self._unknown(before, _SPENT)
        found_causes = causes(before, course, subject, made.floor)
        if not found_causes:
            self.progress(made.count, made.count)
            return Fix("healthy", None, "", before, None, (), notes=_learned(course, steps), seconds=self.clock.passed)
        found, spent = self._tried(made, found_causes)
        found, checks = self._without_newerrors(made, found, before)
        self.progress(made.count, made.count)
        fixed = self._chosen(made, found, checks, before, (_SPENT,) if spent else ())
        return replace(fixed, causes=found_causes)

    def _unknown(self, before: Report, note: str) -> Fix:
        return Fix("unknown", None, "", before, None, (), notes=(note,), seconds=self.clock.passed)

    def _subject(self, before: Report, facts: Facts, batches: Sequence[Batch]) -> Subject:
        scratch, seed = copied(self.model), self.how.get("seed", 0)
        torch.manual_seed(seed)
        return Subject(scratch, before, facts, batches, calls(scratch, batches[0]), seed)

    def _training(self, batches: Sequence[Batch], facts: Facts) -> Training:
        loss = self._loss(batches[0])
        name = self.how.get("optimizer") or facts.optimizer or DEFAULT
        dtype = next((p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.float32)
        return Training(loss, batches, resolve_optimizer(name, self.how.get("lr")), dtype)

    def _loss(self, batch: Batch) -> Loss:
        with torch.no_grad():
            loss = resolve_loss(self.how.get("loss"), copied(self.model)(*batch.args, **batch.kwargs), batch)
        if loss is None:
            raise UsageError(
                "fix: the batch must hold targets, or the model return its loss: a remedy is proposed only after "
                "training with it. Give (inputs, targets)."
            )
        return loss

    def _training_clock(self, before: Report) -> Clock:
        """Leave time for a check of what is proposed."""
        return Clock(self.clock.left - min(1.5 * before.seconds, 0.5 * self.clock.left))

    def _affordable(self, training: Training, steps: int, trials: int, before: Report) -> int:
        """Return how many steps each training can have; 0 if too few."""
        seed, count, seconds = self.how.get("seed", 0), 2, math.inf
        try:
            for _ in range(TIMED):  # the first one loads what later ones have, and any may be interrupted
                timed = Clock(max(0.0, self.clock.left))
                training(copied(self.model), Patch(), seed, count, timed)
                seconds = min(seconds, timed.passed / count)
        except Spent:
            return 0
        allowed = self._training_clock(before).left / max(seconds, 1e-9)
        if allowed < _fewest(trials):
            return 0
        return min(steps, max(LEAST_STEPS, int(allowed / (LOOKS + (1 + MOST) * trials))))

    def _tried(self, made: Trials, reasons: Sequence[str]) -> tuple[list[Trial], bool]:
        """Look at every remedy that answers a cause, and verify the best; the second value: whether time ran out."""
        trials: dict[str, Trial] = {}
        for name, remedy in self.remedies.items():
            answered = tuple(cause for cause in reasons if cause in remedy.causes)
            patch = made.attempted(remedy) if answered else None
            if isinstance(patch, str):
                trials[name] = Trial(name, answered, remedy.size, "", said=patch)
            elif patch is not None:
                trials[name] = Trial(name, answered, remedy.size, str(patch))
        try:
            for trial in [t for t in trials.values() if t.patch]:
                trials[trial.name] = made.look(trial, self.remedies[trial.name])
            hopeful = [t for t in trials.values() if t.effect is not None and t.effect > 0]
            for trial in _varied(ranked(hopeful, made.floor)):
                if sum(t.helps for t in trials.values()) == MOST:
                    break
                trials[trial.name] = made.verify(trial, self.remedies[trial.name])
        except Spent:
            return [_said(t) for t in trials.values()], True
        return [_said(t) for t in trials.values()], False

    def _without_newerrors(
        self, made: Trials, trials: Sequence[Trial], before: Report
    ) -> tuple[list[Trial], dict[str, Report]]:
        """Check the copies that remedies repaired, and propose those that bring no error."""
        known, told = errors(before), {t.name: t for t in trials}
        checks: dict[str, Report] = {}
        for trial in ranked([t for t in trials if t.helps], made.floor):
            if self.clock.left < (0.0 if not checks else before.seconds):
                told[trial.name] = replace(trial, said="helps, but no time was left to check the repaired model")
                continue
            try:
                report = self._checked(made, trial)
            except (UsageError, MeasurementError) as error:
                why = str(error).removeprefix("check: ")
                told[trial.name] = replace(trial, said=f"helps, but the repaired model cannot be checked: {why}")
                continue
            new = sorted(errors(report) - known)
            left = tuple(rule for rule in fired(before) if rule in fired(report))
            checks[trial.name] = report
            said = f"helps, but brings {', '.join(new)}" if new else "helps, no new error"
            told[trial.name] = replace(trial, said=said, proposed=not new, verdict=report.verdict, left=left)
        return list(told.values()), checks

    def _checked(self, made: Trials, trial: Trial) -> Report:
        patch = made.written(self.remedies[trial.name], self.how.get("seed", 0))
        assert patch is not None  # it was tried
        repaired, training = made.repaired(patch), made.training

        def build(given: Any) -> torch.optim.Optimizer:
            parameters = list(given)
            return patch.prepare(training.factory(parameters), parameters)

        batches = [training.fitted(batch, repaired) for batch in training.batches]
        how: How = {**self.how, "optimizer": build, "lr": None}
        return examine(repaired, _Kept([_raw(b) for b in batches]), **how, budget=max(0.0, self.clock.left))[0]

    def _chosen(
        self,
        made: Trials,
        trials: Sequence[Trial],
        checks: Mapping[str, Report],
        before: Report,
        notes: tuple[str, ...],
    ) -> Fix:
        proposed = ranked([t for t in trials if t.proposed], made.floor)
        # One that leaves an error repairs less than one that does not, whatever the loss says.
        order = sorted(proposed, key=lambda t: bool(errors(checks[t.name])))
        rest = ranked([t for t in trials if not t.proposed], made.floor)
        before = replace(before, findings=tuple(_proposing(f, order, trials) for f in before.findings))
        if not order:
            outcome: Outcome = "unknown" if notes and not any(t.seeds[1:] for t in trials) else "not repaired"
            return Fix(outcome, None, "", before, None, tuple(rest), notes=notes, seconds=self.clock.passed)
        best = order[0]
        patch = made.written(self.remedies[best.name], self.how.get("seed", 0))
        assert patch is not None
        learns = float(best.after["loss"]) < made.floor or not made.floor  # better than outputs of zero
        outcome = "repaired" if learns and not errors(checks[best.name]) else "improved"
        after, tried = checks[best.name], (*order, *rest)
        return Fix(outcome, made.repaired(patch), best.patch, before, after, tried, patch, (), notes, self.clock.passed)


def _fewest(trials: int) -> int:
    """Return the steps of a look at one remedy, and of its verification."""
    return LEAST_STEPS * (2 + 2 * trials)


_SPENT = "The budget was spent before everything was tried."


def _varied(trials: Sequence[Trial]) -> list[Trial]:
    """Put the best of each size of change first, so that three learning rates do not crowd out what treats a cause."""
    first: dict[int, Trial] = {}
    for trial in trials:
        first.setdefault(trial.size, trial)
    return sorted(trials, key=lambda t: first[t.size] is not t)


def _said(trial: Trial) -> Trial:
    if trial.effect is None:
        return trial
    if len(trial.seeds) < LEAST_TRIALS:
        return replace(trial, said="does not help" if trial.effect <= 0 else "not verified")
    hopeless = trial.high is not None and trial.high < NOTICEABLE
    return replace(trial, said="helps" if trial.helps else "does not help" if hopeless else "not sure")


def _learned(course: Course, steps: int) -> tuple[str, ...]:
    return (
        f"In {steps} steps the loss falls from {course.start:.4g} to {course.end:.4g}: there is nothing to repair.",
    )


def _raw(batch: Batch) -> Any:
    return (dict(batch.kwargs) if batch.kwargs else batch.args, batch.targets)


def _proposing(finding: Finding, order: Sequence[Trial], trials: Sequence[Trial]) -> Finding:
    """Give a finding the remedies that were verified, and of its own those that were not tried."""
    if finding.status != "fired":
        return finding
    verified = tuple(
        Proposal(
            trial.name,
            trial.patch,
            {"loss": trial.before["loss"]},
            {"loss": trial.after["loss"], "effect": {"value": trial.effect, "low": trial.low, "high": trial.high}},
            verified=True,
        )
        for trial in order
        if finding.rule in trial.causes
    )
    tried = {t.name for t in trials if t.effect is not None}
    return replace(finding, remedies=(*verified, *(p for p in finding.remedies if p.name not in tried)))
