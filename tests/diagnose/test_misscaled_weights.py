"""Weights of a wrong scale: what is suspected, what the test confirms, where it is said to be, and who is let alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from levada.diagnose import DIAGNOSTICS, check, fix
from levada.diagnose.diagnostics.misscaled_weights import asked, one_cause
from levada.diagnose.finding import Finding
from levada.diagnose.pace import Pace
from levada.diagnose.passes import Run
from levada.diagnose.redraw import LESS, STANDS, WORTH, draw_again, redrawn
from levada.diagnose.rehearsal import Course
from levada.diagnose.scales import Suspect, suspects
from levada.diagnose.update import resolve_optimizer
from levada.inputs import Batch, read_batches

RULE = "misscaled_weights"


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


VECTORS = draw(64, 32)
VECTORS_AND_CLASSES = VECTORS, (VECTORS[:, 0] * VECTORS[:, 1] > 0).long() + 2 * (VECTORS[:, 2] > 0).long()
TOKENS = torch.randint(50, (16, 8), generator=torch.Generator().manual_seed(0))
TOKENS_AND_CLASSES = TOKENS, (TOKENS[:, 0] % 4) * 2 + TOKENS[:, 5] % 2
CLASSES = torch.arange(16) % 8
IMAGES_AND_CLASSES = draw(16, 3, 8, 8) + draw(8, 3, 1, 8, seed=5)[CLASSES], CLASSES
SEQUENCES = draw(32, 10, 8)
SEQUENCES_AND_CLASSES = SEQUENCES, (SEQUENCES[:, 1, 0] > 0).long() + 2 * (SEQUENCES[:, 8, 1] > 0).long()


class Transformer(nn.Module):
    def __init__(self, *, norm_first=True, depth=2):
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=norm_first)
        self.embed = nn.Embedding(50, 32)
        self.position = nn.Parameter(0.1 * torch.randn(8, 32))
        self.layers = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 8)

    def forward(self, tokens):
        return self.head(self.norm(self.layers(self.embed(tokens) + self.position)).mean(1))


class Block(nn.Module):
    def __init__(self, channels, *, norm):
        super().__init__()
        made = [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)]
        if norm:
            made = [made[0], nn.BatchNorm2d(channels), made[1], made[2], nn.BatchNorm2d(channels)]
        self.branch = nn.Sequential(*made)

    def forward(self, x):
        return torch.relu(x + self.branch(x))


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.body, self.head = kind(8, 32, batch_first=True), nn.Linear(32, 4)

    def forward(self, x):
        return self.head(self.body(x)[0][:, -1])


def mlp():
    return nn.Sequential(*[m for d in (32, 64, 64) for m in (nn.Linear(d, 64), nn.ReLU())], nn.Linear(64, 4))


def resnet(*, norm=True):
    stem = [nn.Conv2d(3, 16, 3, padding=1), *([nn.BatchNorm2d(16)] if norm else []), nn.ReLU()]
    return nn.Sequential(
        *stem, *[Block(16, norm=norm) for _ in range(2)], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 8)
    )


def scaled(model, factor, start=""):
    for name, p in model.named_parameters():
        if p.dim() > 1 and name.startswith(start):
            p.mul_(factor)


def filled(*names, value):
    def plant(model):
        for name in names:
            model.get_parameter(name).fill_(value)

    return plant


def normal(model, start, std):
    for name, p in model.named_parameters():
        if p.dim() > 1 and name.startswith(start):
            p.normal_(0.0, std)


def equal_rows(model):
    model.embed.weight.copy_(model.embed.weight[:1].expand_as(model.embed.weight).clone())


def gate(index, value):
    def plant(model):
        model.body.bias_ih_l0[32 * index : 32 * (index + 1)] = value

    return plant


PLANTED = {
    "mlp, one layer a thousandth": (mlp, VECTORS_AND_CLASSES, lambda m: scaled(m, 1e-3, "4."), "4"),
    "mlp, all layers a hundredth": (mlp, VECTORS_AND_CLASSES, lambda m: scaled(m, 1e-2), "0"),
    "resnet, a norm's bias": (resnet, IMAGES_AND_CLASSES, filled("3.branch.1.bias", value=-8.0), "3"),
    "resnet without norm, dead branches": (
        lambda: resnet(norm=False),
        IMAGES_AND_CLASSES,
        filled("2.branch.0.bias", "3.branch.0.bias", value=-20.0),
        "2",
    ),
    "norm first, std 1": (Transformer, TOKENS_AND_CLASSES, lambda m: normal(m, "layers", 1.0), "layers.layers.0"),
    "norm first, a thousandth": (Transformer, TOKENS_AND_CLASSES, lambda m: scaled(m, 1e-3), "layers.layers.0"),
    "norm first, embedding of std 50": (Transformer, TOKENS_AND_CLASSES, lambda m: normal(m, "embed", 50.0), "embed"),
    "norm first, equal rows": (Transformer, TOKENS_AND_CLASSES, equal_rows, "embed"),
    "norm last, std 1": (
        lambda: Transformer(norm_first=False),
        TOKENS_AND_CLASSES,
        lambda m: normal(m, "layers", 1.0),
        "layers.layers.0",
    ),
    "lstm, forget gates": (lambda: Recurrent(nn.LSTM), SEQUENCES_AND_CLASSES, gate(1, -5.0), "body"),
    "gru, update gates": (lambda: Recurrent(nn.GRU), SEQUENCES_AND_CLASSES, gate(1, 8.0), "body"),
}


def planted(name):
    build, batch, plant, place = PLANTED[name]
    torch.manual_seed(1)
    model = build()
    healthy = {n: p.detach().clone() for n, p in model.named_parameters()}
    with torch.no_grad():
        plant(model)
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, healthy[n])}
    return model, batch, place, changed


def fired(report):
    return {f.rule: f for f in report.findings if f.status == "fired" and f.severity != "info"}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_the_first_finding_at_its_place(name):
    model, batch, place, changed = planted(name)
    rate = 3e-3 if isinstance(model, Recurrent) else 1e-3
    report = check(model, batch, optimizer="Adam", lr=rate)
    found = fired(report)
    assert next(iter(found)) == RULE, str(report)
    assert found[RULE].severity == "warn"  # a single batch is soon known by heart
    assert found[RULE].where["first"] == place
    assert set(found[RULE].evidence["scale"]) <= changed | {f"{n.replace('_ih', '_hh')}" for n in changed}


@pytest.mark.parametrize("name", PLANTED)
def test_the_healthy_twin_is_silent(name):
    build, batch, _, _ = PLANTED[name]
    torch.manual_seed(1)
    assert RULE not in fired(check(build(), batch, optimizer="Adam", lr=1e-3))


def halves(batch):
    return [tuple(part[i::2] for part in batch) for i in (0, 1)]


def test_it_is_an_error_where_the_model_learns_next_to_nothing_of_several_batches():
    model, batch, _, _ = planted("gru, update gates")
    found = fired(check(model, halves(batch), optimizer="Adam", lr=3e-3))[RULE]
    assert found.severity == "error"
    assert found.evidence["share_as_it_is"] < STANDS
    found = fired(check(model, halves(batch)))[RULE]
    assert found.severity == "warn"
    assert found.evidence["tests"]["rate"] == "assumed: nobody chose one"


def test_it_is_a_warning_where_the_model_learns_as_it_is():
    model, batch, _, _ = planted("lstm, forget gates")
    found = fired(check(model, halves(batch), optimizer="Adam", lr=3e-3))[RULE]
    assert found.severity == "warn"
    assert found.evidence["share_as_it_is"] > STANDS


def test_at_a_rate_that_nobody_chose_it_is_a_warning():
    model, batch, _, _ = planted("norm first, std 1")
    report = check(model, batch)
    assert fired(report)[RULE].severity == "warn"
    assert fired(report)[RULE].evidence["tests"]["rate"] == "assumed: nobody chose one"


def test_nothing_of_the_model_changes():
    model, batch, _, _ = planted("resnet, a norm's bias")
    before = {n: t.clone() for n, t in model.state_dict().items()}
    state = torch.get_rng_state()
    assert RULE in fired(check(model, batch, lr=1e-3))
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_healthy_check_makes_no_step(monkeypatch):
    made = []
    monkeypatch.setattr("levada.diagnose.redraw.rehearse", lambda *given, **how: made.append(how))
    torch.manual_seed(1)
    check(mlp(), VECTORS_AND_CLASSES, lr=1e-3)
    assert not made
    model, batch, _, _ = planted("mlp, one layer a thousandth")
    check(model, batch, lr=1e-3)
    assert made


def of_run(model, batch, deadline=math.inf):
    run = Run(model, read_batches(model, batch), 0, Pace(deadline))

    def loss(outputs, batch: Batch):
        return nn.functional.cross_entropy(outputs, batch.targets)

    return run, redrawn(run, loss, resolve_optimizer("Adam", 1e-3), [n for n, _ in model.named_parameters()], ())


def with_norm(bias):
    """A layer before a norm, which makes its scale no matter, and a bias before none."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(32, 64, bias=False), nn.LayerNorm(64), *mlp()[1:])
    with torch.no_grad():
        model[0].weight.mul_(1e-2)
        model[5].bias.fill_(bias)
    return model


