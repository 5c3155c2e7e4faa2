"""The account of a run so far: verdict, findings, the signals by block, and which rules have judged it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from levada.diagnose.decay import Decay, gradient_decay, size_decay
from levada.diagnose.finding import Finding
from levada.diagnose.report import Report
from levada.probe.trace import Site, Trace
from levada.runs.jumps import at_steps
from levada.runs.standing import Standing
from levada.watching.measure.sample import WATCHED, Sample
from levada.watching.verdict.judge import Judge
from levada.watching.verdict.judged import standing_of
from levada.watching.verdict.view import values_of

__all__ = ["report", "trace_of"]


def report(
    judge: Judge,
    *,
    model: nn.Module | None = None,
    standing: Standing | None = None,
    findings: Iterable[Finding] = (),
) -> Report:
    """Return what is known of a run now.

    A block's values are the medians over the last samples. The verdict is that of its `Standing`. Findings that ended
    are listed as "clear".

    Args:
        judge: what has judged it.
        model: the model, for its name and size.
        standing: of the run, if it is known already.
        findings: of all who listen, beside those of the judge.

    Example:
        >>> told = report(Judge(lambda: ()))
        >>> told.verdict, told.unknown["numerical_overflow"]
        ('unknown', 'no step was sampled')
    """
    rows = tuple(judge.rows)
    standing = standing_of(judge) if standing is None else standing
    notes = [standing.told]
    found = {id(finding): finding for finding in (*judge.findings, *findings)}.values()
    ended = [finding for finding in found if finding.status == "clear"]
    if ended:
        over = dict[str, list[int]]()
        for one in ended:
            over.setdefault(one.rule, []).append(int(one.evidence["cleared_at"]))
        notes.append(f"Ended: {', '.join(f'{rule} at {at_steps(sorted(steps))}' for rule, steps in over.items())}.")
    if still := judge.idle.told(model):
        notes.append(still)
    if judge.keeper is not None and judge.keeper.folders:
        finding = "" if standing.alarmed else " A step that is kept is no finding."
        notes.append(f"Kept, to be run again: {', '.join(str(folder) for folder in judge.keeper.folders)}.{finding}")
    return Report(
        verdict=standing.verdict,
        findings=(*(finding for finding in found if finding.status == "fired"), *ended),
        blocks=tuple(_blocks(judge, rows)),
        summary=_summary(judge, rows),
        notes=tuple(notes),
        model="" if model is None else type(model).__name__,
        parameters=0 if model is None else sum(p.numel() for p in model.parameters() if not nn.parameter.is_lazy(p)),
        seconds=judge.seconds,
        settings=_settings(judge, rows),
        unknown=standing.unjudged,
        called=standing.called,
    )


def trace_of(samples: Sequence[Sample], sites: tuple[Site, ...], optimizers: Sequence[Any], *, every: int) -> Trace:
    """Return samples as a trace.

    Args:
        samples: at least one.
        sites: the blocks.
        optimizers: of the training.
        every: distance between samples.
    """
    values = {name: torch.stack([sample.values[name] for sample in samples]) for name in WATCHED}
    context = {
        "optimizer": type(optimizers[0]).__name__ if optimizers else None,
        "lr": tuple(sample.scalars.get("lr") for sample in samples),
        "loss": tuple(sample.scalars.get("loss") for sample in samples),
        "every": every,
        "depth": len(sites),
    }
    return Trace(sites, tuple(sample.step for sample in samples), values, context)


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
