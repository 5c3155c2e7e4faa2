"""`levada export`: a watched run, put where people look already."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

from levada._errors import UsageError
from levada.commands.output import QUIET

__all__ = ["export"]


def export(options: argparse.Namespace) -> int:
    """Run `levada export`: write the run to a tracker; where it is, and what shows it, are the last lines."""
    from levada.runs import exporters

    if Path(options.out).is_file():
        raise UsageError(f"--out must name a folder, got {options.out!r}, which is a file. Name another.")
    # What a tracker prints must not get between the lines that say where the numbers are.
    with contextlib.redirect_stdout(sys.stderr):
        exporter = exporters.export(options.run, options.to, options.out, sites=options.sites)
    print(exporter.where, exporter.hint, sep="\n")  # noqa: T201
    return QUIET
