"""The account of a run so far: verdict, findings, the signals by block, and what was not judged."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from torch import nn

from levada.diagnose.decay import Decay, gradient_decay, size_decay
from levada.diagnose.report import Report, Verdict
from levada.probe.trace import Trace
from levada.watching.judge import Judge
from levada.watching.sample import WATCHED, Sample
from levada.watching.view import values_of

__all__ = ["report"]

_DEPTH: Final = ("vanishing_gradient", "exploding_gradient", "vanishing_signal", "exploding_signal")
_LEAST_BLOCKS: Final = 4
_RATES: Final = ("learning_rate_too_high", "learning_rate_too_low")


def report(judge: Judge, *, model: nn.Module | None = None) -> Report:
    """Return what is known of a run now.

    A block's values are the medians over the last samples. The verdict is the worst severity among the findings that
    hold now; "unknown" as long as no finding could have been confirmed. Findings that ended are listed as "clear".

    Args:
        judge: what has judged it.
        model: the model, for its name and size.

    Example:
        >>> told = report(Judge(lambda: ()))
        >>> told.verdict, told.unknown["numerical_overflow"]
        ('unknown', 'no step was sampled')
    """
    rows = tuple(judge.rows)
    unknown = dict(_unjudged(judge, rows))
    fired = {finding.severity for finding in judge.fired}
    verdict: Verdict = "error" if "error" in fired else "warn" if "warn" in fired else "healthy"
    if verdict == "healthy" and judge.samples < judge.confirm:
        verdict = "unknown"
    notes = [f"Not judged: {', '.join(unknown)}."] if unknown else []
    ended = [finding for finding in judge.findings if finding.status == "clear"]
    if ended:
        told = (f"{finding.rule} at step {finding.evidence['cleared_at']}" for finding in ended)
        notes.append(f"Ended: {', '.join(told)}.")
    if judge.keeper is not None and judge.keeper.folders:
        notes.append(f"Kept, to be run again: {', '.join(str(folder) for folder in judge.keeper.folders)}.")
    return Report(
        verdict=verdict,
        findings=(*judge.fired, *ended),
        blocks=tuple(_blocks(judge, rows)),
        summary=_summary(judge, rows),
        notes=tuple(notes),
        model="" if model is None else type(model).__name__,
        parameters=0 if model is None else sum(p.numel() for p in model.parameters()),
        seconds=judge.seconds,
        settings=_settings(judge, rows),
        unknown=unknown,
    )


def _unjudged(judge: Judge, rows: Sequence[Sample]) -> Iterator[tuple[str, str]]:
    """Yield rules that give no verdict, and why."""
    if not rows or judge.blocks is None:
        yield from ((rule, "no step was sampled") for rule in ("numerical_overflow", "loss_spike", *judge.rules))
        return
    loss, blocks, sites = judge.loss, judge.blocks, len(judge.blocks.sites)
    seen = {signal for signal in WATCHED for row in rows if bool(values_of(row, signal, sites).isfinite().any())}
    few = ""
    if not loss.ready:
        few = (
            f"the loss was seen on {loss.steps} steps, and {loss.warm_up} are needed"
            if loss.steps
            else "no loss was seen"
        )
        yield "loss_spike", few
    if sites < _LEAST_BLOCKS:
        yield from ((rule, f"there are {sites} blocks, and a law of depth needs {_LEAST_BLOCKS}") for rule in _DEPTH)
    elif judge.samples < judge.warm_up:
        why = f"this run's own baseline needs {judge.warm_up} samples, and there are {judge.samples}; over depth it is"
        yield from ((rule, f"{why} judged already") for rule in _DEPTH)
    if "zero_fraction" not in seen:
        yield "dead_units", "no block was seen to have activations with exact zeros"
    if "weight_gradient_rms" not in seen:
        yield "frozen_layers", "no gradient of a weight was measured"
    rate = "" if math.isfinite(float(rows[-1].scalars.get("lr", math.nan))) else "the learning rate is not known"
    update = "" if "update_ratio" in seen else "no update was measured"
    types = "" if bool(blocks.resolution.isfinite().any()) else "the type of the weights' numbers is not known"
    if why := update or types or rate:
        yield "lost_update", why
    for rule in _RATES:
        if why := update or few or (rate if rule.endswith("low") else ""):
            yield rule, why


def _blocks(judge: Judge, rows: Sequence[Sample]) -> Iterator[dict[str, Any]]:
    if judge.blocks is None:
        return
    sites = judge.blocks.sites
    medians = {
        signal: torch.stack([values_of(row, signal, len(sites)) for row in rows]).nanmedian(0).values.tolist()
        for signal in WATCHED
        if rows
    }
    for i, site in enumerate(sites):
        block: dict[str, Any] = {"site": site.name, "order": site.order, "kind": site.kind, "shape": list(site.shape)}
        yield block | {signal: values[i] for signal, values in medians.items() if not math.isnan(values[i])}


def _summary(judge: Judge, rows: Sequence[Sample]) -> dict[str, Any]:
    sites = judge.blocks.sites if judge.blocks is not None else ()
    summary: dict[str, Any] = {"depth": len(sites)}
    if rows and len(sites) > 1:
        values = {
            signal: torch.stack([values_of(row, signal, len(sites)) for row in rows])
            for signal in ("signal_rms", "gradient_rms")
        }
        trace = Trace(sites, tuple(row.step for row in rows), values)
        for key, decay in (
            ("gradient_decay_per_block", gradient_decay(trace)),
            ("signal_growth_per_block", size_decay(trace)),
        ):
            if isinstance(decay, Decay):
                summary[key] = decay.told()
    if judge.loss.steps:
        summary |= {"loss": judge.loss.now, "loss_at_start": judge.loss.start, "loss_at_best": judge.loss.best}
    return summary


def _settings(judge: Judge, rows: Sequence[Sample]) -> Mapping[str, Any]:
    if not rows:
        return {}
    lr = float(rows[-1].scalars.get("lr", math.nan))
    return {
        "step": rows[-1].step,
        "samples": judge.samples,
        "optimizer": (judge.blocks.optimizer if judge.blocks is not None else "") or None,
        "lr": lr if math.isfinite(lr) else None,
        "loss_value": judge.loss.now if judge.loss.steps else None,
    }
