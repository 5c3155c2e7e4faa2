"""What no stage of a pipeline sees alone: signals and gradients over the depth of all stages, from their records."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any, Final

import torch
from torch import Tensor

from levada.probe.trace import Site
from levada.runs.processes import Stage
from levada.runs.standing import OVER_DEPTH, Standing
from levada.watching.measure.sample import Sample
from levada.watching.verdict.judge import Judge
from levada.watching.verdict.judged import standing_of
from levada.watching.verdict.rules import RULES

__all__ = ["over_depth"]

_SIGNALS: Final = ("signal_rms", "gradient_rms", "weight_rms", "weight_gradient_rms", "update_ratio", "zero_fraction")
# The last samples that are judged: enough for baselines and confirmation, and little to read.
_SAMPLES: Final = 64


def over_depth(
    stages: Sequence[Stage], losses: Sequence[tuple[int, float]], steps: int
) -> tuple[list[dict[str, Any]], Standing]:
    """Apply the rules that compare blocks over depth to the last samples that all stages of a pipeline took.

    Args:
        stages: in the order of the pipeline.
        losses: of the run's steps.
        steps: steps that were made.

    Returns:
        What holds, as dictionaries, and which of these rules have judged the run.
    """
    common = sorted(set.intersection(*(set(stage.signals.steps) for stage in stages)))[-_SAMPLES:]
    sites = tuple(
        Site(stage.name(f"{site['name']}"), 0, f"{site.get('kind')}", tuple(site.get("shape") or ()))
        for stage in stages
        for site in stage.signals.sites
    )
    sites = tuple(Site(site.name, order, site.kind, site.shape) for order, site in enumerate(sites))
    optimizer = (_Rescales if all(stage.adaptive for stage in stages) else _Plain)()
    source = SimpleNamespace(sites=sites, optimizers=(optimizer,))
    judge = Judge(source, rules={name: rule for name, rule in RULES.items() if name in OVER_DEPTH})
    rows = {signal: _rows(stages, signal, common) for signal in _SIGNALS}
    rates = dict(stages[-1].signals.scalars("lr"))
    told, at = 0, [step for step, _ in losses]
    for i, step in enumerate(common):
        until = bisect_right(at, step)
        values = {signal: row[i] for signal, row in rows.items() if row is not None}
        judge.sampled(Sample(step, 0.0, values, {"lr": rates.get(step, math.nan)}, tuple(losses[told:until])))
        told = until
    found = [asdict(one) for one in judge.fired if one.rule in OVER_DEPTH]
    return found, standing_of(judge, steps=steps)


def _rows(stages: Sequence[Stage], signal: str, steps: Sequence[int]) -> Tensor | None:
    """Return a signal of all stages on these steps, of shape `(steps, sites)`; None if a stage has not kept it."""
    parts = []
    for stage in stages:
        if signal not in stage.signals.names or not steps:
            return None
        reading = stage.signals.read(signal, first=steps[0], last=steps[-1])
        by_step = dict(zip(reading.steps, reading, strict=True))
        if any(step not in by_step for step in steps):
            return None  # kept in less detail by now
        parts.append(torch.tensor([by_step[step] for step in steps], dtype=torch.float64))
    return torch.cat(parts, dim=1)


class _Plain:
    """Stands for an optimizer that does not rescale gradients."""

    param_groups: tuple[dict[str, Any], ...] = ()


class _Rescales(_Plain):
    """Stands for one that does, by its name."""


_Rescales.__name__ = "Adam"
