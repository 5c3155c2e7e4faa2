"""What commands show and store: a console, a bar, files that are written whole."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from levada import __version__
from levada._errors import UsageError
from levada._names import printable
from levada.runs.address import require_local
from levada.runs.manifest import MANIFEST
from levada.targets import line_of

if TYPE_CHECKING:
    from rich.console import Console

    from levada.study import Standing


__all__ = [
    "FINISHED",
    "FIRED",
    "QUIET",
    "UNMEASURED",
    "console",
    "duration",
    "fails",
    "progress_bar",
    "require_writable",
    "store",
    "studies_bar",
    "tell",
    "to_json",
    "write",
]

QUIET, FIRED, UNMEASURED = 0, 1, 3  # exit codes
FINISHED: Final[list[str]] = []
"""The files that this command has written whole, for what an interruption says."""


def fails(verdict: str, fail_on: str) -> bool:
    """Return whether a verdict is at or above what the user asked to fail on."""
    failing = {"error": ("error",), "warn": ("error", "warn"), "never": ()}[fail_on]
    return verdict in failing


def store(
    told: dict[str, Any], options: argparse.Namespace, report: dict[str, Any], kept: Mapping[str, dict[str, Any]]
) -> None:
    """Write what was asked for: all of it as JSON and as a page, the check of the model as SARIF, checks as runs.

    Args:
        told: all of it.
        options: of the command line.
        report: the check of the model as it is.
        kept: the checks to be kept as runs, by what their folders end with; "" is that of --run itself.
    """
    if options.json == "-":
        sys.stdout.write(to_json(told))
    elif options.json:
        write(Path(options.json), to_json(told))
    if options.sarif:
        from levada.report.sarif import to_sarif

        write(Path(options.sarif), to_json(to_sarif({**report, "line": line_of(options.model)})))
    if options.html:
        from levada.report import write_html

        write_html([told], Path(options.html))
        FINISHED.append(options.html)
    if options.run:
        from levada.runs import RunWriter

        for end, one in kept.items():
            path = Path(options.run, end)
            name = f"{options.model}, {end}" if end else options.model
            with RunWriter.create(path, kind="check", name=name, config=_config(options)) as writer:
                writer.append("report", report=one)
            FINISHED.append(str(path))


def _config(options: argparse.Namespace) -> dict[str, Any]:
    return {"command": ["levada", *sys.argv[1:]], "levada": __version__, "seed": options.seed}


def to_json(value: Any) -> str:
    """Return JSON without NaN and infinities."""
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def require_writable(options: argparse.Namespace) -> None:
    """Raise before anything is computed if what was asked for cannot be written."""
    for option in ("json", "sarif", "html", "out"):
        name = getattr(options, option, None)
        if name is None or (option, name) == ("json", "-"):
            continue
        path = Path(name)
        rule = f"--{option} must name a file in a folder that can be written to, got {name!r}"
        if name == "-":
            raise UsageError(f"{rule}. Standard output is for --json alone: give the path of a file.")
        if path.is_dir():
            raise UsageError(f"{rule}, which is a folder. Give the path of a file in it.")
        if not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
            raise UsageError(f"{rule}. Make the folder {str(path.parent)!r}, or give another path.")
    run = getattr(options, "run", None)
    if run is not None:
        require_local("--run must name a folder of this machine", run, "Keep it in a folder, and copy that.")
        _require_free(Path(run), run)


def _require_free(path: Path, run: str) -> None:
    """Raise unless a new run can be kept there."""
    rule = f"--run must name a folder that does not exist yet, got {run!r}"
    if run == "-":
        raise UsageError(f"{rule}, and no run is written to standard output. Give a path.")
    if (path / MANIFEST).exists():
        raise UsageError(f"{rule}, which is a run. Name another, or look at that one: levada report {run}")
    if path.exists():
        raise UsageError(f"{rule}, which is {'there' if path.is_dir() else 'a file'}. Name another.")
    there = next(one for one in path.absolute().parents if one.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        what = "cannot be written to" if there.is_dir() else "is a file"
        raise UsageError(
            f"--run must name a folder that can be made, got {run!r}: {str(there)!r} {what}. Name another."
        )


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    # A reader never sees half a file, and a full disk leaves the old one.
    temporary: Path | None = None
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            file.write(text)
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # a temporary file is its owner's alone
        temporary.replace(path)
        FINISHED.append(str(path))
    except OSError as error:
        raise UsageError(f"{str(path)!r} cannot be written: {error.strerror or error}.") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def tell(text: str, *, stderr: bool = False) -> None:
    """Print text that holds names, which nobody reads as markup and no width breaks."""
    stream = sys.stderr if stderr else sys.stdout
    stream.write("".join(f"{printable(line)}\n" for line in text.split("\n")))


@functools.cache
def console(*, stderr: bool = False) -> Console:
    """Return the terminal: one for each stream."""
    from rich.console import Console

    class Terminal(Console):
        def on_broken_pipe(self) -> None:  # rich would exit, as if the code that was checked had
            raise BrokenPipeError

    return Terminal(stderr=stderr)


@contextlib.contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on standard error; yield what moves it: `(done, total)`."""
    with _bar(title, 40) as move:
        yield lambda done, total: move(done, total, "")


@contextlib.contextmanager
def studies_bar(title: str) -> Iterator[Callable[[Standing], None]]:
    """Show a bar for all studies together on standard error; yield what moves it."""

    def show(standing: Standing) -> None:
        parts = [f"{standing.studies_done}/{standing.studies} studies"] if standing.studies > 1 else []
        if standing.seconds_left and standing.results_done < standing.results:
            parts.append(f"about {duration(standing.seconds_left)} left")
        move(standing.results_done, standing.results, ", ".join(parts))

    with _bar(title, 20) as move:
        yield show


@contextlib.contextmanager
def _bar(title: str, width: int) -> Iterator[Callable[[int, int, str], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(width), MofNCompleteColumn(), TimeElapsedColumn())
    bars = Progress(*columns, TextColumn("{task.fields[told]}"), console=console(stderr=True))
    bar = bars.add_task(title, total=None, told="")

    started = False

    def move(done: int, total: int, told: str) -> None:
        nonlocal started
        if not started:
            bars.start()
            started = True
        bars.update(bar, completed=done, total=total, told=told)

    try:
        yield move
    finally:
        if started:
            bars.stop()


def duration(seconds: float) -> str:
    """Write a span of time in its largest fitting unit.

    Example:
        >>> duration(3.6), duration(200), duration(9000)
        ('4 s', '3 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.3g} h"
