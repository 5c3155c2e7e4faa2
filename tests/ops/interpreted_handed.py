"""Reading streams by weights that were handed on with Triton's kernels, interpreted on a CPU: run by test_triton.py."""

import pytest
import torch
from tests.ops.differences import relative_errors
from tests.ops.interpreted_manifold import doubled, given, products_of_bfloat16, small_blocks
from tests.ops.test_manifold import FORMS

from levada.ops.manifold.handed import reference
from levada.ops.manifold.handed import triton as kernels

__all__ = ["products_of_bfloat16", "small_blocks"]


def both_ways(module, tensors, by, form):
    function = module.read if module is kernels else module.read_and_keep
    found = function(*tensors, *form)
    return *found, *module.read_backward(*by, *tensors, *found[4:], *form)


def handed(*sizes):
    (state, *parameters), by = given(*sizes)
    weights = torch.randn(state.shape[:2], generator=torch.Generator().manual_seed(2))
    return [state, weights, *parameters], by


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("sizes", [(1, 2, 1), (3, 3, 37), (18, 4, 16)], ids=str)
def test_values_and_gradients_are_the_references(sizes, form):
    tensors, by = handed(*sizes, form)
    expected = both_ways(reference, doubled(tensors), doubled(by), form)
    assert max(relative_errors(both_ways(kernels, tensors, by, form), expected)) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_streams(dtype):
    form = FORMS["paper"]
    tensors, by = handed(5, 4, 20, form, dtype)
    expected = both_ways(reference, doubled(tensors), doubled(by), form)
    assert max(relative_errors(both_ways(kernels, tensors, by, form), expected)) < torch.finfo(dtype).eps


def test_gradients_that_are_left_out():
    form = FORMS["paper"]
    tensors, by = handed(3, 3, 5, form)
    by[1] = by[4] = None
    expected = both_ways(reference, doubled(tensors), doubled(by), form)
    assert max(relative_errors(both_ways(kernels, tensors, by, form), expected)) < 1e-6
