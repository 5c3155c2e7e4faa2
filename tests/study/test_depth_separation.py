"""R12: its networks and tasks, and claims that hold and fail as their criteria say."""

from __future__ import annotations

import itertools
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from levada.studies import depth_separation as r12
from levada.study import Results, claims, execute, failures, figures
from levada.study.pieces import evaluate
from levada.study.training import error
from levada.theory import crossing_bound, sawtooth

STUDY = r12.STUDY


def decided(name, value):
    """What a claim says of results that `value` makes from a configuration and a seed."""
    settings = STUDY.resolve("small")
    grid = list(STUDY.configurations(settings, range(5)))
    values = {cell.key(seed): value(cell.config, seed) for cell in grid for seed in cell.seeds}
    (claim,) = [c for c in STUDY.claims(settings) if c.name == name]
    return claim.test(Results(grid, values))


def config(**fields):
    """The first configuration of the smoke scale that has these fields."""
    settings = STUDY.resolve("smoke")
    grid = [cell.config for cell in STUDY.configurations(settings, range(2))]
    return next(c for c in grid if all(c[k] == v for k, v in fields.items()))


def weights(widths):
    return sum(a * b + b for a, b in itertools.pairwise(widths))


@pytest.mark.parametrize("folds", [6, 8, 10])
def test_shallow_networks_have_the_units_that_their_names_say(folds):
    found = r12._sawtooth_widths(folds, 16)
    assert 1 + found["shallow, a quarter of the pieces"][0] == 2 ** (folds - 2)
    eight, built = found["shallow, 8 times the weights"], 6 * folds + 1
    assert built == weights([1, *found["deep, as constructed"], 1])
    assert abs(weights([1, *eight, 1]) - 8 * built) <= 3
    assert 1 + found["shallow, pieces enough"][0] > 2**folds


@pytest.mark.parametrize("dim", [5, 10, 20])
def test_three_layers_have_no_more_weights_than_two(dim):
    networks = r12._radial_networks(dim, 512, 1500)
    found = {name: weights([dim, *widths, 2]) for name, (widths, _) in networks.items()}
    assert 0.95 * found["two layers"] < found["three layers"] <= found["two layers"]
    assert found["two layers, 4 times the weights"] == pytest.approx(4 * found["two layers"], rel=0.01)
    assert found["two layers, 4 times the steps"] == found["two layers"]
    assert {name: steps for name, (_, steps) in networks.items() if steps != 1500} == {
        "two layers, 4 times the steps": 6000
    }


def test_networks_for_labels_have_the_weights_that_their_names_say():
    found = {name: weights([10, *widths, 2]) for name, widths in r12._label_widths(100).items()}
    assert found["deep"] == pytest.approx(found["shallow"], rel=0.05)
    assert found["deep, an eighth of the weights"] == pytest.approx(found["shallow"] / 8, rel=0.05)


def test_near_the_construction_without_noise_there_is_no_error():
    at = {**config(measures="sawtooth", network=r12.NEAR), "noise": 0.0}
    network = r12._network([1, *at["widths"], 2], at, [0])
    r12._place(network, at["folds"], 0.0, [0])
    x = torch.linspace(0, 1, 101, dtype=torch.float64)
    answer = evaluate(r12._answer(network.replica(0)), r12.SPAN * (2 * x - 1).unsqueeze(1)).flatten()
    torch.testing.assert_close(answer, 2 * (2 * sawtooth(x, at["folds"]) - 1), rtol=0, atol=1e-4)
    found = r12._sawtooth({**at, "steps": 1}, [0, 1], 1e-9)
    assert [(v["error_before"], v["error"], v["pieces"], v["crossings"]) for v in found] == [(0, 0, 16, 16)] * 2
    noisy = r12._sawtooth({**at, "steps": 1, "noise": 0.5}, [0, 1], 1e-9)
    assert all(v["error_before"] > 0 for v in noisy)


def test_a_shallow_networks_errors_and_pieces_are_counted_and_bounded():
    at = {**config(measures="sawtooth", network="shallow, a quarter of the pieces"), "folds": 7, "steps": 20}
    at["widths"] = [31]
    for found in r12._sawtooth(at, [0, 1, 2], 0.01):
        assert found["pieces"] <= 32
        assert found["error"] >= crossing_bound(found["crossings"], 129) >= crossing_bound(32, 129) > 0.3
        assert found["parameters"] == 3 * 31 + 1


def test_errors_in_float64_are_those_of_the_network():
    at = config(measures="sawtooth", network="deep, wide")
    network = r12._network([1, *at["widths"], 2], at, [3, 4])
    x = torch.linspace(-1, 1, 64).unsqueeze(1)
    targets = torch.arange(64) % 3 % 2
    assert [r12._wrong(network, index, x, targets) for index in (0, 1)] == error(network, x, targets, 2).tolist()


