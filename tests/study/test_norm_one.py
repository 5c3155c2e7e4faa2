from __future__ import annotations

import math

import pytest
import torch

from levada._errors import UsageError
from levada.studies import find, norm_one
from levada.study import Results
from levada.theory import gaussian_spectral_norm

STUDY = norm_one.STUDY


def cells(seeds=range(5), scale="small", **changes):
    return STUDY.configurations(STUDY.resolve(scale, changes), seeds)


def config_of(weights, normalised, value=1.0, **changes):
    (found,) = [
        cell.config
        for cell in cells(**changes)
        if (cell.config["weights"], cell.config["normalised"], cell.config["value"]) == (weights, normalised, value)
    ]
    return found


@pytest.mark.parametrize(("normalised", "value"), [("spectral", 1.0), ("spectral", 2.5), ("frobenius", 1.0)])
def test_weights_have_the_norm_that_is_set(normalised, value):
    config = config_of("Gaussian", normalised, value, dim=24)
    weight = norm_one._weights(config, torch.Generator().manual_seed(0))
    norm = {"spectral": 2, "frobenius": "fro"}[normalised]
    assert float(torch.linalg.matrix_norm(weight, norm)) == pytest.approx(value, rel=1e-12)


def test_weights_of_a_variance_have_it_and_orthogonal_ones_keep_lengths():
    drawn = norm_one._weights(config_of("Gaussian", "variance"), torch.Generator().manual_seed(0))
    assert float(drawn.square().mean()) * 256 == pytest.approx(1.0, rel=0.03)
    turned = norm_one._weights(config_of("orthogonal", "spectral"), torch.Generator().manual_seed(0))
    torch.testing.assert_close(turned @ turned.T, torch.eye(256, dtype=torch.float64), rtol=0, atol=1e-13)
    # Without the signs of the triangle QR favours one side: the first entry would always be negative.
    corners = [
        float(norm_one._weights(config_of("orthogonal", "spectral", dim=4), torch.Generator().manual_seed(s))[0, 0])
        for s in range(40)
    ]
    assert 8 <= sum(corner > 0 for corner in corners) <= 32


