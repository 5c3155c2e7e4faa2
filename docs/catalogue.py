"""The catalogue page, made when the documentation is built: from the docstrings, from what is counted, and from times.

In `catalogue.md` the comments `<!-- overview -->`, `<!-- advice -->`, `<!-- entries -->` and `<!-- rivals -->` stand
for what is made here of the classes that `levada.connections` lists. A new connection appears by itself.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.costs import DIM, Chain, Costs, costs, listed
from docs.docstrings import Entry, names_of, parameters_of, traffic_of
from docs.mathml import is_formula, to_mathml

from levada._errors import UsageError
from levada.connection import Connection, SingleStream
from levada.connections.history import DepthHistory
from levada.connections.inversion import Invertible
from levada.connections.streams import Streams

__all__ = ["Card", "cards", "page", "setup"]

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results" / "connections.jsonl"
SIZES = ((4_096, 512), (256, 128))
GROUPS = ("One stream", "Several streams", "Earlier layers", "Undone instead of kept", "Others")
_STARTS = {"exact": "exactly", "normalised": "up to ε", "none": "no"}


@dataclass(frozen=True)
class Card:
    """All that the page says of one connection.

    Attributes:
        entry: its docstring.
        group: the heading under which it stands.
        start: whether it can start as the residual network.
        counted: its costs at the reference, counted.
        least: elements per token that it moves at least, from the docstring.
        times: the newest row of the benchmark for each size, if there is one.
    """

    entry: Entry
    group: str
    start: str
    counted: Costs
    least: float
    times: dict[tuple[int, int], dict[str, Any]]

    @classmethod
    def of(cls, connection: type[Connection], rows: list[dict[str, Any]]) -> Card:
        """Read the docstring, count the costs and look up the times."""
        entry, counted, layer = Entry.of(connection), costs(connection), Chain(connection, tokens=1).last
        names = names_of(entry, layer)
        if parameters_of(entry, names) != counted.parameters:
            raise ValueError(
                f"{entry.name} has {counted.parameters} parameters, and its docstring says another number."
            )
        start = _STARTS[connection.residual_start]
        if connection.residual_start != "none":
            try:
                layer.start_as_residual()
            except UsageError:
                start += ", by an option"
        times = newest(rows, entry.name)
        return cls(entry, _group(connection, counted), start, counted, traffic_of(entry, names), times)


def _group(connection: type[Connection], counted: Costs) -> str:
    if issubclass(connection, Invertible):
        return "Undone instead of kept"
    if issubclass(connection, Streams):
        return "Several streams"
    if issubclass(connection, DepthHistory) or counted.growth:
        return "Earlier layers"
    return "One stream" if issubclass(connection, SingleStream) else "Others"


def _rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def newest(rows: list[dict[str, Any]], candidate: str) -> dict[tuple[int, int], dict[str, Any]]:
    """Return a candidate's newest row for each size; the file is in the order of time."""
    return {(row["extra"]["tokens"], row["extra"]["dim"]): row for row in rows if row["candidate"] == candidate}


@functools.cache
def cards() -> tuple[Card, ...]:
    """Return a card for each connection, by group and number of parameters."""
    rows = _rows()
    found = [Card.of(connection, rows) for connection in listed().values()]
    return tuple(sorted(found, key=lambda card: (GROUPS.index(card.group), card.counted.parameters, card.entry.name)))


def _link(name: str, text: str | None = None) -> str:
    return f"[{text or name}](#{name.lower()})"


def _linked(markdown: str) -> str:
    """Link the names of connections to their entries."""
    names = {card.entry.name for card in cards()}
    return re.sub(r"`(\w+)`", lambda m: _link(m[1], m[0]) if m[1] in names else m[0], markdown)


def _leading(equation: str) -> tuple[list[str], str]:
    """Split an equation's paragraph into the formulas that it begins with, and the rest."""
    found = re.match(r"`[^`]+`(?:, `[^`]* = [^`]*`)*", equation)
    head = found[0] if found else ""
    return re.findall(r"`([^`]+)`", head), equation[len(head) :].lstrip(",;").strip()


def _typeset(markdown: str) -> str:
    return re.sub(r"`([^`]+)`", lambda m: to_mathml(m[1]) if is_formula(m[1]) else m[0], markdown)


def _in_dims(elements: float) -> str:
    return f"{elements / DIM:.3g} C" if elements else "0"


def _time(row: dict[str, Any] | None) -> str:
    if row is None:
        return "not yet measured"
    low, middle, high = (_ratio(row["ratio"][part]) for part in ("q1", "median", "q3"))
    return f"{middle} [{low}, {high}]"


def _ratio(value: float) -> str:
    return f"{value:.2g}" if value < 1 else f"{value:.1f}" if value < 10 else f"{value:.0f}"


_COLUMNS = ("state", "parameters", "moved at least", "eager", "kept", "starts residual", "time")


