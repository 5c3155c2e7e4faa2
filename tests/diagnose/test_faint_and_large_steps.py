"""Steps that break the weights, that eps holds back, that are too short or too long for what they gain."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from levada.diagnose import check
from levada.diagnose.diagnostics.learning_rate import learning_rate_too_high, learning_rate_too_low
from levada.diagnose.diagnostics.no_progress import no_progress
from levada.diagnose.facts import Facts
from levada.diagnose.objective import Objective
from levada.diagnose.rehearsal import Course
from levada.probe.trace import Site, Trace

GENERATOR = torch.Generator().manual_seed(0)
CENTRES = torch.randn(8, 32, generator=GENERATOR)
CLASSES = torch.randint(8, (128,), generator=GENERATOR)
X = CENTRES[CLASSES] + torch.randn(128, 32, generator=GENERATOR)
TOKENS = torch.randint(16, (128, 8), generator=GENERATOR)


def batches(inputs=X, targets=CLASSES):
    return [(inputs[i::4], targets[i::4]) for i in range(4)]


def perceptron(depth=2, width=32, norm=False):
    torch.manual_seed(0)
    layers = [nn.Linear(32, width), nn.ReLU()]
    for _ in range(depth):
        layers += [*([nn.LayerNorm(width)] if norm else []), nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 8))


class Encoder(nn.Module):
    """Normalises behind each sum, so that large steps leave it on a plateau."""

    def __init__(self, depth=4):
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.embed, self.head = nn.Embedding(16, 32), nn.Linear(32, 8)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)

    def forward(self, tokens):
        return self.head(self.encoder(self.embed(tokens)).mean(1))


def adam(lr=1e-3, **options):
    return lambda parameters: torch.optim.Adam(parameters, lr=lr, **options)


def fired(report):
    return {f.rule: f.severity for f in report.findings if f.status == "fired" and f.severity != "info"}


def claim(report):
    return next(f.claim for f in report.findings if f.status == "fired" and f.severity != "info")


def told(rule, ratio=0.05, signals=None, **facts):
    """Return the severities that a rule gives on three blocks with these facts."""
    sites = tuple(Site(str(i), i, "Linear", (4, 8), (f"{i}.weight",)) for i in range(3))
    values = {"update_ratio": ratio, **(signals or {})}
    rows = {name: value if isinstance(value, list) else [value] * 3 for name, value in values.items()}
    columns = {name: torch.tensor([row], dtype=torch.float64) for name, row in rows.items()}
    known = Facts(**{"optimizer": "Adam", "eps": 1e-8, "lr": 0.1, "loss_constant": 2.0, "loss_value": 2.0, **facts})
    return [f.severity for f in rule(Trace(sites, (0,), columns, {"facts": known}))]


def falls_by(share, scale=1.0, start=2.0):
    return Course(tuple(start - start * share * i / 9 for i in range(11)), scale)


def falls_to(end, start=2.0, late=None):
    """A course of 40 steps that reaches its end halfway, or falls by `late` from there on."""
    middle = end if late is None else end + late
    first = [start + (middle - start) * min(1.0, i / 20) for i in range(21)]
    return Course((*first, *(middle + (end - middle) * min(1.0, i / 15) for i in range(1, 21))), 1.0, steps=40)


# A step that breaks the weights.


def half(model):
    return model.half(), [(x.half(), y) for x, y in batches()]


def widened_loss(outputs, targets):
    return functional.cross_entropy(outputs.float(), targets)


def test_adam_on_float16_weights_divides_by_an_eps_of_zero():
    model, data = half(perceptron())
    report = check(model, data, loss=widened_loss, optimizer=adam())
    assert fired(report) == {"numerical_overflow": "error"}
    finding = next(f for f in report.findings if f.rule == "numerical_overflow")
    assert "eps of 1e-08 is zero" in finding.claim
    assert "in float32 it breaks none" in finding.claim
    assert finding.evidence["tests"]["gain_of_exact_step"] > 0
    assert any("same step in float32" in sentence for sentence in finding.ruled_out)
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


@pytest.mark.parametrize(
    "optimizer", [adam(eps=1e-4), lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9), None], ids=["eps", "sgd", "none"]
)
def test_float16_weights_whose_step_is_finite_or_not_chosen_are_not_broken(optimizer):
    model, data = half(perceptron())
    assert "numerical_overflow" not in fired(check(model, data, loss=widened_loss, optimizer=optimizer))


def test_bfloat16_has_an_eps():
    model = perceptron().bfloat16()
    data = [(x.bfloat16(), y) for x, y in batches()]
    assert "numerical_overflow" not in fired(check(model, data, loss=widened_loss, optimizer=adam()))


def test_an_eps_of_zero_breaks_what_has_no_gradient_in_float32_too():
    model = perceptron()
    with torch.no_grad():
        model[0].bias[0] = -100.0  # the unit is off, and its gradient zero
    report = check(model, batches(), optimizer=adam(eps=0.0))
    assert fired(report)["numerical_overflow"] == "error"
    assert "in float32 too" in claim(report)
    assert "numerical_overflow" not in fired(check(model, batches(), optimizer=adam(eps=1e-8)))


# An eps above the gradients, and a loss below eps.


@pytest.mark.parametrize("depth", [2, 8])
def test_an_eps_above_the_gradients_is_named(depth):
    model = perceptron(depth, norm=depth > 2)
    report = check(model, batches(), optimizer=adam(eps=1.0))
    assert fired(report) == {"learning_rate_too_low": "warn"}
    assert "with an eps of 1e-08" in claim(report)
    assert not fired(check(model, batches(), optimizer=adam()))


def test_a_rate_that_was_chosen_for_its_eps_is_left_in_peace():
    model = perceptron(norm=True)
    for optimizer in (adam(eps=1e-3), adam(lr=1.0, eps=1.0), lambda p: torch.optim.RMSprop(p, lr=0.5, eps=1.0)):
        assert not fired(check(model, batches(), optimizer=optimizer))


@pytest.mark.parametrize("optimizer", [adam(), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)], ids=["adam", "sgd"])
def test_a_loss_that_is_too_faint_to_move_the_weights(optimizer):
    def faint(factor):
        return lambda outputs, targets: factor * functional.cross_entropy(outputs, targets)

    assert set(fired(check(perceptron(norm=True), batches(), loss=faint(1e-8), optimizer=optimizer))) == {
        "learning_rate_too_low"
    }
    assert not fired(check(perceptron(norm=True), batches(), loss=faint(1e-2), optimizer=adam()))


def test_a_held_step_needs_each_leg():
    case = {"lr": falls_by(0.05), "undamped": falls_by(0.5)}
    signals = {"eps_fraction": 0.9}
    assert told(learning_rate_too_low, 1e-3, signals, courses=case) == ["warn"]
    assert told(learning_rate_too_low, 1e-3, signals, courses={"lr": falls_by(0.05)}) == []
    assert told(learning_rate_too_low, 1e-3, signals, courses={"lr": falls_by(0.25), "undamped": falls_by(0.9)}) == []
    assert told(learning_rate_too_low, 1e-3, signals, courses={**case, "undamped": falls_by(0.09)}) == []
    assert told(learning_rate_too_low, 1e-3, signals, courses={**case, "undamped": falls_by(-0.5)}) == []
    assert told(learning_rate_too_low, 1e-3, signals, courses=case, loss_value=1.0) == []
    above = {
        "lr": falls_by(0.2, start=4.0),
        "undamped": falls_by(0.45, start=4.0),
    }  # it only comes down to that of zeros
    assert told(learning_rate_too_low, 1e-3, signals, courses=above, loss_value=4.0) == []
    unknown = {"loss_constant": None, "objective": Objective(of_zeros=2.0)}
    assert told(learning_rate_too_low, 1e-3, signals, courses=case, **unknown) == ["warn"]


# Steps that are short beside those of rates in use.


def test_a_short_step_of_what_rescales_gradients_warns_and_those_in_use_do_not():
    report = check(perceptron(), batches(), optimizer="AdamW", lr=2e-5)
    assert fired(report) == {"learning_rate_too_low": "warn"}
    assert not fired(check(perceptron(), batches()[:1], optimizer="AdamW", lr=2e-5))  # one batch tells too little
    for name, lr in (("AdamW", 1e-4), ("AdamW", 3e-4), ("SGD", 1e-2)):
        assert not fired(check(perceptron(), batches(), optimizer=name, lr=lr))


@pytest.mark.parametrize("lr", [2e-5, 5e-5])
def test_a_new_head_on_a_wide_trained_body_is_fine_tuned_in_peace(lr):
    model = perceptron(width=512)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(60):
        x, y = batches()[step % 4]
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    model[-1] = nn.Linear(512, 4)
    report = check(model, batches(targets=CLASSES // 2), optimizer="AdamW", lr=lr)
    assert functional.cross_entropy(model(X), CLASSES // 2) > 0.8 * math.log(4)
    assert not fired(report)


def test_too_low_of_short_steps_needs_each_leg():
    case = {"lr": falls_by(0.015), "higher": falls_by(0.3, 30.0)}
    case |= {"second": falls_by(0.01), "second_higher": falls_by(0.3, 30.0)}
    assert told(learning_rate_too_low, 3e-4, courses=case) == ["warn"]
    assert told(learning_rate_too_low, 3e-4, courses={"lr": case["lr"], "higher": case["higher"]}) == []  # one batch
    assert told(learning_rate_too_low, 1e-3, courses=case) == []  # as rates in use
    assert told(learning_rate_too_low, 3e-4, courses=case, eps=None) == []  # plain SGD
    assert told(learning_rate_too_low, 3e-4, courses=case, loss_value=1.0) == []
    assert told(learning_rate_too_low, 3e-4, courses={**case, "lr": falls_by(0.04)}) == []
    assert told(learning_rate_too_low, 3e-4, courses={**case, "higher": falls_by(0.1, 30.0)}) == []
    assert told(learning_rate_too_low, 3e-4, courses={**case, "second": falls_by(0.1)}) == []


# Steps that are long.


def test_large_steps_that_end_on_a_plateau_are_found():
    data = batches(TOKENS, TOKENS[:, 0] % 8)
    assert set(fired(check(Encoder(), data, optimizer=adam(0.03)))) == {"learning_rate_too_high"}
    assert not fired(check(Encoder(), data, optimizer=adam(0.003)))


@pytest.mark.parametrize("lr", [0.03, 0.05])
def test_large_steps_by_which_a_model_learns_are_left_in_peace(lr):
    report = check(perceptron(norm=True), batches(), optimizer=adam(lr))
    assert not fired(report)


def test_a_plateau_needs_each_leg():
    high, low = falls_to(1.9), falls_to(1.0, late=0.4)
    case = {"long": high, "long_lower": low, "second_long": high, "second_long_lower": low}
    assert told(learning_rate_too_high, 0.2, courses=case) == ["warn"]
    assert told(learning_rate_too_high, 0.2, courses=case, loss_value=1.0) == []
    assert told(learning_rate_too_high, 0.2, courses={"long": high, "long_lower": low}) == []
    assert told(learning_rate_too_high, 0.2, courses={**case, "second_long": falls_to(1.2, late=0.3)}) == []
    assert told(learning_rate_too_high, 0.2, courses={**case, "long_lower": falls_to(1.9)}) == []
    slowed = {**case, "long": falls_to(1.1, late=0.0), "second_long": falls_to(1.1, late=0.0)}
    assert told(learning_rate_too_high, 0.2, courses=slowed) == ["warn"]  # it falls no further
    steady = {**case, "long": falls_to(1.1, late=0.3), "second_long": falls_to(1.1, late=0.3)}
    assert told(learning_rate_too_high, 0.2, courses=steady) == []


def test_the_median_block_says_whether_steps_are_large():
    case = {"lr": Course((2.0, 9.0, *[9.0] * 9)), "lower": falls_by(0.3, 0.1)}
    assert told(learning_rate_too_high, 0.2, courses=case) == ["error"]
    assert told(learning_rate_too_high, [0.01, 0.01, 5.0], courses=case) == ["warn"]  # a head of small weights


# Losses that no step moves.


class Cold(nn.Module):
    """Divides logits by what makes the loss deaf to them."""

    def __init__(self, inner, factor=1e-4):
        super().__init__()
        self.inner, self.factor = inner, factor

    def forward(self, x):
        return self.factor * self.inner(x)


SGD = torch.optim.SGD


@pytest.mark.parametrize(
    ("optimizer", "norm"),
    [(adam(), False), (adam(), True), (lambda p: SGD(p, lr=0.1, momentum=0.9), True)],
    ids=["adam", "adam-norm", "sgd-norm"],
)
def test_logits_that_the_loss_does_not_hear(optimizer, norm):
    report = check(Cold(perceptron(4, norm=norm)), batches(), optimizer=optimizer)
    assert {"no_progress", "learning_rate_too_low", "vanishing_signal", "vanishing_gradient"} & set(fired(report))
    assert not fired(check(Cold(perceptron(4, norm=norm), 1.0), batches(), optimizer=adam()))


def test_targets_of_noise_are_no_deaf_loss():
    torch.manual_seed(1)
    data = [(torch.randn(64, 32), torch.randn(64, 8)) for _ in range(4)]
    for optimizer in (adam(3e-3), lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9)):
        assert "no_progress" not in fired(check(perceptron(), data, loss="mse", optimizer=optimizer))


def test_a_deaf_loss_needs_each_leg():
    case = {"lr": falls_by(0.03), "lower": falls_by(1e-4, 0.1)}  # longer steps leave the flat place
    assert told(no_progress, courses=case) == ["warn"]
    assert told(no_progress, courses={**case, "lr": falls_by(0.1)}) == []
    assert told(no_progress, courses={**case, "lower": falls_by(0.01, 0.1)}) == []
    assert told(no_progress, 1e-3, courses=case) == []  # neither is of a size that follows a gradient
    assert told(no_progress, courses=case, loss_value=1.0) == []


# Units of a branch beside those behind the sum.


class Branch(nn.Module):
    def __init__(self, bias):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
        nn.init.constant_(self.body[0].bias, bias)

    def forward(self, x):
        return (x + self.body(x)).relu()


def residual(bias):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 32), Branch(0.0), Branch(bias), Branch(0.0), nn.Linear(32, 8))


def test_a_branch_of_dead_units_is_found_beside_living_ones_behind_the_sum():
    report = check(residual(-20.0), batches(), optimizer=adam())
    assert fired(report) == {"dead_units": "warn"}
    finding = next(f for f in report.findings if f.rule == "dead_units")
    assert finding.where == {"first": "2", "last": "2"}
    assert "100% of 32 units" in finding.claim
    assert not fired(check(residual(0.0), batches(), optimizer=adam()))
    assert not fired(check(residual(-0.5), batches(), optimizer=adam()))