def test_shells_alternate_and_rates_are_chosen_on_other_points():
    at = config(measures="radial", network="two layers")
    points, labels = r12._shells({**at, "shell": 0.5}, 500, 0)
    norms = points.norm(dim=1) - math.sqrt(at["dim"])
    assert set(labels[(norms > 0) & (norms < 0.5)].tolist()) == {0}
    assert set(labels[(norms > 0.5) & (norms < 1.0)].tolist()) == {1}
    assert set(labels[(norms > -0.5) & (norms < 0)].tolist()) == {1}
    assert not torch.equal(r12._shells(at, 50, 2)[0], r12._shells(at, 50, 0)[0])


def test_rates_are_chosen_on_seeds_that_are_not_reported(monkeypatch):
    asked = []

    def labels(config, seeds, lr):
        asked.append((tuple(seeds), lr))
        return [{"error": abs(lr - 0.01)} for _ in seeds]

    monkeypatch.setattr(r12, "_labels", labels)
    at = config(measures="labels", network="shallow")
    (found, _) = r12.run({**at, "select": True}, [0, 1])
    assert found["lr"] == 0.01
    assert asked == [*(((100, 101), lr) for lr in r12.GRID), ((0, 1), 0.01)]
    r12.run(at, [0])
    assert asked[-1] == ((0,), r12.RATES["labels, shallow"])


def test_all_networks_have_a_rate():
    settings = STUDY.resolve("full")
    trained = {
        f"{c.config['measures']}, {c.config['network']}"
        for c in STUDY.configurations(settings, range(2))
        if "network" in c.config
    }
    assert trained == set(r12.RATES)


def test_points_and_labels_are_each_seeds_own():
    at = {**config(measures="labels", network="shallow"), "points": 40, "steps": 100, "batch_size": 40}
    first, second = r12._labels(at, [0, 1], 0.03)
    assert r12._labels(at, [1], 0.03) == [second]
    assert first["curve"]["loss"] != second["curve"]["loss"]
    assert first["error"] == 0, "1,302 weights fit 40 labels"


def test_the_construction_is_compared_bit_by_bit(monkeypatch):
    assert r12._construct(12, 0) == {"error": 0.0, "unequal": 0, "pieces": 4096, "parameters": 73}
    built = r12.sawtooth_layers(5)
    built[2][1][0] += 2.0**-40
    monkeypatch.setattr(r12, "sawtooth_layers", lambda folds: built)
    assert r12._construct(5, 0)["unequal"] > 0


@pytest.mark.parametrize(("change", "status"), [
    ({}, "held"), ({"error": 0.01}, "not held"), ({"unequal": 1}, "not held"), ({"pieces": 1023}, "not held"),
])  # fmt: skip
def test_one_wrong_bit_is_enough_against_the_construction(change, status):
    def value(at, seed):
        right = {"error": 0.0, "unequal": 0, "pieces": 2 ** at.get("folds", 0), "parameters": 61}
        return {**right, **(change if at.get("folds") == 10 and seed == 2 else {})}

    assert decided("a deep network folds", value).status == status


@pytest.mark.parametrize(("below", "more", "status"), [(0.0, 0, "held"), (1e-3, 0, "not held"), (0.0, 1, "not held")])
def test_the_bound_is_obeyed_in_every_seed(below, more, status):
    def value(at, seed):
        if at["measures"] != "sawtooth":
            return {}
        least = crossing_bound(at["widths"][0] + 1, 2 ** at["folds"] + 1)
        spoilt = seed == 1 and at["network"] == "shallow, 8 times the weights" and at["folds"] == 10
        return {"error": least - below * spoilt, "pieces": at["widths"][0] + 1 + more * spoilt}

    outcome = decided("a shallow one cannot", value)
    assert outcome.status == status
    assert outcome.numbers["2^10 pieces, shallow, a quarter of the pieces: least error"] == (1025 - 257) / 2050


@pytest.mark.parametrize(("wrong", "status"), [(0.05, "held"), (0.051, "not held")])
@pytest.mark.parametrize("network", ["deep, as constructed", "deep, wide"])
def test_training_must_find_it_in_every_seed(network, wrong, status):
    def value(at, seed):
        spoilt = at.get("network") == network and seed == 4
        others = 0.0 if str(at.get("network")).startswith("deep, as") or at.get("network") == "deep, wide" else 0.5
        return {"error": wrong if spoilt else others, "pieces": 3, "error_before": 0.7}

    outcome = decided("training finds it", value)
    assert outcome.status == status
    assert outcome.numbers["2^6 pieces, deep, near the construction: error before training"] == [0.7] * 5