def test_the_place_is_what_alone_brings_the_gain():
    _, found = of_run(with_norm(bias=-20.0), VECTORS_AND_CLASSES)
    assert [s.name for s in found.suspects] == ["0.weight", "5.bias"]
    assert [s.name for s in found.culprits] == ["5.bias"]
    assert found.low > 0
    assert all(c.end < found.plain.end * (1 - LESS) for c in found.courses)
    assert found.gain > WORTH


def test_a_suspicion_that_the_test_does_not_confirm_is_silent():
    model = with_norm(bias=0.0)
    assert suspects(model, lambda: model(VECTORS))
    assert of_run(model, VECTORS_AND_CLASSES)[1] is None


def test_without_time_nothing_is_said():
    model, batch, _, _ = planted("mlp, one layer a thousandth")
    assert of_run(model, batch, deadline=0.0)[1] is None


def test_it_trains_on_the_batches_in_turn():
    seen = []

    def loss(outputs, batch: Batch):
        seen.append(batch)
        return nn.functional.cross_entropy(outputs, batch.targets)

    model, (inputs, targets), _, _ = planted("mlp, one layer a thousandth")
    parts = [(inputs[i::5], targets[i::5]) for i in range(5)]
    run = Run(model, read_batches(model, parts), 0, Pace(math.inf))
    found = redrawn(run, loss, resolve_optimizer("Adam", 1e-3), [n for n, _ in model.named_parameters()], ())
    assert found.plain.batches == 4
    assert [next(i for i, b in enumerate(run.batches) if b is batch) for batch in seen[:6]] == [0, 1, 2, 3, 0, 1]


