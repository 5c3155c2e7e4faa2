"""Suite 5: how often the first remedy of `fix` brings a faulty program to its healthy twin's loss."""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

import levada
from benchmarks.diagnosis.planted import STEPS, labels, programs
from benchmarks.diagnosis.program import Program, Setup, train
from benchmarks.diagnosis.rows import Row, complete
from benchmarks.diagnosis.score import Rate
from levada._errors import UsageError
from levada.diagnose.loss import Loss

__all__ = ["WITHIN", "chosen", "run", "score"]

# A repair reaches the twin if it ends above it by at most this share of what the twin gains.
WITHIN = 0.1
# Of the fresh faulty programs, the first so many in the order of another hash: a repair takes half a minute.
NUM_PROGRAMS = 80
SECONDS = 120.0
LOOK = 60  # steps of a trial, within the budget
# The draws that programs were labelled with are 0, 1, 2.
SEED = 3


def chosen(names: Sequence[str]) -> list[str]:
    """Return the programs of the second draw that are repaired, the same ones whatever else there is.

    Args:
        names: of faulty programs.
    """
    fresh = {program.name for program in programs() if program.split == "fresh"}
    ordered = sorted(fresh & {*names}, key=lambda name: hashlib.sha256(f"repair {name}".encode()).hexdigest())
    return ordered[:NUM_PROGRAMS]


def repair(name: str) -> Row:
    """Repair a program, train it as its own loop does, and return how it and its twin end.

    Args:
        name: of a faulty program.
    """
    known = {program.name: program for program in programs()}
    program = known[name]
    twin = known[program.architecture]
    setup = program.build(SEED)
    start = time.process_time()
    torch.manual_seed(SEED)
    how = {"loss": setup.loss, "optimizer": setup.optimizer, "budget": SECONDS, "steps": LOOK}
    fixed: levada.diagnose.Fix | None = None
    try:
        fixed = levada.fix(copy.deepcopy(setup.model), list(setup.batches), **how)
    except UsageError:
        row: Row = {"outcome": "refused", "causes": []}
    else:
        row = {"outcome": fixed.outcome, "causes": list(fixed.causes)}
    row["cpu_seconds"] = round(time.process_time() - start, 3)
    twin_start, twin_end = train(twin.build(SEED), STEPS, SEED)
    _, faulty_end = train(setup, STEPS, SEED)
    row |= {
        "twin_start": twin_start,
        "twin_end": twin_end,
        "faulty_end": faulty_end,
        "remedy": None,
        "repaired_end": None,
    }
    if fixed is not None and fixed.change is not None:
        _, repaired_end = train(_repaired(program, twin, fixed.change), STEPS, SEED)
        row |= {"remedy": fixed.trials[0].name, "patch": fixed.patch, "repaired_end": repaired_end}
    return {key: None if value in (math.inf, -math.inf) else value for key, value in row.items()}


def _repaired(program: Program, twin: Program, change: levada.diagnose.remedies.Patch) -> Setup:
    """Return a program with a change made to its model, its loss and its optimizer.

    It is judged as the program is; where the change gives the outputs another meaning, as logits in the place of
    probabilities, by its twin's loss.
    """
    setup = program.build(SEED)
    model = change.change(setup.model, setup.batches[0][0])
    given, build = setup.loss, setup.optimizer
    loss = change.loss_function(Loss("given", lambda outputs, batch: given(outputs, batch.targets)))
    criterion = twin.build(SEED).loss if change.measure else setup.criterion or given
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    batches = [(x.to(dtype) if x.is_floating_point() else x, y) for x, y in setup.batches]
    return replace(
        setup,
        model=model,
        batches=batches,
        loss=loss,
        criterion=criterion,
        optimizer=lambda parameters: change.prepare(build(held := [*parameters]), held),
    )


def reached(row: Row) -> bool:
    """Return whether a repaired program ends no higher than a tenth of its twin's gain above the twin's end.

    Args:
        row: of the program.
    """
    gain = abs(row["twin_start"] - row["twin_end"])
    return row["repaired_end"] is not None and row["repaired_end"] <= row["twin_end"] + WITHIN * gain


def run(*, jobs: int = 0) -> dict[str, Row]:
    """Repair every chosen program that has no row yet; return all rows.

    Args:
        jobs: number of processes; one per core if 0.
    """
    return complete("repair", chosen([name for name, told in labels().items() if told == "harmful"]), repair, jobs=jobs)


def score(rows: Mapping[str, Row]) -> Rate:
    """Return how many of the programs were brought to their twin's loss.

    Args:
        rows: by name of program.
    """
    return Rate(sum(map(reached, rows.values())), len(rows))
