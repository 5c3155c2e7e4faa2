"""Residual growth, isometry, path lengths, memory and bounds: each against its closed form."""

from __future__ import annotations

import math

import pytest
import torch

from levada._errors import UsageError
from levada.theory import (
    batch_norm_gradient_gain,
    batch_norm_residual_gradient,
    carried_gradient,
    chrono_bias,
    gate_time_scale,
    gaussian_gain,
    gradient_bound,
    gradient_gain,
    greatest_slope,
    jacobian_moments,
    largest_squared_singular_value,
    memory_horizon,
    path_lengths,
    probe_deviation,
    propagate_residual,
    time_scale,
    weight_free_bound,
)


def test_residual_variance_and_gradient_double_per_block():
    he = propagate_residual("relu", 2.0, 0.0, depth=50)
    assert he.q[-1].item() == pytest.approx(2.0**50)
    assert he.cumulative[0].item() == pytest.approx(2.0**25)
    scaled = propagate_residual("relu", 2.0, 0.0, depth=50, multiplier=50**-0.5)
    assert scaled.q[-1].item() == pytest.approx(2.6916, abs=5e-5)
    assert scaled.cumulative[0].item() ** 2 == pytest.approx(2.6916, abs=5e-5)


def test_residual_multiplier_may_differ_by_block():
    decreasing = propagate_residual("linear", 1.0, 0.0, depth=9, multiplier=lambda layer: 1 / (layer + 1))
    expected = math.prod(1 + 1 / layer**2 for layer in range(1, 10))
    assert decreasing.q[-1].item() == pytest.approx(expected)
    assert decreasing.chi.prod().item() == pytest.approx(expected)
    still = propagate_residual("tanh", 1.0, 0.1, depth=9, multiplier=0.0)
    assert still.q.tolist() == [1.0] * 10
    assert still.cumulative.tolist() == [1.0] * 10


def test_batch_norm_explodes_in_plain_and_not_in_residual_networks():
    assert batch_norm_gradient_gain("relu") == pytest.approx(math.sqrt(math.pi / (math.pi - 1)), rel=1e-13)
    assert batch_norm_gradient_gain("relu") == pytest.approx(1.2112, abs=5e-5)
    assert batch_norm_gradient_gain("linear") == pytest.approx(1.0)
    linear = batch_norm_residual_gradient(30, "linear", weight_variance=1.0)  # prod (1 + 1/(l+1)) = L + 1
    assert linear.square().tolist() == pytest.approx([31 / (layer + 1) for layer in range(31)])
    # A power of depth: the logarithm grows by the same amount for each doubling.
    two_layer = [batch_norm_residual_gradient(depth, branch_layers=2)[0].item() for depth in (2000, 4000)]
    exponent = (math.pi / (math.pi - 1)) ** 2 / 2
    assert math.log2(two_layer[1] / two_layer[0]) == pytest.approx(exponent, abs=1e-3)
    with pytest.raises(UsageError, match="varies"):
        batch_norm_gradient_gain(torch.zeros_like)


@pytest.mark.parametrize("depth", [1, 4, 10, 20])
def test_spread_of_singular_values(depth):
    assert jacobian_moments("linear", 1.0, depth).relative_variance == pytest.approx(depth)
    assert jacobian_moments("linear", 1.0, depth, orthogonal=True).relative_variance == pytest.approx(0, abs=1e-10)
    assert jacobian_moments("relu", 2.0, depth).relative_variance == pytest.approx(2 * depth)
    assert jacobian_moments("relu", 2.0, depth, orthogonal=True).relative_variance == pytest.approx(depth)
    tanh = jacobian_moments("tanh", 0.8, depth, q=0.3)
    assert tanh.mean == pytest.approx(gradient_gain("tanh", 0.8, q=0.3) ** (2 * depth))


def test_spread_of_singular_values_of_real_products():
    generator = torch.Generator().manual_seed(0)
    dim, depth = 300, 5
    largest, spread, deviations = [], [], []
    for _ in range(4):
        product = torch.eye(dim, dtype=torch.float64)
        for _ in range(depth):
            product = torch.randn(dim, dim, generator=generator, dtype=torch.float64) @ product / math.sqrt(dim)
        squared = torch.linalg.svdvals(product).square()
        largest.append(squared.max().item())
        spread.append((squared.var(correction=0) / squared.mean() ** 2).item())
        probes = torch.randn(400, dim, generator=generator, dtype=torch.float64) @ product
        deviations.append((probes.square().sum(-1).std() / squared.sum()).item())
    assert sum(spread) / 4 == pytest.approx(jacobian_moments("linear", 1.0, depth).relative_variance, rel=0.1)
    assert sum(largest) / 4 == pytest.approx(largest_squared_singular_value(depth), rel=0.1)
    assert sum(deviations) / 4 == pytest.approx(probe_deviation(depth, dim, 1), rel=0.1)


