"""The Triton kernels of a residual connection with its norm, interpreted: run by test_triton.py."""

import math

import pytest
import torch
from tests.ops.test_residual_norm import arguments, cotangents
from triton.runtime import interpreter

from levada.ops.residual_norm import reference
from levada.ops.residual_norm import triton as kernels


@pytest.fixture(autouse=True)
def small_programs(monkeypatch):
    monkeypatch.setattr(kernels, "SHAPE", {"elements": 16, "warp": 512})
    monkeypatch.setattr(kernels, "_processors", lambda x: 1)
    patch = interpreter._patch_lang_tensor

    def patched(tensor, scope):  # the interpreter's own asks NumPy for a number in a way that it no longer allows
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patched)


def both_ways(module, tensors, by, centred):
    state, out, weight, bias = [*tensors, None, None][:4]
    new, normed = module.residual_norm(state, out, weight, bias, centred, 1e-5)
    return new, normed, *module.residual_norm_backward(*by, new, weight, centred, 1e-5, bias is not None)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("affine", [0, 1, 2])
@pytest.mark.parametrize("sizes", [(1, 1), (5, 7), (3, 37), (9, 2), (0, 4)], ids=str)
def test_values_and_gradients_are_the_references(sizes, affine, centred):
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        tensors, by = arguments(*sizes, affine=affine, dtype=dtype), cotangents(*sizes, dtype=dtype)
        expected = both_ways(reference, [x.double() for x in tensors], [x.double() for x in by], centred)
        got = both_ways(kernels, tensors, by, centred)
        torch.testing.assert_close([x.double() for x in got], list(expected), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_streams_are_added_up_in_float32(dtype):
    state, out, weight, bias = arguments(3, 40, dtype=torch.float32)
    narrow = [state.to(dtype), out.to(dtype), weight, bias]
    by = cotangents(3, 40, dtype=dtype)
    got = both_ways(kernels, narrow, by, True)
    assert [x.dtype for x in got] == [dtype, dtype, dtype, torch.float32, torch.float32]
    new = got[0].double()
    exact = narrow[0].double() + narrow[1].double()  # the interpreter cuts off where a GPU rounds
    assert (new - exact).abs().max() <= torch.finfo(dtype).eps * exact.abs().max()
    expected = both_ways(
        reference, [new, torch.zeros_like(new), weight.double(), bias.double()], [x.double() for x in by], True
    )
    for found, truth in zip(got, expected, strict=True):
        assert (found.double() - truth).abs().max() <= torch.finfo(found.dtype).eps * truth.abs().max() * 8


def test_nothing_is_read_that_was_not_written():
    """What torch.empty returns is NaN here, and so is the memory around the arguments."""
    tensors, by = arguments(3, 21), cotangents(3, 21)
    expected = both_ways(reference, tensors, by, True)
    around = [torch.full((x.numel() + 256,), math.nan, dtype=x.dtype) for x in [*tensors, *by]]
    inside = [a[128:-128].view_as(x).copy_(x) for a, x in zip(around, [*tensors, *by], strict=True)]
    torch.use_deterministic_algorithms(True)
    try:
        got = both_ways(kernels, inside[:4], inside[4:], True)
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_rows_wider_than_registers_go_to_the_reference_with_a_word(monkeypatch):
    monkeypatch.setattr(kernels, "_WIDEST", 4)
    kernels._warn.cache_clear()
    tensors, by = arguments(2, 5), cotangents(2, 5)
    with pytest.warns(RuntimeWarning, match="5 channels are more than the 4"):
        got = both_ways(kernels, tensors, by, True)
    torch.testing.assert_close(got, both_ways(reference, tensors, by, True))


def test_what_is_on_its_way_fits_into_shared_memory():
    for width in (1, 2560, 4096, 8192, 16384):
        for size in (2, 4, 8):
            block, rows, warps = kernels.shape_of(width)
            stages = kernels.stages_of(rows * block * size)
            assert stages == 1 or 3 * stages * rows * block * size <= kernels.SHARED
            assert block >= width
            assert 1 <= warps <= 32
