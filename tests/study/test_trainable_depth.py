from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from levada._errors import UsageError
from levada.studies import find, trainable_depth
from levada.studies import trainable_depth_claims as told
from levada.study import Results
from levada.study.data import Dataset
from levada.study.gaussian_perceptrons import GaussianPerceptron, steps_to_accuracy

STUDY = trainable_depth.STUDY


def network(seeds, depth=4, variance=1.5):
    return GaussianPerceptron(6, 16, 3, depth, weight_variance=variance, bias_variance=0.05, seeds=seeds)


def examples(num=120):
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(num, 6, generator=generator)
    return inputs, inputs[:, :3].argmax(1)


def test_a_replica_is_the_network_written_out():
    both, x = network([3, 4]), torch.randn(5, 2, 6, generator=torch.Generator().manual_seed(0))
    alone = network([4])
    torch.testing.assert_close(both(x)[:, 1:], alone(x[:, 1:]))
    (first, weights, last), (first_bias, biases, last_bias) = alone.weights, alone.biases
    h = torch.tanh(x[:, 1] @ first[0, 0] + first_bias[0, 0])
    for layer in range(3):
        h = torch.tanh(h @ weights[layer, 0] + biases[layer, 0])
    torch.testing.assert_close(alone(x[:, 1:])[:, 0], h @ last[0, 0] + last_bias[0, 0])
    gradient = torch.autograd.grad(both(x)[:, 0].square().sum(), list(both.parameters()))
    assert all(not part[:, 1].any() for part in gradient), "replicas have nothing in common"


def test_weights_have_their_variances():
    net = GaussianPerceptron(400, 200, 10, 3, weight_variance=2.0, bias_variance=0.5, seeds=[0, 1])
    variances = [float(part.detach().var()) for part in (*net.weights, *net.biases)]
    assert variances[:3] == pytest.approx([2 / 400, 2 / 200, 1 / 200], rel=0.1)
    assert variances[3:] == pytest.approx([0.5, 0.5, 0.0], rel=0.3)


def test_each_replica_trains_at_its_rate_on_its_batches():
    inputs, targets = examples()
    both, alone = network([0, 0, 1]), network([0])
    steps_to_accuracy(both, inputs, targets, rates=[0.1, 0.0, 0.1], seeds=[0, 0, 1], steps=3, batch_size=10)
    steps_to_accuracy(alone, inputs, targets, rates=[0.1], seeds=[0], steps=3, batch_size=10)
    for part, own, fresh in zip(both.parameters(), alone.parameters(), network([0]).parameters(), strict=True):
        torch.testing.assert_close(part[:, :1], own, rtol=1e-4, atol=1e-6)
        assert torch.equal(part[:, 1:2], fresh), "a rate of 0 leaves the weights as they are"
    # By hand: SGD with momentum 0.9.
    plain = network([0])
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    order = torch.randperm(120, generator=torch.Generator().manual_seed(0))
    for index in order[:30].split(10):
        optimizer.zero_grad()
        functional.cross_entropy(plain(inputs[index, None])[:, 0], targets[index]).backward()
        optimizer.step()
    for part, own in zip(plain.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(part, own, rtol=1e-4, atol=1e-6)


def test_it_says_when_half_is_right_and_stops():
    inputs, targets = examples(600)
    net = network([0, 1], depth=2)
    found = steps_to_accuracy(net, inputs, targets, rates=[0.3, 0.0], seeds=[0, 1], steps=200, batch_size=20)
    assert found[0] > 0
    assert found[0] % 20 == 0
    assert found[1] == -1
    trained = network([0], depth=2)
    again = steps_to_accuracy(trained, inputs, targets, rates=[0.3], seeds=[0], steps=200, batch_size=20)
    assert again.tolist() == found[:1].tolist()
    share = (trained(inputs[:500, None]).argmax(-1)[:, 0] == targets[:500]).double().mean()
    assert share > 0.5, "it stopped there"
    asked = []
    steps_to_accuracy(
        network([0]), inputs, targets, rates=[0.0], seeds=[0], steps=200, batch_size=20,
        until=lambda reached: asked.append(reached.clone()) or len(asked) == 3,
    )  # fmt: skip
    assert len(asked) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"depth": 0}, "depth must be at least 1, got 0"), ({"weight_variance": -1.0}, "weight_variance must be at least"),
     ({"bias_variance": -1.0}, "bias_variance must be at least"), ({"seeds": []}, "a seed for each replica")],
)  # fmt: skip
def test_bad_input_says_the_rule(changes, message):
    given = {"depth": 2, "weight_variance": 1.0, "bias_variance": 0.0, "seeds": [0], **changes}
    with pytest.raises(UsageError, match=message):
        GaussianPerceptron(2, 3, 2, given.pop("depth"), **given)


