"""Products by oneDNN, where they are large, and by `torch.mm`: the same numbers, into the same memory."""

import pytest
import torch

from levada import GatedResidual, SparseHyperConnection
from levada.ops import _products
from levada.ops._products import add_product, product, product_into, times_transposed


@pytest.fixture(params=["oneDNN", "mm", "small"])
def way(request, monkeypatch):
    calls, real = [], _products._LINEAR
    if real is None:
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr(_products, "_LINEAR", lambda *given: calls.append(1) or real(*given))
    monkeypatch.setattr(_products, "_WORTH_IT", 2**22 if request.param == "small" else 0)
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(request.param != "mm")  # somebody has switched it off
    yield calls, request.param == "oneDNN"
    torch._C._set_mkldnn_enabled(before)


@pytest.mark.parametrize("left", [(7, 5), (5, 7)])
@pytest.mark.parametrize("right", [(5, 3), (3, 5)])
def test_it_is_the_product(way, left, right):
    calls, taken = way
    left, right = torch.randn(left), torch.randn(right)
    left, right = left if left.shape == (7, 5) else left.t(), right if right.shape == (5, 3) else right.t()
    truth = left.double() @ right.double()
    total, found = torch.ones(7, 3), torch.empty(7, 3)
    add_product(total, left, right)
    product_into(found, left, right)
    results = [product(left, right), times_transposed(left, right.t()), found, total - 1]
    for result in results:
        torch.testing.assert_close(result.double(), truth, rtol=1e-5, atol=1e-5)
    assert bool(calls) is taken


def test_a_right_matrix_with_gaps_goes_by_torch(way):
    """oneDNN takes a thousand times as long for one."""
    left, gaps = torch.randn(7, 5), torch.randn(5, 6)[:, :3]
    for right in (gaps, torch.randn(3, 10)[:, :5].t()):
        torch.testing.assert_close(product(left, right), left @ right)
        assert not way[0]
    assert product(torch.randn(7, 10)[:, :5], gaps.contiguous()).shape == (7, 3)
    assert bool(way[0]) is way[1]  # on the left they cost nothing


def test_other_types_go_by_torch(way):
    left, right = torch.randn(7, 5, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    assert torch.equal(product(left, right), left @ right)
    assert not way[0]


@pytest.mark.parametrize("connection", [SparseHyperConnection, GatedResidual])
def test_layers_are_the_same_by_both(way, connection):
    """With leading axes, at an odd number of tokens, in both passes."""
    pytest.importorskip("numba")
    layer = connection(24, streams=4)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    state, branch = torch.randn(3, 37, 4, 24), torch.nn.Linear(24, 24)
    found = []
    for dtype in (torch.float64, torch.float32):
        layer, branch = layer.to(dtype), branch.to(dtype)
        given = state.to(dtype).requires_grad_()
        new = layer.advance(given, branch)
        found.append([new, *torch.autograd.grad(new.square().sum(), [given, *layer.parameters()])])
    assert bool(way[0]) is way[1]
    for truth, result in zip(*found, strict=True):
        assert (result.double() - truth).norm() <= 2e-5 * truth.norm() + 1e-6
