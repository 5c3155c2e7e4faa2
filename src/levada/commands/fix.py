"""`levada fix`."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import Any

from levada.commands.inputs import batch_of, loss_of, model_of, named, require_model
from levada.commands.output import (
    FIRED,
    QUIET,
    UNMEASURED,
    console,
    fails,
    progress_bar,
    require_writable,
    store,
    write,
)

__all__ = ["fix"]


def fix(options: argparse.Namespace) -> int:
    """Run `levada fix`: build the model, try what repairs it, show and store what helps."""
    require_writable(options)
    require_model(options)

    import torch

    import levada

    with contextlib.redirect_stdout(sys.stderr), progress_bar(f"trying remedies for {options.model}") as progress:
        torch.manual_seed(options.seed)
        model, batch = model_of(options.model), batch_of(options.batch)
        fixed = levada.fix(
            model,
            batch,
            budget=options.budget,
            trials=options.trials,
            steps=options.steps,
            progress=progress,
            loss=loss_of(options.loss),
            optimizer=named(options.optimizer),
            lr=options.lr,
            seed=options.seed,
        )
    told = {**fixed.to_dict(), "model": options.model}
    told["diff"] = _diff(options.model, options.loss, fixed.change) if fixed.change is not None else None
    for side in ("before", "after"):
        if told[side] is not None:
            told[side]["model"] = options.model
    if options.json != "-":
        from levada.report.repair import print_fix

        print_fix(told, console())
    if options.out and told["patch"]:
        write(Path(options.out), f"{told['diff'] or told['patch']}".rstrip("\n") + "\n")
    kept = {side: told[side] for side in ("before", "after") if told[side] is not None}
    store(told, options, told["before"], kept)
    if told["outcome"] == "unknown":
        return UNMEASURED
    fired = {finding.rule for finding in fixed.before.findings if finding.status == "fired"}
    failing = fails(fixed.before.verdict, options.fail_on)
    failing = failing or (options.fail_on != "never" and bool(set(fixed.causes) - fired))
    return FIRED if failing and told["outcome"] in ("helps", "not repaired") else QUIET


def _diff(model: str, loss: str | None, change: Any) -> str | None:
    """Return a change as a diff of the files that make model and loss, with what else is to be changed above."""
    from levada.diagnose.source import diffs
    from levada.targets import source

    built = source(model)
    judging = source(loss) if loss is not None and ":" in loss else (None, "")
    return diffs(change, built, judging, Path.cwd())
