"""Attention in one check: what each block attends to, and whether queries and keys learn where logits are saturated."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from levada._errors import MeasurementError, UsageError
from levada.diagnose.loss import Loss
from levada.diagnose.passes import Run
from levada.diagnose.rehearsal import STEPS, Course, undone
from levada.diagnose.update import Factory
from levada.probe import Execution
from levada.probe.attention import ATTENTION, Attention, AttentionMode, attention, attention_by_site, sees_itself_alone

__all__ = ["Attending", "Part", "attending", "collapsed", "watched"]

# Entropy over its largest value: of n normal logits it is 0.1 at a deviation of 10, for any n from 8 to 1024.
COLLAPSED = 0.1
# Theory's slope of the softmax, of at most 1, below which it explains that little is passed.
EXPLAINED = 0.25
# The scaled logits have a deviation of 1 within this factor: else something between weights and logits undoes it.
REACHED = 3.0
ALONE, RULES = "steps of queries and keys alone", ("attention_collapse",)
_SURE = ATTENTION - {"softmax"}  # a softmax may be a gate


@dataclass(frozen=True, slots=True)
class Part:
    """The part of a parameter that makes queries and keys.

    Attributes:
        parameter: its qualified name.
        dim: dimension along which the part lies.
        start: its first index there.
        stop: one past its last.
        gain: what to multiply it by, so that the logits have a deviation of 1.
    """

    parameter: str
    dim: int
    start: int
    stop: int
    gain: float


@dataclass(frozen=True, slots=True)
class Attending:
    """What a check knows of attention.

    Attributes:
        by_site: block -> its attention, of several the one with the lowest entropy.
        blind: blocks in each of whose attentions a mask leaves every query its own key alone.
        unseen: blocks with an attention whose weights could not be computed again.
        wide: module -> deviation of the logits, of every attention that has collapsed.
        parts: what makes queries and keys where attention has collapsed.
        plain: some steps on one batch of these parts alone; None if no attention has collapsed, or it was not made.
        scaled: the same after they were multiplied by their gains.
    """

    by_site: Mapping[str, Attention] = field(default_factory=dict)
    blind: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    wide: Mapping[str, float] = field(default_factory=dict)
    parts: tuple[Part, ...] = ()
    plain: Course | None = None
    scaled: Course | None = None


def watched(run: Run, execution: Execution, call: Callable[[], Any]) -> tuple[Any, Attending]:
    """Return what a pass returns, and the attention in it.

    Args:
        run: the model.
        execution: its blocks.
        call: runs the model.
    """
    operations = {s.name: {o.name for o in execution.operations[s.name]} for s in execution.sites}
    if not any(names & ATTENTION for names in operations.values()):
        return call(), Attending()
    found: list[Attention] = []
    alone: dict[str, bool] = {}

    def see(module: str, logits: Tensor) -> None:
        one = attention(logits, module)
        found.extend([one] if one is not None else [])
        alone[module] = one is None and alone.get(module, True) and sees_itself_alone(logits)

    with AttentionMode(run.model, see):
        result = call()
    by_site = attention_by_site(found, execution)
    attend = {s.name: {o.module for o in execution.operations[s.name] if o.name in ATTENTION} for s in execution.sites}
    blind = tuple(s for s, modules in attend.items() if modules and all(alone.get(m, False) for m in modules))
    unseen = tuple(s for s, names in operations.items() if names & _SURE and s not in {*by_site, *blind})
    wide = {a.module: a.logit_std for a in found if collapsed(a)}
    return result, Attending(by_site, blind, unseen, wide)


def collapsed(one: Attention) -> bool:
    """Whether each query attends to few keys because its logits are large, so that the softmax passes little.

    Args:
        one: attention in one block.
    """
    return one.entropy < COLLAPSED and one.slope_predicted is not None and one.slope_predicted < EXPLAINED


def attending(seen: Attending, run: Run, loss: Loss | None, factory: Factory) -> Attending:
    """Train queries and keys alone where attention has collapsed, as they are and with logits of deviation 1.

    Args:
        seen: what a pass showed.
        run: the model.
        loss: the loss; without one there is no test.
        factory: builds the optimizer.
    """
    wide = seen.wide
    steps = 2 * (STEPS + 1)
    if loss is None or not wide or not run.pace.allows(ALONE, steps + 2, steps + 1, rules=RULES):
        return seen
    parts = tuple(p for p in _parts(run, wide) if math.isfinite(p.gain))
    if not parts:
        return seen
    plain = _course(run, loss, factory, parts)
    with undone(run.model):
        with torch.no_grad():
            for part in parts:
                _of(run.model, part).mul_(part.gain)
        after = _deviations(run, set(wide))
        reached = all(1 / REACHED < after.get(module, 0.0) < REACHED for module in wide)
        scaled = _course(run, loss, factory, parts) if reached else None
    if (plain is None or (reached and scaled is None)) and time.perf_counter() > run.pace.deadline:
        run.pace.leave_out(ALONE, RULES)
    return replace(seen, parts=parts if reached else (), plain=plain, scaled=scaled)


def _of(model: nn.Module, part: Part) -> Tensor:
    return model.get_parameter(part.parameter).data.narrow(part.dim, part.start, part.stop - part.start)


def _deviations(run: Run, modules: set[str]) -> dict[str, float]:
    found: dict[str, float] = {}

    def see(module: str, logits: Tensor) -> None:
        one = attention(logits, module)
        if one is not None and module in modules:
            found[module] = max(one.logit_std, found.get(module, 0.0))

    with torch.no_grad(), AttentionMode(run.model, see):
        run()
    return found


def _parts(run: Run, wide: Mapping[str, float]) -> list[Part]:
    """Return the parts of each attention module's own parameters on which its logits depend."""
    own = {m: [(n, p) for n, p in run.model.named_parameters() if m and n.startswith(f"{m}.")] for m in wide}
    found: dict[str, Part] = {}

    def see(module: str, logits: Tensor) -> None:
        given = [(n, p) for n, p in own.get(module, ()) if p.requires_grad and n not in found]
        if not given or not logits.requires_grad:
            return
        # Each element with a weight of its own, so that nothing cancels; what is masked has no gradient.
        drawn = torch.randn(logits.shape, generator=torch.Generator().manual_seed(run.seed)).to(logits.device)
        total = (logits.masked_fill(~torch.isfinite(logits), 0.0) * drawn).sum()
        gradients = torch.autograd.grad(total, [p for _, p in given], allow_unused=True, retain_graph=True)
        for (name, _), gradient in zip(given, gradients, strict=True):
            place = _place(gradient) if gradient is not None else None
            if place is not None:
                found[name] = Part(name, *place, wide[module] ** -0.5)

    with AttentionMode(run.model, see):
        run()
    return list(found.values())


