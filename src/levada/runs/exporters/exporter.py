"""What an exporter is: where numbers and findings of a watched run go, in the tool that people look at already."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any, Protocol

from levada._errors import MissingExtraError, UsageError

__all__ = ["Exporter", "Told", "chosen", "import_tool", "loss_tag", "tag", "told"]


class Told(Protocol):
    """What of a finding is exported; `levada.diagnose.Finding` has it."""

    @property
    def rule(self) -> str:
        """The rule's name."""

    @property
    def severity(self) -> str:
        """One of "error", "warn" and "info"."""

    @property
    def status(self) -> str:
        """One of "fired", "clear" and "unknown"."""

    @property
    def claim(self) -> str:
        """One sentence with numbers."""


class Exporter(Protocol):
    """Takes the numbers of a run, in the order of its steps.

    Attributes:
        where: the folder or address at which they are found.
        hint: the command that shows them.
    """

    where: str
    hint: str

    def write(self, step: int, time: float, values: Mapping[str, float]) -> None:
        """Take numbers of one optimizer step, no earlier than the one before; `time` is in seconds since the epoch."""

    def tell(self, step: int, time: float, rule: str, text: str) -> None:
        """Take a finding."""

    def close(self) -> None:
        """Write what is left; again is harmless."""


def import_tool(module: str, package: str, purpose: str) -> ModuleType:
    """Import a tracker's package, or say what failed and how to install it.

    Args:
        module: dotted name of the module.
        package: what pip installs, perhaps with a least version.
        purpose: what needs it, as the subject of a sentence.

    Raises:
        MissingExtraError: if it is not installed, is older than that, or raises when it is imported, as where a
            package that it needs itself is missing.

    Example:
        >>> import_tool("a_tracker", "a-tracker", "This exporter")
        Traceback (most recent call last):
        levada._errors.MissingExtraError: This exporter needs a-tracker, which is not installed. Install it with:
        pip install a-tracker
    """
    name, _, least = package.partition(">=")
    again = f"pip install --upgrade {shlex.quote(package)}"
    try:
        there = version(name)
    except PackageNotFoundError:
        there = ""
    try:
        found = importlib.import_module(module)
    except Exception as error:
        top = module.partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and sys.modules.get(top) is None and _is_of(top, error.name):
            raise MissingExtraError(
                f"{purpose} needs {name}, which is not installed. Install it with: pip install {shlex.quote(package)}"
            ) from error
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise MissingExtraError(
            f"{purpose} needs {name}, and what is installed{f' ({there})' if there else ''} cannot be imported, by "
            f"{why}. Install one that works with: {again}"
        ) from error
    if there and _numbers(there) < _numbers(least):
        raise MissingExtraError(f"{purpose} needs {package}, got {there}. Install it with: {again}")
    return found


def _is_of(top: str, name: str | None) -> bool:
    """Whether a module is a package or lies in it."""
    return name is not None and name.partition(".")[0] == top


def _numbers(version: str) -> tuple[int, ...]:
    """Give the first two numbers of a version; () of none."""
    return tuple(int(one) for one in re.findall(r"\d+", version)[:2])


def chosen(names: Sequence[str], number: int) -> list[int]:
    """Choose the first site, the last, and others evenly between them.

    Args:
        names: of the sites, in order.
        number: how many at most.

    Raises:
        UsageError: if `number` is negative.

    Example:
        >>> chosen([f"layers.{i}" for i in range(12)], 4)
        [0, 4, 7, 11]
        >>> chosen(["layers.0", "layers.1"], 4)
        [0, 1]
    """
    if number < 0:
        raise UsageError(f"export: the number of sites must be at least 0, got {number}.")
    last = len(names) - 1
    if number >= len(names):
        return list(range(len(names)))
    if number < 2:
        return [0][:number]
    return [round(i * last / (number - 1)) for i in range(number)]


def tag(signal: str, site: str) -> str:
    """Give the name under which a signal of a site is exported, in characters that every tracker takes.

    Example:
        >>> tag("gradient_rms", "layers.0#2")
        'gradient_rms/layers.0_2'
    """
    return f"{signal}/{re.sub(r'[^0-9A-Za-z_. -]', '_', site)}"


def loss_tag(optimizers: str) -> str:
    """Give the name under which the losses of some of several optimizers are exported, beside "loss".

    Example:
        >>> loss_tag("optimizers 1 and 2 of 3 (Adam)")
        'loss_of/optimizers 1 and 2'
    """
    return tag("loss_of", optimizers.partition(" of ")[0])


def told(finding: Told | Mapping[str, Any]) -> tuple[str, str]:
    """Give a finding's rule, and as one line how severe it is (or that it is over) and its claim."""
    if isinstance(finding, Mapping):
        rule, severity, status, claim = (str(finding.get(key, "")) for key in ("rule", "severity", "status", "claim"))
    else:
        rule, severity, status, claim = finding.rule, finding.severity, finding.status, finding.claim
    return rule, f"{severity if status == 'fired' else status} {rule}: {claim}"


def settings(config: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Give a nested configuration as flat names and short texts."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}.{name}", text) for name, text in settings(value))
        else:
            yield key, str(value)[:500]
