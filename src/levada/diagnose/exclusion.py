"""What else could have explained a finding, and was tested on this very model and excluded: a sentence each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from levada.diagnose.case import Case, Sentences
from levada.diagnose.facts import facts_of
from levada.diagnose.finding import Finding
from levada.diagnose.retrained import (
    attention_collapse,
    excessive_decay,
    exploding_memory,
    misscaled_weights,
    short_memory,
    tried,
)
from levada.probe.trace import Trace

__all__ = ["EXCLUSIONS", "NOTHING_ELSE", "ruled_out"]

FLOAT32_TINY = 2.0**-126  # below it float32 loses digits


def ruled_out(finding: Finding, trace: Trace) -> tuple[str, ...]:
    """Return what was excluded; nothing for information, which blames nothing, and for a rule that has no entry.

    Args:
        finding: as its rule made it.
        trace: that the rule read.
    """
    told = EXCLUSIONS.get(finding.rule)
    if told is None or finding.severity == "info":
        return ()
    return tuple(told(Case(finding, trace, facts_of(trace))))


def _activations(case: Case) -> Sentences:
    saturated, dead = case.largest("saturated_fraction"), case.largest("dead_fraction")
    if saturated is not None and saturated <= 0.5:
        yield f"Not saturation: at most {saturated:.0%} of the elements of an activation are saturated there."
    if dead is not None and dead < 0.9:
        yield f"Not dead units: at most {dead:.0%} of a block's units are flat for the whole batch."


def _inputs_differ(case: Case) -> Sentences:
    relation = case.facts.input_relation
    if not case.facts.flat and relation is not None and relation.rank >= 2:
        yield f"Not the data: the inputs of the batch differ in {relation.rank:.3g} directions."


def _inputs_sized(case: Case) -> Sentences:
    found = case.facts.inputs
    if found is not None and 0.1 <= found.rms <= 10:
        yield f"Not the size of the inputs: their root mean square is {found.rms:.3g}."


def _finite(case: Case) -> Sentences:
    counts = case.trace["nonfinite"]
    if bool((~counts.isnan()).any()) and not bool((counts > 0).any()):
        yield "Not overflow: every value at every block boundary is finite."


def _cotangents(case: Case) -> Sentences:
    """Exclude the loss, the draw and the range of the numbers, which random cotangents tell apart."""
    logs = case.facts.cotangent_log10
    if logs is None or not case.span or logs.shape[1] != len(case.trace.sites):
        return
    first, last = case.span[0], case.span[-1]
    changes = (logs[:, first] - logs[:, last]).tolist() if last > first else []
    changes = [change for change in changes if math.isfinite(change)]
    if len(changes) > 1:
        ends = dict.fromkeys(f"10^{change:.1f}" for change in (min(changes), max(changes)))
        yield f"Not the loss, nor one draw: {len(changes)} random cotangents change by {' to '.join(ends)}."
    known = logs[logs.isfinite()]
    if case.finding.rule != "vanishing_gradient":
        return
    if len(known) and float(known.amin()) < math.log10(FLOAT32_TINY):
        yield "Not underflow: the cotangents were scaled on their way, and the gradient followed below float32's range."
    elif len(known):
        yield f"Not underflow: the smallest gradient that was measured is 10^{float(known.amin()):.1f}."


def _connected(case: Case) -> Sentences:
    facts = case.facts
    if facts.loss is not None and not facts.cuts and "frozen_layers" not in facts.untested:
        yield "Not a cut in the graph: no parameter that acts on the loss and asks for a gradient is without one."


def _vanishing_gradient(case: Case) -> Sentences:
    yield from _activations(case)
    yield from _connected(case)
    yield from _cotangents(case)
    if case.facts.cotangent_log10_after is not None and case.finding.evidence.get("explained_by") == "place":
        yield "Not a branch that starts at zero: the gradient falls as far after the optimizer's first step."


def _exploding_gradient(case: Case) -> Sentences:
    names = case.trace.names()
    normalised = sum(name in case.facts.batch_normalised for name in names)
    if 2 * normalised <= len(names):
        yield f"Not batch normalisation: {normalised} of {len(names)} blocks have one."
    yield from _inputs_sized(case)
    yield from _cotangents(case)


def _vanishing_signal(case: Case) -> Sentences:
    facts = case.facts
    if "changed" in case.finding.evidence.get("tests", {}):
        yield from tried(case, "lost", "squashed", "unnormalised")
        return
    yield from _inputs_differ(case)
    yield from _activations(case)
    if facts.output_spread_exact and facts.output_spread is not None:
        yield f"Not rounding: in float64 the outputs differ by {facts.output_spread:.2g} of their size."
    if facts.output_spread_after is not None and facts.output_spread_after <= facts.resolution:
        yield "Not a branch that starts at zero: the outputs are as alike after the optimizer's first step."


def _exploding_signal(case: Case) -> Sentences:
    yield from _inputs_sized(case)
    yield from _finite(case)


def _numerical_overflow(case: Case) -> Sentences:
    facts, nonfinite = case.facts, case.trace["nonfinite"].nan_to_num(0.0).amax(0)
    if not facts.nonfinite_parameters:
        yield "Not the parameters: every one is finite."
    if not bool((nonfinite > 0).any()):
        yield "Not the forward pass: every block's output is finite."
    elif case.span and case.span[0] > 0:
        before = (
            f"s before it: what all {case.span[0]} of them return"
            if case.span[0] > 1
            else " before it: what it returns"
        )
        yield f"Not the block{before} is finite."
    if facts.broken is not None and facts.broken.gain > 0:
        yield f"Not the gradient or the rate: the same step in float32 lowers the loss by {facts.broken.gain:.3g}."


def _wrong_loss(case: Case) -> Sentences:
    told = case.facts.objective
    if told is not None and (told.moves is not None or told.shift is not None or told.broadcast is not None):
        yield "Not the model: the loss was tested alone, with outputs put in by hand."
    if told is not None and told.attached and told.moves is not False:
        yield "Not a cut between outputs and loss: the loss has a graph to them."


def _double_softmax(case: Case) -> Sentences:
    told = case.facts.objective
    if told is None or told.shift is None or told.floor is None:
        return
    yield f"Not a loss that takes probabilities: 1 added to all outputs changes it by {told.shift:.2g}."
    yield f"Not outputs that are merely unsure: right and certain ones give {told.floor:.4g} still."
    if told.floor_of_logits is not None:
        yield f"Not the targets: large logits of the right classes give {told.floor_of_logits:.4g}."


def _unscaled_input(case: Case) -> Sentences:
    facts = case.facts
    raw, plain = facts.courses.get("lr"), facts.courses.get("standardised")
    if raw is not None and plain is not None and plain.gain > raw.gain:
        yield (
            f"Not the model or its learning rate: the same steps end at a loss of {plain.end:.3g} on standardised "
            f"inputs, and of {raw.end:.3g} on these."
        )
    if facts.inputs is not None and not facts.inputs.normalised:
        yield "Not made good inside: no normalisation follows the first layer."


def _train_mode(case: Case) -> Sentences:
    mode = case.facts.mode
    if mode is not None and mode.change is not None and mode.change > 0:
        yield f"Not without effect: in training mode the output differs by {mode.change:.2g} of its size."


def _accumulated_gradients(case: Case) -> Sentences:
    told = case.trace.context.get("accumulated")
    if not told:
        return
    yield "Not accumulation over micro-steps: the old gradient is that of a step which the optimizer had made."
    if told["exact"] == told["kept"]:
        yield "Not clipping or scaling: each step's gradient is exactly the old one and what arrived."


def _frozen_layers(case: Case) -> Sentences:
    cut = next((c for c in case.facts.cuts if (c.at or c.sites[0]) == case.finding.where.get("first")), None)
    if cut is None:
        return
    yield "Not parameters without effect: changing them changes the loss."
    yield f"Not a gradient that vanished: {'it is zero' if cut.flat else 'there is none'}, not a small one."
    if cut.operations and not cut.around:
        yield "Not a way around that was overlooked: what enters the cut reaches the loss through it alone."
    if cut.operations and not cut.quiet and not cut.paused:
        yield "Not torch.no_grad(): gradients were enabled where it ends."


def _dead_units(case: Case) -> Sentences:
    yield from _inputs_differ(case)
    yield from _inputs_sized(case)
    yield "Not chance: were units off one time in two, so many would be in less than one model in a million."


def _saturated_activation(case: Case) -> Sentences:
    yield from _inputs_sized(case)
    names, hard = case.trace.names(), {"relu6", "hardtanh", "hardsigmoid"}
    used = {name for i in case.span for name in case.facts.activations.get(names[i], ())}
    if used and not used & hard:
        yield f"Not an activation that is meant to be flat: it is {', '.join(sorted(used))}."
    ratio = case.trace["update_ratio"]
    if bool((ratio[ratio.isfinite()] >= case.facts.resolution).any()):
        yield "Not a learning rate that moves nothing: the same step moves other blocks."


def _rank_collapse(case: Case) -> Sentences:
    facts, first = case.facts, case.finding.where.get("first", "")
    yield from _inputs_differ(case)
    yield from tried(case, "directions")
    if "effective_rank" not in case.finding.evidence:
        return
    here, after = facts.relations.get(first), facts.relations_after.get(first)
    if here is not None:
        yield f"Not batch or width: they allow {here.attainable} directions there."
    if after is not None and not after.high > 1.5:
        rank = 0.0 if math.isnan(after.rank) else after.rank
        yield f"Not only the start: after the optimizer's first step the effective rank is {rank:.3g}."


def _shattered_gradient(case: Case) -> Sentences:
    facts, found = case.facts, case.facts.neighbours
    if found is None:
        return
    yield f"Not the distance of the inputs: at {found.site} their signals have a cosine of {found.signal_first:.3g}."
    if found.gain_shared is not None:
        yield f"Not harmless: of what ten steps gain the inputs, their neighbours gain {found.gain_shared:.2g}."
    if facts.chain and not facts.normalised:
        yield "Not normalisation or a skip: there is none."


def _stream_collapse(case: Case) -> Sentences:
    told = case.facts.stream_gradients
    if told:
        yield f"Not a head that parts them: the streams' gradients differ by {max(told.values()):.1e} at most."


def _unstable_mixing(case: Case) -> Sentences:
    yield "Not the branches alone: the gains are those of the mixing matrices multiplied, without any branch."
    tested = case.finding.evidence.get("tests", {}).get("growth_beside_the_mixing")
    if isinstance(tested, Mapping) and tested["decades_measured_at_least"] >= 0.5 * tested["decades_of_the_mixing"]:
        yield "Not cancelled by the branches: what was measured grows with the mixing."


def _lost_update(case: Case) -> Sentences:
    found = case.facts.rounding
    if "flushed_fraction" in case.finding.evidence:
        yield "Not gradients that are zero: they are not when the loss is 4096 times as large."
    elif found is not None and found.loss_exact < found.loss_before:
        gain = found.loss_before - found.loss_exact
        yield f"Not the gradient or the rate: the same step in float32 lowers the loss by {gain:.3g}."


def _learning_rate_too_high(case: Case) -> Sentences:
    lower, rate = case.facts.courses.get("lower"), case.facts.lr
    if "steps" in case.finding.evidence.get("tests", {}):
        yield "Not noise, nor one order of the batches: in each of two orders the lower rate ends lower."
        return
    yield "Not noise: run again from one random state the model has the same loss, and all steps are on one batch."
    if lower is not None and rate is not None and lower.gain > 0:
        yield f"Not model, loss or gradient: at lr {rate * lower.scale:.2g} the same steps lower the loss."


def _learning_rate_too_low(case: Case) -> Sentences:
    facts, more = case.facts, case.facts.courses.get("higher")
    free = facts.courses.get("undamped")
    if free is not None and free.gain > 0 and "loss_with_smaller_eps" in case.finding.evidence:
        yield f"Not the rate, nor a cut graph: at this rate, with a smaller eps, the loss falls by {free.gain:.3g}."
    elif more is not None and facts.lr is not None and more.gain > 0:
        rate = facts.lr * more.scale if math.isnan(more.lr) else more.lr
        yield f"Not a minimum, nor a cut graph: at lr {rate:.2g} the loss falls by {more.gain:.3g}."
    if facts.loss_value is not None and facts.loss_constant:
        yield f"Not a converged loss: it is {facts.loss_value:.4g}, and {facts.loss_constant:.4g} for outputs of zero."


def _unoptimised_parameters(case: Case) -> Sentences:
    yield "Not frozen: each of them asks for a gradient."
    yield "Not without effect on the loss: its gradient with respect to each of them is not zero."


def _exploding_memory(case: Case) -> Sentences:
    yield from exploding_memory(case)
    yield from _finite(case)


def _mixed_rows(case: Case) -> Sentences:
    found = case.facts.mixed
    if found is None:
        return
    yield f"Not batch normalisation: the gradient goes from row to row inside of {found.modules[0]} itself."
    if found.repaired is not None and found.moved is not None and found.repaired < 0.01 * found.moved:
        yield f"Not another module: with batch_first=True a row's output moves by {found.repaired:.2g} at most."
    if abs(found.succession - 1) < 2 / math.sqrt(found.rows):
        yield f"Not one series: successive rows differ by {found.succession:.2g} of what any two differ by."


def _noisy_forward(case: Case) -> Sentences:
    found = case.facts.noise
    if found is not None and found.calm is not None and found.calm.aside[1] < found.calm.aside[0]:
        gain = found.calm.aside[0] - found.calm.aside[1]
        yield f"Not the data or the rate: with less dropout the same steps lower the loss by {gain:.3g}."


def _blind_attention(case: Case) -> Sentences:
    yield "Not large logits: every other key is masked, and each query sees another one."


def _no_progress(case: Case) -> Sentences:
    facts = case.facts
    if facts.loss_value is not None and facts.loss_constant:
        yield f"Not a converged loss: it is {facts.loss_value:.4g}, and {facts.loss_constant:.4g} for outputs of zero."
    lost = case.largest("lost_fraction")
    if lost is not None and lost < 0.5:
        yield f"Not rounding: it loses at most {lost:.0%} of a block's step."
    yield from _connected(case)


def _mispaired_targets(case: Case) -> Sentences:
    found = case.facts.pairing
    if found is None:
        return
    if found.planted:
        yield f"Not too few rows: a relation in half of them has a chance of {max(found.planted):.2g} at most."
    if found.control:
        what = "in that order" if found.order else "that follow from the inputs"
        yield f"Not the model, the loss or the rate: from as many rows with targets {what} it learns for held-out ones."


EXCLUSIONS: Mapping[str, Callable[[Case], Sentences]] = {
    "numerical_overflow": _numerical_overflow,
    "wrong_loss": _wrong_loss,
    "double_softmax": _double_softmax,
    "unscaled_input": _unscaled_input,
    "train_mode": _train_mode,
    "accumulated_gradients": _accumulated_gradients,
    "unoptimised_parameters": _unoptimised_parameters,
    "misscaled_weights": misscaled_weights,
    "frozen_layers": _frozen_layers,
    "dead_units": _dead_units,
    "saturated_activation": _saturated_activation,
    "stream_collapse": _stream_collapse,
    "unstable_mixing": _unstable_mixing,
    "exploding_signal": _exploding_signal,
    "vanishing_signal": _vanishing_signal,
    "rank_collapse": _rank_collapse,
    "vanishing_gradient": _vanishing_gradient,
    "exploding_gradient": _exploding_gradient,
    "shattered_gradient": _shattered_gradient,
    "lost_update": _lost_update,
    "attention_collapse": attention_collapse,
    "short_memory": short_memory,
    "exploding_memory": _exploding_memory,
    "excessive_decay": excessive_decay,
    "learning_rate_too_high": _learning_rate_too_high,
    "learning_rate_too_low": _learning_rate_too_low,
    "mixed_rows": _mixed_rows,
    "noisy_forward": _noisy_forward,
    "blind_attention": _blind_attention,
    "no_progress": _no_progress,
    "mispaired_targets": _mispaired_targets,
}
"""Rule -> what its evidence excludes."""

NOTHING_ELSE: Mapping[str, str] = {
    "undamped_momentum": "A setting that is read off the optimizer, and no measurement that had another explanation.",
}
"""Rule -> why there is nothing that it could exclude."""
