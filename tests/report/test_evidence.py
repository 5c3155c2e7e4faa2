"""The picture of each finding's evidence, on reports of real faults."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

import levada
from levada.diagnose import DIAGNOSTICS
from levada.report import render_report
from levada.report.check import check_view
from levada.report.evidence import PICTURES, WORDS_ALONE, evidence_picture
from levada.report.figure import figure
from levada.report.sarif import to_sarif

WIDTH = 32


def chain(depth: int, act: Any = nn.ReLU, scale: float = 1.0) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [m for _ in range(depth) for m in (nn.Linear(WIDTH, WIDTH), act())]
    net = nn.Sequential(*layers, nn.Linear(WIDTH, 4))
    with torch.no_grad():
        for p in net.parameters():
            p *= scale
    return net


def changed(net: nn.Sequential, change: Any) -> nn.Sequential:
    with torch.no_grad():
        change(net)
    return net


def dead(net: nn.Sequential) -> None:
    net[2].bias.fill_(-100.0)


def equal_rows(net: nn.Sequential) -> None:
    net[2].weight.copy_(net[2].weight[:1].expand_as(net[2].weight))
    net[2].bias.zero_()


def not_a_number(net: nn.Sequential) -> None:
    net[4].weight[0] = torch.nan


class Cut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = chain(3), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).detach())


X, Y = torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 4
SGD = {"optimizer": "SGD", "lr": 0.1}
# Rule -> a model with that fault, its batch, how it is trained, and what the picture shows.
FAULTS = {
    "vanishing_gradient": (lambda: chain(40), (X, Y), SGD, "The gradient that the rule reads"),
    "vanishing_signal": (lambda: chain(40), (X, Y), SGD, "spread between inputs"),
    "exploding_signal": (lambda: chain(20, scale=6.0), (X, Y), SGD, "How the signal grows"),
    "exploding_gradient": (lambda: chain(20, scale=6.0), (X, Y), SGD, "predicted by theory"),
    "learning_rate_too_high": (lambda: chain(3), (X, Y), {**SGD, "lr": 100.0}, "at lr 100"),
    "unscaled_input": (lambda: chain(3), (X * 100, Y), SGD, "each feature standardised"),
    "dead_units": (lambda: changed(chain(3), dead), (X, Y), SGD, 'class="bar'),
    "saturated_activation": (lambda: chain(6, nn.Tanh, 30.0), (X, Y), SGD, 'class="bar'),
    "rank_collapse": (lambda: changed(chain(3, nn.Tanh), equal_rows), (X, Y), SGD, "behind 2"),
    "frozen_layers": (Cut, (X, Y), SGD, "Which weights get a gradient"),
    "numerical_overflow": (lambda: changed(chain(4), not_a_number), (X, Y), SGD, 'class="bar'),
    "lost_update": (
        lambda: chain(3).bfloat16(),
        (X.bfloat16(), Y),
        {**SGD, "lr": 1e-5},
        "Elements that the step leaves as they are",
    ),
    "double_softmax": (
        lambda: nn.Sequential(chain(2), nn.Softmax(-1)),
        (X, Y),
        {**SGD, "loss": nn.functional.cross_entropy},
        "the best there is",
    ),
}


def test_every_rule_has_a_picture_or_a_reason_why_none_tells_anything():
    assert set(PICTURES) | set(WORDS_ALONE) == set(DIAGNOSTICS)
    assert not set(PICTURES) & set(WORDS_ALONE)


@pytest.mark.parametrize("rule", FAULTS)
def test_the_picture_of_a_real_fault_shows_what_the_rule_read(rule):
    build, batch, how, shown = FAULTS[rule]
    report = levada.check(build(), batch, **how).to_dict()
    (finding,) = [f for f in report["findings"] if f["rule"] == rule and f["severity"] != "info"]
    blocks = sorted(report["blocks"], key=lambda block: block["order"])
    drawn = evidence_picture(finding, report, blocks)
    assert drawn is not None
    assert shown in drawn["title"] + drawn["svg"]
    assert "<path" in drawn["svg"] or "<rect" in drawn["svg"]
    page = render_report([report])
    assert drawn["svg"] in page
    # Each rule says what it excluded, and each sentence is a whole one.
    assert finding["ruled_out"]
    assert all(re.fullmatch(r"Not .+\.", sentence) for sentence in finding["ruled_out"])
    assert "What was ruled out" in page
    assert "False alarms:</strong> not measured." in page
    assert finding["cost_ms"]["total"] > 0


def test_the_matrices_are_drawn_and_not_told():
    build, batch, how, _ = FAULTS["rank_collapse"]
    report = levada.check(build(), batch, **how).to_dict()
    (finding,) = [f for f in report["findings"] if f["rule"] == "rank_collapse"]
    after = torch.tensor(finding["evidence"]["matrices"]["behind 2"])
    assert torch.allclose(after.abs(), torch.ones_like(after), atol=1e-3)
    view = check_view(report)
    told = next(f for f in view["findings"] if f["rule"] == "rank_collapse")
    assert not any("matrices" in label for label, _ in told["evidence"])
    assert told["picture"]["svg"].count('class="mix"') == 2


def test_a_report_without_what_a_picture_needs_has_none():
    for rule in PICTURES:
        finding = {"rule": rule, "severity": "error", "status": "fired", "where": {"first": "0"}, "evidence": {}}
        report = {"verdict": "error", "findings": [finding], "blocks": [{"site": "0", "order": 0}] * 2}
        assert evidence_picture(finding, report, report["blocks"]) is None
        assert rule in render_report([report])


def test_what_sarif_holds_of_a_finding():
    build, batch, how, _ = FAULTS["dead_units"]
    log = to_sarif(levada.check(build(), batch, **how).to_dict())
    told = log["runs"][0]["results"][0]["properties"]
    assert told["calibration"] == {}
    assert told["ruled_out"][0].startswith("Not ")
    assert told["cost_ms"]["total"] > 0


def test_bars_start_at_zero_and_end_at_their_value():
    spec = {
        "x": {"label": "block"},
        "y": {"label": "share"},
        "series": [{"label": "share", "style": "bar", "x": [0, 1], "y": [0.5, 1.0]}],
    }
    bars = re.findall(r'<rect class="bar c0" x="([\d.]+)" y="[\d.]+" width="([\d.]+)" height="([\d.]+)">', figure(spec))
    heights = [float(height) for _, _, height in bars]
    assert heights[1] == pytest.approx(2 * heights[0], rel=0.01)
    assert all(float(x) > 0 for x, _, _ in bars)
