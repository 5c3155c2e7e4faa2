"""Changes that are tried where no rule names a cause: faults that they mend, innocent twins, and each leg."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from levada.diagnose import check
from levada.diagnose.diagnostics.rank_collapse import rank_collapse
from levada.diagnose.diagnostics.short_memory import short_memory
from levada.diagnose.diagnostics.vanishing_signal import vanishing_signal
from levada.diagnose.facts import Facts
from levada.diagnose.rehearsal import Course
from levada.diagnose.trials import STEPS, Trial, gained
from levada.probe import Site, Trace

BATCHES, ROWS, FEATURES, CLASSES = 4, 32, 16, 5


def data(steps=0):
    generator = torch.Generator().manual_seed(0)
    centres = 1.5 * torch.randn(CLASSES, FEATURES, generator=generator)
    y = torch.arange(BATCHES * ROWS) % CLASSES
    x = centres[y] + torch.randn(len(y), FEATURES, generator=generator)
    if steps:
        x = x.reshape(len(x), steps, -1)
    return list(zip(x.split(ROWS), y.split(ROWS), strict=True))


def chain(depth=3, dim=32, act=nn.ReLU, norm=None, init=True):
    torch.manual_seed(0)
    widths = [FEATURES, *[dim] * depth]
    layers = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), *([norm(after)] if norm else []), act()]
    model = nn.Sequential(*layers, nn.Linear(dim, CLASSES))
    for p in model.parameters():
        if init and p.dim() > 1:
            nn.init.kaiming_normal_(p)
    return model


def told(model, batches=None, lr=3e-3, optimizer="Adam", **how):
    report = check(model, batches or data(), optimizer=optimizer, lr=lr, **how)
    return report, {f.rule: f.severity for f in report.findings if f.status == "fired" and f.severity != "info"}


class Scaled(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


def with_narrow(width):
    torch.manual_seed(0)
    around = nn.Linear(FEATURES, 32), nn.ReLU(), nn.Linear(32, width), nn.Linear(width, 32), nn.ReLU()
    return nn.Sequential(*around, nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, CLASSES))


def test_a_layer_of_one_unit_is_a_warning_at_its_place_and_four_units_are_none():
    report, fired = told(with_narrow(1))
    assert fired == {"rank_collapse": "warn"}, str(report)
    assert report.findings[0].where["first"] == "2"
    assert told(with_narrow(4))[1] == {}


def test_a_narrow_code_between_inputs_and_their_copy_is_meant():
    torch.manual_seed(0)
    layers = nn.Linear(FEATURES, 32), nn.ReLU(), nn.Linear(32, 1), nn.Linear(1, 32), nn.ReLU(), nn.Linear(32, FEATURES)
    assert told(nn.Sequential(*layers), [(x, x) for x, _ in data()], loss="mse")[1] == {}


def test_a_block_that_loses_the_difference_is_found_where_it_is():
    model = chain()
    model.insert(4, Scaled(1e-4))
    report, fired = told(model)
    assert set(fired) <= {"vanishing_signal", "vanishing_gradient"}, str(report)
    assert report.findings[0].where["first"] == "2"  # which returns to 3 and 4
    model = chain()
    model.insert(4, Scaled(0.3))
    assert told(model)[1] == {}


def test_what_averages_numbers_that_differ_by_chance_loses_nothing():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    x = torch.randn(32, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert "vanishing_signal" not in told(model, [(x, torch.arange(32) % 10)])[1]


def test_sigmoids_between_layers_are_found_though_norms_keep_the_signal():
    report, fired = told(chain(5, act=nn.Sigmoid, norm=nn.BatchNorm1d))
    assert fired == {"vanishing_signal": "warn"}, str(report)
    assert "sigmoids" in report.findings[0].evidence
    assert told(chain(5, act=nn.ReLU, norm=nn.BatchNorm1d))[1] == {}


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.value, self.gate, self.sigmoid = nn.Linear(32, 32), nn.Linear(32, 32), nn.Sigmoid()

    def forward(self, x):
        return self.value(x) * self.sigmoid(self.gate(x))


def test_gates_and_probabilities_are_no_squashed_layers():
    torch.manual_seed(0)
    gated = nn.Sequential(nn.Linear(FEATURES, 32), Gated(), Gated(), Gated(), nn.Linear(32, CLASSES))
    report, fired = told(gated, lr=1e-3)
    assert "vanishing_signal" not in fired, str(report)
    ended = nn.Sequential(chain(), nn.Sigmoid())
    y = [(x, nn.functional.one_hot(t, CLASSES).float()) for x, t in data()]
    assert "vanishing_signal" not in told(ended, y, loss=nn.functional.binary_cross_entropy)[1]


def test_a_plain_stack_that_asks_for_normalisation_is_found():
    report, fired = told(chain(8, 48, init=False), optimizer="SGD", lr=0.02)
    assert fired.get("vanishing_signal") == "warn", str(report)
    assert "normalisation" in report.findings[0].claim
    assert told(chain(8, 48, norm=nn.BatchNorm1d, init=False), optimizer="SGD", lr=0.02)[1] == {}
    assert told(chain(3), optimizer="SGD", lr=0.02)[1] == {}


def blobs(shares=(1, 1, 1), rows=32, seed=0):
    """Rows around one of three centres, as often as the shares say."""
    g = torch.Generator().manual_seed(seed)
    y = torch.multinomial(torch.tensor(shares, dtype=torch.float), rows, replacement=True, generator=g)
    return torch.randn(3, 20, generator=g)[y] + torch.randn(rows, 20, generator=g), y


def tanh_net(depth, seed):
    torch.manual_seed(seed)
    layers = [m for _ in range(depth - 2) for m in (nn.Linear(64, 64), nn.Tanh())]
    return nn.Sequential(nn.Linear(20, 64), nn.Tanh(), *layers, nn.Linear(64, 3))


def momentum(lr):
    return lambda parameters: torch.optim.SGD(parameters, lr=lr, momentum=0.9)


@pytest.mark.parametrize("seed", [0, 4])
def test_one_batch_is_enough_where_the_stack_is_deeper_than_such_blocks_train(seed):
    report, fired = told(tanh_net(14, seed), blobs(seed=seed), lr=None, optimizer=momentum(0.01))
    assert fired == {"vanishing_signal": "warn"}, str(report)
    evidence = report.findings[0].evidence
    assert evidence["trainable_depth"] < 13
    assert evidence["tests"]["share_of_gain_as_it_is"] < 0.1


def test_on_one_batch_a_stack_that_such_blocks_train_or_that_learns_is_left_alone():
    for model, optimizer in ((tanh_net(9, 0), momentum(0.002)), (tanh_net(14, 0), "Adam")):
        report, fired = told(model, blobs(), optimizer=optimizer, lr=None if callable(optimizer) else 3e-3)
        assert fired == {}, str(report)


def test_on_one_batch_what_needs_no_inputs_is_no_gain():
    report, fired = told(tanh_net(14, 0), blobs((8, 1, 1)), lr=None, optimizer=momentum(0.01))
    assert fired == {"vanishing_signal": "warn"}, str(report)
    tests = report.findings[0].evidence["tests"]
    assert tests["share_of_gain_as_it_is"] > 0.1  # most of it is how often each class comes


class Last(nn.Module):
    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = kind(4, 32, batch_first=True), nn.Linear(32, CLASSES)

    def forward(self, x):
        return self.head(self.body(x)[0][:, -1])


def padded(steps):
    return [(nn.functional.pad(x, (0, 0, 0, steps)), y) for x, y in data(4)]


@pytest.mark.parametrize("kind", [nn.GRU, nn.RNN])
def test_padding_before_the_state_that_is_read_is_found(kind):
    report, fired = told(Last(kind), padded(40))
    assert set(fired) == {"short_memory"}, str(report)
    assert told(Last(kind), padded(0))[1] == {}


def course(*losses):
    return Course(losses, steps=len(losses) - 1)


def test_a_share_is_of_what_the_changed_model_gains():
    assert gained(course(2.0, 2.0, 2.0), course(2.0, 1.0, 1.0)) == 0.0
    assert gained(course(2.0, 1.0, 1.0), course(2.0, 0.0, 0.0)) == 0.5
    assert gained(course(2.0, math.inf), course(2.0, 1.0, 1.0)) == 0.0
    assert gained(course(2.0, 1.0), course(2.0, math.inf)) == math.inf


def test_rules_say_what_was_tried_and_nothing_without_it():
    pair = course(2.0, 2.0, 2.0), course(2.0, 1.0, 1.0)
    sites = tuple(Site(str(i), i, "Linear", (8, 8)) for i in range(3))

    def said(rule, **trials):
        return [(f.severity, f.where["first"]) for f in rule(Trace(sites, (0,), {}, {"facts": Facts(trials=trials)}))]

    squashed = Trial("tanh", ("1", "2"), {"sigmoids": 2, "slope": 0.25}, (pair,) * 3)
    assert said(vanishing_signal, squashed=squashed) == [("warn", "1")]
    padding = Trial("these left out", ("1", "1"), {"module": "1", "steps": 9, "same_at_the_end": 8}, (pair,) * 3)
    assert said(short_memory, padding=padding) == [("warn", "1")]
    assert said(rank_collapse, padding=padding) == []
    assert said(vanishing_signal, padding=padding) == []
    assert f"{STEPS} steps" in squashed.told()
    assert squashed.ends == (2.0, 1.0)


def test_the_model_comes_back_as_it_was():
    model = with_narrow(1)
    held = {name: t.clone() for name, t in model.state_dict().items()}
    modules = dict(model.named_modules())
    assert told(model)[1]
    assert {name: id(m) for name, m in model.named_modules()} == {name: id(m) for name, m in modules.items()}
    assert all(torch.equal(t, held[name]) for name, t in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
