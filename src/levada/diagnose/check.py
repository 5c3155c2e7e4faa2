"""Check a model once, before training: where its learning signal dies or explodes, why, and what would repair it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from levada._errors import UsageError
from levada._names import NONFINITE, spelt
from levada.diagnose.decay import Decay, gradient_decay, signal_decay, size_decay
from levada.diagnose.diagnostics import diagnose
from levada.diagnose.facts import facts_of
from levada.diagnose.fields import block_fields
from levada.diagnose.finding import Finding
from levada.diagnose.loss import LossLike
from levada.diagnose.measure import Draws, measure
from levada.diagnose.pace import Pace
from levada.diagnose.preserve import preserve
from levada.diagnose.recurrent import measured, not_followed
from levada.diagnose.report import Report, Verdict
from levada.diagnose.trainable import depths
from levada.diagnose.unjudged import in_one_line, unjudged
from levada.diagnose.update import DEFAULT, OptimizerLike, resolve_optimizer
from levada.inputs import Batch, read_batches, require_model
from levada.ops._define import plain_operations
from levada.probe import MIXING_SIGNALS, Trace
from levada.probe.compiled import eager, unwrapped
from levada.stacking import as_layers

__all__ = ["check", "examine"]

# The rules that need a decay over depth.
_OVER_DEPTH = frozenset({"vanishing_gradient", "exploding_gradient", "vanishing_signal", "exploding_signal"})
_SIGNALS = (
    "signal_rms",
    "signal_spread",
    "gradient_rms",
    "cotangent_rms",
    "update_ratio",
    "lost_fraction",
    "eps_fraction",
    "gradient_snr",
    "saturated_fraction",
    "dead_fraction",
    "zero_fraction",
    "nonfinite",
    "weight_gradient_rms",
    *MIXING_SIGNALS,
)


@spelt
def check(
    model: nn.Module,
    batch: Any = None,
    *,
    loss: LossLike = None,
    optimizer: OptimizerLike = None,
    lr: float | None = None,
    seed: int = 0,
    budget: float = 60.0,
) -> Report:
    """Say where a model's learning signal dies or explodes, why, and what would repair it.

    The model is measured in the mode it is in, and comes back as it was: parameters, buffers, mode, hooks, gradients
    and every random number generator, also after an error. Python attributes that forward itself sets (a counter, a
    cached tensor) are its own, and change as in any forward pass. A batch that can be read only once is consumed. Of a
    model from `torch.compile` the module inside is measured, without compiling.

    Args:
        model: any module.
        batch: `(inputs, targets)`, a mapping of keyword arguments, a tensor of inputs, or an iterable of these, of
            which the first four are used; inferred from the first layer if None. Two inputs without targets are
            written `((a, b), None)`.
        loss: callable of outputs and targets, or "cross_entropy", "mse" or "output" (the model returns its loss);
            inferred if None. Without targets only random cotangents are measured.
        optimizer: name in `torch.optim`, or a callable that builds one from parameters; AdamW if None, or SGD where
            gradients are sparse.
        lr: learning rate; the optimizer's default if None.
        seed: of every draw.
        budget: seconds in which it ends; the smallest measurement is made whatever it takes. What there is no time for
            is named in a note, and a rule that had a reason to look there is unknown.

    Returns:
        The `Report`.

    Raises:
        UsageError: if something that was given cannot be used.
        MeasurementError: if the measurement cannot be made.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> layers = [m for _ in range(30) for m in (nn.Linear(64, 64), nn.Sigmoid())]
        >>> report = check(nn.Sequential(*layers), torch.randn(16, 64))
        >>> report.verdict, report.findings[0].rule
        ('error', 'vanishing_signal')
        >>> round(report.summary["gradient_decay_per_block"]["predicted"], 2)   # sqrt(E[slope^2] / 3)
        0.14

    Source: the criteria are those of Schoenholz et al. 2017, arXiv 1611.01232, measured as by Doshi, He and Gromov
    2021, arXiv 2111.12143.
    """
    return examine(model, batch, loss=loss, optimizer=optimizer, lr=lr, seed=seed, budget=budget)[0]


def examine(
    model: nn.Module,
    batch: Any = None,
    *,
    loss: LossLike = None,
    optimizer: OptimizerLike = None,
    lr: float | None = None,
    seed: int = 0,
    budget: float = 60.0,
) -> tuple[Report, Trace]:
    """Return what `check` returns, and the trace that the rules read; the arguments are those of `check`."""
    start, pace = time.perf_counter(), Pace(budget)
    model, compiled = unwrapped(require_model(model))
    factory = resolve_optimizer(optimizer, lr)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise UsageError(f"check: seed must be an integer of at least 0, got {seed!r}.")
    if not budget >= 0:
        raise UsageError(f"check: budget must be a number of seconds of at least 0, got {budget!r}.")
    with as_layers(model), eager(compiled), preserve(model, seed), plain_operations():
        batches = read_batches(model, batch)
        trace, notes = measure(model, batches, loss, factory, Draws(seed, pace))
    if optimizer is None and facts_of(trace).optimizer is not None:
        name = facts_of(trace).optimizer
        why = "" if name == DEFAULT else f", because {DEFAULT} takes no sparse gradients"
        notes.append(f"No optimizer was given: {name} was assumed{why}.")
    if compiled:
        notes.append("The model is compiled; the module inside was measured, without compiling.")
    notes.extend(_data_notes(trace, batches))
    notes.extend(not_followed(facts_of(trace).memory, trace.sites))
    if (behind := facts_of(trace).behind) is not None:
        notes.append(behind.told())
    if not model.training:
        notes.append("The model is in eval mode and was measured so; call model.train() to measure it as it trains.")
    findings = diagnose(trace)
    alone = _nothing_to_follow(trace)
    if alone:
        findings = tuple(f for f in findings if f.status != "unknown" or f.rule not in _OVER_DEPTH)
        notes.append(alone)
    silent = unjudged(trace, findings)
    notes.extend([in_one_line(silent)] if silent else [])
    report = Report(
        verdict=_verdict(findings),
        findings=findings,
        blocks=tuple(_blocks(trace)),
        summary=_summary(trace),
        notes=tuple(dict.fromkeys(notes)),
        model=type(model).__name__,
        parameters=sum(p.numel() for p in model.parameters()),
        seed=seed,
        seconds=time.perf_counter() - start,
        settings=_settings(trace),
        unknown=silent | {f.rule: f.claim for f in findings if f.status == "unknown"},
    )
    return report, trace


def _data_notes(trace: Trace, batches: Sequence[Batch]) -> list[str]:
    flat = facts_of(trace).flat
    if flat == "size":
        return ["The inputs are all zero: nothing about the model follows from them. Give a batch of real data."]
    if flat == "spread":
        return ["All rows of the batch are the same: rules about differences between inputs were not applied."]
    if all(len(t) == 1 for b in batches for t in b.tensors() if t.dim() > 0):
        return ["The batch has one row: differences between inputs are not known. Give at least two."]
    return []


def _nothing_to_follow(trace: Trace) -> str:
    """Return why no decay over depth is asked for: learning blocks are too few; "" if they are not, or none was seen.

    What is not asked for is not unknown: a single layer, or a frozen backbone with a trained head, has no depth for a
    signal to die in.
    """
    sites = len(trace.sites)
    logs = facts_of(trace).cotangent_log10
    if logs is None or logs.shape[1] != sites:
        return ""
    followed = (~logs.isnan()).any(0)  # NaN where autograd follows nothing: it is frozen, or not on the way
    passed = int(followed.sum())
    inner = followed if sites < 3 else followed[:-1]
    if not bool(followed.any()) or int(inner.sum()) > 1:
        return ""
    return f"The gradient passes {passed} of {sites} block boundaries: there is no depth to follow it over."


def _verdict(findings: Sequence[Finding]) -> Verdict:
    fired = {finding.severity for finding in findings if finding.status == "fired"}
    if "error" in fired:
        return "error"
    if "warn" in fired:
        return "warn"
    return "unknown" if any(finding.status == "unknown" for finding in findings) else "healthy"


def _settings(trace: Trace) -> dict[str, Any]:
    facts = facts_of(trace)
    return {"optimizer": facts.optimizer, "lr": facts.lr, "loss": facts.loss, "loss_value": facts.loss_value}


def _blocks(trace: Trace) -> list[dict[str, Any]]:
    facts = facts_of(trace)
    means = {signal: trace[signal].nanmean(0).tolist() for signal in _SIGNALS}
    logs = (
        (facts.cotangent_log10 if facts.cotangent_log10 is not None else trace["cotangent_rms"].log10())
        .mean(0)
        .tolist()
    )
    below = _gradients_predicted(trace)
    blocks = []
    for i, site in enumerate(trace.sites):
        block: dict[str, Any] = {"site": site.name, "order": site.order, "kind": site.kind, "shape": list(site.shape)}
        hurt = {signal for signal, bad in NONFINITE.items() if bad in means and means[bad][i] > 0}
        # What is NaN was not measured, unless the numbers themselves are not finite.
        block |= {name: values[i] for name, values in means.items() if not math.isnan(values[i]) or name in hurt}
        if not math.isnan(logs[i]):
            block["cotangent_log10"] = logs[i]
        if i and math.isfinite(logs[i - 1]) and math.isfinite(logs[i]):
            block["gain_measured"] = 10 ** (logs[i - 1] - logs[i])
        relation = facts.relations.get(site.name)
        if relation is not None:
            ranks = {"input_rank": relation.rank, "input_rank_attainable": relation.attainable}
            ranks["token_difference"] = relation.tokens
            block |= {key: value for key, value in ranks.items() if not math.isnan(value)}
        if facts.predictions:
            told = facts.predictions[i]
            values = {
                "gain_predicted": told.gain,
                "signal_predicted": told.signal,
                "spread_predicted": told.spread,
                "gradient_predicted": below[i],
            }
            block |= {key: value for key, value in values.items() if value is not None}
            if told.gain is None:
                block["prediction_missing"] = told.reason
            if told.anchored:
                block["prediction_from"] = "the measured signal before this block"
        block |= block_fields(facts, site)
        blocks.append(block if facts.behind is None else facts.behind.own(block))
    return blocks


def _gradients_predicted(trace: Trace) -> list[float | None]:
    """Return theory's gradient at each boundary, relative to the last one; None from the first gap on."""
    predictions = facts_of(trace).predictions
    values: list[float | None] = [None] * len(predictions)
    value: float | None = 1.0
    for i in reversed(range(len(predictions))):
        values[i] = value
        gain = predictions[i].gain
        value = None if value is None or gain is None else value * gain
    return values


