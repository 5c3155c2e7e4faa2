"""R6: shortcuts by hand, networks of replicas, gradients around branches, and claims that hold and fail."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from levada._errors import UsageError
from levada.studies import shortcut_ablation
from levada.studies.shortcut_ablation_claims import FAIL, GATED, GROUPS, KINDS
from levada.study import Results
from levada.study.shortcut_networks import ReplicaDropout, Shortcut, ShortcutNetwork
from levada.study.training import Recipe, train

STUDY = shortcut_ablation.STUDY
NAMES = list(KINDS)


def build(shortcut, seeds=(0, 1), blocks=2, channels=4):
    return ShortcutNetwork(shortcut, blocks, channels=channels, num_classes=3, seeds=seeds)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", NAMES)
def test_replicas_train_as_they_would_alone(kind):
    inputs, targets = normal(24, 20), torch.arange(24) % 3
    recipe = Recipe(steps=3, batch_size=8, lr=0.05)
    together = build(KINDS[kind].shortcut, seeds=(4, 9))
    curves = train(together, inputs, targets, recipe, (4, 9))
    for place, seed in enumerate((4, 9)):
        own = train(build(KINDS[kind].shortcut, seeds=(seed,)), inputs, targets, recipe, (seed,))
        assert torch.allclose(curves.loss[:, place], own.loss[:, 0], atol=1e-4)


@pytest.mark.parametrize("kind", NAMES)
def test_a_block_is_what_the_table_says(kind):
    shortcut = KINDS[kind].shortcut
    network = build(shortcut).eval()
    (layer, relu), x = network.blocks[0], normal(5, 8, 1, 10).relu()
    assert isinstance(relu, nn.ReLU)
    convolutions = layer.branch[:5]  # without the scale
    f = convolutions(x)
    if shortcut.form == "exclusive gate":
        assert layer.connection.gate.bias.unique().tolist() == [shortcut.value]
        g = torch.sigmoid(layer.connection.gate(x))
        wanted = (1 - g) * x + g * f
    elif shortcut.form == "shortcut gate":
        assert layer.connection.shortcut.gate.bias.unique().tolist() == [shortcut.value]
        wanted = (1 - torch.sigmoid(layer.connection.shortcut.gate(x))) * x + f
    elif shortcut.form == "convolution":
        assert [type(part) for part in layer.connection.shortcut][1] is nn.BatchNorm2d
        wanted = layer.connection.shortcut(x) + f
    elif shortcut.form == "dropout":
        wanted = 0.5 * x + f
    else:
        wanted = shortcut.value * x + shortcut.branch * f
    assert torch.allclose(network.blocks[0](x), wanted.relu(), atol=1e-6)


def test_dropout_neither_shares_its_draws_nor_makes_up_for_what_it_drops():
    dropout = ReplicaDropout(0.25, [torch.Generator().manual_seed(s) for s in (0, 1)])
    x = torch.full((200, 8, 1, 10), 3.0)
    kept = dropout(x)
    assert set(kept.unique().tolist()) == {0.0, 3.0}
    assert kept.mean().item() == pytest.approx(2.25, abs=0.06)
    assert not torch.equal(kept[:, :4], kept[:, 4:])
    alone = ReplicaDropout(0.25, [torch.Generator().manual_seed(1)])
    assert torch.equal(alone(x[:, 4:]), kept[:, 4:])
    assert torch.equal(dropout.eval()(x), 0.75 * x)


def test_all_kinds_begin_with_the_same_branches():
    first, *others = (build(kind.shortcut) for kind in KINDS.values())
    for other in others:
        assert torch.equal(other.first[0].weight, first.first[0].weight)
        assert torch.equal(other.classifier.weight, first.classifier.weight)
        for one, two in zip(first.blocks, other.blocks, strict=True):
            assert torch.equal(one[0].branch[0].weight, two[0].branch[0].weight)
            assert torch.equal(one[0].branch[3].weight, two[0].branch[3].weight)


@pytest.mark.parametrize(("factor", "through"), [(1.0, "all"), (1.0, "shortcuts"), (0.5, "all"), (0.5, "shortcuts")])
def test_without_branches_the_gradient_is_the_product_of_the_factors(factor, through):
    network = build(Shortcut("constant", factor), blocks=6).double().train()
    with torch.no_grad():
        for layer, _ in network.blocks:
            layer.branch[4].weight.zero_()
        network.first[1].bias.fill_(100.0)  # no ReLU cuts
    norms = network.gradients(normal(5, 2, 20).double(), torch.arange(10).view(5, 2) % 3, through=through)
    assert (norms[:, 0] / norms[:, -1]).tolist() == pytest.approx([factor**6] * 2, rel=1e-12)


@pytest.mark.parametrize("kind", ["identity", "exclusive gate, bias 0", "convolution", "no shortcut"])
def test_gradients_are_those_of_autograd_and_branches_can_be_blocked(kind):
    network = build(KINDS[kind].shortcut, seeds=(3,), blocks=2).double().train()
    x, targets = normal(6, 1, 20).double(), torch.arange(6).view(6, 1) % 3
    state = network.first(x.unsqueeze(2)).detach().requires_grad_()
    for through in ("all", "shortcuts"):
        h = state
        for layer, relu in network.blocks:
            out = layer.branch(h)
            if through == "all":
                h = relu(layer.connection.write(h, out))
            elif kind.startswith("exclusive"):
                g = torch.sigmoid(layer.connection.gate(h))
                h = relu((1 - g) * h + (g * out).detach())
            else:
                h = relu(layer.connection.write(h, out.detach()))
        logits = network.classifier(h.mean((2, 3)))[:, 0]
        loss = nn.functional.cross_entropy(logits, targets[:, 0]) + 0 * state.sum()
        (wanted,) = torch.autograd.grad(loss, state)
        found = network.gradients(x, targets, through=through)
        assert found.shape == (1, 3)
        assert found[0, 0].item() == pytest.approx(wanted.norm().item(), rel=1e-9)


@pytest.mark.parametrize("kind", NAMES)
def test_the_measured_gain_is_the_closed_form_where_gates_have_no_weights(kind):
    network = build(KINDS[kind].shortcut, blocks=6).double()
    for module in network.modules():
        if type(module).__name__ == "ReplicaGate":
            nn.init.zeros_(module.weight)
    gain, wanted = network.shortcut_gain(normal(5, 2, 20).double()), KINDS[kind].shortcut.gain(6)
    if wanted is None:
        assert bool(gain.isnan().all())
    else:
        assert gain.tolist() == pytest.approx([wanted] * 2, rel=1e-12)


@pytest.mark.parametrize(("arguments", "words"), [
    (("skip",), "form must be one of"), (("dropout", 1.0), r"a share in \[0, 1\)"),
    (("convolution", 0.0, 0.5), "branch serves form='constant' alone"),
])  # fmt: skip
def test_shortcuts_that_cannot_be(arguments, words):
    with pytest.raises(UsageError, match=words):
        Shortcut(*arguments)


def test_kinds_are_the_papers_rows():
    assert sum(kind.paper == FAIL for kind in KINDS.values()) == 5
    ranked = [max(KINDS[kind].paper for kind in group) for group in GROUPS]
    assert ranked == sorted(ranked)
    small, full = (STUDY.configurations(STUDY.resolve(scale), range(2)) for scale in ("small", "full"))
    assert (len(small), len(full)) == (10, 12)


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
    table, curves, profiles = STUDY.figures(smoke)
    assert [len(figure.series) for figure in (table, curves)] == [10 * 2 + 1, 10 * 2]
    assert {series.style for series in profiles.series} == {"measured", "predicted"}
    assert smoke.column("shortcut_gain", kind="half of both") == [0.125] * 2


def test_a_learning_rate_is_chosen_on_other_seeds_and_held_out_signals(monkeypatch):
    asked = []
    network = shortcut_ablation._network
    monkeypatch.setattr(shortcut_ablation, "_network", lambda c, seeds: asked.append(tuple(seeds)) or network(c, seeds))
    settings = STUDY.resolve("smoke", {"lr_grid": (0.001, 0.1)})
    (cell,) = [c for c in STUDY.configurations(settings, [0]) if c.config["kind"] == "identity"]
    (values,) = STUDY.run(cell.config, cell.seeds)
    assert asked[:2] == [shortcut_ablation.SELECTION_SEEDS] * 2
    assert set(asked[2:]) == {(0,)}
    errors = values["validation_error"]
    assert values["lr"] == min((0.001, 0.1), key=lambda lr: errors[str(lr)])


def made_up(claim, value):
    cells = STUDY.configurations(STUDY.resolve("small"), range(5))
    base = {"train_error": 0.04, "test_error": 0.1, "lr": 0.1, "gradient": [1.0, 1.0], "shortcut_gradient": [1.0, 1.0],
            "shortcut_gain": 1.0}  # fmt: skip
    values = {c.key(seed): {**base, **value(c.config["kind"], seed)} for c in cells for seed in c.seeds}
    (tested,) = [c for c in STUDY.claims({}) if c.name == claim]
    return tested.test(Results(cells, values))


def by_group(kind):
    return next(place for place, group in enumerate(GROUPS) if kind in group)


@pytest.mark.parametrize(("worse", "status"), [(0.0, "held"), (0.11, "not held")])
@pytest.mark.parametrize("kind", ["shortcut gate, bias -6", "exclusive gate, bias -6", "half of both"])
def test_the_order_is_that_of_the_means(kind, worse, status):
    def value(name, seed):
        return {"train_error": 0.1 * by_group(name) + 0.01 * seed + (worse if name == kind else 0.0)}

    outcome = made_up("the table's order", value)
    assert outcome.status == status
    assert outcome.statistic.value == (5 if status == "held" else 0)


@pytest.mark.parametrize("claim", [
    "the table's order", "as in the table", "to be able is not to learn", "gates train as well as the identity"
])  # fmt: skip
@pytest.mark.parametrize(("error", "status"), [(0.0499, "held"), (0.0501, "not decided")])
def test_nothing_is_ordered_where_the_identity_does_not_train(claim, error, status):
    def value(name, seed):
        gate = name == "exclusive gate, bias -6" and claim.startswith("gates")
        return {"train_error": error + (0.0 if gate else by_group(name)), "test_error": KINDS[name].paper / 100}

    outcome = made_up(claim, value)
    assert outcome.status == status
    assert ("identity's mean training error is 5.0 %" in outcome.reason) == (status == "not decided")


def test_the_ranks_are_compared_with_the_papers():
    def papers(name, seed):
        return {"test_error": KINDS[name].paper / 100}

    outcome = made_up("as in the table", papers)
    assert outcome.status == "held"
    assert outcome.numbers["the largest that the paper's ties allow"] == pytest.approx((39 / 45) ** 0.5)
    assert outcome.numbers["Kendall's tau-b of the mean test errors"] == pytest.approx(1.0)
    turned = made_up("as in the table", lambda name, seed: {"test_error": 0.3 - KINDS[name].paper / 100})
    assert turned.status == "not held"


@pytest.mark.parametrize(("identity", "behind", "status"), [(0.125, 4, "held"), (0.135, 5, "not held")])
def test_ranks_may_differ_in_four_pairs(identity, behind, status):
    def value(name, seed):  # 39 of 45 pairs are ranked in the paper's table
        return {"test_error": identity if name == "identity" else KINDS[name].paper / 100 + 1e-6 * NAMES.index(name)}

    outcome = made_up("as in the table", value)
    wanted = (39 - 2 * behind) / (39 * 45) ** 0.5
    assert outcome.numbers["Kendall's tau-b of the mean test errors"] == pytest.approx(wanted)
    assert outcome.status == status


@pytest.mark.parametrize(("error", "status"), [(0.041, "held"), (0.04, "not held")])
@pytest.mark.parametrize("kind", ["convolution", "shortcut gate, bias 0"])
def test_what_could_be_the_identity_is_worse_in_every_seed(kind, error, status):
    def value(name, seed):
        return {"train_error": 0.04 if name == "identity" else error if (name, seed) == (kind, 3) else 0.2}

    assert made_up("to be able is not to learn", value).status == status


@pytest.mark.parametrize(("error", "status"), [(0.0499, "held"), (0.0501, "not held")])
def test_the_best_gate_may_lose_a_point_on_average(error, status):
    def value(name, seed):
        return {"train_error": {"identity": 0.04, "exclusive gate, bias -6": error + 0.02 * (seed - 2)}.get(name, 0.9)}

    outcome = made_up("gates train as well as the identity", value)
    assert outcome.status == status
    assert outcome.numbers["best of the exclusive gates"] == "exclusive gate, bias -6"


@pytest.mark.parametrize(("kind", "ratio", "status"), [
    ("shortcut gate, bias 0", 1e-15, "held"), ("shortcut gate, bias 0", 1.1e-15, "not held"),
    ("exclusive gate, bias 0", 1.1e-15, "not held"), ("identity", 0.1, "held"), ("identity", 0.09, "not held"),
    ("exclusive gate, bias -6", 0.09, "not held"), ("half of both", 0.5, "held"),
])  # fmt: skip
def test_gradients_through_the_shortcuts_of_gates_in_every_seed(kind, ratio, status):
    def value(name, seed):
        usual = 2.0**-54 if name in GATED else 0.9
        return {"shortcut_gradient": [ratio if (name, seed) == (kind, 4) else usual, 1.0]}

    outcome = made_up("the shortcut passes nothing", value)
    assert outcome.status == status
    assert outcome.statistic is None, "what factors alone decide needs no test"


@pytest.mark.parametrize(("ratio", "status"), [(0.99, "held"), (1.0, "not held")])
def test_one_gradient_that_grows_refutes_that_they_vanish(ratio, status):
    outcome = made_up("and so the gradient vanishes", lambda name, seed: {
        "gradient": [ratio if (name, seed) == ("no shortcut", 1) else 0.5, 1.0]})  # fmt: skip
    assert outcome.status == status
