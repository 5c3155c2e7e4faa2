"""`levada report` and `levada doctor`: what is done with run folders."""

from __future__ import annotations

import argparse
from pathlib import Path

from levada._errors import UsageError
from levada.commands.output import FIRED, QUIET, console

__all__ = ["doctor", "report"]


def report(options: argparse.Namespace) -> int:
    """Run `levada report`: one page from run folders; its path is the last line."""
    from levada.report import write_html
    from levada.runs import Run, find_runs

    runs = [Run(path) for root in options.runs for path in find_runs(Path(root))]
    for run in runs:
        if run.damage is not None:
            console(stderr=True).print(
                f"{run.path}: {run.damage.message}; the page shows what is readable.", highlight=False
            )
    if not runs:
        raise UsageError(f"There is no run in {', '.join(options.runs)}. Make one: levada check MODEL --run DIR")
    write_html(runs, Path(options.output))
    print(Path(options.output).resolve())  # noqa: T201
    return QUIET


def doctor(options: argparse.Namespace) -> int:
    """Run `levada doctor`: of a run, or of all below a folder: 0 if all that was written is good, 1 if not."""
    from levada.runs import doctor as examine
    from levada.runs import find_runs, reseal

    root = Path(options.run)
    healthy = True
    for path in find_runs(root, whole=False) or [root]:
        if options.reseal:
            for sentence in reseal(path):
                console().print(f"{path}: {sentence}", highlight=False)
        examined = examine(path)
        console().print(str(examined), highlight=False)
        healthy &= examined.healthy
    return QUIET if healthy else FIRED
