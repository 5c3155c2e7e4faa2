"""`python -m benchmarks.diagnosis.zoo run [--names ...] [--jobs N]`, or `summary`."""

from __future__ import annotations

import argparse

from benchmarks.diagnosis.zoo.run import OUT, describe, run

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="benchmarks.diagnosis.zoo", description=__doc__)
    parser.add_argument("what", choices=["run", "summary", "learn"])
    parser.add_argument("--names", nargs="*", help="entries; all if left out")
    parser.add_argument("--split", choices=["calibration", "held out"], help="one part of the zoo")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--out", default=str(OUT), help="rows are appended here; what is there is not run again")
    given = parser.parse_args()
    if given.what == "summary":
        print(describe(given.out, given.split))
    else:
        run(given.out, given.names, given.split, given.jobs, given.what == "run")
