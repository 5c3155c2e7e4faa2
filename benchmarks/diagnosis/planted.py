"""Suite 1: programs with a planted fault, their healthy twins, and which faults do harm.

python -m benchmarks.diagnosis.planted label [--jobs N]

A twin is trained from the same draws on the same data. A planted fault counts as a fault if it does harm: in each of
three seeds the criterion ends above the twin's by at least a tenth of what the twin gained, or is not finite. The rest
is harmless: neither faulty nor healthy. This was fixed before the first program was trained, and no verdict was seen.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import math
import multiprocessing
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.diagnosis.architectures import Plan, build, healthy_plans, new_model
from benchmarks.diagnosis.operators import OPERATORS, At, Operator
from benchmarks.diagnosis.program import Program, Setup, train

__all__ = ["LABELS", "SEEDS", "STEPS", "label", "labels", "programs"]

STEPS = 80
SEEDS = (0, 1, 2)
HARM = 0.1  # of what the twin gained
LEARNED = 0.5  # of the criterion at the start
# Architectures for each operator. The second draw was made when what `check` missed of the first, by operator, had been
# read and mended: it alone says how good verdicts are on programs that nobody has seen.
ARCHITECTURES = (5, 5)
LABELS = Path(__file__).parents[1] / "results" / "diagnosis" / "labels.jsonl"


def programs() -> list[Program]:
    """Return all programs: the healthy ones first, then those with a planted fault."""
    return list(_named().values())


def labels(path: Path = LABELS) -> dict[str, Literal["healthy", "harmful", "harmless"]]:
    """Return the class of each labelled program, by name.

    Args:
        path: what `label` wrote.
    """
    found: dict[str, Literal["healthy", "harmful", "harmless"]] = {}
    for row in _rows(path).values():
        found[row["name"]] = "healthy" if not row["operator"] else "harmful" if row["harm"] else "harmless"
    return found


def label(chosen: Sequence[Program], path: Path = LABELS, *, jobs: int = 1, steps: int = STEPS) -> None:
    """Train programs, and append a line for each that is not in the file yet; its twin comes first.

    Args:
        chosen: programs; twins that are missing are added.
        path: JSON lines: criteria at the start and the end by seed, None where not finite.
        jobs: processes.
        steps: of the optimizer.
    """
    twins = {p.architecture: _named()[p.architecture] for p in chosen}
    known = _rows(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    everything = {**twins, **{p.name: p for p in chosen}}
    with path.open("a") as file:
        for group in (True, False):
            missing = [n for n, p in everything.items() if p.healthy is group and n not in known]
            for name, starts, ends in _outcomes(missing, jobs, steps):
                row = _row(everything[name], starts, ends, known)
                known[name] = row
                file.write(json.dumps(row, allow_nan=False) + "\n")
                file.flush()


def harmful(ends: Iterable[float], twin_starts: Iterable[float], twin_ends: Iterable[float]) -> bool:
    """Whether a program lost at least a tenth of its twin's gain in every seed.

    >>> harmful([0.5, math.inf], [2.0, 2.0], [0.3, 0.3]), harmful([0.5, 0.4], [2.0, 2.0], [0.3, 0.3])
    (True, False)
    """
    return all(
        not math.isfinite(end) or end >= best + HARM * (start - best)
        for end, start, best in zip(ends, twin_starts, twin_ends, strict=True)
    )


@functools.cache
def _named() -> dict[str, Program]:
    plans = {plan.name: plan for plan in healthy_plans()}
    found = {n: Program(n, n, p.family, functools.partial(build, p)) for n, p in plans.items()}
    chosen = {name: _chosen(op, list(plans.values())) for name, op in OPERATORS.items()}
    for turn in range(sum(ARCHITECTURES)):  # all operators once, then all twice
        for name, op in OPERATORS.items():
            for plan in chosen[name][turn : turn + 1]:
                program = _planted(op, plan, draw=1 if turn < ARCHITECTURES[0] else 2)
                found[program.name] = program
    return found


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _chosen(op: Operator, plans: Sequence[Plan]) -> list[Plan]:
    """Draw plans for an operator by hash, families in turn, no base twice while others are left."""
    fitting = [plan for plan in plans if op.applies(plan)]
    taken: list[Plan] = []
    while len(taken) < min(sum(ARCHITECTURES), len(fitting)):
        families, bases = Counter(p.family for p in taken), Counter(p.base for p in taken)
        left = [plan for plan in fitting if plan not in taken]
        taken.append(min(left, key=lambda p: (families[p.family], bases[p.base], _hash(f"{op.name} {p.name}"))))
    return taken


def _planted(op: Operator, plan: Plan, draw: int) -> Program:
    name = f"{plan.name}/{op.name}"
    site = ""
    if op.sites is not None:
        sites = op.sites(new_model(plan, 0))
        site = sites[_hash(name) % len(sites)]
    make = functools.partial(_mutated, plan, op.name, site)
    return Program(name, plan.name, plan.family, make, op.name, op.causes, site + op.suffix if site else "", draw)


def _mutated(plan: Plan, op: str, site: str, seed: int) -> Setup:
    return OPERATORS[op].mutate(build(plan, seed), At(plan, seed, site))


def _outcomes(names: list[str], jobs: int, steps: int) -> Iterator[tuple[str, list[float], list[float]]]:
    outcome = functools.partial(_outcome, steps=steps)
    if jobs == 1:
        yield from map(outcome, names)
        return
    with multiprocessing.get_context("spawn").Pool(jobs, torch.set_num_threads, (1,)) as pool:
        yield from pool.imap_unordered(outcome, names)


def _outcome(name: str, steps: int) -> tuple[str, list[float], list[float]]:
    made = _named()[name].build
    found = [train(made(seed), steps, seed) for seed in SEEDS]
    return name, [start for start, _ in found], [end for _, end in found]


def _row(
    program: Program, starts: list[float], ends: list[float], known: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": program.name,
        "operator": program.operator,
        "starts": [_told(v) for v in starts],
        "ends": [_told(v) for v in ends],
    }
    if program.healthy:
        row["learned"] = all(end < LEARNED * start for start, end in zip(starts, ends, strict=True))
        return row
    twin = known[program.architecture]
    row |= {"twin_starts": twin["starts"], "twin_ends": twin["ends"]}
    row["harm"] = harmful(ends, twin["starts"], twin["ends"])
    return row


def _told(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _rows(path: Path) -> dict[str, dict[str, Any]]:
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {row["name"]: row for row in rows}


def _tell(path: Path) -> None:
    """Print how many there are of each class, by operator and by family."""
    classes, rows = labels(path), [p for p in programs() if p.name in labels(path)]
    print(dict(Counter(classes[p.name] for p in rows)))
    for group in ("family", "operator"):
        counts: dict[str, Counter[str]] = {}
        for p in rows:
            counts.setdefault(getattr(p, group), Counter())[classes[p.name]] += 1
        for name, count in counts.items():
            print(f"{name:36s} {dict(count)}")
    print("not learned:", [n for n, row in _rows(path).items() if row.get("learned") is False])


def main(arguments: Sequence[str] | None = None) -> int:
    """Label the programs, or tell what the labels are."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.diagnosis.planted")
    parser.add_argument("command", choices=("label", "tell"))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=LABELS)
    options = parser.parse_args(arguments)
    if options.command == "label":
        torch.set_num_threads(1)
        label(programs(), options.out, jobs=options.jobs)
    _tell(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
