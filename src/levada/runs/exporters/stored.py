"""Export a stored run: its losses, scalars, findings and the signals of some sites."""

from __future__ import annotations

import importlib
import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from levada._errors import UsageError
from levada.runs.address import is_remote, local
from levada.runs.exporters.exporter import Exporter, chosen, loss_tag, tag, told
from levada.runs.exporters.mlflow import brief
from levada.runs.findings import first_of, process_name, said_of, tellings
from levada.runs.manifest import LOG, MANIFEST, name_of
from levada.runs.reader import Run, require_readable
from levada.runs.standing import CONTINUED, Standing

__all__ = ["EXPORTERS", "export", "open_exporter"]

_CLASSES: Final[Mapping[str, str]] = {
    "tensorboard": "TensorBoard",
    "wandb": "WeightsAndBiases",
    "mlflow": "MLflow",
    "trackio": "Trackio",
}
EXPORTERS: Final = tuple(_CLASSES)
"""The trackers that a run can be exported to."""


def open_exporter(to: str, out: str | Path = "exports", *, name: str, config: Mapping[str, Any]) -> Exporter:
    """Open a tracker for one run.

    Args:
        to: one of `EXPORTERS`.
        out: the folder that is written to; for MLflow perhaps an address.
        name: the run's name there.
        config: the run's settings.

    Returns:
        What takes the run's numbers.

    Raises:
        UsageError: if the tracker is unknown, its package is not installed, or it writes to folders alone and `out` is
            an address.

    Example:
        >>> open_exporter("a_tracker", name="first", config={})
        Traceback (most recent call last):
        levada._errors.UsageError: export: a run goes to one of tensorboard, wandb, mlflow, trackio, got 'a_tracker'.
    """
    if to not in _CLASSES:
        raise UsageError(f"export: a run goes to one of {', '.join(EXPORTERS)}, got {to!r}.")
    if to != "mlflow" and is_remote(str(out)):
        raise UsageError(
            f"export: {to} is written to a folder, got the address {str(out)!r}. Name a folder, and copy what is in it."
        )
    kind: Callable[..., Exporter] = getattr(importlib.import_module(f"levada.runs.exporters.{to}"), _CLASSES[to])
    return kind(out if to == "mlflow" else Path(out), name, config)


def export(run: Run | str | Path, to: str, out: str | Path = "exports", *, sites: int = 8) -> Exporter:
    """Export a stored run of kind "watch": losses, scalars, findings, and signals of some sites.

    Where the detail is no longer kept, a point is the mean over the samples of a block, at their first step.

    Args:
        run: the run, its folder or its address.
        to: "tensorboard", "wandb", "mlflow" or "trackio".
        out: the folder that is written to; for MLflow perhaps an address.
        sites: how many sites' signals are exported: the first, the last, and evenly between them.

    Returns:
        The exporter, closed; `where` and `hint` say where the numbers are, and what shows them.

    Raises:
        UsageError: if the run was not watched, may not be read or keeps nothing yet, the tracker is unknown or not
            installed, its files would come into the folder of a run or to an address, its server gives no answer, or
            `sites` is negative.

    Cost:
        Memory for what is exported, and for one signal of one site at a time beside it.
    """
    # An address is read from a copy, in a folder whose name says nothing.
    place = Path(run.partition("://")[2]) if isinstance(run, str) and is_remote(run) else None
    folder = run.path if isinstance(run, Run) else local(run)
    require_readable(folder)  # before the manifest, which may be what this user may not read
    run = run if isinstance(run, Run) else Run(folder)
    rows = _numbers(run, sites)
    told_at = _findings(run, max(rows, default=0))
    if not run.ranks and not (run.manifest.kind == "watch" and (rows or told_at)):
        if not (run.path / LOG).is_file() or run.damage is not None:
            raise UsageError(f"{run.path}: of its {LOG} nothing can be read. Look at it: levada doctor {run.path}")
        lacking = "signals, losses or findings" if run.manifest.kind == "watch" else "signals"
        raise UsageError(f"{run.path}: what is exported is a watched run, and this keeps no {lacking}.{_watched(run)}")
    name = name_of(place or run.path.resolve())
    _require_outside(out, name, to)
    with brief():  # what is stored can be exported again: no server is waited for
        exporter = open_exporter(
            to, out, name=name, config={**run.manifest.config, "levada": dict(run.manifest.versions)}
        )
        try:
            steps, times = _clock(run)
            for step in sorted({*rows, *told_at}):
                # Between two samples, the time is that of the later one.
                time = times[min(bisect_left(steps, step), len(times) - 1)]
                if step in rows:
                    exporter.write(step, time, rows[step])
                for rule, text in told_at.get(step, ()):
                    exporter.tell(step, time, rule, text)
        finally:
            exporter.close()
    return exporter


