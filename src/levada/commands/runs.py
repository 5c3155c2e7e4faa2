"""`levada report` and `levada doctor`: what is done with run folders."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from levada._errors import UsageError
from levada.commands.output import FINISHED, FIRED, QUIET, tell
from levada.runs.address import cache_folder, is_remote, local
from levada.runs.manifest import LOG, MANIFEST

__all__ = ["doctor", "report"]


def report(options: argparse.Namespace) -> int:
    """Run `levada report`: one page from run folders; its path is the last line. 1 if something is not on it."""
    from levada.report.page import write_page
    from levada.report.script import ABSENT, page_script
    from levada.runs import Run, find_runs
    from levada.runs.reader import require_readable, unlisted

    if options.output == "-":
        raise UsageError("-o must name a file, got '-', and no page is written to standard output. Give a path.")
    say = _by_address(options.runs)
    runs, errors = [], list[OSError]()
    found = [path for root in options.runs for path in find_runs(root, onerror=errors.append)]
    told = [unlisted(error) for error in errors]
    for path in found:
        try:
            require_readable(path)
            runs.append(Run(path))
        except (UsageError, OSError) as error:
            told.append(_unread(path, error))
    for sentence in told:
        say(f"{sentence} The page is without it.", stderr=True)
    unreadable = bool(told)
    if not runs and unreadable:
        raise UsageError(f"No run in {', '.join(options.runs)} can be read. Try: levada doctor {options.runs[0]}")
    parts = [] if runs else [path for root in options.runs for path in find_runs(root, whole=False)]
    if parts:
        lacks = LOG if (parts[0] / MANIFEST).is_file() else MANIFEST
        raise UsageError(
            f"{parts[0]}: a run is read by its {lacks}, and there is no such file. Try: levada doctor {parts[0]}"
        )
    if not runs:
        raise UsageError(f"There is no run in {', '.join(options.runs)}. Make one: levada run train.py")
    damaged, open_ends = write_page(runs, options.output)
    FINISHED.append(options.output)
    for where, damages in damaged.items():
        more = f" And {len(damages) - 1} more, on the page." if len(damages) > 1 else ""
        say(f"{where} is damaged: {damages[0]}{more} Look at all of it: levada doctor {where}", stderr=True)
    for where, recorded in open_ends.items():
        say(f"{where} is {recorded}.", stderr=True)
    if page_script() is None and any(run.manifest.kind != "study" for run in runs):
        say(ABSENT, stderr=True)
    print(Path(options.output).resolve())  # noqa: T201
    return FIRED if unreadable or damaged else QUIET


def doctor(options: argparse.Namespace) -> int:
    """Run `levada doctor`: of a run, or of all below a folder: 0 if all that was written is good, 1 if not."""
    from levada.runs import doctor as examine
    from levada.runs import find_runs, reseal
    from levada.runs.reader import unlisted

    if options.reseal and is_remote(options.run):
        raise UsageError(f"{options.run}: signals are sealed again where they lie, in a folder. Give the folder.")
    root, say = local(options.run), _by_address([options.run])
    errors = list[OSError]()
    found = find_runs(root, whole=False, onerror=errors.append)
    for error in errors:
        say(f"{unlisted(error)} Runs in it are not looked at.", stderr=True)
    if errors and not found:
        raise UsageError(f"{root}: there is no run in what can be listed of it.")
    healthy = not errors
    for path in found or [root]:
        try:
            for sentence in reseal(path) if options.reseal else ():
                say(f"{path}: {sentence}")
            examined = examine(path)
        except BrokenPipeError:
            raise
        except (UsageError, OSError) as error:
            if len(found) <= 1 and not errors:
                raise
            say(_unread(path, error), stderr=True)  # the others are looked at all the same
            healthy = False
            continue
        say(str(examined))
        if is_remote(options.run) and examined.open_end.startswith("not ended"):
            say(f"  {_AWAY}")
        healthy &= examined.healthy
    return QUIET if healthy else FIRED


_AWAY = (
    "what was not uploaded lies on the machine that writes it, in a folder of `$LEVADA_CACHE/staged` or "
    "`~/.cache/levada/staged`: levada doctor of that folder says how it is brought"
)


class _Says(Protocol):
    def __call__(self, text: str, *, stderr: bool = False) -> None: ...


def _by_address(asked: Iterable[str]) -> _Says:
    """Give a `tell` that names what was copied from an address by that address, which is what the user knows."""
    copies = {str(cache_folder("fetched", one)): one.rstrip("/") for one in asked if is_remote(one)}

    def say(text: str, *, stderr: bool = False) -> None:
        for copy, address in copies.items():
            text = text.replace(copy, address)
        tell(text, stderr=stderr)

    return say


def _unread(path: Path, error: UsageError | OSError) -> str:
    if isinstance(error, UsageError):
        return str(error)
    return f"{path}: {error.filename or 'a part of it'} cannot be used: {error.strerror or error}."
