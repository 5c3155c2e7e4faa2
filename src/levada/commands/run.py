"""`levada run`: a training script as it is, with every model that it trains watched."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from levada._errors import UsageError

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from levada.watching.script import Script

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """Run `levada run`: the script as python would, with a watch for each model that it trains."""
    from levada.watching.script import Script, Watches, run_script

    words = options.module if options.module is not None else options.script
    if not words:
        raise UsageError("run takes a script, or -m and the name of a module: levada run train.py --lr 0.1")
    if options.every < 1:
        raise UsageError(f"--every must be at least 1, got {options.every}.")
    if not 0 < options.max_overhead <= 1:
        raise UsageError(f"--max-overhead must be a share of the time, in (0, 1], got {options.max_overhead}.")
    script = Script(words[0], tuple(words[1:]), module=options.module is not None)
    _require_new(options.run)

    def start(model: nn.Module, optimizers: Sequence[Optimizer], before: int) -> Any:
        return _start(options, script, model, optimizers, before)

    watches = Watches(start)
    code = run_script(script, watches)
    if not watches.started and not watches.failures and options.view != "quiet":
        sys.stderr.write("levada run: no optimizer made a step, so nothing was watched.\n")
    return code


def _start(
    options: argparse.Namespace, script: Script, model: nn.Module, optimizers: Sequence[Optimizer], before: int
) -> Any:
    import levada

    folder = _agreed(options.run, script.name, before)
    shown: bool | Literal["plain"] = "plain" if options.view == "plain" else options.view != "quiet"
    return levada.watch(
        model,
        optimizers,
        run=folder,
        every=options.every,
        max_overhead=options.max_overhead,
        live=shown,
    )


def _require_new(run: str | None) -> None:
    # Workers that are started again after a failure find the folder of the first attempt, and take the next.
    again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    if run is not None and not again and (Path(run) / "run.json").exists():
        raise UsageError(f"--run must name a folder that holds no run yet, got {run!r}.")


def _agreed(run: str | None, name: str, before: int) -> Path:
    """Choose a folder, the same in all processes of one training."""
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return _free(run, name, before)
    chosen = [str(_free(run, name, before)) if distributed.get_rank() == 0 else ""]
    distributed.broadcast_object_list(chosen)
    return Path(chosen[0])


def _free(run: str | None, name: str, before: int) -> Path:
    """Make a folder that nobody else has: runs/NAME-1, runs/NAME-2, ...; what was asked for, then with -2, -3."""
    number = before + 1 if run is not None else 1
    while True:
        folder = Path("runs") / f"{name}-{number}" if run is None else Path(run if number == 1 else f"{run}-{number}")
        number += 1
        if run is not None and not (folder / "run.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            return folder
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
