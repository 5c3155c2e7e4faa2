"""Run studies into run folders: compute what is missing, decide the claims, write the figures."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from levada._errors import UsageError
from levada.runs import Run, RunWriter
from levada.study.execution import Execution
from levada.study.executors import JOBS
from levada.study.executors import executor as named
from levada.study.standing import Clock, Standing
from levada.study.study import Study
from levada.study.sweep import Task, sweep_tasks

__all__ = ["Executed", "claims", "execute", "execute_all", "failures", "figures", "results"]


class Executed(NamedTuple):
    """What came of one of several studies.

    Attributes:
        study: the study.
        run: its run.
        error: the exception of its claims or figures; they are then incomplete.
    """

    study: Study
    run: Run
    error: Exception | None


def execute(
    study: Study,
    *,
    scale: str = "small",
    out: str | Path = "runs",
    seeds: int | None = None,
    executor: Executor | str | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Run:
    """Run a study; the run folder is `out/NAME-SCALE`.

    A result that the folder holds is not computed again, so that to resume is to call this again. Every call appends
    its own "study", "claim" and "figure" events: of one name or id the last event counts. An exception in a cell is
    written as an event "failure" and leaves the claims that need the cell undecided; `failures` gives them. One warning
    says how many results failed.

    A folder holds one set of settings. Seeds may be added; a folder that holds more than are asked for keeps them all,
    and every claim is decided over all of them.

    Args:
        study: the study.
        scale: "smoke" (seconds, decides nothing), "small" (minutes on two cores) or "full".
        out: folder of run folders.
        seeds: number of seeds, 0, 1, ...; the scale's if left out.
        executor: runs the cells; left out or "local", one process per core with one thread each; "slurm" or "ray", or
            any `concurrent.futures.Executor`, as those of `levada.study.executors`. Threads share PyTorch's
            generator, so that in them results are those of other executors only where a cell draws from its own.
        settings: settings to change, by name.
        progress: called with the number of results that are there and the number wanted.

    Returns:
        The run.

    Raises:
        UsageError: if the scale or a setting is not known, if the folder holds results at other settings, if
            another process writes it, or if the executor is none, or a name of none.
    """
    done = None if progress is None else lambda standing: progress(standing.results_done, standing.results)
    (told,) = execute_all(
        [study], scale=scale, out=out, seeds=seeds, executor=executor, settings=settings, progress=done
    )
    if told.error is not None:
        raise told.error
    if failed := failures(told.run):
        (first, *_), count = failed.values(), len(failed)
        warnings.warn(
            f"execute: {count} {'result' if count == 1 else 'results'} of {study.name} failed, the first with: "
            f"{' '.join(str(first['error']).split())} (levada.study.failures(run) has the words of each)",
            stacklevel=2,
        )
    return told.run


def execute_all(
    studies: Sequence[Study],
    *,
    scale: str = "small",
    out: str | Path = "runs",
    seeds: int | None = None,
    executor: Executor | str | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: Callable[[Standing], None] | None = None,
) -> list[Executed]:
    """Run several studies, each into its run folder as `execute` does, their cells one after the other.

    The processes are the same for all, and a study's last cells run beside the next one's first. The study that costs
    most begins. A cell that fails, and claims or figures that raise, leave the other studies alone.

    Args:
        studies: the studies.
        scale: "smoke", "small" or "full".
        out: folder of run folders.
        seeds: number of seeds; the scale's if left out.
        executor: runs the cells, as for `execute`.
        settings: settings to change, by name; every study must have them.
        progress: called with how far all of them are.

    Returns:
        What came of each, in the order in which they were given.

    Raises:
        UsageError: as `execute`, before anything is computed.
    """
    if isinstance(executor, str):
        with named(executor, Path(out) / JOBS) as pool:
            return execute_all(
                studies, scale=scale, out=out, seeds=seeds, executor=pool, settings=settings, progress=progress
            )
    if executor is not None and not callable(getattr(executor, "submit", None)):
        raise UsageError(
            "execute: executor must be a concurrent.futures.Executor, or 'local', 'slurm' or 'ray', got "
            f"{executor!r}. levada.study.executors has those of clusters; left out, one process per core."
        )
    changes = {**(settings or {}), **({} if seeds is None else {"seeds": seeds})}
    executions = [Execution(study, scale, out, changes) for study in studies]
    errors: dict[str, Exception] = {}
    clock, owner, writers = Clock(executions), dict[Task, Execution](), dict[str, RunWriter]()

    def moved() -> None:
        if progress is not None:
            progress(clock.standing())

    def conclude(execution: Execution) -> None:
        with writers[execution.study.name] as writer:
            try:
                execution.conclude(writer)
            except Exception as error:
                errors[execution.study.name] = error

    def ended(task: Task) -> None:
        moved()
        if owner[task].finished:
            conclude(owner[task])

    def done(task: Task, values: list[dict[str, Any]], seconds: float) -> None:
        clock.add(seconds)
        owner[task].record(writers[owner[task].study.name], task.cell, values, seconds)
        ended(task)

    def failed(task: Task, error: Exception) -> None:
        owner[task].record_failure(writers[owner[task].study.name], task.cell, error)
        ended(task)

    with ExitStack() as stack:
        for execution in executions:
            writers[execution.study.name] = stack.enter_context(execution.open())
        moved()
        for execution in sorted(executions, key=lambda one: -_hours(one)):
            owner |= dict.fromkeys(execution.tasks(), execution)
            if execution.finished:
                conclude(execution)
        sweep_tasks(list(owner), done=done, failed=failed, executor=executor)
    return [Executed(one.study, one.run, errors.get(one.study.name)) for one in executions]


def _hours(execution: Execution) -> float:
    cost = execution.study.costs.get(execution.scale)
    return cost.hours if cost else 0.0


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
