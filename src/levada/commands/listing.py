"""`levada list`."""

from __future__ import annotations

import argparse
import re
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from levada.commands.output import QUIET, console, duration

if TYPE_CHECKING:
    from levada.study import Study

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
    if kind == "connections":
        from levada import connections
        from levada.connection import Connection

        return [(c.__name__, _STARTS[c.residual_start], _first_line(c)) for c in _kinds_of(Connection, connections)]
    if kind == "cells":
        from levada import cells

        return [(c.__name__, _first_line(c)) for c in _kinds_of(cells.Cell, cells)]
    if kind == "diagnostics":
        from levada.diagnose import DIAGNOSTICS

        return [(name, _first_line(rule)) for name, rule in DIAGNOSTICS.items()]
    if kind == "remedies":
        from levada.diagnose import REMEDIES

        return [(name, remedy.sentence) for name, remedy in REMEDIES.items()]
    if kind == "studies":
        from levada.studies import STUDIES
        from levada.study.study import SCALES

        return [(name, *(_cost(known, scale) for scale in SCALES), known.title) for name, known in STUDIES.items()]
    from levada.initialise import INITIALISATIONS

    return [(name, _first_line(function)) for name, function in INITIALISATIONS.items()]


def _kinds_of(base: type, module: ModuleType) -> list[Any]:
    """Return what a module has of a class, by name, without the class itself."""
    held = vars(module).values()
    found = [one for one in held if isinstance(one, type) and issubclass(one, base) and one is not base]
    return sorted(found, key=lambda one: one.__name__)


def _cost(known: Study, scale: str) -> str:
    """Say what a scale takes: "~" where it is an estimate; of one processor core where it says nothing else."""
    cost = known.costs.get(scale)
    if cost is None:
        return f"{scale} -"
    where = "" if cost.hardware == CORE else f" on {cost.hardware}"
    return f"{scale} {'' if cost.measured else '~'}{duration(3600 * cost.hours)}{where}"


def _first_line(documented: object) -> str:
    """Return the first sentence of a docstring, without the equation that ends it."""
    line = (documented.__doc__ or "").strip().split("\n")[0].replace("`", "")
    return re.sub(r": \$[^$]*\$\.$", ".", line).replace("$", "")
