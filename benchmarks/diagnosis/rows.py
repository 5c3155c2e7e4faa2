"""Results as lines of JSON: computed once, by several processes, and kept as they come."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any, TypeAlias

from levada.study.sweep import process_pool

__all__ = ["RESULTS", "Row", "complete", "read"]

RESULTS = Path(__file__).parents[1] / "results" / "diagnosis"
Row: TypeAlias = dict[str, Any]


def read(name: str) -> dict[str, Row]:
    """Return the rows of a file of results by their name; the last row of a name counts.

    Args:
        name: of the file, without ".jsonl".
    """
    path = RESULTS / f"{name}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {row["name"]: row for row in rows}


def complete(name: str, wanted: Sequence[str], compute: Callable[[str], Row], *, jobs: int = 0) -> dict[str, Row]:
    """Compute the rows that a file of results lacks, append each as it comes, and return those that are wanted.

    Args:
        name: of the file, without ".jsonl".
        wanted: names of rows.
        compute: name -> row without "name"; runs in another process, with one thread.
        jobs: number of processes; one per core if 0.
    """
    known = read(name)
    missing = [item for item in wanted if item not in known]
    if missing:
        RESULTS.mkdir(parents=True, exist_ok=True)
        with process_pool(min(len(missing), jobs or os.cpu_count() or 1)) as pool, _open(name) as file:
            futures = {pool.submit(compute, item): item for item in missing}
            for done, future in enumerate(as_completed(futures), 1):
                row = {"name": futures[future], **future.result()}
                file.write(json.dumps(row) + "\n")
                file.flush()
                sys.stderr.write(f"\r{name}: {done} of {len(missing)}{'' if done < len(missing) else chr(10)}")
    known = read(name)
    return {item: known[item] for item in wanted}


def _open(name: str) -> Any:
    return (RESULTS / f"{name}.jsonl").open("a", encoding="utf-8")
