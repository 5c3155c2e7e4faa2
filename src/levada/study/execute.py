"""Run a study into a run folder: compute what is missing, decide the claims, write the figures."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from levada._errors import UsageError
from levada.runs import Run, RunWriter
from levada.study.results import Cell, Results
from levada.study.study import Study
from levada.study.sweep import sweep

__all__ = ["claims", "execute", "failures", "figures", "results"]


def execute(
    study: Study,
    *,
    scale: str = "small",
    out: str | Path = "runs",
    seeds: int | None = None,
    executor: Executor | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Run:
    """Run a study; the run folder is `out/NAME-SCALE`.

    A result that the folder holds is not computed again, so that to resume is to call this again. Every call appends
    its own "study", "claim" and "figure" events: of one name or id the last event counts. An exception in a cell is
    written as an event "failure" and leaves the claims that need the cell undecided; `failures` gives them.

    A folder holds one set of settings. Seeds may be added; a folder that holds more than are asked for keeps them all,
    and every claim is decided over all of them.

    Args:
        study: the study.
        scale: "smoke" (seconds, decides nothing), "small" (minutes on two cores) or "full".
        out: folder of run folders.
        seeds: number of seeds, 0, 1, ...; the scale's if left out.
        executor: runs the cells; left out, one process per core with one thread each.
        settings: settings to change, by name.
        progress: called with the number of results that are there and the number wanted.

    Returns:
        The run.

    Raises:
        UsageError: if the scale or a setting is not known, if the folder holds results at other settings, or if
            another process writes it.
    """
    changes = {**(settings or {}), **({} if seeds is None else {"seeds": seeds})}
    resolved = study.resolve(scale, changes)
    folder = Path(out) / f"{study.name}-{scale}"
    held = _held_seeds(folder, study, resolved) if (folder / "run.json").exists() else set()
    counted = sorted({*range(resolved["seeds"]), *held})
    resolved["seeds"] = len(counted)
    cells = list(study.configurations(resolved, counted))
    values = results(Run(folder)) if held else {}
    errors: dict[str, str] = {}
    wanted = {cell.key(seed) for cell in cells for seed in cell.seeds}

    with _writer(folder, study, scale, resolved) as writer:
        writer.append("study", **_describe(study, scale, resolved))

        def report_progress() -> None:
            if progress is not None:
                progress(len(wanted & (values.keys() | errors.keys())), len(wanted))

        def done(cell: Cell, new: list[dict[str, Any]]) -> None:
            for seed, value in zip(cell.seeds, new, strict=True):
                writer.append("result", key=cell.key(seed), config=cell.config, seed=seed, values=value)
                values[cell.key(seed)] = value
            report_progress()

        def failed(cell: Cell, error: Exception) -> None:
            text = f"{type(error).__name__}: {error}"
            for seed in cell.seeds:
                errors[cell.key(seed)] = text
                trace = str(error.__cause__) if error.__cause__ is not None else ""
                writer.append("failure", key=cell.key(seed), config=cell.config, seed=seed, error=text, traceback=trace)
            report_progress()

        report_progress()
        pending = [Cell(c.config, [s for s in c.seeds if c.key(s) not in values]) for c in cells]
        sweep(study.run, [c for c in pending if c.seeds], done=done, failed=failed, executor=executor)
        found = Results(cells, values, errors)
        for claim in study.claims(resolved):
            writer.append("claim", **claim.to_event(claim.test(found)))
        for figure in study.figures(found):
            writer.append("figure", **figure.to_event())
    return Run(folder)


def _writer(folder: Path, study: Study, scale: str, settings: Mapping[str, Any]) -> RunWriter:
    if not (folder / "run.json").exists():
        return RunWriter.create(
            folder, kind="study", name=study.name, config={"scale": scale, "settings": dict(settings)}
        )
    return RunWriter.open(folder)


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
    if isinstance(setting, list):
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


def results(run: Run) -> dict[str, dict[str, Any]]:
    """Return the values of every result of a run, by key.

    Args:
        run: a run of a study.
    """
    return {event["key"]: event["values"] for event in run.events("result", numbers=("values",))}


def failures(run: Run) -> dict[str, dict[str, Any]]:
    """Return the failures of a run's last call that no later result has mended, by key.

    Every call tries again what is missing, so that failures of an earlier call are of no account.

    Args:
        run: a run of a study.
    """
    found: dict[str, dict[str, Any]] = {}
    for event in run.events():
        if event["type"] == "study":
            found.clear()
        elif event["type"] == "failure":
            found[event["key"]] = event
        elif event["type"] == "result":
            found.pop(event["key"], None)
    return found


def claims(run: Run) -> dict[str, dict[str, Any]]:
    """Return the last event of every claim of a run, by name.

    Args:
        run: a run of a study.
    """
    return {event["name"]: event for event in run.events("claim", numbers=("numbers", "statistic"))}


def figures(run: Run) -> dict[str, dict[str, Any]]:
    """Return the last event of every figure of a run, by id.

    Args:
        run: a run of a study.
    """
    return {event["id"]: event for event in run.events("figure", numbers=("series",))}