def test_gains_are_those_of_the_product_and_of_its_transpose():
    weights = list(torch.randn(3, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    vector = torch.arange(1.0, 6.0, dtype=torch.float64)
    gains = norm_one._gains(weights, vector)
    product = weights[2] @ weights[1] @ weights[0]
    assert gains[0] == 1.0
    assert gains[-1] == pytest.approx(float((product @ vector).norm() / vector.norm()), rel=1e-12)
    # The gradient of u.h_L by h_0, as autograd has it.
    start = vector.clone().requires_grad_()
    state = start
    for weight in weights:
        state = weight @ state
    (gradient,) = torch.autograd.grad(state, start, vector)
    back = norm_one._gains([weight.T for weight in reversed(weights)], vector)
    assert back[-1] == pytest.approx(float(gradient.norm() / vector.norm()), rel=1e-12)


def test_what_a_run_measures():
    config = config_of("Gaussian", "spectral", 1.5, dim=32, depth=3)
    one, other = STUDY.run(config, [3, 4])
    assert one == STUDY.run(config, [3])[0]
    assert one["forward"] != other["forward"]
    assert len(one["forward"]) == len(one["backward"]) == 4
    assert one["spectral"] == pytest.approx([1.5] * 3, rel=1e-12)
    assert max(one["forward"][-1], one["backward"][-1]) <= one["largest"] <= 1.5**3
    assert one["smallest"] < one["median"] < one["largest"]


def test_no_two_cells_are_one_chain():
    drawn = [STUDY.run(cell.config, cell.seeds) for cell in cells(range(3), dim=8, depth=2)
             if cell.config["weights"] == "Gaussian"]  # fmt: skip
    # Scaling leaves the ratio of the two ways as it is.
    found = [round(values["forward"][-1] / values["backward"][-1], 9) for cell in drawn for values in cell]
    assert len(set(found)) == 5 * 3


def test_the_spectral_norm_of_a_gaussian_matrix_is_known_at_every_width():
    generator = torch.Generator().manual_seed(0)
    for dim, num in ((20, 400), (100, 60)):
        drawn = torch.randn(num, dim, dim, generator=generator, dtype=torch.float64) / dim**0.5
        measured = float(torch.linalg.matrix_norm(drawn, 2).mean())
        assert gaussian_spectral_norm(dim) == pytest.approx(measured, abs=0.012)
    assert gaussian_spectral_norm(10**9) == pytest.approx(2.0, abs=1e-5)
    with pytest.raises(UsageError, match="dim must be at least 2, got 1"):
        gaussian_spectral_norm(1)


def ideal(config, seed):
    """What wide matrices would give."""
    depth, factor = config["depth"], norm_one._predicted(config)
    gains = [factor**layer for layer in range(depth + 1)]
    one = 1.0 if config["weights"] == "orthogonal" else None
    return {
        "forward": gains, "backward": list(gains), "spectral": [config["value"]] * depth, "frobenius": 16.0,
        "largest": one or 7.0, "median": one or 0.01, "smallest": one or 1e-12,
    }  # fmt: skip


def outcomes(change=lambda config, seed, values: None):
    grid, values = cells(), {}
    for cell in grid:
        for seed in cell.seeds:
            values[cell.key(seed)] = ideal(cell.config, seed)
            change(cell.config, seed, values[cell.key(seed)])
    found = Results(grid, values)
    return {claim.name: claim.test(found) for claim in STUDY.claims(STUDY.resolve("small"))}, found


def test_wide_matrices_refute_norm_one_and_hold_the_law():
    found, results = outcomes()
    assert {name: outcome.status for name, outcome in found.items()} == {
        "norm one keeps the signal": "not held",
        "a norm above one makes it grow": "not held",
        "the gain is known": "held",
        "only orthogonal weights keep every direction": "held",
    }
    lines, points = STUDY.figures(results)
    assert len([s for s in lines.series if s.style == "measured"]) == 6 * 5
    assert len([s for s in points.series if s.style == "measured"]) == 6 * 5


@pytest.mark.parametrize(("gain", "keeps"), [(0.51, "held"), (1.99, "held"), (0.49, "not held"), (2.01, "not held")])
@pytest.mark.parametrize("way", ["forward", "backward"])
def test_one_seed_decides_whether_norm_one_keeps(gain, keeps, way):
    def change(config, seed, values):
        values["forward"][-1] = values["backward"][-1] = 1.0
        if config["normalised"] == "frobenius" and seed == 2:
            values[way][-1] = gain

    assert outcomes(change)[0]["norm one keeps the signal"].status == keeps


@pytest.mark.parametrize(("gain", "status"), [(2.01, "held"), (1.99, "not held")])
def test_one_seed_decides_whether_a_larger_norm_grows(gain, status):
    def change(config, seed, values):
        values["forward"][-1], values["backward"][-1] = 3.0, gain if seed == 4 else 3.0

    outcome = outcomes(change)[0]["a norm above one makes it grow"]
    assert outcome.status == status
    assert outcome.numbers["Gaussian, spectral norm 1.5: product of the norms"] == pytest.approx(1.5**20)


@pytest.mark.parametrize(("decades", "status"), [(0.149, "held"), (-0.149, "held"), (0.151, "not held"),
                                                 (-0.151, "not held")])  # fmt: skip
def test_the_law_may_err_by_015_decades_on_average(decades, status):
    def change(config, seed, values):
        if (config["normalised"], config["value"]) == ("spectral", 2.5):
            values["backward"][-1] *= 10 ** (decades + 0.4 * (seed - 2))

    outcome = outcomes(change)[0]["the gain is known"]
    assert outcome.status == status
    assert outcome.numbers["largest deviation of a single seed, decades"] == pytest.approx(abs(decades) + 0.8)


def test_the_laws_interval_is_that_of_the_seeds():
    def change(config, seed, values):
        if config["weights"] == "Gaussian" and seed == 0:
            values["forward"][-1] *= 10
            values["backward"][-1] *= 10

    statistic = outcomes(change)[0]["the gain is known"].statistic
    # Values 1, 0, 0, 0, 0: deviation 1 / sqrt(5), t(4) = 2.776.
    assert statistic.value == pytest.approx(0.2)
    assert statistic.high - statistic.value == pytest.approx(2.776 * 0.2, rel=1e-3)


def test_intervals_of_gains_are_those_of_the_spectral_norm():
    found = outcomes()[0]
    gains = {
        name: found[name].statistic.value for name in ("norm one keeps the signal", "a norm above one makes it grow")
    }
    assert list(gains.values()) == pytest.approx([20 * math.log10(0.5), 20 * math.log10(0.75)])
    assert found["only orthogonal weights keep every direction"].statistic.value == pytest.approx(7.0)


def test_orthogonal_weights_must_be_exact():
    def change(config, seed, values):
        if config["weights"] == "orthogonal" and seed == 1:
            values["forward"][-1] = 1 + 1e-11

    assert outcomes(change)[0]["the gain is known"].status == "not held"


@pytest.mark.parametrize(
    ("weights", "name", "value"),
    [("orthogonal", "largest", 1 + 1e-11), ("orthogonal", "smallest", 1 - 1e-11), ("Gaussian", "largest", 1.9),
     ("Gaussian", "median", 0.51)],
)  # fmt: skip
def test_one_direction_decides(weights, name, value):
    def change(config, seed, values):
        if config["weights"] == weights and seed == 3:
            values[name] = value

    outcome = outcomes(change)[0]["only orthogonal weights keep every direction"]
    assert outcome.status == "not held"


def test_it_runs_at_the_scale_smoke():
    assert find("norm_one") is STUDY
    grid = cells(range(2), "smoke")
    values = {
        cell.key(s): v for cell in grid for s, v in zip(cell.seeds, STUDY.run(cell.config, cell.seeds), strict=True)
    }
    found = Results(grid, values)
    assert not found.missing()
    assert {claim.test(found).status for claim in STUDY.claims({})} == {"not decided"}
    measured = found.column("forward", normalised="spectral", value=1.0, weights="Gaussian")
    # Narrower matrices of norm one lose less than half a layer.
    assert all(math.log2(gains[-1]) == pytest.approx(-20, abs=4) for gains in measured)
