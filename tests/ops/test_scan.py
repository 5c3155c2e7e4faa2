"""The linear scan against its reference: values, derivatives, precision, long sequences, the dispatcher, bad input."""

import math
import sys
import warnings

import pytest
import torch
import torch._dynamo.testing
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch.autograd import gradcheck, gradgradcheck

from levada._errors import UsageError
from levada.ops import _define, linear_scan
from levada.ops.scan import cpu, reference

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
SHAPES = [(1,), (3, 0), (1, 2), (63, 3), (64, 1), (65, 2, 3), (200, 2)]


def arguments(shape, log=False, dtype=torch.float64, device="cpu"):
    """Gates of either sign, or logarithms of gates below 1; values; an initial state; a cotangent."""
    generator = torch.Generator().manual_seed(0)
    gate, value, cotangent = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    initial = torch.randn(shape[1:], generator=generator, dtype=torch.float64)
    gate = torch.nn.functional.logsigmoid(gate) if log else gate
    return [x.to(device, dtype) for x in (gate, value, initial, cotangent)]


def derivatives(function, tensors, cotangent):
    tensors = [x.detach().requires_grad_() for x in tensors]
    states = function(*tensors)
    return states.detach(), *torch.autograd.grad(states, tensors, cotangent)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_are_the_references(shape, log, device):
    *tensors, cotangent = arguments(shape, log, device=device)
    got = derivatives(lambda a, b, h: linear_scan(a, b, h, log=log), tensors, cotangent)
    expected = derivatives(lambda a, b, h: reference.scan(a, b, h, log), tensors, cotangent)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    # The reference of the backward operation is not made of autograd: it must agree with it too.
    found = reference.scan_backward(cotangent, tensors[0], expected[0], tensors[2], log)
    torch.testing.assert_close(found, expected[1:], rtol=1e-12, atol=1e-12)


def test_a_state_that_is_left_out_is_zero():
    gate, value, initial, _ = arguments((5, 2))
    assert torch.equal(linear_scan(gate, value), linear_scan(gate, value, torch.zeros_like(initial)))


def test_memory_may_be_strided_and_is_not_written_to():
    *tensors, cotangent = arguments((70, 3, 4))
    strided = [x.transpose(-1, -2).contiguous().transpose(-1, -2) for x in tensors]
    wide = cotangent[..., :1].expand_as(cotangent)
    before = [x.clone() for x in strided]
    got = derivatives(linear_scan, strided, wide)
    torch.testing.assert_close(got, derivatives(linear_scan, tensors, wide.contiguous()))
    assert all(map(torch.equal, strided, before))


@pytest.mark.parametrize("log", [False, True])
def test_derivatives_of_first_and_second_order(log):
    *tensors, _ = arguments((5, 2, 2), log)
    tensors = [x.requires_grad_() for x in tensors]

    def function(gate, value, initial):
        return linear_scan(gate, value, initial, log=log)

    options = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
    assert gradcheck(function, tensors, **options)
    assert gradgradcheck(function, tensors, check_fwd_over_rev=True, check_batched_grad=True)
    # The operations by themselves, which compiled code calls.
    assert gradgradcheck(lambda a, b, h: torch.ops.levada.scan(a, b, h, log), tensors)


