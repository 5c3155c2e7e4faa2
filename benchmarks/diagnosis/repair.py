"""Suite 5: how often the first remedy of `fix` brings a faulty program to its healthy twin's loss."""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

import levada
from benchmarks.diagnosis.planted import programs
from benchmarks.diagnosis.program import Program, Setup, held_out, train
from benchmarks.diagnosis.rows import Row, complete, read
from benchmarks.diagnosis.score import Rate

__all__ = ["WITHIN", "chosen", "run", "score"]

# A repair reaches the twin if it ends above it by at most this share of what the twin gains.
WITHIN = 0.1
# Of the held-out faulty programs, the first so many in the order of another hash: a repair takes half a minute.
NUM_PROGRAMS = 80
SECONDS = 40.0
STEPS = 60
# The draws that programs were labelled with are 0, 1, 2.
SEED = 3


def chosen(names: Sequence[str]) -> list[str]:
    """Return the held-out programs that are repaired, the same ones whatever else there is.

    Args:
        names: of faulty programs.
    """
    ordered = sorted(filter(held_out, names), key=lambda name: hashlib.sha256(f"repair {name}".encode()).hexdigest())
    return ordered[:NUM_PROGRAMS]


def repair(name: str) -> Row:
    """Repair a program, train it as its own loop does, and return how it and its twin end.

    Args:
        name: of a faulty program.
    """
    known = {program.name: program for program in programs()}
    program = known[name]
    twin = next(p for p in known.values() if p.healthy and p.architecture == program.architecture)
    steps = read("labels")[name]["steps"]
    setup = program.build(SEED)
    start = time.process_time()
    torch.manual_seed(SEED)
    fixed = levada.fix(
        copy.deepcopy(setup.model),
        list(setup.batches),
        loss=setup.loss,
        optimizer=setup.optimizer,
        budget=SECONDS,
        steps=STEPS,
    )
    row: Row = {"outcome": fixed.outcome, "causes": list(fixed.causes), "cpu_seconds": time.process_time() - start}
    _, healthy_end = train(twin.build(SEED), steps, SEED)
    before, faulty_end = train(setup, steps, SEED)
    row |= {"remedy": None, "start": before, "twin": healthy_end, "faulty": faulty_end, "repaired": None}
    if fixed.change is not None:
        _, repaired_end = train(_repaired(program, fixed.change), steps, SEED)
        row |= {"remedy": fixed.trials[0].name, "patch": fixed.patch, "repaired": repaired_end}
    return row


def _repaired(program: Program, change: levada.diagnose.remedies.Patch) -> Setup:
    """Return a program with a change made to its model and its optimizer."""
    setup = program.build(SEED)
    model = change.change(setup.model, setup.batches[0][0])
    build = setup.optimizer
    return replace(setup, model=model, optimizer=lambda parameters: change.prepare(build(held := [*parameters]), held))


def reached(row: Row, start: float) -> bool:
    """Return whether a repaired program ends within a tenth of its healthy twin's gain from the twin's end.

    Args:
        row: of the program.
        start: where the healthy twin starts.
    """
    return row["repaired"] is not None and row["repaired"] <= row["twin"] + WITHIN * abs(start - row["twin"])


def run(*, jobs: int = 0) -> dict[str, Row]:
    """Repair every chosen program that has no row yet; return all rows.

    Args:
        jobs: number of processes; one per core if 0.
    """
    harmful = [name for name, row in read("labels").items() if row["harm"]]
    return complete("repair", chosen(harmful), repair, jobs=jobs)


def score(rows: Mapping[str, Row]) -> Rate:
    """Return how many of the programs were brought to their twin's loss.

    Args:
        rows: by name of program.
    """
    labels = read("labels")
    return Rate(sum(reached(row, labels[name]["twin_starts"][0]) for name, row in rows.items()), len(rows))
