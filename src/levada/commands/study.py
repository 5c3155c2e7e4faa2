"""`levada study`."""

from __future__ import annotations

import argparse
import sys

from levada.commands.inputs import setting
from levada.commands.output import QUIET, UNMEASURED, console, progress_bar

__all__ = ["study"]


def study(options: argparse.Namespace) -> int:
    """Run `levada study`: compute what is missing, decide the claims, show them."""
    from levada.report.terminal import print_claims
    from levada.studies import run_study
    from levada.study import failures

    code = QUIET
    settings = dict(setting(text) for text in options.set)
    for name in options.names:
        with progress_bar(f"{name} {options.scale}") as progress:
            run = run_study(
                name, scale=options.scale, out=options.out, seeds=options.seeds, settings=settings, progress=progress
            )
        print_claims(run, console())
        console().print(str(run.path), style="dim", highlight=False, soft_wrap=True)
        failed = failures(run)
        if failed:
            first = " ".join(str(next(iter(failed.values()))["error"]).split())
            sys.stderr.write(f"levada study: {len(failed)} results of {name} failed, the first with: {first}\n")
            code = UNMEASURED
    return code
