"""R11: its networks, its effects by hand, and claims that hold and fail as their criteria say."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.nn.functional import cross_entropy

from levada.studies import what_helped
from levada.studies.what_helped_claims import effects
from levada.study import Results, claims, execute, failures, figures
from levada.study.data import Dataset

STUDY = what_helped.STUDY


@pytest.fixture(autouse=True, scope="module")
def _few_digits():
    """Digits that are no digits, so that no test waits for MNIST."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (200, 28, 28), generator=generator, dtype=torch.uint8)
    labels = torch.randint(10, (200,), generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(what_helped, "mnist", lambda: Dataset("noise", images, labels, images, labels))
        yield


def cells(**changes):
    settings = STUDY.resolve("small", changes)
    return list(STUDY.configurations(settings, range(settings["seeds"])))


def decided(name, value):
    """What a claim says of results that `value` makes from a configuration and a seed."""
    grid = cells()
    values = {cell.key(seed): value(cell.config, seed) for cell in grid for seed in cell.seeds}
    (claim,) = [c for c in STUDY.claims(STUDY.resolve("small")) if c.name == name]
    return claim.test(Results(grid, values))


def tiny(**fields):
    """A configuration of the smoke scale that has these fields."""
    settings = STUDY.resolve("smoke")
    (found,) = [
        c.config for c in STUDY.configurations(settings, range(2)) if all(c.config[k] == v for k, v in fields.items())
    ]
    return found


FIRST = {"measures": "factorial", "initialisation": "scaled", "norm": False, "activation": "relu", "optimizer": "SGD"}


def test_the_factorial_has_all_sixteen_cells():
    levels = {
        (c.config["initialisation"], c.config["norm"], c.config["activation"], c.config["optimizer"])
        for c in cells()
        if c.config["measures"] == "factorial"
    }
    assert len(levels) == 16
    assert len({what_helped._name(c.config) for c in cells()}) == 16 + 4 + 3 == len(what_helped.RATES)


def test_effects_by_hand():
    gains = {"initialisation": ("scaled", 0.05), "norm": (True, 0.2), "activation": ("relu", 0.1)}

    def accuracy(config):
        share = 0.3 + sum(gain for field, (level, gain) in gains.items() if config[field] == level)
        # Adam helps only where there is no normalisation.
        return share + 0.08 * (config["optimizer"] == "Adam" and not config["norm"])

    grid = [c for c in cells() if c.config["measures"] == "factorial"]
    values = {c.key(s): {"accuracy": accuracy(c.config) + 0.01 * s} for c in grid for s in c.seeds}
    found = effects(Results(grid, values))
    assert len(found) == 15
    wanted = {"initialisation": 5, "batch norm": 20 - 4, "ReLU": 10, "Adam": 4, "batch norm x Adam": -4}
    for name, seeds in found.items():
        assert seeds == pytest.approx([wanted.get(name, 0)] * 5, abs=1e-9), name


FACTORS = {"initialisation": "scaled", "norm": True, "activation": "relu", "optimizer": "Adam"}


REMEDIES = [("Glorot's weights helped", "initialisation", {"measures": "tanh", "optimizer": "SGD"}),
            ("He's weights helped", "initialisation", {"measures": "factorial", "activation": "relu", "norm": False}),
            ("batch norm helped", "norm", {"activation": "sigmoid", "optimizer": "SGD"}),
            ("ReLU helped", "activation", {"initialisation": "scaled", "norm": False}),
            ("Adam helped", "optimizer", {"activation": "relu", "norm": True})]  # fmt: skip


@pytest.mark.parametrize(("name", "field", "where"), REMEDIES, ids=[name for name, *_ in REMEDIES])
@pytest.mark.parametrize(("without", "with_it", "one", "status"), [
    (0.1, 0.8, 0.8, "held"), (0.799, 0.8, 0.8, "held"), (0.1, 0.799, 0.799, "not held"), (0.8, 0.95, 0.95, "not held"),
    (0.1, 0.9, 0.5, "not decided"), (0.9, 0.1, 0.1, "not held"), (0.1, 0.5, 0.9, "not decided"),
])  # fmt: skip
def test_a_remedy_helps_if_networks_learn_with_it_only(name, field, where, without, with_it, one, status):
    def value(config, seed):
        if any(config.get(key) != wanted for key, wanted in where.items()):
            return {"accuracy": 0.5}
        helped = config.get(field) == FACTORS[field]
        return {"accuracy": without if not helped else one if seed == 2 else with_it}

    outcome = decided(name, value)
    assert outcome.status == status
    gain = outcome.numbers["mean gain over the settings, points, with its 95 % interval"]
    pairs = [key for key in outcome.numbers if key.startswith("accuracy without and with it")]
    assert len(pairs) == {"Glorot's weights helped": 2, "He's weights helped": 4}.get(name, 8)
    share = {"Glorot's weights helped": 1, "He's weights helped": 2}.get(name, 2) / len(pairs)
    assert gain[0] == pytest.approx(100 * share * ((4 * with_it + one) / 5 - without))
    assert bool(outcome.numbers["settings that it makes trainable"]) == (status == "held")


def test_one_setting_in_every_seed_is_enough_beside_one_in_some():
    def value(config, seed):
        scaled = config.get("initialisation") == "scaled"
        return {"accuracy": 0.9 if scaled and (config.get("optimizer") == "SGD" or seed == 1) else 0.1}

    assert decided("Glorot's weights helped", value).status == "held"


def test_what_one_setting_gains_and_another_loses_does_not_hold():
    def value(config, seed):
        scaled = config.get("initialisation") == "scaled"
        return {"accuracy": 0.9 if scaled == (config.get("optimizer") == "SGD") else 0.1}

    assert decided("Glorot's weights helped", value).status == "not held"


def test_a_seed_does_not_depend_on_who_trains_beside_it():
    config = {**tiny(**{**FIRST, "norm": True, "optimizer": "Adam"}), "steps": 12}
    together, alone = what_helped.run(config, [0, 1, 2]), what_helped.run(config, [1])
    assert together[1] == alone[0], "to the bit"


@pytest.mark.parametrize(("share", "status"), [(0.15, "held"), (0.151, "not held")])
def test_one_seed_above_chance_is_enough_against_chance(share, status):
    spoilt = {"initialisation": "scaled", "optimizer": "Adam", "norm": False, "activation": "sigmoid"}
    outcome = decided(
        "sigmoids stay at chance",
        lambda c, seed: {"accuracy": share if seed == 3 and all(c[k] == v for k, v in spoilt.items()) else 0.1},
    )
    assert outcome.status == status


@pytest.mark.parametrize(("share", "status"), [(0.8, "held"), (0.799, "not held")])
def test_one_seed_that_does_not_learn_is_enough(share, status):
    def value(config, seed):
        spoilt = config["optimizer"] == "SGD" and config["initialisation"] == "standard" and seed == 4
        return {"accuracy": share if spoilt else 0.95}

    assert decided("normalised sigmoids learn", value).status == status
    outcome = decided("with skips Adam is enough", lambda c, _: {"accuracy": share if c["optimizer"] == "Adam" else 0})
    assert outcome.status == status


@pytest.mark.parametrize(("usual", "least", "status"), [(1e-3, 0.1, "held"), (1.1e-3, 0.1, "not held"),
                                                        (1e-3, 0.09, "not held")])  # fmt: skip
def test_epsilon_decides_whether_the_first_layer_moves(usual, least, status):
    def value(config, seed):
        moved = {1e-8: usual, 1e-30: least}.get(config["eps"], 0.01)
        return {"moved": [moved, 5.0], "accuracy": 0.1, "gradient": [1e-15, 1.0]}

    assert decided("epsilon holds the first layer", value).status == status


@pytest.mark.parametrize(("share", "status"), [(0.8, "held"), (0.2, "not held")])
def test_steps_of_the_right_size_must_learn(share, status):
    def value(config, seed):
        return {"moved": [1.0], "accuracy": share if config["eps"] == 1e-30 else 0.9, "gradient": [1e-15]}

    assert decided("a step of the right size is enough", value).status == status


def test_what_is_measured_is_what_a_loop_by_hand_gives():
    config = {**tiny(**FIRST), "steps": 1, "batch_size": 64}
    measured, _ = what_helped._fit(config, 0.1, [0, 1], *what_helped._digits(config, 0))
    inputs, targets = what_helped._digits(config, 0)
    network = what_helped._network(config, [0])
    before = [weight.detach().clone() for weight in network.weights]
    loss = cross_entropy(network(inputs.unsqueeze(1))[:, 0], targets)
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    first = gradients[0].square().mean().sqrt().item()
    assert measured["gradient"][0] == pytest.approx(first, rel=1e-4)
    with torch.no_grad():
        for parameter, gradient in zip(network.parameters(), gradients, strict=True):
            parameter -= 0.1 * gradient
    moved = ((network.weights[0] - before[0]).norm() / before[0].norm()).item()
    assert measured["moved"][0] == pytest.approx(moved, rel=1e-4)
    logits = network(inputs.unsqueeze(1))[:, 0]
    assert measured["accuracy"] == pytest.approx((logits.argmax(-1) == targets).double().mean().item())
    assert measured["loss"] == pytest.approx(cross_entropy(logits, targets).item(), rel=1e-4)


def test_digits_are_pooled_and_rates_are_chosen_on_others(monkeypatch):
    config = {**tiny(**FIRST), "select": True}
    assert what_helped._digits(config, 0)[0].shape == (64, 196)
    assert what_helped._digits({**config, "pooled": False}, 0)[0].shape == (64, 784)
    asked = []

    def fit(config, lr, seeds, inputs, targets):
        asked.append((lr, tuple(seeds), inputs[0, 0].item()))
        return [{"accuracy": 1.0 if lr == 0.03 else 0.5} for _ in seeds]

    monkeypatch.setattr(what_helped, "_fit", fit)
    (found, _) = what_helped.run(config, [0, 1])
    assert found["lr"] == 0.03
    *selection, first, second = asked
    assert [seeds for _, seeds, _ in selection] == [(100,), (101,)] * 6
    assert [one[:2] for one in (first, second)] == [(0.03, (0,)), (0.03, (1,))]
    assert {place for *_, place in selection} == {what_helped._digits(config, 64)[0][0, 0].item()}
    assert first[2] == what_helped._digits(config, 0)[0][0, 0].item() != selection[0][2]


def test_epsilons_are_tried_in_float64_with_the_rate_of_the_least():
    config = tiny(measures="epsilon", residual=False, eps=1e-8)
    assert what_helped._digits(config, 0)[0].dtype == torch.float64
    assert what_helped._network(config, [0]).weights[0].dtype == torch.float64
    assert what_helped._name(config) == "epsilons"
    residual = tiny(measures="epsilon", residual=True, optimizer="SGD")
    assert what_helped._network(residual, [0]).residual
    assert what_helped._name(residual) == "residual, SGD"


def test_it_runs_at_the_scale_smoke_and_decides_nothing(tmp_path):
    with ThreadPoolExecutor(1) as pool:
        run = execute(STUDY, scale="smoke", out=tmp_path, executor=pool)
    assert failures(run) == {}
    assert {claim["status"] for claim in claims(run).values()} == {"not decided"}
    drawn = figures(run)
    assert set(drawn) == {"cells", "effects", "epsilon", "epsilon_accuracy"}
    assert len([s for s in drawn["cells"]["series"] if s["style"] == "measured"]) == 16 * 2
    assert len([s for s in drawn["effects"]["series"] if s["style"] == "measured"]) == 4 * 2
