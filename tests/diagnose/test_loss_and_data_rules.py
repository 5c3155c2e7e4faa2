"""Loss, targets, inputs and mode: each planted fault fires in each architecture; its healthy twin is silent."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from levada.diagnose import check
from levada.diagnose.diagnostics.double_softmax import double_softmax
from levada.diagnose.diagnostics.unscaled_input import unscaled_input
from levada.diagnose.diagnostics.wrong_loss import wrong_loss
from levada.diagnose.facts import Facts
from levada.diagnose.objective import Objective
from levada.diagnose.rehearsal import Course
from levada.diagnose.surroundings import InputScale
from levada.probe.trace import Site, Trace

NUMBERS = torch.rand(32, generator=torch.Generator().manual_seed(3))


def fired(report):
    return {f.rule: f.severity for f in report.findings if f.status == "fired" and f.severity != "info"}


def behind(net, *after):
    return nn.Sequential(net, *after)


# Loss: (what is returned beside the model, targets, loss) of the fault and of its twin.


def no_graph(out, targets):
    return functional.cross_entropy(out.detach(), targets)


def errors(out, targets):
    return (out.argmax(1) != targets).float().mean()


def all_with_all(out, targets):
    return (out - targets).square().mean()


def each_with_its_own(out, targets):
    return (out[:, 0] - targets).square().mean()


CASES = {
    "softmax twice": ("double_softmax", lambda n: (behind(n.build(), nn.Softmax(-1)), n.classes, None)),
    "likelihood of logits": ("wrong_loss", lambda n: (n.build(), n.classes, functional.nll_loss)),
    "likelihood of probabilities": (
        "wrong_loss",
        lambda n: (behind(n.build(), nn.Softmax(-1)), n.classes, nn.NLLLoss()),
    ),
    "one class": ("wrong_loss", lambda n: (n.build(1), 0 * n.classes, "cross_entropy")),
    "loss without a graph": ("wrong_loss", lambda n: (n.build(), n.classes, no_graph)),
    "loss of a decision": ("wrong_loss", lambda n: (n.build(), n.classes, errors)),
    "loss of the targets": ("wrong_loss", lambda n: (n.build(), n.classes, lambda o, t: 0 * o.sum() + t.sum())),
    "all with all": ("wrong_loss", lambda n: (n.build(1), NUMBERS, all_with_all)),
    "targets out of reach": ("wrong_loss", lambda n: (behind(n.build(1), nn.Sigmoid()), 100 * NUMBERS[:, None], "mse")),
    "targets below zero": ("wrong_loss", lambda n: (behind(n.build(1), nn.Softplus()), -5 - NUMBERS[:, None], "mse")),
    "labels of -1 and 1": (
        "wrong_loss",
        lambda n: (n.build(1), (NUMBERS > 0.5).float()[:, None] * 2 - 1, functional.binary_cross_entropy_with_logits),
    ),
}
TWINS = {
    "logits": lambda n: (n.build(), n.classes, None),
    "log-probabilities": lambda n: (behind(n.build(), nn.LogSoftmax(-1)), n.classes, functional.nll_loss),
    "log-probabilities in a cross-entropy": lambda n: (behind(n.build(), nn.LogSoftmax(-1)), n.classes, None),
    "two classes": lambda n: (n.build(2), n.classes % 2, "cross_entropy"),
    "own loss": lambda n: (n.build(), n.classes, lambda o, t: functional.cross_entropy(o, t, label_smoothing=0.1)),
    "each with its own": lambda n: (n.build(1), NUMBERS, each_with_its_own),
    "targets in reach": lambda n: (behind(n.build(1), nn.Sigmoid()), NUMBERS[:, None], "mse"),
    "distributions": lambda n: (n.build(), functional.one_hot(n.classes, 10).float(), "cross_entropy"),
    "labels of 0 and 1": lambda n: (
        n.build(1),
        (NUMBERS > 0.5).float()[:, None],
        functional.binary_cross_entropy_with_logits,
    ),
    "critic": lambda n: (n.build(), n.classes, lambda o, t: -o.mean()),
    "with every other row": lambda n: (n.build(), n.classes, lambda o, t: functional.cross_entropy(o @ o.T, 0 * t)),
}


@pytest.mark.parametrize("case", CASES)
def test_a_loss_that_does_not_fit_is_an_error_and_the_only_one(net, case):
    rule, plant = CASES[case]
    model, targets, loss = plant(net)
    report = check(model, (net.inputs, targets), loss=loss)
    assert fired(report) == {rule: "error"}, str(report)
    (finding,) = (f for f in report.findings if f.rule == rule)
    assert all((finding.claim, finding.where, finding.consequence, finding.falsify, finding.source))
    assert "tests" in finding.evidence
    json.loads(report.to_json())


@pytest.mark.parametrize("twin", TWINS)
def test_a_loss_that_fits_is_silent(net, twin):
    model, targets, loss = TWINS[twin](net)
    report = check(model, (net.inputs, targets), loss=loss, optimizer="SGD", lr=0.01)
    assert not {"wrong_loss", "double_softmax"} & set(fired(report)), str(report)
    assert twin == "critic" or not fired(report), str(report)


def test_the_floor_of_a_second_softmax_is_what_theory_says(net):
    report = check(behind(net.build(), nn.Softmax(-1)), (net.inputs, net.classes))
    (finding,) = (f for f in report.findings if f.rule == "double_softmax")
    floor = finding.evidence["floor_of_the_loss"]
    assert floor["predicted"] == pytest.approx(math.log(1 + 9 / math.e))
    assert floor["value"] == pytest.approx(floor["predicted"], rel=1e-5)


def test_several_classes_at_once_are_a_warning(net):
    several = (torch.rand(32, 10, generator=torch.Generator().manual_seed(5)) > 0.5).float()
    assert fired(check(net.build(), (net.inputs, several), loss="cross_entropy")) == {"wrong_loss": "warn"}


def test_a_masked_target_is_none_of_the_loss_s_fault(net):
    targets = net.classes.clone()
    targets[::2] = -100
    assert not fired(check(net.build(), (net.inputs, targets)))


# Each leg of an error, without the others.

GOOD = Objective(attached=True, moves=True, classes=10, sums_to_one=True, shift=0.0, floor=1.4612, floor_of_logits=0.0)


def told(rule, **facts):
    trace = Trace((Site("0", 0, "Linear", (4, 8), ("0.weight",)),), (0,), {}, {"facts": Facts(loss="l", **facts)})
    return [f.severity for f in rule(trace)]


def test_double_softmax_needs_each_leg():
    assert told(double_softmax, objective=GOOD) == ["error"]
    assert told(double_softmax, objective=replace(GOOD, floor=0.8)) == ["warn"]  # theory says another floor
    assert told(double_softmax, objective=replace(GOOD, floor_of_logits=1.4)) == ["warn"]  # logits fare no better
    assert told(double_softmax, objective=replace(GOOD, sums_to_one=False)) == []
    assert told(double_softmax, objective=replace(GOOD, shift=-1.0)) == []
    assert told(double_softmax) == []


def test_targets_out_of_reach_need_each_leg():
    far = Objective(attached=True, moves=True, produced_by="tanh", reach=(-1, 1), outside=0.6, loss_within=9.0)
    assert told(wrong_loss, objective=far, loss_value=10.0) == ["error"]
    assert told(wrong_loss, objective=replace(far, outside=0.3), loss_value=10.0) == ["warn"]
    assert told(wrong_loss, objective=replace(far, loss_within=1.0), loss_value=10.0) == ["warn"]
    assert told(wrong_loss, objective=replace(far, outside=0.05), loss_value=10.0) == []


def test_unscaled_inputs_believe_their_own_test():
    scale = InputScale(rms=30.0, mean=0.0, deviation=30.0, features=1.0, reader="0", normalised=False)
    slow, ahead = Course((2.3, 2.29, 2.28, 2.28)), Course((2.4, 1.5, 1.2, 1.1))
    assert told(unscaled_input, inputs=scale, courses={"lr": ahead, "standardised": slow}) == ["info"]
    over = Course((2.4, 9.0, 1.2, 1.1))
    assert told(unscaled_input, inputs=scale, courses={"lr": over, "standardised": slow}) == ["warn"]
    unlearned = Course((24.0, 5.0, 2.29, 2.29))
    assert told(unscaled_input, inputs=scale, courses={"lr": unlearned, "standardised": slow}) == ["warn"]
    lost = Course((24.0, 8000.0, math.nan))
    assert told(unscaled_input, inputs=scale, courses={"lr": lost, "standardised": slow}) == ["error"]
    assert told(unscaled_input, inputs=scale, courses={"lr": lost, "standardised": lost}) == ["warn"]


def test_unscaled_inputs_need_each_leg():
    scale = InputScale(rms=100.0, mean=0.0, deviation=100.0, features=1.0, reader="0", normalised=False)
    slow, fast = Course((2.0,) * 11), Course(tuple(2.0 - 0.1 * i for i in range(11)))
    behind_it = {"lr": slow, "standardised": fast}
    assert told(unscaled_input, inputs=scale, courses=behind_it) == ["error"]
    assert told(unscaled_input, inputs=scale, courses={"lr": fast, "standardised": fast}) == ["warn"]
    assert told(unscaled_input, inputs=scale) == ["warn"]
    assert told(unscaled_input, inputs=replace(scale, normalised=True), courses=behind_it) == ["warn"]
    assert told(unscaled_input, inputs=replace(scale, normalised=True)) == []
    assert told(unscaled_input, inputs=replace(scale, rms=1.0, deviation=1.0), courses=behind_it) == []


# Inputs.


@pytest.mark.parametrize(
    "change", [lambda x: 100 * x + 128, lambda x: 1e-5 * x, lambda x: 0.02 * x + 5], ids=["bytes", "tiny", "off centre"]
)
def test_inputs_out_of_scale_are_said_and_what_follows_is_not(continuous, change):
    report = check(continuous.build(), (change(continuous.inputs), continuous.classes), optimizer="SGD", lr=0.1)
    assert not set(fired(report)) - {"unscaled_input"}, str(report)
    (finding,) = (f for f in report.findings if f.rule == "unscaled_input")
    assert finding.where["first"] == report.blocks[0]["site"]


@pytest.mark.parametrize("name", ["mlp", "gru"])
def test_inputs_that_stop_the_training_are_an_error(continuous, name):
    if continuous.name == name:
        report = check(continuous.build(), (1e-5 * continuous.inputs, continuous.classes))
        assert fired(report) == {"unscaled_input": "error"}


@pytest.mark.parametrize("change", [lambda x: x, torch.sigmoid, lambda x: 3 * x + 1], ids=["plain", "0 to 1", "small"])
def test_inputs_in_scale_are_silent(continuous, change):
    report = check(continuous.build(), (change(continuous.inputs), continuous.classes), optimizer="SGD", lr=0.01)
    assert not fired(report), str(report)


def test_inputs_that_are_normalised_first_are_silent():
    torch.manual_seed(0)
    x, y = 100 * torch.randn(32, 20) + 128, torch.arange(32) % 10
    first = nn.Sequential(nn.LayerNorm(20), nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 10))
    after = nn.Sequential(nn.Linear(20, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
    assert not fired(check(first, (x, y)))
    assert not fired(check(after, (x, y)))


def test_an_autoencoder_s_large_inputs_are_not_tried_otherwise():
    torch.manual_seed(0)
    x = 100 * torch.randn(32, 20)
    model = nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 20))
    report = check(model, (x, x))
    assert fired(report).get("unscaled_input") == "warn"


# Mode.


def normalised(name):
    torch.manual_seed(1)
    if name == "mlp":
        return nn.Sequential(nn.Linear(20, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10)), (32, 20)
    if name == "cnn":
        layers = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(16, 10)), (32, 3, 12, 12)
    return nn.Sequential(nn.Conv1d(4, 8, 3), nn.BatchNorm1d(8), nn.GELU(), nn.Flatten(), nn.Linear(48, 10)), (32, 4, 8)


@pytest.mark.parametrize("name", ["mlp", "cnn", "sequence"])
def test_batch_normalisation_in_evaluation_mode_is_a_warning(name):
    model, shape = normalised(name)
    batch = torch.randn(shape, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 10
    assert not fired(check(model, batch))
    buffers = {key: value.clone() for key, value in model.named_buffers()}
    report = check(model.eval(), batch)
    assert fired(report) == {"train_mode": "warn"}
    assert not any(m.training for m in model.modules())
    assert all(torch.equal(value, buffers[key]) for key, value in model.named_buffers())


def test_dropout_in_evaluation_mode_is_information(net):
    model = behind(net.build(), nn.Dropout(0.5)).eval()
    report = check(model, (net.inputs, net.classes))
    assert [(f.rule, f.severity) for f in report.findings] == [("train_mode", "info")]
    assert report.verdict == "healthy"
    assert not check(net.build().eval(), (net.inputs, net.classes)).findings


def test_frozen_batch_normalisation_in_a_model_that_trains_is_silent():
    model, shape = normalised("cnn")
    model[1].eval().requires_grad_(False)
    report = check(model, (torch.randn(shape, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 10))
    assert "train_mode" not in {f.rule for f in report.findings}
