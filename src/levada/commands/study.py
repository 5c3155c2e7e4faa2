"""`levada study`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from levada.commands.inputs import setting
from levada.commands.output import QUIET, UNMEASURED, console, progress_bar

__all__ = ["study"]


def study(options: argparse.Namespace) -> int:
    """Run `levada study`: compute what is missing, decide the claims, show them."""
    from levada.report.terminal import print_claims
    from levada.studies import run_study
    from levada.study import failures
    from levada.study.executors import executor

    code = QUIET
    settings = dict(setting(text) for text in options.set)
    jobs = Path(options.out) / ".jobs"
    chosen = {key: _value(text) for key, text in (setting(one, "--executor-set") for one in options.executor_set)}
    for name in options.names:
        with executor(options.executor, jobs, chosen) as pool, progress_bar(f"{name} {options.scale}") as progress:
            run = run_study(
                name,
                scale=options.scale,
                out=options.out,
                seeds=options.seeds,
                settings=settings,
                executor=pool,
                progress=progress,
            )
        print_claims(run, console())
        console().print(str(run.path), style="dim", highlight=False, soft_wrap=True)
        failed = failures(run)
        if failed:
            first = " ".join(str(next(iter(failed.values()))["error"]).split())
            sys.stderr.write(f"levada study: {len(failed)} results of {name} failed, the first with: {first}\n")
            code = UNMEASURED
    return code


def _value(text: str) -> int | float | bool | str:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
