"""What a loss asks for: each fault is told from the loss alone; losses that only look like one are left in peace."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from levada.diagnose import check
from levada.diagnose.answers import Answers, Confined
from levada.diagnose.diagnostics.wrong_loss import wrong_loss
from levada.diagnose.facts import Facts
from levada.diagnose.loss import resolve_loss
from levada.diagnose.objective import Objective, examine
from levada.inputs import Batch
from levada.probe.trace import Site, Trace

ROWS, CLASSES, TIME = 24, 6, 5


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


INPUTS = draw(ROWS, 12)
LABELS = torch.arange(ROWS) % CLASSES
# In another order, so that no change of rows is only a change of names.
MIXED = LABELS[torch.randperm(ROWS, generator=torch.Generator().manual_seed(7))]
FLAGS = (draw(ROWS, 1, seed=1) > 0).float()
NUMBERS = draw(ROWS, CLASSES, seed=2)
ADVANTAGES = draw(ROWS, seed=3)
RETURNS = -draw(ROWS, seed=4).abs() - 0.5
SOFT = draw(ROWS, CLASSES, seed=5).softmax(1)
OTHER = draw(ROWS, CLASSES, seed=6)
FEW = torch.where(LABELS == 2, -100, LABELS)
TOKENS = torch.arange(ROWS * TIME).reshape(ROWS, TIME) % CLASSES
ONE_HOT = functional.one_hot(LABELS, CLASSES).float()


def cross_entropy(out, targets):
    return functional.cross_entropy(out, targets)


def chosen(out, targets):
    return out.log_softmax(1).gather(1, targets[:, None])[:, 0]


def focal(out, targets):
    likely = chosen(out, targets)
    return -((1 - likely.exp()) ** 2 * likely).mean()


def alike(out, targets):
    """Supervised contrast: rows of a class come close."""
    near = functional.normalize(out, dim=1) @ functional.normalize(out, dim=1).T / 0.1
    same = (targets[:, None] == targets).float() - torch.eye(len(out))
    near = near - 1e9 * torch.eye(len(out))
    return -(near.log_softmax(1).clamp_min(-1e8) * same).sum(1).div(same.sum(1).clamp_min(1)).mean()


def within(out, targets):
    """Rows come to the middle of their class."""
    share = (targets[:, None] == targets).float()
    return (out - share @ out / share.sum(1, keepdim=True)).square().mean()


def triplets(out, targets):
    distances = torch.cdist(out, out)
    same = targets[:, None] == targets
    return (1 + distances[same].mean() - distances[~same]).relu().mean()


def correlation(out, targets):
    return -functional.cosine_similarity(out - out.mean(0), targets - targets.mean(0), dim=0).mean()


def kernel(x, y):
    return torch.exp(-torch.cdist(x, y).square() / 8).mean()


def discrepancy(out, targets):
    return kernel(out, out) + kernel(targets, targets) - 2 * kernel(out, targets)


def ranks(out, targets):
    apart = (out[:, None] - out) * (targets[:, None] - targets).sign()
    return functional.softplus(-apart).mean()


def policy(weights):
    return lambda out, targets: -(weights * chosen(out, targets)).mean()


def tokens(out, targets):
    return functional.cross_entropy(out.flatten(0, 1), targets.flatten())


# name of the answer, outputs, targets, loss.
PLANTED = {
    "the wrong sign": ("falling", NUMBERS, LABELS, lambda o, t: -cross_entropy(o, t)),
    "the wrong sign, some rows left out": ("falling", NUMBERS, FEW, lambda o, t: -cross_entropy(o, t)),
    "the wrong sign, one-hot": ("falling", NUMBERS, ONE_HOT, lambda o, t: -cross_entropy(o, t)),
    "the wrong sign, tokens": ("falling", draw(ROWS, TIME, CLASSES), TOKENS, lambda o, t: -tokens(o, t)),
    "the wrong sign, squared": ("falling", OTHER, NUMBERS, lambda o, t: -functional.mse_loss(o, t)),
    "the wrong sign, flags": (
        "falling",
        NUMBERS[:, :1],
        FLAGS,
        lambda o, t: -functional.binary_cross_entropy_with_logits(o, t),
    ),
    "all with all": ("unpaired", OTHER, NUMBERS, lambda o, t: (o.unsqueeze(1) - t).square().mean()),
    "all with all, absolute": ("unpaired", OTHER, NUMBERS, lambda o, t: (o.unsqueeze(1) - t).abs().mean()),
    "numbers of classes": ("numbers", NUMBERS, LABELS, lambda o, t: (o - t[:, None]).square().mean()),
    "numbers of classes, absolute": ("numbers", NUMBERS, LABELS, lambda o, t: (o - t[:, None]).abs().mean()),
    "across rows": ("across", NUMBERS, LABELS, lambda o, t: functional.nll_loss(o.log_softmax(0), t)),
    "across time": (
        "across",
        draw(ROWS, TIME, CLASSES),
        TOKENS // 2,
        lambda o, t: functional.nll_loss(o.log_softmax(1).flatten(0, 1), t.flatten()),
    ),
}
SOUND = {
    "cross-entropy": (NUMBERS, LABELS, cross_entropy),
    "some rows left out": (NUMBERS, FEW, cross_entropy),
    "soft targets": (NUMBERS, SOFT, cross_entropy),
    "tokens": (draw(ROWS, TIME, CLASSES), TOKENS, tokens),
    "smoothed": (NUMBERS, LABELS, nn.CrossEntropyLoss(label_smoothing=0.1)),
    "weighted": (NUMBERS, LABELS, nn.CrossEntropyLoss(weight=torch.arange(1.0, CLASSES + 1))),
    "focal": (NUMBERS, LABELS, focal),
    "hinge": (NUMBERS, LABELS, nn.MultiMarginLoss()),
    "squared error of one-hot": (NUMBERS, LABELS, lambda o, t: (o - functional.one_hot(t, CLASSES)).square().mean()),
    "squared error of given one-hot": (NUMBERS, ONE_HOT, nn.MSELoss()),
    "flags": (NUMBERS[:, :1], FLAGS, nn.BCEWithLogitsLoss()),
    "flags, probabilities": (NUMBERS[:, :1].sigmoid(), FLAGS, nn.BCELoss()),
    "counts": (NUMBERS, LABELS[:, None].float().expand(-1, CLASSES), nn.PoissonNLLLoss()),
    "squared": (OTHER, NUMBERS, nn.MSELoss()),
    "likelihood of a density": (OTHER, NUMBERS, lambda o, t: 50 * (o - t).square().mean() - 3.0),
    "quantiles": (OTHER, NUMBERS, lambda o, t: torch.maximum(0.9 * (t - o), 0.1 * (o - t)).mean()),
    "cosine": (OTHER, NUMBERS, lambda o, t: -functional.cosine_similarity(o, t).mean()),
    "correlation": (OTHER, NUMBERS, correlation),
    "discrepancy of two samples": (OTHER, NUMBERS, discrepancy),
    "order": (NUMBERS[:, 0], OTHER[:, 0], ranks),
    "critic": (NUMBERS[:, :1], 2 * FLAGS - 1, lambda o, t: -(o * t).mean()),
    "critic, other sign": (NUMBERS[:, :1], FLAGS, lambda o, t: ((2 * t - 1) * o).mean()),
    "generator": (NUMBERS[:, :1], torch.ones(ROWS, 1), nn.BCEWithLogitsLoss()),
    "classes by distance": (NUMBERS.abs(), LABELS, lambda o, t: cross_entropy(-o, t)),
    "contrast of classes": (NUMBERS, MIXED, alike),
    "a length that counts": (NUMBERS, MIXED, lambda o, t: (o.norm(dim=1) - 2.3 * t).square().mean()),
    "spread within classes": (NUMBERS, MIXED, within),
    "triplets": (NUMBERS, MIXED, triplets),
    "views, by columns": (draw(ROWS, ROWS), torch.arange(ROWS), lambda o, t: cross_entropy(o.T, t)),
    "views, both ways": (
        draw(ROWS, ROWS),
        torch.arange(ROWS),
        lambda o, t: cross_entropy(o, t) + cross_entropy(o.T, t),
    ),
    "policy, advantages": (NUMBERS, LABELS, policy(ADVANTAGES)),
    "policy, costs": (NUMBERS, LABELS, policy(RETURNS)),
    "of the outputs alone": (NUMBERS, LABELS, lambda o, t: o.square().mean()),
    "means of the batch": (OTHER, NUMBERS, lambda o, t: (o.mean(0) - t.mean(0)).square().sum()),
}


def answered(out, targets, given, last=""):
    batch = Batch((INPUTS,), {}, targets, True)
    loss = resolve_loss(given, out, batch)
    return examine(loss, out.clone().requires_grad_(), batch, last)


def severities(objective, loss_value=1.0):
    facts = Facts(loss="l", objective=objective, loss_value=loss_value)
    trace = Trace((Site("0", 0, "Linear", (4, 8), ("0.weight",)),), (0,), {}, {"facts": facts})
    return [f.severity for f in wrong_loss(trace)]


@pytest.mark.parametrize("case", PLANTED)
def test_what_a_loss_asks_for_in_error_is_told(case):
    name, out, targets, loss = PLANTED[case]
    told = answered(out, targets, loss)
    assert getattr(told.answers, name) is not None
    assert severities(told) == ["warn" if name in ("numbers", "falling") else "error"]


@pytest.mark.parametrize("case", SOUND)
def test_a_sound_loss_is_left_in_peace(case):
    told = answered(*SOUND[case])
    assert told.moves is not False
    assert not severities(told), told


def test_the_floor_of_a_softmax_across_rows_is_how_often_a_class_stands_there():
    _, out, targets, loss = PLANTED["across rows"]
    value, predicted = answered(out, targets, loss).answers.floor_across
    assert value == pytest.approx(predicted, rel=1e-5) == pytest.approx(math.log(ROWS / CLASSES))


@pytest.mark.parametrize(
    ("last", "function", "severity", "width"),
    [("sigmoid", torch.sigmoid, ["error"], 1), ("tanh", torch.tanh, ["error"], 2)],
)
def test_a_bounded_range_before_a_softmax_leaves_a_floor(last, function, severity, width):
    told = answered(function(NUMBERS), LABELS, cross_entropy, last)
    floor = math.log(1 + (CLASSES - 1) * math.exp(-width))
    assert told.answers.confined.floor == pytest.approx(floor) == pytest.approx(told.answers.confined.predicted)
    assert severities(told) == severity
    # A temperature inside of the loss makes up for the range; a binary loss is meant for it.
    assert not severities(answered(function(NUMBERS), LABELS, lambda o, t: cross_entropy(16 * o, t), last))
    assert not severities(answered(function(NUMBERS[:, :1]), FLAGS, nn.MSELoss(), last))
    assert not severities(answered(NUMBERS, LABELS, cross_entropy, last))  # made by another function after all


def test_a_floor_needs_each_leg():
    high = Objective(attached=True, moves=True, classes=10, answers=Answers(confined=Confined(1.46, 1.461, 0.0)))
    assert severities(high) == ["error"]
    for confined, said in (
        (Confined(1.46, 0.9, 0.0), ["warn"]),  # theory says another floor
        (Confined(0.4, 0.4, 0.0), ["warn"]),  # low
        (Confined(0.1, 0.1, 0.0), []),  # no matter
        (Confined(1.46, 1.461, 1.4), []),  # large logits fare no better
    ):
        assert severities(replace(high, answers=Answers(confined=confined))) == said


def test_a_class_behind_a_relu_that_is_zero_in_every_row_is_an_error():
    out = NUMBERS.abs()
    assert not severities(answered(out, LABELS, cross_entropy, "relu"))
    dead = out * (torch.arange(CLASSES) != 2)
    told = answered(dead, LABELS, cross_entropy, "relu")
    assert told.answers.dead == (2,)
    assert told.answers.raised < 0
    assert severities(told) == ["error"]
    assert severities(answered(NUMBERS.relu(), LABELS, cross_entropy, "relu")) == ["warn"]
    assert not severities(answered(NUMBERS.relu(), SOFT, nn.MSELoss(), "relu"))
    absent = torch.where(LABELS == 2, 3, LABELS)  # nothing asks for it
    assert answered(dead, absent, cross_entropy, "relu").answers.dead == ()


def net(*after):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, CLASSES), *after)


@pytest.mark.parametrize(
    ("model", "targets", "loss", "severity"),
    [
        (net, LABELS, lambda o, t: -cross_entropy(o, t), "warn"),
        (net, NUMBERS, lambda o, t: (o.unsqueeze(1) - t).square().mean(), "error"),
        (lambda: net(nn.Sigmoid()), LABELS, None, "error"),
        (lambda: net(nn.ReLU()), LABELS, None, "warn"),
        (net, LABELS, lambda o, t: (o - t[:, None]).square().mean(), "warn"),
    ],
    ids=["sign", "broadcast", "sigmoid", "relu", "numbers"],
)
def test_a_check_says_it_and_nothing_else(model, targets, loss, severity):
    report = check(model(), (INPUTS, targets), loss=loss, optimizer="Adam", lr=1e-3)
    said = {f.rule: f.severity for f in report.findings if f.status == "fired" and f.severity != "info"}
    assert said.get("wrong_loss") in ("error", "warn"), str(report)
    assert said == {"wrong_loss": said["wrong_loss"]}
    assert severity == "warn" or said["wrong_loss"] == "error"


@pytest.mark.parametrize(
    ("model", "targets", "loss"),
    [
        (lambda: net(nn.Sigmoid()), SOFT, "mse"),
        (lambda: net(nn.ReLU()), NUMBERS.abs(), "mse"),
        (lambda: net(nn.Softplus()), NUMBERS.abs(), "mse"),
        (lambda: net(nn.Hardtanh(-20, 20)), LABELS, None),
        (net, LABELS, focal),
    ],
    ids=["sigmoid to [0, 1]", "relu to positive", "softplus to positive", "clipped logits", "focal"],
)
def test_a_range_that_fits_is_silent(model, targets, loss):
    report = check(model(), (INPUTS, targets), loss=loss, optimizer="Adam", lr=1e-3)
    assert not any(f.rule == "wrong_loss" for f in report.findings), str(report)
