"""How often each rule speaks of programs in which nothing is wrong, as the benchmark counted it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

__all__ = ["FILE", "calibration_of"]

FILE = "calibration.json"
_NORMAL = 1.959963984540054  # 97.5 % quantile


def calibration_of(rule: str, severity: str, counts: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return how often a rule was as severe as this on healthy programs; {} where that was not measured.

    Args:
        rule: the rule's name.
        severity: of the finding: an error is compared with errors, a warning with warnings and errors.
        counts: {rule: {"errors": n, "warnings": n, "of": n, "suite": name}}; those of this version if None.

    Returns:
        {"errors", "warnings", "of", "rate", "low", "high", "suite"}: the rate with its 95 % interval (Wilson).

    Example:
        >>> found = calibration_of("dead_units", "error", {"dead_units": {"errors": 1, "warnings": 3, "of": 140}})
        >>> f"{found['rate']:.1%} [{found['low']:.1%}, {found['high']:.1%}]"
        '0.7% [0.1%, 3.9%]'

    Source: Wilson 1927, Journal of the American Statistical Association 22, 209 to 212.
    """
    told = (_shipped() if counts is None else counts).get(rule)
    if severity not in ("error", "warn") or not told or not told["of"]:
        return {}
    errors, warnings, of = int(told["errors"]), int(told["warnings"]), int(told["of"])
    low, high = _wilson(errors if severity == "error" else errors + warnings, of)
    rate = (errors if severity == "error" else errors + warnings) / of
    counted = {"errors": errors, "warnings": warnings, "of": of}
    return {**counted, "rate": rate, "low": low, "high": high, "suite": str(told.get("suite", ""))}


def _wilson(count: int, of: int) -> tuple[float, float]:
    share, square = count / of, _NORMAL**2 / of
    middle = share + square / 2
    half = _NORMAL * math.sqrt(share * (1 - share) / of + square / (4 * of))
    # At 0 and at all of them the limit is exact, whatever the rounding.
    low = 0.0 if count == 0 else (middle - half) / (1 + square)
    return low, 1.0 if count == of else (middle + half) / (1 + square)


@cache
def _shipped() -> Mapping[str, Any]:
    text = resources.files("levada.diagnose").joinpath(FILE).read_text(encoding="utf-8")
    found: Mapping[str, Any] = json.loads(text)
    return found
