"""Rank, shattering, rates, rounding, clearing: each planted fault fires in each architecture; its twin is silent."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from levada.diagnose import DIAGNOSTICS, attempts, check, diagnose
from levada.diagnose.diagnostics.accumulated_gradients import accumulated_gradients
from levada.diagnose.diagnostics.learning_rate import learning_rate_too_high, learning_rate_too_low
from levada.diagnose.diagnostics.lost_update import lost_update
from levada.diagnose.diagnostics.rank_collapse import rank_collapse
from levada.diagnose.diagnostics.shattered_gradient import shattered_gradient
from levada.diagnose.facts import Facts
from levada.diagnose.neighbours import Neighbours, compare
from levada.diagnose.rehearsal import Course, rehearse
from levada.diagnose.relations import Relation
from levada.diagnose.rounding import Rounding
from levada.probe import Probe
from levada.probe.trace import Site, Trace

FLOAT16 = torch.finfo(torch.float16).eps


def fired(report):
    return {f.rule: f.severity for f in report.findings if f.status == "fired" and f.severity != "info"}


def told(rule, context=None, values=None, **facts):
    """Return the severities that a rule gives on two blocks with these facts."""
    sites = tuple(Site(str(i), i, "Linear", (4, 8), (f"{i}.weight",)) for i in range(2))
    columns = {name: torch.tensor([column], dtype=torch.float64) for name, column in (values or {}).items()}
    known = Facts(**{"optimizer": "SGD", "lr": 0.1, "loss_constant": 2.0, "loss_value": 2.0, **facts})
    return [f.severity for f in rule(Trace(sites, (0,), columns, {"facts": known, **(context or {})}))]


# Rates.


@pytest.mark.parametrize(("optimizer", "lr"), [("SGD", 100.0), ("AdamW", 1.0)])
def test_a_rate_that_throws_the_loss_up_is_found(net, optimizer, lr):
    report = check(net.build(), (net.inputs, net.classes), optimizer=optimizer, lr=lr)
    severity = fired(report).get("learning_rate_too_high")
    assert set(fired(report)) == {"learning_rate_too_high"}, str(report)
    assert severity == "error" if optimizer == "SGD" else severity in ("error", "warn")
    (finding,) = report.findings
    assert finding.evidence["loss_at_lower_rate"]["losses"][-1] < report.summary["loss"]


@pytest.mark.parametrize(("optimizer", "lr"), [("SGD", 1e-8), ("AdamW", 1e-9)])
def test_a_rate_that_does_nothing_is_found(net, optimizer, lr):
    report = check(net.build(), (net.inputs, net.classes), optimizer=optimizer, lr=lr)
    assert fired(report) == {"learning_rate_too_low": "error"}, str(report)


@pytest.mark.parametrize(
    ("optimizer", "lr"), [("SGD", 0.1), ("SGD", 1e-3), ("AdamW", 1e-3), ("AdamW", 1e-5), ("SGD", None)]
)
def test_rates_in_use_are_silent(net, optimizer, lr):
    assert not fired(check(net.build(), (net.inputs, net.classes), optimizer=optimizer, lr=lr))


def test_a_rate_that_nobody_chose_is_not_judged(net, monkeypatch):
    made = []
    monkeypatch.setattr("levada.diagnose.rates.rehearse", lambda *given, **how: made.append(how))
    model, batch = net.build(), (net.inputs, net.classes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.01)  # so that a default step is large, and raises the loss
    check(model, batch)
    assert not made
    check(model, batch, lr=10.0)
    assert made


def test_a_rehearsal_is_undone(net):
    model = nn.Sequential(net.build(), nn.BatchNorm1d(10))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    course = rehearse(
        model,
        lambda: functional.cross_entropy(model(net.inputs), net.classes),
        lambda p: torch.optim.SGD(p, lr=0.1),
        math.inf,
    )
    assert course.complete
    assert course.gain > 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_a_warm_up_that_starts_at_zero_and_a_converged_loss_are_silent(net):
    model, batch = net.build(), (net.inputs, net.classes)
    assert not fired(check(model, batch, optimizer=lambda p: torch.optim.SGD(p, lr=0.0)))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(300 if net.name != "cnn" else 0):  # that one cannot tell noise by its mean
        optimizer.zero_grad()
        functional.cross_entropy(model(net.inputs), net.classes).backward()
        optimizer.step()
    for lr in (1e-3, 1e-9):
        if net.name != "cnn":
            assert not fired(check(model, batch, optimizer="SGD", lr=lr))


UP, DOWN, FLAT = Course((2.0,) + (5.0,) * 10), Course((2.0,) + (1.5,) * 10), Course((2.0,) * 11)


def test_too_high_needs_each_leg():
    ratio = {"update_ratio": [0.5, 0.5]}
    case = {"lr": UP, "lower": DOWN}
    assert told(learning_rate_too_high, values=ratio, courses=case) == ["error"]
    assert told(learning_rate_too_high, values={"update_ratio": [1e-3, 1e-3]}, courses=case) == ["warn"]
    assert told(learning_rate_too_high, values=ratio, courses={**case, "lr": Course((2.0,) + (2.5,) * 10)}) == ["warn"]
    assert told(learning_rate_too_high, values=ratio, courses={**case, "lower": UP}) == []
    assert told(learning_rate_too_high, values=ratio, courses={"lr": DOWN, "lower": DOWN}) == []
    assert told(learning_rate_too_high, values=ratio) == []


def test_too_low_needs_each_leg():
    tiny = {"update_ratio": [1e-9, 1e-9]}
    case = {"lr": FLAT, "higher": DOWN}
    assert told(learning_rate_too_low, values=tiny, courses=case) == ["error"]
    assert told(learning_rate_too_low, values={"update_ratio": [1e-9, 1e-6]}, courses=case) == ["warn"]
    assert told(learning_rate_too_low, values=tiny, courses={**case, "higher": FLAT}) == []
    assert told(learning_rate_too_low, values=tiny, courses={**case, "lr": DOWN}) == []
    assert told(learning_rate_too_low, values=tiny, courses=case, loss_value=0.01) == []  # converged
    assert told(learning_rate_too_low, values=tiny, courses=case, loss_constant=None) == []  # perhaps converged
    assert told(learning_rate_too_low, values=tiny, courses=case, loss_constant=None, eps=1e-8) == ["error"]


# Rounding.


def narrow(net, dtype):
    return net.build().to(dtype), net.inputs.to(dtype) if net.inputs.is_floating_point() else net.inputs


def test_updates_below_the_spacing_of_bfloat16_are_found(net):
    model, inputs = narrow(net, torch.bfloat16)
    report = check(model, (inputs, net.classes), lr=1e-5)
    assert fired(report) == {"lost_update": "error"}, str(report)
    (finding,) = report.findings
    gains = finding.evidence["tests"]
    assert gains["gain_of_exact_step"] > 2 * abs(gains["gain_of_rounded_step"])


def test_updates_that_bfloat16_or_float32_holds_are_silent(net):
    model, inputs = narrow(net, torch.bfloat16)
    assert not fired(check(model, (inputs, net.classes), lr=1e-3))
    assert not fired(check(net.build(), (net.inputs, net.classes), lr=1e-5))


def test_gradients_that_float16_flushes_are_found(net):
    model, inputs = narrow(net, torch.float16)

    def small(out, targets):
        return 1e-6 * functional.cross_entropy(out.float(), targets)

    assert fired(check(model, (inputs, net.classes), loss=small, optimizer="SGD", lr=0.1)) == {"lost_update": "error"}
    assert not fired(check(model, (inputs, net.classes), optimizer="SGD", lr=0.1))


def test_lost_updates_need_each_leg():
    lost = {"lost_fraction": [0.99, 0.99], "update_ratio": [0.0, 0.0]}
    case = Rounding(lost=0.99, ratio=1e-5, loss_before=2.0, loss_exact=1.9, loss_rounded=2.0)
    assert told(lost_update, values=lost, resolution=FLOAT16, rounding=case) == ["error"]
    assert told(lost_update, values=lost, resolution=FLOAT16, rounding=replace(case, ratio=0.1)) == ["warn"]
    assert told(lost_update, values=lost, resolution=FLOAT16, rounding=replace(case, loss_rounded=1.9)) == ["warn"]
    assert told(lost_update, values=lost, resolution=FLOAT16, rounding=replace(case, lost=0.7)) == []
    assert told(lost_update, values=lost) == []


# Rank.


def constant(model):
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.05)
    return model


def test_units_that_are_all_the_same_are_an_error_and_explain_the_rest(net):
    report = check(constant(net.build()), (net.inputs, net.classes))
    assert fired(report) == {"rank_collapse": "error"}, str(report)
    (finding,) = (f for f in report.findings if f.rule == "rank_collapse")
    assert finding.evidence["tests"]["difference_of_gradients_between_rows"] < 1e-3


SIDES = "as_it_is", "changed"


def low_rank(depth, rank):
    torch.manual_seed(0)
    model = nn.Sequential(*[m for _ in range(depth) for m in (nn.Linear(32, 32), nn.Tanh())], nn.Linear(32, 10))
    with torch.no_grad():
        a, b = torch.randn(32, rank), torch.randn(rank, 32)
        model[2].weight.copy_(a @ b / (32 * rank) ** 0.5)
    return model


def test_one_matrix_of_rank_one_is_a_warning_at_its_place():
    batch = torch.randn(32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 10
    report = check(low_rank(4, 1), batch, optimizer="Adam", lr=1e-3)
    assert fired(report) == {"rank_collapse": "warn"}
    assert report.findings[0].where["first"] == "2"
    plain, drawn = (report.findings[0].evidence["tests"]["learning_with_more_directions"][k] for k in SIDES)
    assert all(one[-1] > 1.1 * other[-1] for one, other in zip(plain, drawn, strict=True))
    assert not fired(check(low_rank(4, 16), batch, optimizer="Adam", lr=1e-3))


def test_one_direction_is_information_where_the_model_learns_no_more_with_others():
    batch = torch.randn(32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 10
    (finding,) = (f for f in check(low_rank(4, 1), batch, optimizer="SGD", lr=1e-3).findings if f.status == "fired")
    assert (finding.rule, finding.severity) == ("rank_collapse", "info")


def test_a_narrow_place_and_a_batch_of_few_are_no_collapse():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 2), nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 10)
    )
    x = torch.randn(32, 20)
    assert not fired(check(model, (x, torch.arange(32) % 10)))
    assert not fired(check(model, (x[:3], torch.arange(3))))
    line = torch.linspace(-1, 1, 32)[:, None] * torch.randn(20)  # inputs along one direction: the data's rank is one
    assert "rank_collapse" not in fired(check(constant(model), (line, torch.arange(32) % 10)))


def test_a_layer_that_starts_at_zero_has_equal_rows_that_part():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))
    nn.init.zeros_(model[2].weight)
    nn.init.uniform_(model[2].bias)
    assert "rank_collapse" not in fired(check(model, (torch.randn(32, 20), torch.arange(32) % 10)))


class Attention(nn.Module):
    def __init__(self, depth, skip):
        super().__init__()
        self.embed, self.head, self.skip = nn.Embedding(50, 32), nn.Linear(32, 10), skip
        self.layers = nn.ModuleList(nn.MultiheadAttention(32, 4, batch_first=True) for _ in range(depth))
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(depth))

    def forward(self, tokens):
        h = self.embed(tokens)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = norm(h)
            out = layer(x, x, x, need_weights=False)[0]
            h = h + out if self.skip else out
        return self.head(h)


@pytest.mark.parametrize("depth", [6, 12])
def test_tokens_that_become_the_same_are_an_error_without_skips_alone(depth):
    generator = torch.Generator().manual_seed(0)
    batch = torch.randint(50, (32, 12), generator=generator), torch.randint(10, (32, 12), generator=generator)
    torch.manual_seed(0)
    report = check(Attention(depth, skip=False), batch)
    assert fired(report)["rank_collapse"] == "error"
    (finding,) = (f for f in report.findings if f.rule == "rank_collapse")
    assert finding.where["first"] == "layers.2"
    assert not fired(check(Attention(depth, skip=True), batch))


def test_rank_collapse_needs_each_leg():
    one, many = Relation(1.0, 1.0, 1.1, 7, 0.2), Relation(6.0, 4.0, 6.0, 7, 0.0)
    case = {"input_relation": many, "relations": {"0": one}, "relations_after": {"0": one}, "symmetric": {"0": 0.0}}
    assert told(rank_collapse, **case) == ["error"]
    assert told(rank_collapse, **{**case, "relations_after": {"0": many}}) == ["warn"]  # the step parts them
    assert told(rank_collapse, **{**case, "relations": {"0": replace(one, high=2.0)}}) == ["warn"]
    assert told(rank_collapse, **{**case, "symmetric": {}}) == ["info"]  # no theory for it, and no trial
    assert told(rank_collapse, **{**case, "symmetric": {"0": 0.5}, "relations_after": {"0": many}}) == []
    assert told(rank_collapse, **{**case, "input_relation": one}) == []


# Shattering.


def plain(depth, variance=2.0, *, activation=nn.ReLU, norm=False, skip=False):
    torch.manual_seed(1)
    blocks = []
    for _ in range(depth):
        layer = nn.Linear(64, 64)
        nn.init.normal_(layer.weight, 0.0, (variance / 64) ** 0.5)
        nn.init.zeros_(layer.bias)
        block = [layer, *([nn.BatchNorm1d(64)] if norm else []), activation()]
        blocks += [Skip(nn.Sequential(*block))] if skip else block
    return nn.Sequential(*blocks, nn.Linear(64, 10))


class Skip(nn.Module):
    def __init__(self, branch):
        super().__init__()
        self.branch = branch

    def forward(self, x):
        return x + 0.2 * self.branch(x)


def strided(channels, norm):
    torch.manual_seed(1)
    blocks = []
    for _ in range(24):
        layer = nn.Conv2d(channels, channels, 3, padding=1, padding_mode="circular")
        nn.init.normal_(layer.weight, 0.0, (9.0 / (9 * channels)) ** 0.5)
        blocks += [layer, *([nn.GroupNorm(1, channels)] if norm else []), nn.Tanh()]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(16 * channels, 10))


VECTORS = (torch.randn(32, 64, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 10)


def test_chaos_shatters_gradients_and_is_an_error_if_steps_do_not_carry_over():
    report = check(plain(20, 9.0, activation=nn.Tanh), VECTORS, lr=1e-4)
    assert fired(report).get("shattered_gradient") == "error", str(report)
    finding = next(f for f in report.findings if f.rule == "shattered_gradient")
    assert finding.evidence["gradient_cosine"]["high"] < 0.25
    assert finding.evidence["tests"]["gain_of_neighbours"] < 0.2
    assert not fired(check(plain(20, 1.0, activation=nn.Tanh), VECTORS, lr=1e-4))


def test_batch_normalisation_without_skips_shatters_and_is_a_warning():
    report = check(plain(30, norm=True), VECTORS, lr=1e-5)
    assert fired(report) == {"shattered_gradient": "warn"}, str(report)
    assert not fired(check(plain(30, norm=True, skip=True), VECTORS, lr=1e-5))


def test_chaotic_convolutions_shatter():
    images = torch.randn(32, 16, 4, 4, generator=torch.Generator().manual_seed(0)), VECTORS[1]
    found = [fired(check(strided(16, norm=norm), images, lr=1e-4)).get("shattered_gradient") for norm in (False, True)]
    assert found[0] == "error"


def narrowing(depth):
    """Convolutions with batch normalisation down to few pixels: gradients of neighbours differ, what helps them not."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3, 2, 1)]
    for i in range(depth):
        layers += [nn.Conv2d(8, 8, 3, 2 if i in (3, 6, 9) else 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


def test_a_rate_that_warms_up_does_not_shatter(monkeypatch):
    generator, labels = torch.Generator().manual_seed(0), torch.arange(12) % 10
    images = torch.randn(10, 1, 32, 32, generator=generator)[labels]
    batch = images + 0.5 * torch.randn(images.shape, generator=generator), labels
    assert "shattered_gradient" not in fired(check(narrowing(20), batch, optimizer="SGD", lr=1e-6))
    monkeypatch.setattr(attempts, "SHORT", 0.0)  # steps at the given rate alone
    assert "shattered_gradient" in fired(check(narrowing(20), batch, optimizer="SGD", lr=1e-6))


def test_what_is_compared_between_neighbours_needs_a_direction():
    one, many = torch.randn(8), torch.randn(8, 4)
    found = compare(["0", "1"], ({"0": many, "1": one}, {"0": many}), ({"0": many, "1": one}, {"0": many}))
    assert found is not None
    assert found.gradient == pytest.approx(1.0)
    assert math.isnan(found.signal_last)
    assert compare(["0", "1"], ({"0": many, "1": one}, {"0": one}), ({"0": many, "1": one}, {"0": one})) is None


@pytest.mark.parametrize("depth", [20, 60])
def test_depth_alone_does_not_shatter_rectified_layers_at_criticality(depth):
    assert not fired(check(plain(depth), VECTORS, lr=1e-4))


def test_shattering_needs_each_leg():
    case = Neighbours("0", 0.02, -0.05, 0.1, 0.99, 0.3, 12, gain_shared=0.05)
    assert told(shattered_gradient, neighbours=case, chain=True) == ["error"]
    assert told(shattered_gradient, neighbours=case, chain=False) == ["warn"]
    assert told(shattered_gradient, neighbours=case, chain=True, normalised=True) == ["warn"]
    assert told(shattered_gradient, neighbours=replace(case, signal_last=0.9), chain=True) == ["warn"]
    assert told(shattered_gradient, neighbours=replace(case, high=0.4), chain=True) == []
    assert told(shattered_gradient, neighbours=replace(case, gain_shared=1.0), chain=True) == []
    assert told(shattered_gradient, neighbours=replace(case, gain_shared=None), chain=True) == []


# A loop, watched.


def train(model, batch, *, clear, micro=1, clip=False, evaluate=0, steps=5, every=1, sampled_eval=False):
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with Probe(model, optimizer, every=every) as probe:
        for step in range(steps):
            if clear == "before":
                optimizer.zero_grad(set_to_none=step % 2 == 0)
            for _ in range(micro):
                loss = functional.cross_entropy(model(batch[0]), batch[1])
                if clear == "late":
                    optimizer.zero_grad()
                (loss / micro).backward()
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            if clear in ("after", "zero"):
                optimizer.zero_grad(set_to_none=clear == "after")
            for _ in range(evaluate):
                with torch.no_grad():
                    model(batch[0])
            if sampled_eval and step == 1:
                model.eval()
    return {f.rule: f.severity for f in diagnose(probe.trace()) if f.status == "fired"}


def test_gradients_that_are_never_cleared_are_an_error(net):
    assert train(net.build(), (net.inputs, net.classes), clear="") == {"accumulated_gradients": "error"}
    assert train(net.build(), (net.inputs, net.classes), clear="", every=2) == {"accumulated_gradients": "error"}
    clipped = train(net.build(), (net.inputs, net.classes), clear="", clip=True)
    assert clipped == {"accumulated_gradients": "warn"}


@pytest.mark.parametrize("clear", ["before", "after", "late", "zero"])
def test_gradients_that_are_cleared_are_silent(net, clear):
    batch = net.inputs, net.classes
    assert not train(net.build(), batch, clear=clear)
    if clear != "late":
        assert not train(net.build(), batch, clear=clear, micro=3, clip=True)


def test_two_networks_of_which_one_gets_the_other_s_gradients_are_silent():
    torch.manual_seed(0)
    maker, critic = nn.Linear(4, 8), nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
    first, second = torch.optim.SGD(critic.parameters(), lr=0.1), torch.optim.SGD(maker.parameters(), lr=0.1)
    with Probe(critic, first) as probe:
        for _ in range(5):
            first.zero_grad()
            (critic(maker(torch.randn(16, 4)).detach()) - critic(torch.randn(16, 8))).mean().backward()
            first.step()
            second.zero_grad()
            (-critic(maker(torch.randn(16, 4))).mean()).backward()  # adds to the critic's gradients too
            second.step()
    trace = probe.trace()
    assert trace.context["accumulated"]["steps"] == 4
    assert "accumulated_gradients" not in {f.rule for f in diagnose(trace)}


def test_accumulation_needs_each_leg():
    case = {"steps": 4, "kept": 4, "exact": 4, "parameter": "0.weight"}
    assert told(accumulated_gradients, context={"accumulated": case}) == ["error"]
    assert told(accumulated_gradients, context={"accumulated": {**case, "exact": 1}}) == ["warn"]
    assert told(accumulated_gradients, context={"accumulated": {**case, "kept": 3, "exact": 3}}) == ["warn"]
    assert told(accumulated_gradients, context={"accumulated": {**case, "kept": 2}}) == []
    assert told(accumulated_gradients, context={"accumulated": {**case, "steps": 1, "kept": 1}}) == []
    assert told(accumulated_gradients) == []


def test_the_mode_of_a_run_is_told(net):
    def dropped():
        return nn.Sequential(net.build(), nn.Dropout(0.1))

    batch = net.inputs, net.classes
    assert not train(dropped(), batch, clear="before")
    assert train(dropped(), batch, clear="before", sampled_eval=True) == {"train_mode": "warn"}
    assert train(dropped(), batch, clear="before", evaluate=2) == {"train_mode": "info"}
    assert not train(net.build(), batch, clear="before", sampled_eval=True, evaluate=2)


def test_all_rules_of_the_interface_that_are_told_of_a_check_exist():
    assert set(DIAGNOSTICS) >= {
        "rank_collapse",
        "shattered_gradient",
        "lost_update",
        "learning_rate_too_high",
        "learning_rate_too_low",
        "accumulated_gradients",
        "double_softmax",
        "wrong_loss",
        "unscaled_input",
        "train_mode",
    }