def test_hessian_and_gradients_by_sample():
    gate, value, initial, _ = arguments((4, 3))

    def loss(gate, value, initial):
        return linear_scan(gate, value, initial).square().sum()

    expected = torch.autograd.functional.hessian(
        lambda a: reference.scan(a, value, initial, False).square().sum(), gate
    )
    torch.testing.assert_close(torch.func.hessian(loss)(gate, value, initial), expected)
    by_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(1, 1, 0), out_dims=1)(gate, value, initial)
    torch.testing.assert_close(by_sample, torch.func.grad(loss)(gate, value, initial))
    shared = torch.func.vmap(linear_scan, in_dims=(None, 0, None))(gate, torch.stack([value, -value]), initial)
    torch.testing.assert_close(shared[1], linear_scan(gate, -value, initial))


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("order", ["ff", "fr", "rf", "rr", "fff", "ffr", "frf", "rff", "frr", "rrf", "rfr", "rrr"])
def test_forward_and_reverse_modes_nest_in_any_order(order, log):
    """The leftmost letter is the outermost mode."""
    gate, value, initial, weight = arguments((4, 2))
    x = torch.cat([gate.sigmoid().flatten(), value.flatten(), initial])

    def derivative(scan):
        def function(x):
            gate, value, initial = x[:8].view(4, 2), x[8:16].view(4, 2), x[16:]
            return (weight * scan(gate.log() if log else gate, value, initial, log=log)).sin().sum()

        for mode in reversed(order):
            function = {"f": torch.func.jacfwd, "r": torch.func.jacrev}[mode](function)
        return function(x)

    torch.testing.assert_close(derivative(linear_scan), derivative(reference.scan), rtol=1e-12, atol=1e-12)


def test_a_derivative_along_one_direction_of_another():
    ones = torch.ones(4, dtype=torch.float64)

    def along(function):
        return lambda x: torch.func.jvp(function, (x,), (ones,))[1]

    # h_4 + ... + h_1 of b = 1 is 4 + 3a + 2a^2 + a^3 where all gates are a.
    second = along(along(lambda x: linear_scan(x, ones).sum()))
    assert second(ones / 2).item() == pytest.approx(7.0, rel=1e-14)
    assert along(second)(ones / 2).item() == pytest.approx(6.0, rel=1e-14)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_the_operations_are_registered_as_torch_expects(log, requires_grad):
    gate, value, initial, cotangent = (x.requires_grad_(requires_grad) for x in arguments((5, 2), log))
    torch.library.opcheck(torch.ops.levada.scan.default, (gate, value, initial, log))
    torch.library.opcheck(torch.ops.levada.scan_backward.default, (cotangent, gate, value, initial, log))


@pytest.mark.parametrize("dynamic", [False, True])
def test_one_operation_each_way_when_compiled(dynamic):
    graphs = []

    def keep(module, inputs):
        graphs.append([str(node.target) for node in module.graph.nodes if "levada" in str(node.target)])
        return make_boxed_func(module)

    torch._dynamo.reset()
    backend = aot_autograd(fw_compiler=keep, bw_compiler=keep)
    compiled = torch.compile(linear_scan, fullgraph=True, backend=backend, dynamic=dynamic)
    *tensors, cotangent = arguments((70, 3))
    got = derivatives(compiled, tensors, cotangent)
    torch.testing.assert_close(got, derivatives(linear_scan, tensors, cotangent))
    assert graphs == [["levada.scan.default"], ["levada.scan_backward.default"]]


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_float32(dtype, log):
    steps = 2_000
    gate, value = torch.full((steps, 2), 0.998), torch.full((steps, 2), 0.01)
    gate = (gate.log() if log else gate).to(dtype)
    tensors = [gate, value.to(dtype), torch.ones(2, dtype=dtype)]
    cotangent = torch.full_like(gate, 0.01)
    got = derivatives(lambda a, b, h: linear_scan(a, b, h, log=log), tensors, cotangent)
    full = [x.double() for x in tensors]
    expected = derivatives(lambda a, b, h: linear_scan(a, b, h, log=log), full, cotangent.double())
    # Rounded once to the type, and states once more before they are multiplied: not 2,000 times.
    for found, exact in zip(got, expected, strict=True):
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), exact, rtol=3 * torch.finfo(dtype).eps, atol=1e-6)


def test_types_promote():
    gate, value, initial, _ = arguments((3, 2), dtype=torch.float32)
    states = linear_scan(gate.bfloat16(), value.bfloat16(), initial)
    assert states.dtype == torch.float32
    assert torch.equal(states, linear_scan(gate.bfloat16().float(), value.bfloat16().float(), initial))


