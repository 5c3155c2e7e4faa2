"""The mixing matrices of layers with several streams, drawn by depth: one small map a layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final, TypeAlias

from levada._numbers import sampled
from levada.report.palette import BROKEN, SIGNS
from levada.report.words import cell, count, number, short

__all__ = ["draw_map", "mixing_figure", "read_matrix"]

MAX_LAYERS: Final = 60
_MAX_CELLS: Final = 4096  # of all maps together: each has a text of its own
_SIDE: Final = 10  # of a cell, in units of the view box


def mixing_figure(report: Mapping[str, Any]) -> dict[str, str] | None:
    """Draw the matrices of a summary, `{"mixing": {"matrices": {layer: rows}, "chains": [{"layers": [layer]}]}}`.

    Layers of one chain hand their streams on; a chain is drawn, and its product told, by itself.

    Args:
        report: the JSON of `levada check`.

    Returns:
        Title, caption and picture; None if there are no matrices.

    Example:
        >>> drawn = mixing_figure({"summary": {"mixing": {"matrices": {"layers.0": [[1.0, -0.5], [0.0, 1.0]]}}}})
        >>> "to stream 0 from stream 1: \u22120.500" in drawn["svg"]
        True
    """
    told = (report.get("summary") or {}).get("mixing")
    held = told.get("matrices") if isinstance(told, Mapping) else None
    if not isinstance(told, Mapping) or not isinstance(held, Mapping):
        return None
    matrices = {str(name): rows for name, value in held.items() if (rows := read_matrix(value))}
    if not matrices:
        return None
    chains = _chains(told.get("chains"), matrices)
    names, most = [name for layers, _ in chains for name in layers], max(len(rows) ** 2 for rows in matrices.values())
    shown = [names[i] for i in sampled(len(names), max(2, min(MAX_LAYERS, _MAX_CELLS // most)))]
    cells = [abs(v) for name in shown for row in matrices[name] for v in row]
    sizes = [size for size in cells if math.isfinite(size)]
    scale = max(1.0, *sizes) if sizes else 1.0
    maps = "".join(_chain(layers, chain, shown, matrices, scale, len(chains) > 1) for layers, chain in chains)
    return {
        "title": "How the streams are mixed, layer by layer",
        "caption": _caption(chains, shown, scale, len(sizes) < len(cells)),
        "svg": f"{maps}{_table(shown, matrices)}",
    }


_Chains: TypeAlias = list[tuple[list[str], Mapping[str, Any]]]


def _chains(told: Any, matrices: Mapping[str, Any]) -> _Chains:
    """Read the chains, each as its layers that have a matrix and what is told of it; what is in none comes last."""
    chains: _Chains = []
    left = dict.fromkeys(matrices)
    for chain in told if isinstance(told, Sequence) and not isinstance(told, str) else ():
        layers = chain.get("layers") if isinstance(chain, Mapping) else None
        if isinstance(layers, Sequence) and not isinstance(layers, str):
            known = [name for name in map(str, layers) if name in left]
            for name in known:
                del left[name]
            if known:
                chains.append((known, chain))
    return [*chains, (list(left), {})] if left else chains


def _chain(
    layers: Sequence[str],
    told: Mapping[str, Any],
    shown: Sequence[str],
    matrices: Mapping[str, Sequence[Sequence[float]]],
    scale: float,
    headed: bool,
) -> str:
    """Draw a chain's matrices, under its name where there are several chains."""
    maps = "".join(draw_map(name, matrices[name], scale, under=_bare(name)) for name in shown if name in layers)
    head = ""
    if headed:
        ends = layers[0] if len(layers) == 1 else f"{layers[0]} to {layers[-1]}"
        gains = _gains(told)
        text = f"{count(len(layers), 'layer')}, {ends}" + (f": the {gains}" if gains else ".")
        head = f'<p class="chain">{escape(text)}</p>'
    return f'{head}<ol class="mixes">{maps}</ol>' if maps else head