def test_a_course_over_batches_ends_at_the_median_of_the_last_rounds():
    course = Course((9.0, 1.0, 3.0, 2.0, 4.0, 7.0, 9.0), batches=2)
    assert course.end == 3.0
    assert Course((9.0, 1.0, 3.0, 2.0)).end == 2.0
    assert Course((9.0, math.inf, 3.0, 2.0, 4.0), batches=2).end == math.inf
    assert Course((9.0,), batches=2).end == 9.0


def test_a_block_of_zeros_is_a_fault_in_a_chain_only():
    torch.manual_seed(1)
    model = nn.Sequential(*mlp()[:-1], nn.Linear(64, 64), nn.Tanh(), mlp()[-1])
    with torch.no_grad():
        model[6].weight.zero_()
        model[8].weight.zero_()
    assert not suspects(model, lambda: model(VECTORS), ["8.weight"])
    assert [s.name for s in suspects(model, lambda: model(VECTORS), ["8.weight"], chain=True)] == ["6.weight"]


@pytest.mark.parametrize("chain", [True, False])
def test_small_gains_beside_a_skip_are_a_fault_if_all_are_small(chain):
    model = nn.Sequential(nn.Linear(32, 32), nn.LayerNorm(32), nn.Linear(32, 32), nn.LayerNorm(32))
    with torch.no_grad():
        model[3].weight.fill_(1e-3)
        assert [s.name for s in suspects(model, lambda: None, chain=chain)] == ["3.weight"] * chain
        model[1].weight.fill_(1e-3)
    assert [s.name for s in suspects(model, lambda: None, chain=chain)] == ["1.weight", "3.weight"]


def damped(eps):
    torch.manual_seed(1)
    layers = [m for _ in range(3) for m in (nn.Linear(32, 32), nn.BatchNorm1d(32, eps=eps), nn.Tanh())]
    return nn.Sequential(*layers, nn.Linear(32, 4))


def test_an_eps_far_above_the_variance_is_named_and_given_back():
    model = damped(1e4)
    report = check(model, VECTORS_AND_CLASSES, optimizer="Adam", lr=1e-3)
    found = next(iter(fired(report).values()))
    assert found.rule == RULE
    assert "times the variance that it is added to" in found.claim
    assert all(m.eps == 1e4 for m in model.modules() if isinstance(m, nn.BatchNorm1d))
    exec(found.remedies[0].patch, {"model": model})
    assert {m.eps for m in model.modules() if isinstance(m, nn.BatchNorm1d)} == {1e-5}
    assert RULE not in fired(check(model, VECTORS_AND_CLASSES, optimizer="Adam", lr=1e-3))


