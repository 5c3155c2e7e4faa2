"""Repair a model: find causes, try the remedies that answer them, and propose what verifiably helps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from levada._errors import MeasurementError, UnknownArgumentError, UsageError
from levada._names import meant
from levada.diagnose.causes import causes
from levada.diagnose.check import examine
from levada.diagnose.choose import SPENT, Second, chosen, second
from levada.diagnose.course import Clock, Course, Spent, Training, copied
from levada.diagnose.facts import Facts, facts_of
from levada.diagnose.loss import Loss, resolve_loss
from levada.diagnose.preserve import preserve
from levada.diagnose.remedies import REMEDIES, Patch, Remedy, Subject, calls
from levada.diagnose.repaired import Fix
from levada.diagnose.report import Report
from levada.diagnose.rounds import LEAST_TRIALS, How, Kept, Round
from levada.diagnose.update import DEFAULT, resolve_optimizer
from levada.diagnose.verify import MOST, Trials
from levada.inputs import MAX_BATCHES, Batch, read_batches, require_model
from levada.probe.compiled import eager, unwrapped
from levada.stacking import as_layers

__all__ = ["How", "fix"]

LEAST_STEPS = 50
# The part of the budget that the first check may take.
CHECKED = 0.25
# About as many remedies answer a cause.
LOOKS = 12
# Trainings of a few steps, of which the fastest says what a step costs.
TIMED = 3

Progress = Callable[[int, int], None]


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
        with as_layers(inner), preserve(inner, how.get("seed", 0)), eager(compiled):
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
        near = meant(min(unknown), [*How.__annotations__, "budget", "trials", "steps", "remedies", "progress"])
        rule = f"fix: there is no argument {min(unknown)!r}.{near}"
        raise UnknownArgumentError(f"{rule} How it trains is said by {known}.")


def _kept(batch: Any) -> Any:
    if batch is None or isinstance(batch, Tensor | Mapping | tuple | list) or hasattr(batch, "keys"):
        return batch
    return Kept(list(itertools.islice(batch, MAX_BATCHES))) if hasattr(batch, "__iter__") else batch


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
        subject = self._subject(before, facts, batches, training.loss)
        steps = self._affordable(training, steps, trials, before)
        if not steps:
            return self._unknown(before, short)
        count, expected = itertools.count(1), 1 + LOOKS + (1 + MOST) * trials
        done = partial(_told, self.progress, count, expected)
        seeds = range(seed, seed + 2 * trials + 1)
        made = Trials(
            self.model, training, subject, seeds=seeds, steps=steps, clock=self._training_clock(before), done=done
        )
        try:
            course = made.baseline(seed)
        except Spent:
            return self._unknown(before, SPENT)
        found = causes(before, course, subject, made.floor)
        if found:
            fixed = self._repaired(Round(made, self.remedies, self.how, self.clock, before), found)
        else:
            fixed = Fix("healthy", None, "", before, None, (), notes=_learned(course, steps))
        self.progress(last := next(count) - 1, last)
        return replace(fixed, seconds=self.clock.passed)

    def _repaired(self, first: Round, found: tuple[str, ...]) -> Fix:
        """Try what answers the causes, and on top of the best what answers what that leaves."""
        trials = first.run(found)
        order = first.best(trials)
        more = second(first, order[0]) if order else Second()
        return replace(chosen(first, order, trials, more), causes=found)

    def _unknown(self, before: Report, note: str) -> Fix:
        return Fix("unknown", None, "", before, None, (), notes=(note,), seconds=self.clock.passed)

    def _subject(self, before: Report, facts: Facts, batches: Sequence[Batch], loss: Loss) -> Subject:
        scratch, seed = copied(self.model), self.how.get("seed", 0)
        torch.manual_seed(seed)
        return Subject(scratch, before, facts, batches, calls(scratch, batches[0]), seed, loss)

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


def _told(progress: Progress, count: Iterator[int], expected: int) -> None:
    done = next(count)
    progress(done, max(done, expected))


def _fewest(trials: int) -> int:
    """Return the steps of a look at one remedy, and of its verification."""
    return LEAST_STEPS * (2 + 2 * trials)


def _learned(course: Course, steps: int) -> tuple[str, ...]:
    return (
        f"In {steps} steps the loss falls from {course.start:.4g} to {course.end:.4g}: there is nothing to repair.",
    )
