"""Rates that are too low for a reason, rates that throw the loss about, and losses that no rate lowers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from levada.diagnose import check
from levada.diagnose.diagnostics.learning_rate import learning_rate_too_high, learning_rate_too_low
from levada.diagnose.diagnostics.no_progress import no_progress
from levada.diagnose.facts import Facts
from levada.diagnose.rates import _falls
from levada.diagnose.rehearsal import Course
from levada.probe.trace import Site, Trace


def fired(report):
    return {f.rule: f.severity for f in report.findings if f.status == "fired" and f.severity != "info"}


def claim(report):
    (finding,) = [f for f in report.findings if f.status == "fired"]
    return finding.claim


def told(rule, ratio=0.05, signals=None, **facts):
    """Return the severities that a rule gives on two blocks with these facts."""
    sites = tuple(Site(str(i), i, "Linear", (4, 8), (f"{i}.weight",)) for i in range(2))
    values = {"update_ratio": ratio, **(signals or {})}
    columns = {name: torch.tensor([[value, value]], dtype=torch.float64) for name, value in values.items()}
    known = Facts(**{"optimizer": "Adam", "lr": 0.1, "loss_constant": 2.0, "loss_value": 2.0, **facts})
    return [f.severity for f in rule(Trace(sites, (0,), columns, {"facts": known}))]


def falls_by(share, scale=1.0):
    return Course(tuple(2.0 - 2.0 * share * i / 9 for i in range(11)), scale)


def clipped(norm):
    def build(parameters):
        optimizer = torch.optim.Adam(parameters, lr=1e-2)
        held = [p for group in optimizer.param_groups for p in group["params"]]

        def clip(*_):
            nn.utils.clip_grad_norm_(held, norm)

        optimizer.register_step_pre_hook(clip)
        return optimizer

    return build


def warming(lr, factor):
    def build(parameters):
        optimizer = torch.optim.AdamW(parameters, lr=lr)
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor)
        return optimizer

    return build


class Cold(nn.Module):
    """Divides logits by what makes the loss deaf to them."""

    def __init__(self, inner, factor):
        super().__init__()
        self.inner, self.factor = inner, factor

    def forward(self, x):
        return self.factor * self.inner(x)


def test_a_rate_below_those_in_use_warns_of_a_fresh_model_and_those_in_use_do_not(net):
    if net.name == "cnn":
        pytest.skip("it cannot tell noise by its mean at any rate")
    model, batch = net.build(), (net.inputs, net.classes)
    assert fired(check(model, batch, optimizer="AdamW", lr=1e-6)) == {"learning_rate_too_low": "warn"}
    assert not fired(check(model, batch, optimizer="SGD", lr=1e-2))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        functional.cross_entropy(model(net.inputs), net.classes).backward()
        optimizer.step()
    assert functional.cross_entropy(model(net.inputs), net.classes) < 1.8
    for lr in (1e-6, 1e-5, 5e-5):  # as in fine-tuning
        assert not fired(check(model, batch, optimizer="AdamW", lr=lr))


def test_what_holds_the_step_back_is_named(net):
    if net.name == "cnn":
        pytest.skip("it cannot tell noise by its mean at any rate")
    batch = net.inputs, net.classes
    report = check(net.build(), batch, optimizer=lambda p: torch.optim.Adam(p, lr=1e-3, eps=10.0))
    assert set(fired(report)) == {"learning_rate_too_low"}
    assert "eps of 10" in claim(report)
    report = check(net.build(), batch, optimizer=clipped(1e-9))
    assert set(fired(report)) == {"learning_rate_too_low"}
    assert "hook" in claim(report)
    assert not fired(check(net.build(), batch, optimizer=clipped(1.0)))
    assert not fired(check(net.build(), batch, optimizer=lambda p: torch.optim.Adam(p, lr=1e-2)))


@pytest.mark.parametrize("factor", [0.0, 1e-6, 1.0])
def test_a_warm_up_is_judged_by_the_rate_that_it_leads_to(net, factor):
    batch = net.inputs, net.classes
    report = check(net.build(), batch, optimizer=warming(1e-3, factor))
    assert not fired(report)
    assert any("scheduler leads to lr 0.001" in note for note in report.notes) == (factor < 1)
    report = check(net.build(), batch, optimizer=warming(1e-8, factor))
    assert set(fired(report)) == {"learning_rate_too_low"}
    assert "lr 1e-08" in claim(report)


def test_a_rate_of_zero_is_not_judged(net):
    report = check(net.build(), (net.inputs, net.classes), optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    assert not fired(report)
    assert report.unknown["no_progress"] == "the learning rate is 0"


def test_a_loss_that_is_deaf_to_the_weights_is_found(net):
    batch = net.inputs, net.classes
    report = check(Cold(net.build(), 1e-4), batch, optimizer="Adam", lr=1e-2)
    assert "no_progress" in fired(report) or {"vanishing_signal", "vanishing_gradient"} & set(fired(report)), str(
        report
    )
    assert fired(report).get("no_progress", "warn") == "warn"
    assert not fired(check(Cold(net.build(), 1.0), batch, optimizer="Adam", lr=1e-2))


def test_no_progress_needs_each_leg():
    still = {"lr": falls_by(1e-4), "lower": falls_by(1e-5, 0.1)}
    assert told(no_progress, courses=still) == ["warn"]
    assert told(no_progress, courses={**still, "lower": falls_by(0.01, 0.1)}) == []  # a lower rate does
    assert told(no_progress, courses={"lr": falls_by(1e-4)}) == []  # no other was tried
    assert told(no_progress, ratio=1e-3, courses=still) == []  # the weights hardly move
    assert told(no_progress, ratio=1e-3, courses={**still, "highest": falls_by(0.0, 100.0)}) == ["warn"]
    assert told(no_progress, ratio=1e-3, courses={**still, "highest": falls_by(-0.5, 100.0)}) == []  # thrown up
    assert told(no_progress, courses=still, loss_value=1.0) == []  # it has learned
    assert told(no_progress, courses=still, loss_constant=None) == []


def test_too_low_of_larger_steps_needs_each_leg():
    case = {"lr": falls_by(0.005), "higher": falls_by(0.2, 20.0)}
    assert told(learning_rate_too_low, ratio=1e-5, courses=case) == ["warn"]
    assert told(learning_rate_too_low, ratio=5e-4, courses=case) == []  # as rates in use
    assert told(learning_rate_too_low, ratio=1e-5, courses={**case, "higher": falls_by(0.04, 20.0)}) == []
    assert told(learning_rate_too_low, ratio=1e-5, courses=case, loss_value=1.0) == []
    assert told(learning_rate_too_low, ratio=1e-5, courses=case, loss_constant=None) == []
    held = {"lr": falls_by(0.03), "higher": falls_by(0.2, 20.0)}
    assert told(learning_rate_too_low, ratio=5e-4, courses=held) == []
    assert told(learning_rate_too_low, ratio=5e-4, courses=held, signals={"eps_fraction": 0.9}) == ["warn"]
    assert told(learning_rate_too_low, ratio=5e-4, courses=held, signals={"lost_fraction": 0.9}) == ["warn"]
    assert told(learning_rate_too_low, ratio=5e-4, courses=held, shrunk=1e-6) == ["warn"]
    assert told(learning_rate_too_low, ratio=5e-4, courses=held, shrunk=0.5) == []


def test_thrown_about_needs_each_leg():
    case = {"lr": falls_by(0.05), "lower": falls_by(0.3, 0.1)}
    assert told(learning_rate_too_high, courses=case) == ["warn"]
    assert told(learning_rate_too_high, courses={**case, "lower": falls_by(0.12, 0.1)}) == []
    assert told(learning_rate_too_high, courses=case, loss_value=1.0) == []
    up_later = Course((2.0, 1.0, *[9.0] * 9))  # as where gradients are clipped in the loop
    assert told(learning_rate_too_high, courses={**case, "lr": up_later}) == []


def test_a_course_ends_early_where_it_falls_steadily():
    assert _falls([2.0, 1.9, 1.8, 1.7])
    assert not _falls([2.0, 1.9, 1.8])
    assert not _falls([2.0, 1.7, 1.8, 1.6])
    assert not _falls([2.0, 1.99, 1.98, 1.97])
    assert _falls([-2.0, -2.1, -2.2, -2.3])


@pytest.mark.parametrize(("name", "lr"), [("SGD", 1e-9), ("SGD", 1e-12), ("Adam", 1e-12)])
def test_a_step_that_rounding_takes_whole_is_too_short(name, lr):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    labels = torch.arange(64) % 4
    report = check(model, (torch.randn(64, 16) + 2.0 * labels[:, None], labels), optimizer=name, lr=lr)
    assert fired(report) == {"learning_rate_too_low": "error"}
