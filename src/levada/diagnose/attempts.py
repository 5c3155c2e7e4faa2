"""Tests that take passes of their own: made where there is a reason to, and where they end in time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from levada._errors import MeasurementError, UsageError
from levada.diagnose.attending import Attending, attending
from levada.diagnose.loss import Loss
from levada.diagnose.material import Material
from levada.diagnose.memory import memory_of
from levada.diagnose.neighbours import Neighbours, compare, moved
from levada.diagnose.noise import noise_of
from levada.diagnose.pairing import pairing_of
from levada.diagnose.passes import gradients_of
from levada.diagnose.rates import LONG, SHORT, courses_of, largest_step
from levada.diagnose.recipe import Recipe, recipe_of
from levada.diagnose.rehearsal import STEPS, Course, rehearse
from levada.diagnose.relations import Lookout
from levada.diagnose.rounding import LIFT, Broken, Rounding, broken_step, exact_step, flushed
from levada.diagnose.rows import mixed_rows_of
from levada.diagnose.surroundings import InputScale
from levada.diagnose.update import Assumed
from levada.inputs import Batch

__all__ = ["ALIKE", "FEW_BLOCKS", "NEIGHBOURS", "attempts"]

# Depth shatters gradients: with fewer blocks it does not, and is not looked for.
FEW_BLOCKS = 10
NEIGHBOURS = "the gradients of neighbouring inputs"
# Cosines of neighbours' gradients below which the step is tried on the neighbours too.
ALIKE = 0.25
_NARROW = torch.float16, torch.bfloat16


def attempts(
    material: Material,
    lookout: Lookout,
    signals: Mapping[str, Tensor],
    loss_after: float | None,
    scale: InputScale | None,
    attention: Attending,
) -> dict[str, Any]:
    """Make the tests, and return what each showed by its name in `Facts`.

    Args:
        material: what was measured before.
        lookout: looks at the boundaries.
        signals: at the first and the last boundary, of the first batch.
        loss_after: loss after the optimizer's first step.
        scale: of the inputs.
        attention: what a pass showed of it.
    """
    pace = material.run.pace
    with pace.stage("rounding"):
        rounding, lost, broken = _rounding(material), _flushed(material), _broken(material)
    with pace.stage("neighbours"):
        neighbours = _neighbours(material, lookout, signals)
    with pace.stage("courses"):
        courses = courses_of(material, loss_after, scale)
    with pace.stage("recipe"):
        recipe = _recipe(material)
    with pace.stage("attention"):
        attention = attending(attention, material.run, material.loss, material.factory)
    with pace.stage("memory"):
        memory = memory_of(material.run, material.graph.recorder, material.loss, material.factory)
    with pace.stage("rows"):
        mixed = mixed_rows_of(material.run, material.loss, material.factory)
    with pace.stage("pairing"):
        pairing = pairing_of(material.run, material.loss, material.factory)
    with pace.stage("noise"):
        noise = noise_of(material.run, material.execution, material.loss, material.factory)
    return {
        "rounding": rounding,
        "flushed": lost,
        "broken": broken,
        "neighbours": neighbours,
        "courses": courses,
        "recipe": recipe,
        "attending": attention,
        "memory": memory,
        "mixed": mixed,
        "noise": noise,
        "pairing": pairing,
    }


def _neighbours(material: Material, lookout: Lookout, here: Mapping[str, Tensor]) -> Neighbours | None:
    """Run the inputs' neighbours forward and back, and compare."""
    run, loss = material.run, material.loss
    near = moved(run.batches[0], run.seed)
    rules = ("shattered_gradient",)
    if not material.first or loss is None or near is None or not run.pace.allows(NEIGHBOURS, 1, 1, rules=rules):
        return None
    (site,) = material.first
    last = material.execution.sites[-1].name
    there: dict[str, Tensor] = {}
    edges: dict[str, GradientEdge] = {}

    def see(name: str, tensor: Tensor) -> None:
        if name in (site, last):
            there[name] = tensor.detach().clone()
        if name == site and tensor.requires_grad:
            edges[name] = get_gradient_edge(tensor)

    try:
        value = loss(lookout.look(lambda: run(batch=near), see), near)
        gradients = torch.autograd.grad(value, list(edges.values()), allow_unused=True)
    except (RuntimeError, ValueError, UsageError, MeasurementError):
        return None  # what fails in the backward pass was told before
    told = {name: g for name, g in zip(edges, gradients, strict=True) if g is not None}
    names = [s.name for s in material.execution.sites]
    found = compare(names, (here, material.first), (there, told))
    if found is None or found.high >= ALIKE:
        return found
    return replace(found, gain_shared=_gain_shared(material, loss, near))


def _gain_shared(material: Material, loss: Loss, near: Batch) -> float | None:
    """Make some steps on the batch, and return what part of their gain its neighbours share.

    Steps at the optimizer's rate are judged, or steps long enough to learn by where those at its rate are short, as
    while it warms up, and gain less: what a very short step gains others is the cosine once more, and no test of it.
    """
    run, batch, largest = material.run, material.run.batches[0], largest_step(material)
    what, rules = "steps whose gain neighbouring inputs share", ("shattered_gradient",)
    found: Course | None = None
    for scale in (1.0, LONG / largest) if 0 < largest < SHORT else (1.0,):
        if not run.pace.allows(what, STEPS + 3, STEPS + 1, rules=rules):
            return None
        course = rehearse(
            run.model,
            lambda: loss(run(), batch),
            material.factory,
            run.pace.deadline,
            scale,
            aside=lambda: loss(run(batch=near), near),
        )
        if course is not None and not course.complete:
            run.pace.leave_out(what, rules)
        elif course is not None and (found is None or course.gain > found.gain):
            found = course
    return found.shared if found is not None else None


def _rounding(material: Material) -> Rounding | None:
    """Make the step without rounding, if rounding takes most of it."""
    update, loss, run = material.update, material.loss, material.run
    narrow = any(p.dtype in _NARROW for p in run.model.parameters())
    if update is None or loss is None or not narrow or not update.lost(update.after) > 0.5:
        return None
    if not run.pace.allows("the optimizer's step without rounding", 3, rules=("lost_update",)):
        return None
    gradients = {name: g for name, g in material.gradients.items() if g is not None}
    return exact_step(run.model, gradients, update, material.factory, run.batches[0], loss)


def _broken(material: Material) -> Broken | None:
    """Look whether the step of an optimizer that somebody chose breaks finite weights, and make it in float32 if so."""
    update, loss, run = material.update, material.loss, material.run
    if update is None or loss is None or isinstance(material.factory, Assumed):
        return None
    gradients = {name: g for name, g in material.gradients.items() if g is not None}
    found = broken_step(gradients, dict(run.model.named_parameters()), update)
    if found is None or not run.pace.allows("the optimizer's step in float32", 3):
        return found
    exact = exact_step(run.model, gradients, update, material.factory, run.batches[0], loss)
    return found if exact is None else replace(found, exact=exact.finite, gain=exact.loss_before - exact.loss_exact)


def _flushed(material: Material) -> float | None:
    run = material.run
    if material.loss is None or not any(p.dtype == torch.float16 for p in run.model.parameters()):
        return None
    if not run.pace.allows("the gradients of a larger loss", 1, 1, rules=("lost_update",)):
        return None
    larger = gradients_of(run.model, material.loss_of(run()).float() * LIFT)
    return flushed(material.gradients, larger)


def _recipe(material: Material) -> Recipe | None:
    run, loss = material.run, material.loss
    if loss is None or material.update is None:
        return None
    return recipe_of(run, material.factory, material.gradients, lambda: material.loss_of(run()))
