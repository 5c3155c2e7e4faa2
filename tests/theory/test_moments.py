"""Gaussian moments: golden values, closed forms at extreme variances, and an independent integrator."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, special

from levada._errors import UsageError
from levada.theory import (
    Activation,
    correlated_moment,
    correlated_slope_moment,
    curvature_moment,
    first_moment,
    leaky_relu,
    second_moment,
    second_moment_slope,
    slope_fourth_moment,
    slope_second_moment,
)
from levada.theory.quadrature import gauss_legendre

EXTREMES = [1e-30, 1e-8, 1e-3, 0.3, 1.0, 7.0, 300.0, 1e6, 1e12]

AT_ONE = {  # E[phi^2], E[phi'^2] at q = 1
    "relu": (0.5, 0.5),
    "tanh": (0.394294, 0.464403),
    "sigmoid": (0.293379, 0.044836),
    "erf": (0.464559, 0.569410),
    "gelu": (0.425221, 0.455851),
    "silu": (0.355776, 0.379482),
}

NUMPY = {  # independent implementations: value and slope
    "tanh": (np.tanh, lambda u: 4 * math.exp(-2 * abs(u)) / (1 + math.exp(-2 * abs(u))) ** 2),
    "sigmoid": (special.expit, lambda u: special.expit(u) * special.expit(-u)),
    "gelu": (
        lambda u: u * special.ndtr(u),
        lambda u: special.ndtr(u) + u * math.exp(-(u**2) / 2) / math.sqrt(2 * math.pi),
    ),
    "silu": (
        lambda u: u * special.expit(u),
        lambda u: special.expit(u) * (1 + u * special.expit(-u)),
    ),
}


def adaptive(function, q):
    """Adaptive quadrature in u, split where either the density or the activation turns."""
    deviation = math.sqrt(q)
    edges = sorted(
        {0.0, *(side * e for side in (1, -1) for e in (0.5, 2, 8, 30, deviation, 4 * deviation, 12 * deviation))}
    )
    edges = [e for e in edges if abs(e) <= 12 * deviation]
    density = 1 / math.sqrt(2 * math.pi * q)
    parts = (
        integrate.quad(lambda u: function(u) * density * math.exp(-(u**2) / (2 * q)), a, b, epsabs=0, epsrel=1e-12)[0]
        for a, b in itertools.pairwise(edges)
    )
    return math.fsum(parts)


@pytest.mark.parametrize("name", AT_ONE)
def test_golden_values_at_unit_variance(name):
    value, slope = AT_ONE[name]
    assert second_moment(name, 1.0) == pytest.approx(value, abs=6e-7)
    assert slope_second_moment(name, 1.0) == pytest.approx(slope, abs=6e-7)


@pytest.mark.parametrize("q", EXTREMES)
def test_erf_holds_its_closed_forms_at_every_scale(q):
    arc = math.atan2(2 * q, math.sqrt(1 + 4 * q))  # asin(2q / (1 + 2q)) without cancellation
    assert second_moment("erf", q) == pytest.approx(2 / math.pi * arc, rel=1e-11)
    assert slope_second_moment("erf", q) == pytest.approx(4 / math.pi / math.sqrt(1 + 4 * q), rel=1e-11)
    slope = 4 / math.pi / ((1 + 2 * q) * math.sqrt(1 + 4 * q))  # derivative of the first with respect to q
    assert second_moment_slope("erf", q) == pytest.approx(slope, rel=1e-8)


@pytest.mark.parametrize("q", EXTREMES)
def test_gelu_holds_its_closed_form_at_every_scale(q):
    root = math.sqrt(1 + 2 * q)
    exact = q / 4 + q / (2 * math.pi) * (math.atan2(q, root) + 2 * q / ((1 + q) * root))
    assert second_moment("gelu", q) == pytest.approx(exact, rel=1e-11)


@pytest.mark.parametrize("q", EXTREMES)
@pytest.mark.parametrize("negative", [0.0, 0.01, 0.2, 1.0])
def test_leaky_relu_is_exact_at_every_scale(q, negative):
    half = (1 + negative**2) / 2
    kinked = leaky_relu(negative)
    assert second_moment(kinked, q) == pytest.approx(half * q, rel=1e-12)
    assert slope_second_moment(kinked, q) == pytest.approx(half, rel=1e-12)
    assert slope_fourth_moment(kinked, q) == pytest.approx((1 + negative**4) / 2, rel=1e-12)
    assert first_moment(kinked, q) == pytest.approx(
        (1 - negative) * math.sqrt(q / (2 * math.pi)), rel=1e-12, abs=1e-14 * math.sqrt(q)
    )
    assert curvature_moment(kinked, q) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("q", [1e-6, 0.05, 1.0, 40.0, 1e5])
@pytest.mark.parametrize("name", NUMPY)
def test_agrees_with_adaptive_quadrature_of_another_implementation(name, q):
    value, slope = NUMPY[name]
    assert second_moment(name, q) == pytest.approx(adaptive(lambda u: value(u) ** 2, q), rel=1e-9)
    assert slope_second_moment(name, q) == pytest.approx(adaptive(lambda u: slope(u) ** 2, q), rel=1e-9)
    assert slope_fourth_moment(name, q) == pytest.approx(adaptive(lambda u: slope(u) ** 4, q), rel=1e-9)


@pytest.mark.parametrize("q", [0.01, 1.0, 50.0])
@pytest.mark.parametrize("name", ["tanh", "sigmoid", "gelu", "silu", "softplus", "mish", "selu", "hardtanh"])
def test_derivative_by_the_variance_is_a_finite_difference(name, q):
    step = 1e-4 * q
    difference = (second_moment(name, q + step) - second_moment(name, q - step)) / (2 * step)
    assert second_moment_slope(name, q) == pytest.approx(difference, rel=1e-6)


@pytest.mark.parametrize("q", [1e-9, 0.3, 3.0, 1e6])
@pytest.mark.parametrize("c", [-0.999999, -0.5, 0.0, 0.2, 0.9, 1 - 1e-9])
def test_double_integral_agrees_with_closed_forms(q, c):
    smooth, kinked = Activation("smooth", torch.erf), Activation("kinked", torch.relu, (0.0,))
    for integrated, closed in ((smooth, "erf"), (kinked, "relu")):
        for moment in (correlated_moment, correlated_slope_moment):
            expected = moment(closed, q, c)
            assert moment(integrated, q, c) == pytest.approx(expected, rel=1e-9, abs=1e-15 * min(q, 1.0))


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "gelu", "relu", "leaky_relu", "erf", "hardtanh"])
def test_correlated_moments_join_the_single_ones(name):
    for q in (1e-4, 1.0, 100.0):
        assert correlated_moment(name, q, 1.0) == pytest.approx(second_moment(name, q), rel=1e-12)
        assert correlated_slope_moment(name, q, 1.0) == pytest.approx(slope_second_moment(name, q), rel=1e-12)
        assert correlated_moment(name, q, 0.0) == pytest.approx(first_moment(name, q) ** 2, rel=1e-12, abs=1e-13)
        step = 1e-3  # Price's theorem: d/dc E[phi phi] = q E[phi' phi']
        slope = (correlated_moment(name, q, 0.4 + step) - correlated_moment(name, q, 0.4 - step)) / (2 * step)
        assert slope == pytest.approx(q * correlated_slope_moment(name, q, 0.4), rel=1e-5)


def test_limits_at_zero_and_infinity():
    assert second_moment("tanh", 0.0) == 0.0
    assert second_moment("sigmoid", 0.0) == 0.25
    assert slope_second_moment("relu", 0.0) == pytest.approx(0.5)
    assert slope_second_moment("gelu", 0.0) == pytest.approx(0.25)
    assert slope_second_moment("gelu", math.inf) == pytest.approx(0.5)
    assert second_moment("tanh", math.inf) == pytest.approx(1.0)
    assert second_moment("tanh", 1e40) == pytest.approx(1.0)
    assert second_moment("relu", 1e40) == pytest.approx(5e39)  # which stood still at 5e29
    assert second_moment("gelu", math.inf) == math.inf
    assert curvature_moment("softplus", 0.0) == pytest.approx(math.log(2) / 4)


def test_a_callable_equals_the_name_and_modules_work_in_inference_mode():
    assert second_moment(torch.tanh, 0.7) == second_moment("tanh", 0.7)
    with torch.inference_mode(), torch.device("meta"):
        assert slope_second_moment(torch.nn.Tanh(), 0.7) == slope_second_moment("tanh", 0.7)
        assert slope_second_moment("elu", 123.0) > 0.5  # a rule that no other call has cached
    assert second_moment_slope("elu", 123.0) > 0  # and that autograd can use afterwards


def test_a_kink_away_from_zero_is_exact_when_it_is_named():
    tail = special.ndtr(-2.0)  # |z| > 1 / sqrt(q) at q = 1/4
    assert slope_second_moment("hardtanh", 0.25) == pytest.approx(1 - 2 * tail, rel=1e-13)


def test_gauss_legendre_is_exact_to_its_degree():
    nodes, weights = gauss_legendre(16)
    expected_nodes, expected_weights = np.polynomial.legendre.leggauss(16)
    np.testing.assert_allclose(nodes.numpy(), expected_nodes, atol=1e-14)
    np.testing.assert_allclose(weights.numpy(), expected_weights, atol=1e-14)


def test_bad_input_is_named():
    with pytest.raises(UsageError, match=r"'sine' is not known\. Known: .*gelu.*tanh"):
        second_moment("sine", 1.0)
    with pytest.raises(UsageError, match=r"q must be at least 0\.0, got -1"):
        second_moment("tanh", -1.0)
    with pytest.raises(UsageError, match="got nan"):
        slope_second_moment("tanh", math.nan)
    with pytest.raises(UsageError, match=r"between -1 and 1, got 1\.5"):
        correlated_moment("tanh", 1.0, 1.5)
    with pytest.raises(UsageError, match="elementwise"):
        second_moment(torch.sum, 1.0)
    with pytest.raises(UsageError, match="name or a callable, got int"):
        second_moment(3, 1.0)