def read_matrix(value: Any) -> list[list[float]]:
    """Read a square matrix of numbers; [] for what is none.

    Args:
        value: rows, as JSON has them.
    """
    if not isinstance(value, Sequence) or isinstance(value, str):
        return []
    rows = [[number(v) for v in row] for row in value if isinstance(row, Sequence) and not isinstance(row, str)]
    if len(rows) != len(value) or any(len(row) != len(rows) for row in rows):
        return []
    known = [[v for v in row if v is not None] for row in rows]
    return known if all(len(row) == len(rows) for row in known) else []


def draw_map(
    name: str,
    rows: Sequence[Sequence[float]],
    scale: float,
    words: str = "to stream {i} from stream {j}",
    under: str = "",
) -> str:
    """Draw one matrix as an item of a list.

    Args:
        name: what it is called.
        rows: the matrix.
        scale: the value of full colour.
        words: what a cell is called, of `name`, `i` and `j`.
        under: what stands under it; its name if left out.
    """
    cells = []
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            told = f"<title>{escape(words.format(name=name, i=i, j=j))}: {cell(value)}</title>"
            where = f'x="{j * _SIDE}" y="{i * _SIDE}" width="{_SIDE}" height="{_SIDE}"'
            if not math.isfinite(value):
                cells.append(f'<rect class="c3" {where}>{told}</rect>')
                continue
            sign = "c0" if value >= 0 else "c1"
            cells.append(f'<rect class="{sign}" fill-opacity="{abs(value) / scale:.3f}" {where}>{told}</rect>')
    side = _SIDE * len(rows)
    text = "; ".join(" ".join(cell(value) for value in row) for row in rows)
    return (
        f'<li><svg class="mix" viewBox="-0.5 -0.5 {side + 1} {side + 1}" role="img" '
        f'aria-label="{escape(f"{name}, rows: {text}")}">{"".join(cells)}'
        f'<rect class="frame" width="{side}" height="{side}"/></svg><span>{escape(under or name)}</span></li>'
    )


def _bare(name: str) -> str:
    """Give a connection the name of its layer, which has the room under a small map."""
    return name.removesuffix(".connection")


def _caption(chains: _Chains, shown: Sequence[str], scale: float, broken: bool) -> str:
    text = (
        "Each square is one layer's mixing matrix, averaged over tokens, from the first layer on: a row is a stream "
        f"after the layer, a column one before it. Full colour is {short(scale)}, none 0. {SIGNS}"
    ) + (f" {BROKEN}" if broken else "")
    total = sum(len(layers) for layers, _ in chains)
    if len(shown) < total:
        text += f" {len(shown):,} of {total:,} layers are drawn, evenly chosen."
    if len(chains) > 1:
        return text + f" The {len(chains)} chains of layers share no streams: each has a product of its own."
    ((layers, told),) = chains
    gains = _gains(told)
    return text + (f" Over {count(len(layers), 'layer')} their {gains}" if gains else "")


def _gains(told: Mapping[str, Any]) -> str:
    """Say what a chain's product does; "" where it is not known."""
    ways = (("composite_forward_gain", "equal streams"), ("composite_backward_gain", "a gradient equal in all streams"))
    gains = [f"{whom} by up to {short(told[key])}" for key, whom in ways if number(told.get(key)) is not None]
    return f"product multiplies {' and '.join(gains)}." if gains else ""


def _table(shown: Sequence[str], matrices: Mapping[str, Sequence[Sequence[float]]]) -> str:
    """Give the numbers as text, a row of the table for each layer."""
    streams = max(len(matrices[name]) for name in shown)
    head = "".join(f'<th scope="col">to stream {i}</th>' for i in range(streams))
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(f"<td>{' '.join(cell(value) for value in row)}</td>" for row in matrices[name])
        + "</tr>"
        for name in shown
    )
    return (
        "<details><summary>The numbers of these matrices, from stream 0 on</summary>"
        '<div class="scroll" tabindex="0" role="group" aria-label="Mixing matrices"><table>'
        f'<thead><tr><th scope="col">layer</th>{head}</tr></thead><tbody>{body}</tbody></table></div></details>'
    )
