"""Measure the memory of a model's recurrences, and try a repair where it looks too short, or explodes."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from levada._errors import MeasurementError, UsageError
from levada.diagnose.loss import Loss
from levada.diagnose.passes import Run, random_projection
from levada.diagnose.recurrent import LOST, Memory, Rehearsal, grown, repair_of, short
from levada.diagnose.rehearsal import undone
from levada.diagnose.update import Factory
from levada.inputs import raised
from levada.probe.lyapunov import LyapunovExponents, lyapunov_exponents
from levada.probe.memory import MemoryCurve, memory_curve
from levada.probe.recorder import Frame, Recorder
from levada.probe.recurrence import LEAST_CALLS, Recurrence, runs_sequences
from levada.probe.recurrences import input_gradients, recurrences

__all__ = ["memory_of"]

# A copy with a longer memory must have time to use it.
STEPS = 100
# Part of what is left of the budget that a trial may take, and steps after which its cost is known.
SHARE, TIMED = 0.25, 3
TRIAL = f"{STEPS} steps of the model and of a copy whose memory is repaired"
OVER_TIME, SPENT = "memory over time", "the budget was spent"


def memory_of(run: Run, recorder: Recorder, loss: Loss | None, factory: Factory) -> Memory | None:
    """Return how the model's recurrences remember; None if it has none.

    Args:
        run: the model on its batches.
        recorder: of a recorded pass, which says whether a module is called again and again.
        loss: what is derived; random outputs without one.
        factory: builds the optimizer of the trials.
    """
    model, deadline = run.model, run.pace.deadline
    if not any(runs_sequences(m) for m in model.modules()) and not _repeats(recorder.root):
        return None
    if not run.pace.allows(OVER_TIME, 4, 3):
        kept = (n for n, m in model.named_modules() if runs_sequences(m) or isinstance(m, nn.RNNCellBase))
        return Memory(missing=dict.fromkeys(kept, SPENT))

    def objective(run: Run = run) -> Tensor:
        outputs = run()
        return random_projection(outputs, run.seed) if loss is None else loss(outputs, run.batches[0])

    curves: list[MemoryCurve] = []
    exponents: dict[str, LyapunovExponents] = {}
    arrival: dict[str, Tensor] = {}
    missing: dict[str, str] = {}
    found: list[Recurrence] = []
    with undone(model):
        try:
            found, missing = recurrences(model, run)
        except (RuntimeError, ValueError, TypeError) as error:
            run.notes.append(f"Memory over time was not measured: {raised(error)}")
        try:
            arrival = input_gradients(model, objective, found) if found else {}
        except (RuntimeError, ValueError, TypeError) as error:
            run.notes.append(f"What of the gradient arrives at each step was not measured: {raised(error)}")
        for one in found:
            if time.perf_counter() > deadline:
                run.pace.leave_out(OVER_TIME)
                missing[one.module] = SPENT
                continue
            try:
                curve = memory_curve(one, seed=run.seed)
                if grown(curve, arrival.get(one.module)):
                    exponents[one.site] = lyapunov_exponents(one, seed=run.seed)
                curves.append(curve)
            except (RuntimeError, ValueError) as error:
                missing[one.module] = raised(error)
    if not curves and not missing:
        return None
    memory = Memory(tuple(curves), arrival, exponents, {}, missing)
    rehearsals = {}
    for rule, suspect in (("short_memory", _lost(memory)), ("exploding_memory", _exploding(memory))):
        if suspect and loss is not None:
            trial = _rehearsed(rule, suspect, run, objective, factory)
            if trial is not None:
                rehearsals[rule] = trial
    return Memory(memory.curves, arrival, exponents, rehearsals, missing)


def _repeats(frame: Frame | None) -> bool:
    """Whether a module with parameters was called often enough to be a cell in a loop."""
    counts: dict[str, int] = {}

    def walk(frame: Frame) -> None:
        for inner in frame.frames():
            if any(True for _ in inner.module.parameters()):
                counts[inner.name] = counts.get(inner.name, 0) + 1
            walk(inner)

    if frame is not None:
        walk(frame)
    return any(count >= LEAST_CALLS for count in counts.values())


def _lost(memory: Memory) -> list[MemoryCurve]:
    groups = memory.by_module().items()
    return [c for name, curves in groups if short(curves, memory.arrival.get(name), LOST) for c in curves]


def _exploding(memory: Memory) -> list[MemoryCurve]:
    return [c for c in memory.curves if c.site in memory.exponents]


def _rehearsed(
    rule: str, curves: list[MemoryCurve], run: Run, objective: Callable[[Run], Tensor], factory: Factory
) -> Rehearsal | None:
    """Train the model as it is and a repaired copy on one batch; None if that cannot be done, or time runs out."""
    device = next(run.model.parameters()).device
    start = time.perf_counter()
    deadline = start + SHARE * (run.pace.deadline - start)
    name, code = repair_of(rule, curves, f"torch.Generator({str(device)!r}).manual_seed({run.seed})")
    try:
        names = {"model": copy.deepcopy(run.model)}
        exec(compile(code, "<remedy>", "exec"), names)
        twin = Run(names["model"], run.batches, run.seed, run.pace, True)
        before = _trained(run, objective, factory, deadline)
        if before is None:
            return None
        after = _trained(
            twin, objective, factory, deadline, lambda losses: Rehearsal(name, before, tuple(losses)).confirms
        )
    except (RuntimeError, ValueError, TypeError, UsageError, MeasurementError):
        return None  # a model that cannot be copied, or an optimizer that needs more than gradients
    return None if after is None else Rehearsal(name, before, after)


def _trained(
    run: Run,
    objective: Callable[[Run], Tensor],
    factory: Factory,
    deadline: float,
    enough: Callable[[Sequence[float]], bool] = lambda losses: False,
) -> tuple[float, ...] | None:
    """Return the losses of some steps, or until there are enough, undone afterwards; None if time runs out."""
    losses: list[float] = []
    start = time.perf_counter()
    with undone(run.model):
        learning = [p for p in run.model.parameters() if p.requires_grad]
        optimizer = factory(list(learning))
        for step in range(STEPS + 1):
            value = objective(run)
            losses.append(float(value.detach()))
            if not math.isfinite(losses[-1]) or step == STEPS or enough(losses):
                break
            now = time.perf_counter()
            if now > deadline or (step == TIMED and (deadline - now) * TIMED < (now - start) * (STEPS - TIMED)):
                run.pace.leave_out(TRIAL)
                return None  # what cannot be finished is not begun
            for p, gradient in zip(learning, torch.autograd.grad(value, learning, allow_unused=True), strict=True):
                p.grad = gradient
            optimizer.step()
    return tuple(losses)
