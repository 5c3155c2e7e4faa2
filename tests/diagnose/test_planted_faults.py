"""Each planted fault fires, at its place; its healthy twin does not."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from levada import Residual, ReZero, Stack, initialise
from levada.diagnose import DIAGNOSTICS, check, diagnose
from levada.probe import Probe

DIM, CLASSES = 64, 10
BATCH = (torch.randn(32, DIM, generator=torch.Generator().manual_seed(0)), torch.arange(32) % CLASSES)


def stack(activation, depth, *, he=False, scale=None, norm=False):
    torch.manual_seed(1)
    layers = []
    for _ in range(depth):
        layers += [nn.Linear(DIM, DIM), *([nn.BatchNorm1d(DIM)] if norm else []), activation()]
    model = nn.Sequential(*layers, nn.Linear(DIM, CLASSES))
    for module in model:
        if isinstance(module, nn.Linear) and he:
            nn.init.kaiming_normal_(module.weight)
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.Linear) and scale:
            nn.init.normal_(module.weight, 0.0, scale / DIM**0.5)
    return model


def fired(report):
    return {f.rule: f for f in report.findings if f.status == "fired"}


def test_sigmoid_of_fifty_layers():
    report = check(stack(nn.Sigmoid, 50), BATCH)
    found = fired(report)
    assert report.verdict == "error"
    assert found["vanishing_gradient"].severity == found["vanishing_signal"].severity == "error"
    assert found["vanishing_gradient"].where["first"] == "0"
    told = found["vanishing_gradient"].evidence["gradient_decay_per_block"]
    assert told["low"] < 0.1415 < told["high"] * 1.02
    assert found["vanishing_signal"].evidence["output_spread"] < 1e-12  # measured in float64


def test_default_relu_of_fifty_layers_with_sgd_stands_still():
    report = check(stack(nn.ReLU, 50), BATCH, optimizer="SGD")
    finding = fired(report)["vanishing_gradient"]
    assert finding.severity == "error"
    step = finding.evidence["tests"]["optimizer_first_step"]
    assert step["first_update_ratio"] < 1e-9 < step["last_update_ratio"]
    remedies = {p.name: p for p in finding.remedies}
    assert not any(p.verified for p in finding.remedies)
    assert remedies["initialise.he"].after == {"gain_per_block": 1.0}
    assert remedies["rezero"].after == {"gain_per_block": 1.0}


@pytest.mark.parametrize("patch", ["initialise.he", "rezero"])
def test_a_proposed_repair_does_what_theory_says(patch):
    model = stack(nn.ReLU, 50)
    if patch == "initialise.he":
        initialise.he(model)
    else:
        inner = [nn.Sequential(model[i], model[i + 1]) for i in range(2, 100, 2)]
        model = nn.Sequential(*model[:2], Stack(inner, ReZero, dim=inner[0][0].in_features), *model[100:])
    report = check(model, BATCH, optimizer="SGD")
    assert report.verdict == "healthy", str(report)
    assert report.summary["gradient_decay_per_block"]["value"] == pytest.approx(1.0, abs=0.03)


def test_he_is_not_proposed_where_skips_carry_the_signal():
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(64, 64), nn.ReLU()) for _ in range(50)]
    model = nn.Sequential(Stack(blocks, Residual, dim=64), nn.Linear(64, 10))
    report = check(model, (torch.randn(32, 64), torch.randint(10, (32,))))
    assert {p.name for p in fired(report)["exploding_signal"].remedies} == {"rezero"}


def test_default_relu_of_twenty_layers_is_no_error_under_adam():
    report = check(stack(nn.ReLU, 20), BATCH, optimizer="AdamW")
    assert report.verdict == "warn"
    step = fired(report)["vanishing_gradient"].evidence["tests"]["optimizer_first_step"]
    assert step["first_update_ratio"] > 1e-5
    assert check(stack(nn.ReLU, 20), BATCH, optimizer="SGD").verdict == "error"


def test_he_relu_is_healthy_at_any_depth():
    assert [check(stack(nn.ReLU, depth, he=True), BATCH).verdict for depth in (30, 60)] == ["healthy"] * 2


def behind(first, second):
    """Chain two stacks without the head of the first."""
    return nn.Sequential(*list(first)[:-1], *second)


@pytest.mark.parametrize(("healthy", "sick", "verdict"), [(100, 9, "error"), (54, 6, "error"), (45, 5, None)])
def test_depth_at_criticality_hides_no_fault_behind_it(healthy, sick, verdict):
    model = behind(stack(nn.ReLU, healthy, he=True), stack(nn.Sigmoid, sick))
    report = check(model, BATCH, optimizer="SGD", lr=0.1)
    finding = fired(report)["vanishing_gradient"]
    assert finding.severity == (verdict or finding.severity) in ("warn", "error")  # five are at the edge of an error
    assert report.verdict in ("warn", "error")
    told = finding.evidence["gradient_decay_per_block"]
    assert told["low"] < 0.1415 < told["high"]
    assert told["predicted"] == pytest.approx(0.1415, rel=0.03)
    assert abs(told["blocks"] - sick) <= 1
    assert report.summary["gradient_decay_per_block"]["value"] > 0.8  # what the whole depth's factor says


def test_four_sigmoid_layers_are_a_warning():
    model = behind(stack(nn.ReLU, 36, he=True), stack(nn.Sigmoid, 4))
    assert fired(check(model, BATCH, optimizer="SGD", lr=0.1))["vanishing_gradient"].severity == "warn"


def test_depth_at_criticality_hides_no_fault_before_it():
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(DIM, DIM), nn.ReLU()) for _ in range(100)]
    model = behind(stack(nn.Sigmoid, 10), [Stack(blocks, ReZero, dim=DIM), nn.Linear(DIM, CLASSES)])
    found = fired(check(model, BATCH, optimizer="SGD", lr=0.1))
    assert found["vanishing_gradient"].severity == "error"
    assert found["vanishing_gradient"].where == {"first": "0", "last": "18"}
    assert found["vanishing_signal"].where["first"] == "0"
    assert found["vanishing_gradient"].evidence["decades"] == pytest.approx(7.6, abs=0.2)


@pytest.mark.parametrize("sick_first", [False, True])
def test_depth_at_criticality_hides_no_growth(sick_first):
    sick, healthy = stack(nn.ReLU, 20, scale=2.0 * 2**0.5), stack(nn.ReLU, 100, he=True)
    report = check(behind(sick, healthy) if sick_first else behind(healthy, sick), BATCH, optimizer="SGD", lr=0.1)
    found = fired(report)
    for rule, key in (("exploding_signal", "growth_per_block"), ("exploding_gradient", "gradient_decay_per_block")):
        assert found[rule].evidence[key]["value"] == pytest.approx(2.0, rel=0.15)
        assert abs(found[rule].evidence[key]["blocks"] - 20) <= 4


@pytest.mark.parametrize("depth", [40, 60])
def test_a_residual_stack_that_adam_trains_is_no_error(depth):
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(DIM, DIM), nn.ReLU()) for _ in range(depth)]
    model = nn.Sequential(Stack(blocks, Residual, dim=DIM), nn.Linear(DIM, CLASSES))
    report = check(model, BATCH, optimizer="AdamW", lr=1e-3)
    assert report.verdict == "warn"
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-3), []
    for _ in range(100 if depth == 40 else 0):
        optimizer.zero_grad()
        losses.append(nn.functional.cross_entropy(model(BATCH[0]), BATCH[1]))
        losses[-1].backward()
        optimizer.step()
    assert not losses or losses[-1] < losses[0] / 30


@pytest.mark.parametrize("depth", [20, 30])
def test_half_precision_stands_still_too(depth):
    model, batch = stack(nn.ReLU, depth).bfloat16(), (BATCH[0].bfloat16(), BATCH[1])
    assert fired(check(model, batch, optimizer="SGD", lr=0.1))["vanishing_gradient"].severity == "error"
    assert check(stack(nn.ReLU, depth, he=True).bfloat16(), batch, optimizer="SGD", lr=0.1).verdict == "healthy"


class Loop(nn.Module):
    """One matrix, again and again; with the input added each time, a fixed point."""

    def __init__(self, times, injected):
        super().__init__()
        self.read, self.again, self.head = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM), nn.Linear(DIM, CLASSES)
        self.times, self.injected = times, injected

    def forward(self, x):
        x = self.read(x)
        h = torch.tanh(x)
        for _ in range(self.times):
            h = torch.tanh(self.again(h) + x) if self.injected else torch.tanh(self.again(h))
        return self.head(h)


def test_one_matrix_for_all_blocks_is_no_error_and_has_no_prediction():
    torch.manual_seed(0)
    report = check(Loop(40, injected=False), BATCH, optimizer="SGD", lr=0.1)
    assert fired(report)["vanishing_gradient"].severity == "warn"
    assert "predicted" not in fired(report)["vanishing_gradient"].evidence["gradient_decay_per_block"]
    assert any("again.weight acts in" in note for note in report.notes)


def test_an_iterated_fixed_point_is_information():
    torch.manual_seed(0)
    report = check(Loop(40, injected=True), BATCH, optimizer="SGD", lr=0.1)
    assert report.verdict == "healthy"
    assert fired(report)["vanishing_gradient"].severity == "info"
    assert "act in later blocks too" in fired(report)["vanishing_gradient"].consequence


@pytest.mark.parametrize("activation", [nn.Identity, nn.ReLU])
def test_weights_of_twice_the_critical_size_explode(activation):
    scale = 2.0 if activation is nn.Identity else 2.0 * 2**0.5
    report = check(stack(activation, 30, scale=scale), BATCH)
    finding = fired(report)["exploding_signal"]
    assert finding.severity == "warn"  # the first step of AdamW leaves a finite loss
    thrown = check(stack(activation, 30, scale=scale), BATCH, optimizer="SGD", lr=0.1)
    assert fired(thrown)["exploding_signal"].severity == "error"  # that of SGD does not
    assert not thrown.summary["loss_after_step"] < float("inf")
    assert finding.evidence["growth_per_block"]["value"] == pytest.approx(2.0, rel=0.03)
    assert finding.evidence["growth_per_block"]["predicted"] == pytest.approx(2.0, rel=0.03)
    assert report.summary["loss"] > 1e6 > report.summary["loss_of_zeros"]


def test_batch_norm_is_a_warning_with_its_explanation():
    report = check(stack(nn.ReLU, 50, norm=True), BATCH, optimizer="SGD", lr=0.1)
    finding = fired(report)["exploding_gradient"]
    assert (report.verdict, finding.severity) == ("warn", "warn")
    assert "1.2112" in finding.claim
    assert finding.evidence["explained_by"] == "theory"


def test_one_nan_weight_is_one_finding_at_its_place():
    model = stack(nn.ReLU, 8, he=True)
    with torch.no_grad():
        model[6].weight[3, 4] = float("nan")
    report = check(model, BATCH)
    (finding,) = report.findings
    assert (finding.rule, finding.severity, finding.where["first"]) == ("numerical_overflow", "error", "6")
    assert "6.weight" in finding.claim
    assert "nan" in report.to_json()


def test_overflow_without_a_bad_parameter_is_located_too():
    model = stack(nn.Identity, 6, scale=1e15)
    (finding,) = check(model, BATCH).findings
    assert finding.rule == "numerical_overflow"
    assert finding.where["first"] == "4"  # 1e15^3 > 3.4e38


def test_dead_units_explain_what_follows_from_them():
    model = stack(nn.ReLU, 10, he=True)
    nn.init.constant_(model[8].bias, -100.0)
    report = check(model, BATCH)
    (finding,) = report.findings
    assert (finding.rule, finding.severity) == ("dead_units", "error")
    assert finding.where == {"first": "8", "last": "8"}


def test_saturation_by_large_weights():
    model = stack(nn.Tanh, 5)
    with torch.no_grad():
        for p in model.parameters():
            p *= 20
    finding = fired(check(model, BATCH))["saturated_activation"]
    assert finding.where["first"] == "0"
    assert 0.7 < finding.evidence["saturated_fraction"]["0"] < 0.9
    assert "saturated_activation" not in fired(check(stack(nn.Tanh, 5), BATCH))


class Cut(nn.Module):
    def __init__(self, cut):
        super().__init__()
        half = [nn.Sequential(nn.Linear(DIM, DIM), nn.Tanh()) for _ in range(6)]
        self.first, self.second = nn.Sequential(*half[:3]), nn.Sequential(*half[3:])
        self.head, self.unused, self.cut = nn.Linear(DIM, CLASSES), nn.Linear(DIM, DIM), cut

    def forward(self, x):
        h = self.first(x)
        return self.head(self.second(h.detach() if self.cut else h)), self.unused(h)


def test_a_detached_half_is_found_and_an_unused_output_is_not():
    report = check(Cut(cut=True), BATCH)
    finding = fired(report)["frozen_layers"]
    assert finding.severity == "error"
    assert finding.where == {"first": "first.0.0", "last": "first.2.0"}
    assert not any("unused" in name for name in finding.evidence["parameters"])
    assert check(Cut(cut=False), BATCH).verdict == "healthy"


def test_frozen_on_purpose_is_information():
    model = Cut(cut=False)
    model.first.requires_grad_(False)
    report = check(model, BATCH)
    assert report.verdict == "healthy"
    assert [(f.rule, f.severity) for f in report.findings] == [("frozen_layers", "info")]


def test_every_fired_finding_says_how_to_show_it_false():
    for model in (stack(nn.Sigmoid, 20), stack(nn.ReLU, 30, scale=4.0)):
        report = check(model, BATCH)
        for finding in report.findings:
            assert finding.rule in DIAGNOSTICS
            assert all((finding.claim, finding.where, finding.consequence, finding.falsify, finding.source))
            assert "tests" in finding.evidence
        assert json.loads(report.to_json())["findings"]


def test_the_rules_read_the_trace_of_a_training_loop_too():
    model = stack(nn.ReLU, 20)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Probe(model, optimizer) as probe:
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(BATCH[0]), BATCH[1]).backward()
            optimizer.step()
    found = {f.rule: f for f in diagnose(probe.trace())}
    # Without theory beside it, and with no test of the output, nothing is more than a warning.
    assert {f.severity for f in found.values()} == {"warn"}
    assert found["vanishing_gradient"].evidence["gradient_decay_per_block"]["value"] == pytest.approx(0.41, abs=0.03)


def test_the_inventory_has_a_sentence_for_each_rule():
    for rule in DIAGNOSTICS.values():
        assert rule.__doc__.strip().splitlines()[0].endswith(".")


class Blind(nn.Module):
    """It never looks at its input."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(DIM, DIM), nn.ReLU(), nn.Linear(DIM, DIM), nn.ReLU(), nn.Linear(DIM, CLASSES)
        )

    def forward(self, x):
        return self.net(torch.ones_like(x))