def _mixing(trace: Trace) -> dict[str, Any]:
    """Return what is told of streams over the whole depth: extremes, by chain too, and the matrices for the picture."""
    matrices: dict[str, list[list[float]]] = trace.context["mixing"]
    names, chains = trace.names(), []
    for told in trace.context["chains"]:
        at = [i for i, name in enumerate(names) if name in told["sites"]]
        streams = len(matrices[told["layers"][0]])
        chains.append({"layers": told["layers"], "streams": streams, **_extremes(trace, at)})
    return {
        "layers": len(matrices),
        "streams": max(len(m) for m in matrices.values()),
        **_extremes(trace, list(range(len(names)))),
        "chains": chains,
        "matrices": matrices,
        "weights": trace.context["stream_weights"],
    }


def _extremes(trace: Trace, sites: list[int]) -> dict[str, float]:
    extremes = {
        "composite_forward_gain": torch.amax,
        "composite_backward_gain": torch.amax,
        "composite_log_column_sum": torch.amax,
        "composite_column_norm": torch.amin,
        "smallest_singular_value": torch.amin,
        "effective_rank": torch.amin,
    }
    told: dict[str, float] = {}
    for signal, extreme in extremes.items():
        values = trace[signal][:, sites]
        values = values[~values.isnan()]
        if len(values):
            told[signal] = float(extreme(values, 0))
    return told


