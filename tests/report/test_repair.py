"""Repairs in the terminal: at 80 columns, and with a patch that can be copied."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from levada.diagnose.verify import effect_of
from levada.report.repair import print_fix

TRIAL = {
    "name": "initialise.pytorch_default",
    "before": {"loss": "inf"},
    "after": {"loss": 0.0123},
    "effect": 1.0,
    "low": 0.999,
    "high": 1.0,
    "said": "helps, no new error",
    "proposed": True,
}
FAILED = {"name": "clip", "effect": None, "said": "does not apply: [why]"}


def printed(told):
    file = io.StringIO()
    print_fix(told, Console(file=file, width=80))
    return file.getvalue()


def test_what_was_tried_fits_into_80_columns_and_the_patch_is_whole():
    patch = "model = " + "x" * 100
    text = printed({"outcome": "repaired", "remedy": TRIAL["name"], "trials": [TRIAL, FAILED], "patch": patch})
    assert patch in text
    table = text.replace(patch, "")
    assert max(map(len, table.splitlines())) <= 80
    assert "inf " in table
    assert "does not apply: [why]" in table
    assert "+1.00 [+1.00, +1.00]" in table


@pytest.mark.parametrize("outcome", ["healthy", "helps", "not repaired", "unknown"])
def test_every_outcome_has_a_sentence(outcome):
    told = {"outcome": outcome, "remedy": "clip", "trials": [], "notes": ["a note"], "patch": ""}
    text = printed(told)
    assert text.startswith(f"{outcome}: ")
    assert text.strip().endswith("a note")


def test_no_minus_before_a_zero():
    assert "-0.00" not in printed({"outcome": "unknown", "trials": [{**TRIAL, "effect": -0.001, "low": -0.002}]})


def test_the_effect_is_called_a_share_of_what_it_is_a_share_of():
    """Of a loss far below that of zeros the effect is small, however little of it is left."""
    effect = effect_of(0.287, 0.047, 2.3)
    assert effect == pytest.approx((0.287 - 0.047) / 2.3)
    trial = TRIAL | {"before": {"loss": 0.287}, "after": {"loss": 0.047}, "effect": effect}
    text = " ".join(printed({"outcome": "repaired", "trials": [trial]}).split())
    assert "as a share of the largest of three losses: before, after, and that of outputs of zero." in text
    assert "leaves a tenth" not in text
