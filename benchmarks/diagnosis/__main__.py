"""Run the suites: label the programs, check them, repair some, and print what came out; or a sample, with `--quick`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence

import torch

from benchmarks.diagnosis import memory, planted, repair, trainability, verdicts
from benchmarks.diagnosis.calibration import SHIPPED, write_calibration
from benchmarks.diagnosis.program import held_out
from benchmarks.diagnosis.rows import read
from benchmarks.diagnosis.zoo import run as zoo
from levada.diagnose import DIAGNOSTICS

__all__ = ["main"]

# Programs of a quick look: every so manieth.
SAMPLE = 20


def _planted(jobs: int) -> None:
    planted.label(planted.programs(), jobs=jobs)
    verdicts.run(jobs=jobs)


SUITES: Mapping[str, Callable[[int], object]] = {
    "planted": _planted,
    "zoo": lambda jobs: zoo.run(zoo.OUT, None, None, jobs),
    "trainability": lambda jobs: trainability.main(["run", "--jobs", str(jobs)]),
    "memory": lambda jobs: memory.main(["run", "--jobs", str(jobs)]),
    "repair": lambda jobs: repair.run(jobs=jobs),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run suites; what results hold is not computed again."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.diagnosis", description=__doc__)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"{', '.join(SUITES)}; all if left out")
    parser.add_argument(
        "--quick", action="store_true", help="check a sample of the programs that are not held out; nothing is kept"
    )
    parser.add_argument("--jobs", type=int, default=2, help="number of processes (2)")
    options = parser.parse_args(arguments)
    for name in options.suites:
        if name not in SUITES:
            parser.error(f"there is no suite {name!r}; there are {', '.join(SUITES)}")
    if options.quick:
        return _look()
    for name in options.suites or SUITES:
        print(f"== {name}", flush=True)
        SUITES[name](options.jobs)
    write_calibration(SHIPPED, calibration())
    from benchmarks.diagnosis.report import targets  # reads what was just written

    print(targets())
    return 0


def calibration() -> dict[str, dict[str, object]]:
    """Return how often each rule spoke of healthy programs and models of the zoo, as an error or as a warning only."""
    told: dict[str, dict[str, set[str]]] = {rule: {"error": set(), "warn": set()} for rule in DIAGNOSTICS}
    counted: set[str] = set()
    for row in read("verdicts").values():
        if not row["operator"] and row["rules"] == len(DIAGNOSTICS):
            counted.add(row["name"])
            for finding in row["found"]:
                _count(told, finding["rule"], finding["severity"], row["name"])
    for row in zoo.read(zoo.OUT):
        if row["rules"] != len(DIAGNOSTICS):
            continue  # of a version that had other rules
        counted.add(f"zoo {row['name']}")
        for finding in row["fired"]:
            _count(told, finding["rule"], finding["severity"], f"zoo {row['name']}")
    if not counted:
        return {}
    suite = "healthy programs of the diagnosis benchmark"
    return {
        rule: {"errors": len(t["error"]), "warnings": len(t["warn"] - t["error"]), "of": len(counted), "suite": suite}
        for rule, t in told.items()
    }


def _count(told: Mapping[str, Mapping[str, set[str]]], rule: str, severity: str, name: str) -> None:
    if rule in told and severity in told[rule]:
        told[rule][severity].add(name)


def _look() -> int:
    """Check a sample of the programs, and print what was said of each."""
    torch.set_num_threads(1)
    classes = planted.labels()
    known = [p.name for p in planted.programs() if classes.get(p.name) in ("healthy", "harmful")]
    names = [name for name in known if not held_out(name)]  # a look is not to spoil what is held out
    rows = {name: {"name": name, **verdicts.verdict(name)} for name in names[::SAMPLE]}
    for name, row in rows.items():
        print(f"{name}: {verdicts.told(row)}")
    scores = verdicts.score(rows)
    print(f"faulty flagged {scores.flagged}, cause named {scores.cause}; healthy flagged {scores.false_flags}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
