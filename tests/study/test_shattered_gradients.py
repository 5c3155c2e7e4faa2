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
        "without it too", "skips resist without normalisation"
    }  # fmt: skip
    assert {outcome.status for outcome in found.values()} == {"held", "not held"}
    cosines, neighbours, traces = STUDY.figures(results)
    assert len([s for s in cosines.series if s.style == "measured"]) == 4 * 5
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


@pytest.mark.parametrize(("factor", "status"), [(0.59, "held"), (0.61, "not held")])
def test_an_exponential_without_normalisation_would_be_seen(factor, status):
    def change(config, seed, values):
        if config["measures"] == "pairs" and not config["normalised"] and config["connection"] == "plain":
            values["cosine"] = [(factor if seed == 2 else 0.5) ** i for i in range(21)]

    assert outcomes(change)[0]["without it too"].status == status


@pytest.mark.parametrize(("slope", "status"), [(-0.31, "held"), (-0.69, "held"), (-0.29, "not held"),
                                               (-0.71, "not held")])  # fmt: skip
def test_one_seeds_exponent_decides(slope, status):
    def change(config, seed, values):
        if config["measures"] == "pairs" and config["normalised"] and config["connection"] == "residual" and seed == 4:
            values["cosine"] = [1.0, *(i**slope for i in range(1, 21))]

    outcome = outcomes(change)[0]["residual networks decay as a power"]
    assert outcome.status == status
    assert outcome.numbers["exponent from 5 layers on"][4] == pytest.approx(slope)


@pytest.mark.parametrize(("ratio", "status"), [(10.1, "held"), (9.9, "not held")])
@pytest.mark.parametrize(("normalised", "claim"), [(True, "skips resist"),
                                                   (False, "skips resist without normalisation")])  # fmt: skip
def test_skips_must_keep_ten_times_as_much(ratio, status, normalised, claim):
    def change(config, seed, values):
        if config["measures"] == "pairs" and config["normalised"] == normalised:
            values["cosine"][-1] = 0.01 if config["connection"] == "plain" else 0.01 * (ratio if seed == 3 else 50)

    assert outcomes(change)[0][claim].status == status


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