@pytest.mark.parametrize(
    ("norm", "inputs"),
    [
        (nn.BatchNorm2d(4, eps=1.0), 0.1 * draw(8, 4, 5, 5)),
        (nn.LayerNorm(32, eps=1.0), 0.1 * draw(8, 5, 32)),
        (nn.GroupNorm(2, 4, eps=1.0), 0.1 * draw(8, 4, 5, 5)),
    ],
)
def test_eps_is_compared_with_the_variance_that_it_is_added_to(norm, inputs):
    model = nn.Sequential(norm)
    (found,) = suspects(model, lambda: model(inputs))
    assert (found.name, found.quantity) == ("0.eps", "eps over the variance")
    assert found.value == pytest.approx(100, rel=0.2)
    assert not suspects(model, lambda: model(10 * inputs))
    norm.eval()
    assert bool(suspects(model, lambda: model(inputs))) is not isinstance(norm, nn.BatchNorm2d)


def judged(module, inputs=None):
    return [s.quantity for s in suspects(module, lambda: module(inputs))]


def initialised(module, **values):
    with torch.no_grad():
        for name, value in values.items():
            module.get_parameter(name).copy_(value) if isinstance(value, torch.Tensor) else module.get_parameter(
                name
            ).normal_(0.0, value)
    return module


USUAL = {
    "default": nn.Linear(64, 64),
    "deviation 0.02, narrow": initialised(nn.Linear(8, 8), weight=0.02),
    "deviation 0.02, wide": initialised(nn.Linear(12288, 64), weight=0.02),
    "GPT-2, last of a branch": initialised(nn.Linear(64, 64), weight=0.02 / 24**0.5),
    "SIREN": initialised(nn.Linear(64, 64), weight=(6 / 64) ** 0.5 / 3**0.5 / 30),
    "He, fan-out": initialised(nn.Conv2d(512, 64, 1), weight=(2 / 64) ** 0.5),
    "depthwise": nn.Conv2d(64, 64, 3, groups=64),
    "zero": initialised(nn.Linear(64, 64), weight=torch.zeros(64, 64)),
    "zero gamma": initialised(nn.BatchNorm2d(8), weight=torch.zeros(8)),
    "next to zero": initialised(nn.Sequential(*[nn.Linear(32, 32) for _ in range(3)]), **{"1.weight": 1e-6}),
    "frozen": nn.Linear(64, 64).requires_grad_(False).apply(lambda m: nn.init.normal_(m.weight, 0.0, 10.0)),
    "embedding of deviation 0.02": initialised(nn.Embedding(50, 32), weight=0.02),
    "long memory": initialised(
        nn.LSTM(4, 4), bias_ih_l0=torch.tensor([-6.0, 6.0, 0, 0]).repeat_interleave(4), bias_hh_l0=torch.zeros(16)
    ),
    "attention": nn.MultiheadAttention(64, 4),
}


@pytest.mark.parametrize("name", USUAL)
def test_what_is_in_use_is_not_suspected(name):
    module = USUAL[name]
    assert not suspects(module, lambda: None)


