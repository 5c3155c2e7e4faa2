"""Fixed points, criticality and trajectories of wide networks against tabulated values and against each other."""

from __future__ import annotations

import math

import pytest
import torch

from levada._errors import UsageError
from levada.theory import (
    chi,
    correlation_fixed_point,
    correlation_map,
    critical_point,
    critical_weight_variance,
    default_variances,
    depth_scales,
    gradient_correlation,
    gradient_gain,
    propagate,
    propagate_correlation,
    trainable_depth,
    variance_fixed_point,
    variance_map,
)

FIXED_POINTS = [  # activation, weight variance, bias variance, q*, chi_1
    ("tanh", 1.0, 0.05, 0.193593, 0.759032),
    ("tanh", 1.3**2, 0.05, 0.527087, 0.984512),
    ("tanh", 1.5**2, 0.05, 0.889425, 1.092338),
    ("tanh", 2.0**2, 0.05, 2.195494, 1.342402),
    ("tanh", 2.0**2, 0.0, 2.121474, 1.362673),
    ("tanh", 0.5, 0.0, 0.0, 0.5),
    ("sigmoid", 1.0, 0.0, 0.264687, 0.055721),
    ("sigmoid", 4.0, 0.0, 1.196914, 0.171581),
    ("relu", 1.0, 0.1, 0.2, 0.5),
    ("linear", 0.5, 0.2, 0.4, 0.5),
    ("relu", 1 / 3, 0.0, 0.0, 1 / 6),
    ("gelu", 1 / 3, 0.0, 0.0, 1 / 12),
    ("tanh", 0.5, 1e-20, 2e-20, 0.5),
]

TANH_CRITICAL_LINE = [  # q*, weight variance, bias variance
    (0.05, 1.093627, 0.000128),
    (0.1, 1.177569, 0.000832),
    (0.25, 1.393962, 0.008125),
    (0.5, 1.687975, 0.038041),
    (1.0, 2.153303, 0.150965),
    (2.0, 2.861162, 0.512265),
]

# PyTorch's default weights without bias, 20 blocks, inputs of unit mean square
DEFAULT_AT_20 = [("relu", 1.654e-8), ("gelu", 2.1e-11), ("silu", 1.8e-11), ("tanh", 1.26e-5), ("sigmoid", 9.8e-18)]

TRAINABLE_DEPTH = [  # tanh with bias variance 0.05: weight variance, 6 xi_c
    (0.5, 7.1),
    (0.9, 17.3),
    (1.0, 21.8),
    (1.1, 27.7),
    (1.5, 94.7),
    (2.0, 151),
    (2.5, 70.8),
    (3.0, 54.3),
    (4.0, 41.9),
]


@pytest.mark.parametrize(("name", "weights", "biases", "q", "chi_one"), FIXED_POINTS)
def test_variance_fixed_point_and_chi(name, weights, biases, q, chi_one):
    fixed = variance_fixed_point(name, weights, biases)
    assert fixed.q == pytest.approx(q, abs=6e-7 if q > 1e-6 else 0, rel=1e-9)
    assert fixed.status == "converging"
    assert chi(name, weights, fixed.q) == pytest.approx(chi_one, abs=6e-7)
    assert variance_map(name, weights, biases, fixed.q) == pytest.approx(fixed.q, rel=1e-12, abs=1e-300)


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "gelu", "silu", "selu", "softplus", "erf"])
@pytest.mark.parametrize("weights", [0.4, 1.2])
def test_fixed_point_is_where_iterated_layers_arrive(name, weights):
    fixed = variance_fixed_point(name, weights, 0.1, q0=3.0)
    deep = propagate(name, weights, 0.1, depth=300, q0=3.0)
    assert deep.q[-1].item() == pytest.approx(fixed.q, rel=1e-6)
    assert gradient_gain(name, weights, 0.1) == pytest.approx(deep.gradient_gain[-1].item(), rel=1e-6)


def test_fixed_point_says_when_it_does_not_converge():
    assert variance_fixed_point("relu", 3.0, 0.0).status == "diverging"
    assert math.isinf(variance_fixed_point("relu", 2.0, 0.1).q)
    kept = variance_fixed_point("relu", 2.0, 0.0, q0=0.7)
    assert (kept.q, kept.status) == (0.7, "slow")
    edge = variance_fixed_point("tanh", 1.0, 0.0)
    assert (edge.q, edge.status) == (0.0, "slow")
    above = variance_fixed_point("tanh", 1.01, 0.0)  # q* = (sw2 - 1) / 2 to first order
    assert above.q == pytest.approx(0.005, rel=0.03)


