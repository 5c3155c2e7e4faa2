"""`levada bench`."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from levada._errors import MeasurementError, UsageError
from levada._names import meant
from levada.commands.output import QUIET

__all__ = ["bench"]


def bench(options: argparse.Namespace) -> int:
    """Run `levada bench`: each benchmark of the checkout in the current folder, in a process of its own."""
    folder = Path("benchmarks")
    if not (folder / "__init__.py").exists():
        raise UsageError("Benchmarks are part of the repository, not of the package: run this in a checkout of levada.")
    known = sorted(_benchmarks(folder))
    for name in options.names:
        if name not in known:
            raise UsageError(f"There is no benchmark {name!r}. There are: {', '.join(known)}.{meant(name, known)}")
    if not options.names:
        print("\n".join(known))  # noqa: T201
    for name in options.names:
        words = [sys.executable, "-m", f"benchmarks.{name}", *(["--quick"] if options.quick else [])]
        code = _run(words)
        if code:
            raise MeasurementError(f"{name} ended with exit code {code}.")
    return QUIET


def _run(words: Sequence[str]) -> int:
    """Run a program and return its exit code; Ctrl-C ends it, and what it has started, before it prints a traceback."""
    with subprocess.Popen(words, start_new_session=True) as process:
        try:
            return process.wait()
        except BaseException:
            if sys.platform == "win32":
                process.terminate()
            else:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)
            raise


def _benchmarks(folder: Path) -> Iterator[str]:
    """Yield the names of what can be run: modules that say so, and packages with a `__main__`."""
    for path in folder.glob("*.py"):
        if '__name__ == "__main__"' in path.read_text(encoding="utf-8"):
            yield path.stem
    for path in folder.glob("*/__main__.py"):
        yield path.parent.name