@pytest.mark.parametrize("log", [False, True])
def test_nothing_is_read_that_was_not_written(log):
    """What torch.empty returns is NaN here, and so is the memory around the arguments."""
    *tensors, cotangent = arguments((130, 3), log)
    expected = derivatives(lambda a, b, h: linear_scan(a, b, h, log=log), tensors, cotangent)
    around = [torch.full((x.numel() + 64,), math.nan, dtype=x.dtype) for x in (*tensors, cotangent)]
    inside = [a[32:-32].view_as(x).copy_(x) for a, x in zip(around, (*tensors, cotangent), strict=True)]
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()
        gradients = cpu.scan_backward(inside[3], inside[0], expected[0], inside[2], log)
        got = cpu.scan(inside[0], inside[1], inside[2], log), *gradients
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("decay", [0.5, 1e-2, 1e-4, 1e-6])
def test_100_000_steps_against_float64(decay, log):
    """Positive numbers throughout, so that no relative error can hide behind another or come of cancellation."""
    steps, generator = 100_000, torch.Generator().manual_seed(0)
    gate = -2 * decay * torch.rand(steps, 4, generator=generator)
    tensors = [gate if log else gate.exp(), torch.rand(steps, 4, generator=generator), torch.ones(4)]
    cotangent = torch.rand(steps, 4, generator=generator)

    def function(gate, value, initial):
        return linear_scan(gate, value, initial, log=log)

    got = derivatives(function, tensors, cotangent)
    exact = derivatives(function, [x.double() for x in tensors], cotangent.double())
    for found, truth in zip(got, exact, strict=True):
        error = ((found.double() - truth) / truth).abs().nan_to_num(0.0).max()  # 0 / 0: gates that let nothing pass
        # Rounding adds up like a random walk over the memory, which is at most 1 / decay steps long.
        assert error < (4e-7 if log else 1e-6 + 2e-7 * min(steps, 1 / decay) ** 0.5)


def test_a_memory_of_a_million_steps_needs_the_logarithm():
    steps = 100_000
    log_gate, value = torch.full((steps, 1), -1e-6), torch.full((steps, 1), 1e-6)
    exact = -torch.expm1(-1e-6 * torch.arange(1, steps + 1, dtype=torch.float64)[:, None])  # of the geometric series

    def error(states):
        return ((states.double() - exact) / exact).abs()[-1].item()

    assert error(linear_scan(log_gate, value, log=True)) < 1e-6
    assert error(linear_scan(log_gate.double().exp().float(), value)) > 1e-4


def forgotten(module, log_gate):
    """Return what 4,096 steps leave a state of 1 to lose, and the gradients of its last state."""
    zeros, cotangent = torch.zeros(4096, 1), torch.zeros(4096, 1)
    cotangent[-1] = 1.0
    gate, initial = torch.full((4096, 1), log_gate), torch.ones(1)
    states = module.scan(gate, zeros, initial, True)
    return 1 - states[-1].item(), module.scan_backward(cotangent, gate, states, initial, True)


@pytest.mark.parametrize("module", [cpu, reference], ids=["cpu", "reference"])
def test_logarithms_keep_what_no_float32_gate_can(module):
    lost, (_, by_value, by_initial) = forgotten(module, -1e-8)
    exact = -math.expm1(-4096e-8)
    assert lost == pytest.approx(exact, abs=6e-8)  # of a state that is rounded to float32 in the end
    assert 1 - by_initial.item() == pytest.approx(exact, abs=6e-8)
    assert 1 - by_value[0].item() == pytest.approx(exact, abs=6e-8)


def test_the_reference_runs_where_there_is_no_float64(monkeypatch):
    zeros = torch.zeros

    def refuse(*size, dtype=None, **options):
        if dtype == torch.float64:
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
            )
        return zeros(*size, dtype=dtype, **options)

    reference._has_float64.cache_clear()
    monkeypatch.setattr(torch, "zeros", refuse)
    try:
        lost, gradients = forgotten(reference, -1e-8)
    finally:
        monkeypatch.undo()
        reference._has_float64.cache_clear()
    assert lost == 0.0  # as the documentation says: exp(-1e-8) is 1 there
    assert {x.dtype for x in gradients} == {torch.float32}
    assert gradients[2].item() == 1.0


