"""`levada study`."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from levada._errors import UsageError
from levada.commands.inputs import setting
from levada.commands.output import QUIET, UNMEASURED, console, studies_bar, tell
from levada.runs.address import require_local
from levada.runs.manifest import MANIFEST
from levada.studies import require_study

if TYPE_CHECKING:
    from levada.study import Study

__all__ = ["study"]


def study(options: argparse.Namespace) -> int:
    """Run `levada study`: compute what is missing, decide the claims, show them."""
    every = "all" in (name.lower() for name in options.names)
    numbers = [] if every else list(dict.fromkeys(map(require_study, options.names)))
    settings = dict(setting(text) for text in options.set)
    advice = "Compute in a folder, and copy it there afterwards."
    require_local("--out must name a folder of this machine", options.out, advice)
    _require_folder(Path(options.out))
    chosen = {key: _value(text) for key, text in (setting(one, "--executor-set") for one in options.executor_set)}

    from levada.report.summary import print_summary
    from levada.report.terminal import print_claims
    from levada.studies import STUDIES
    from levada.study import execute_all, failures
    from levada.study.executors import JOBS, executor

    studies = [STUDIES[number] for number in numbers or STUDIES]
    if options.scale == "full":
        tell(_costs(studies, options.scale), stderr=True)
    title = f"{'all' if every else ' '.join(one.name for one in studies)} {options.scale}"
    with executor(options.executor, Path(options.out) / JOBS, chosen) as pool, studies_bar(title) as progress:
        executed = execute_all(
            studies,
            scale=options.scale,
            out=options.out,
            seeds=options.seeds,
            settings=settings,
            executor=pool,
            progress=progress,
        )
    code = QUIET
    for told, run, error in executed:
        if not every:
            print_claims(run, console())
            console().print(str(run.path), style="dim", highlight=False, soft_wrap=True)
        failed = failures(run)
        if failed:
            first = " ".join(str(next(iter(failed.values()))["error"]).split())
            sys.stderr.write(f"levada study: {len(failed)} results of {told.name} failed, the first with: {first}\n")
            code = UNMEASURED
        if error is not None:
            line = " ".join(f"{type(error).__name__}: {error}".split())
            sys.stderr.write(f"levada study: the claims or figures of {told.name} failed with: {line}\n")
            code = UNMEASURED
    if len(executed) > 1:
        print_summary([one.run for one in executed], console())
        folder = shlex.quote(str(Path(options.out)))
        console().print(f"levada report {folder} -o report.html", style="dim", highlight=False, soft_wrap=True)
    return code


def _require_folder(out: Path) -> None:
    """Raise unless run folders can be made there."""
    rule = f"--out must name the folder that run folders go to, got {str(out)!r}"
    file = next((one for one in (out, *out.parents) if one.is_file()), None)
    if file is not None:
        raise UsageError(f"{rule}: {file} is a file. Name a folder.")
    if (out / MANIFEST).exists():
        raise UsageError(f"{rule}, which is a run itself. Name the folder above it: --out {out.parent}")


def _costs(studies: Sequence[Study], scale: str) -> str:
    """Say what a scale takes, a study a line."""
    lines = [f"  {one.name:<4} {one.costs.get(scale) or 'not known'}" for one in studies]
    return "\n".join([f"The scale {scale} takes:", *lines])


def _value(text: str) -> int | float | bool | str:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