def _place(gradient: Tensor) -> tuple[int, int, int] | None:
    """Return along which dimension, and from where to where, a gradient is not zero."""
    reached = gradient != 0
    for dim in range(min(2, gradient.dim())):
        along = reached.movedim(dim, 0).flatten(1).any(1) if gradient.dim() > 1 else reached
        hit = along.nonzero().flatten()
        if len(hit) and (len(hit) < len(along) or dim == gradient.dim() - 1 or bool(along.all())):
            if len(hit) == len(along) and dim == 0 and gradient.dim() > 1 and not bool(reached.any(0).all()):
                continue  # whole rows, of some columns
            return dim, int(hit[0]), int(hit[-1]) + 1
    return None


def _course(run: Run, loss: Loss, factory: Factory, parts: tuple[Part, ...]) -> Course | None:
    """Return the losses of a few steps in which these parts alone are trained."""
    losses: list[float] = []
    parameters = {part.parameter: run.model.get_parameter(part.parameter) for part in parts}
    with undone(run.model):
        try:
            optimizer: torch.optim.Optimizer | None = None
            for step in range(STEPS + 1):
                value = loss(run(), run.batches[0])
                losses.append(float(value.detach()))
                if step == STEPS or not math.isfinite(losses[-1]) or time.perf_counter() > run.pace.deadline:
                    break
                found = torch.autograd.grad(value, list(parameters.values()))
                for part, parameter, gradient in zip(parts, parameters.values(), found, strict=True):
                    kept = torch.zeros_like(gradient)
                    span = part.dim, part.start, part.stop - part.start
                    kept.narrow(*span).copy_(gradient.narrow(*span))
                    parameter.grad = kept
                if optimizer is None:
                    optimizer = factory(list(parameters.values()))
                    for group in optimizer.param_groups:
                        group["weight_decay"] = 0.0
                optimizer.step()
        except (RuntimeError, ValueError, TypeError, UsageError, MeasurementError):
            return None
    course = Course(tuple(losses))
    return course if course.complete else None
