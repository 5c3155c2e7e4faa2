"""Receptive fields, the depth that a lag needs and the width of the effective field, against brute force."""

import itertools
import math

import pytest
import torch
from torch import nn

from levada._errors import UsageError
from levada.theory import depth_for_lag, field_deviation, receptive_field, visible_lags


def lags_by_hand(kernels, dilations):
    taps = [[dilation * tap for tap in range(kernel)] for kernel, dilation in zip(kernels, dilations, strict=True)]
    return tuple(sorted({sum(chosen) for chosen in itertools.product(*taps)}))


@pytest.mark.parametrize(
    ("kernels", "dilations"),
    [([2, 2, 2, 2], [1, 2, 4, 8]), ([3, 2, 4], [1, 5, 3]), ([1, 3], [7, 2]), ([2, 2], [3, 3]), ([5], [4]), ([], [])],
)
def test_visible_lags_are_all_sums_of_taps(kernels, dilations):
    expected = lags_by_hand(kernels, dilations)
    assert visible_lags(kernels, dilations) == expected
    assert receptive_field(kernels, dilations) == expected[-1] + 1


@pytest.mark.parametrize(("kernels", "strides"), [([3, 3, 3], [2, 2, 1]), ([7, 3, 5], [2, 3, 2]), ([2, 2], [2, 2])])
def test_strides_widen_what_comes_after_them(kernels, strides):
    net = nn.Sequential(*(nn.Conv1d(1, 1, k, s) for k, s in zip(kernels, strides, strict=True)))
    length = receptive_field(kernels, strides=strides)
    assert net(torch.zeros(1, 1, length)).shape[-1] == 1
    with pytest.raises(RuntimeError):  # one position less and nothing comes out
        net(torch.zeros(1, 1, length - 1))


@pytest.mark.parametrize("convolutions", [1, 2])
@pytest.mark.parametrize("kernel", [2, 3, 4, 8])
def test_the_depth_for_a_lag_is_the_first_that_sees_it(kernel, convolutions):
    for growth, lag in itertools.product((1, 2), range(70)):
        depth, seen = 0, {0}
        while lag not in seen:
            for _ in range(convolutions):
                seen = {before + tap * growth**depth for before in seen for tap in range(kernel)}
            depth += 1
        assert depth_for_lag(lag, kernel, growth=growth, convolutions=convolutions) == depth
        reach = convolutions * (kernel - 1)
        closed = math.ceil(lag / reach) if growth == 1 else math.ceil(math.log2(lag / reach + 1))
        assert depth == closed


def test_no_lag_below_the_field_is_in_a_gap_where_growth_is_allowed():
    for kernel, growth, convolutions in itertools.product((2, 3, 4), (1, 2, 3, 4, 5), (1, 2)):
        dilations = [growth**layer for layer in range(4) for _ in range(convolutions)]
        whole = len(visible_lags([kernel] * len(dilations), dilations)) == receptive_field(
            [kernel] * len(dilations), dilations
        )
        if whole:
            depth_for_lag(9, kernel, growth=growth, convolutions=convolutions)
        else:
            with pytest.raises(UsageError, match="leave lags that no depth sees"):
                depth_for_lag(9, kernel, growth=growth, convolutions=convolutions)


@pytest.mark.parametrize(("kernels", "dilations"), [([3] * 9, [1] * 9), ([2, 5, 3], [1, 4, 2])])
def test_the_deviation_is_that_of_the_convolved_uniform_distributions(kernels, dilations):
    profile = torch.ones(1, dtype=torch.float64)
    for kernel, dilation in zip(kernels, dilations, strict=True):
        after = torch.zeros(len(profile) + (kernel - 1) * dilation, dtype=torch.float64)
        for tap in range(kernel):
            after[tap * dilation : tap * dilation + len(profile)] += profile / kernel
        profile = after
    place = torch.arange(len(profile), dtype=torch.float64)
    mean = (profile * place).sum()
    deviation = float((profile * (place - mean).square()).sum().sqrt())
    assert field_deviation(kernels, dilations) == pytest.approx(deviation, rel=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: receptive_field([3, 3], [1]), "one dilation for each kernel, got 1 for 2"),
        (lambda: receptive_field([3, 0]), "a kernel size must be at least 1, got 0"),
        (lambda: receptive_field([3], strides=[0]), "a stride must be at least 1, got 0"),
        (lambda: visible_lags([2], [1.5]), "a dilation must be an integer, got 1.5"),
        (lambda: field_deviation([3, 3], [1, 2, 3]), "got 3 for 2 kernels"),
        (lambda: depth_for_lag(-1, 3), "lag must be at least 0, got -1"),
        (lambda: depth_for_lag(5, 1), "kernel_size must be at least 2, got 1. One tap sees the present alone"),
        (lambda: depth_for_lag(5, 2, growth=3), "growth must be at most"),
    ],
)
def test_bad_input_says_the_rule(call, message):
    with pytest.raises(UsageError, match=message):
        call()
