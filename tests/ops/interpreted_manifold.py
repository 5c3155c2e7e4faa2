"""The Triton kernels that read streams, interpreted on a CPU: run by test_triton.py with TRITON_INTERPRET=1."""

import math

import numpy as np
import pytest
import torch
import triton.language as tl
from tests.ops.differences import relative_errors
from tests.ops.test_manifold import FORMS, arguments
from triton.runtime import interpreter

from levada import ManifoldHyperConnection, Stack
from levada.ops._device import past_limit
from levada.ops.manifold import reference
from levada.ops.manifold import triton as kernels
from levada.ops.manifold.ahead import autograd as registered
from levada.ops.manifold.ahead import reference as one_pass
from levada.ops.manifold.ahead import triton as ahead
from levada.ops.manifold.products import triton as products
from levada.ops.sinkhorn.reference import steps_at_once
from levada.ops.streams import reference as streams


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setitem(kernels.LIMIT, "rows", 1000)
    monkeypatch.setitem(products.PROJECT, "tile", 16)
    monkeypatch.setitem(products.PROJECT, "bytes", 32)
    monkeypatch.setitem(kernels.READ, "block", 16)
    monkeypatch.setitem(kernels.READ, "elements", 32)
    monkeypatch.setitem(kernels.BY_READS, "elements", 64)
    monkeypatch.setitem(products.BY_STATE, "tile", 16)
    monkeypatch.setitem(products.BY_STATE, "block", 32)
    monkeypatch.setitem(ahead.AHEAD, "tile", 16)
    monkeypatch.setitem(ahead.AHEAD, "bytes", 64)


@pytest.fixture(autouse=True)
def products_of_bfloat16(monkeypatch):
    """The interpreter keeps bfloat16 as integers of 16 bits, and multiplies these."""
    product = interpreter.InterpreterBuilder.create_dot

    def widened(x):
        if x.dtype.scalar != tl.bfloat16:
            return x
        return interpreter.TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def create_dot(self, a, b, *others):
        return product(self, widened(a), widened(b), *others)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


def given(tokens, n, dim, form, dtype=torch.float32):
    """Return the arguments, and gradients that arrive at each result."""
    state, *parameters = (x.detach() for x in arguments(tokens, n, dim, form, torch.float32))
    generator = torch.Generator().manual_seed(1)
    shapes = [(tokens, dim), (tokens, n), (tokens, n), (tokens, n if form.mixes else 0, n), (tokens, n, dim)]
    by = [torch.randn(shape, generator=generator) for shape in shapes]
    return [state.to(dtype), *parameters], [by[0].to(dtype), *by[1:4], by[4].to(dtype)]


def both_ways(module, tensors, by, form):
    function = module.read if module is kernels else module.read_and_keep
    found = function(*tensors, *form)
    return *found, *module.read_backward(*by, *tensors, *found[4:], *form)


def doubled(tensors):
    return [x if x is None else x.double() for x in tensors]


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("sizes", [(1, 2, 1), (3, 3, 37), (18, 4, 16), (1, 7, 20)], ids=str)
def test_values_and_gradients_are_the_references(sizes, form):
    tensors, by = given(*sizes, form)
    expected = both_ways(reference, doubled(tensors), doubled(by), form)
    assert max(relative_errors(both_ways(kernels, tensors, by, form), expected)) < 1e-6