def selecting(**changes):
    settings = STUDY.resolve("small", {"select": "true", "variances": "1.0", **changes})
    return STUDY.configurations(settings, [0])[0].config


def test_the_rate_that_trains_deepest_and_soonest_is_chosen(monkeypatch):
    config, given = selecting(), []
    # At 20 layers, the deepest below 6 xi_c = 21.8, no rate trains both seeds; at 14 layers .1 does so sooner than .3.
    reached = {20: [-1, -1, 20, -1, -1, -1, -1, -1, -1, -1], 14: [-1, 20, -1, -1, 60, 80, 100, 100, 20, -1]}

    def steps(config, rates, seeds, until, held_out):
        given.append((config["depth"], rates, seeds, until))
        assert held_out
        return torch.tensor(reached[config["depth"]])

    monkeypatch.setattr(trainable_depth, "_steps", steps)
    assert config["rates"] == [0.01, 0.03, 0.1, 0.3, 1.0]
    assert trainable_depth.selected(config) == 0.1
    assert [depth for depth, *_ in given] == [20, 14]
    _, rates, seeds, until = given[0]
    assert list(rates) == [rate for rate in config["rates"] for _ in range(2)]
    assert list(seeds) == [100, 101] * 5
    assert until(torch.tensor([-1, 20, -1, -1, 40, 40, -1, -1, -1, -1]))
    assert not until(torch.tensor([-1, 20, -1, 20, 40, -1, -1, -1, -1, -1]))


def test_where_no_rate_trains_both_seeds_the_most_count(monkeypatch):
    monkeypatch.setattr(
        trainable_depth, "_steps", lambda *args, **named: torch.tensor([-1, -1, -1, 280, -1, -1, 20, -1, -1, -1])
    )
    assert trainable_depth.selected(selecting()) == 0.3


def test_a_rate_is_chosen_once_for_all_depths(monkeypatch):
    trainable_depth._chosen.cache_clear()
    asked = []
    monkeypatch.setattr(trainable_depth, "selected", lambda config: asked.append(config) or 0.1)
    monkeypatch.setattr(trainable_depth, "_steps", lambda config, rates, seeds: torch.tensor([20] * len(seeds)))
    settings = STUDY.resolve("small", {"select": "true", "variances": "1.0,2.0"})
    for cell in STUDY.configurations(settings, [0, 1]):
        assert [values["rate"] for values in STUDY.run(cell.config, cell.seeds)] == [0.1, 0.1]
    trainable_depth._chosen.cache_clear()
    assert sorted(config["weight_variance"] for config in asked) == [1.0, 2.0]


def test_rates_are_chosen_on_images_that_are_not_used_otherwise(monkeypatch):
    seen = {}
    monkeypatch.setattr(trainable_depth, "_digits", lambda: (torch.arange(600.0)[:, None], torch.arange(600)))

    def train(network, inputs, targets, **named):
        seen[len(seen)] = inputs, targets
        return torch.tensor([20])

    monkeypatch.setattr(trainable_depth, "steps_to_accuracy", train)
    config = {"dim": 4, "depth": 2, "weight_variance": 1.0, "steps": 1, "batch_size": 8}
    for held_out in (False, True):
        trainable_depth._steps(config, [0.1], [0], held_out=held_out)
    assert [(int(t[0]), int(t[-1])) for _, t in seen.values()] == [(0, 499), (500, 599)]
    assert all(torch.equal(x[:, 0].long(), t) for x, t in seen.values())


