"""The Triton kernels that read through gates, interpreted on a CPU: run by test_triton.py with TRITON_INTERPRET=1."""

import math

import pytest
import torch
from tests.ops.differences import relative_errors
from tests.ops.test_gated import EPSILON, arguments
from triton.runtime import interpreter

from levada.ops._device import past_limit
from levada.ops.gated import reference
from levada.ops.gated import triton as kernels


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setitem(kernels.BLOCK, "channels", 16)
    monkeypatch.setitem(kernels.PARTS, "programs", 2)
    patch = interpreter._patch_lang_tensor

    def patched(tensor, scope):  # the interpreter's own asks NumPy for a number in a way that it no longer allows
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patched)


def given(tokens, n, dim, rank, dtype=torch.float32, writes=True):
    """Return the arguments, and gradients that arrive at each result."""
    state, *parameters = (x.detach() for x in arguments(tokens, n, dim, rank, torch.float32, writes))
    generator = torch.Generator().manual_seed(1)
    shapes = [(tokens, dim), (tokens, n if writes else 0), (tokens, n, dim)]
    by = [torch.randn(shape, generator=generator) for shape in shapes]
    tensors = [state.to(dtype), *parameters, *([] if writes else [None])]
    return tensors, [by[0].to(dtype), by[1], by[2].to(dtype)]


def both_ways(module, tensors, by):
    function = module.read if module is kernels else module.read_and_keep
    found = function(*tensors, EPSILON)
    return *found, *module.read_backward(*by, *tensors, *found[2:], EPSILON)


def doubled(tensors):
    return [x if x is None else x.double() for x in tensors]


@pytest.mark.parametrize("sizes", [(1, 2, 1, 1), (3, 3, 37, 2), (2, 16, 5, 20), (0, 2, 3, 1)], ids=str)
@pytest.mark.parametrize("writes", [True, False])
def test_values_and_gradients_are_the_references(sizes, writes):
    tensors, by = given(*sizes, writes=writes)
    expected = both_ways(reference, doubled(tensors), doubled(by))
    assert max(relative_errors(both_ways(kernels, tensors, by), expected)) < 1e-6


def test_a_gradient_by_the_streams_may_be_left_out():
    tensors, by = given(3, 4, 20, 2)
    by[2] = None
    assert (
        max(relative_errors(both_ways(kernels, tensors, by), both_ways(reference, doubled(tensors), doubled(by))))
        < 1e-6
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_streams_are_added_up_in_float32(dtype):
    tensors, by = given(3, 4, 20, 2, dtype)
    got = both_ways(kernels, tensors, by)
    assert [x.dtype for x in got] == [dtype, *[torch.float32] * 3, dtype, *[torch.float32] * 4]
    found = relative_errors(got, both_ways(reference, doubled(tensors), doubled(by)))
    # The interpreter cuts what it should round: twice the error in bfloat16.
    assert max(found[0], found[4]) < torch.finfo(dtype).eps
    assert max(found[1:4] + found[5:]) < 1e-6


def test_nothing_is_read_that_was_not_written():
    """What torch.empty returns is NaN here, and so is the memory around the arguments."""
    tensors, by = given(3, 4, 21, 2)
    expected = both_ways(reference, tensors, by)
    around = [torch.full((x.numel() + 256,), math.nan) for x in [*tensors, *by]]
    inside = [a[128:-128].view_as(x).copy_(x) for a, x in zip(around, [*tensors, *by], strict=True)]
    torch.use_deterministic_algorithms(True)
    try:
        got = both_ways(kernels, inside[:5], inside[5:])
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(list(got), list(expected), rtol=1e-4, atol=1e-5)


def test_past_the_limit_the_reference_runs_with_one_warning(monkeypatch):
    monkeypatch.setitem(kernels.LIMIT, "width", 8)
    past_limit.cache_clear()
    tensors, by = given(2, 2, 9, 1)
    with pytest.warns(RuntimeWarning, match="at most 8") as caught:
        got = both_ways(kernels, tensors, by)
    assert len(caught) == 1
    assert all(map(torch.equal, got, both_ways(reference, tensors, by)))
    assert not kernels.takes(tensors[0][:, :, :8].double())
    assert len(caught) == 1
