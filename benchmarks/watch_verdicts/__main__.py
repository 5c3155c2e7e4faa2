"""`python -m benchmarks.watch_verdicts [--quick] [--seeds 200,201] [NAME...]`: counts, and every finding."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.watch_verdicts.trainings import FAULTS, HEALTHY
from benchmarks.watch_verdicts.verdicts import rows

RESULTS = Path(__file__).parents[1] / "results" / "watch_verdicts.json"

_ORDER = {("healthy", name): i for i, name in enumerate(HEALTHY)} | {
    ("fault", name): i for i, name in enumerate(FAULTS)
}


def keep(row: dict[str, Any]) -> None:
    """Write a row in place of that of the same training and seed, at once: to train all takes hours."""
    held = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    held = [one for one in held if any(one[key] != row[key] for key in ("kind", "name", "seed"))] + [row]
    held.sort(key=lambda one: (one["kind"] == "fault", _ORDER.get((one["kind"], one["name"]), -1), one["seed"]))
    RESULTS.write_text(json.dumps(held, indent=1) + "\n")


def tell(row: dict[str, Any]) -> None:
    verdict = {True: "detected", False: "MISSED", None: ""}[row.get("detected")]
    print(row["kind"], row["name"], row["seed"], verdict, f"{row['alarms']} alarms", f"{row['seconds']} s", flush=True)
    for one in row["told"]:
        print("   ", one["severity"], one["status"], one["rule"], one["first"], one["step"], one["claim"], flush=True)


def count(found: Sequence[dict[str, Any]]) -> None:
    healthy = [row for row in found if row["kind"] == "healthy"]
    faulty = [row for row in found if row["kind"] == "fault"]
    placed = [row for row in faulty if row["placed"] is not None]
    print(f"healthy with an alarm {sum(r['alarms'] > 0 for r in healthy)} of {len(healthy)}")
    print(f"healthy with an error {sum(r['errors'] > 0 for r in healthy)} of {len(healthy)}")
    print(f"faulty that were named {sum(r['detected'] for r in faulty)} of {len(faulty)}")
    print(f"faulty whose first alarm names it {sum(r['first'] for r in faulty)} of {len(faulty)}")
    print(f"faulty with the right block {sum(r['placed'] for r in placed)} of {len(placed)}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", default="200,201,202")
    options = parser.parse_args()
    seeds = [200] if options.quick else [int(seed) for seed in options.seeds.split(",")]
    found = []
    for row in rows(seeds, options.names or (["mlp easy", "NaN in a weight: mlp"] if options.quick else ())):
        tell(row)
        if not options.quick:
            keep(row)
        found.append(row)
    count(found)


if __name__ == "__main__":
    main()
