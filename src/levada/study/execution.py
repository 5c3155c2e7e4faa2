"""One study's run folder while its cells are computed: what is there, what is missing, what is written."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any, final

from levada._errors import UsageError
from levada.runs import Run, RunWriter
from levada.study.provenance import provenance
from levada.study.results import Cell, Results
from levada.study.study import Study
from levada.study.sweep import Task, order

__all__ = ["Execution"]


@final
class Execution:
    """A study at a scale and its run folder; nothing is written before `open`.

    Args:
        study: the study.
        scale: "smoke", "small" or "full".
        out: folder of run folders.
        changes: settings to change, by name.

    Raises:
        UsageError: if the scale or a setting is not known, or the folder holds results at other settings.
    """

    def __init__(self, study: Study, scale: str, out: str | Path, changes: Mapping[str, Any]) -> None:
        self.study, self.scale = study, scale
        self.folder = Path(out) / f"{study.name}-{scale}"
        self.settings = study.resolve(scale, changes)
        held = _held_seeds(self.folder, study, self.settings) if (self.folder / "run.json").exists() else set()
        counted = sorted({*range(self.settings["seeds"]), *held})
        self.settings["seeds"] = len(counted)
        self.cells = _cells(study, self.settings, counted, changes)
        self.values: dict[str, Mapping[str, Any]] = {}
        self.errors: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        for event in Run(self.folder).events("result", numbers=("values",)) if held else ():
            self.values[event["key"]] = event["values"]
            if "seconds" in event:
                self.seconds[event["key"]] = event["seconds"]
        self.wanted = {cell.key(seed) for cell in self.cells for seed in cell.seeds}

    @property
    def run(self) -> Run:
        """The run, once it was opened."""
        return Run(self.folder)

    @property
    def num_there(self) -> int:
        """How many of the wanted results are there, or failed."""
        return len(self.wanted & (self.values.keys() | self.errors.keys()))

    @property
    def finished(self) -> bool:
        """Whether nothing is left to compute."""
        return self.num_there == len(self.wanted)

    def tasks(self) -> list[Task]:
        """Return what is missing, in the order in which it is computed."""
        pending = [Cell(cell.config, self._missing(cell)) for cell in self.cells]
        return [Task(self.study.run, cell) for cell in order([cell for cell in pending if cell.seeds])]

    def _missing(self, cell: Cell) -> list[int]:
        keys = [(seed, cell.key(seed)) for seed in cell.seeds]
        return [seed for seed, key in keys if key not in self.values and key not in self.errors]

    def seconds_left(self) -> float | None:
        """Estimate the processor seconds of what is missing; None where nothing is known to estimate it from.

        A configuration takes what its other seeds took; one of which none is measured takes its share of the study's
        cost, or else the mean of what was measured.
        """
        measured: dict[str, list[float]] = defaultdict(list)
        for cell in self.cells:
            measured[str(cell)] += [
                self.seconds[cell.key(seed)] for seed in cell.seeds if cell.key(seed) in self.seconds
            ]
        cost = self.study.costs.get(self.scale)
        share = 3600 * cost.hours / len(self.wanted) if cost and self.wanted else None
        if share is None and self.seconds:
            share = fmean(self.seconds.values())
        left = 0.0
        for cell in self.cells:
            here = fmean(measured[str(cell)]) if measured[str(cell)] else share
            missing = len(self._missing(cell))
            if missing and here is None:
                return None
            left += missing * (here or 0.0)
        return left

    def open(self) -> RunWriter:
        """Open the folder for writing, and say what is run."""
        if (self.folder / "run.json").exists():
            writer = RunWriter.open(self.folder)
        else:
            config = {"scale": self.scale, "settings": dict(self.settings)}
            writer = RunWriter.create(self.folder, kind="study", name=self.study.name, config=config)
        try:
            writer.append("study", **_describe(self.study, self.scale, self.settings), **provenance())
        except BaseException:
            writer.close()
            raise
        return writer

    def record(self, writer: RunWriter, cell: Cell, values: list[dict[str, Any]], seconds: float) -> None:
        """Keep what a cell gave, each seed with its share of the processor seconds."""
        share = seconds / len(cell.seeds)
        for seed, value in zip(cell.seeds, values, strict=True):
            key = cell.key(seed)
            writer.append("result", key=key, config=cell.config, seed=seed, values=value, seconds=round(share, 4))
            self.values[key], self.seconds[key] = value, share

    def record_failure(self, writer: RunWriter, cell: Cell, error: Exception) -> None:
        """Keep why a cell gave nothing."""
        text = f"{type(error).__name__}: {error}"
        trace = str(error.__cause__) if error.__cause__ is not None else ""
        for seed in cell.seeds:
            self.errors[cell.key(seed)] = text
            writer.append("failure", key=cell.key(seed), config=cell.config, seed=seed, error=text, traceback=trace)

    def conclude(self, writer: RunWriter) -> None:
        """Decide the claims and draw the figures, of what is there."""
        found = Results(self.cells, self.values, self.errors)
        for claim in self.study.claims(self.settings):
            writer.append("claim", **claim.to_event(claim.test(found)))
        for figure in self.study.figures(found):
            writer.append("figure", **figure.to_event())


def _cells(study: Study, settings: Mapping[str, Any], seeds: list[int], changes: Mapping[str, Any]) -> list[Cell]:
    """Return the configurations, or say that there are none at settings that were changed."""
    try:
        return list(study.configurations(settings, seeds))
    except UsageError:
        raise
    except (ValueError, TypeError, LookupError, ArithmeticError) as error:
        if not changes:  # the study's own
            raise
        asked = ", ".join(f"{key}={_written(value)}" for key, value in changes.items())
        raise UsageError(
            f"study {study.name} has no configurations at {asked}: {error}. Settings that are lists may have to be "
            "changed together."
        ) from error


def _held_seeds(folder: Path, study: Study, settings: Mapping[str, Any]) -> set[int]:
    """Return the seeds whose results a folder holds, once it is known to be this study's, at these settings."""
    run = Run(folder)
    known = run.manifest
    if (known.kind, known.name) != ("study", study.name):
        raise UsageError(
            f"{folder} holds the {known.kind} {known.name!r}, not study {study.name}. Choose another folder with --out."
        )
    seeds, described = set(), None
    at: dict[str, Any] = dict(known.config.get("settings") or {})
    for event in run.events():
        if event["type"] == "study":
            described = event["settings"]
        elif event["type"] == "result":
            seeds.add(event["seed"])
            at = at if described is None else described
    asked = json.loads(json.dumps(dict(settings)))  # as a log gives it back: tuples are lists there
    differ = [key for key in asked if key != "seeds" and key in at and at[key] != asked[key]]
    if seeds and differ:
        there, wanted = (", ".join(f"{key}={_written(told[key])}" for key in differ) for told in (at, asked))
        raise UsageError(f"{folder} holds results at {there}, and {wanted} was asked for: choose another --out.")
    return seeds


def _written(setting: Any) -> str:
    """Write a setting as `--set` takes it."""
    if isinstance(setting, list | tuple):
        return ",".join(map(_written, setting))
    return str(setting).lower() if isinstance(setting, bool) else str(setting)


def _describe(study: Study, scale: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": study.name,
        "title": study.title,
        "question": study.question,
        "method": study.method,
        "sources": list(study.sources),
        "notes": list(study.notes(settings) if callable(study.notes) else study.notes),
        "scale": scale,
        "settings": dict(settings),
    }
