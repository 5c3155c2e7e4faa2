"""Reading hyper-connections' streams against the plain formula: values, derivatives, types, the dispatcher."""

import importlib.util

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from levada import HyperConnection, Stack
from levada.ops import _cpu, _kernels, write_streams
from levada.ops._define import plain_operations
from levada.ops.hyper import Parameters, cpu, read_hyper, write_and_read_hyper
from levada.ops.hyper.autograd import READ

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")

EPSILON = 1e-2  # large enough to be seen


def arguments(tokens, n, dim, centred=True, dtype=torch.float64):
    """Return the streams and the parameters; the last is left out where no mean is taken out."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(tokens, n, dim), (n,), (n, n), (n,), (n + 2, dim), (1,), (1,), (dim,), *([(dim,)] if centred else [])]
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    tensors[0] += 0.5  # else the mean is nothing to take out
    tensors[4] *= dim**-0.5
    return [x.to(dtype).requires_grad_() for x in tensors]


def by_formula(state, read, mix, write, projection, mix_scale, write_scale, gain, shift=None):
    """What the connection's own documentation says."""
    if shift is None:
        features = functional.rms_norm(state, gain.shape, gain, EPSILON)
    else:
        features = functional.layer_norm(state, gain.shape, gain, shift, EPSILON)
    said = torch.tanh(features @ projection.mT)
    reads = read + mix_scale * said[..., 0]
    mixes = mix + mix_scale * said[..., 1:-1].transpose(-1, -2)
    return (reads.unsqueeze(-1) * state).sum(-2), reads, mixes, write + write_scale * said[..., -1], state


def fused(state, *own):
    return read_hyper(state, Parameters(*own, *([None] if len(own) == 7 else [])), EPSILON)


def run(function, tensors, which=slice(None)):
    """Return results, and gradients by what arrives at all of them, or some."""
    found = function(*tensors)
    generator = torch.Generator().manual_seed(1)
    by = [torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype) for y in found]
    gradients = torch.autograd.grad(found[which], tensors, by[which], allow_unused=True, materialize_grads=True)
    return [*(y.detach() for y in found), *gradients]


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("sizes", [(1, 2, 1), (5, 3, 7), (71, 4, 33), (3, 16, 2)], ids=str)
@pytest.mark.parametrize("way", ["loops", "reference", "plain"])
def test_values_and_gradients_are_the_formulas(sizes, centred, way, calls, monkeypatch):
    if way == "loops" and not importlib.util.find_spec("numba"):
        pytest.skip("numba is not installed")
    if way == "reference":
        monkeypatch.setattr(cpu, "loops_for", lambda *given: None)
    monkeypatch.setattr(_kernels, "_FOUND", way != "plain")
    monkeypatch.setattr(_cpu, "TOGETHER", 20 * sizes[1] * sizes[2])  # tokens by twenties, and what is over
    tensors = arguments(*sizes, centred)
    torch.testing.assert_close(run(fused, tensors), run(by_formula, tensors), rtol=1e-9, atol=1e-11)
    assert len(calls) == (way != "plain")


def test_a_mean_far_from_zero_costs_a_digit_of_seven():
    """Products are of streams as they are, and the norm follows; its variance is that of what is over the mean."""
    tensors = arguments(20, 4, 64, dtype=torch.float32)
    with torch.no_grad():
        tensors[0] += 100
    truth = run(by_formula, [x.detach().double().requires_grad_() for x in tensors])
    for found, expected in zip(run(fused, tensors), truth, strict=True):
        assert (found.double() - expected).norm() < 3e-5 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_streams_are_added_up_in_float32(dtype):
    tensors = arguments(6, 4, 16, dtype=torch.float32)
    tensors[0] = tensors[0].detach().to(dtype).requires_grad_()
    wide = [x.detach().double().requires_grad_() for x in tensors]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = run(fused, tensors)
    assert [x.dtype for x in got] == [dtype, *[torch.float32] * 3, dtype, dtype, *[torch.float32] * 8]
    for found, truth in zip(got, run(by_formula, wide), strict=True):
        # The cotangents are rounded as well, to the type of what they belong to.
        assert (found.double() - truth).norm() <= 4 * torch.finfo(dtype).eps * truth.norm()


def test_threads_checkpoints_and_autocast_change_nothing():
    tensors = arguments(600, 4, 40, dtype=torch.float32)
    expected = run(fused, tensors)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with torch.autocast("cpu", torch.bfloat16):
            got = run(lambda *given: checkpoint(fused, *given, use_reentrant=False), tensors)
    finally:
        torch.set_num_threads(before)
    for found, truth in zip(got, expected, strict=True):  # products by other numbers of tokens
        assert (found - truth).norm() < 1e-5 * truth.norm()


