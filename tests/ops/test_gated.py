"""Reading streams through gates against the plain formula: values, derivatives, types, the dispatcher."""

import importlib.util

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

from levada import GatedResidual, Stack
from levada.connections.gated import GatedRead
from levada.ops import _cpu, _kernels
from levada.ops._define import plain_operations
from levada.ops.gated import cpu, read_gated
from levada.ops.gated.autograd import READ

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")

EPSILON = 1e-2  # large enough to be seen


def arguments(tokens, n, dim, rank, dtype=torch.float64, writes=True):
    """Return the streams and the parameters but the last, which is left out where nothing is written."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(tokens, n, dim), (n, dim), (rank, n * dim), (n * dim, rank), *([(n, n * dim)] if writes else [])]
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [x.to(dtype).requires_grad_() for x in tensors]


def by_formula(state, gain, down, up, projection=None):
    """What the connection's own documentation says."""
    n = state.shape[-2]
    r = gain * state * torch.rsqrt(state.square().mean(-1, keepdim=True) + EPSILON)
    gate = torch.sigmoid(torch.nn.functional.silu(r.flatten(-2) @ down.mT / n) @ up.mT).view(state.shape)
    writes = state.new_empty(len(state), 0) if projection is None else 2 * (r.flatten(-2) @ projection.mT / n).sigmoid()
    return (gate * r).mean(-2), writes, state


def fused(state, gain, down, up, projection=None):
    return read_gated(state, gain, down, up, projection, EPSILON)


def run(function, tensors, which=slice(None)):
    """Return results, and gradients by what arrives at all of them, or some."""
    found = function(*tensors)
    generator = torch.Generator().manual_seed(1)
    by = [torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype) for y in found]
    pairs = [(y, g) for y, g in zip(found[which], by[which], strict=True) if y.numel()]
    some, by = zip(*pairs, strict=True)
    gradients = torch.autograd.grad(some, tensors, by, allow_unused=True, materialize_grads=True)
    return [*(y.detach() for y in found), *gradients]


@pytest.mark.parametrize("writes", [True, False])
@pytest.mark.parametrize("sizes", [(1, 2, 1, 1), (5, 3, 7, 2), (71, 4, 33, 5), (3, 16, 2, 40)], ids=str)
@pytest.mark.parametrize("way", ["loops", "reference", "plain"])
def test_values_and_gradients_are_the_formulas(sizes, writes, way, calls, monkeypatch):
    if way == "loops" and not importlib.util.find_spec("numba"):
        pytest.skip("numba is not installed")
    if way == "reference":
        monkeypatch.setattr(cpu, "loops_for", lambda *given: None)
    monkeypatch.setattr(_kernels, "_FOUND", way != "plain")
    monkeypatch.setattr(_cpu, "TOGETHER", 20 * sizes[1] * sizes[2])  # tokens by twenties, and what is over
    tensors = arguments(*sizes, writes=writes)
    torch.testing.assert_close(run(fused, tensors), run(by_formula, tensors), rtol=1e-10, atol=1e-12)
    assert len(calls) == (way != "plain")


def test_a_gradient_may_come_by_one_result_alone():
    for which in range(3):
        tensors = arguments(5, 3, 4, 2)
        place = slice(which, which + 1)
        got, expected = (run(f, tensors, place) for f in (fused, by_formula))
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("writes", [True, False])
def test_derivatives_of_first_and_second_order(writes):
    tensors = arguments(2, 2, 3, 2, writes=writes)
    assert gradcheck(fused, tensors, check_batched_grad=True, check_forward_ad=True)
    assert gradgradcheck(fused, tensors)


@pytest.mark.parametrize("writes", [True, False])
def test_the_dispatcher_knows_it(writes):
    tensors = [*arguments(3, 4, 5, 2, writes=writes), *([] if writes else [None])]
    torch.library.opcheck(torch.ops.levada.streams_read_gated.default, (*tensors, EPSILON))
    given = [x if x is None else x.detach() for x in tensors]
    x, weights, *kept = torch.ops.levada.streams_read_gated(*given, EPSILON)
    for by_new in (None, torch.ones_like(given[0])):
        by = x, weights, by_new
        torch.library.opcheck(torch.ops.levada.streams_read_gated_backward.default, (*by, *given, *kept, EPSILON))


def test_it_compiles_whole():
    tensors = arguments(3, 4, 5, 2)
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(run(compiled, tensors), run(by_formula, tensors), rtol=1e-10, atol=1e-12)


