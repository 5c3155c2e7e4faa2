"""`levada list`."""

from __future__ import annotations

import argparse
import ast
import re
from typing import TYPE_CHECKING, Final

from levada.commands.output import QUIET, console, duration
from levada.studies import SLUGS

if TYPE_CHECKING:
    from levada.study.study import Cost

__all__ = ["KINDS", "list_names"]

KINDS: Final = {
    "connections": "how one layer reads from and writes to what the layers before it left",
    "cells": "recurrences over time",
    "diagnostics": "rules of a check: what each finds",
    "remedies": "changes that a fix tries on copies of a model",
    "studies": "claims of the literature that are tried on real data, and what that takes",
    "initialisations": "ways to draw the first weights",
}

CORE: Final = "one CPU core"  # of which the times are that name no hardware
_STARTS = {"exact": "can start as residual", "normalised": "nearly as residual", "none": "-"}


def list_names(options: argparse.Namespace) -> int:
    """Run `levada list`: names, one a line, each with its first sentence; whole lines where no terminal bounds them."""
    rows = _inventory(options.kind)
    if not console().is_terminal:
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())  # noqa: T201
        return QUIET
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True, style="bold")
    for _ in rows[0][2:]:
        table.add_column(no_wrap=True)
    table.add_column()
    for row in rows:
        table.add_row(*row)
    console().print(table)
    return QUIET


def _inventory(kind: str | None) -> list[tuple[str, ...]]:
    """Return a row for each name: the name first, its sentence last."""
    if kind is None:
        return list(KINDS.items())
    from levada.commands import sources

    if kind == "connections":
        found = sources.derived("levada.connections", "Connection")
        return [(one.name, _STARTS[one.constant("residual_start")], _plain(one.sentence)) for one in found]
    if kind == "cells":
        return [(one.name, _plain(one.sentence)) for one in sources.derived("levada.cells", "Cell")]
    if kind == "diagnostics":
        rules = sources.entries("levada.diagnose.diagnostics", "DIAGNOSTICS", lambda rule: rule)
        return [(name, _plain(rule.sentence)) for name, rule in rules.items()]
    if kind == "remedies":
        remedies = sources.entries("levada.diagnose.remedies", "REMEDIES", _writes)
        return [(name, _plain(remedy.sentence)) for name, remedy in remedies.items()]
    if kind == "studies":
        return [*map(_study, SLUGS.values())]
    found = sources.elements("levada.initialise", "INITIALISATIONS")
    return [(one.name, _plain(one.sentence)) for one in found]


def _writes(remedy: ast.expr) -> ast.expr:
    """Give of `Remedy(causes, cost, write)` the function that writes the change."""
    assert isinstance(remedy, ast.Call)
    return remedy.args[2]


def _study(slug: str) -> tuple[str, ...]:
    from levada.commands import sources
    from levada.study.study import SCALES, Cost

    told = sources.keywords(f"levada.studies.{slug}", "STUDY", {"Cost": Cost}, ("name", "title", "costs"))
    return (told["name"], *(_cost(told.get("costs", {}).get(scale), scale) for scale in SCALES), told["title"])


def _cost(cost: Cost | None, scale: str) -> str:
    """Say what a scale takes: "~" where it is an estimate; of one processor core where it says nothing else."""
    if cost is None:
        return f"{scale} -"
    where = "" if cost.hardware == CORE else f" on {cost.hardware}"
    return f"{scale} {'' if cost.measured else '~'}{duration(3600 * cost.hours)}{where}"


def _plain(line: str) -> str:
    """Leave out of a docstring's first line the marks, and the equation that ends it."""
    return re.sub(r": \$[^$]*\$\.$", ".", line.replace("`", "")).replace("$", "")
