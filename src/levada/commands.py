"""What each command of the command line does: load the targets, call the library, show and store the result."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from levada import __version__
from levada._errors import MeasurementError, UsageError
from levada.targets import call, load

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["COMMANDS"]

QUIET, FIRED, UNMEASURED = 0, 1, 3


def check(options: argparse.Namespace) -> int:
    """Run `levada check`: build the model from its target, check it, show and store the report."""
    import torch

    import levada

    _require_writable(options)
    _require_seed(options.seed)
    # What the user's code prints must not get between the lines of --json -.
    with contextlib.redirect_stdout(sys.stderr), _console(stderr=True).status(f"checking {options.model}"):
        torch.manual_seed(options.seed)
        model, batch = _model(options.model), _batch(options.batch)
        report = levada.check(
            model,
            batch,
            loss=_named(options.loss),
            optimizer=_named(options.optimizer),
            lr=options.lr,
            seed=options.seed,
            budget=options.budget,
        )
    told = {**report.to_dict(), "model": options.model}
    if options.json != "-":
        from levada.report.terminal import print_check

        print_check(told, _console())
    _store(told, options, told)
    if told["verdict"] == "unknown":
        return UNMEASURED
    return FIRED if _fails(told["verdict"], options.fail_on) else QUIET


def fix(options: argparse.Namespace) -> int:
    """Run `levada fix`: build the model, try what repairs it, show and store what helps."""
    import torch

    import levada

    _require_writable(options)
    _require_seed(options.seed)
    with contextlib.redirect_stdout(sys.stderr), _progress(f"trying remedies for {options.model}") as progress:
        torch.manual_seed(options.seed)
        model, batch = _model(options.model), _batch(options.batch)
        fixed = levada.fix(
            model,
            batch,
            budget=options.budget,
            trials=options.trials,
            steps=options.steps,
            progress=progress,
            loss=_named(options.loss),
            optimizer=_named(options.optimizer),
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

        print_fix(told, _console())
    if options.out and told["patch"]:
        _write(Path(options.out), f"{told['diff'] or told['patch']}".rstrip("\n") + "\n")
    _store(told, options, told["before"])
    if told["outcome"] == "unknown":
        return UNMEASURED
    fired = {finding.rule for finding in fixed.before.findings if finding.status == "fired"}
    failing = _fails(fixed.before.verdict, options.fail_on)
    failing = failing or (options.fail_on != "never" and bool(set(fixed.causes) - fired))
    return FIRED if failing and told["outcome"] in ("helps", "not repaired") else QUIET


def study(options: argparse.Namespace) -> int:
    """Run `levada study`: compute what is missing, decide the claims, show them."""
    from levada.report.terminal import print_claims
    from levada.studies import run_study
    from levada.study import failures

    code = QUIET
    settings = dict(_setting(text) for text in options.set)
    for name in options.names:
        with _progress(f"{name} {options.scale}") as progress:
            run = run_study(
                name, scale=options.scale, out=options.out, seeds=options.seeds, settings=settings, progress=progress
            )
        print_claims(run, _console())
        _console().print(str(run.path), style="dim", highlight=False, soft_wrap=True)
        failed = failures(run)
        if failed:
            first = " ".join(str(next(iter(failed.values()))["error"]).split())
            sys.stderr.write(f"levada study: {len(failed)} results of {name} failed, the first with: {first}\n")
            code = UNMEASURED
    return code


def report(options: argparse.Namespace) -> int:
    """Run `levada report`: one page from run folders; its path is the last line."""
    from levada.report import write_html
    from levada.runs import Run, find_runs

    runs = [Run(path) for root in options.runs for path in find_runs(Path(root))]
    for run in runs:
        if run.damage is not None:
            _console(stderr=True).print(
                f"{run.path}: {run.damage.message}; the page shows what is readable.", highlight=False
            )
    if not runs:
        raise UsageError(f"There is no run in {', '.join(options.runs)}. Make one: levada check MODEL --run DIR")
    write_html(runs, Path(options.output))
    print(Path(options.output).resolve())  # noqa: T201
    return QUIET


def doctor(options: argparse.Namespace) -> int:
    """Run `levada doctor`: 0 if every frame is good, 1 if something was lost."""
    from levada.runs import doctor as examine

    examined = examine(Path(options.run))
    _console().print(str(examined), highlight=False)
    return QUIET if examined.healthy else FIRED


def bench(options: argparse.Namespace) -> int:
    """Run `levada bench`: each benchmark of the checkout in the current folder, in a process of its own."""
    folder = Path("benchmarks")
    if not (folder / "__init__.py").exists():
        raise UsageError("Benchmarks are part of the repository, not of the package: run this in a checkout of levada.")
    known = sorted(_benchmarks(folder))
    for name in options.names:
        if name not in known:
            raise UsageError(f"There is no benchmark {name!r}. There are: {', '.join(known)}.")
    if not options.names:
        print("\n".join(known))  # noqa: T201
    for name in options.names:
        words = [sys.executable, "-m", f"benchmarks.{name}", *(["--quick"] if options.quick else [])]
        code = subprocess.run(words, check=False).returncode
        if code:
            raise MeasurementError(f"{name} ended with exit code {code}.")
    return QUIET


def _benchmarks(folder: Path) -> Iterator[str]:
    """Yield the names of what can be run: modules that say so, and packages with a `__main__`."""
    for path in folder.glob("*.py"):
        if '__name__ == "__main__"' in path.read_text(encoding="utf-8"):
            yield path.stem
    for path in folder.glob("*/__main__.py"):
        yield path.parent.name


def list_names(options: argparse.Namespace) -> int:
    """Run `levada list`: names, one a line, each with its first sentence; whole lines where no terminal bounds them."""
    rows = _inventory(options.kind)
    if not _console().is_terminal:
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())  # noqa: T201
        return QUIET
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True, style="bold")
    for _ in rows[0][2:]:
        table.add_column(no_wrap=True)
    table.add_column()
    for row in rows:
        table.add_row(*row)
    _console().print(table)
    return QUIET


COMMANDS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "check": check,
    "fix": fix,
    "study": study,
    "report": report,
    "doctor": doctor,
    "bench": bench,
    "list": list_names,
}


_STARTS = {"exact": "can start as residual", "normalised": "nearly as residual", "none": "-"}


def _inventory(kind: str) -> list[tuple[str, ...]]:
    """Return a row for each name: the name first, its sentence last."""
    if kind == "connections":
        from levada import connections
        from levada.connection import Connection

        listed = [c for c in vars(connections).values() if isinstance(c, type) and issubclass(c, Connection)]
        return sorted((c.__name__, _STARTS[c.residual_start], _first_line(c)) for c in listed)
    if kind == "diagnostics":
        from levada.diagnose import DIAGNOSTICS

        return [(name, _first_line(rule)) for name, rule in DIAGNOSTICS.items()]
    if kind == "remedies":
        from levada.diagnose import REMEDIES

        return [(name, remedy.sentence) for name, remedy in REMEDIES.items()]
    if kind == "studies":
        from levada.studies import STUDIES

        return [(name, known.title) for name, known in STUDIES.items()]
    from levada.initialise import INITIALISATIONS

    return [(name, _first_line(function)) for name, function in INITIALISATIONS.items()]


def _first_line(documented: object) -> str:
    return (documented.__doc__ or "").strip().split("\n")[0].replace("`", "")


def _model(target: str) -> Any:
    from torch import nn

    found = load(target)
    model = found if isinstance(found, nn.Module) else None
    if model is None and callable(found):
        model = call(target, found)
    if not isinstance(model, nn.Module):
        came = type(found if model is None else model).__name__
        raise UsageError(f"MODEL must name an nn.Module or a function that returns one, and {target} gave {came}.")
    return model


def _batch(target: str | None) -> Any:
    if target is None:
        return None
    found = load(target)
    return call(target, found) if callable(found) else found


def _named(name: str | None) -> Any:
    return load(name) if name is not None and ":" in name else name


def _setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise UsageError(f"--set takes KEY=VALUE, got {text!r}.")
    return key, value


def _require_seed(seed: int) -> None:
    if not 0 <= seed < 2**63:
        raise UsageError(f"--seed must be in [0, 2^63), got {seed}.")


def _fails(verdict: str, fail_on: str) -> bool:
    failing = {"error": ("error",), "warn": ("error", "warn"), "never": ()}[fail_on]
    return verdict in failing


def _store(told: dict[str, Any], options: argparse.Namespace, report: dict[str, Any]) -> None:
    """Write what was asked for: all of it as JSON and as a page, the check of the model as SARIF and as a run."""
    if options.json == "-":
        sys.stdout.write(_json(told))
    elif options.json:
        _write(Path(options.json), _json(told))
    if options.sarif:
        from levada.report.sarif import to_sarif

        _write(Path(options.sarif), _json(to_sarif(report)))
    if options.html:
        from levada.report import write_html

        write_html([told], Path(options.html))
    if options.run:
        from levada.runs import RunWriter

        with RunWriter.create(Path(options.run), kind="check", name=options.model, config=_config(options)) as writer:
            writer.append("report", report=report)


def _diff(model: str, loss: str | None, change: Any) -> str | None:
    """Return a change as a diff of the files that make model and loss, with what else is to be changed above."""
    from levada.diagnose.source import diffs
    from levada.targets import source

    built = source(model)
    judging = source(loss) if loss is not None and ":" in loss else (None, "")
    return diffs(change, built, judging, Path.cwd())


def _config(options: argparse.Namespace) -> dict[str, Any]:
    return {"command": ["levada", *sys.argv[1:]], "levada": __version__, "seed": options.seed}


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def _require_writable(options: argparse.Namespace) -> None:
    """Raise before anything is computed if what was asked for cannot be written."""
    for option in ("json", "sarif", "html", "out"):
        name = getattr(options, option, None)
        if name is None or (option, name) == ("json", "-"):
            continue
        path = Path(name)
        if name == "-" or path.is_dir() or not os.access(path.parent, os.W_OK):
            raise UsageError(f"--{option} must name a file in a folder that can be written to, got {name!r}.")
    if options.run is not None and Path(options.run).exists():
        raise UsageError(f"--run must name a folder that does not exist yet, got {options.run!r}.")


def _write(path: Path, text: str) -> None:
    # A reader never sees half a file, and a full disk leaves the old one.
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            file.write(text)
        mask = os.umask(0)
        os.umask(mask)
        Path(file.name).chmod(0o666 & ~mask)  # a temporary file is its owner's alone
        Path(file.name).replace(path)
    except OSError as error:
        raise UsageError(f"{str(path)!r} cannot be written: {error.strerror or error}.") from error


@functools.cache
def _console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    class Terminal(Console):
        def on_broken_pipe(self) -> None:  # rich would exit, as if the code that was checked had
            raise BrokenPipeError

    return Terminal(stderr=stderr)


@contextlib.contextmanager
def _progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on standard error; yield what moves it: `(done, total)`."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bars = Progress(*columns, console=_console(stderr=True))
    bar = bars.add_task(title, total=None)

    started = False

    def move(done: int, total: int) -> None:
        nonlocal started
        if not started:
            bars.start()
            started = True
        bars.update(bar, completed=done, total=total)

    try:
        yield move
    finally:
        if started:
            bars.stop()
