"""Claims: pairs, seeds and statistics in one line each, and a myth refuted is no error."""

from __future__ import annotations

from typing import Any

import pytest

from levada.report.claim import claim_view, compared, numbers, pairs, ratio_text, statistic, status
from levada.report.typeset import superscripted, typeset


def test_pairs_far_apart_are_compared_in_decades_and_near_ones_as_ratios() -> None:
    told = {"a: measured": 1e-13, "a: predicted": 1e-12, "b: measured": 2.0, "b: predicted": 1.0}
    wide = pairs({"numbers": told})
    assert [(pair.label, pair.measured.text, pair.predicted.text) for pair in wide] == [
        ("a", "1.00×10⁻¹³", "1.00×10⁻¹²"),
        ("b", "2", "1"),
    ]
    assert compared(wide) == "log10 of measured / predicted"
    assert [ratio_text(pair, wide) for pair in wide] == ["−1.000", "+0.301"]
    near = pairs({"numbers": {"measured": [1.0, 3.0, 2.0], "predicted": 4.0}, "seeds": [0, 1, 2]})
    assert (compared(near), ratio_text(near[0], near)) == ("measured / predicted", "0.5")
    assert near[0].measured.text == "1 … 3 (median 2; 3 seeds)"


def test_a_number_without_its_partner_or_without_a_ratio_is_not_lost() -> None:
    told = {"a: measured": 0.5, "b: measured": 1.0, "b: predicted": 0.0, "c": True}
    claim = {"numbers": told}
    (pair,) = found = pairs(claim)
    assert ratio_text(pair, found) == "—"
    assert [(one.label, one.text) for one in numbers(claim)] == [("a: measured", "0.5"), ("c", "yes")]


def test_a_list_is_its_range_and_every_seed() -> None:
    claim = {
        "numbers": {"rate": [3e-13, 1e-13, 2e-13], "odd": [1.0, "nan", 1.0, 1.0], "two": [1, 2]},
        "seeds": [4, 5, 6],
    }
    rate, odd, two = numbers(claim)
    assert rate.text == "1.00×10⁻¹³ … 3.00×10⁻¹³ (median 2.00×10⁻¹³; 3 seeds)"
    assert rate.each == (("seed 4", "3.00×10⁻¹³"), ("seed 5", "1.00×10⁻¹³"), ("seed 6", "2.00×10⁻¹³"))
    assert odd.text == "1 (4 values; 1 of them no finite number)"
    assert odd.each[1] == ("2", "NaN")
    assert (two.text, two.each) == ("1, 2", ())


@pytest.mark.parametrize(
    ("told", "line"),
    [
        (
            {"name": "sign test, exact, 5 of 5", "value": 5.0, "p": 0.0625},
            "sign test, exact, 5 of 5: p = 0.0625 (smallest possible with 5: 0.0625)",
        ),
        (
            {"name": "sign test, one-sided, 5 of 6", "value": 5.0, "p": 0.11},
            "sign test, one-sided, 5 of 6: p = 0.11 (smallest possible with 6: 0.0156)",
        ),
        (
            {"name": "sign-flip test of pairs, two-sided, exact, 5 pairs", "value": 0.5, "p": 0.125},
            "sign-flip test of pairs, two-sided, exact, 5 pairs: 0.5, p = 0.125 (smallest possible with 5: 0.0625)",
        ),
        ({"name": "Cliff's delta", "value": 0.6, "p": 0.04}, "Cliff's delta: 0.6, p = 0.04"),
        ({"test": "permutation", "p": 0.008, "draws": 252}, "permutation: p = 0.008, draws 252"),
        ("p < 0.01", "p < 0.01"),
        (None, ""),
    ],
)
def test_a_statistic_is_one_line(told: Any, line: str) -> None:
    assert statistic(told) == line


def test_only_what_does_not_hold_and_is_known_better_is_corrected() -> None:
    claim = {"name": "a", "correction": "It is 4."}
    told = {one: status({**claim, "status": one}) for one in ("held", "not held", "not decided", "odd")}
    assert told == {
        "held": "held",
        "not held": "not held, corrected",
        "not decided": "not decided",
        "odd": "not decided",
    }
    assert status({"status": "not held"}) == "not held"
    labels = [claim_view({**claim, "status": one})["correction_label"] for one in told]
    # A run that decides nothing must not seem to have shown the correction.
    assert labels == [
        "More exactly.",
        "Correction.",
        *["The correction that is proposed, and not decided by this run."] * 2,
    ]


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("below 0.25^n.", "below 0.25<sup>n</sup>."),
        ("2^(depth/2), 10^-3", "2<sup>depth/2</sup>, 10<sup>−3</sup>"),
        ("10^19.7 in all", "10<sup>19.7</sup> in all"),
        ("x^<b>", "x^&lt;b&gt;"),
        ("x^(<b>)", "x^(&lt;b&gt;)"),
        ("a <= b+-c", "a ≤ b+-c"),
        ("^_^", "^_^"),
    ],
)
def test_powers_are_set_and_nothing_else_becomes_html(text: str, html: str) -> None:
    assert typeset(text) == html
    assert typeset("'^2<script>&amp;^x") == "&#x27;^2&lt;script&gt;&amp;amp;^x"
    assert superscripted("2^-23 and x^(a/b)") == "2⁻²³ and x^(a/b)"