SETTINGS = STUDY.resolve("small")
GRID = STUDY.configurations(SETTINGS, range(5))


def outcomes(trains):
    """What is decided where `trains(weight variance, depth, seed)` says which networks train."""
    values = {}
    for cell in GRID:
        for seed in cell.seeds:
            there = trains(cell.config["weight_variance"], cell.config["depth"], seed)
            values[cell.key(seed)] = {"steps": 100 if there else -1, "trained": there, "rate": 0.1}
    found = Results(GRID, values)
    return {claim.name: claim.test(found) for claim in STUDY.claims(SETTINGS)}, found


def sixfold(variance, depth, seed):
    return depth <= 6 * told.depth_scale(variance)


def test_networks_that_train_to_six_depth_scales_hold_the_law_and_refute_twenty_layers():
    found, results = outcomes(sixfold)
    assert {name: outcome.status for name, outcome in found.items()} == {
        "trained where information travels": "held",
        "about six depth scales": "held",
        "deep only near criticality": "held",
        "twenty layers": "not held",
    }
    assert told.frontiers(results, 1.0) == dict.fromkeys(range(5), 20.0)
    assert told.frontiers(results, 1.76) == dict.fromkeys(range(5), 160.0)
    diagram, steps = STUDY.figures(results)
    assert [s.y[2] for s in diagram.series if s.style == "measured"] == [20.0] * 5
    assert {s.label for s in diagram.series if s.style != "measured"} == {
        "2 xi_c", "6 xi_c", "12 xi_c", "deepest asked"
    }  # fmt: skip
    for series in diagram.series:
        if series.label.endswith("xi_c"):
            drawn = dict(zip(series.x, series.y, strict=True))
            assert drawn[1.76] == float("inf"), "no line crosses criticality"
            assert min(drawn) < 1.76 < max(drawn)
            assert list(drawn) == sorted(drawn)
    (ends,) = [s for s in diagram.series if s.label == "deepest asked"]
    assert list(ends.y) == [20, 40, 57, 160, 160, 160, 160, 120, 120]
    assert len(steps.series) == 9 * 5


def test_a_gap_ends_the_frontier_and_a_network_that_never_trains_has_none():
    _, results = outcomes(lambda variance, depth, seed: depth != 10 if seed == 1 else depth > 5)
    found = told.frontiers(results, 2.0)
    assert (found[1], found[0]) == (7.0, 0.0)
    diagram = STUDY.figures(results)[0]
    assert [(s.seed, len(s.x)) for s in diagram.series if s.style == "measured"] == [(1, 9)], "none that never trains"


def test_depths_are_asked_to_beyond_twelve_depth_scales():
    depths = {v: told.asked(v, SETTINGS["depths"]) for v in SETTINGS["variances"]}
    assert {v: found[-1] for v, found in depths.items()} == {
        0.5: 20, 0.9: 40, 1.0: 57, 1.5: 160, 1.76: 160, 2.0: 160, 2.5: 160, 3.0: 120, 4.0: 120,
    }  # fmt: skip
    for variance, found in depths.items():
        assert found == [d for d in SETTINGS["depths"] if d <= found[-1]]
        assert found[-2] < 12 * told.depth_scale(variance)


def test_a_frontier_that_does_not_follow_is_seen():
    def reversed_order(variance, depth, seed):
        return depth <= 5 * variance**2

    def constant(variance, depth, seed):
        return depth <= 14

    assert outcomes(reversed_order)[0]["trained where information travels"].status == "not held"
    flat = outcomes(constant)[0]
    assert flat["trained where information travels"].numbers["Spearman's rank correlation"] == 0.0
    assert flat["about six depth scales"].status == "not held"  # 14 layers are 1.2 depth scales at variance 2.5


