"""Suite 1: what `check` says of programs with a planted fault, and of their healthy twins."""

from __future__ import annotations

import functools
import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

import levada
from benchmarks.diagnosis.planted import labels, programs
from benchmarks.diagnosis.program import Program, Setup, held_out
from benchmarks.diagnosis.rows import Row, complete
from benchmarks.diagnosis.score import Rate
from levada._errors import MeasurementError, UsageError
from levada.diagnose import DIAGNOSTICS, diagnose
from levada.probe import Probe

__all__ = ["Scores", "by_operator", "flagged", "run", "score", "told"]

# A loop shows that it never clears gradients from its third step on.
WATCHED = 5


@functools.cache
def _known() -> Mapping[str, Program]:
    return {program.name: program for program in programs()}


def verdict(name: str) -> Row:
    """Return what `check` says of one program, or of its loop where that is what is faulty.

    Args:
        name: of the program.
    """
    program = _known()[name]
    setup = program.build(0)
    row: Row = {"operator": program.operator, "causes": sorted(program.causes), "place": program.place}
    row["rules"] = len(DIAGNOSTICS)
    start = time.process_time()
    if setup.zero_grad:
        torch.manual_seed(0)
        try:
            report = levada.check(setup.model, list(setup.batches), loss=setup.loss, optimizer=setup.optimizer)
        except (UsageError, MeasurementError) as error:
            return row | _refused(error) | {"cpu_seconds": round(time.process_time() - start, 3)}
        findings, blocks = report.findings, [block["site"] for block in report.blocks]
        row["verdict"] = report.verdict
    else:
        findings, blocks = _watch(setup)
        fired = {f.severity for f in findings if f.status == "fired"}
        row["verdict"] = "error" if "error" in fired else "warn" if "warn" in fired else "healthy"
    row["found"] = [
        {"rule": f.rule, "severity": f.severity, "first": f.where.get("first", ""), "claim": f.claim}
        for f in findings
        if f.status == "fired"
    ]
    row |= {"unknown": [f.rule for f in findings if f.status == "unknown"], "blocks": blocks}
    return row | {"cpu_seconds": round(time.process_time() - start, 3)}


def _refused(error: Exception) -> Row:
    """Return the row of what `check` refuses to measure, with a sentence that says why: an error by no rule."""
    found = {"rule": "refused", "severity": "error", "first": "", "claim": str(error)}
    return {"verdict": "error", "found": [found], "unknown": [], "blocks": []}


def _watch(setup: Setup) -> tuple[Any, list[str]]:
    """Run some steps of the loop under a probe, and return what the rules say of them, and the blocks."""
    torch.manual_seed(0)
    optimizer = setup.optimizer(setup.model.parameters())
    with Probe(setup.model, optimizer) as probe:
        for step in range(WATCHED):
            inputs, targets = setup.batches[step % len(setup.batches)]
            if setup.zero_grad:
                optimizer.zero_grad()
            setup.loss(setup.model(inputs), targets).backward()
            optimizer.step()
    trace = probe.trace()
    return diagnose(trace), trace.names()


def run(*, split: str = "", jobs: int = 0) -> dict[str, Row]:
    """Check every program, healthy or harmed, that has no row yet; return all rows.

    Args:
        split: "calibration" or "held-out"; both if empty.
        jobs: number of processes; one per core if 0.
    """
    classes = labels()
    wanted = [name for name in _known() if classes.get(name) in ("healthy", "harmful")]
    if split:
        wanted = [name for name in wanted if held_out(name) == (split == "held-out")]
    return complete("verdicts", wanted, verdict, jobs=jobs)


@dataclass(frozen=True, slots=True)
class Scores:
    """How verdicts on programs came out. "Flagged" is a warning or an error.

    Attributes:
        false_errors: healthy programs with an error.
        false_flags: healthy programs that are flagged.
        recall: faulty programs with an error.
        flagged: faulty programs that are flagged.
        cause: flagged faulty programs of which the first finding names a cause of what was planted.
        cause_of_all: the same, of all faulty programs whose cause a rule names.
        exact: programs with a place and their cause named, of which the first finding begins there.
        near: the same, within one block.
        near_of_all: the same, of all faulty programs with a place.
        chance: share of those that a block drawn at random would be within one block of.
        precision: of the programs with an error, those that are faulty.
        confusion: (operator, first rule, or the verdict where none) -> number of programs.
        misses: name -> why a faulty program is not flagged or its cause is another, or a healthy one is flagged.
        seconds: CPU seconds of a check: median and largest.
    """

    false_errors: Rate
    false_flags: Rate
    recall: Rate
    flagged: Rate
    cause: Rate
    cause_of_all: Rate
    exact: Rate
    near: Rate
    near_of_all: Rate
    chance: float
    precision: Rate
    confusion: Mapping[tuple[str, str], int]
    misses: Mapping[str, str]
    seconds: tuple[float, float]