def _require_outside(out: str | Path, name: str, to: str) -> None:
    """Raise if a tracker's files would come into the folder of a run."""
    if is_remote(str(out)):
        return
    target = (Path(out) / name if to == "tensorboard" else Path(out)).absolute()
    own = next((folder for folder in (target, *target.parents) if (folder / MANIFEST).exists()), None)
    if own is not None:
        raise UsageError(
            f"export: a tracker's files do not go into the folder of a run, and with the folder {str(out)!r} they come "
            f"into {own}. Choose another with --out."
        )


def _numbers(run: Run, sites: int) -> dict[int, dict[str, float]]:
    """Give losses, scalars, and signals of some sites, by step."""
    # A site that several ranks have (replicas, shards) is exported once; those of a pipeline follow each other.
    everywhere = {site["name"]: signals for signals in map(run.signals, reversed(run.ranks)) for site in signals.sites}
    names = list(dict.fromkeys(site["name"] for rank in run.ranks for site in run.signals(rank).sites))
    series = [("loss", run.losses())]
    if run.ranks:
        first = run.signals(run.ranks[0])
        series = [("loss", first.losses()), *((name, first.scalars(name)) for name in first.scalar_names)]
    series += [(loss_tag(name), losses) for name, losses in run.losses_by_optimizer().items()]
    rows: dict[int, dict[str, float]] = {}
    for name, pairs in series:
        for step, value in pairs:
            rows.setdefault(step, {}).setdefault(name, value)
    for name in [names[i] for i in chosen(names, sites)]:
        for signal in everywhere[name].names:
            reading = everywhere[name].read(signal, site=name)
            for step, row in zip(reading.steps, reading, strict=True):
                if not math.isnan(row[0]):
                    rows.setdefault(step, {})[tag(signal, name)] = row[0]
    return rows


def _clock(run: Run) -> tuple[Sequence[int], Sequence[float]]:
    """Give steps whose time is known, and the times; of a run without a sample, when it began."""
    first = run.signals(run.ranks[0]) if run.ranks else None
    if first is not None and first.times:
        return first.steps, first.times
    try:
        return (), (datetime.fromisoformat(run.manifest.created).timestamp(),)
    except ValueError:
        return (), (0.0,)


def _watched(run: Run) -> str:
    """Point from a training to its newest watched run inside, and from another run to its page."""
    inside = [path.parent for path in run.path.glob(f"watch/*/{MANIFEST}") if path.parent.name.isdecimal()]
    newest = max(inside, key=lambda path: int(path.name), default=None)
    return f" Its page: levada report {run.path}" if newest is None else f" It was watched, though: export {newest}."


def _findings(run: Run, last: int) -> dict[int, list[tuple[str, str]]]:
    """Give the findings by step, of all processes; one that names none stands at the last."""
    found: dict[int, list[tuple[str, str]]] = {}
    known = set[tuple[tuple[int, ...], str]]()
    own = list(run.events())
    for rank, events in ((0, own), *((rank, list(run.events(rank=rank))) for rank in run.ranks if rank)):
        held = Standing.of(said_of(events), (), sampled=None, steps=0)
        by = f" Told by {process_name(rank, held.stages, held.num_stages)}." if rank or held.stages else ""
        later = [{"type": CONTINUED, "step": first_of(own)}] if first_of(events) != first_of(own) else []
        texts = [(step, *told(finding)) for step, _, finding in tellings([*events, *later])]
        for step, rule, text in texts:
            if (held.stages, text) not in known:  # replicas find the same
                found.setdefault(step if isinstance(step, int) else last, []).append((rule, f"{text}{by}"))
        known |= {(held.stages, text) for _, _, text in texts}
    return found