def test_networks_that_train_at_every_depth_asked_decide_no_rank_and_refute_the_law():
    found = outcomes(lambda variance, depth, seed: True)[0]
    assert found["trained where information travels"].status == "not decided"
    assert found["about six depth scales"].status == "not held"  # 20 layers are 17 depth scales at variance .5
    assert found["deep only near criticality"].status == "not held"


@pytest.mark.parametrize(("late", "status"), [(2, "held"), (3, "not held")])
@pytest.mark.parametrize(("variance", "most"), [(2.5, 20), (2.5, 160), (0.5, 20), (4.0, 0)])
def test_the_median_seed_decides_on_the_multiple(late, status, variance, most):
    def trains(own, depth, seed):
        return depth <= most if own == variance and seed < late else sixfold(own, depth, seed)

    assert outcomes(trains)[0]["about six depth scales"].status == status


@pytest.mark.parametrize(("variance", "most"), [(0.5, 0), (1.5, 160), (2.0, 160)])
def test_a_frontier_at_an_end_of_what_is_asked_leaves_the_multiple_open(variance, most):
    outcome = outcomes(lambda own, depth, seed: depth <= most if own == variance else sixfold(own, depth, seed))[0][
        "about six depth scales"
    ]
    assert outcome.status == "not decided"
    assert f"{variance:g}" in outcome.reason


@pytest.mark.parametrize(("variance", "depth", "there", "status"), [
    (1.76, 160, False, "not decided"), (1.0, 57, True, "not held"), (2.5, 160, True, "not held"),
    (4.0, 120, True, "not held"), (2.0, 160, True, "held"),
])  # fmt: skip
def test_one_seed_decides_near_criticality(variance, depth, there, status):
    def trains(own, asked, seed):
        return there if (own, asked, seed) == (variance, depth, 3) else sixfold(own, asked, seed)

    outcome = outcomes(trains)[0]["deep only near criticality"]
    assert outcome.status == status
    if status == "not decided":
        assert outcome.reason == "at 160 layers the critical network trains in 4 of 5 seeds within these steps"


def test_a_far_network_refutes_even_where_the_critical_one_does_not_train():
    def trains(own, depth, seed):
        return (own == 2.5) if depth == 160 else sixfold(own, depth, seed)

    assert outcomes(trains)[0]["deep only near criticality"].status == "not held"


def test_twenty_layers_would_be_seen():
    found = outcomes(lambda variance, depth, seed: depth <= 20)[0]["twenty layers"]
    assert (found.status, found.statistic.value) == ("held", 20)
    assert found.numbers["6 xi_c of weight variance 1"] == pytest.approx(21.8, abs=0.1)
    one = outcomes(lambda variance, depth, seed: depth <= (28 if (variance, seed) == (2.0, 4) else 20))[0]
    assert one["twenty layers"].status == "not held"
    assert one["twenty layers"].numbers["deepest that trained, each seed"] == [20, 20, 20, 20, 28]
    assert one["twenty layers"].numbers["initialisations that trained at 28 layers, of 8 asked"] == 1


def test_it_runs_at_the_scale_smoke(monkeypatch):
    assert find("trainable_depth") is STUDY
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (700, 28, 28), generator=generator, dtype=torch.uint8)
    labels = torch.randint(10, (700,), generator=generator)
    monkeypatch.setattr(trainable_depth, "mnist", lambda: Dataset("noise", images, labels, images, labels))
    trainable_depth._digits.cache_clear()
    settings = STUDY.resolve("smoke")
    grid = STUDY.configurations(settings, range(2))
    values = {
        cell.key(s): v for cell in grid for s, v in zip(cell.seeds, STUDY.run(cell.config, cell.seeds), strict=True)
    }
    trainable_depth._digits.cache_clear()
    found = Results(grid, values)
    assert not found.missing()
    assert {claim.test(found).status for claim in STUDY.claims(settings)} == {"not decided"}
    assert all(set(value) == {"steps", "trained", "rate"} for value in values.values())
    assert STUDY.figures(found)[0].series
