"""What the rules of a watched run say of small trainings: detections of planted faults, and false alarms."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from benchmarks.measure import commit
from benchmarks.watch_verdicts.trainings import FAULTS, HEALTHY, Training, train
from levada.diagnose import Finding
from levada.watching.verdict.judge import Judge
from levada.watching.verdict.judged import standing_of
from levada.watching.watch import watch

__all__ = ["judged", "rows"]

EVERY = 20


def judged(build: Callable[[int], Training], seed: int, keep: Any = None, steps: int | None = None) -> Judge:
    """Return the judge of one training.

    Args:
        build: seed -> training.
        seed: of model and data.
        keep: folder of a run; None to keep none.
        steps: of the training; its own number if None.
    """
    torch.manual_seed(seed)
    training, judges = build(seed), []

    def attach(training, optimizer, scaler):
        # Sampled at a fixed distance, however busy the machine is: the rules are tried here, and not the throttle.
        watching = watch(training.model, optimizer, run=keep, every=EVERY, max_overhead=math.inf, scaler=scaler)
        judges.append(watching.judge)
        return watching

    train(training if steps is None else replace(training, steps=steps), attach)
    return judges[0]


def told(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    return [
        {
            "rule": f.rule,
            "severity": f.severity,
            "status": f.status,
            "first": f.where.get("first", ""),
            "step": f.evidence.get("told_at"),
            "claim": f.claim,
        }
        for f in findings
    ]


def rows(seeds: Sequence[int], names: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """Yield one row for each training and seed, as soon as it has run.

    Args:
        seeds: of each training.
        names: parts of names; all trainings if empty.
    """
    for kind, builders in (("healthy", HEALTHY), ("fault", {name: fault.build for name, fault in FAULTS.items()})):
        for name, build in builders.items():
            if names and not any(part in f"{kind} {name}" for part in names):
                continue
            for seed in seeds:
                start = time.perf_counter()
                judge = judged(build, seed)
                alarms = [f for f in judge.findings if f.severity != "info"]
                row = {"kind": kind, "name": name, "seed": seed, "seconds": round(time.perf_counter() - start, 1)}
                row |= {"commit": commit(), "verdict": standing_of(judge).verdict}
                row |= {"told": told(judge.findings), "alarms": len(alarms)}
                row["errors"] = sum(f.severity == "error" for f in alarms)
                if kind == "fault":
                    fault = FAULTS[name]
                    named = [f for f in alarms if f.rule in fault.rules]
                    row["detected"] = bool(named)
                    row["first"] = bool(alarms) and alarms[0].rule in fault.rules
                    row["placed"] = any(f.where.get("first") == fault.block for f in named) if fault.block else None
                    steps = [f.evidence["told_at"] - fault.step for f in named]
                    row["after"] = min(steps) if steps else None
                yield row
