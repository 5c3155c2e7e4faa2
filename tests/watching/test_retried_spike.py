"""A step that a loss spike kept: at a rate that diverges the replay says so, at one that does not it is silent."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, cast

import pytest

from levada.watching.rerun.retried import NAME, Retried


def _kept(rule: str) -> Any:
    return cast(Any, SimpleNamespace(rule=rule, finding={"rule": rule}))


@pytest.mark.parametrize(
    ("rule", "ends", "severity"),
    [
        ("loss_spike", (math.nan, 0.5), "error"),
        ("loss_spike", (5.0, 0.5), "warn"),
        ("loss_spike", (1.5, 0.5), None),  # one batch makes it jitter
        ("loss_spike", (math.nan, 1.5), None),  # no lower rate helps
        (NAME, (1.5, 0.5), "warn"),
        (NAME, (5.0, 0.5), "error"),
        ("numerical_overflow", (math.nan, 0.5), None),
    ],
)
def test_what_steps_at_the_rate_show(rule: str, ends: tuple[float, float], severity: str | None) -> None:
    full, lower = ends
    found = Retried("told", (1.0, 0.1), ((1.0, full), (1.0, lower))).finding(_kept(rule))
    assert (found and found.severity) == severity