UNUSUAL = {
    "tiny": (initialised(nn.Linear(64, 64), weight=1e-3), "weight"),
    "huge": (initialised(nn.Linear(64, 64), weight=1.0), "weight"),
    "tiny attention": (initialised(nn.MultiheadAttention(64, 4), in_proj_weight=1e-3), "in_proj_weight"),
    "tiny cell": (initialised(nn.GRU(64, 64), weight_hh_l0=1e-3), "weight_hh_l0"),
    "all next to zero": (initialised(nn.Linear(32, 32), weight=1e-6), "weight"),
    "constant": (initialised(nn.Conv2d(8, 8, 3), weight=torch.full((8, 8, 3, 3), 0.1)), "weight"),
    "equal columns": (initialised(nn.Linear(8, 8), weight=draw(8, 1).expand(8, 8).clone()), "weight"),
    "gain": (initialised(nn.LayerNorm(8), weight=torch.full((8,), 1e-3)), "weight"),
    "norm's bias": (initialised(nn.GroupNorm(2, 8), bias=torch.full((8,), -9.0)), "bias"),
    "embedding": (initialised(nn.Embedding(50, 32), weight=100.0), "weight"),
    "forget gates": (initialised(nn.LSTM(4, 4), bias_ih_l0=torch.full((16,), -5.0)), "bias_ih_l0"),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_what_nobody_draws_is_suspected(name):
    module, parameter = UNUSUAL[name]
    assert parameter in [s.name for s in suspects(module, lambda: None)]


@pytest.mark.parametrize(("size", "hit"), [(1.0, True), (200.0, False)])
@pytest.mark.parametrize(
    ("module", "shape"),
    [(nn.Linear(8, 8), (16, 8)), (nn.Conv2d(8, 8, 3), (4, 8, 5, 5)), (nn.ConvTranspose1d(8, 8, 3), (4, 8, 9))],
)
def test_a_bias_is_judged_beside_the_signal_that_it_is_added_to(module, shape, size, hit):
    nn.init.constant_(module.bias, -20.0)
    assert judged(module, size * draw(*shape)) == (["rms of the bias over its signal's"] if hit else [])


def test_a_small_last_layer_is_let_alone_and_a_large_one_is_not():
    for std, count in ((1e-3, 0), (5.0, 1)):
        model = initialised(mlp(), **{"6.weight": std})
        assert len(suspects(model, lambda: None, head=("6.weight", "6.bias"))) == count


def test_it_is_drawn_at_the_scale_of_its_peers_or_of_its_class():
    model = nn.Sequential(*[initialised(nn.Linear(64, 64), weight=0.25) for _ in range(3)])
    initialised(model, **{"1.weight": 1e-3, "1.bias": torch.full((64,), 50.0)})
    kept = model[0].weight.clone()
    drawn = suspects(model, lambda: model(draw(32, 64)))
    draw_again(model, drawn, seed=3)
    assert float(model[1].weight.detach().std()) == pytest.approx(0.25, rel=0.05)
    assert not model[1].bias.any()
    assert torch.equal(model[0].weight, kept)
    lone = initialised(nn.Linear(64, 64), weight=1e-3)
    draw_again(lone, suspects(lone, lambda: None), seed=3)
    assert float(lone.weight.detach().std()) == pytest.approx((1 / 3 / 64) ** 0.5, rel=0.05)


def finding(rule, severity="warn", **evidence):
    return Finding(rule, severity, "fired", "", {"first": "0", "last": "0"}, evidence)


def cause(severity="error", *, most=False):
    return finding(RULE, severity, most_of_the_model=most)


def test_one_fault_has_one_finding():
    assert RULE in DIAGNOSTICS
    left = one_cause([cause(), finding("vanishing_gradient"), finding("saturated_activation"), finding("train_mode")])
    assert [f.rule for f in left] == [RULE, "saturated_activation", "train_mode"]
    left = one_cause([cause(most=True), finding("saturated_activation"), finding("train_mode")])
    assert [f.rule for f in left] == [RULE, "train_mode"]
    assert len(one_cause([finding("vanishing_gradient")])) == 1


def test_a_warning_leaves_errors_as_they_are():
    graver = finding("vanishing_signal", "error")
    assert graver not in one_cause([cause("error"), graver])
    assert graver in one_cause([cause("warn"), graver])


def test_weights_are_suspected_where_nothing_names_another_cause():
    assert not asked([finding("dead_units")])
    assert not asked([finding("numerical_overflow", "error")])
    assert asked([finding("saturated_activation"), finding("vanishing_gradient", "error")]) == "most"
    assert asked([finding("attention_collapse", "error")]) == "most"
    assert asked([finding("vanishing_signal", "error")]) == "any"
    assert asked([finding("rank_collapse", explained_by="place"), finding("train_mode", "info")]) == "any"
    assert not asked([finding("saturated_activation"), finding("unscaled_input")])
    assert not asked([finding("rank_collapse", "error")])


def test_a_suspect_of_no_known_block_is_said_of_the_first():
    model, batch, _, _ = planted("mlp, one layer a thousandth")
    _, found = of_run(model, batch)
    assert isinstance(found.culprits[0], Suspect)
    assert found.culprits[0].low == 0.02


def test_fix_draws_them_again_first():
    model, batch, _, _ = planted("mlp, one layer a thousandth")
    fixed = fix(model, batch, optimizer="Adam", lr=1e-3, steps=50, budget=60.0)
    assert fixed.outcome in ("repaired", "helps")
    redraw = next(t for t in fixed.trials if t.name == "redraw")
    assert redraw.proposed
    assert "4.weight" in redraw.patch


def test_a_tanh_that_biases_drive_to_its_ends_is_saturated_and_not_dead():
    torch.manual_seed(1)
    model = nn.Sequential(*[m for _ in range(5) for m in (nn.Linear(32, 32), nn.Tanh())], nn.Linear(32, 4))
    with torch.no_grad():
        model[4].bias.copy_(20.0 * model[4].bias.sign())
    found = fired(check(model, VECTORS_AND_CLASSES, optimizer="Adam", lr=1e-3))
    assert next(iter(found)) == "saturated_activation"
    assert "dead_units" not in found
