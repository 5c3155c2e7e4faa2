"""Run a training script as python would, without torch before the script wants it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pkgutil
import runpy
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.machinery import PathFinder, SourceFileLoader
from io import open_code
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Final, final

from levada._errors import UsageError
from levada._termination import terminable
from levada.runs.manifest import MANIFEST

__all__ = ["Script", "require_script", "run_script"]

INTERRUPTED: Final = 130
_LIBRARY: Final = str(Path(__file__).parents[1]) + os.sep
_WATCHING: Final = str(Path(__file__).parents[1] / "watching") + os.sep


@final
@dataclass(frozen=True, slots=True)
class Script:
    """What python is to run as `__main__`.

    Attributes:
        target: path of a file, or of a folder or archive that holds `__main__.py`; with `module`, a module's name.
        arguments: the words after it.
        module: whether `target` is the name of a module, as after `python -m`.
    """

    target: str
    arguments: tuple[str, ...] = ()
    module: bool = False

    @property
    def name(self) -> str:
        """A short name: of `src/train.py` and of `package.train` it is `train`."""
        if self.module:
            return self.target.rpartition(".")[2]
        return Path(os.path.realpath(self.target)).stem

    def require(self) -> None:
        """Raise unless there is something to run.

        Raises:
            UsageError: if there is no such file or module.
        """
        if not self.module:
            path = Path(self.target)
            if not path.exists():
                raise UsageError(f"run: SCRIPT must be a file that exists, got {self.target!r}. Check the path.")
            if path.is_dir() and (path / MANIFEST).is_file():
                look = f"Look at it by levada report {path}, or name its folder behind --run to keep one."
                raise UsageError(f"run: SCRIPT must be a Python file, got {self.target!r}, which is a run. {look}")
            if path.is_dir() and not any(path.glob("__main__.py*")):
                raise UsageError(
                    f"run: SCRIPT must be a Python file, or a folder with a __main__.py, got {self.target!r}, a folder "
                    "without one. Give a file in it."
                )
            if path.suffix == ".toml":
                advice = f"To train as that says: levada train {path}"
                raise UsageError(f"run: SCRIPT must be a Python file, got {self.target!r}. {advice}")
            return
        if not _is_module(self.target):
            hint = "Leave out .py." if self.target.endswith(".py") else "Check the name, and the folder you are in."
            raise UsageError(f"run: -m takes the name of a module that can be imported, got {self.target!r}. {hint}")


def require_script(script: Script) -> None:
    """Raise unless there is something to run, as `run_script` will look for it.

    Args:
        script: what is to be run.

    Raises:
        UsageError: if there is no such script or module.
    """
    with _main(script):
        pass


def run_script(script: Script, watches: AbstractContextManager[Any]) -> int:
    """Run a script as python would, with `watches` open meanwhile.

    The script finds `sys.argv`, `sys.path[0]`, `__file__` and `__main__` as if python had been given it. What it raises
    is printed as python prints it, with the script's frames alone, after the watches are closed.

    Args:
        script: what to run.
        watches: opened for the time of the run.

    Returns:
        The script's exit code: that of `sys.exit`, 1 after an exception, 130 after Ctrl-C, 143 after a SIGTERM that it
        does not handle, else 0.

    Raises:
        UsageError: if there is no such script or module.
    """
    with _main(script) as call:
        try:
            with terminable(), watches:
                call()
        except SystemExit as stop:
            return _exit_code(stop)
        except BaseException as error:
            error.__traceback__ = _without_ours(error.__traceback__, isinstance(error, KeyboardInterrupt))
            return _told_by_hook(error)
    return 0


def _told_by_hook(error: BaseException) -> int:
    """Print what the script raised as python does at its end, and give the exit code."""
    from levada.watching.loop.telling import say

    with contextlib.suppress(Exception):  # the script may have closed it
        sys.stdout.flush()
    hook = getattr(sys, "excepthook", None)
    try:
        if hook is None:
            say("sys.excepthook is missing")
            sys.__excepthook__(type(error), error, error.__traceback__)
        else:
            hook(type(error), error, error.__traceback__)
    except SystemExit as stop:
        return _exit_code(stop)
    except BaseException as second:
        say("Error in sys.excepthook:")
        second = second.with_traceback(_without_ours(second.__traceback__, False))
        second.__context__ = None  # which is the first, printed below
        sys.__excepthook__(type(second), second, second.__traceback__)
        say("\nOriginal exception was:")
        sys.__excepthook__(type(error), error, error.__traceback__)
    return INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1


def _exit_code(stop: SystemExit) -> int:
    if stop.code is None:
        return 0
    if isinstance(stop.code, int):
        return stop.code
    sys.stderr.write(f"{stop.code}\n")
    return 1


@contextlib.contextmanager
def _main(script: Script) -> Iterator[Callable[[], object]]:
    """Set up what python sets up before it runs a script, and give what runs it."""
    before = sys.argv, list(sys.path), sys.modules["__main__"]
    # `python -m levada` has the working directory first in the path, the command `levada` its own folder.
    if not sys.flags.safe_path:
        sys.path[:1] = [_path(script)]
    try:
        script.require()
        sys.argv = [script.target, *script.arguments]
        yield _call(script)
    finally:
        sys.argv, sys.path[:], sys.modules["__main__"] = before[0], before[1], before[2]


def _call(script: Script) -> Callable[[], object]:
    if script.module:
        return lambda: runpy.run_module(script.target, run_name="__main__", alter_sys=True)
    path = str(Path.cwd() / script.target)
    return lambda: _run_folder(path) if _holds_main(script.target) else _run_file(path)


def _is_module(name: str) -> bool:
    """Whether there is a module, found without running the packages that it is in, unless they say where it is.

    A package that raises is there: the run raises the same, which is then told as python tells it.
    """
    whole, places = "", None
    for part in name.split("."):
        if not part or (whole and places is None):
            return False  # a relative name, or one in a module that is no package
        whole = f"{whole}.{part}" if whole else part
        try:
            found = PathFinder.find_spec(whole, places) if places is not None else importlib.util.find_spec(whole)
            found = found or (importlib.util.find_spec(whole) if places is not None else None)
        except ModuleNotFoundError as error:
            return error.name is not None and not name.startswith(error.name)
        except (Exception, SystemExit):
            return places is not None
        if found is None:
            return False
        places = found.submodule_search_locations
    return True


def _holds_main(target: str) -> bool:
    return Path(target).is_dir() or zipfile.is_zipfile(target)


def _path(script: Script) -> str:
    """Give the first entry that python would give the path."""
    if script.module:
        return str(Path.cwd())
    return str(Path.cwd() / script.target if _holds_main(script.target) else Path(script.target).resolve().parent)


def _run_folder(path: str) -> None:
    finder = pkgutil.get_importer(path)
    spec = finder.find_spec("__main__", None) if finder is not None else None
    if spec is None or spec.loader is None:
        raise ImportError(f"can't find '__main__' module in {path!r}")  # as python says it
    sys.modules["__main__"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


def _run_file(path: str) -> None:
    # Not `runpy.run_path`, which changes `sys.argv[0]` and drops the module while threads may still use it.
    module = ModuleType("__main__")
    module.__file__ = path
    module.__loader__ = SourceFileLoader("__main__", path)
    module.__dict__.update(__builtins__=__builtins__, __cached__=None)
    sys.modules["__main__"] = module
    with open_code(path) as file:
        code = compile(file.read(), path, "exec", dont_inherit=True)
    exec(code, module.__dict__)


def _without_ours(trace: TracebackType | None, interrupted: bool) -> TracebackType | None:
    """Leave out the frames that python would not have: those before the script's, and those of the watch.

    The place of a failure stays, whoever's it is; an interruption may come anywhere, also where the watch writes.
    """
    frames = []
    while trace is not None:
        frames.append(trace)
        trace = trace.tb_next
    names = [one.tb_frame.f_globals.get("__name__") for one in frames]
    files = [one.tb_frame.f_code.co_filename for one in frames]
    begin = names.index("__main__") if "__main__" in names else None
    if begin is None:  # what was run is a module, and a package that it is in raised
        theirs = (i for i, file in enumerate(files) if not file.startswith((_LIBRARY, "<frozen ")))
        begin = next(theirs, None)
    if begin is None:
        return None
    kept, within = [], False
    for one in frames[begin:]:
        name = one.tb_frame.f_code.co_filename
        within = name.startswith(_WATCHING) or (within and name.startswith(_LIBRARY))  # what the watch calls is its own
        if not within or (one is frames[-1] and not interrupted):
            kept.append(one)
    made: TracebackType | None = None
    for one in reversed(kept):
        made = TracebackType(made, one.tb_frame, one.tb_lasti, one.tb_lineno)
    return made
