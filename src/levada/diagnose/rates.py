"""Steps of training at the rate that somebody chose, and at others where those gain next to nothing."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from levada.diagnose.loss import Loss
from levada.diagnose.material import Material
from levada.diagnose.passes import Run
from levada.diagnose.plateau import plateaus
from levada.diagnose.rehearsal import REHEARSAL, STEPS, Course, judged, rehearse
from levada.diagnose.surroundings import InputScale, standardised
from levada.diagnose.update import Assumed, Factory, Named, Update, altered, first_update, warmed
from levada.inputs import Batch
from levada.probe.damping import eps_fraction

__all__ = [
    "FAINT",
    "LITTLE",
    "LONG",
    "MEAGRE",
    "NO_MOTION",
    "PLAIN",
    "SHORT",
    "STALLED",
    "UNDAMPED",
    "courses_of",
    "largest_step",
]

# A first step that lowers the loss by less, and moves no block's weights by more, may be too small to learn.
NO_GAIN, NO_MOTION = 1e-3, 1e-6
# Steps, beside the weights: less than rates in use make of a fresh model; short enough to follow a gradient, and long
# enough to learn by; and the longest that are.
MEAGRE, SHORT, LONG, LONGEST = 7e-4, 3e-3, 1e-2, 1e-1
# Most elements are held back by eps; without that, it is this share of what it was.
MOSTLY, UNDAMPED = 0.5, 1e-8
# Shares of the loss that the steps gain: little enough to try others, plain enough to end, and as good as none.
FAINT, PLAIN, LITTLE, STALLED = 0.05, 0.1, 0.01, 1e-3
# At a rate so many times as large a step that rounding takes whole is seen.
LIFTED = 2.0**20
# Sizes of inputs, and means beside deviations, that a first layer is not made for.
LARGE, SMALL, OFF_CENTRE = 10.0, 1e-3, 10.0


def courses_of(material: Material, loss_after: float | None, scale: InputScale | None) -> dict[str, Course]:
    """Rehearse some steps where somebody chose the rate, or the inputs give a reason to.

    Those at the rate that was chosen come first, and end the test where the loss falls steadily. Else others are tried:
    "lower" if they end above the start or gain little, "higher" if they are short beside the weights, and "highest" if
    nothing gained anything. Where eps holds most of a step back they
    are made with a smaller one too ("undamped"). Where the steps of an optimizer that rescales gradients are large,
    longer trainings follow (`plateaus`). While a rate warms up, steps at the rate that it leads to are made, and no
    lower ones: a warm-up is there because those may throw the loss.

    Args:
        material: what was measured before.
        loss_after: loss after the optimizer's first step.
        scale: of the inputs.

    Cost:
        At most 10 training steps for each rate, and 160 where steps are large; one forward pass.
    """
    run, loss, update, before = material.run, material.loss, material.update, material.value
    if loss is None or update is None or before is None or loss_after is None or not math.isfinite(before):
        return {}
    batch = _plain_inputs(run, scale)
    # A rate that nobody chose is not judged.
    chosen = not (isinstance(material.factory, Assumed) and material.factory.lr is None)
    if not chosen and batch is None:
        return {}
    if chosen and not update.peak > 0:
        material.unmade["courses"], chosen = "the learning rate is 0", False
        if batch is None:
            return {}
    reasons = _reasons(material, loss_after) if chosen else ()
    if isinstance(material.factory, Named) and material.factory.lr is None and not reasons:
        chosen = False  # an optimizer's default is judged where its first step asks for it
        if batch is None:
            return {}
    if not run.pace.allows(REHEARSAL, 1 + STEPS, STEPS + 1, rules=judged(reasons, batch is not None)):
        if chosen and not reasons:
            material.unmade["courses"] = f"a budget of {run.pace.budget:g} s did not allow {REHEARSAL}"
        return {}
    if _random(material):
        material.unmade["courses"] = "the loss differs from run to run"
        return {}
    tests = _Rates(material, loss, reasons, batch)
    return tests.all(update) if chosen else tests.inputs()


@dataclass(slots=True)
class _Rates:
    """Rehearsals of one model, and those that came to their end."""

    material: Material
    loss: Loss
    reasons: Sequence[str]
    batch: Batch | None
    found: dict[str, Course] = field(default_factory=dict)

    def all(self, update: Update) -> dict[str, Course]:
        """Rehearse at the rate that was chosen, and at those that this one gives a reason to try."""
        warming = update.peak > update.lr and "lower" not in self.reasons  # what throws the loss now is judged now
        factory = warmed(self.material.factory) if warming else self.material.factory
        damped = _damped(self.material, update)
        full = self._try("lr", 1.0, factory, until=_falls if self.batch is None and not damped else None)
        largest, typical = largest_step(self.material), _typical_step(self.material)
        if not warming and update.eps is not None and typical >= LONGEST:  # clipping in the loop is nothing to those
            told = self.material.objective.of_zeros if self.material.objective is not None else None
            start = min(self.material.value or 0.0, told) if told is not None else self.material.value or 0.0
            self.found |= plateaus(self.material.run, self.loss, factory, start)
        if full is None:
            return self.found
        if damped:
            self._try("undamped", 1.0, altered(factory, _undamped))
        if warming:
            gradients = {name: g for name, g in self.material.gradients.items() if g is not None}
            largest = _largest(self.material, first_update(self.material.run.model, gradients, factory))
        size = abs(full.losses[0])
        if not warming and full.end > full.losses[0]:
            lower = min(0.1, max(SHORT / largest, 1e-6)) if largest > 0 else 0.1
            self._try("lower", lower, factory)
        elif not warming and full.gain < PLAIN * size and not largest < SHORT:
            self._try("lower", 0.1, factory)
        if full.gain < FAINT * size and 0 < largest < LONG:
            self._try("higher", LONG / largest, factory)
            if update.eps is not None and not damped:
                self._second(factory, LONG / largest, size)
        gains = [course.gain for course in self.found.values()]
        if not warming and 0 < typical < LONGEST / 2 and max(gains) < STALLED * size:
            self._try("highest", LONGEST / typical, factory)
        return self.inputs()

    def _second(self, factory: Factory, factor: float, size: float) -> None:
        """Rehearse on a second batch, if on the first steps shorter than usual gain little, and longer ones much."""
        run, more, full = self.material.run, self.found.get("higher"), self.found["lr"]
        if (
            more is None
            or len(run.batches) < 2
            or LONG / factor > MEAGRE
            or not more.gain > max(LITTLE * size, full.gain)
        ):
            return
        self._try("second", 1.0, factory, run.batches[1])
        self._try("second_higher", factor, factory, run.batches[1])

    def inputs(self) -> dict[str, Course]:
        """Rehearse on standardised inputs, if the inputs are far from that."""
        factory = self.material.factory
        if self.batch is not None and ("lr" in self.found or self._try("lr", 1.0, factory) is not None):
            self._try("standardised", 1.0, factory, self.batch)
        return self.found

    def _try(
        self,
        name: str,
        factor: float,
        factory: Factory,
        batch: Batch | None = None,
        until: Callable[[Sequence[float]], bool] | None = None,
    ) -> Course | None:
        run, loss = self.material.run, self.loss
        rules = judged((*self.reasons, name), self.batch is not None)
        if not run.pace.allows(REHEARSAL, STEPS + 1, STEPS + 1, rules=rules):
            return None
        given = run.batches[0] if batch is None else batch

        def objective() -> Tensor:
            return loss(run(batch=given), given)

        course = rehearse(run.model, objective, factory, run.pace.deadline, factor, until=until)
        if course is None:
            self.material.unmade["courses"] = "the optimizer refused to make further steps"
            return None
        if course.complete:
            self.found[name] = course
            return course
        if until is None or not until(course.losses):
            run.pace.leave_out(REHEARSAL, rules)
        return None


def _damped(material: Material, update: Update) -> bool:
    """Whether eps holds back most of the elements of half of the blocks or more."""
    shares = [eps_fraction(update.damped, site.parameters) for site in material.execution.sites]
    known = [share for share in shares if not math.isnan(share)]
    return bool(known) and statistics.median(known) > MOSTLY


def _undamped(group: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"eps": max(UNDAMPED * group["eps"], 1e-30)} if isinstance(group.get("eps"), int | float) else {}


def largest_step(material: Material) -> float:
    """Return the largest first step of a block, beside its weights; 0 if none was made.

    A step that rounding takes whole is measured at a rate that is larger by a power of two.

    Args:
        material: what was measured before.
    """
    if material.update is None:
        return 0.0
    found = _largest(material, material.update)
    gradients = {name: g for name, g in material.gradients.items() if g is not None}
    if found > 0 or not any(bool((g.to_dense() != 0).any()) for g in gradients.values()):
        return found
    larger = first_update(
        material.run.model, gradients, altered(material.factory, lambda group: {"lr": LIFTED * group["lr"]})
    )
    return _largest(material, larger) / LIFTED


def _largest(material: Material, update: Update) -> float:
    return max(_steps(material, update), default=0.0)


def _typical_step(material: Material) -> float:
    """Return the median first step of the blocks, beside their weights."""
    steps = _steps(material, material.update) if material.update is not None else []
    return statistics.median(steps) if steps else 0.0


def _steps(material: Material, update: Update) -> list[float]:
    ratios = [update.ratio(site.parameters) for site in material.execution.sites]
    return [ratio for ratio in ratios if not math.isnan(ratio)]


def _falls(losses: Sequence[float]) -> bool:
    """Whether the loss falls steadily, and has fallen far."""
    if len(losses) < 4 or not losses[-1] < losses[-2] < losses[-3]:
        return False
    return losses[0] - losses[-1] >= PLAIN * abs(losses[0])


def _reasons(material: Material, loss_after: float) -> tuple[str, ...]:
    """Return the rates for which the first step alone gives a reason, so that without them a rule is unknown."""
    before = material.value or 0.0
    if not loss_after <= before:
        return ("lower",)
    short = 0 < largest_step(material) < NO_MOTION and before - loss_after < NO_GAIN * abs(before)
    return ("higher",) if short else ()


def _random(material: Material) -> bool:
    with torch.no_grad():
        value = float(material.loss_of(material.run()))
    return material.value is not None and abs(value - material.value) > 1e-3 * abs(material.value)


def _plain_inputs(run: Run, scale: InputScale | None) -> Batch | None:
    """Return the first batch at mean 0 and deviation 1, if its inputs are far from that; not where they are targets."""
    if scale is None or not (scale.rms > LARGE or scale.rms < SMALL or abs(scale.mean) > OFF_CENTRE * scale.deviation):
        return None
    batch = run.batches[0]
    targets = batch.targets
    if isinstance(targets, Tensor) and any(
        t.shape == targets.shape and torch.equal(t, targets) for t in batch.tensors()
    ):
        return None
    return standardised(run.batches)
