from __future__ import annotations

import math

import pytest

from levada._errors import UsageError
from levada.theory import (
    batch_norm_gradient_correlation,
    batch_norm_residual_gradient_correlation,
    gradient_correlation,
    residual_gradient_correlation,
)


def test_relu_without_normalisation_follows_the_arc_cosine():
    # q doubles in a residual block, and the covariance adds that of ReLU's outputs.
    c, expected = 0.3, [1.0]
    for _ in range(6):
        angle = math.acos(c)
        expected.append(expected[-1] * (1 - angle / (2 * math.pi)))
        c = (c + (math.sin(angle) + (math.pi - angle) * c) / math.pi) / 2
    found = residual_gradient_correlation("relu", 2.0, depth=6, correlation=0.3)
    assert found.tolist() == pytest.approx(expected, rel=1e-9)


def test_batch_normalised_relu_halves_what_is_unrelated_and_follows_the_arc_cosine_elsewhere():
    assert batch_norm_gradient_correlation(20).tolist() == pytest.approx([2.0**-i for i in range(21)], rel=1e-9)
    c, expected = 0.9, [1.0]
    for _ in range(6):
        angle = math.acos(c)
        expected.append(expected[-1] * (1 - angle / math.pi))
        c = ((math.sin(angle) + (math.pi - angle) * c) - 1) / (math.pi - 1)
    found = batch_norm_gradient_correlation(6, correlation=0.9)
    assert found.tolist() == pytest.approx(expected, rel=1e-9)


def test_a_normalised_stream_counts_its_blocks():
    expected, variance = [1.0], 1.0
    for _ in range(8):
        expected.append(expected[-1] * (1 + 0.5 / variance) / (1 + 1 / variance))
        variance += 1 - 1 / math.pi
    assert batch_norm_residual_gradient_correlation(8).tolist() == pytest.approx(expected, rel=1e-9)


def test_powers_of_depth():
    plain = gradient_correlation("relu", 2.0, 0.0, depth=1600)
    skips = residual_gradient_correlation("relu", 2.0, depth=1600)
    # L^-3 both, the residual one later; logarithms of L make the approach slow.
    for cosines in (plain, skips):
        assert float((cosines[1600] / cosines[800]).log2()) == pytest.approx(-3, abs=0.1)
    assert skips[1600] > 5 * plain[1600]
    normed = batch_norm_residual_gradient_correlation(4000)
    assert float((normed[4000] / normed[2000]).log2()) == pytest.approx(-0.25 / (0.5 - 0.5 / math.pi), abs=0.005)


def test_equal_inputs_keep_equal_gradients_and_a_zero_branch_changes_nothing():
    for found in (
        residual_gradient_correlation("tanh", 1.5, depth=5, correlation=1.0),
        batch_norm_gradient_correlation(5, "tanh", correlation=1.0),
        batch_norm_residual_gradient_correlation(5, "tanh", correlation=1.0),
        residual_gradient_correlation("relu", 2.0, depth=5, multiplier=0.0),
    ):
        assert found.tolist() == pytest.approx([1.0] * 6, rel=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: residual_gradient_correlation("relu", -1.0, 2), "residual_gradient_correlation"),
        (lambda: residual_gradient_correlation("relu", 2.0, 0), "depth must be at least 1, got 0"),
        (lambda: batch_norm_gradient_correlation(2, correlation=1.5), "between -1 and 1, got 1.5"),
        (lambda: batch_norm_residual_gradient_correlation(2, lambda x: 0 * x), "needs an activation that varies"),
    ],
)
def test_bad_input_says_the_rule(call, message):
    with pytest.raises(UsageError, match=message):
        call()
