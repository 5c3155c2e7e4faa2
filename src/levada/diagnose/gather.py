"""Gather the facts of one check: single functional tests, as few passes as they can share."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from levada._errors import MeasurementError
from levada.diagnose.attempts import attempts
from levada.diagnose.attending import watched
from levada.diagnose.facts import Facts
from levada.diagnose.loss import main_output
from levada.diagnose.material import Material
from levada.diagnose.rehearsal import undone
from levada.diagnose.relations import Lookout, Relation, relation
from levada.diagnose.surroundings import Mode, input_scale, mode_of
from levada.diagnose.trial import output_spread, parameters_matter, replaced
from levada.inputs import Batch, flatness

__all__ = ["facts_from"]


def facts_from(material: Material) -> Facts:
    """Make the functional tests, and return the facts of a check.

    Args:
        material: what was measured before.
    """
    run, update, execution = material.run, material.update, material.execution
    model, pace = run.model, material.run.pace
    resolution = _resolution(material)
    recorder = material.graph.recorder
    lookout = Lookout(model, recorder, execution)
    attends = any(o.name in _ATTENTION for ops in execution.operations.values() for o in ops)
    before, after = _Sight(attends, material), _Sight(attends, material)
    spread_after = loss_after = None
    with torch.no_grad():
        with pace.stage("outputs"):
            seen, attention = watched(run, execution, lambda: lookout.look(run, before.see))
            out = main_output(seen)
            apart, exact, why = output_spread(model, run.batches[0], lambda: out, resolution)
        constant = material.loss.of_zeros(out, run.batches[0]) if material.loss is not None else None
        if update is not None:
            with pace.stage("outputs"), replaced(model, update.after):
                outputs = lookout.look(run, after.see)
                loss_after = float(material.loss_of(outputs))
                ahead = main_output(outputs)
                spread_after, _, _ = output_spread(model, run.batches[0], lambda: ahead, resolution)
    run.notes.extend([why] if why else [])
    matter = _matter(material)
    scale = input_scale(recorder, execution, run.batches)
    operations = {site.name: execution.operations[site.name] for site in execution.sites}
    return Facts(
        optimizer=update.optimizer if update is not None else None,
        lr=update.lr if update is not None else None,
        eps=update.eps if update is not None else None,
        shrunk=update.shrunk if update is not None else 1.0,
        loss=material.loss.name if material.loss is not None else None,
        resolution=resolution,
        loss_value=material.value,
        loss_constant=constant,
        loss_after=loss_after,
        output_spread=apart,
        output_spread_exact=exact,
        output_spread_after=spread_after,
        nonfinite_parameters=tuple(n for n, p in model.named_parameters() if not bool(torch.isfinite(p).all())),
        cuts=material.graph.cuts(execution, matter),
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
        inputs=scale,
        mode=_mode(material, out),
        **_given(material),
        **attempts(material, lookout, before.signals, loss_after, scale, attention),
    )


def _given(material: Material) -> dict[str, Any]:
    batches = material.run.batches
    return {
        "flat": flatness(batches),
        "rows": next((len(t) for t in batches[0].tensors() if t.dim()), 0),
        "floating": any(t.is_floating_point() for t in batches[0].tensors()),
        "unmade": material.unmade,
    }


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


def _matter(material: Material) -> dict[str, tuple[str, ...]]:
    """Return, by site, parameters that no gradient but zero reaches and that act on the loss all the same."""
    run, unreached = material.run, _unreached(material)
    what = "a test whether parameters without a gradient act"
    if not unreached or not run.pace.allows(what, 2 + len(unreached), rules=("frozen_layers",)):
        return {}
    with run.pace.stage("matter"), torch.no_grad():
        found = parameters_matter(run.model, unreached, lambda: material.loss_of(run()))
    if found is None:
        run.notes.append("Whether parameters without a gradient act is not known: the model differs from run to run.")
    return found or {}


def _unreached(material: Material) -> dict[str, tuple[str, ...]]:
    execution, gradients = material.execution, material.gradients
    read = {name for site in execution.sites for o in execution.operations[site.name] for name in o.parameters}
    zero = [n for n, g in gradients.items() if n in read and g is not None and not g.is_sparse and not bool(g.any())]
    lost = {n for n, g in gradients.items() if g is None} | material.graph.stilled(zero)
    found = {site.name: tuple(n for n in site.parameters if n in read and n in lost) for site in execution.sites}
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


def _mode(material: Material, out: Tensor) -> Mode:
    """Compare the output with that in training mode, where the model is in the other one."""
    run = material.run
    mode = mode_of(run.model)
    if mode.training or not mode.evaluating:
        return mode
    modules = {name: m for name, m in run.model.named_modules() if name in mode.evaluating}
    if not run.pace.allows("the output in training mode", 1, rules=("train_mode",)):
        return mode
    try:
        with torch.no_grad(), run.pace.stage("mode"), undone(run.model):
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