def test_gates_at_the_ends_of_their_range():
    value = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert linear_scan(torch.zeros(4), value, torch.tensor(9.0)).tolist() == [1, 2, 3, 4]
    assert linear_scan(torch.ones(4), value).tolist() == [1, 3, 6, 10]
    assert linear_scan(-torch.ones(4), value).tolist() == [1, 1, 2, 2]
    assert linear_scan(torch.zeros(4), value, log=True).tolist() == [1, 3, 6, 10]
    never = torch.full((4,), -math.inf)
    gradients = derivatives(lambda a, b: linear_scan(a, b, log=True), [never, value], torch.ones(4))
    assert [x.tolist() for x in gradients] == [[1, 2, 3, 4], [0, 0, 0, 0], [1, 1, 1, 1]]


def test_what_cannot_be_scanned_is_refused():
    x = torch.ones(3, 2)
    cases = [
        ((torch.ones(3, 1), x), {}, r"gate and value must have one shape, got \(3, 1\) and \(3, 2\)"),
        ((torch.ones(0, 2), torch.ones(0, 2)), {}, "a step or more along the first axis"),
        ((torch.tensor(1.0), torch.tensor(1.0)), {}, "a step or more along the first axis"),
        ((x, x, torch.ones(3)), {}, r"initial must have the shape of one step, \(2,\), got \(3,\)"),
        ((x.long(), x), {}, "must be of real floating point, got torch.int64"),
        ((x.cfloat(), x), {}, "must be of real floating point, got torch.complex64"),
        ((x, x.to("meta")), {}, "must be on one device, got cpu and meta"),
    ]
    for tensors, options, words in cases:
        with pytest.raises(UsageError, match=words):
            linear_scan(*tensors, **options)


def test_the_dispatcher_has_a_kernel_for_each_device():
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    for name in ("levada::scan", "levada::scan_backward"):
        assert all(has(name, key) for key in ("CPU", "CUDA", "Meta", "CompositeExplicitAutograd"))
    meta = torch.empty(3, 2, device="meta", requires_grad=True)
    states = linear_scan(meta, meta)
    states.sum().backward()
    assert states.shape == meta.grad.shape == (3, 2)


def test_without_triton_the_reference_runs_and_says_so_once(monkeypatch):
    module = "levada.ops.scan.triton"
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, module, raising=False)
    _define.import_kernels.cache_clear()
    kernel = _define.triton_or_reference(module, "scan", reference.scan)
    tensors = arguments((5, 2))[:3]
    try:
        with pytest.warns(RuntimeWarning, match="'triton', which is not installed: the reference runs"):
            first = kernel(*tensors, False)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            second = kernel(*tensors, False)
    finally:
        _define.import_kernels.cache_clear()
    assert torch.equal(first, reference.scan(*tensors, False))
    assert torch.equal(first, second)


def test_a_graph_leaves_the_number_of_steps_open():
    counted = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(linear_scan, fullgraph=True, backend=counted, dynamic=True)
    for steps in (5, 7, 9, 13):
        gate, value = torch.rand(2, steps, 3)
        torch.testing.assert_close(compiled(gate, value), linear_scan(gate, value))
    assert counted.frame_count == 1


@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)
def test_a_graph_has_as_many_steps_as_are_found():
    """A number that no trace knows is looked at where it is known."""

    def found(mask):
        value = mask.nonzero().float()
        return torch.ops.levada.scan(value, value, value.new_ones(1), False)

    compiled = torch.compile(found, fullgraph=True, backend="eager")
    mask = torch.tensor([True, False, True])
    assert torch.equal(compiled(mask), found(mask))
    with pytest.raises(UsageError, match="a step or more"):
        compiled(~mask & mask)
