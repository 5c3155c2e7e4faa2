"""What lies inside of a watched run's layers: mixing matrices at the last sample, and gates over steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from levada._numbers import sampled
from levada.report.beside import line_figure
from levada.report.mixing import mixing_figure
from levada.report.words import count
from levada.runs.inside import GateSeries, MixedLayer, chains_in, gates_of, largest_in, mixed_at
from levada.runs.processes import Recorded, Together

__all__ = ["inside_figures"]

_SHOWN: Final = 8  # recurrences: as many lines can be told apart


def inside_figures(run: Recorded, together: Together) -> list[dict[str, Any]]:
    """Draw the matrices of the last sample, chain by chain, and how far back gates reach; nothing without them.

    Args:
        run: a watched one.
        together: its processes.
    """
    held: dict[str, list[tuple[int, Any]]] = {"mixing": [], "gates": []}
    for rank in together.holders:
        for part in run.parts(rank) if rank in run.ranks else ():
            held.setdefault(part, []).append((rank, run.signals(rank, part)))
    mixed = [(rank, found) for rank, signals in held["mixing"] if (found := mixed_at(signals)) is not None]
    gates = [
        (together.site(rank, one.site), one)
        for rank, signals in held["gates"]
        for one in gates_of(signals)
        if one.steps
    ]
    return [*_mixing(mixed, together), *_gates(gates)]


def _mixing(found: Sequence[tuple[int, tuple[int, int, list[MixedLayer]]]], together: Together) -> list[dict[str, Any]]:
    if not found:
        return []
    matrices: dict[str, Any] = {}
    chains: list[Mapping[str, Any]] = []
    for rank, (_, _, layers) in found:
        names = {layer.name: together.site(rank, layer.name) for layer in layers}
        matrices |= {names[layer.name]: layer.matrix for layer in layers}
        for chain in chains_in(layers):
            told = {key: value for key, value in largest_in(chain).items() if not math.isnan(value)}
            chains.append({**told, "layers": [names[one.name] for one in chain]})
    drawn = mixing_figure({"summary": {"mixing": {"matrices": matrices, "chains": chains}}})
    return [] if drawn is None else [{**drawn, "title": f"{drawn['title']}, at step {found[0][1][0]:,}"}]


def _gates(found: Sequence[tuple[str, GateSeries]]) -> list[dict[str, Any]]:
    if not found:
        return []
    shown = [found[i] for i in sampled(len(found), _SHOWN)]
    few = (
        f" {count(len(shown), 'recurrence')} of {len(found):,} are drawn, evenly chosen."
        if len(shown) < len(found)
        else ""
    )
    caption = "The steps of a sequence after which the gates alone leave 1/1000 of a gradient; what recurrent weights "
    series = [
        {"label": name, "style": "measured", "x": one.steps, "y": [_known(value) for value in one.horizon]}
        for name, one in shown
    ]
    spec = {"x": {"label": "step"}, "y": {"label": "steps of the sequence", "scale": "log"}, "series": series}
    return [line_figure(spec, "How far back the gates reach", f"{caption}bring back is not counted.{few}")]


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