@pytest.mark.parametrize(("points", "fitted", "status"), [
    (1000, 0.01, "not held"), (1000, 0.011, "not decided"), (352, 0.01, "held"), (353, 0.01, "not held"),
])  # fmt: skip
def test_any_function_is_decided_by_counting_networks(points, fitted, status):
    settings = STUDY.resolve("small", {"label_points": points})
    grid = list(STUDY.configurations(settings, range(5)))

    def value(at, seed):
        return {"error": fitted * (at.get("network") == "shallow" and seed == 0), "parameters": 1302}

    values = {cell.key(seed): value(cell.config, seed) for cell in grid for seed in cell.seeds}
    (claim,) = [c for c in STUDY.claims(settings) if c.name == "any function"]
    outcome = claim.test(Results(grid, values))
    assert outcome.status == status, "11 weights of 32 bits are 352 bits"
    assert outcome.numbers["logarithm to base 2 of the shallow network's"] == 11
    assert outcome.numbers["share of labellings that 11 of 32 bits fit, at most"] == min(1.0, 2.0 ** (352 - points))


@pytest.mark.parametrize(("exponent", "equal", "status"), [
    (1.0, 0.0, "held"), (0.86, 0.14, "held"), (0.84, 0.0, "not held"), (1.16, 0.0, "not held"),
    (1.0, 0.16, "not held"), (1.0, -0.16, "not held"),
])  # fmt: skip
def test_pieces_grow_in_proportion_to_the_units_however_they_are_layered(exponent, equal, status):
    def value(at, seed):
        power = {"units by depth": exponent, "equal units": equal}.get(at.get("layered"), 0)
        return {"pieces": (1 + seed) * at.get("depth", 1) ** power}

    outcome = decided("untrained, few pieces", value)
    assert outcome.status == status
    assert outcome.numbers["units by depth: exponent by depth"] == pytest.approx([exponent] * 5)
    assert outcome.numbers["equal units: exponent by depth"] == pytest.approx([equal] * 5)


def test_equal_units_are_equal():
    grid = [c.config for c in STUDY.configurations(STUDY.resolve("small"), range(5))]
    equal = [c for c in grid if c.get("layered") == "equal units"]
    assert {c["width"] * c["depth"] for c in equal} == {256}
    assert [c["depth"] for c in equal] == [1, 2, 4, 8, 16]


@pytest.mark.parametrize(("one", "mean", "longer", "status"), [
    (0.1, 0.1, 0.3, "held"), (0.199, 0.1, 0.3, "held"), (0.2, 0.1, 0.3, "not decided"), (0.2, 0.2, 0.3, "not held"),
    (0.1, 0.1, 0.271, "held"), (0.1, 0.1, 0.269, "not decided"), (0.28, 0.28, 0.269, "not held"),
])  # fmt: skip
def test_three_layers_must_be_ahead_of_two_that_learn_no_more(one, mean, longer, status):
    def value(at, seed):
        spoilt = at["measures"] == "radial" and at["dim"] == 10 and seed == 3
        other = {"two layers": 0.3, "two layers, 4 times the weights": 0.2, "two layers, 4 times the steps": longer}
        wrong = other.get(at.get("network"), one if spoilt else mean)
        return {"error": wrong, "train_error": wrong / 2}

    outcome = decided("three layers see shells", value)
    assert outcome.status == status
    assert outcome.numbers["10 dimensions, two layers: training error"] == [0.15] * 5


@pytest.mark.parametrize("seed", [0, 1, 100])
def test_no_weight_is_a_datum(seed, monkeypatch):
    """Rows of a first layer that is drawn from a stream of its own are no points of another, whatever their scale."""
    at = {**config(measures="labels", network="shallow"), "steps": 1, "widths": [64]}
    seen = []
    monkeypatch.setattr(r12, "_fit", lambda network, inputs, *rest: seen.append((network, inputs)) or [{}])
    r12._labels(at, [seed], 0.1)
    radial = config(measures="radial", network="two layers")
    r12._radial(radial, [seed], 0.1)
    seen.append((seen[-1][0], r12._shells(radial, radial["points"] // 4, 1)[0]))
    for network, points in seen:
        rows = torch.nn.functional.normalize(network.weights[0][0].detach())
        alike = rows @ torch.nn.functional.normalize(points).T
        order = torch.argmax(alike, 1)
        assert not torch.equal(order, torch.arange(len(rows))), "each row the point of its number"
        assert (alike.diagonal() > 0.9999).float().mean() < 0.1


def test_it_runs_at_the_scale_smoke_and_decides_nothing(tmp_path):
    with ThreadPoolExecutor(1) as pool:
        run = execute(STUDY, scale="smoke", out=tmp_path, executor=pool)
    assert failures(run) == {}
    assert {claim["status"] for claim in claims(run).values()} == {"not decided"}
    drawn = figures(run)
    assert set(drawn) == {"pieces", "sawtooth", "shells"}
    assert len([s for s in drawn["sawtooth"]["series"] if s["style"] == "measured"]) == (6 + 2) * 2
    assert len([s for s in drawn["pieces"]["series"] if s["style"] == "measured"]) == (2 + 2 * 2 + 2) * 2
