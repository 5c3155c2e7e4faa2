"""The picture of each finding's evidence, on reports of real faults."""

from __future__ import annotations

import re
from functools import cache, partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

import levada
from levada.diagnose import DIAGNOSTICS
from levada.report import render_report
from levada.report.beside import MAX_ROWS, line_figure
from levada.report.check import check_view
from levada.report.evidence import PICTURES, WORDS_ALONE, evidence_picture
from levada.report.figure import figure
from levada.report.memory import memory_spec
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


def pushed(net: nn.Sequential) -> None:
    net[2].bias.copy_(torch.where(torch.arange(WIDTH) % 2 == 0, 20.0, -20.0))


def narrow() -> nn.Sequential:
    """All that is known of the inputs goes through one unit."""
    torch.manual_seed(0)
    widths = [WIDTH, WIDTH, WIDTH, 1, WIDTH]
    layers = [m for a, b in pairwise(widths) for m in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 4))


def not_a_number(net: nn.Sequential) -> None:
    net[4].weight[0] = torch.nan


class Cut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = chain(3), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).detach())


class Last(nn.Module):
    """A recurrence of which the last step is read."""

    def __init__(self, kind: Any, hidden: int, g: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.head = kind(8, hidden, batch_first=True), nn.Linear(hidden, 4)
        if g:
            self.rnn.weight_hh_l0.data.normal_(0.0, g / hidden**0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class Sharp(nn.Module):
    """A transformer whose queries and keys are thirty times too large."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.embed, self.place = nn.Embedding(50, 32), nn.Parameter(torch.randn(12, 32))
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)
        with torch.no_grad():
            for block in self.encoder.layers:
                block.self_attn.in_proj_weight[:64] *= 30.0

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.embed(tokens) + self.place)[:, 0])


def recall() -> tuple[torch.Tensor, torch.Tensor]:
    """The first symbol of 150 is asked for at the end."""
    x = torch.zeros(64, 150, 8)
    x[:, 1:, 4] = 1.0
    x[torch.arange(64), 0, Y] = 1.0
    return x, Y


X, Y = torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 4
SGD, ADAM = {"optimizer": "SGD", "lr": 0.1}, {"optimizer": "Adam", "lr": 1e-2}
NOISE = torch.randn(64, 60, 8, generator=torch.Generator().manual_seed(0)), Y
TOKENS = torch.randint(50, (16, 12), generator=torch.Generator().manual_seed(0)), torch.arange(16) % 10
DECAYED = {"optimizer": partial(torch.optim.SGD, lr=0.1, weight_decay=2.0)}
# Rule -> a model with that fault, its batch, how it is trained, and what the picture shows.
FAULTS = {
    "vanishing_gradient": (lambda: chain(40), (X, Y), SGD, "The gradient that the rule reads"),
    "vanishing_signal": (lambda: chain(40), (X, Y), SGD, "spread between inputs"),
    "exploding_signal": (lambda: chain(20, scale=6.0), (X, Y), SGD, "How the signal grows"),
    "exploding_gradient": (lambda: chain(20, scale=6.0), (X, Y), SGD, "predicted by theory"),
    "learning_rate_too_high": (lambda: chain(3), (X, Y), {**SGD, "lr": 100.0}, "at lr 100"),
    "unscaled_input": (lambda: chain(3), (X * 100, Y), SGD, "each feature standardised"),
    "dead_units": (lambda: changed(chain(3), dead), (X, Y), SGD, 'class="bar'),
    "saturated_activation": (lambda: changed(chain(6, nn.Tanh), pushed), (X, Y), SGD, 'class="bar'),
    "rank_collapse": (narrow, (X, X[:, :4].argmax(1)), ADAM, "behind 4"),
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
    "misscaled_weights": (lambda: chain(3, scale=0.01), (X, X[:, :4].argmax(1)), {**ADAM, "lr": 1e-3}, "drawn again"),
    "attention_collapse": (Sharp, TOKENS, {}, "Ten steps of queries and keys alone"),
    "short_memory": (lambda: Last(nn.GRU, 32), recall(), ADAM, "horizon"),
    "exploding_memory": (lambda: Last(nn.RNN, 64, 3.0), NOISE, ADAM, "Gradient that arrives at each step"),
    "excessive_decay": (lambda: chain(2), (X, Y), DECAYED, "with decay"),
}


def test_every_rule_has_a_picture_or_a_reason_why_none_tells_anything():
    assert set(PICTURES) | set(WORDS_ALONE) == set(DIAGNOSTICS)
    assert not set(PICTURES) & set(WORDS_ALONE)


@cache
def checked(rule: str) -> dict[str, Any]:
    """What the check of a fault says, which no test changes."""
    build, batch, how, _ = FAULTS[rule]
    return levada.check(build(), batch, **how).to_dict()


@pytest.mark.parametrize("rule", FAULTS)
def test_the_picture_of_a_real_fault_shows_what_the_rule_read(rule):
    *_, shown = FAULTS[rule]
    report = checked(rule)
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
    counted = finding["calibration"]
    assert f"of {counted['of']} healthy programs" in page
    assert finding["cost_ms"]["total"] > 0


@pytest.fixture
def forgetful() -> dict[str, Any]:
    return checked("short_memory")


def test_a_memory_is_drawn_as_it_was_measured_and_not_told(forgetful):
    (finding,) = [f for f in forgetful["findings"] if f["rule"] == "short_memory"]
    curves, horizon = finding["evidence"]["curves"], finding["evidence"]["memory_horizon"]
    assert len(curves["memory"]) == len(curves["memory_predicted"]) == len(curves["steps_back"]) == 100
    assert (curves["steps_back"][0], curves["steps_back"][-1]) == (0, 150)
    assert curves["memory"][0] == pytest.approx(1.0)
    left = [value for back, value in zip(curves["steps_back"], curves["memory"], strict=True) if back > horizon["high"]]
    assert max(left) < 1e-3
    assert (curves["steps"][0], curves["steps"][-1], len(curves["gradient"])) == (0, 149, 100)
    first_half = [g for step, g in zip(curves["steps"], curves["gradient"], strict=True) if step < 75]
    assert max(first_half) <= finding["evidence"]["gradient_in_first_half"] < 1e-6
    assert max(curves["gradient"]) == pytest.approx(1.0)
    (told,) = [f for f in check_view(forgetful)["findings"] if f["rule"] == "short_memory"]
    assert not any("curves" in label for label, _ in told["evidence"])
    (span,) = [s for panel in memory_spec(finding)["panels"] for s in panel.get("spans", ())]
    assert (span.low, span.high) == (horizon["low"], horizon["high"])


def test_a_table_of_all_numbers_stands_beside_two_panels(forgetful):
    (finding,) = [f for f in forgetful["findings"] if f["rule"] == "short_memory"]
    table = evidence_picture(finding, forgetful, [])["table"]
    assert table["head"][:2] == ["panel", "series"]
    assert {row[0] for row in table["rows"]} == {panel["title"] for panel in memory_spec(finding)["panels"]}
    assert table["total"] > len(table["rows"]) == MAX_ROWS
    page = render_report([forgetful])
    assert page.count("The numbers of this figure") == page.count("<figure")


def test_bars_have_their_names_in_the_table():
    bars = {"x": ["now", "then"], "y": [1.0, 2.0], "style": "bar", "label": ""}
    drawn = line_figure({"x": {"label": ""}, "y": {"label": "loss"}, "series": [bars]}, "", "")
    assert drawn["table"] == {"head": ["what", "loss"], "rows": [["now", "1"], ["then", "2"]], "total": 2}


def test_a_horizon_beyond_what_was_measured_is_not_marked(forgetful):
    (finding,) = [f for f in forgetful["findings"] if f["rule"] == "short_memory"]
    for value in (151.0, "inf"):
        far = {**finding["evidence"], "memory_horizon": {"value": value, "low": 1.0, "high": value}}
        assert memory_spec({**finding, "evidence": far})["panels"][0]["spans"] == []


def test_each_draw_of_the_weights_is_a_thin_line():
    report = checked("misscaled_weights")
    (finding,) = [f for f in report["findings"] if f["rule"] == "misscaled_weights"]
    courses = finding["evidence"]["curves"]["drawn_again"]
    assert [len(course) for course in courses] == [len(finding["evidence"]["tests"]["loss_as_it_is"])] * 3 == [61] * 3
    assert [sorted(course[-3:])[1] for course in courses] == finding["evidence"]["tests"]["loss_drawn_again"]
    svg = evidence_picture(finding, report, [])["svg"]
    wide = svg[svg.index('class="chart wide"') :].partition("</svg>")[0]
    assert len(re.findall(r'<path class="line [^"]*thin', wide)) == 3


def test_attention_without_the_test_of_queries_and_keys_is_its_entropy_alone():
    build, (tokens, _), _, _ = FAULTS["attention_collapse"]
    report = levada.check(build(), tokens).to_dict()
    (finding,) = [f for f in report["findings"] if f["rule"] == "attention_collapse"]
    drawn = evidence_picture(finding, report, sorted(report["blocks"], key=lambda block: block["order"]))
    assert "entropy of attention" in drawn["svg"]
    assert "Ten steps" not in drawn["svg"]


@pytest.mark.parametrize(
    ("rule", "factory"),
    [
        ("unoptimised_parameters", lambda ps: torch.optim.SGD(list(ps)[:2], lr=0.1)),
        ("undamped_momentum", lambda ps: torch.optim.SGD(ps, lr=0.01, momentum=1.01)),
    ],
)
def test_a_rule_without_a_picture_says_why_on_the_page(rule, factory):
    report = levada.check(chain(2), (X, Y), optimizer=factory).to_dict()
    (told,) = [f for f in check_view(report)["findings"] if f["rule"] == rule]
    assert told["picture"] is None
    assert told["words_alone"] in render_report([report])


def test_the_matrices_are_drawn_and_not_told():
    report = checked("rank_collapse")
    (finding,) = [f for f in report["findings"] if f["rule"] == "rank_collapse"]
    after = torch.tensor(finding["evidence"]["matrices"]["behind 4"])
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
    log = to_sarif(checked("dead_units"))
    told = log["runs"][0]["results"][0]["properties"]
    assert told["calibration"]["of"] > 300
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
