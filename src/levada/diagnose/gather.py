"""Gather the facts of one check: single functional tests, as few passes as they can share."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from levada._errors import MeasurementError, UsageError
from levada.diagnose.cut import Graph
from levada.diagnose.facts import Facts
from levada.diagnose.loss import Loss, main_output
from levada.diagnose.neighbours import Neighbours, compare, moved
from levada.diagnose.objective import Objective
from levada.diagnose.passes import Run, gradients_of, random_projection
from levada.diagnose.rehearsal import Course, rehearse, undone
from levada.diagnose.relations import Lookout, Relation, relation
from levada.diagnose.rounding import LIFT, Rounding, exact_step, flushed
from levada.diagnose.surroundings import InputScale, Mode, input_scale, mode_of, standardised
from levada.diagnose.trial import output_spread, parameters_matter, replaced
from levada.diagnose.update import Assumed, Factory, Update
from levada.inputs import Batch, flatness
from levada.probe import Execution

__all__ = ["FEW_BLOCKS", "Material", "facts_from"]

# Depth shatters gradients: with fewer blocks it does not, and is not looked for.
FEW_BLOCKS = 10
# Cosines of neighbours' gradients below which the step is tried on the neighbours too.
ALIKE = 0.25
# A first step that lowers the loss by less, and moves no block's weights by more, may be too small to learn.
NO_GAIN, NO_MOTION = 1e-3, 1e-6
# Steps of this size, beside the weights, are short enough to follow a gradient, and long enough to learn by.
SHORT, LONG = 3e-3, 1e-2
# Sizes of inputs, and means beside deviations, that a first layer is not made for.
LARGE, SMALL, OFF_CENTRE = 10.0, 1e-3, 10.0
_NARROW = torch.float16, torch.bfloat16


@dataclass(slots=True)
class Material:
    """What was measured before.

    Attributes:
        run: the model on its batches.
        execution: the blocks.
        graph: the recorded pass.
        loss: the loss; None without targets.
        factory: builds the optimizer.
        objective: how the loss answers to outputs.
        gradients: of the first batch, by parameter.
        value: loss of the first batch.
        update: the optimizer's first step; None if none was made.
        first: site -> gradient of the recorded pass at the first boundary that has one.
    """

    run: Run
    execution: Execution
    graph: Graph
    loss: Loss | None
    factory: Factory
    objective: Objective | None = None
    gradients: Mapping[str, Tensor | None] = field(default_factory=dict)
    value: float | None = None
    update: Update | None = None
    first: Mapping[str, Tensor] = field(default_factory=dict)

    def loss_of(self, outputs: Any, batch: Batch | None = None) -> Tensor:
        """Return the loss of outputs, or a random projection where there is none."""
        if self.loss is None:
            return random_projection(outputs, self.run.seed)
        return self.loss(outputs, self.run.batches[0] if batch is None else batch)


def facts_from(material: Material) -> Facts:
    """Make the functional tests, and return the facts of a check.

    Args:
        material: what was measured before.
    """
    run, update, execution = material.run, material.update, material.execution
    model = run.model
    resolution = _resolution(material)
    recorder = material.graph.recorder
    lookout = Lookout(model, recorder, execution)
    attends = any(o.name in _ATTENTION for ops in execution.operations.values() for o in ops)
    before, after = _Sight(attends, material), _Sight(attends, material)
    spread_after = loss_after = None
    with torch.no_grad():
        out = main_output(lookout.look(run, before.see))
        apart, exact, why = output_spread(model, run.batches[0], lambda: out, resolution)
        constant = material.loss.of_zeros(out, run.batches[0]) if material.loss is not None else None
        matter = parameters_matter(model, _unreached(material), lambda: material.loss_of(run()))
        if update is not None:
            with replaced(model, update.after):
                outputs = lookout.look(run, after.see)
                loss_after = float(material.loss_of(outputs))
                ahead = main_output(outputs)
                spread_after, _, _ = output_spread(model, run.batches[0], lambda: ahead, resolution)
    run.notes.extend([why] if why else [])
    if matter is None:
        run.notes.append("Whether parameters without a gradient act is not known: the model differs from run to run.")
    scale = input_scale(recorder, execution, run.batches)
    rounding = _rounding(material)
    operations = {site.name: execution.operations[site.name] for site in execution.sites}
    return Facts(
        optimizer=update.optimizer if update is not None else None,
        lr=update.lr if update is not None else None,
        eps=update.eps if update is not None else None,
        loss=material.loss.name if material.loss is not None else None,
        resolution=resolution,
        loss_value=material.value,
        loss_constant=constant,
        loss_after=loss_after,
        output_spread=apart,
        output_spread_exact=exact,
        output_spread_after=spread_after,
        nonfinite_parameters=tuple(n for n, p in model.named_parameters() if not bool(torch.isfinite(p).all())),
        cuts=material.graph.cuts(execution, matter or {}),
        flat=flatness(run.batches),
        fixed=tuple(n for n, p in model.named_parameters() if not p.requires_grad),
        activations={s: tuple(o.name for o in ops if o.kind == "activation") for s, ops in operations.items()},
        batch_normalised=frozenset(s for s, ops in operations.items() if any(o.name == "batch_norm" for o in ops)),
        chain=all(len(set(o.inputs)) <= 1 for ops in operations.values() for o in ops),
        normalised=any(o.kind == "normalisation" for ops in operations.values() for o in ops),
        objective=material.objective,
        input_relation=_input_relation(run.batches[0]),
        relations=before.relations,
        relations_after=after.relations,
        symmetric=_symmetric(material),
        neighbours=_neighbours(material, lookout, before),
        inputs=scale,
        rounding=rounding,
        flushed=_flushed(material),
        courses=_courses(material, loss_after, scale, rounding),
        mode=_mode(material, out),
    )


_ATTENTION = frozenset({"softmax", "scaled_dot_product_attention", "multi_head_attention_forward"})


class _Sight:
    """What one pass showed at the boundaries."""

    def __init__(self, attends: bool, material: Material) -> None:
        self.relations: dict[str, Relation] = {}
        self.signals: dict[str, Tensor] = {}
        self._attends = attends
        sites = material.execution.sites
        self._keep = {*material.first, sites[-1].name} if material.first else set()

    def see(self, site: str, tensor: Tensor) -> None:
        """Take a boundary."""
        found = relation(tensor, tokens=self._attends)
        if found is not None:
            self.relations[site] = found
        if site in self._keep:
            self.signals[site] = tensor.detach().clone()


def _resolution(material: Material) -> float:
    sizes = Counter({torch.float32: 0})
    for p in material.run.model.parameters():
        sizes[p.dtype] += p.numel() if p.is_floating_point() else 0
    return torch.finfo(sizes.most_common(1)[0][0]).eps


def _unreached(material: Material) -> dict[str, tuple[str, ...]]:
    execution, gradients = material.execution, material.gradients
    read = {name for site in execution.sites for o in execution.operations[site.name] for name in o.parameters}
    found = {
        site.name: tuple(n for n in site.parameters if n in read and n in gradients and gradients[n] is None)
        for site in execution.sites
    }
    return {site: names for site, names in found.items() if names}


def _input_relation(batch: Batch) -> Relation | None:
    tensors = [t for t in batch.tensors() if t.dim() > 0]
    alike = [t.flatten(1) if t.dim() > 1 else t[:, None] for t in tensors if len(t) == len(tensors[0])]
    if not alike or any(t.is_complex() for t in alike):
        return None
    return relation(torch.cat([t.double() for t in alike], dim=1))


def _symmetric(material: Material) -> dict[str, float]:
    """Return, by site, how far the gradients of a matrix with equal rows differ between its rows, relative to them."""
    found: dict[str, float] = {}
    for site in material.execution.sites[:-1]:
        for name in site.parameters:
            gradient = material.gradients.get(name)
            weight = material.run.model.get_parameter(name).detach()
            if gradient is None or gradient.is_sparse or weight.dim() < 2 or len(weight) < 2:
                continue
            size = float(gradient.abs().max())
            if size > 0 and bool((weight == weight[:1]).all()):
                found[site.name] = min(found.get(site.name, math.inf), _between_rows(gradient) / size)
    return found


def _between_rows(gradient: Tensor) -> float:
    """Return the largest difference between rows; of stacked matrices, as of the gates of a cell, within each."""
    stacks = [s for s in (1, 2, 3, 4) if len(gradient) % s == 0 and len(gradient) > s]
    parts = [gradient.reshape(s, len(gradient) // s, -1) for s in stacks]
    return min(float((part - part[:, :1]).abs().max()) for part in parts)


def _neighbours(material: Material, lookout: Lookout, here: _Sight) -> Neighbours | None:
    """Run the inputs' neighbours forward and back, and compare."""
    run, loss = material.run, material.loss
    near = moved(run.batches[0], run.seed)
    if not material.first or loss is None or near is None or time.perf_counter() > run.deadline:
        return None
    (site,) = material.first
    there = _Sight(False, material)
    edges: dict[str, GradientEdge] = {}

    def see(name: str, tensor: Tensor) -> None:
        there.see(name, tensor)
        if name == site and tensor.requires_grad:
            edges[name] = get_gradient_edge(tensor)

    try:
        value = loss(lookout.look(lambda: run(batch=near), see), near)
        gradients = torch.autograd.grad(value, list(edges.values()), allow_unused=True)
    except (RuntimeError, ValueError, UsageError, MeasurementError):
        return None  # what fails in the backward pass was told before
    told = {name: g for name, g in zip(edges, gradients, strict=True) if g is not None}
    names = [s.name for s in material.execution.sites]
    found = compare(names, (here.signals, material.first), (there.signals, told))
    if found is None or found.high >= ALIKE:
        return found
    course = _shared_course(material, loss, near)
    return replace(found, gain_shared=course.shared if course is not None else None)


