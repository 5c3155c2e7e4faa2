"""What the server of the pages takes to answer about a large run: time, size of the answers, memory of the reader.

python -m benchmarks.serve [sites] [samples] [signals] [--keep FOLDER] [--quick]

The run is written through `SignalWriter`, as a watched run is: of 100,000 samples it keeps the newest 4,096 in full,
65,536 in blocks of 16, and all in blocks of 256. Seven processes as `levada serve` starts them are asked all questions
one after the other, as a page asks them; medians are kept in results/serve.jsonl. --keep leaves the run where it is
written, or takes the one that is there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import commit, machine, versions
from levada.runs import RunWriter, SignalWriter
from levada.runs.codes import OFFSET
from levada.web.folder import identity
from levada.web.reader import Reader

SIGNALS = (
    "gradient_rms",
    "gradient_nonfinite",
    "signal_rms",
    "nonfinite",
    "weight_rms",
    "zero_fraction",
    "weight_gradient_rms",
    "update_ratio",
)
ROUNDS = 7


def rows(sites: int, signals: int) -> Iterator[bytes]:
    """Give samples without end: a gradient that fades with depth and drifts with time, and noise on it."""
    noise = np.random.default_rng(0).normal(0, 12, 2**22).astype(np.int16)
    depth = (OFFSET - np.arange(sites) * 0.4).astype(np.int16)
    step = 0
    while True:
        start = 7919 * step % (len(noise) - sites * signals)
        held = noise[start : start + sites * signals].reshape(signals, sites) + depth
        held -= np.int16(step // 100 % 512)
        held[1::2] = 0  # every second signal counts what is not finite
        yield held.tobytes()
        step += 1


def write(folder: Path, sites: int, samples: int, signals: int) -> None:
    """Write a watched run."""
    table = [{"name": f"layers.{i}", "order": i, "kind": "Linear", "shape": [4, 8]} for i in range(sites)]
    with RunWriter.create(folder, kind="watch", name="large") as writer:
        for first in range(0, samples, 1000):
            steps = list(range(first, min(first + 1000, samples)))
            writer.append("loss", steps=steps, values=[4.0 / (1 + step / 1000) for step in steps])
        made = rows(sites, signals)
        with SignalWriter(folder, sites=table, signals=SIGNALS[:signals]) as kept:
            for step in range(samples):
                kept.append(step, 1.7e9 + step, next(made), {"loss": 4.0, "overhead": 0.01})
                if step % 256 == 255 and not kept.flush(600):
                    raise RuntimeError("the run is not written in ten minutes")
        if kept.problem or kept.dropped:
            raise RuntimeError(f"the run is not whole: {kept.problem}, {kept.dropped} samples dropped")
        writer.append("end", steps=samples)


def questions(sites: int, samples: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """Give what a page asks, by the name that it has in the table."""
    heat = {"signal": "gradient_rms", "columns": 400, "rows": 200}
    large = {**heat, "columns": 1024, "rows": 512}
    half = {"start": samples // 2, "stop": samples // 2 + samples // 10 - 1}
    part = {"first": sites // 2, "last": sites // 2 + sites // 10 - 1}
    last = {"start": samples - min(2000, samples), "stop": samples - 1}
    return {
        "row": ("row", {"id": identity("run")}),
        "summary": ("summary", {"id": identity("run")}),
        "loss": ("loss", {"asked": {}}),
        "heat, 400 x 200": ("heat", {"asked": heat}),
        "heat, 1,024 x 512": ("heat", {"asked": large}),
        "a tenth of the steps": ("heat", {"asked": {**large, **half}}),
        "a tenth of steps and layers": ("heat", {"asked": {**large, **half, **part}}),
        "the newest 2,000 steps": ("heat", {"asked": {**large, **last}}),
        "the newest 2,000, ten layers": ("heat", {"asked": {**large, **last, "first": 100, "last": 109}}),
    }


def used(process: int) -> tuple[float, int]:
    """Give a process's time on processors in seconds, and the most memory that it had, in bytes."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    status = Path(f"/proc/{process}/status").read_text().split()
    ticks = int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK"), 1024 * int(status[status.index("VmHWM:") + 1])


async def measure(root: Path, sites: int, samples: int) -> dict[str, Any]:
    """Ask all questions, in turns; of the first, also of a process that does not know the run yet."""
    found: dict[str, list[tuple[float, float, int]]] = {}
    asked = questions(sites, samples)
    peaks = []
    for _ in range(ROUNDS):
        reader = Reader(root)
        await reader.start()
        process = reader._process
        assert process is not None
        first = used(process.pid)[1]
        for name, (what, values) in asked.items():
            before, wall = used(process.pid)[0], time.perf_counter()
            answer = await reader.ask(what, run="run", **values)
            spent = time.perf_counter() - wall
            found.setdefault(name, []).append((spent, used(process.pid)[0] - before, len(answer)))
        peaks.append(used(process.pid)[1] - first)
        await reader.close()
    told: dict[str, Any] = {
        name: {
            "seconds": round(statistics.median(one[0] for one in times), 3),
            "processor seconds": round(statistics.median(one[1] for one in times), 3),
            "bytes": times[0][2],
        }
        for name, times in found.items()
    }
    return {"questions": told, "reader at its start": first, "above it at most": max(peaks)}


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve")
    parser.add_argument("numbers", type=int, nargs="*", help="sites, samples, signals")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--quick", action="store_true", help="a small run, and nothing is kept")
    given = parser.parse_args()
    usual = (100, 2000, 2) if given.quick else (10_000, 100_000, 2)
    sites, samples, signals = (*given.numbers, *usual[len(given.numbers) :])
    with tempfile.TemporaryDirectory() as home:
        root = given.keep or Path(home)
        if not (root / "run").exists():
            began = time.perf_counter()
            write(root / "run", sites, samples, signals)
            print(f"written in {time.perf_counter() - began:.0f} s")
        row = {"sites": sites, "samples": samples, "signals": signals, "disk": size(root / "run")}
        row |= asyncio.run(measure(root, sites, samples))
    print(json.dumps(row, indent=1))
    if not given.quick:
        about = {"machine": machine(), "versions": versions(), "commit": commit()}
        row = {"benchmark": "serve", **row, **about, "date": datetime.now(UTC).isoformat(timespec="seconds")}
        with (Path(__file__).parent / "results" / "serve.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
