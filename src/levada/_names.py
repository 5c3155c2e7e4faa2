"""Names: of blocks and files as they are shown, short and without what would move the cursor; of signals; of code."""

from __future__ import annotations

import difflib
import functools
import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, ParamSpec, TypeVar

from levada._errors import UnknownArgumentError

__all__ = [
    "CALLED",
    "NONFINITE",
    "OWN_SCALARS",
    "STATUSES",
    "bare_names",
    "load_on_use",
    "meant",
    "nearest",
    "printable",
    "span_name",
    "spelt",
]

P = ParamSpec("P")
R = TypeVar("R")

CALLED: Final[Mapping[str, str]] = {
    "healthy": "healthy",
    "warn": "warning",
    "error": "error",
    "info": "note",
    "unknown": "not judged",
}
"""What verdicts and severities are called wherever they are told; options and JSON have the keys."""

STATUSES: Final[Mapping[str, str]] = {"unknown": "not decided", "clear": "over"}
"""What a finding is called that does not speak."""

NONFINITE: Final = {"signal_rms": "nonfinite", "gradient_rms": "gradient_nonfinite"}
"""The signals that count what is not finite in another."""

OWN_SCALARS: Final = (
    "loss",
    "lr",
    "gradient_norm",
    "loss_scale",
    "constant_loss",
    "constant_of_batch",
    "uncleared_steps",
    "uncleared_of",
    "uncleared_optimizer",
    "alike_rows",
    "input_rms",
    "overhead",
    "nonfinite_rank",
    "gradient_nonfinite_rank",
)
"""The scalars of a sample that a watch measures; other names are of what the loop logged."""


def bare_names(names: Sequence[str]) -> list[str]:
    """Leave out the parts, between points, that all names begin and end with.

    Args:
        names: qualified names of modules.

    Example:
        >>> bare_names(["model.layers.0.block", "model.layers.1.block"])
        ['0', '1']
    """
    parts = [name.split(".") for name in names]
    least = min((len(one) for one in parts), default=1) - 1
    first = next((i for i in range(least) if len({one[i] for one in parts}) > 1), least)
    behind = next((i for i in range(least - first) if len({one[-1 - i] for one in parts}) > 1), least - first)
    return [".".join(one[first : len(one) - behind]) for one in parts]


def span_name(first: str, last: str) -> str:
    """Name a stretch of blocks; what the second name shares with the first, up to a point, is left out.

    Args:
        first: name of the first block.
        last: name of the last.

    Example:
        >>> span_name("layers.3", "layers.5"), span_name("layers.3", "head"), span_name("head", "head")
        ('layers.3 to 5', 'layers.3 to head', 'head')
    """
    if first == last:
        return first
    parts, others = first.split("."), last.split(".")
    shared = next(i for i, (a, b) in enumerate([*zip(parts, others, strict=False), ("", "?")]) if a != b)
    return f"{first} to {'.'.join(others[shared:]) or last}"


def nearest(name: str, known: Iterable[str]) -> str:
    """Give the name that was probably meant: the same in another case, or one that is spelt nearly so; else "".

    Args:
        name: what came.
        known: the names that there are.

    Example:
        >>> nearest("relu", ["ELU", "ReLU"]), nearest("--evry", ["--every", "--run"]), nearest("x", ["depth"])
        ('ReLU', '--every', '')
    """
    lowered: dict[str, str] = {}
    for one in known:
        lowered.setdefault(one.lower(), one)
    near = difflib.get_close_matches(name.lower(), lowered, n=1)
    return lowered[near[0]] if near else ""


def meant(name: str, known: Iterable[str]) -> str:
    """Ask for the name that was probably meant, as the end of a message; "" where none is near.

    Args:
        name: what came.
        known: the names that there are.

    Example:
        >>> meant("Small", ["smoke", "small"])
        " Did you mean 'small'?"
    """
    near = nearest(name, known)
    return f" Did you mean {near!r}?" if near else ""


def spelt(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function refuse an argument that it has not with the name that was probably meant.

    Args:
        function: one whose arguments are all named.

    Example:
        >>> @spelt
        ... def mean(values, *, weights=None): ...
        >>> mean([1.0], wieghts=[1.0])
        Traceback (most recent call last):
        levada._errors.UnknownArgumentError: mean: there is no argument 'wieghts'. Did you mean 'weights'?
    """
    code = function.__code__
    known = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in known:
                near = meant(name, known) or f" It takes {', '.join(known)}."
                raise UnknownArgumentError(f"{function.__name__}: there is no argument {name!r}.{near}")
        return function(*args, **kwargs)

    return call


def printable(text: str) -> str:
    r"""Replace what would move the cursor or change colours; a module, or a folder, may have any name.

    Args:
        text: one line.

    Example:
        >>> printable("layers.0\x1b[31m")
        'layers.0?[31m'
    """
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def load_on_use(package: str, homes: Mapping[str, Sequence[str]], name: str) -> Any:
    """Give a name of a package whose modules are imported when a name of theirs is used first.

    Args:
        package: its name.
        homes: module of it -> the names that it gives.
        name: what is asked for.

    Raises:
        AttributeError: if no module gives it.

    Example:
        >>> load_on_use("os", {"path": ("join",)}, "join")("a", "b")
        'a/b'
    """
    for module, names in homes.items():
        if name in names:
            return getattr(importlib.import_module(f"{package}.{module}"), name)
    known = [one for names in homes.values() for one in names]
    raise AttributeError(f"module {package!r} has no attribute {name!r}.{meant(name, known)}")