def _shared_course(material: Material, loss: Loss, near: Batch) -> Course | None:
    """Make some steps on the batch, and see what they gain its neighbours.

    Steps at the optimizer's rate are judged, or steps long enough to learn by where those at its rate are short, as
    while it warms up, and gain less: what a very short step gains others is the cosine once more, and no test of it.
    """
    run, batch, largest = material.run, material.run.batches[0], _largest_step(material)
    found: Course | None = None
    for scale in (1.0, LONG / largest) if 0 < largest < SHORT else (1.0,):
        course = rehearse(
            run.model,
            lambda: loss(run(), batch),
            material.factory,
            run.deadline,
            scale,
            aside=lambda: loss(run(batch=near), near),
        )
        if course is not None and course.complete and (found is None or course.gain > found.gain):
            found = course
    return found


def _largest_step(material: Material) -> float:
    """Return the largest first step of a block, beside its weights; 0 if none was made."""
    update = material.update
    ratios = [update.ratio(site.parameters) for site in material.execution.sites] if update is not None else []
    return max((ratio for ratio in ratios if not math.isnan(ratio)), default=0.0)


def _rounding(material: Material) -> Rounding | None:
    """Make the step without rounding, if rounding takes most of it."""
    update, loss, run = material.update, material.loss, material.run
    narrow = any(p.dtype in _NARROW for p in run.model.parameters())
    if update is None or loss is None or not narrow or not update.lost(update.after) > 0.5:
        return None
    gradients = {name: g for name, g in material.gradients.items() if g is not None}
    return exact_step(run.model, gradients, update, material.factory, run.batches[0], loss)


