"""`python -m benchmarks.watch_verdicts [--quick] [--seeds 200,201] [NAME...]`: counts, and every finding."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.watch_verdicts.verdicts import rows

RESULTS = Path(__file__).parents[1] / "results" / "watch_verdicts.json"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", default="200,201,202")
    options = parser.parse_args()
    seeds = [200] if options.quick else [int(seed) for seed in options.seeds.split(",")]
    found = rows(seeds, options.names or (["mlp easy", "NaN in a weight: mlp"] if options.quick else ()))
    for row in found:
        verdict = {True: "detected", False: "MISSED", None: ""}[row.get("detected")]
        print(row["kind"], row["name"], row["seed"], verdict, f"{row['alarms']} alarms", f"{row['seconds']} s")
        for one in row["told"]:
            print("   ", one["severity"], one["status"], one["rule"], one["first"], one["step"], one["claim"])
    healthy = [row for row in found if row["kind"] == "healthy"]
    faulty = [row for row in found if row["kind"] == "fault"]
    placed = [row for row in faulty if row["placed"] is not None]
    print(f"healthy with an alarm {sum(r['alarms'] > 0 for r in healthy)} of {len(healthy)}")
    print(f"healthy with an error {sum(r['errors'] > 0 for r in healthy)} of {len(healthy)}")
    print(f"faulty that were named {sum(r['detected'] for r in faulty)} of {len(faulty)}")
    print(f"faulty whose first alarm names it {sum(r['first'] for r in faulty)} of {len(faulty)}")
    print(f"faulty with the right block {sum(r['placed'] for r in placed)} of {len(placed)}")
    if not options.quick and not options.names:
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
