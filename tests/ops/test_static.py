"""Reading streams by weights of all tokens against the plain formula: values, derivatives, types, the dispatcher."""

import importlib.util
import math

import pytest
import torch
from tests.ops.test_hyper import run
from torch.autograd import gradcheck, gradgradcheck

from levada import HyperConnection, Stack
from levada.ops import _kernels, write_streams
from levada.ops._define import plain_operations
from levada.ops.hyper.static import cpu, read_static, write_and_read_static


def arguments(tokens, n, dim, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = [(tokens, n, dim), (n,)]
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


def by_formula(state, read):
    return torch.einsum("j,...jc->...c", read, state), state


@pytest.mark.parametrize("sizes", [(1, 2, 1), (5, 3, 7), (71, 4, 33), (3, 16, 2), (0, 4, 3)], ids=str)
@pytest.mark.parametrize("way", ["loops", "reference", "plain"])
def test_values_and_gradients_are_the_formulas(sizes, way, calls, monkeypatch):
    if way == "loops" and not importlib.util.find_spec("numba"):
        pytest.skip("numba is not installed")
    if way == "reference":
        monkeypatch.setattr(cpu, "loops_for", lambda *given: None)
    monkeypatch.setattr(_kernels, "_FOUND", way != "plain")
    tensors = arguments(*sizes)
    for which in (slice(None), slice(0, 1), slice(1, 2)):  # by both results, or one alone
        got, expected = run(read_static, tensors, which), run(by_formula, tensors, which)
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    assert len(calls) == 3 * (way != "plain")


def test_derivatives_of_first_and_second_order():
    tensors = arguments(2, 3, 2)
    assert gradcheck(read_static, tensors, check_batched_grad=True, check_forward_ad=True)
    assert gradgradcheck(read_static, tensors)


def test_the_dispatcher_knows_it():
    tensors = arguments(3, 4, 5)
    operations = torch.ops.levada
    torch.library.opcheck(operations.streams_read_static.default, tensors)
    state, read = (x.detach() for x in tensors)
    for by_new in (None, torch.ones_like(state)):
        given = torch.ones(3, 5, dtype=torch.float64), by_new, state, read
        torch.library.opcheck(operations.streams_read_static_backward.default, given)
    many = torch.stack([state, 2 * state])
    got = torch.vmap(operations.streams_read_static, in_dims=(0, None))(many, read)
    torch.testing.assert_close(got, by_formula(many, read)[0])


def test_it_compiles_whole():
    tensors = arguments(3, 4, 5)
    compiled = torch.compile(read_static, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(run(compiled, tensors), run(by_formula, tensors))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_streams_are_added_up_in_float32(dtype):
    tensors = arguments(6, 4, 16, dtype=torch.float32)
    tensors[0] = tensors[0].detach().to(dtype).requires_grad_()
    wide = [x.detach().double().requires_grad_() for x in tensors]
    got = run(read_static, tensors)
    assert [x.dtype for x in got] == [dtype, dtype, dtype, torch.float32]
    expected = run(by_formula, wide)
    # Rounded once, at the end.
    assert ((got[0].double() - expected[0]).abs() <= 0.51 * torch.finfo(dtype).eps * expected[0].abs() + 1e-6).all()
    for found, truth in zip(got, expected, strict=True):
        assert (found.double() - truth).norm() <= 4 * torch.finfo(dtype).eps * truth.norm()


def test_sums_over_many_tokens_lose_nothing():
    """One after the other in float32, they would lose two digits of seven."""
    tensors = arguments(2**15, 2, 4, dtype=torch.float32)
    truth = run(by_formula, [x.detach().double().requires_grad_() for x in tensors])
    for found, expected in zip(run(read_static, tensors), truth, strict=True):
        assert (found.double() - expected).norm() < 2e-7 * expected.norm()


@pytest.mark.parametrize("n", [3, 4])
def test_a_weight_that_is_not_finite_spoils_no_gradient_of_weights(n):
    state, weights = (x.detach().requires_grad_() for x in arguments(3, n, 5))
    with torch.no_grad():
        weights[1] = math.nan
    read_static(state, weights)[0].sum().backward()
    assert torch.allclose(weights.grad, state.detach().sum((0, 2)))


def written(leading, n, dim, each):
    """Return the streams, an output, coefficients of each token or of all, and the next layer's weights."""
    generator = torch.Generator().manual_seed(2)
    own = leading if each else ()
    shapes = [(*leading, n, dim), (*leading, dim), (*own, n), (*own, n, n), (n,)]
    return [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]


def in_two(state, out, weights, mix, read):
    return by_formula(write_streams(state, out, weights, mix), read)


@pytest.mark.parametrize("each", [True, False])
@pytest.mark.parametrize("leading", [(5,), (2, 3), ()], ids=str)
def test_written_and_read_as_one_node_they_are_the_two_operations(leading, each, joined):
    tensors = written(leading, 3, 4, each)
    torch.testing.assert_close(run(write_and_read_static, tensors), run(in_two, tensors), rtol=1e-12, atol=1e-12)
    assert joined
    assert gradgradcheck(write_and_read_static, written(leading[:1], 2, 2, each))


def test_coefficients_of_all_tokens_are_not_copied(monkeypatch):
    loops = pytest.importorskip("levada.ops.streams.loops")
    found = []
    real = loops.over_tokens
    monkeypatch.setattr(loops, "over_tokens", lambda f, given, *o: found.append(given[2:4]) or real(f, given, *o))
    state, out, weights, mix, _ = (x.detach() for x in written((2, 3), 3, 4, each=False))
    write_streams(state, out, weights, mix)
    assert [x.stride(0) for x in found[0]] == [0, 0]
    write_streams(state, out, weights.expand(2, 3, 3).clone(), mix)
    assert [x.stride(0) for x in found[1]] == [3, 0]


def test_the_connection_reads_by_it_unless_somebody_looks(calls, joined):
    torch.manual_seed(0)
    stack = Stack([torch.nn.Tanh() for _ in range(3)], HyperConnection, dim=6, streams=3, dynamic=False).double()
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    x = torch.randn(2, 5, 6, dtype=torch.float64)

    def step():
        return [stack(x).detach(), *torch.autograd.grad(stack(x).square().sum(), list(stack.parameters()))]

    got = step()
    assert (len(calls), len(joined)) == (2, 4)
    with plain_operations():
        torch.testing.assert_close(got, step(), rtol=1e-10, atol=1e-12)
    assert (len(calls), len(joined)) == (2, 4)
