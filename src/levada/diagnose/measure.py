"""Run the model a few times and write down everything that the rules read: signals by block, facts, notes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from levada._errors import MeasurementError
from levada.diagnose.attempts import FEW_BLOCKS, NEIGHBOURS
from levada.diagnose.changes import trials_of
from levada.diagnose.cut import Graph
from levada.diagnose.decay import LEAST_DECADES
from levada.diagnose.diagnostics import diagnose
from levada.diagnose.diagnostics.misscaled_weights import asked
from levada.diagnose.directions import Directions, directions_between
from levada.diagnose.effective import effective_depth
from levada.diagnose.facts import Facts
from levada.diagnose.finding import Finding
from levada.diagnose.gather import facts_from
from levada.diagnose.loss import Loss, LossLike, main_output, resolve_loss
from levada.diagnose.material import Material
from levada.diagnose.moments import Moments
from levada.diagnose.neighbours import moved
from levada.diagnose.objective import examine
from levada.diagnose.pace import Pace
from levada.diagnose.passes import Run, gradients_of
from levada.diagnose.prediction import Prediction, predict
from levada.diagnose.redraw import redrawn
from levada.diagnose.streams import can_part, symmetric
from levada.diagnose.trial import replaced, roused_head
from levada.diagnose.update import Factory, Update, first_update, parameter_signals
from levada.inputs import Batch
from levada.probe import Execution, Probe, Trace
from levada.probe.cotangent import Cotangents, Value
from levada.probe.operation import Operation
from levada.probe.origin import Origin, Origins, behind
from levada.probe.recorder import Recorder
from levada.probe.sites import execution_from
from levada.probe.statistics import activity, limits

__all__ = ["Draws", "measure"]

# Cotangents in all: the slope over depth averages over blocks, so that a few tell its spread between draws.
COTANGENTS = 4


@dataclass(frozen=True, slots=True)
class Draws:
    """How often to measure.

    Attributes:
        seed: of the first draw; the next ones count on from it.
        pace: begins with the budget, within which everything but the first draw ends.
    """

    seed: int
    pace: Pace


def measure(
    model: nn.Module, batches: Sequence[Batch], loss: LossLike, factory: Factory, draws: Draws
) -> tuple[Trace, list[str]]:
    """Return the trace of one check, each row a draw, with `Facts` in its context, and notes.

    Args:
        model: the model, protected by the caller.
        batches: at least one.
        loss: what came as the loss.
        factory: builds the optimizer.
        draws: how often.

    Raises:
        UsageError: if the model does not run on the batch, or loss or optimizer do not fit.
        MeasurementError: if the model runs but nothing can be measured.
    """
    run, pace = Run(model, batches, draws.seed, draws.pace), draws.pace
    with pace.stage("require"):
        run.require()
    cotangents = Cotangents(model)
    with pace.stage("record"):
        recorded = _record(run, cotangents)
    resolved = resolve_loss(loss, recorded.outputs, batches[0])
    material = Material(run, recorded.execution, recorded.graph, resolved, factory)
    _read_outputs(material, recorded)
    predictions = predict(model, recorded.execution, recorded.moments)
    with pace.stage("losses"):
        trace = _losses(material)
    with pace.stage("cotangents"):
        logs = _cotangents(run, cotangents, trace)
    reached = {name: gradient for name, gradient in material.gradients.items() if gradient is not None}
    if resolved is not None and reached:
        with pace.stage("step"):
            material.update = first_update(model, reached, factory)
    update = material.update
    values = dict(trace.values)
    rows = max(len(trace.steps), len(logs))
    values = {name: _padded(column, rows) for name, column in values.items()}
    values["cotangent_rms"] = _padded(10.0**logs, rows)
    values.update(parameter_signals(trace, material.gradients if resolved is not None else {}, update, rows))
    values["gradient_snr"] = _padded(material.noise.by_site(s.parameters for s in trace.sites)[None], rows)
    if resolved is None:
        values["gradient_rms"] = torch.full_like(values["gradient_rms"], torch.nan)
        run.notes.append("There are no targets, so no loss and no update were measured: only random cotangents.")
    facts = replace(
        facts_from(material),
        predictions=_matching(predictions, trace),
        units=recorded.units,
        silent=recorded.silent,
        directions=recorded.directions,
        cotangent_log10=logs,
        cotangent_log10_after=_steep_after(run, cotangents, trace, logs, update),
    )
    if symmetric(trace) and pace.allows("gradients of each stream", 1, 1):
        with pace.stage("streams"):
            facts = replace(facts, stream_gradients=can_part(model, run, material.loss_of))
    facts = replace(facts, untested=pace.untested, behind=_behind(run, trace))
    context = {**trace.context, "facts": facts, "depth": len(trace.sites), "pace": pace}
    if not facts.chain:
        with pace.stage("effective_depth"):
            context["effective_depth"] = effective_depth(run)
    trace = Trace(trace.sites, (0,) * rows, values, context)
    whose = asked(diagnose(trace)) if material.update is not None else ""
    if whose:
        order = [name for site in trace.sites for name in site.parameters]
        with pace.stage("redraw"):
            head, most = trace.sites[-1].parameters, whose == "most"
            drawn = redrawn(run, material.loss_of, factory, order, head, chain=facts.chain, most=most)
        context["facts"] = facts = replace(facts, redrawn=drawn)
    _try_changes(material, trace, context, facts)
    run.notes.extend(_told(trace, logs, resolved, update, (batches[0], len(batches)), predictions))
    run.notes.extend(pace.told())
    return trace, run.notes


def _behind(run: Run, trace: Trace) -> Origin | None:
    """Find what makes NaN or Inf behind a block that returns finite numbers; nothing is run where all is finite."""
    if not bool((trace["nonfinite"] > 0).any()):
        return None
    with torch.no_grad(), Origins(run.model) as origins:
        run()
    return behind(origins, trace)


def _try_changes(material: Material, trace: Trace, context: dict[str, Any], facts: Facts) -> None:
    """Add to the context which changes help, where no rule names a cause."""
    if material.update is not None and not any(_blames(finding) for finding in diagnose(trace)):
        with material.run.pace.stage("trials"):
            context["facts"] = replace(facts, trials=trials_of(material, trace, facts))


def _blames(finding: Finding) -> bool:
    """Whether a finding names a cause; that nothing is learned is none."""
    return finding.status == "fired" and finding.severity != "info" and finding.rule != "no_progress"


@dataclass(slots=True)
class _Recorded:
    """One recorded pass: the blocks, what autograd follows, moments of values, and the outputs with their graph."""

    execution: Execution
    graph: Graph
    moments: Mapping[int, Moments]
    units: Mapping[str, int]
    silent: Mapping[str, tuple[float, int]]
    outputs: Any
    edges: dict[int, Value]
    directions: Directions | None = None


def _record(run: Run, cotangents: Cotangents) -> _Recorded:
    """Run once; keep the moments of every value, and what autograd follows."""
    moments: dict[int, Moments] = {}
    edges: dict[int, Value] = {}
    dead: dict[int, tuple[float, int]] = {}

    def activate(number: int, tensor: Tensor, operation: Operation, channel: int) -> None:
        limit = limits(operation.name, operation.options)
        if limit.floor is not None:
            dead[number] = float(activity(tensor.detach()[None], limit, channel)[0, 1]), tensor.shape[channel]

    def see(number: int, tensor: Tensor) -> None:
        moments[number] = _moments(number, tensor)
        graph.see(number, tensor)
        cotangents.keep(number, tensor)
        if tensor.requires_grad and tensor.grad_fn is not None:
            edges[number] = Value.of(tensor)

    recorder = Recorder(run.model, on_value=see, on_activation=activate)
    graph = Graph(recorder, frozenset(name for name, p in run.model.named_parameters() if p.requires_grad))
    recorder.attach()
    try:
        outputs = run()
    finally:
        recorder.detach()
    root = recorder.root
    if root is None or not recorder.finished:
        main_output(outputs)  # says so if that is because nothing was returned
        raise MeasurementError(f"check: calling {type(run.model).__name__} ran no forward pass that hooks can see.")
    if recorder.transformed:
        raise MeasurementError(
            "check: the model computes inside of torch.vmap or torch.func.grad, where values and gradients cannot be "
            "read. Check it with a loop, or with a batched operation, in their place."
        )
    floating = [t for t in run.batches[0].tensors() if t.is_floating_point()]
    known = [n for n in root.inputs if n in recorder.floating]
    moments.update({n: _moments(n, t) for n, t in zip(known, floating, strict=False)})
    execution = execution_from(recorder)
    cotangents.plan(recorder, execution)
    keep = {*known, *execution.output_of.values()}
    units, silent = {}, {}
    for site in execution.sites:
        activated = [o for o in execution.operations[site.name] if o.output in recorder.channel_dim]
        units[site.name] = sum(o.shape[recorder.channel_dim[o.output]] for o in activated if o.shape)
        if len(activated) > 1 and (shares := [dead[o.output] for o in activated if o.output in dead]):
            silent[site.name] = max(shares)
    kept = {n: m for n, m in moments.items() if n in keep}
    return _Recorded(execution, graph, kept, units, silent, outputs, edges)


def _read_outputs(material: Material, recorded: _Recorded) -> None:
    """Test the loss on the recorded outputs, take the gradient at the first boundary, and let the graph go."""
    outputs, execution, run = recorded.outputs, recorded.execution, material.run
    recorded.directions = directions_between(recorded.edges, execution, run.seed)
    target = material.loss_of(outputs)
    material.graph.end_in(outputs, target)
    if material.loss is not None:
        last = [o for o in execution.operations[execution.sites[-1].name] if o.kind != "reshape"]
        with run.pace.stage("objective"):
            material.objective = examine(material.loss, outputs, run.batches[0], last[-1].name if last else "")
    followed = [s.name for s in execution.sites if execution.output_of[s.name] in recorded.edges]
    asked = material.loss is not None and len(execution.sites) >= FEW_BLOCKS and followed and target.requires_grad
    if (
        asked
        and moved(run.batches[0], run.seed) is not None
        and run.pace.allows(NEIGHBOURS, 1, 2, reserve=(4, 2), rules=("shattered_gradient",))
    ):
        edge = recorded.edges[execution.output_of[followed[0]]].edge
        try:
            with run.pace.stage("neighbours"), run.pace.pass_backward():
                (gradient,) = torch.autograd.grad(target, [edge], allow_unused=True)
        except Exception:
            gradient = None  # the backward pass does not run: said where all gradients are asked for
        material.first = {followed[0]: gradient} if gradient is not None else {}
    recorded.outputs = None
    recorded.edges.clear()


def _moments(number: int, tensor: Tensor) -> Moments:
    values = tensor.detach().double()
    second = float(values.square().mean())
    rows = len(values) if values.dim() else 1
    apart = float((values - values.mean(0)).square().mean()) * rows / (rows - 1) if rows > 1 else torch.nan
    return Moments(second, apart, float(values.mean()), False, frozenset({number}))


def _losses(material: Material) -> Trace:
    """Run forward and backward once per batch; keep the first batch's gradients and its loss."""
    run = material.run
    with Probe(run.model) as probe:
        for index, batch in enumerate(run.batches):
            if index and not run.pace.allows("", 1, 1, reserve=(3, 1)):
                run.notes.append(f"The budget allowed {index} of {len(run.batches)} batches.")
                break
            target = material.loss_of(run(index, draw=index), batch)
            with run.pace.pass_backward():
                gradients = gradients_of(run.model, target)
            probe.step()
            if material.loss is not None and len(run.batches) > 1:
                material.noise.add(gradients)
            if index == 0:
                material.gradients = gradients
                material.value = float(target.detach()) if material.loss is not None else None
    trace = probe.trace()
    if [site.name for site in material.execution.sites] != trace.names():
        run.notes.append(
            "The model takes another path from one forward pass to the next; blocks are those of the second."
        )
    return trace


