"""Find the object that a target such as `path/to/file.py:name` or `package.module:name` names."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from levada._errors import UsageError
from levada._names import meant

__all__ = ["call", "line_of", "load", "require", "source"]

_TOLD: Final = 8  # names that a message tells where none is near


def load(target: str) -> Any:
    """Import the file or module that a target names and return the object.

    A file's folder, or the current folder for a module, is put on the import path, as `python file.py` would.

    Args:
        target: `path/to/file.py:name` or `package.module:name`; the name may have dots.

    Returns:
        The object, not called.

    Raises:
        UsageError: if the target has no name, the file or module cannot be found or imported, or the name is not in it.

    Example:
        >>> load("math:pi")
        3.141592653589793
    """
    place, name = _parts(target)
    found: Any = _load_file(Path(place)) if place.endswith(".py") else _load_module(place)
    for part in name.split("."):
        if not hasattr(found, part):
            hint = meant(part, [name for name in _names(found) if not name.startswith("_")])
            raise UsageError(f"{place} has no name {part!r}.{hint or _own(found)}")
        found = getattr(found, part)
    return found


def _names(found: Any) -> dict[str, Any]:
    return getattr(found, "__dict__", {})  # an int has none


def _own(found: Any) -> str:
    """Say which functions, classes and models a module or class defines itself; what it imports is not meant."""
    here = getattr(found, "__name__", "") if isinstance(found, ModuleType) else getattr(found, "__module__", "")
    public = {name: one for name, one in _names(found).items() if callable(one) and not name.startswith("_")}
    own = [
        name
        for name, one in public.items()
        if getattr(one, "__module__", None) == here or not hasattr(one, "__name__")  # a model that was built there
    ]
    if not own:
        return " Check the spelling."
    more = f" and {len(own) - _TOLD} more" if len(own) > _TOLD else ""
    return f" It defines {', '.join(own[:_TOLD])}{more}."


def require(target: str) -> None:
    """Raise if a target cannot be one, or names a file or a package that is not there; nothing is imported.

    Args:
        target: as for `load`.

    Raises:
        UsageError: if so.

    Example:
        >>> require("math:pi")
        >>> require("nowhere.py:build")
        Traceback (most recent call last):
        levada._errors.UsageError: There is no file 'nowhere.py'. Give the path from the current folder, or ...
    """
    place, _ = _parts(target)
    if place.endswith(".py"):
        _require_file(Path(place))
        return
    if Path(place).is_dir() and not (Path(place) / "__init__.py").is_file():
        raise UsageError(f"A target names a file or a module, got {target!r}, of a folder. Name a file in it.")
    package = place.partition(".")[0]
    try:
        found = package in sys.modules or importlib.util.find_spec(package) or PathFinder.find_spec(package, [""])
    except ValueError:  # an empty name, or a module that has no specification
        found = None
    if not found:
        raise UsageError(_no_module(place))


def call(target: str, found: Callable[[], Any]) -> Any:
    """Call what a target named, without arguments.

    Args:
        target: the target, for messages.
        found: the function.

    Returns:
        What the function returns.

    Raises:
        UsageError: if the function raises or needs arguments; the cause is chained.

    Example:
        >>> call("here:one", lambda: 1)
        1
    """
    try:
        return found()
    except (Exception, SystemExit) as error:
        raise UsageError(f"Calling {target} must work without arguments, but it raised {_told(error)}.") from error


def source(target: str) -> tuple[Path | None, str]:
    """Return the file that a target's name is looked up in, and the name.

    Args:
        target: one that was loaded.

    Returns:
        The file, or None if the module has none that Python reads as text; and the name.

    Example:
        >>> source("math:pi")
        (None, 'pi')
    """
    place, _, name = target.rpartition(":")
    file = place if place.endswith(".py") else getattr(sys.modules.get(place), "__file__", None)
    return (Path(file).resolve() if file and file.endswith(".py") else None), name


def line_of(target: str) -> int | None:
    """Return the line at which the function or class begins that a target names; None where that is not known.

    Args:
        target: one of a file, that was loaded.

    Returns:
        The line, counted from 1; of an object, that of the assignment of its name at the top of the file.
    """
    place, name = _parts(target)
    if not place.endswith(".py"):
        return None
    try:
        body = ast.parse(Path(place).read_text(encoding="utf-8")).body
    except (OSError, ValueError, SyntaxError):
        return None
    found: ast.stmt | None = None
    for part in name.split("."):
        found = next((one for one in reversed(body) if part in _bound(one)), None)
        if found is None:
            return None
        body = found.body if isinstance(found, ast.ClassDef) else []
    return found.lineno if found is not None else None


def _bound(statement: ast.stmt) -> list[str]:
    """Return the names that a statement gives to a function, a class or an object."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    if isinstance(statement, ast.Assign):
        return [name.id for target in statement.targets for name in ast.walk(target) if isinstance(name, ast.Name)]
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
        return [statement.target.id]
    return []


def _parts(target: str) -> tuple[str, str]:
    """Return where a target's name is looked up, and the name."""
    place, colon, name = target.rpartition(":")
    if not (colon and place and name):
        came = f"{target!r}, a folder" if Path(target).is_dir() else repr(target)
        what = "Name a file, ':'" if Path(target).is_dir() else "Add ':'"
        raise UsageError(
            f"A target is path/to/file.py:name or package.module:name, got {came}. {what} and the name of a function."
        )
    return place, name


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise UsageError(f"There is no file {str(path)!r}. Give the path from the current folder, or an absolute one.")


def _no_module(name: str) -> str:
    return f"There is no module {name!r}. Is its package installed, or the current folder its root?"


def _load_file(path: Path) -> Any:
    _require_file(path)
    # One file that several targets name is imported once: its models and batches then share what they define.
    name = f"_levada_target_{path.resolve()}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{str(path)!r} cannot be imported as a Python file.")
    _put_on_path(path.resolve().parent)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UsageError(f"Importing {str(path)!r} raised {_told(error)}.") from error
    return module


def _load_module(name: str) -> Any:
    _put_on_path(Path.cwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise UsageError(_no_module(name)) from error
        raise UsageError(f"Importing {name} raised {_told(error)}.") from error
    except (Exception, SystemExit) as error:
        raise UsageError(f"Importing {name} raised {_told(error)}.") from error


def _put_on_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _told(error: BaseException) -> str:
    text = " ".join(str(error).split())
    told = f"{type(error).__name__}: {text.rstrip('.')}" if text else type(error).__name__
    # A script runs whole when it is imported, and its parser then sees the words that levada was given.
    return (
        f"{told}; put what it runs as a script behind if __name__ == '__main__'"
        if isinstance(error, SystemExit)
        else told
    )