def test_a_falling_variance_map_still_converges():
    def bump(u):
        return torch.exp(-u.square())

    fixed = variance_fixed_point(bump, 40.0, 0.0)  # V(q) = 40 / sqrt(1 + 4 q)
    assert fixed.q**2 * (1 + 4 * fixed.q) == pytest.approx(1600, rel=1e-12)
    assert -0.5 < fixed.rate < -0.45
    assert propagate(bump, 40.0, 0.0, depth=60).q[-1].item() == pytest.approx(fixed.q, rel=1e-9)


def test_a_growing_gain_has_two_destinations():
    """GELU at weight variance 3 keeps no variance: a small signal dies out, a large one grows."""
    assert variance_fixed_point("gelu", 3.0, 0.0, q0=0.01).q == 0.0
    assert math.isinf(variance_fixed_point("gelu", 3.0, 0.0, q0=10.0).q)
    assert gradient_gain("gelu", 3.0) == pytest.approx(math.sqrt(1.5))


@pytest.mark.parametrize(("q", "weights", "biases"), TANH_CRITICAL_LINE)
def test_tanh_critical_line(q, weights, biases):
    point = critical_point("tanh", q)
    assert point.weight_variance == pytest.approx(weights, abs=6e-7)
    assert point.bias_variance == pytest.approx(biases, abs=6e-7)
    assert point.rate < 1
    assert variance_fixed_point("tanh", *point[:2]).q == pytest.approx(q, rel=1e-9)
    assert critical_weight_variance("tanh", point.bias_variance) == pytest.approx(point.weight_variance, rel=1e-9)
    assert depth_scales("tanh", *point[:2]).gradient > 1e9


def test_known_critical_weight_variances():
    for name, expected in [("tanh", 1.0), ("linear", 1.0), ("relu", 2.0), ("erf", math.pi / 4), ("hardtanh", 1.0)]:
        assert critical_weight_variance(name, 0.0) == pytest.approx(expected, rel=1e-12)
    weights = critical_weight_variance("gelu", 0.3)
    assert depth_scales("gelu", weights, 0.3).chi == pytest.approx(1.0, abs=1e-9)
    with pytest.raises(UsageError, match="gelu has no stable critical point at bias variance 0"):
        critical_weight_variance("gelu", 0.0)
    unstable = critical_point("gelu", 1.0)  # chi is 1 here, and the variance leaves
    assert unstable.rate > 1
    with pytest.raises(UsageError, match="gelu has no stable critical point"):
        critical_weight_variance("gelu", unstable.bias_variance)
    with pytest.raises(UsageError, match="sigmoid has no critical point at q=1"):
        critical_point("sigmoid", 1.0)
    with pytest.raises(UsageError, match=r"at least 0\.0, got -0\.1"):
        critical_weight_variance("tanh", -0.1)


@pytest.mark.parametrize(("weights", "layers"), TRAINABLE_DEPTH)
def test_trainable_depth_of_tanh(weights, layers):
    assert trainable_depth("tanh", weights, 0.05) == pytest.approx(layers, abs=0.06 if layers < 100 else 0.5)


def test_trainable_depth_is_largest_at_criticality():
    assert depth_scales("tanh", 1.0, 0.05).correlation == pytest.approx(3.627, abs=5e-4)
    assert depth_scales("tanh", 1.3**2, 0.05).correlation == pytest.approx(64.07, abs=5e-3)
    assert math.isinf(trainable_depth("relu", 2.0, 0.0))
    assert math.isinf(trainable_depth("tanh", 1.0, 0.0))
    exploding = depth_scales("relu", 3.0, 0.0)
    assert exploding.gradient == pytest.approx(1 / math.log(1.5))


@pytest.mark.parametrize(("name", "ratio"), DEFAULT_AT_20)
def test_pytorch_default_initialisation_over_20_layers(name, ratio):
    trajectory = propagate(name, 1 / 3, 0.0, depth=20, q0=1 / 3)
    assert trajectory.cumulative[0].item() == pytest.approx(ratio, rel=0.025)


