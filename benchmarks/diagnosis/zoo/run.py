"""Check every entry of the zoo at its start and trained, and count what the rules said."""

from __future__ import annotations

import json
import math
import time
import traceback
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

import levada
from benchmarks.diagnosis.program import Setup
from benchmarks.diagnosis.score import Rate
from benchmarks.diagnosis.zoo.entry import Entry, held_out, train
from levada.diagnose.diagnostics import DIAGNOSTICS

__all__ = ["OUT", "describe", "entries", "run", "summary"]

OUT = Path(__file__).parents[2] / "results" / "diagnosis" / "zoo.jsonl"
SEED = 0


def entries() -> dict[str, Entry]:
    """Return the zoo by name."""
    from benchmarks.diagnosis.zoo import images, objectives, supervised, tables, transformers, unsupervised

    found = [e for part in (images, transformers, supervised, tables, unsupervised, objectives) for e in part.entries()]
    return {entry.name: entry for entry in found}


def rows_of(name: str, checks: bool = True) -> list[dict[str, Any]]:
    """Check, train and check one entry; return a row for each check.

    Args:
        name: of the entry.
        checks: whether to check; else it is trained only.
    """
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    entry = entries()[name]
    torch.manual_seed(SEED)
    setup = entry.build()
    rows = []
    for when, step in (("start", 0), ("trained", entry.steps)):
        if step:
            before, after = trained(entry, setup)
            for row in rows:
                row |= {"loss_start": before, "loss_end": after, "learned": after < before}
        row: dict[str, Any] = {"name": name, "when": when, "held_out": held_out(name), "data": entry.data}
        row["rules"] = len(DIAGNOSTICS)
        row |= told(entry, setup, step) if checks else {}
        if step:
            row |= {"steps": step, "loss_start": before, "loss_end": after, "learned": after < before}
        rows.append(row)
    return rows


def trained(entry: Entry, setup: Setup) -> tuple[float, float]:
    """Return the losses before and after training; NaN if it raised, so that it did not learn."""
    try:
        return train(entry, setup, SEED)
    except Exception:
        traceback.print_exc()
        return math.nan, math.nan


def told(entry: Entry, setup: Setup, step: int) -> dict[str, Any]:
    """Return what `check` says before `step`; an exception is a row too."""
    begin = time.perf_counter()
    optimizer = entry.factory(setup, step)
    try:
        report = levada.check(setup.model, list(setup.batches), loss=setup.loss, optimizer=optimizer, seed=SEED)
    except Exception as error:
        verdict = {"verdict": "exception", "exception": f"{type(error).__name__}: {error}"}
        verdict["traceback"] = "".join(traceback.format_exception(error)[-3:])
        return verdict | {"fired": [], "unknown": [], "seconds": round(time.perf_counter() - begin, 2)}
    fired = [f for f in report.findings if f.status == "fired"]
    return {
        "verdict": report.verdict,
        "fired": [{"rule": f.rule, "severity": f.severity, "where": dict(f.where), "claim": f.claim} for f in fired],
        "unknown": [{"rule": f.rule, "claim": f.claim} for f in report.findings if f.status == "unknown"],
        "parameters": report.parameters,
        "depth": report.summary.get("depth"),
        "seconds": round(report.seconds, 2),
    }


def run(out: str | Path, names: Iterable[str] | None, split: str | None, jobs: int = 1, checks: bool = True) -> None:
    """Append the rows of entries that `out` lacks.

    Args:
        out: file of rows.
        names: of the entries; all if None.
        split: "calibration" or "held out"; both if None.
        jobs: processes, of one thread each.
        checks: whether to check and write; else the losses are printed only.
    """
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    known = entries()
    wanted = [name for name in names or known if split is None or held_out(name) == (split == "held out")]
    done = {(row["name"], row["when"]) for row in read(path)} if checks else set()
    wanted = [name for name in wanted if not {(name, "start"), (name, "trained")} <= done]
    with ProcessPoolExecutor(jobs) as pool:
        for rows in pool.map(rows_of, wanted, [checks] * len(wanted)):
            if checks:
                with path.open("a") as file:
                    file.writelines(json.dumps(row) + "\n" for row in rows)
            print(*(brief(row) for row in rows[-2 if checks else -1 :]), sep="\n", flush=True)


def brief(row: Mapping[str, Any]) -> str:
    """Return a row on one line."""
    said = ", ".join(f"{f['rule']} ({f['severity']})" for f in row.get("fired", []))
    losses = f"{row['loss_start']:.3g} -> {row['loss_end']:.3g}" + ("" if row["learned"] else " DID NOT LEARN")
    return f"{row['name']}, {row['when']}: {row.get('verdict', '')} {losses} {row.get('seconds', '')} s {said}".rstrip()


def read(path: str | Path) -> list[dict[str, Any]]:
    """Return the newest row of each check."""
    if not Path(path).exists():
        return []
    rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
    return list({(row["name"], row["when"]): row for row in rows}.values())


def summary(path: str | Path = OUT, split: str | None = None) -> dict[str, dict[str, Rate]]:
    """Return, by rule, on how many models it fired as an error, and as a warning, at the start or trained.

    Args:
        path: file of rows.
        split: "calibration" or "held out"; both if None.
    """
    rows = [r for r in read(path) if split is None or r["held_out"] == (split == "held out")]
    models = {row["name"] for row in rows}
    on: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in rows:
        for finding in row["fired"]:
            on[finding["rule"], finding["severity"]].add(row["name"])
            on["any rule", finding["severity"]].add(row["name"])
        if row["verdict"] == "exception":
            on["exception", "error"].add(row["name"])
            on["any rule", "error"].add(row["name"])
    rules = ["any rule", "exception", *DIAGNOSTICS]
    return {
        rule: {severity: Rate(len(on[rule, severity]), len(models)) for severity in ("error", "warn")} for rule in rules
    }


def describe(path: str | Path = OUT, split: str | None = None) -> str:
    """Return the summary as a table, and the checks behind it that were not healthy."""
    lines = ["| rule | error | warn |", "|---|---|---|"]
    lines += [f"| {rule} | {rates['error']} | {rates['warn']} |" for rule, rates in summary(path, split).items()]
    for row in read(path):
        if (split is None or row["held_out"] == (split == "held out")) and row["verdict"] != "healthy":
            lines.append(f"- {brief(row)}")
            lines += [f"  - {f['rule']}: {f['claim']}" for f in row["fired"] if f["severity"] != "info"]
    return "\n".join(lines)
