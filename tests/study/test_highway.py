"""R5: networks of many trials at once, the search, and claims that hold and fail as their criteria say."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch.nn import functional

from levada._errors import UsageError
from levada.studies import highway
from levada.study import Results
from levada.study.highway_networks import WORST, DenseNetwork, Trial, evaluate, train_trials

STUDY = highway.STUDY


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["plain", "highway"])
def test_trials_train_as_they_would_alone(kind):
    trials = [Trial(3, 0.1, -1.0), Trial(7, 0.02, -4.0)]
    inputs, targets = normal(12, 6), torch.arange(12) % 3

    def trained(trials):
        network = DenseNetwork(kind, 4, trials, width=5, activation="tanh", inputs=6, classes=3)
        curves = train_trials(network, inputs, targets, trials, steps=4, batch_size=4)
        return network, curves

    together, curves = trained(trials)
    for place, trial in enumerate(trials):
        alone, own = trained([trial])
        assert torch.allclose(curves.loss[:, place], own.loss[:, 0], atol=1e-6)
        assert torch.equal(curves.error[:, place], own.error[:, 0])
        for both, one in zip(together.parameters(), alone.parameters(), strict=True):
            assert torch.allclose(both[place], one[0], atol=1e-6)


def test_a_factor_on_the_loss_is_the_learning_rate():
    trial = Trial(0, 0.3)
    inputs, targets = normal(8, 6), torch.arange(8) % 3
    build = functools.partial(DenseNetwork, "plain", 3, [trial], width=5, inputs=6, classes=3)
    network, by_hand = build(), build()
    train_trials(network, inputs, targets, [trial], steps=3, batch_size=8)
    velocity = [torch.zeros_like(parameter) for parameter in by_hand.parameters()]
    for step in range(3):
        loss = functional.cross_entropy(by_hand(inputs[None])[0], targets)
        found = torch.autograd.grad(loss, list(by_hand.parameters()))
        with torch.no_grad():
            for parameter, gradient, v in zip(by_hand.parameters(), found, velocity, strict=True):
                v.mul_(0.9).add_(gradient)
                parameter -= 0.3 * 0.1 ** (step / 3) * v
    for one, other in zip(network.parameters(), by_hand.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_a_highway_layer_is_the_papers():
    network = DenseNetwork("highway", 2, [Trial(0, 0.1, -1.5), Trial(1, 0.1, -6.0)], width=4, inputs=3)
    (layer,) = network.stack
    gate, inner = layer.connection.gate, layer.branch[0]
    assert gate.bias[:, 0, 0].tolist() == [-1.5, -6.0]
    x = normal(2, 5, 4)
    t = torch.sigmoid(torch.einsum("tbi,tio->tbo", x, gate.weight) + gate.bias)
    f = (torch.einsum("tbi,tio->tbo", x, inner.weight) + inner.bias).relu()
    assert torch.allclose(layer(x), t * f + (1 - t) * x, atol=1e-6)


def test_weights_have_the_variance_of_their_activation():
    for activation, variance in (("relu", 2.0), ("tanh", 1.0)):
        network = DenseNetwork("highway", 2, [Trial(0, 0.1)], width=200, activation=activation)
        (layer,) = network.stack
        assert layer.branch[0].weight.square().mean().item() * 200 == pytest.approx(variance, rel=0.03)
        assert layer.connection.gate.weight.square().mean().item() * 200 == pytest.approx(1.0, rel=0.03)


def test_changes_are_relative_norms():
    plain = DenseNetwork("plain", 3, [Trial(0, 0.1), Trial(1, 0.1)], width=4, inputs=3)
    x = normal(2, 5, 3)
    first = plain.first(x)
    second = plain.stack[0](first)
    ratios = [(b - a).norm().item() / a.norm().item() for a, b in zip(first, second, strict=True)]
    assert plain.changes(x)[:, 0].tolist() == pytest.approx(ratios)
    closed = DenseNetwork("highway", 6, [Trial(0, 0.1, -200.0)], width=4, inputs=3)
    assert closed.changes(x[:1]).tolist() == [[0.0] * 5]


def test_evaluation_is_in_nats_and_bounded():
    network = DenseNetwork("plain", 2, [Trial(0, 0.1), Trial(1, 0.1)], width=4, inputs=3, classes=3)
    inputs, targets = normal(7, 3), torch.arange(7) % 3
    found = evaluate(network, inputs, targets, 2, chunk=3)
    logits = network(inputs.expand(2, -1, -1))
    for place, values in enumerate(found):
        assert values["loss"] == pytest.approx(functional.cross_entropy(logits[place], targets).item(), rel=1e-5)
        assert values["error"] == (logits[place].argmax(-1) != targets).double().mean().item()
    with torch.no_grad():
        network.classifier.weight[1] = math.nan
    spoilt = evaluate(network, inputs, targets, 2)
    assert spoilt[0]["loss"] == pytest.approx(found[0]["loss"])
    assert spoilt[1]["loss"] == WORST


@pytest.mark.parametrize(("arguments", "words"), [
    (("gated", 3), "kind must be one of plain, highway"), (("plain", 1), "depth must be at least 2"),
])  # fmt: skip
def test_networks_that_cannot_be(arguments, words):
    with pytest.raises(UsageError, match=words):
        DenseNetwork(*arguments, [Trial(0, 0.1)], width=4)
    with pytest.raises(UsageError, match="activation must be one of relu, tanh"):
        DenseNetwork("plain", 3, [Trial(0, 0.1)], width=4, activation="gelu")


@pytest.mark.parametrize("num", [20, 40])
def test_the_search_covers_rates_and_biases(num):
    drawn = highway.draw_trials(num)
    assert len(drawn) == num
    assert drawn == highway.draw_trials(num)
    for name in ("relu", "tanh"):
        own = [trial for trial in drawn if trial["activation"] == name]
        assert sorted(trial["bias"] for trial in own) == sorted([*range(-10, 0)] * (num // 20))
        low, high = map(math.log10, highway.RATES)
        parts = [(math.log10(trial["lr"]) - low) / (high - low) * num / 2 for trial in own]
        assert all(part == pytest.approx(place + 0.5, abs=0.55) for place, part in enumerate(parts))


def test_the_search_takes_the_least_loss_on_other_digits(monkeypatch):
    asked = []
    digits = highway._digits
    monkeypatch.setattr(highway, "_digits", lambda examples, last: asked.append(last) or digits(examples, last))
    settings = STUDY.resolve("smoke", {"select": True, "trials": 4, "search_epochs": 1})
    (cell,) = [
        c for c in STUDY.configurations(settings, range(2)) if (c.config["kind"], c.config["depth"]) == ("plain", 10)
    ]
    values = STUDY.run(cell.config, cell.seeds)
    best = min(values[0]["search"], key=lambda trial: trial["loss"])
    assert len(values[0]["search"]) == 4
    assert best.keys() == {"activation", "lr", "loss"}, "plain networks have no gate"
    assert [rate["lr"] for rate in values[0]["rates"]] == pytest.approx([best["lr"], best["lr"] / 2], rel=0.02)
    assert values[0]["chosen"].keys() == {"activation", "lr"}
    assert asked == [True, True, True, False]
    first, last = (digits(20, last)[0] for last in (False, True))
    assert not torch.equal(first, last)


@pytest.mark.parametrize(("worst", "lr"), [(0.02, 0.4), (WORST, 0.2)])
def test_a_rate_at_which_one_seed_diverges_is_not_chosen(monkeypatch, worst, lr):
    losses = {0.4: [0.001, 0.001, worst], 0.2: [0.03, 0.03, 0.03], 0.1: [0.04, 0.04, 0.02]}
    asked = []

    def trained(config, activation, trials, *, last):
        asked.append(([(trial.seed, trial.lr, trial.bias) for trial in trials], last))
        places = {100: 0, 101: 1, 102: 2}
        return [{"loss": losses[t.lr][places[t.seed]] if last else 0.0} for t in trials]

    monkeypatch.setattr(highway, "_trained", trained)
    config = {"activation": "relu", "lr": 0.4, "bias": -7, "fractions": [1.0, 0.5, 0.25]}
    first, second = highway.run(config, [0, 1])
    assert first["chosen"] == second["chosen"] == {"activation": "relu", "lr": lr, "bias": -7}
    assert asked[0] == ([(seed, rate, -7) for rate in losses for seed in (100, 101, 102)], True)
    assert asked[1] == ([(seed, lr, -7) for seed in (0, 1)], False)
    assert [rate["losses"] for rate in first["rates"]] == list(losses.values())


@pytest.fixture(scope="module")
def smoke():
    settings = STUDY.resolve("smoke")
    cells = STUDY.configurations(settings, range(settings["seeds"]))
    values = {}
    for cell in cells:
        for seed, value in zip(cell.seeds, STUDY.run(cell.config, cell.seeds), strict=True):
            values[cell.key(seed)] = value
    return Results(cells, values)


def test_it_runs_at_the_scale_smoke_and_decides_nothing(smoke):
    assert not smoke.missing()
    assert {claim.test(smoke).status for claim in STUDY.claims({})} == {"not decided"}
    final, curves, changes = STUDY.figures(smoke)
    assert [len(figure.series) for figure in (final, curves, changes)] == [8 * 2 + 1, 4 * 2 + 1, 2 * 2]
    assert all(len(series.x) == 49 for series in changes.series)


def made_up(claim, losses, **more):
    """What a claim says of losses: (kind, depth) -> one for each seed."""
    cells = STUDY.configurations(STUDY.resolve("small"), range(5))
    values = {}
    for cell in cells:
        key = cell.config["kind"], cell.config["depth"]
        for seed in cell.seeds:
            own = {name: value(key, seed) for name, value in more.items()}
            values[cell.key(seed)] = {
                "loss": losses.get(key, [1.0] * 5)[seed], "error": 0.9, "changes": [0.1] * 49,
                "changes_before": [0.1] * 49, "chosen": {"activation": "relu", "lr": 0.1, "bias": -2}, **own,
            }  # fmt: skip
    (tested,) = [c for c in STUDY.claims({}) if c.name == claim]
    return tested.test(Results(cells, values))


@pytest.mark.parametrize(("last", "status"), [(0.1001, "held"), (0.0999, "not held")])
def test_plain_networks_degrade_a_hundredfold_in_every_seed(last, status):
    losses = {("plain", 10): [1e-3] * 5, ("plain", 100): [2.3, 2.3, 2.3, 2.3, last]}
    outcome = made_up("plain networks degrade", losses)
    assert outcome.status == status
    assert outcome.statistic.p == pytest.approx(2 / math.comb(10, 5))


@pytest.mark.parametrize(("last", "status"), [(0.0999, "held"), (0.1001, "not held")])
def test_highway_networks_train_to_a_tenth_in_every_seed(last, status):
    losses = {("plain", 100): [1.0] * 5, ("highway", 100): [0.01, 0.02, 0.03, 0.01, last]}
    assert made_up("highway networks of 100 layers train", losses).status == status


@pytest.mark.parametrize(("plain", "gated", "status"), [
    (3.17e-4, 3.17e-3, "held"), (3.15e-4, 3.17e-3, "not held"), (3.17e-4, 3.15e-3, "not held"),
])  # fmt: skip
def test_100_gated_layers_against_10(plain, gated, status):
    losses = {("highway", 100): [1e-3] * 5, ("plain", 10): [plain] * 5, ("highway", 10): [gated] * 5}
    assert made_up("100 gated layers are better than 10", losses).status == status


def test_100_gated_layers_are_compared_by_medians_and_divergence_counts_as_chance():
    losses = {
        ("highway", 100): [1e-3, 1e-3, 1e-3, WORST, WORST],
        ("plain", 10): [1e-3] * 5,
        ("highway", 10): [1e-2] * 5,
    }
    outcome = made_up("100 gated layers are better than 10", losses)
    assert outcome.status == "held"
    assert outcome.numbers["highway-100: training cross-entropy, nats"][3:] == pytest.approx([math.log(10)] * 2)
    diverged = {**losses, ("highway", 100): [1e-3, 1e-3, WORST, WORST, WORST]}
    assert made_up("100 gated layers are better than 10", diverged).status == "not held"


def test_gates_must_be_better_at_every_depth_and_seed():
    ahead = {("highway", depth): [0.5] * 5 for depth in highway.DEPTHS}
    outcome = made_up("gates are always better", ahead)
    assert outcome.status == "held"
    assert outcome.statistic.value == 5
    behind = made_up("gates are always better", {**ahead, ("highway", 20): [0.5, 0.5, 0.5, 1.0, 0.5]})
    assert behind.status == "not held"
    assert behind.statistic.value == 4


@pytest.mark.parametrize(("first", "status"), [(0.3901, "held"), (0.3899, "not held")])
def test_half_of_the_change_is_in_the_first_ten_layers(first, status):
    def profile(key, seed):
        return [first if seed == 2 else 1.0] * 10 + [0.1] * 39

    outcome = made_up("the first layers do it", {}, changes=profile)
    assert outcome.status == status
    assert outcome.numbers["the same before training"] == pytest.approx([10 / 49] * 5)


@pytest.mark.parametrize(("error", "status"), [(0.5, "held"), (0.499, "not held")])
@pytest.mark.parametrize("spoilt", [("plain", 50), ("highway", 100)])
def test_one_network_that_trains_refutes_that_none_does(error, status, spoilt):
    def wrong(key, seed):
        return error if key == spoilt and seed == 1 else 0.9

    assert made_up("nothing beyond 20 layers", {}, error=wrong).status == status
