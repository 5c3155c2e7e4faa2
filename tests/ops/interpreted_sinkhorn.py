"""The Triton kernels of Sinkhorn normalisation, interpreted on a CPU: run by test_triton.py with TRITON_INTERPRET=1."""

import math

import pytest
import torch
from tests.ops.differences import relative_errors

from levada.ops.sinkhorn import reference
from levada.ops.sinkhorn import triton as kernels


def given(count, n, std=1.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [scale * torch.randn(count, n, n, generator=generator).to(dtype) for scale in (std, 1.0)]


def both_ways(module, logits, cotangent, *options):
    if module is reference:
        return reference.normalise(logits, *options), reference.sinkhorn_backward(logits, cotangent, *options)
    return kernels.sinkhorn(logits, *options), kernels.sinkhorn_backward(logits, cotangent, *options)


@pytest.mark.parametrize("options", [(1, 0.0), (20, 0.0), (20, 1e-6), (5, 0.1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("count", "n"), [(33, 2), (9, 3), (17, 4), (3, 7), (1, 16)])
def test_values_and_gradients_are_the_references(count, n, dtype, options):
    tensors = given(count, n, 2.0, dtype)
    expected = both_ways(reference, *[x.double() for x in tensors], *options)
    got = both_ways(kernels, *tensors, *options)
    assert {x.dtype for x in got} == {dtype}
    assert max(relative_errors(got, expected)) < (3e-6 if dtype == torch.float32 else 1e-12)


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # of rows that are not there
@pytest.mark.parametrize("n", [1, 5])
def test_logits_of_any_size_and_a_single_row(n):
    tensors = given(5, n, 60.0)
    expected = both_ways(reference, *[x.double() for x in tensors], 20, 0.0)
    for found, truth in zip(both_ways(kernels, *tensors, 20, 0.0), expected, strict=True):
        assert (found - truth).abs().max() <= 2e-4 * truth.abs().max()


def test_entries_that_float32_loses_may_come_to_be_the_largest():
    """One row shares four columns and four rows one column: all others grow 16-fold each iteration."""
    logits = torch.full((1, 5, 5), -105.0)
    logits[0, 0, :4] = logits[0, 1:, 4] = 0.0
    assert reference.steps_at_once(5, torch.float32) < 42
    tensors = [logits, given(1, 5)[1]]
    expected = both_ways(reference, *[x.double() for x in tensors], 42, 0.0)
    assert expected[0][0, 1:, :4].min() > 0.1
    assert max(relative_errors(both_ways(kernels, *tensors, 42, 0.0), expected)) < 1e-5


def test_nothing_is_read_that_was_not_written():
    """What torch.empty returns is NaN here, and so is the memory around the arguments."""
    tensors = given(5, 3)
    expected = both_ways(reference, *[x.double() for x in tensors], 3, 0.0)
    around = [torch.full((x.numel() + 256,), math.nan) for x in tensors]
    inside = [a[128:-128].view_as(x).copy_(x) for a, x in zip(around, tensors, strict=True)]
    torch.use_deterministic_algorithms(True)
    try:
        got = both_ways(kernels, *inside, 3, 0.0)
    finally:
        torch.use_deterministic_algorithms(False)
    assert max(relative_errors(got, expected)) < 1e-6


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter
def test_nan_stays_in_its_matrix():
    tensors = given(9, 4)
    tensors[0][3, 1, 2] = torch.nan
    for found in both_ways(kernels, *tensors, 3, 0.0):
        assert found.isnan().flatten(1).any(-1).nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize(("n", "iterations"), [(17, 3), (3, 65)])
def test_what_is_past_the_kernels_limits_goes_to_the_reference_with_a_word(n, iterations):
    tensors = given(2, n)
    kernels._warn.cache_clear()
    with pytest.warns(RuntimeWarning, match=f"{iterations} iterations over matrices of {n} rows"):
        got = both_ways(kernels, *tensors, iterations, 0.0)
    torch.testing.assert_close(got, both_ways(reference, *tensors, iterations, 0.0))


def test_no_matrices():
    assert [x.shape for x in both_ways(kernels, *given(0, 4), 3, 0.0)] == [(0, 4, 4)] * 2