def test_vmap_of_the_operation_and_of_its_gradients(calls):
    batch = [torch.stack([x.detach(), 1.1 * x.detach()]) for x in arguments(3, 4, 5, 2)]

    def operation(*tensors):
        return torch.ops.levada.streams_read_gated(*tensors, EPSILON)[:2]

    def gradients(*tensors):
        total = lambda *tensors: sum(y.square().sum() for y in fused(*tensors))  # noqa: E731
        return torch.func.grad(total, argnums=(0, 1, 2, 3, 4))(*tensors)

    for function in (operation, gradients):
        got = torch.vmap(function)(*batch)
        expected = [torch.stack(y) for y in zip(*(function(*one) for one in zip(*batch, strict=True)), strict=True)]
        torch.testing.assert_close(list(got), expected)
    assert not calls  # transforms get plain operations


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_streams_are_added_up_in_float32(dtype):
    tensors = arguments(6, 4, 16, 3, torch.float32)
    tensors[0] = tensors[0].detach().to(dtype).requires_grad_()
    wide = [x.detach().double().requires_grad_() for x in tensors]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = run(fused, tensors)
    assert [x.dtype for x in got] == [dtype, torch.float32, dtype, dtype, *[torch.float32] * 4]
    for found, truth in zip(got, run(by_formula, wide), strict=True):
        # The cotangents are rounded as well, to the type of what they belong to.
        assert (found.double() - truth).norm() <= 4 * torch.finfo(dtype).eps * truth.norm()


def test_threads_checkpoints_and_autocast_change_nothing():
    tensors = arguments(300, 4, 40, 5, torch.float32)
    expected = run(fused, tensors)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with torch.autocast("cpu", torch.bfloat16):
            got = run(lambda *given: checkpoint(fused, *given, use_reentrant=False), tensors)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(got, expected)


def test_memory_may_be_strided_and_leading_axes_are_kept():
    tensors = arguments(6, 4, 5, 2)
    strided = [x.detach().transpose(0, -1).contiguous().transpose(0, -1).requires_grad_() for x in tensors]
    torch.testing.assert_close(run(fused, strided), run(by_formula, tensors))
    got = fused(tensors[0].view(2, 3, 4, 5), *tensors[1:])
    assert [tuple(y.shape) for y in got] == [(2, 3, 5), (2, 3, 4), (2, 3, 4, 5)]
    torch.testing.assert_close(got[0].view(6, 5), by_formula(*tensors)[0])
    assert fused(tensors[0][:0], *tensors[1:])[0].shape == (0, 5)


def test_gradients_of_the_gain_that_cancel_over_many_tokens():
    tensors = arguments(4096, 4, 16, 2, torch.float32)
    wide = [x.detach().double().requires_grad_() for x in tensors]
    got, expected = run(fused, tensors)[4], run(by_formula, wide)[4]
    assert (got.double() - expected).norm() < 6e-7 * expected.norm()


def test_the_connection_reads_by_it_unless_somebody_looks(calls):
    pytest.importorskip("numba")
    connection = GatedResidual(6, streams=3, rank=2, axis=1).double()
    state = connection.begin(torch.randn(2, 6, 5, dtype=torch.float64)) + torch.randn(2, 5, 3, 6, dtype=torch.float64)
    state.requires_grad_()

    def step():
        new = connection.advance(state, torch.nn.Tanh())
        return [new.detach(), *torch.autograd.grad(new.square().sum(), [state, *connection.parameters()])]

    got = step()
    assert len(calls) == 1
    with plain_operations():
        expected = step()
    seen = []
    connection.coefficients = lambda state: seen.append(1) or type(connection).coefficients(connection, state)
    torch.testing.assert_close(step(), expected, rtol=1e-10, atol=1e-12)
    assert len(calls) == 1
    assert seen
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def test_kernels_are_called_without_the_dispatcher_and_take_their_loops(monkeypatch):
    loops = pytest.importorskip("levada.ops.gated.loops")
    found = []

    def counted(module, name):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given: found.append(name) or real(*given))

    for name in ("read", "read_backward"):
        counted(cpu, name)
    for name in ("average", "by_streams"):
        counted(loops, name)
    refused = lambda *given: pytest.fail("the dispatcher was asked")  # noqa: E731
    monkeypatch.setattr(READ, "operation", refused)
    monkeypatch.setattr(READ, "gradient", refused)
    run(fused, arguments(3, 4, 5, 2))
    assert found == ["read", "average", "read_backward", "by_streams"]


def test_what_follows_the_last_layer_reads_by_it_too(calls):
    pytest.importorskip("numba")
    head = GatedRead(6, streams=3, rank=2, axis=1).double()
    state = torch.randn(2, 5, 3, 6, dtype=torch.float64)
    torch.testing.assert_close(head(state), (head.weights(state)[0] * state).sum(-2).movedim(-1, 1))
    assert len(calls) == 1


def test_a_stack_compiles_whole():
    stack = Stack([torch.nn.Tanh() for _ in range(2)], GatedResidual, dim=4, streams=2, rank=1)
    x = torch.randn(3, 4)
    torch.testing.assert_close(torch.compile(stack, fullgraph=True, backend="aot_eager")(x), stack(x))
