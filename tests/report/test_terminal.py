"""The terminal: 80 columns, without colour, without Unicode; the same words as the page."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from levada.diagnose import check
from levada.report.terminal import print_check, print_claims
from levada.runs import Run


def printed(report: dict[str, Any], width: int = 80, encoding: str = "utf-8", **options: Any) -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    print_check(report, Console(file=stream, width=width, **options))
    stream.seek(0)
    return stream.read()


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_no_line_is_wider_than_the_console(sick: dict[str, Any], width: int) -> None:
    sick["blocks"][0]["site"] = "transformer.layers.0.attention.projection.linear.output"
    text = printed(sick, width)
    lines = [line for line in text.splitlines() if not line.startswith("      ")]  # a patch is not wrapped
    assert max(len(line.rstrip()) for line in lines) <= width
    if width >= 80:
        for cell in ("0.0210", "2.7e-6", "layers.49"):
            assert cell in text


def test_measured_stands_beside_predicted_and_the_verdict_beside_its_repair(sick: dict[str, Any]) -> None:
    words = " ".join(printed(sick).split())
    assert "gradient per block: measured 0.410 [0.402, 0.418]; predicted 0.408" in words
    assert "✕ error The learning signal dies on its way back through layers.0 to layers.30." in words
    assert "repair: residual (tried on this model and data)" in words
    assert "gradient decay per block: 0.4100 [0.4019, 0.4178] → 0.996 [0.991, 1.001]" in words
    assert "net = Stack([Block(256) for _ in range(50)], Residual, dim=256)" in words
    assert "repair: orthogonal initialisation (expected, not verified: levada fix tries it)" in words
    assert "not decided: short_memory" in words


def test_bars_shorten_with_the_gradient_and_a_constant_signal_has_full_bars(sick: dict[str, Any]) -> None:
    for block in sick["blocks"]:
        block["signal_spread"] = 0.2
    rows = [line for line in printed(sick).splitlines() if " layers." in f" {line[2:9]}"]
    assert len(rows) == 50
    lengths = [line.count("█", 40) for line in rows]
    assert lengths[0] == 0
    assert lengths[-1] == max(lengths) > 5
    assert min(line.count("█", 0, 40) for line in rows) >= 10


@pytest.mark.parametrize("width", [80, 120])
def test_a_spread_that_dies_is_shown_beside_the_signal(sick: dict[str, Any], width: int) -> None:
    text = printed(sick, width)
    head = text.splitlines()[0].split()
    assert head[:3] == ["block", "signal", "spread"]
    rows = [line for line in text.splitlines() if " layers." in f" {line[2:9]}"]
    first, last = (row[2:].split() for row in (rows[0], rows[-1]))
    assert [first[0], last[0]] == ["layers.0", "layers.49"]
    assert float(first[2]) == pytest.approx(0.21, rel=0.5)
    assert float(last[2]) < 2e-9
    assert first[3].count("█") > 4 > last[3].count("█")
    assert "it is what dies" in text
    for block in sick["blocks"]:
        block["signal_spread"] = 0.2
    assert "spread " not in printed(sick, width).splitlines()[0]


def test_what_was_ruled_out_and_how_often_the_rule_is_wrong_is_said(sick: dict[str, Any]) -> None:
    sick["findings"][0] |= {"ruled_out": ["Not saturation: 3 % of [units] are saturated."]}
    counted = {"errors": 1, "warnings": 2, "of": 140, "rate": 1 / 140, "low": 0.00126, "high": 0.0394}
    sick["findings"][0]["calibration"] = {**counted, "suite": "healthy programs"}
    words = " ".join(printed(sick).split())
    assert "ruled out: Not saturation: 3 % of [units] are saturated." in words
    assert "false alarms: an error on 1 of 140 healthy programs (0.7 %, 95 % interval 0.1 to 3.9 %)" in words
    assert "false alarms: not measured" in words  # of the warning


def test_without_unicode_and_colour_everything_is_still_said(sick: dict[str, Any]) -> None:
    text = printed(sick, encoding="ascii", no_color=True)
    assert "\x1b" not in text
    assert text.isascii()
    assert "x error" in text
    assert "####" in text
    assert "x layers.0" in text


def test_colour_is_used_on_a_terminal(sick: dict[str, Any]) -> None:
    assert "\x1b[31m" in printed(sick, force_terminal=True, color_system="standard")


def test_deep_nets_are_sampled_and_this_is_said(sick_report: Any) -> None:
    text = printed(sick_report(400))
    assert "60 of 400 blocks shown, evenly spaced." in text
    assert sum(" layers." in line[:10] for line in text.splitlines()) == 60
    assert "layers.399" in text


def test_values_without_a_logarithm_are_words(sick: dict[str, Any]) -> None:
    sick["blocks"][0]["gradient_rms"] = 0.0
    sick["blocks"][1]["gradient_rms"] = "nan"
    sick["blocks"][2]["gradient_rms"] = "inf"
    rows = printed(sick).splitlines()[1:4]
    for row, word in zip(rows, ("zero", "NaN", "∞"), strict=True):
        assert row.rstrip().endswith(word)


def test_markup_in_names_is_letters(sick: dict[str, Any]) -> None:
    sick["blocks"][5]["site"] = "[bold]x[/bold]"
    sick["findings"][0]["claim"] = "[red]no[/red] [/]"
    text = printed(sick)
    assert "[bold]x[/bold]" in text
    assert "[red]no[/red] [/]" in text


def test_a_healthy_check_and_an_empty_one(healthy_report: Any) -> None:
    assert "✓ healthy  The learning signal reaches every block." in printed(healthy_report())
    assert "? not judged  The check could not decide." in printed({"verdict": "unknown"})


@pytest.mark.parametrize("quiet", [False, True])
def test_a_healthy_verdict_says_no_more_than_its_notes_let_it(quiet: bool) -> None:
    """A frozen backbone gets no gradient, nor does a layer that runs with gradients disabled."""

    class Headed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(8, 8), nn.Linear(8, 2)
            self.body.requires_grad_(quiet)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.set_grad_enabled(not quiet and torch.is_grad_enabled()):
                x = self.body(x).relu()
            return self.head(x)

    torch.manual_seed(0)
    report = check(Headed(), (torch.randn(16, 8), torch.randint(0, 2, (16,))))
    told = "No alarm, but a note: some weights get no gradient in module body."
    assert f"✓ healthy  {told if quiet else 'The learning signal reaches every block that trains.'}" in printed(
        dict(report.to_dict()), 120
    )


def test_claims(study_run: Path) -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=80)
    print_claims(Run(study_run), console)
    words = " ".join(stream.getvalue().split())
    assert "✓ held The gradient shrinks by the same factor" in words
    assert "factor: 0.4093 [0.4061, 0.4127]" in words
    assert "≠ not held" in words
    assert "statistic: permutation: p = 0.008" in words
    assert "correction: Highway networks" in words
    assert words.endswith("1 held; 1 not held, corrected; 1 not decided")
    assert max(len(line) for line in stream.getvalue().splitlines()) <= 80
    print_claims([], console)
    assert "decides no claim" in stream.getvalue()


def test_of_a_claim_decided_twice_the_last_word_counts() -> None:
    stream = io.StringIO()
    claims = [{"name": "a", "statement": "s", "status": status} for status in ("not decided", "held")]
    print_claims(claims, Console(file=stream, width=80))
    assert stream.getvalue().splitlines()[-1] == "1 held"


def test_claims_are_short_and_stay_letters_in_ascii() -> None:
    told = {
        f"case {i}: {kind}": 10.0**-i * size for i in range(9) for kind, size in (("measured", 0.9), ("predicted", 1))
    }
    told |= {"case 9: measured": 0.5, "case 9: predicted": 1.0, "rate": [-0.1, -0.2, -0.3]}
    claim = {"statement": "“It decays.”", "status": "held", "numbers": told, "seeds": [0, 1, 2]}
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    print_claims([claim], Console(file=stream, width=80))
    stream.seek(0)
    words = " ".join(stream.read().split())
    assert words.isascii()
    assert "in 10 cases; furthest from 1: case 9: measured 0.5, predicted 1, ratio 0.5" in words
    assert "case 3" not in words
    assert "rate: -0.3 ... -0.1 (median -0.2; 3 seeds)" in words
    assert '"It decays."' in words
    assert "every seed is in the report" in words


def test_failures_come_before_the_claims() -> None:
    stream = io.StringIO()
    told = "2 of 2 results failed: UsageError: depth must be at least 1"
    events = [{"type": "failure", "key": key, "error": "UsageError: depth must be at least 1"} for key in "ab"]
    claim = {"type": "claim", "name": "a", "statement": "It decays.", "status": "not decided", "reason": told}
    print_claims([*events, claim], Console(file=stream, width=80))
    first, *rest = stream.getvalue().splitlines()
    assert first.rstrip() == f"✕ {told}"
    assert told in " ".join(rest)


def test_notes_and_bars_are_called_what_they_are(sick: dict[str, Any]) -> None:
    for block in sick["blocks"]:
        block["cotangent_rms"] = block["gradient_rms"]
    words = " ".join(printed(sick).split())
    assert "note: No loss was given" in words
    assert "assumed:" not in words
    assert "(empty) to 0.0203 (full)" in words
    assert "a cotangent: a random vector of size 1, sent backwards from the output" in words


def test_without_a_bar_no_scale_is_told(sick: dict[str, Any]) -> None:
    for block in sick["blocks"]:
        block["gradient_rms"] = "nan"
    words = " ".join(printed(sick).split())
    assert "Bars are logarithmic: spread " in words
    assert "gradient 0.001 (empty)" not in words
    for block in sick["blocks"]:
        block["signal_rms"] = block["signal_spread"] = "nan"
    assert "Bars are logarithmic" not in printed(sick)


@pytest.mark.parametrize("spread", [True, False])
def test_in_a_narrow_terminal_numbers_are_whole_and_bars_give_way(sick: dict[str, Any], spread: bool) -> None:
    for block in sick["blocks"] if not spread else ():
        block["signal_spread"] = 0.2
    text = printed(sick, 44)
    rows = [line.split() for line in text.splitlines()[1:51]]
    assert all(len(row) == (6 if row[0] in "✕!" else 5) - (not spread) for row in rows)
    assert "…" not in "".join(word for row in rows for word in row)
    assert "█" not in text
    assert "Bars are" not in text