def test_largest_singular_value_tends_to_e_times_depth():
    assert largest_squared_singular_value(1) == pytest.approx(4.0)
    assert largest_squared_singular_value(5) == pytest.approx(6**6 / 5**5)
    assert largest_squared_singular_value(2000) / 2000 == pytest.approx(math.e, rel=1e-3)
    assert largest_squared_singular_value(3, weight_variance=2.0) == pytest.approx(8 * 4**4 / 3**3)


def test_path_lengths_are_binomial_for_equal_branches():
    equal = path_lengths([1.0] * 54)
    assert 100 * equal.share(5, 17) == pytest.approx(0.45367, abs=5e-6)
    exact = [math.comb(54, k) / 2**54 for k in range(55)]
    assert equal.weights.tolist() == pytest.approx(exact, rel=1e-12)
    assert equal.interval(0.95) == (20, 34)
    half = path_lengths([0.5] * 20)
    assert half.mean == pytest.approx(4.0)
    assert half.variance == pytest.approx(20 * 0.2 * 0.8)


def test_path_lengths_of_unequal_branches():
    gains = [0.0, 0.1, 1.0, 3.0]
    passed = [gain**2 / (1 + gain**2) for gain in gains]
    mixed = path_lengths(gains)
    assert mixed.mean == pytest.approx(sum(passed))
    assert mixed.variance == pytest.approx(sum(p * (1 - p) for p in passed))
    assert mixed.weights.sum().item() == pytest.approx(1.0)
    assert mixed.weights[-1] == 0.0  # the first branch carries nothing
    with pytest.raises(UsageError, match="one gain per block"):
        path_lengths([])
    with pytest.raises(UsageError, match="got -1"):
        path_lengths([-1.0])


def test_path_lengths_match_gradients_through_linear_branches():
    """Squared gradients of each path length, measured by the coefficient of t^k in prod (1 + t a W)."""
    generator = torch.Generator().manual_seed(1)
    dim, depth, gain = 200, 8, 0.5
    by_length = [torch.randn(16, dim, generator=generator, dtype=torch.float64)]
    for _ in range(depth):
        branch = gain * torch.randn(dim, dim, generator=generator, dtype=torch.float64) / math.sqrt(dim)
        through = [torch.zeros_like(by_length[0]), *(g @ branch for g in by_length)]
        by_length = [a + b for a, b in zip([*by_length, torch.zeros_like(by_length[0])], through, strict=True)]
    squared = torch.stack([g.square().mean() for g in by_length])
    shares = squared / squared.sum()
    assert torch.allclose(shares, path_lengths([gain] * depth).weights, atol=0.01)


MEMORY = [(0, 1.443, 10.0), (1, 3.192, 22.1), (2, 7.878, 54.4), (3, 20.581, 142), (4, 55.097, 381), (5, 148.9, 1029)]


@pytest.mark.parametrize(("bias", "tau", "horizon"), MEMORY)
def test_memory_of_a_forget_gate(bias, tau, horizon):
    assert gate_time_scale(bias) == pytest.approx(tau, rel=5e-4)
    carry = 1 / (1 + math.exp(-bias))
    assert time_scale(carry) == pytest.approx(tau, rel=5e-4)
    assert memory_horizon(carry) == pytest.approx(horizon, rel=5e-3)


@pytest.mark.parametrize(
    ("carry", "tau", "horizon"), [(0.5, 1.44, 10.0), (3**-0.5, 1.82, 12.6), (0.9, 9.49, 65.6), (0.99, 99.5, 687)]
)
def test_memory_of_a_linear_recurrence(carry, tau, horizon):
    assert time_scale(carry) == pytest.approx(tau, rel=5e-3)
    assert memory_horizon(carry) == pytest.approx(horizon, rel=5e-3)
    assert carry ** memory_horizon(carry, threshold=0.2) == pytest.approx(0.2)


