"""`levada train`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from levada._errors import MeasurementError, UsageError
from levada._termination import Terminated, terminable
from levada.commands.output import QUIET, console, tell

__all__ = ["train"]

UNUSABLE, UNMEASURED = 2, 3
_PATIENCE: Final = 5.0  # seconds in which the first process says what all refuse; its launcher ends the others then


def train(options: argparse.Namespace) -> int:
    """Run `levada train`: read the configuration, train, say what came of it."""
    if options.processes is not None:
        return _launch(options)
    together = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if together:
        from levada.commands.launching import end_with_launcher

        end_with_launcher()
    try:
        with terminable():
            code = _train(options)
    except (UsageError, MeasurementError) as error:
        rank = os.environ.get("RANK", "0")
        if not together:
            raise
        if rank != "0":
            time.sleep(_PATIENCE)
        kind = UsageError if isinstance(error, UsageError) else MeasurementError
        if _said(error):
            return UNUSABLE if kind is UsageError else UNMEASURED
        if rank == "0":
            raise
        raise kind(f"process {rank}: {str(error).removeprefix('train: ')}") from error
    if together:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # gloo's threads sometimes outlive the interpreter and abort it
    return code


def _launch(options: argparse.Namespace) -> int:
    """Start several processes, once the configuration is known to be one."""
    from levada.training import read

    config = read(options.config, options.set)
    kind = config.parallel.kind
    if kind == "none" and options.processes > 1:
        raise UsageError(
            f'parallel.kind "none" is for one process, got --processes {options.processes}. '
            "Use ddp, fsdp or pipeline: --set parallel.kind=ddp"
        )
    from levada.commands.launching import launch

    return launch(_words(options), options.processes, Path(config.run.folder))


def _words(options: argparse.Namespace) -> list[str]:
    """Return the command line of each process."""
    sets = [word for change in options.set for word in ("--set", change)]
    switches = [word for word, given in (("--resume", options.resume), ("--debug", options.debug)) if given]
    return ["train", options.config, *sets, *switches]


def _said(error: Exception) -> bool:
    """Whether another process says the same."""
    from levada.training.processes import SaidError, claim

    return isinstance(error, SaidError) or not claim(str(error))


def _tell_repeated(changes: Sequence[str]) -> None:
    """Say of a key that is set again which of its values counts."""
    given: dict[str, list[str]] = {}
    for change in changes:
        path, _, value = change.partition("=")
        given.setdefault(path.strip(), []).append(value.strip())
    for path, values in given.items():
        if len(values) > 1:
            tell(f"levada train: --set {path} came {len(values)} times; the last one counts: {values[-1]}", stderr=True)


def _train(options: argparse.Namespace) -> int:
    from levada.training import read

    config = read(options.config, options.set)
    if not int(os.environ.get("RANK", "0")):
        _tell_repeated(options.set)
    if config.parallel.kind != "none" and "RANK" not in os.environ:
        kind = config.parallel.kind
        tell(f"levada train: parallel.kind {kind!r} on one process; --processes N starts more", stderr=True)

    from levada.training import train as run

    try:
        trained = run(config, resume=options.resume, stream=sys.stderr)
    except (KeyboardInterrupt, Terminated):
        if "RANK" not in os.environ:  # of several processes their launcher knows the command
            from levada.commands.launching import going_on

            with suppress(OSError):  # the terminal is gone
                tell(going_on(_words(options), Path(config.run.folder)), stderr=True)
        raise
    if int(os.environ.get("RANK", "0")):
        return QUIET
    done = f"{trained.steps} steps"
    if trained.loss == trained.loss:
        done += f", loss {trained.loss:.4f}, held out {trained.held_out:.4f}"
    else:
        done += ", all of them done before: run.steps says how many there are to be"
    console().print(f"{done}\n{trained.run.path}", highlight=False, soft_wrap=True, markup=False)
    return QUIET
