"""Kernels that another package compiles: imported late, and given up, with a word, where it cannot make them."""

from __future__ import annotations

import functools
import importlib
import sys
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, Final, ParamSpec, TypeVar

__all__ = ["import_kernels", "is_given_up", "or_reference"]

_P = ParamSpec("_P")
_R = TypeVar("_R")
_NUMBA: Final = "numba"
_given_up: Final[set[str]] = set()


@functools.cache
def import_kernels(module: str, package: str) -> ModuleType | None:
    """Return a module of kernels; None where the package that compiles them is not installed.

    None, too, where loops cannot be made with the Numba that is installed: they use inner names of it, and no version
    is too new to be installed.

    Args:
        module: dotted name.
        package: what it imports from outside.
    """
    if is_given_up(package):
        return None
    try:
        return importlib.import_module(module)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == package:
            return None
        if package != _NUMBA:
            raise
        _give_up(error)
        return None


def is_given_up(package: str = _NUMBA) -> bool:
    """Return whether kernels of a package failed to load or to compile: none is tried again in this process.

    Args:
        package: that compiles them.
    """
    return package in _given_up


def or_reference(kernel: Callable[_P, _R]) -> Callable[_P, _R]:
    """Return a kernel that is called again, without loops, where Numba cannot compile these.

    Args:
        kernel: for a CPU; it asks `import_kernels` for its loops, and takes the reference without.
    """

    @functools.wraps(kernel)
    def call(*given: _P.args, **named: _P.kwargs) -> _R:
        try:
            return kernel(*given, **named)
        except Exception as error:
            if isinstance(error, MemoryError) or is_given_up() or not _is_of_numba(error):
                raise
            _give_up(error)
            return kernel(*given, **named)

    return call


def _is_of_numba(error: Exception) -> bool:
    """Return whether a compiler was at work: what it has compiled has no frame of Python, and raises nothing."""
    return any(name.partition(".")[0] in {_NUMBA, "llvmlite"} for name in _modules(error))


def _modules(error: Exception) -> Iterator[str]:
    trace = error.__traceback__
    while trace is not None:
        yield str(trace.tb_frame.f_globals.get("__name__", ""))
        trace = trace.tb_next


def _give_up(error: Exception) -> None:
    _given_up.add(_NUMBA)
    import_kernels.cache_clear()
    version: Any = getattr(sys.modules.get(_NUMBA), "__version__", "of an unknown version")
    said = next(iter(str(error).strip().splitlines()), "")
    warnings.warn(
        f"levada's loops for a CPU cannot be made with Numba {version} ({type(error).__name__}: {said}): the "
        "references run, by plain operations, which are slower. Install another version of Numba.",
        RuntimeWarning,
        stacklevel=3,
    )