def test_memory_at_the_edges():
    assert time_scale(1.0) == math.inf
    assert time_scale(0.0) == 0.0
    assert gate_time_scale(chrono_bias(100)) == pytest.approx(99.5, abs=0.01)
    assert gate_time_scale(-800.0) == pytest.approx(1 / 800)
    assert gate_time_scale(40.0) == pytest.approx(math.exp(40.0))
    assert gate_time_scale(800.0) == math.inf
    for call in (lambda: chrono_bias(1.0), lambda: memory_horizon(0.5, threshold=1.0), lambda: time_scale(-0.1)):
        with pytest.raises(UsageError):
            call()


def test_bounds():
    assert weight_free_bound(20) == pytest.approx(2.0**-40, rel=1e-12)
    for name, expected in [("tanh", 1.0), ("relu", 1.0), ("erf", 2 / math.sqrt(math.pi)), ("sigmoid", 0.25)]:
        assert greatest_slope(name) == pytest.approx(expected, rel=1e-12)
    at_root_two = 0.5 * (1 + math.erf(1.0)) + math.exp(-1.0) / math.sqrt(math.pi)  # GELU's steepest point is sqrt 2
    assert greatest_slope("gelu") == pytest.approx(at_root_two, rel=1e-12)
    assert gradient_bound([4.0] * 20) == pytest.approx(1.0)
    # The true bound holds where the quoted one fails: weight variance 16, spectral norm 8.
    gain = gradient_gain("sigmoid", 16.0) ** 20
    assert weight_free_bound(20) < gain < gradient_bound([8.0] * 20)


def test_a_norm_of_one_is_three_different_things():
    assert gaussian_gain("variance", 256) == 1.0
    assert gaussian_gain("spectral", 256) ** 20 == pytest.approx(9.5e-7, rel=5e-3)
    assert gaussian_gain("frobenius", 256) ** 20 == pytest.approx(8.3e-25, rel=5e-3)
    with pytest.raises(UsageError, match="variance, spectral, frobenius"):
        gaussian_gain("nuclear", 256)


@pytest.mark.parametrize(("carry", "gain"), [(0.9, 0.06), (0.73, 0.144), (0.0, 0.6), (1.0, 0.1), (0.5, 0.5)])
def test_a_carried_gradient_is_that_of_random_matrices(carry, gain):
    dim, steps = 400, 8
    generator = torch.Generator().manual_seed(0)
    means = []
    for _ in range(4):
        weight = torch.randn(dim, dim, generator=generator, dtype=torch.float64) / dim**0.5
        power = torch.linalg.matrix_power(carry * torch.eye(dim, dtype=torch.float64) + gain * weight, steps)
        means.append(float(power.square().sum() / dim))
    assert carried_gradient(carry, gain, steps) == pytest.approx((sum(means) / 4) ** 0.5, rel=0.02)


def test_a_carried_gradient_is_that_of_layers_much_wider_than_steps():
    dim, gain = 64, 3**-0.5
    generator = torch.Generator().manual_seed(0)
    weights = gain * torch.randn(200, dim, dim, generator=generator, dtype=torch.float64) / dim**0.5

    def of_the_law(steps):
        norms = torch.linalg.matrix_power(weights, steps).square().sum((-2, -1)) / dim
        return norms.median().sqrt().item() / carried_gradient(0.0, gain, steps)

    assert of_the_law(8) == pytest.approx(1.0, abs=0.05)
    assert of_the_law(64) > 3
    assert of_the_law(200) > 100


@pytest.mark.parametrize(
    ("carry", "gain", "steps"),
    [(1.0, 1.0, 100_000), (0.0, 2.0, 2_000), (2.0, 0.0, 2_000), (math.inf, 0.0, 3), (0.5, math.inf, 1)],
)
def test_a_carried_gradient_beyond_the_largest_float_is_infinite(carry, gain, steps):
    assert carried_gradient(carry, gain, steps) == math.inf
    assert carried_gradient(carry, gain, 0) == 1.0


def test_a_carried_gradient_just_below_the_largest_float_is_a_number():
    assert carried_gradient(0.0, 2.0, 1023) == pytest.approx(2.0**1023)
    assert carried_gradient(0.0, 2.0, 1024) == math.inf


def test_a_carried_gradient_grows_as_the_sum_in_the_end():
    slope = math.log(carried_gradient(0.7, 0.2, 2000) / carried_gradient(0.7, 0.2, 1999))
    assert slope == pytest.approx(math.log(0.9), abs=3e-4)
    assert carried_gradient(0.0, 0.0, 3) == 0.0
    assert carried_gradient(0.0, 0.0, 0) == 1.0
    with pytest.raises(UsageError, match="carry must be at least 0"):
        carried_gradient(-1.0, 0.5, 3)