def _cotangents(run: Run, cotangents: Cotangents, trace: Trace) -> Tensor:
    """Return log10 of the size of random cotangents, one row for each that was made."""
    roused = roused_head(run.model, trace.sites[-1].parameters)
    if not roused:
        return _drawn_cotangents(run, cotangents, trace)
    run.notes.append(f"{next(iter(roused))} is all zero: cotangents were measured with random numbers in its place.")
    with replaced(run.model, roused):
        return _drawn_cotangents(run, cotangents, trace)


def _steep_after(run: Run, cotangents: Cotangents, trace: Trace, logs: Tensor, update: Update | None) -> Tensor | None:
    """Measure once more after the optimizer's first step, if the gradient falls by decades across one block."""
    falls = logs.nan_to_num(neginf=-math.inf).mean(0).diff()
    # Without it a branch that starts at zero looks like a cut: it is made whatever the time.
    if update is None or not bool((falls >= LEAST_DECADES).any()):
        return None
    with run.pace.stage("after_step"), replaced(run.model, update.after):
        return _drawn_cotangents(run, cotangents, trace, draws=1)


def _drawn_cotangents(run: Run, cotangents: Cotangents, trace: Trace, draws: int = COTANGENTS) -> Tensor:
    rows: list[Tensor] = []
    for draw in range(draws):
        if draw and not run.pace.allows("", 1, 1, reserve=(2, 0)):
            break
        index = draw % len(run.batches)
        seed = run.seed + draw

        def once(index: int = index, draw: int = draw) -> Any:
            return run(index, draw)

        try:
            execution, logs = cotangents.draw(once, seed)
        except MeasurementError as error:
            run.notes.append(f"No cotangent was measured: {error}")
            return torch.full((1, len(trace.sites)), torch.nan, dtype=torch.float64)
        if [site.name for site in execution.sites] == trace.names():
            rows.append(logs)
    if not rows:
        return torch.full((1, len(trace.sites)), torch.nan, dtype=torch.float64)
    return torch.stack(rows)