def _summary(trace: Trace) -> dict[str, Any]:
    facts = facts_of(trace)
    summary: dict[str, Any] = {"depth": len(trace.sites)}
    gradient = gradient_decay(trace)
    for key, decay in (
        ("gradient_decay_per_block", gradient),
        ("signal_decay_per_block", signal_decay(trace)),
        ("signal_growth_per_block", size_decay(trace)),
    ):
        if isinstance(decay, Decay):
            summary[key] = decay.told()
        else:
            summary.setdefault("unknown", {})[key] = decay
    for key, found in depths(trace).items():
        (summary.setdefault("unknown", {}) if isinstance(found, str) else summary)[key] = found
    if isinstance(gradient, Decay):
        summary["gradient_ratio_decades"] = -gradient.total  # log10 of the first boundary's over the last one's
    if facts.loss_value is not None:
        summary |= {"loss": facts.loss_value, "loss_of_zeros": facts.loss_constant, "loss_after_step": facts.loss_after}
    if facts.output_spread is not None:
        summary["output_spread"] = facts.output_spread
    if facts.input_relation is not None and math.isfinite(facts.input_relation.rank):
        summary["input_effective_rank"] = facts.input_relation.rank
    if trace.context.get("mixing"):
        summary["mixing"] = _mixing(trace)
    if (memory := measured(facts.memory)) is not None:
        summary["memory_horizon"] = memory
    return summary
