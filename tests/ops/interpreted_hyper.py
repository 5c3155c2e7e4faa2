"""The Triton kernels that read hyper-connections' streams, interpreted: run by test_triton.py."""

import math

import pytest
import torch
from tests.ops.differences import relative_errors
from tests.ops.interpreted_manifold import doubled, products_of_bfloat16  # noqa: F401  # a fixture for all
from tests.ops.test_hyper import EPSILON, arguments

from levada.ops._device import past_limit
from levada.ops.hyper import reference
from levada.ops.hyper import triton as kernels
from levada.ops.hyper.static import reference as plain
from levada.ops.hyper.static import triton as static
from levada.ops.manifold import triton as shared
from levada.ops.manifold.products import triton as products


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setitem(kernels.WEIGHTS, "streams", 8)
    monkeypatch.setitem(products.PROJECT, "tile", 16)
    monkeypatch.setitem(products.PROJECT, "bytes", 32)
    monkeypatch.setitem(shared.READ, "block", 16)
    monkeypatch.setitem(shared.READ, "elements", 32)
    monkeypatch.setitem(shared.BY_READS, "elements", 64)
    monkeypatch.setitem(products.BY_STATE, "tile", 16)
    monkeypatch.setitem(products.BY_STATE, "block", 32)


def given(tokens, n, dim, centred=True, dtype=torch.float32):
    """Return the arguments, and gradients that arrive at each result."""
    state, *own = (x.detach() for x in arguments(tokens, n, dim, centred, torch.float32))
    generator = torch.Generator().manual_seed(1)
    shapes = [(tokens, dim), (tokens, n), (tokens, n, n), (tokens, n), (tokens, n, dim)]
    by = [torch.randn(shape, generator=generator) for shape in shapes]
    return [state.to(dtype), *own, *([] if centred else [None])], [by[0].to(dtype), *by[1:4], by[4].to(dtype)]


def both_ways(module, tensors, by):
    function = module.read if module is kernels else module.read_and_keep
    found = function(*tensors, EPSILON)
    return *found, *module.read_backward(*by, *tensors, *found[4:], EPSILON)


def error(tensors, by):
    return max(relative_errors(both_ways(kernels, tensors, by), both_ways(reference, doubled(tensors), doubled(by))))


@pytest.mark.parametrize("sizes", [(1, 2, 1), (3, 3, 37), (9, 4, 16), (2, 7, 20), (2, 16, 5), (0, 2, 3)], ids=str)
@pytest.mark.parametrize("centred", [True, False])
def test_values_and_gradients_are_the_references(sizes, centred):
    assert error(*given(*sizes, centred)) < 5e-6


@pytest.mark.parametrize("left_out", [1, 4])
def test_gradients_may_be_left_out(left_out):
    tensors, by = given(3, 4, 20)
    by[left_out] = None
    assert error(tensors, by) < 5e-6


def test_parts_of_channels_and_of_tokens_are_added_up():
    tensors, by = given(9, 4, 160)
    assert products.plan_of(36, 160, 6, torch.float32)["parts"] > 1
    assert products.plan_of_state(36, 1, 160, 7, torch.float32)["parts"] > 1
    assert error(tensors, by) < 5e-6


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_with_narrow_streams_lose_nothing(dtype, centred):
    tensors, by = given(5, 4, 20, centred, dtype)
    got = both_ways(kernels, tensors, by)
    assert [x.dtype for x in got] == [dtype, *[torch.float32] * 5, dtype, *[torch.float32] * 8]
    found = relative_errors(got, both_ways(reference, doubled(tensors), doubled(by)))
    # The interpreter cuts what it should round: twice the error in bfloat16.
    assert max(found[0], found[6]) < torch.finfo(dtype).eps
    assert max(found[1:6] + found[7:]) < 5e-5


def test_a_mean_far_from_zero_leaves_the_variance():
    """Of squares as they are, which are 90,000 times the variance, float32 would keep two digits."""
    tensors, by = given(3, 4, 64)
    tensors[0] += 300
    got, expected = (both_ways(m, t, by)[5] for m, t in ((kernels, tensors), (reference, doubled(tensors))))
    assert relative_errors([got[..., 0]], [expected[..., 0]])[0] < 1e-5


def test_nothing_is_read_that_was_not_written():
    """What torch.empty returns is NaN here, and so is the memory around the arguments."""
    tensors, by = given(3, 3, 21)
    expected = both_ways(reference, doubled(tensors), doubled(by))
    around = [torch.full((x.numel() + 256,), math.nan) for x in [*tensors, *by]]
    inside = [a[128:-128].view_as(x).copy_(x) for a, x in zip(around, [*tensors, *by], strict=True)]
    torch.use_deterministic_algorithms(True)
    try:
        got = both_ways(kernels, inside[:9], inside[9:])
    finally:
        torch.use_deterministic_algorithms(False)
    assert max(relative_errors(got, expected)) < 5e-6


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter
def test_nan_stays_in_its_token():
    tensors, _ = given(4, 4, 20)
    tensors[0][1, 2, 3] = torch.nan
    for y in kernels.read(*tensors, EPSILON):
        assert y.reshape(4, -1).isnan().any(-1).tolist() == [False, True, False, False]


def test_past_the_limit_the_reference_runs_with_one_warning():
    past_limit.cache_clear()
    tensors, by = given(2, 17, 3)
    with pytest.warns(RuntimeWarning, match="17 streams") as caught:
        got = both_ways(kernels, tensors, by)
    assert len(caught) == 1
    assert all(map(torch.equal, got, both_ways(reference, tensors, by)))
    assert not kernels.takes(tensors[0].double())


@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [(1, 2, 1), (3, 3, 37), (2, 7, 20), (5, 4, 160), (0, 2, 3)], ids=str)
def test_reading_by_weights_of_all_tokens(sizes, dtype, adds, monkeypatch):
    monkeypatch.setitem(static.BACKWARD, "elements", 128)
    state, weights = torch.randn(sizes).to(dtype), torch.randn(sizes[1])
    by_x, by_new = torch.randn(sizes[0], sizes[2]).to(dtype), torch.randn(sizes).to(dtype) if adds else None

    def both(module, by_x, by_new, *tensors):
        read = module.read if module is static else module.read_and_keep
        return [*read(*tensors), *module.read_backward(by_x, by_new, *tensors)]

    given = by_x, by_new, state, weights
    got, expected = both(static, *given), both(plain, *doubled(given))
    assert [x.dtype for x in got] == [dtype, dtype, torch.float32]
    assert max(relative_errors(got, expected)) < (1e-6 if dtype == torch.float32 else torch.finfo(dtype).eps)
