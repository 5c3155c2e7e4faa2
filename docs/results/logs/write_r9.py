"""Write the full log of R9's networks of 10,000 layers from a run of the study, one file a network and moment.

    levada study R9 --scale small --out runs
    python docs/results/logs/write_r9.py runs/R9-small docs/results/logs

A file is JSON by lines. The first says what it is of, and of which commits the code was; where the network was
trained, the second holds the loss on the batch before each step; every other holds a hundred boundaries of the layers,
from the input's side: the root mean square of the state, and of the gradient of the mean loss, on the seed's first
batch, in float64, to six digits.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from levada.runs import Run

STRIDE = 100


def lines(run: Run, event: Mapping[str, Any]) -> Iterator[str]:
    """Give the lines of the log of one result."""
    log = event["values"]["log"]
    versions = {key: run.manifest.versions.get(key) for key in ("levada", "torch")}
    commits = list(dict.fromkeys(call["commit"] for call in run.events("study")))
    told = {
        "study": run.manifest.name,
        "commits": commits,
        "seed": event["seed"],
        "config": event["config"],
        "versions": versions,
    }
    yield json.dumps({**told, "created": run.manifest.created, "training_loss": event["values"].get("loss")})
    if "loss" in log:
        yield json.dumps({"loss": log["loss"]}, separators=(",", ":"))
    for start in range(0, len(log["forward"]), STRIDE):
        part = {key: log[key][start : start + STRIDE] for key in ("forward", "gradient")}
        yield json.dumps({"boundary": start, **part}, separators=(",", ":"))


def write(folder: str | Path, out: str | Path) -> list[Path]:
    """Write the logs that a run holds.

    Args:
        folder: the run's folder.
        out: where the logs go.

    Returns:
        The files.
    """
    run, written = Run(Path(folder)), []
    for event in run.events("result", numbers=("values",)):
        if "log" in event["values"]:
            config = event["config"]
            path = Path(out) / f"R9-{config['network']}-{config['depth']}-{config['measures']}.jsonl"
            path.write_text("".join(f"{line}\n" for line in lines(run, event)))
            written.append(path)
    return written


if __name__ == "__main__":
    for file in write(*sys.argv[1:]):
        sys.stdout.write(f"{file}: {file.stat().st_size:,} bytes\n")