@pytest.mark.parametrize("form", [FORMS["paper"], FORMS["identity"]], ids=["paper", "identity"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_with_narrow_streams_lose_nothing(dtype, form):
    tensors, by = given(5, 4, 20, form, dtype)
    got = both_ways(kernels, tensors, by, form)
    assert [x.dtype for x in got] == [dtype, *[torch.float32] * 5, dtype, *[torch.float32] * 3]
    found = relative_errors(got, both_ways(reference, doubled(tensors), doubled(by), form))
    # The interpreter cuts what it should round: twice the error in bfloat16.
    assert max(found[0], found[6]) < torch.finfo(dtype).eps
    assert max(found[1:6] + found[7:]) < 2e-5


@pytest.mark.parametrize("left_out", [1, 4])
def test_gradients_may_be_left_out(left_out):
    form = FORMS["paper"]
    tensors, by = given(3, 4, 20, form)
    by[left_out] = None
    expected = both_ways(reference, doubled(tensors), doubled(by), form)
    assert max(relative_errors(both_ways(kernels, tensors, by, form), expected)) < 1e-6


@pytest.mark.parametrize(("n", "rows"), [(4, 16), (16, 128)])
def test_rows_of_weights_may_be_taken_in_groups(n, rows, monkeypatch):
    monkeypatch.setitem(products.PROJECT, "rows", rows)
    monkeypatch.setitem(products.BY_STATE, "rows", rows)
    form = FORMS["few"]
    for dtype in (torch.float32, torch.bfloat16):
        tensors, by = given(2, n, 5, form, dtype)
        plan = products.plan_of(2, 5 * n, 2 * len(tensors[1]), dtype)
        assert plan["programs"] > 1
        found = relative_errors(
            both_ways(kernels, tensors, by, form), both_ways(reference, doubled(tensors), doubled(by), form)
        )
        assert max(found) < (1e-6 if dtype == torch.float32 else 8e-3)


def test_parts_of_channels_and_of_tokens_are_added_up(monkeypatch):
    form = FORMS["few"]
    tensors, by = given(33, 4, 64, form)
    assert products.plan_of(33, 256, 24, torch.float32)["parts"] > 1
    assert products.plan_of_state(33, 4, 64, 24, torch.float32)["parts"] > 1
    expected = both_ways(reference, doubled(tensors), doubled(by), form)
    assert max(relative_errors(both_ways(kernels, tensors, by, form), expected)) < 1e-6


def test_logits_of_any_size():
    form = FORMS["paper"]
    tensors, by = given(3, 4, 8, form)
    tensors[3][8:] *= 60
    expected = both_ways(reference, doubled(tensors), doubled(by), form)
    for found, truth in zip(both_ways(kernels, tensors, by, form), expected, strict=True):
        assert (found - truth).abs().max() <= 2e-4 * truth.abs().max()


def test_entries_that_float32_loses_may_come_to_be_the_largest():
    """One row shares four columns and four rows one column: all others grow 16-fold each iteration."""
    form = FORMS["paper"]._replace(iterations=42)
    assert form.iterations > steps_at_once(5, torch.float32)
    tensors, by = given(2, 5, 3, form)
    logits = torch.full((5, 5), -105.0)
    logits[0, :4] = logits[1:, 4] = 0.0
    assert not logits[0, 4].exp()
    tensors[3][10:], tensors[2][2] = logits.flatten(), 0.01
    expected = both_ways(reference, doubled(tensors), doubled(by), form)
    assert expected[3][:, 1:, :4].min() > 0.1
    assert max(relative_errors(both_ways(kernels, tensors, by, form), expected)) < 1e-5


def test_weights_rounded_to_16_bits_would_cancel():
    """Two weights that differ by less than bfloat16 tells apart, of features with opposite gradients."""
    form = FORMS["identity"]
    tensors, by = given(2, 2, 5, form, torch.bfloat16)
    by = [torch.zeros_like(by[0]), None, torch.tensor([[1.0, -1.0]]).expand(2, 2), by[3], None]
    tensors[0][:, 0, 0], tensors[3][2:] = 0.0, 0.5
    tensors[1][2] = tensors[1][3]
    tensors[1][2:, 0] = torch.tensor([1 + 2**-9, 1.0])
    expected = both_ways(reference, doubled(tensors), doubled(by), form)[6][:, 0, 0]
    assert expected.all()
    got = both_ways(kernels, tensors, by, form)[6][:, 0, 0]
    torch.testing.assert_close(got.double(), expected, rtol=0.02, atol=0.0)


@pytest.mark.parametrize(("size", "most"), [(1e-2, 2e-7), (1e-4, 3e-7), (1e-6, 2e-5)])
def test_small_weights_lose_nothing_in_float16(size, most):
    """Of 1e-6 the rounding in float16, which has multiples of 6e-8, is 2e-2."""
    tensors, by = given(6, 4, 64, FORMS["few"], torch.float16)
    tensors[1] *= size * (4 * 64) ** 0.5
    expected = reference.read_and_keep(*doubled(tensors), *FORMS["few"])[4]
    assert relative_errors([kernels.read(*tensors, *FORMS["few"])[4]], [expected])[0] < most
    _, sums = ahead.write_and_project(tensors[0], by[0], torch.zeros(6, 4), None, tensors[1])
    features, truth = sums.sum(0)[:, :-1], doubled(tensors)[0].flatten(1) @ tensors[1].double().T
    assert relative_errors([features], [truth])[0] < most


def test_nothing_is_read_that_was_not_written():
    """What torch.empty returns is NaN here, and so is the memory around the arguments."""
    form = FORMS["released"]
    tensors, by = given(3, 3, 21, form)
    expected = both_ways(reference, doubled(tensors), doubled(by), form)
    around = [torch.full((x.numel() + 256,), math.nan, dtype=x.dtype) for x in [*tensors, *by]]
    inside = [a[128:-128].view_as(x).copy_(x) for a, x in zip(around, [*tensors, *by], strict=True)]
    torch.use_deterministic_algorithms(True)
    try:
        got = both_ways(kernels, inside[:4], inside[4:], form)
    finally:
        torch.use_deterministic_algorithms(False)
    assert max(relative_errors(got, expected)) < 1e-6


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter
def test_nan_stays_in_its_token():
    form = FORMS["few"]
    tensors, _ = given(4, 4, 20, form)
    tensors[0][1, 2, 3] = torch.nan
    for y in kernels.read(*tensors, *form):
        assert y.reshape(4, -1).isnan().any(-1).tolist() == [False, True, False, False]


def test_what_is_past_the_kernels_limits_goes_to_the_reference_with_a_word():
    form = FORMS["few"]._replace(iterations=kernels._MOST_ITERATIONS + 1)
    tensors, by = given(2, 3, 5, form)
    past_limit.cache_clear()
    with pytest.warns(RuntimeWarning, match="3 streams mixed by 65 iterations"):
        got = both_ways(kernels, tensors, by, form)
    torch.testing.assert_close(got, both_ways(reference, tensors, by, form))


def test_no_tokens():
    form = FORMS["paper"]
    tensors, by = given(0, 4, 5, form)
    got = both_ways(kernels, tensors, by, form)
    assert [tuple(x.shape) for x in got[:6]] == [(0, 5), (0, 4), (0, 4), (0, 4, 4), (0, 24), (0,)]
    assert not any(x.any() for x in got[7:])


@pytest.mark.parametrize("form", [FORMS["few"], FORMS["identity"]], ids=["few", "identity"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [(1, 2, 1), (18, 4, 140), (2, 5, 20), (0, 4, 5)], ids=str)
def test_what_is_written_may_be_projected_on_the_way(sizes, dtype, form):
    tensors, by = given(*sizes, form, dtype)
    weights, mix = by[2], by[3] if form.mixes else None
    new, sums = ahead.write_and_project(tensors[0], by[0], weights, mix, tensors[1])
    expected = streams.write(*doubled([tensors[0], by[0], weights, mix]))
    assert relative_errors([new], [expected])[0] < torch.finfo(dtype).eps
    got = kernels.read_projected(new, sums, *tensors[2:], form)
    found = relative_errors(got, reference.read_and_keep(*doubled([new, *tensors[1:]]), *form))
    assert found[0] < torch.finfo(dtype).eps
    assert max(found[1:]) < (1e-6 if dtype == torch.float32 else 2e-5)
    assert sizes != (18, 4, 140) or len(sums) > 1


@pytest.mark.parametrize("form", [FORMS["few"], FORMS["identity"]], ids=["few", "identity"])
@pytest.mark.parametrize(
    ("dtype", "of_out"), [(torch.float32,) * 2, (torch.bfloat16,) * 2, (torch.float32, torch.bfloat16)]
)
def test_values_and_gradients_of_one_pass_are_the_references(dtype, of_out, form):
    tensors, by = given(5, 4, 20, form, dtype)
    state, *parameters = tensors
    out, weights, mix = torch.randn(5, 20).to(of_out), torch.rand(5, 4), torch.rand(5, 4, 4) if form.mixes else None

    def both(module, x):
        state, out, weights, mix, *others = x[:7]
        new, *found = module.write_and_read(state, out, weights, mix, *others, *form)
        kept = (state, out, weights, mix, new, *others, *found[-2:])
        return [new, *found, *module.write_and_read_backward(*x[7:], *kept, *form)]

    arguments = [state, out, weights, mix, *parameters, by[4], *by[:4]]
    got, expected = both(ahead, arguments), both(one_pass, doubled(arguments))
    assert [x.dtype for x in got[7:9]] == [dtype, of_out]
    found = relative_errors([x for x in got if x.numel()], [x for x in expected if x.numel()])
    assert max(found) < (2e-6 if dtype == of_out == torch.float32 else 2 * torch.finfo(torch.bfloat16).eps)


def test_layers_of_a_stack_are_joined_by_it(monkeypatch):
    """What a GPU runs for a stack: every state between two layers is written and read by these kernels."""
    calls, back = [], []

    def write_and_read(*given):
        calls.append(len(given))
        return ahead.write_and_read(*given)

    def backward(*given):
        back.append(len(given))
        return ahead.write_and_read_backward(*given)

    torch.manual_seed(0)
    stack = Stack([torch.nn.Tanh() for _ in range(3)], ManifoldHyperConnection, dim=6, iterations=2)
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    x = torch.randn(4, 6)

    def run():
        return stack(x).detach(), *torch.autograd.grad(stack(x).square().sum(), list(stack.parameters()))

    expected = run()
    monkeypatch.setattr(registered, "_PASS", write_and_read)
    monkeypatch.setattr(registered.cpu, "write_and_read", write_and_read)
    monkeypatch.setattr(registered, "_PASS_BACKWARD", backward)
    monkeypatch.setattr(registered.cpu, "write_and_read_backward", backward)
    got = run()
    assert (len(calls), len(back)) == (4, 2)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
