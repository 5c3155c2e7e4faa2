"""Reading streams that are scored against the plain formula: values, derivatives, types, the dispatcher."""

import importlib.util

import pytest
import torch
from tests.ops.test_hyper import run
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional

from levada import SparseHyperConnection, Stack
from levada.ops import _cpu, _kernels
from levada.ops._define import plain_operations
from levada.ops.sparse import cpu, read_and_score, replace_rows

EPSILON = 1e-2  # large enough to be seen


def arguments(leading, n, dim, scores=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = [(*leading, n, dim), (scores + n, n * dim), (1,), (n,)]
    tensors = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    tensors[0] += 0.5  # else the mean is nothing to take out
    tensors[1] *= (n * dim) ** -0.5
    return [x.to(dtype).requires_grad_() for x in tensors]


def by_formula(state, projection, scale, bias):
    n, flat = state.shape[-2], state.flatten(-2)
    route, read = projection[:-n], projection[-n:]
    scores = torch.sigmoid(functional.layer_norm(flat, flat.shape[-1:], eps=EPSILON) @ route.mT)
    reads = torch.sigmoid(scale * (functional.rms_norm(flat, flat.shape[-1:], eps=EPSILON) @ read.mT) + bias)
    return (reads.unsqueeze(-1) * state).sum(-2), reads, scores, state


def fused(*tensors):
    return read_and_score(*tensors, EPSILON)


@pytest.mark.parametrize("sizes", [(1, 2, 1), (5, 3, 7), (71, 4, 33), (9, 16, 2), (7, 6, 5)], ids=str)
@pytest.mark.parametrize("scores", [0, 2])
@pytest.mark.parametrize("way", ["loops", "reference", "plain"])
def test_values_and_gradients_are_the_formulas(sizes, scores, way, calls, monkeypatch):
    if way == "loops" and not importlib.util.find_spec("numba"):
        pytest.skip("numba is not installed")
    if way == "reference":
        monkeypatch.setattr(cpu, "loops_for", lambda *given: None)
    monkeypatch.setattr(_kernels, "_FOUND", way != "plain")
    monkeypatch.setattr(_cpu, "TOGETHER", 20 * sizes[1] * sizes[2])  # tokens by twenties, and what is over
    tensors = arguments(sizes[:1], *sizes[1:], scores)
    torch.testing.assert_close(run(fused, tensors), run(by_formula, tensors), rtol=1e-9, atol=1e-11)
    assert len(calls) == (way != "plain")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_streams_are_added_up_in_float32(dtype):
    tensors = arguments((6,), 4, 16, dtype=torch.float32)
    tensors[0] = tensors[0].detach().to(dtype).requires_grad_()
    wide = [x.detach().double().requires_grad_() for x in tensors]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = run(fused, tensors)
    assert [x.dtype for x in got] == [dtype, *[torch.float32] * 2, dtype, dtype, *[torch.float32] * 3]
    for found, truth in zip(got, run(by_formula, wide), strict=True):
        # The cotangents are rounded as well, to the type of what they belong to.
        assert (found.double() - truth).norm() <= 4 * torch.finfo(dtype).eps * truth.norm()


def test_float32_is_as_precise_as_plain_operations():
    tensors = arguments((512,), 8, 32, 4, dtype=torch.float32)
    truth = run(by_formula, [x.detach().double().requires_grad_() for x in tensors])
    for found, expected in zip(run(fused, tensors), truth, strict=True):
        assert (found.double() - expected).norm() < 1e-6 * expected.norm()


def test_rows_are_replaced_and_nothing_kept_but_their_places():
    x, rows = (torch.randn(n, 3, dtype=torch.float64, requires_grad=True) for n in (6, 2))
    places = torch.tensor([4, 1])
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda y: kept.append(y) or y, lambda y: y):
        found = replace_rows(x, places, rows)
    assert torch.equal(found, x.index_copy(0, places, rows))
    assert all(y.dtype == torch.int64 for y in kept) or not _kernels._FOUND
    assert gradcheck(lambda x, rows: replace_rows(x, places, rows), (x, rows), check_forward_ad=True)
    assert gradgradcheck(lambda x, rows: replace_rows(x, places, rows).pow(3), (x, rows))


@pytest.mark.parametrize("fixed", [0, 1, 3])
def test_the_connection_reads_by_it_unless_somebody_looks(fixed, calls):
    torch.manual_seed(0)
    branches, options = [torch.nn.Tanh() for _ in range(3)], {"streams": 5, "active": 3, "fixed": fixed}
    stack = Stack(branches, SparseHyperConnection, dim=6, **options).double()
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    x = torch.randn(2, 5, 6, dtype=torch.float64)

    def step():
        return [stack(x).detach(), *torch.autograd.grad(stack(x).square().sum(), list(stack.parameters()))]

    got = step()
    assert len(calls) == (12 if _kernels._FOUND else 0)  # of all streams, and of the active ones
    with plain_operations():
        torch.testing.assert_close(got, step(), rtol=1e-9, atol=1e-11)
    connection = stack[1].connection
    seen = []
    connection.coefficients = lambda state: seen.append(1) or type(connection).coefficients(connection, state)
    torch.testing.assert_close(got, step(), rtol=1e-9, atol=1e-11)
    assert seen


@pytest.mark.filterwarnings("ignore:var_mean")  # of no tokens
@pytest.mark.parametrize("leading", [(0,), (2, 0), (), (3,)], ids=str)
@pytest.mark.parametrize("fixed", [0, 2, 3])
def test_no_tokens_and_no_scores_are_read_as_by_plain_operations(leading, fixed):
    torch.manual_seed(0)
    connection = SparseHyperConnection(6, streams=3, active=3, fixed=fixed).double()
    state = torch.randn(*leading, 3, 6, dtype=torch.float64, requires_grad=True)

    def step():
        new = connection.advance(state, torch.nn.Tanh())
        return [new.detach(), *torch.autograd.grad(new.sin().sum(), [state, *connection.parameters()])]

    got = step()
    with plain_operations():
        torch.testing.assert_close(got, step(), rtol=1e-9, atol=1e-11)