def _padded(column: Tensor, rows: int) -> Tensor:
    missing = rows - len(column)
    return (
        torch.cat([column, torch.full((missing, column.shape[1]), torch.nan, dtype=column.dtype)])
        if missing
        else column
    )


def _matching(predictions: tuple[Prediction, ...], trace: Trace) -> tuple[Prediction, ...]:
    return predictions if [p.site for p in predictions] == trace.names() else ()


def _told(
    trace: Trace,
    logs: Tensor,
    loss: Loss | None,
    update: Update | None,
    batches: tuple[Batch, int],
    predictions: Sequence[Prediction],
) -> list[str]:
    first, count = batches
    measured = int((~trace["signal_rms"].isnan()).any(1).sum())
    of = f"{measured} of {count} batches" if measured < count else f"{count} batch{'es' if count > 1 else ''}"
    notes = [f"{len(logs)} of {COTANGENTS} random cotangents and {of} were measured."]
    if first.inferred:
        notes.append(f"The inputs were inferred: {first.inferred}.")
    if loss is not None and loss.inferred:
        notes.append(f"The loss was inferred: {loss.name}, because {loss.inferred}.")
    if update is not None:
        notes.append(f"The step is the first of {update.optimizer} at lr {update.lr:g}, without weight decay.")
        if update.peak > update.lr:
            notes.append(f"A scheduler leads to lr {update.peak:g}, which was judged, and not lr {update.lr:g}.")
    silent = [p for p in predictions[1:] if p.gain is None]
    if silent:
        notes.append(
            f"Theory has no gain for {len(silent)} of {len(predictions)} blocks; {silent[0].site}: {silent[0].reason}."
        )
    if trace.context.get("note"):
        notes.append(f"Blocks: {trace.context['note']}.")
    return notes