def overview() -> str:
    """Return the table of all connections: HTML, so that it can be a list of cards on a narrow screen."""
    head = "".join(f"<th>{column}</th>" for column in ("connection", *_COLUMNS))
    rows = []
    for card in cards():
        counted, name = card.counted, card.entry.name
        formulas = "<br>".join(to_mathml(formula) for formula in _leading(card.entry.equation)[0])
        cells = (
            (f"{counted.state / DIM:.3g} + " if counted.growth else "") + _in_dims(counted.growth or counted.state),
            f"{counted.parameters:,}",
            f"{_in_dims(card.least)}<br>{2 * card.least:,.0f} B" if card.least else "0",
            f"{counted.moved / card.least:.1f}" if card.least else "",
            _in_dims(counted.saved),
            card.start,
            _time(card.times.get(SIZES[0])).replace(" [", "<br>["),
        )
        first = f'<th scope="row"><a href="#{name.lower()}">{name}</a><br>{formulas}</th>'
        rest = [f'<td data-label="{c}"><span>{text}</span></td>' for c, text in zip(_COLUMNS, cells, strict=True)]
        rows.append(f"<tr>{first}{''.join(rest)}</tr>")
    opening = f'<div class="table-wrapper"><table class="docutils catalogue"><thead><tr>{head}</tr></thead><tbody>'
    return "\n".join([opening, *rows, "</tbody></table></div>"])


def advice() -> str:
    """Return what each docstring says about when to use its connection."""
    lines = []
    for group in GROUPS:
        chosen = [card for card in cards() if card.group == group]
        lines += [f"**{group}**", ""] if chosen else []
        for card in chosen:
            use = " ".join(card.entry.use.removeprefix("Use it").split()).lstrip(", ")
            lines.append(f"- {_link(card.entry.name, f'`{card.entry.name}`')}: {_linked(use)}")
        lines.append("")
    return "\n".join(lines)


def _entry(card: Card) -> str:
    entry, counted = card.entry, card.counted
    formulas, rest = _leading(entry.equation)
    times = "; ".join(f"{_time(card.times.get(size))} at {size[0]:,} x {size[1]}" for size in SIZES)
    dates = ", ".join(sorted({row["date"][:10] for row in card.times.values()}))
    eager = f" ({counted.moved / card.least:.1f} times that by eager operations)" if card.least else ""
    lines = [
        f"### {entry.name}",
        entry.summary,
        '<div class="equation">' + "".join(to_mathml(formula, display=True) for formula in formulas) + "</div>",
        _typeset(rest),
        *(_linked(paragraph) for paragraph in entry.about),
        _linked(entry.use),
        f"**Cost.** {_linked(entry.sections['Cost'])}",
        f"Counted at the reference: {counted.parameters:,} parameters; {2 * card.least:,.0f} bytes per token in "
        f"bfloat16 at least{eager}; {_in_dims(counted.saved)} kept. Time over `Residual`'s: {times} (tokens x dim"
        f"{f', {dates}' if dates else ''}).",
        f"**Starts as the residual network**: {card.start}. "
        f"**Reference**: {{py:class}}`levada.connections.{entry.name}`.",
        f"**Source**: {entry.sections['Source']}" if "Source" in entry.sections else "",
        f"```pycon\n{entry.sections['Example']}\n```",
    ]
    return "\n\n".join(filter(None, lines)) + "\n"


def entries() -> str:
    """Return a section for each group, with an entry for each connection."""
    lines = []
    for group in GROUPS:
        chosen = [_entry(card) for card in cards() if card.group == group]
        lines += [f"## {group}", "", *chosen] if chosen else []
    return "\n".join(lines)


def rivals() -> str:
    """Return what the times were taken on, and those of other packages."""
    rows = _rows()
    if not rows:
        return "Times are not yet measured."
    machine, versions = rows[-1]["machine"], rows[-1]["versions"]
    lines = [
        f"Times of {rows[-1]['date'][:10]}: {machine['cpu']}, {machine['threads']} thread, PyTorch "
        f"{versions['torch']}, float32; medians of the ratios of turns, with quartiles. Others, for comparison:",
        "",
    ]
    for name in sorted({row["candidate"] for row in rows} - set(listed())):
        found = newest(rows, name)
        times = ", ".join(f"{_time(found[size])} at {size[0]:,} x {size[1]}" for size in SIZES if size in found)
        lines.append(f"- {name}: {times}")
    return "\n".join(lines)


_PARTS: dict[str, Callable[[], str]] = {"overview": overview, "advice": advice, "entries": entries, "rivals": rivals}


def page(source: str) -> str:
    """Return the page, from the text that is written by hand and has comments where a part belongs."""
    return re.sub(rf"<!-- ({'|'.join(_PARTS)}) -->", lambda m: _PARTS[m[1]](), source)


def setup(app: Any) -> dict[str, bool]:
    """Fill the page when it is read, which is at every build: what it is made of is not in its own file."""

    def fill(app: Any, name: str, source: list[str]) -> None:
        if name == "catalogue":
            source[0] = page(source[0])

    app.connect("source-read", fill)
    app.connect("env-get-outdated", lambda app, env, added, changed, removed: ["catalogue"])
    app.add_css_file("catalogue.css")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