def _flushed(material: Material) -> float | None:
    run = material.run
    if material.loss is None or not any(p.dtype == torch.float16 for p in run.model.parameters()):
        return None
    larger = gradients_of(run.model, material.loss_of(run()).float() * LIFT)
    return flushed(material.gradients, larger)


def _courses(
    material: Material, loss_after: float | None, scale: InputScale | None, rounding: Rounding | None
) -> dict[str, Course]:
    """Rehearse some steps where the first one, or the inputs, give a reason to."""
    run, loss, update = material.run, material.loss, material.update
    before = material.value
    if loss is None or update is None or before is None or loss_after is None or not math.isfinite(before):
        return {}
    rates: dict[str, float] = {}
    largest = _largest_step(material)
    if isinstance(material.factory, Assumed) and material.factory.lr is None:
        pass  # a rate that nobody chose is not judged
    elif not loss_after <= before:
        rates = {"lr": 1.0, "lower": min(0.1, max(SHORT / largest, 1e-6)) if largest > 0 else 0.1}
    elif 0 < largest < NO_MOTION and before - loss_after < NO_GAIN * abs(before) and rounding is None:
        rates = {"lr": 1.0, "higher": LONG / largest}
    batch = _plain_inputs(run, scale)
    if batch is not None:
        rates.setdefault("lr", 1.0)
    if rates and _random(material):
        run.notes.append("The loss differs from run to run: what the learning rate does to it is not known.")
        return {}
    found: dict[str, Course] = {}
    wanted = [(name, run.batches[0], factor) for name, factor in rates.items()]
    wanted += [("standardised", batch, 1.0)] if batch is not None else []
    for name, given, factor in wanted:
        if time.perf_counter() > run.deadline or (name != "lr" and "lr" not in found):
            break

        def objective(given: Batch = given) -> Tensor:
            assert loss is not None  # tested above
            return loss(run(batch=given), given)

        # A loss that rises with the first step and then falls below its start is no reason to go on.
        least = before if name == "lr" and "lower" in rates and batch is None else -math.inf
        course = rehearse(run.model, objective, material.factory, run.deadline, factor, below=least)
        if course is not None and course.complete:
            found[name] = course
    return found


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


def _mode(material: Material, out: Tensor) -> Mode:
    """Compare the output with that in training mode, where the model is in the other one."""
    run = material.run
    mode = mode_of(run.model)
    if mode.training or not mode.evaluating:
        return mode
    modules = {name: m for name, m in run.model.named_modules() if name in mode.evaluating}
    try:
        with torch.no_grad(), undone(run.model):
            for module in modules.values():
                module.training = True
            other = main_output(run())
    except MeasurementError:
        return mode  # batch normalisation of a batch of one
    finally:
        for module in modules.values():
            module.training = False
    size = float(out.double().square().mean().sqrt())
    change = float((other.double() - out.double()).square().mean().sqrt()) if other.shape == out.shape else math.nan
    return replace(mode, change=change / size if size > 0 else math.nan)