def score(rows: Mapping[str, Row]) -> Scores:
    """Score verdicts.

    Args:
        rows: by name of program.
    """
    healthy = [row for row in rows.values() if not row["operator"]]
    faulty = [row for row in rows.values() if row["operator"]]
    seen = [row for row in faulty if flagged(row)]
    named = [row for row in seen if _named(row)]
    distances = [_distance(row) for row in named if row["place"]]
    placed = [row for row in faulty if row["place"] in row["blocks"]]
    seconds = sorted(row["cpu_seconds"] for row in rows.values())
    return Scores(
        false_errors=_rate(row["verdict"] == "error" for row in healthy),
        false_flags=_rate(bool(flagged(row)) for row in healthy),
        recall=_rate(row["verdict"] == "error" for row in faulty),
        flagged=_rate(bool(flagged(row)) for row in faulty),
        cause=Rate(len(named), len(seen)),
        cause_of_all=Rate(len(named), sum(bool(row["causes"]) for row in faulty)),
        exact=_rate(d == 0 for d in distances),
        near=_rate(d <= 1 for d in distances),
        near_of_all=Rate(sum(d <= 1 for d in distances), sum(bool(row["place"]) for row in faulty)),
        chance=sum(map(_within_one, placed)) / len(placed) if placed else math.nan,
        precision=_rate(bool(row["operator"]) for row in rows.values() if row["verdict"] == "error"),
        confusion=Counter((row["operator"], (flagged(row) or [{"rule": row["verdict"]}])[0]["rule"]) for row in faulty),
        misses={row["name"]: told(row) for row in rows.values() if _missed(row)},
        seconds=(seconds[len(seconds) // 2], seconds[-1]) if seconds else (0.0, 0.0),
    )


def by_operator(rows: Mapping[str, Row]) -> dict[str, Scores]:
    """Return the scores of the faulty programs of each operator.

    Args:
        rows: by name of program.
    """
    operators = sorted({row["operator"] for row in rows.values()} - {""})
    return {name: score({key: row for key, row in rows.items() if row["operator"] == name}) for name in operators}


def flagged(row: Row) -> list[Row]:
    """Return the findings of a row that warn or say error, causes first.

    Args:
        row: of one program.
    """
    return [finding for finding in row["found"] if finding["severity"] != "info"]


def told(row: Row) -> str:
    """Return what a program was told, in one line.

    Args:
        row: of one program.
    """
    found = [f"{f['severity']} {f['rule']}{' at ' if f['first'] else ''}{f['first']}" for f in flagged(row)]
    return "; ".join(found) or row["verdict"]


def _missed(row: Row) -> bool:
    return not _named(row) if row["operator"] else bool(flagged(row))


def _named(row: Row) -> bool:
    return bool(flagged(row)) and flagged(row)[0]["rule"] in row["causes"]


def _rate(outcomes: Iterable[bool]) -> Rate:
    found = list(outcomes)
    return Rate(sum(found), len(found))


def _within_one(row: Row) -> float:
    """Return the share of a program's blocks that are within one of the planted one."""
    blocks: Sequence[str] = row["blocks"]
    at = blocks.index(row["place"])
    return sum(abs(i - at) <= 1 for i in range(len(blocks))) / len(blocks)


def _distance(row: Row) -> int:
    """Return how many blocks lie between the planted place and the first finding's; many if one is unknown."""
    blocks: Sequence[str] = row["blocks"]
    first = flagged(row)[0]["first"]
    if row["place"] not in blocks or first not in blocks:
        return len(blocks)
    return abs(blocks.index(row["place"]) - blocks.index(first))


if __name__ == "__main__":
    import argparse

    parser = argparse.ArgumentParser(prog="python -m benchmarks.diagnosis.verdicts", description=__doc__)
    parser.add_argument("--split", choices=("calibration", "held-out"), default="", help="one half; both if left out")
    parser.add_argument("--jobs", type=int, default=0, help="number of processes (one per core)")
    asked = parser.parse_args()
    run(split=asked.split, jobs=asked.jobs)
