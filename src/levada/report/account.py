"""What a finding is worth, in words: how often its rule is wrong, and what it took to find."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from levada.report.words import number

__all__ = ["calibration", "cost"]


def calibration(finding: Mapping[str, Any]) -> str:
    """Say how often a rule is as severe as here where nothing is wrong; "" for information, which blames nothing.

    Args:
        finding: of the JSON of `levada check`.

    Example:
        >>> calibration({"severity": "error", "calibration": {"errors": 1, "warnings": 0, "of": 140, "rate": 1 / 140,
        ...     "low": 0.00126, "high": 0.0394, "suite": "healthy programs"}})
        'an error on 1 of 140 healthy programs (0.7 %, 95 % interval 0.1 to 3.9 %)'
        >>> calibration({"severity": "warn"})
        'not measured'
    """
    severity, told = finding.get("severity"), finding.get("calibration")
    if severity not in ("error", "warn"):
        return ""
    if not isinstance(told, Mapping) or not number(told.get("of")):
        return "not measured"
    errors = int(told.get("errors", 0))
    count = errors if severity == "error" else errors + int(told.get("warnings", 0))
    of, suite = int(told["of"]), str(told.get("suite") or "healthy programs")
    rate, low, high = (f"{100 * (number(told.get(key)) or 0.0):.1f}" for key in ("rate", "low", "high"))
    what = "an error" if severity == "error" else "a warning or an error"
    return f"{what} on {count} of {of:,} {suite} ({rate} %, 95 % interval {low} to {high} %)"


def cost(finding: Mapping[str, Any]) -> str:
    """Say what the passes and tests took that a rule reads; "" where nothing was timed.

    Args:
        finding: of the JSON of `levada check`.

    Example:
        >>> cost({"cost_ms": {"total": 41.2, "own": 11.0, "shared": 30.2}})
        '41 ms, of which 30 ms are its share of passes that other rules read too'
        >>> cost({"cost_ms": {"total": 0.31, "own": 0.31, "shared": 0.0}}), cost({})
        ('0.3 ms', '')
    """
    told = finding.get("cost_ms")
    total = number(told.get("total")) if isinstance(told, Mapping) else None
    if total is None or not isinstance(told, Mapping):
        return ""
    shared = number(told.get("shared")) or 0.0
    if not shared:
        return _milliseconds(total)
    if shared == total:
        return f"{_milliseconds(total)}, its share of passes that other rules read too"
    return f"{_milliseconds(total)}, of which {_milliseconds(shared)} are its share of passes that other rules read too"


def _milliseconds(value: float) -> str:
    return f"{value:.1f} ms" if value < 10 else f"{value:,.0f} ms"