def test_memory_may_be_strided_and_leading_axes_are_kept():
    tensors = arguments(6, 4, 5)
    strided = [x.detach().transpose(0, -1).contiguous().transpose(0, -1).requires_grad_() for x in tensors]
    torch.testing.assert_close(run(fused, strided), run(by_formula, tensors))
    got = fused(tensors[0].view(2, 3, 4, 5), *tensors[1:])
    assert [tuple(y.shape) for y in got] == [(2, 3, 5), (2, 3, 4), (2, 3, 4, 4), (2, 3, 4), (2, 3, 4, 5)]
    torch.testing.assert_close(got[0].view(6, 5), by_formula(*tensors)[0])
    assert fused(tensors[0][:0], *tensors[1:])[0].shape == (0, 5)


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_the_connection_reads_by_it_unless_somebody_looks(norm, calls):
    pytest.importorskip("numba")
    connection = HyperConnection(6, streams=3, axis=1, norm=norm).double()
    with torch.no_grad():
        for parameter in connection.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    state = torch.randn(2, 5, 3, 6, dtype=torch.float64, requires_grad=True)

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
    loops = pytest.importorskip("levada.ops.hyper.loops")
    found = []

    def counted(module, name):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given: found.append((module, name)) or real(*given))

    for module, names in ((cpu, ("read", "read_backward")), (loops, ("read_at", "read_backward_at"))):
        for name in names:
            counted(module, name)
    refused = lambda *given: pytest.fail("the dispatcher was asked")  # noqa: E731
    monkeypatch.setattr(READ, "operation", refused)
    monkeypatch.setattr(READ, "gradient", refused)
    run(fused, arguments(3, 4, 5))
    assert found == [(cpu, "read"), (loops, "read_at"), (cpu, "read_backward"), (loops, "read_backward_at")]


def test_a_stack_compiles_whole():
    stack = Stack([torch.nn.Tanh() for _ in range(2)], HyperConnection, dim=4, streams=2)
    x = torch.randn(3, 4)
    torch.testing.assert_close(torch.compile(stack, fullgraph=True, backend="aot_eager")(x), stack(x))


def written(state, *own):
    """Return the streams, an output and coefficients of a layer before, and the parameters."""
    generator = torch.Generator().manual_seed(2)
    *leading, n, dim = state.shape
    shapes = [(*leading, dim), (*leading, n), (*leading, n, n)]
    return [state, *(torch.randn(s, generator=generator, dtype=state.dtype).requires_grad_() for s in shapes), *own]


def in_one(state, out, weights, mix, *own):
    return write_and_read_hyper(state, out, weights, mix, Parameters(*own, *([None] if len(own) == 7 else [])), EPSILON)


def in_two(state, out, weights, mix, *own):
    return fused(write_streams(state, out, weights, mix), *own)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("leading", [(5,), (2, 3), ()], ids=str)
def test_written_and_read_as_one_node_they_are_the_two_operations(leading, centred, joined):
    state, *own = arguments(6, 3, 4, centred)
    state = torch.randn(*leading, 3, 4, dtype=torch.float64, requires_grad=True)
    tensors = written(state, *own)
    for which in (slice(None), *(slice(k, k + 1) for k in range(5))):  # by all results, or one alone
        for got, expected in zip(run(in_one, tensors, which), run(in_two, tensors, which), strict=True):
            assert torch.equal(got, expected)
    assert len(joined) == 6


def test_as_one_node_they_have_derivatives_of_first_and_second_order(joined):
    tensors = written(*arguments(2, 2, 3))
    assert gradcheck(in_one, tensors, check_batched_grad=True, check_forward_ad=True)
    assert gradgradcheck(in_one, tensors)
    assert joined


def test_who_looks_or_transforms_gets_the_two_operations(joined):
    tensors = [x.detach() for x in written(*arguments(3, 4, 5))]
    expected = in_two(*tensors)
    with plain_operations():
        torch.testing.assert_close(in_one(*tensors), expected)
    torch.func.grad(lambda *given: in_one(*given)[0].sum())(*tensors)
    narrow = [x.float() if k == 1 else x for k, x in enumerate(tensors)]
    torch.testing.assert_close(in_one(*narrow), in_two(*narrow))
    assert not joined
    in_one(*tensors)
    assert len(joined) == 1