def zeros(model):
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    return model


@pytest.mark.parametrize("build", [Blind, lambda: zeros(stack(nn.Tanh, 4)), lambda: zeros(stack(nn.Tanh, 1))])
def test_a_model_that_does_not_see_its_input_is_an_error(build):
    torch.manual_seed(0)
    report = check(build(), BATCH)
    assert fired(report)["vanishing_signal"].severity == "error"


def test_a_zero_head_that_the_first_step_opens_is_none():
    model = stack(nn.Tanh, 1)
    zeros(model[-1])
    assert check(model, BATCH).verdict == "healthy"


def test_outputs_out_of_scale_are_said_at_any_depth():
    torch.manual_seed(0)
    model = stack(nn.ReLU, 3, scale=40.0)
    finding = fired(check(model, BATCH))["exploding_signal"]
    assert finding.severity == "warn"
    assert finding.evidence["loss"] > 100 * finding.evidence["loss_of_zeros"]


def test_a_printed_report_holds_the_whole_repair():
    report = check(stack(nn.ReLU, 50), BATCH, optimizer="SGD")
    text = str(report)
    for remedy in fired(report)["vanishing_gradient"].remedies:
        assert all(line in text for line in remedy.patch.splitlines())


class Sequence(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.LSTM(8, 16, batch_first=True), nn.Linear(16, CLASSES)

    def forward(self, x):
        return self.head(self.rnn(x.view(len(x), -1, 8))[0][:, -1])


def test_what_is_not_measured_in_a_recurrent_layer_is_said():
    torch.manual_seed(0)
    assert not any("over time" in note for note in check(Sequence(), BATCH).notes)
    report = check(Sequence(), BATCH, budget=0.0)
    assert any("over time inside rnn was not measured: the budget was spent" in note for note in report.notes)
    assert not any("over time" in note for note in check(stack(nn.ReLU, 3), BATCH, budget=0.0).notes)
