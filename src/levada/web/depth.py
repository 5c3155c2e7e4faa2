"""What checks recorded of streams and recurrences: mixing matrices over depth, memory over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from levada._numbers import sampled
from levada.report.mixing import read_matrix
from levada.report.words import phrase
from levada.web.folder import RefusedError
from levada.web.inside import watched_mixing
from levada.web.opened import Opened, opened
from levada.web.pictures import Chain, Layer, Memory, Mixing, MixingOf, Recurrence
from levada.web.shapes import plain, told

__all__ = ["memory_of", "mixing_of"]

_MAX_NUMBERS: Final = 2**18  # of all matrices of an answer
_MAX_POINTS: Final = 4096  # of a curve


def _recorded(run: Opened, key: str) -> dict[int, Mapping[str, Any]]:
    """Give what the summaries of a run's reports hold under a key, by the number of the report."""
    found: dict[int, Mapping[str, Any]] = {}
    for step, report in enumerate(run.reports):
        summary = report.get("summary")
        held = summary.get(key) if isinstance(summary, Mapping) else None
        if isinstance(held, Mapping):
            found[step] = held
    return found


def mixing_of(path: Path, asked: MixingOf) -> Mixing:
    """Give the mixing matrices by layer, and what their products over depth do.

    Args:
        path: the run's folder.
        asked: which record.

    Raises:
        RefusedError: if there is none.
    """
    run = opened(path)
    if run.manifest.kind == "watch":
        return watched_mixing(run, asked)
    found = _recorded(run, "mixing")
    steps = [step for step in found if asked.step is None or step <= asked.step]
    if not steps:
        raise RefusedError(404, "The run has no record of mixing matrices: checks of models with streams have.")
    held = found[steps[-1]]
    given = held.get("matrices")
    matrices = (
        {str(k): rows for k, v in given.items() if (rows := read_matrix(v))} if isinstance(given, Mapping) else {}
    )
    size = max((len(rows) ** 2 for rows in matrices.values()), default=1)
    names = list(matrices)
    kept = [names[i] for i in sampled(len(names), max(2, _MAX_NUMBERS // size))]
    blocks = run.reports[steps[-1]].get("blocks")
    by_site = {str(b.get("site")): b for b in blocks if isinstance(b, Mapping)} if isinstance(blocks, list) else {}
    gains = {name: _gains(held) | _deviations(held) for name in kept for held in (by_site.get(name, {}),)}
    chains = held.get("chains")
    return Mixing(
        watched=False,
        steps=list(found),
        step=steps[-1],
        last_step=steps[-1],
        layers=[
            Layer(name=plain(name), matrix=[list(map(told, row)) for row in matrices[name]], **gains[name])
            for name in kept
        ],
        chains=[
            Chain(layers=[plain(str(name)) for name in chain["layers"]], **_gains(chain))
            for chain in (chains if isinstance(chains, list) else ())
            if isinstance(chain, Mapping) and isinstance(chain.get("layers"), list)
        ],
        total=len(names),
    )


def _gains(held: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{way}_gain": told(held.get(f"composite_{way}_gain")) for way in ("forward", "backward")}


def _deviations(held: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{way}_deviation": told(held.get(f"mixing_{way}_deviation")) for way in ("row", "column")}


def memory_of(path: Path) -> Memory:
    """Give how far back the gradient of a model's recurrences reaches.

    Args:
        path: the run's folder.

    Raises:
        RefusedError: if no check of the run measured it.
    """
    run = opened(path)
    found = _recorded(run, "memory_horizon")
    if not found:
        raise RefusedError(404, "The run has no record of memory over time: checks of models with recurrences have.")
    step = max(found)
    held = found[step]
    findings = run.reports[step].get("findings")
    numbers = {key: told(held.get(key)) for key in ("value", "low", "high", "predicted", "steps")}
    every = (one for one in (findings if isinstance(findings, list) else ()) if isinstance(one, Mapping))
    return Memory(**numbers, recurrences=[made for one in every if (made := _recurrence(one)) is not None])


def _recurrence(finding: Mapping[str, Any]) -> Recurrence | None:
    evidence, where = finding.get("evidence"), finding.get("where")
    curves = evidence.get("curves") if isinstance(evidence, Mapping) else None
    if not isinstance(curves, Mapping) or not isinstance(curves.get("steps_back"), list):
        return None
    site = where.get("first") if isinstance(where, Mapping) else ""
    return Recurrence(
        site=plain(str(site or "")),
        title=plain(phrase(finding)),
        drawn=finding.get("status", "fired") == "fired",
        back=_whole(curves.get("steps_back")),
        memory=_numbers(curves.get("memory")),
        predicted=_numbers(curves.get("memory_predicted")),
        steps=_whole(curves.get("steps")),
        gradient=_numbers(curves.get("gradient")),
    )


def _numbers(values: Any) -> list[Any]:
    return [told(one) for one in values[:_MAX_POINTS]] if isinstance(values, Sequence) else []


def _whole(values: Any) -> list[int]:
    return [one for one in values[:_MAX_POINTS] if isinstance(one, int)] if isinstance(values, list) else []
