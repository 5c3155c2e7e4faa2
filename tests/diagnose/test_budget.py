"""What a budget allows: counted in passes by a clock that only the model moves, so that no machine's speed matters."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor, nn

import levada
from levada.diagnose.check import examine
from levada.diagnose.costs import READS
from levada.diagnose.diagnostics import DIAGNOSTICS
from levada.diagnose.pace import Pace


@pytest.fixture
def time_enough():
    """Let budgets be what is said here."""


class Clock:
    """Stands still but where a pass moves it."""

    def __init__(self) -> None:
        self.now, self.forwards, self.backwards = 100.0, 0, 0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(time, "perf_counter", made)
    return made


class Paid(torch.autograd.Function):
    """Hands a signal on, and counts the time of a backward pass."""

    @staticmethod
    def forward(ctx, x: Tensor, owner) -> Tensor:
        ctx.owner = owner
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        ctx.owner.clock.now += ctx.owner.backward_s
        ctx.owner.clock.backwards += 1
        return gradient, None


class Timed(nn.Module):
    """A network whose passes take as long as is said."""

    def __init__(self, inner: nn.Module, clock: Clock, forward_s: float, backward_s: float = 0.0) -> None:
        super().__init__()
        self.inner, self.clock, self.forward_s, self.backward_s = inner, clock, forward_s, backward_s

    def __deepcopy__(self, memo):
        import copy

        return Timed(copy.deepcopy(self.inner, memo), self.clock, self.forward_s, self.backward_s)

    def forward(self, x: Tensor) -> Tensor:
        self.clock.now += self.forward_s
        self.clock.forwards += 1
        return Paid.apply(self.inner(x), self)


def mlp(depth: int = 14, act=nn.Tanh, scale: float = 1.0) -> nn.Module:
    torch.manual_seed(0)
    layers = [m for _ in range(depth) for m in (nn.Linear(16, 16), act())]
    net = nn.Sequential(*layers, nn.Linear(16, 4))
    for p in net.parameters():
        p.data *= scale
    return net


def lstm(steps: int = 5) -> nn.Module:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.LSTM(16, 16, batch_first=True), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x[:, None].expand(-1, steps, -1))[0][:, -1])

    torch.manual_seed(0)
    return Last()


def transformer() -> nn.Module:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True, norm_first=True)
            self.body, self.head = nn.TransformerEncoder(layer, 12, enable_nested_tensor=False), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x[:, None].expand(-1, 3, -1)).mean(1))

    torch.manual_seed(0)
    return Mean()


BATCH = torch.randn(32, 16, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 4
# Forward and backward passes of the smallest measurement.
LEAST = 6, 2


@pytest.mark.parametrize("budget", [0.5, 2.0, 3.0, 7.0, 12.0])
@pytest.mark.parametrize("backward_s", [0.0, 0.6])
@pytest.mark.parametrize("build", [mlp, lstm, transformer, lambda: mlp(3)], ids=["mlp", "lstm", "transformer", "small"])
def test_a_check_of_a_slow_model_ends_in_its_budget(clock, build, backward_s, budget):
    forward_s = 0.3
    least = LEAST[0] * forward_s + LEAST[1] * backward_s
    net = Timed(build(), clock, forward_s, backward_s)
    start = clock.now
    # A rate that throws the loss up gives reason for the longest of all tests.
    report = levada.check(net, [BATCH] * 3, optimizer="SGD", lr=30.0, budget=budget)
    spent = clock.now - start
    assert spent <= max(1.2 * budget, least) + 1e-9
    short = any("was spent before everything was measured" in note for note in report.notes)
    fired = {f.rule for f in report.findings if f.status == "fired"}
    calm = report.summary["loss_after_step"] <= report.summary["loss"]
    assert short or calm or fired & {"learning_rate_too_high", "vanishing_signal"}


def forgetful() -> nn.Module:
    net = lstm(40)
    net.body.bias_ih_l0.data[16:32] = -2.0
    return net


def sharp() -> nn.Module:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.place, self.body = nn.Parameter(torch.randn(12, 16)), nn.MultiheadAttention(16, 2, batch_first=True)
            self.head = nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = x[:, None] + self.place
            return self.head(self.body(x, x, x)[0][:, 0])

    torch.manual_seed(0)
    net = Words()
    net.body.in_proj_weight.data[:32] *= 30.0
    return net


def tiny() -> nn.Module:
    net = mlp(3, nn.ReLU)
    net[2].weight.data *= 1e-3
    return net


SUSPECTED = {  # what builds it, its rule, what a short budget leaves out, and whether the rule speaks without that
    "memory": (forgetful, "short_memory", "100 steps of the model and of a copy whose memory is repaired", True),
    "attention": (sharp, "attention_collapse", "steps of queries and keys alone", True),
    "weights": (tiny, "misscaled_weights", "drawing parameters of an unusual size again", False),
}


@pytest.mark.parametrize("budget", [2.0, 4.0, 7.0, 12.0, 30.0, 300.0])
@pytest.mark.parametrize("case", SUSPECTED)
def test_the_test_of_a_suspicion_ends_in_the_budget_or_is_left_out(clock, case, budget):
    build, rule, what, speaks = SUSPECTED[case]
    net = Timed(build(), clock, 0.1, 0.1)
    start = clock.now
    report = levada.check(net, BATCH, optimizer="Adam", lr=3e-3, budget=budget)
    assert clock.now - start <= 1.2 * budget
    left_out = any(what in note for note in report.notes)
    assert left_out == (budget < {"memory": 300.0, "attention": 7.0, "weights": 300.0}[case])
    fired = {f.rule: f for f in report.findings if f.status == "fired"}
    assert (rule in fired) == (speaks or not left_out)
    # Steps at another rate, for which small gains gave a reason, may be missing too: that is unknown.
    silent = report.verdict in ("healthy", "unknown") and "did not allow" in report.unknown.get(rule, "")
    assert speaks or not left_out or silent


def test_no_pass_is_made_to_suspect_a_bias_where_there_is_no_time(clock):
    net = mlp(3, nn.ReLU)
    net[4].bias.data.fill_(10.0)
    levada.check(Timed(net, clock, 0.1, 0.1), BATCH, optimizer="Adam", lr=3e-3, budget=0.0)
    assert clock.forwards == LEAST[0]
    assert clock.backwards <= LEAST[1]


def test_what_is_left_out_is_named_and_what_needs_it_is_unknown(clock):
    net = Timed(mlp(3), clock, 0.3)
    how = {"optimizer": "SGD", "lr": 300.0}
    assert "learning_rate_too_high" in {f.rule for f in levada.check(net, BATCH, budget=60.0, **how).findings}
    tight = levada.check(net, BATCH, budget=2.0, **how)
    (found,) = [f for f in tight.findings if f.rule == "learning_rate_too_high"]
    assert (found.status, tight.verdict) == ("unknown", "unknown")
    assert "a budget of 2 s did not allow 10 steps of training" in found.claim
    assert any("There was no time for 10 steps of training" in note for note in tight.notes)


def test_a_healthy_model_is_not_called_unknown_for_tests_that_nothing_asked_for(clock):
    tight = levada.check(Timed(mlp(3), clock, 0.3), BATCH, budget=2.0, optimizer="SGD", lr=1e-2)
    assert tight.verdict == "healthy"


def test_what_could_not_be_looked_at_with_any_budget_is_not_missing(clock):
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.body = nn.Embedding(9, 16), transformer()

        def forward(self, words: Tensor) -> Tensor:
            return self.body(self.embed(words))

    batch = torch.arange(32) % 9, torch.arange(32) % 4  # inputs that have no neighbours
    report = levada.check(Timed(Words(), clock, 0.3), batch, budget=0.0, optimizer="SGD", lr=1e-2)
    assert report.verdict == "healthy", str(report)
    deep = levada.check(Timed(transformer(), clock, 0.3), BATCH, budget=0.0, optimizer="SGD", lr=1e-2)
    assert [(f.rule, f.status) for f in deep.findings] == [("shattered_gradient", "unknown")]


@pytest.mark.parametrize("budget", [0.0, 1.0, 60.0])
def test_the_verdict_on_a_sick_model_is_the_same_at_any_budget(clock, budget):
    net = Timed(mlp(30, nn.ReLU, 0.5), clock, 0.3, 0.3)
    report = levada.check(net, BATCH, budget=budget, optimizer="SGD", lr=0.1)
    assert report.verdict == "error"
    assert report.findings[0].rule == "vanishing_signal"


def test_a_branch_that_starts_at_zero_is_no_fault_at_any_budget(clock):
    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(6))
            self.scale, self.head = nn.Parameter(torch.zeros(6)), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            for i, layer in enumerate(self.layers):
                x = x + self.scale[i] * torch.tanh(layer(x))
            return self.head(x)

    for budget in (0.0, 60.0):
        report = levada.check(Timed(Skips(), clock, 0.3), BATCH, budget=budget, optimizer="SGD", lr=0.1)
        assert not [f for f in report.findings if f.status == "fired"], str(report)


@pytest.mark.parametrize(
    ("forward_s", "budget", "outcome"), [(0.3, 2.0, "unknown"), (0.1, 4.0, "unknown"), (0.02, 20.0, "repaired")]
)
def test_a_repair_of_a_slow_model_ends_in_its_budget(clock, forward_s, budget, outcome):
    net = Timed(mlp(6, nn.ReLU, 0.1), clock, forward_s)
    start = clock.now
    fixed = levada.fix(net, BATCH, budget=budget, optimizer="SGD", lr=0.1)
    assert clock.now - start <= 1.2 * budget
    assert fixed.before.verdict == "error"
    assert fixed.outcome == outcome
    assert any("budget" in note.lower() for note in fixed.notes)


def test_stages_are_timed_without_what_is_inside_of_them(clock):
    pace = Pace(10.0)
    with pace.stage("outer"):
        clock.now += 1.0
        with pace.stage("inner"):
            clock.now += 2.0
        clock.now += 4.0
    with pace.stage("inner"):
        clock.now += 0.5
    assert pace.seconds == {"outer": 5.0, "inner": 2.5}


def test_every_stage_that_a_rule_reads_is_one_that_is_timed(clock):
    net = Timed(mlp(14, nn.ReLU), clock, 0.25, 0.5)
    net.inner[3].register_buffer("unused", torch.zeros(1))
    report, trace = examine(net, (BATCH[0] * 1e3, BATCH[1]), optimizer="SGD", lr=30.0)
    timed = set(trace.context["pace"].seconds)
    _, trace = examine(Timed(mlp(3), clock, 0.25, 0.5), BATCH)
    timed |= set(trace.context["pace"].seconds)  # weights are judged where nothing else is wrong
    rare = {"streams", "matter", "mode", "after_step"}  # of models that this one is not
    assert {stage for read in READS.values() for stage in read} - rare <= timed
    assert set(READS) <= set(DIAGNOSTICS)
    for finding in report.findings:
        if finding.status == "fired" and READS.get(finding.rule):
            told = finding.cost_ms
            assert told["total"] == pytest.approx(told["own"] + told["shared"], abs=0.02)
            assert told["total"] > 0
