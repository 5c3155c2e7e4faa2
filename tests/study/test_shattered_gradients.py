from __future__ import annotations

import copy

import pytest
import torch

from levada.studies import find, shattered_gradients
from levada.studies import shattered_gradients_claims as told
from levada.study import Results

STUDY = shattered_gradients.STUDY


def cells(seeds=range(5), scale="small", **changes):
    return STUDY.configurations(STUDY.resolve(scale, changes), seeds)


def config_of(seeds=(0,), scale="small", changes=None, **fields):
    return next(
        cell.config
        for cell in cells(seeds, scale, **(changes or {}))
        if all(cell.config.get(key) == value for key, value in fields.items())
    )


SMALL = {"depth": 3, "dim": 12, "pairs": 2, "batch_size": 8, "directions": 3}


@pytest.mark.parametrize("connection", ["plain", "residual"])
@pytest.mark.parametrize("normalised", [False, True])
def test_derivatives_are_those_of_autograd_at_fixed_statistics(connection, normalised):
    config = config_of(changes=SMALL, measures="pairs", connection=connection, normalised=normalised)
    state = torch.randn(8, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    along = torch.randn(5, 3, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    after, derivative = shattered_gradients.layer(config, torch.Generator().manual_seed(3), state, along)
    mean, deviation = (state.mean(0), state.std(0, correction=0)) if normalised else (0.0, 1.0)
    weight = torch.randn(12, 12, generator=torch.Generator().manual_seed(3), dtype=torch.float64) / 6**0.5

    def own(x):
        branch = torch.relu((x - mean) / deviation) @ weight
        return branch if connection == "plain" else x + branch

    torch.testing.assert_close(after, own(state), rtol=1e-12, atol=1e-12)
    for i in range(5):
        jacobian = torch.autograd.functional.jacobian(own, state[i])
        torch.testing.assert_close(derivative[i], along[i] @ jacobian.T, rtol=1e-10, atol=1e-12)


def test_forward_derivatives_have_the_cosine_of_gradients():
    # tr(J^T J') is tr(J J'^T): along all directions the two ways agree exactly.
    one, other = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    forward = torch.nn.functional.cosine_similarity((one @ torch.eye(4).double()).flatten(), other.flatten(), dim=0)
    backward = torch.nn.functional.cosine_similarity(one.T.flatten(), other.T.flatten(), dim=0)
    assert float(forward) == pytest.approx(float(backward), rel=1e-12)


def test_pairs_have_their_correlation_and_wide_networks_the_predicted_cosine():
    for normalised, connection, c in ((True, "plain", 0.0), (False, "plain", 0.9), (True, "residual", 0.9)):
        config = config_of(
            changes={"dim": 384, "depth": 4, "batch_size": 384, "pairs": 12, "directions": 48},
            measures="pairs", normalised=normalised, connection=connection, correlation=c,
        )  # fmt: skip
        (values,) = STUDY.run(config, [0])
        assert values["cosine"] == pytest.approx(list(told.predicted(config)), rel=0.15)
        assert values == STUDY.run(config, [0])[0]


def test_autocorrelation_by_hand():
    wave = torch.tensor([[1.0, 5.0], [-1.0, 3.0], [1.0, 5.0], [-1.0, 3.0]], dtype=torch.float64)
    assert shattered_gradients._autocorrelation(wave, 2) == pytest.approx([1.0, -1.0, 1.0])


def ideal(config, seed):
    """What wide networks would give."""
    depth = config["depth"]
    if config["measures"] == "pairs":
        return {"cosine": list(told.predicted(config))}
    last = 0.0 if config["connection"] == "plain" else 0.6
    row = [1.0, last] + [0.0] * (config["lags"] - 1)
    points = [0.0] * config["points"]
    return {"lag_one": [0.99, *([last] * depth)], "first": row, "last": row, "neuron": [points, points]}


GRID = cells(depth=20)
IDEAL = {cell.key(seed): ideal(cell.config, seed) for cell in GRID for seed in cell.seeds}


def outcomes(change=lambda config, seed, values: None):
    values = copy.deepcopy(IDEAL)
    for cell in GRID:
        for seed in cell.seeds:
            change(cell.config, seed, values[cell.key(seed)])
    found = Results(GRID, values)
    return {claim.name: claim.test(found) for claim in STUDY.claims({})}, found


def test_wide_networks_hold_all_but_what_normalisation_does():
    found, results = outcomes()
    assert {name for name, outcome in found.items() if outcome.status == "not held"} == {
        "without it too", "residual networks decay as 1/sqrt(L)"
    }  # fmt: skip
    assert {outcome.status for outcome in found.values()} == {"held", "not held"}
    cosines, neighbours, traces = STUDY.figures(results)
    assert len([s for s in cosines.series if s.style == "measured"]) == 4 * 5
    assert len([s for s in cosines.series if s.label.endswith(", noise")]) == 2
    assert len([s for s in neighbours.series if s.style == "measured"]) == 4 * 5
    assert len(traces.series) == 4


@pytest.mark.parametrize(("octaves", "status"), [(0.24, "held"), (-0.24, "held"), (0.26, "not held"),
                                                 (-0.26, "not held")])  # fmt: skip
@pytest.mark.parametrize("normalised", [False, True])
def test_the_law_is_of_the_seeds_mean_at_every_depth(octaves, status, normalised):
    def change(config, seed, values):
        if config["measures"] == "pairs" and config["connection"] == "residual" and config["normalised"] == normalised:
            values["cosine"][7] *= 2**octaves * (1 + 0.3 * (seed - 2))

    assert outcomes(change)[0]["the cosine is known"].status == status


def test_the_laws_interval_is_that_of_the_seeds():
    def change(config, seed, values):
        if config["measures"] == "pairs" and seed == 0:
            values["cosine"] = [c * 2**0.1 for c in values["cosine"]]

    statistic = outcomes(change)[0]["the cosine is known"].statistic
    # Values .1, 0, 0, 0, 0: deviation .1 / sqrt(5), t(4) = 2.776.
    assert statistic.value == pytest.approx(0.02)
    assert statistic.high - statistic.value == pytest.approx(2.776 * 0.02, rel=1e-3)


def test_the_law_leaves_out_what_is_too_small():
    def change(config, seed, values):
        if config["measures"] == "pairs":
            values["cosine"] = [c if c >= 0.05 else 0.01 for c in values["cosine"]]

    assert outcomes(change)[0]["the cosine is known"].status == "held"


@pytest.mark.parametrize(("factor", "status"), [(0.41, "held"), (0.59, "held"), (0.39, "not held"), (0.61, "not held")])
def test_one_seed_decides_on_halves(factor, status):
    def change(config, seed, values):
        if config["measures"] == "pairs" and config["normalised"] and config["connection"] == "plain" and seed == 1:
            values["cosine"] = [factor**i for i in range(21)]

    assert outcomes(change)[0]["with batch normalisation each layer halves it"].status == status


def pairs(config, normalised, connection):
    return (config["measures"], config["normalised"], config["connection"]) == ("pairs", normalised, connection)


@pytest.mark.parametrize(("factor", "status"), [(0.59, "held"), (0.61, "not held")])
def test_an_exponential_without_normalisation_would_be_seen_above_the_noise(factor, status):
    def change(config, seed, values):
        if pairs(config, False, "plain"):
            values["cosine"] = [(factor if seed == 2 else 0.5) ** i + (0.03 if i > 5 else 0.0) for i in range(21)]

    assert outcomes(change)[0]["without it too"].status == status


def test_without_a_control_that_halves_nothing_is_decided():
    def change(config, seed, values):
        if pairs(config, True, "plain") and seed == 4:
            values["cosine"] = [0.61**i for i in range(21)]

    outcome = outcomes(change)[0]["without it too"]
    assert (outcome.status, outcome.reason) == ("not decided", "the control, whose cosine each layer halves, is not "
                                                "seen to do so")  # fmt: skip


def test_measured_networks_with_batch_normalisation_pass_the_test_of_halving_and_others_do_not():
    changes = {"dim": 256, "depth": 8, "batch_size": 256, "pairs": 8, "directions": 32}
    grid = [cell for cell in cells(range(100, 105), **changes) if cell.config["measures"] == "pairs"
            and cell.config["connection"] == "plain" and cell.config["correlation"] == 0]  # fmt: skip
    values = {
        cell.key(s): v for cell in grid for s, v in zip(cell.seeds, STUDY.run(cell.config, cell.seeds), strict=True)
    }
    outcome = next(c for c in STUDY.claims({}) if c.name == "without it too").test(Results(grid, values))
    assert outcome.status == "not held"
    factors = {kind: outcome.numbers[f"plain, {kind}: factor per layer, layers 2 to 5"]
               for kind in ("batch norm", "no normalisation")}  # fmt: skip
    assert max(factors["batch norm"]) < 0.58
    assert min(factors["no normalisation"]) > 0.62


@pytest.mark.parametrize(("slope", "sublinear", "root"), [
    (-0.41, "held", "held"), (-0.59, "held", "held"), (-0.39, "held", "not held"), (-0.61, "held", "not held"),
    (-0.99, "held", "not held"), (-1.01, "not held", "not held"), (0.01, "not held", "not held"),
])  # fmt: skip
def test_exponents_decide(slope, sublinear, root):
    def change(config, seed, values):
        if pairs(config, True, "residual"):
            values["cosine"] = [1.0, *(i**slope for i in range(1, 21))]

    found = outcomes(change)[0]
    assert found["residual networks decay sublinearly"].status == sublinear
    outcome = found["residual networks decay as 1/sqrt(L)"]
    assert outcome.status == root
    assert outcome.numbers["exponent from 5 layers on"][4] == pytest.approx(slope)


def test_seeds_that_disagree_leave_the_root_undecided_and_one_of_them_refutes_sublinear():
    def change(config, seed, values):
        if pairs(config, True, "residual"):
            values["cosine"] = [1.0, *(i ** (-1.01 if seed == 1 else -0.4) for i in range(1, 21))]

    found = outcomes(change)[0]
    assert found["residual networks decay as 1/sqrt(L)"].status == "not decided"
    assert found["residual networks decay sublinearly"].status == "not held"


@pytest.mark.parametrize(("ratio", "status"), [(10.1, "held"), (9.9, "not held")])
def test_skips_must_keep_ten_times_as_much(ratio, status):
    def change(config, seed, values):
        if config["measures"] == "pairs" and config["normalised"]:
            values["cosine"][-1] = 0.01 if config["connection"] == "plain" else 0.01 * (ratio if seed == 3 else 50)

    assert outcomes(change)[0]["skips resist"].status == status


@pytest.mark.parametrize(("octaves", "status"), [(0.49, "held"), (-0.49, "held"), (0.51, "not held"),
                                                 (-0.51, "not held"), (-3, "not held")])  # fmt: skip
def test_without_normalisation_each_seeds_ratio_is_that_of_the_closed_form(octaves, status):
    def change(config, seed, values):
        if pairs(config, False, "residual"):
            values["cosine"][16:] = [0.0] * 5
            values["cosine"][10:16] = [c * 2 ** (octaves if seed == 3 else 0) for c in values["cosine"][10:16]]

    outcome = outcomes(change)[0]["skips resist without normalisation"]
    assert outcome.status == status
    assert outcome.numbers["residual over plain, predicted"] == pytest.approx(4.52, abs=0.01)


def test_a_ratio_over_noise_decides_nothing():
    def change(config, seed, values):
        if pairs(config, False, "plain") and seed == 3:
            values["cosine"][10:16] = [0.019] * 6

    outcome = outcomes(change)[0]["skips resist without normalisation"]
    assert (outcome.status, "below 0.02" in outcome.reason) == ("not decided", True)


def test_what_is_below_the_least_cosine_is_not_drawn_and_the_noise_is():
    def change(config, seed, values):
        if pairs(config, True, "plain"):
            values["cosine"][12], values["cosine"][8] = -0.3, values["cosine"][8] + 0.02

    cosines = STUDY.figures(outcomes(change)[1])[0]
    assert all(min(s.y) >= told.SHOWN for s in cosines.series if s.y)
    drawn = {s.label: dict(zip(s.x, s.y, strict=True)) for s in cosines.series}
    noise = drawn["plain, batch norm, noise"]
    assert noise == pytest.approx({8: 0.02, 12: 0.3}, abs=1e-3)
    assert 12 not in drawn["plain, batch norm, seed 0"]


@pytest.mark.parametrize(("plain", "residual", "white", "between"), [
    (0.19, 0.5, "held", "held"), (0.21, 0.6, "not held", "held"), (0.0, 0.29, "held", "not held"),
    (0.0, 0.995, "held", "not held"),
])  # fmt: skip
def test_noise_is_told_from_a_walk(plain, residual, white, between):
    def change(config, seed, values):
        if config["measures"] == "line" and seed == 0:
            values["lag_one"][-1] = plain if config["connection"] == "plain" else residual

    found = outcomes(change)[0]
    assert found["plain gradients are white noise"].status == white
    assert found["residual gradients lie between"].status == between


def test_it_runs_at_the_scale_smoke():
    assert find("shattered_gradients") is STUDY
    grid = cells(range(2), "smoke")
    values = {
        cell.key(s): v for cell in grid for s, v in zip(cell.seeds, STUDY.run(cell.config, cell.seeds), strict=True)
    }
    found = Results(grid, values)
    assert not found.missing()
    assert {claim.test(found).status for claim in STUDY.claims({})} == {"not decided"}
    assert all(figure.series for figure in STUDY.figures(found))
    rows = found.column("first", measures="line")
    assert all(row[0] == pytest.approx(1.0) and 0.8 < row[1] < 1 for row in rows)