def test_pytorch_default_gains_per_layer():
    weights, biases = default_variances(256)
    assert (weights, biases) == (1 / 3, 1 / 768)
    assert gradient_gain("relu", weights, biases) == pytest.approx(0.408248, abs=5e-7)
    assert gradient_gain("tanh", weights) == pytest.approx(0.57735, abs=5e-6)
    assert gradient_gain("gelu", weights) == pytest.approx(0.28868, abs=5e-6)
    assert gradient_gain("sigmoid", weights) == pytest.approx(0.14145, abs=5e-6)
    assert gradient_gain("sigmoid", weights) ** 20 == pytest.approx(1.03e-17, rel=0.005)  # without bias, at q*
    assert gradient_gain("relu", weights) ** 10 == pytest.approx(1.286e-4, rel=1e-3)
    assert gradient_gain("relu", weights) ** 50 == pytest.approx(3.5e-20, rel=0.02)
    assert gradient_gain("sigmoid", 1.0) == pytest.approx(0.2360, abs=1e-4)
    assert gradient_gain("sigmoid", 1.0) ** 20 == pytest.approx(2.89e-13, rel=0.005)
    assert gradient_gain("sigmoid", 4.0) == pytest.approx(0.4142, abs=1e-4)
    assert gradient_gain("sigmoid", 16.0) ** 20 == pytest.approx(1.02e-4, rel=0.01)


def test_correlation_of_he_relu_follows_the_table():
    c = propagate_correlation("relu", 2.0, 0.0, depth=100)
    table = {
        1: 0.318310,
        2: 0.493731,
        3: 0.604826,
        5: 0.735946,
        10: 0.871536,
        20: 0.948428,
        50: 0.987862,
        100: 0.996423,
    }
    for layer, expected in table.items():
        assert c[layer].item() == pytest.approx(expected, abs=6e-7)


def test_gradients_of_he_relu_shatter_by_the_table():
    cosine = gradient_correlation("relu", 2.0, 0.0, depth=50)
    table = {1: 0.5, 2: 0.3016, 5: 0.1046, 10: 0.03365, 20: 0.008235, 50: 9.1e-4}
    for layer, expected in table.items():
        assert cosine[layer].item() == pytest.approx(expected, rel=0.006)


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "gelu", "erf", "silu"])
def test_chi_is_the_slope_of_the_correlation_map_at_one(name):
    weights, biases = 1.7, 0.2
    q = variance_fixed_point(name, weights, biases).q
    step = 1e-4
    at = [1 - correlation_map(name, weights, biases, 1 - k * step, q) for k in (1, 2)]
    slope = (4 * at[0] - at[1]) / (2 * step)  # one-sided, second order
    assert slope == pytest.approx(chi(name, weights, q), rel=1e-6)


@pytest.mark.parametrize(("weights", "biases"), [(1.0, 0.05), (2.25, 0.05), (4.0, 0.05), (4.0, 0.0)])
def test_correlation_fixed_point_is_where_layers_lead(weights, biases):
    fixed = correlation_fixed_point("tanh", weights, biases)
    c = propagate_correlation("tanh", weights, biases, depth=120, correlation=0.6, q0=fixed.q)
    assert c[-1].item() == pytest.approx(fixed.correlation, abs=1e-3)
    assert (fixed.correlation == 1.0) == (chi("tanh", weights, fixed.q) <= 1)
    assert fixed.slope < 1


def test_cumulative_gain_is_a_product_that_does_not_underflow():
    deep = propagate("sigmoid", 1.0, 0.0, depth=800)
    assert deep.cumulative[0] == 0.0  # below float64, but known:
    assert deep.log_cumulative[0].item() == pytest.approx(deep.chi.log().sum().item() / 2)
    assert deep.log_cumulative[-1] == 0.0
    assert (deep.q.shape, deep.gradient_gain.shape, deep.cumulative.shape) == ((801,), (800,), (801,))


def test_negative_variances_are_refused():
    for call in (
        lambda: propagate("tanh", -1.0, 0.0, 3),
        lambda: gradient_gain("tanh", -1.0),
        lambda: variance_map("tanh", 1.0, -0.1, 1.0),
        lambda: correlation_map("tanh", math.nan, 0.0, 0.5),
        lambda: variance_fixed_point("tanh", 1.0, 0.0, q0=0.0),
        lambda: propagate("tanh", 1.0, 0.0, depth=0),
        lambda: default_variances(0),
    ):
        with pytest.raises(UsageError, match="must be at least"):
            call()


def test_order_and_chaos_mirror_each_other_at_the_edge():
    critical = critical_weight_variance("tanh", 0.05)
    for excess in (1e-2, 1e-4, 1e-6, 1e-9):
        fixed = correlation_fixed_point("tanh", critical * (1 + excess), 0.05)
        chi_one = chi("tanh", critical * (1 + excess), fixed.q)
        assert 0 < 1 - fixed.correlation < 3 * excess + 1e-7
        assert 1 - fixed.slope == pytest.approx(chi_one - 1, rel=0.03, abs=2e-8)
        ordered = correlation_fixed_point("tanh", critical * (1 - excess), 0.05)
        assert ordered.correlation == 1.0
