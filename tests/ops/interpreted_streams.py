"""The Triton kernels that write to streams, interpreted on a CPU: run by test_triton.py with TRITON_INTERPRET=1."""

import math

import pytest
import torch
from tests.ops.test_streams import arguments

from levada.ops._device import past_limit
from levada.ops.streams import reference
from levada.ops.streams import triton as kernels


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    for chosen in (kernels.FORWARD, kernels.BACKWARD):
        monkeypatch.setitem(chosen, "elements", 16)
    monkeypatch.setattr(kernels, "_LEAST", 16)


def both_ways(module, tensors, cotangent):
    given = tensors if len(tensors) == 4 else [*tensors, None]
    return module.write(*given), *module.write_backward(cotangent, *given)


@pytest.mark.parametrize("mixes", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", [(1, 2, 1), (2, 3, 37), (2, 4, 32), (1, 7, 20), (0, 4, 3)], ids=str)
def test_values_and_gradients_are_the_references(sizes, dtype, mixes):
    tensors = arguments(*sizes, mixes=mixes, dtype=dtype)
    cotangent = torch.randn(sizes, dtype=dtype)
    expected = both_ways(reference, [x.double() for x in tensors], cotangent.double())
    got = both_ways(kernels, tensors, cotangent)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13
    torch.testing.assert_close([x.double() for x in got], list(expected), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_streams_are_added_up_in_float32(dtype):
    state, out, weights, mix = arguments(2, 4, 40, dtype=torch.float32)
    narrow = [state.to(dtype), out.to(dtype), weights, mix]
    cotangent = torch.randn(2, 4, 40).to(dtype)
    got = both_ways(kernels, narrow, cotangent)
    assert [x.dtype for x in got] == [dtype, dtype, dtype, torch.float32, torch.float32]
    expected = both_ways(reference, [x.double() for x in narrow], cotangent.double())
    for found, truth in zip(got, expected, strict=True):
        assert (found.double() - truth).abs().max() <= torch.finfo(found.dtype).eps * truth.abs().max() * 4


def test_past_the_limit_the_reference_runs_with_one_warning():
    past_limit.cache_clear()
    tensors, cotangent = arguments(2, 17, 3, dtype=torch.float32), torch.randn(2, 17, 3)
    with pytest.warns(RuntimeWarning, match="17 streams that are written.*at most 16") as caught:
        got = both_ways(kernels, tensors, cotangent)
    assert len(caught) == 1
    assert all(map(torch.equal, got, both_ways(reference, tensors, cotangent)))


def test_coefficients_may_be_narrow_too():
    """As whoever calls the operation by its name may give them: they are computed with in float32."""
    tensors = [x.bfloat16() for x in arguments(2, 4, 40, dtype=torch.float32)]
    cotangent = torch.randn(2, 4, 40).bfloat16()
    got = both_ways(kernels, tensors, cotangent)
    assert {x.dtype for x in got} == {torch.bfloat16}
    expected = both_ways(reference, [x.double() for x in tensors], cotangent.double())
    for found, truth in zip(got, expected, strict=True):
        assert (found.double() - truth).abs().max() <= torch.finfo(torch.bfloat16).eps * truth.abs().max()


def test_nothing_is_read_that_was_not_written():
    """What torch.empty returns is NaN here, and so is the memory around the arguments."""
    tensors, cotangent = arguments(2, 3, 21), torch.randn(2, 3, 21, dtype=torch.float64)
    expected = both_ways(reference, tensors, cotangent)
    around = [torch.full((x.numel() + 256,), math.nan, dtype=x.dtype) for x in [*tensors, cotangent]]
    inside = [a[128:-128].view_as(x).copy_(x) for a, x in zip(around, [*tensors, cotangent], strict=True)]
    torch.use_deterministic_algorithms(True)
    try:
        got = both_ways(kernels, inside[:-1], inside[-1])
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
