"""The pytest fixture `assert_trainable`: a test that fails where a model's learning signal dies or explodes.

pytest loads this module by the entry point that the package installs. It imports neither torch nor the rest of levada
before a test asks for the fixture.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from levada.diagnose import Finding, Report

__all__ = ["AssertTrainable", "assert_trainable"]

# Severities that fail a test, by `fail_on`.
_FAILS: Mapping[str, tuple[str, ...]] = {"error": ("error",), "warn": ("error", "warn")}
_OPTIONS = frozenset({"loss", "optimizer", "lr", "seed", "budget"})


class AssertTrainable(Protocol):
    """What the fixture gives."""

    def __call__(
        self, model: Any, batch: Any = None, *, fail_on: str = "error", ignore: Collection[str] = (), **limits: Any
    ) -> Report:
        """Check a model, and fail the test if it is not trainable."""


@pytest.fixture(scope="session")
def assert_trainable() -> AssertTrainable:
    """Return a function that checks a model as `levada.check` does, and fails the test on what it finds."""
    return _assert_trainable


def _assert_trainable(
    model: Any, batch: Any = None, *, fail_on: str = "error", ignore: Collection[str] = (), **limits: Any
) -> Report:
    """Check a model, and raise AssertionError on a finding, on what could not be measured, or on a number out of range.

    Args:
        model: any module.
        batch: as `levada.check` takes it.
        fail_on: "error", or "warn" for both.
        ignore: rules that do not fail the test.
        limits: options of `levada.check` (loss, optimizer, lr, seed, budget), and limits of numbers in its summary, as
            `max_gradient_ratio_decades=3` or `min_signal_decay_per_block=0.9`. Of a number with an interval the nearer
            end is compared, so that noise fails no test.

    Returns:
        The report, for further assertions.

    Raises:
        UsageError: if an argument has no meaning.
        AssertionError: if the model is not trainable.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
        >>> batch = torch.randn(16, 8), torch.arange(16) % 3
        >>> _assert_trainable(net, batch, max_gradient_ratio_decades=2).verdict
        'healthy'
    """
    __tracebackhide__ = True
    from levada._errors import UsageError
    from levada.diagnose import DIAGNOSTICS, check

    if fail_on not in _FAILS:
        raise UsageError(f"assert_trainable: fail_on must be 'error' or 'warn', got {fail_on!r}.")
    strange = [rule for rule in ignore if rule not in DIAGNOSTICS]
    if isinstance(ignore, str) or strange:
        raise UsageError(f"assert_trainable: ignore must hold names of rules, got {ignore!r}. See levada list.")
    for name, limit in limits.items():
        if name in _OPTIONS:
            continue
        if not name.startswith(("min_", "max_")) or isinstance(limit, bool) or not isinstance(limit, int | float):
            raise UsageError(
                f"assert_trainable: {name} must be an option of levada.check, or min_ or max_ with a name from its "
                f"summary and a number, got {limit!r}."
            )
    report = check(model, batch, **{name: value for name, value in limits.items() if name in _OPTIONS})
    wrong = [_told(f) for f in report.findings if f.rule not in ignore and _fails(f, fail_on)]
    wrong += [
        line
        for name, limit in limits.items()
        if name not in _OPTIONS and (line := _outside(report, name, float(limit)))
    ]
    if wrong:
        raise AssertionError("\n".join([f"{report.model} is not trainable as it is:", *wrong]))
    return report


def _fails(finding: Finding, fail_on: str) -> bool:
    return finding.status == "unknown" or (finding.status == "fired" and finding.severity in _FAILS[fail_on])


def _told(finding: Finding) -> str:
    from levada._names import CALLED, STATUSES

    mark = CALLED[finding.severity] if finding.status == "fired" else STATUSES[finding.status]
    return f"  {mark} {finding.rule}: {finding.claim} {finding.consequence}".rstrip()


def _outside(report: Report, name: str, limit: float) -> str:
    """Return a line if a number of the summary, or the nearer end of its interval, is on the wrong side of a limit."""
    from levada._errors import UsageError

    side, key = name[:3], name[4:]
    value = report.summary.get(key)
    reason = report.summary.get("unknown", {}).get(key)
    if value is None:
        if reason is None:
            known = sorted(
                k for k, v in report.summary.items() if isinstance(v, int | float | Mapping) and k != "unknown"
            )
            raise UsageError(f"assert_trainable: the summary of this check has {', '.join(known)}, and no {key}.")
        return f"  not known: {key}: {reason}"
    if isinstance(value, Mapping):
        value = value.get("high" if side == "min" else "low", value.get("value"))
    if not isinstance(value, int | float) or math.isnan(value):
        return f"  not known: {key}: it is {value}"
    if side == "min":
        return "" if value >= limit else f"  {key} is {value:.4g}, below {limit:g}"
    return "" if value <= limit else f"  {key} is {value:.4g}, above {limit:g}"
