"""The Triton kernels of the scan, interpreted on a CPU: run by test_triton.py with TRITON_INTERPRET=1.

Tiles are small, so that a few steps take several levels of them, and an element costs the interpreter a millisecond.
"""

import math

import pytest
import torch
from tests.ops.test_scan import arguments

from levada.ops.scan import reference
from levada.ops.scan import triton as kernels


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(kernels, "_STEPS", 4)
    monkeypatch.setattr(kernels, "_WIDTH", 4)


def both_ways(module, gate, value, initial, cotangent, log):
    states = module.scan(gate, value, initial, log)
    return states, *module.scan_backward(cotangent, gate, states, initial, log)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1,), (3, 0), (4, 4), (6, 5), (21, 1, 2)], ids=str)
def test_values_and_gradients_are_the_references(shape, dtype, log):
    tensors = arguments(shape, log, dtype)
    expected = both_ways(reference, *[x.double() for x in tensors], log)
    tolerance = 2e-6 if dtype == torch.float32 else 1e-13
    got = both_ways(kernels, *tensors, log)
    assert {x.dtype for x in got} == {dtype}
    for found, truth in zip(got, expected, strict=True):
        error = (found.double() - truth).norm() / truth.norm() if truth.numel() else 0.0
        assert error < tolerance


@pytest.mark.parametrize("log", [False, True])
def test_low_precision_is_computed_in_float32(log):
    gate = torch.full((40, 1), 0.998)
    tensors = [gate.log() if log else gate, torch.full((40, 1), 0.01), torch.ones(1), torch.full((40, 1), 0.01)]
    low = [x.half() for x in tensors]
    expected = both_ways(reference, *[x.double() for x in low], log)
    got = both_ways(kernels, *low, log)
    assert {x.dtype for x in got} == {torch.float16}
    torch.testing.assert_close([x.double() for x in got], list(expected), rtol=3e-3, atol=1e-6)


@pytest.mark.parametrize("log", [False, True])
def test_nothing_is_read_that_was_not_written(log):
    """What torch.empty returns is NaN here, and so is the memory around the arguments."""
    tensors = arguments((18, 3), log)
    expected = both_ways(reference, *tensors, log)
    around = [torch.full((x.numel() + 64,), math.nan, dtype=x.dtype) for x in tensors]
    inside = [a[32:-32].view_as(x).copy_(x) for a, x in zip(around, tensors, strict=True)]
    torch.use_deterministic_algorithms(True)
    try:
        got = both_ways(kernels, *inside, log)
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_strided_memory():
    gate, value, initial, cotangent = (x.transpose(-1, -2) if x.ndim > 1 else x for x in arguments((6, 9)))
    initial = initial[:6]
    got = both_ways(kernels, gate, value, initial, cotangent, False)
    torch.testing.assert_close(got, both_ways(reference, gate, value, initial, cotangent, False))


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")  # of the interpreter
@pytest.mark.parametrize("log", [False, True])
def test_a_product_of_gates_that_overflows_leaves_a_zero_state_zero(log):
    """Step by step 0 * a stays 0, however large the product of what comes; a closed gate ends it."""
    gate = torch.full((20, 1), 60.0 if log else 1e30)
    gate[17:] = -math.inf if log else 0.0
    value = torch.zeros(20, 1)
    value[18:] = 1.0
    states = kernels.scan(gate, value, torch.zeros(1), log)
    torch.testing.assert_close(states, reference.scan(gate, value, torch.zeros(1), log))
    assert states[-3:].flatten().tolist() == [0, 1, 1]


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")  # of the interpreter
def test_where_it_is_not_the_loop_as_the_documentation_says():
    """A product of gates that overflows is seen, never a wrong number; a closed gate ends what is infinite."""
    gate = torch.full((4, 1), 1e15)
    zeros, initial = torch.zeros(4, 1), torch.full((1,), 1e-38)
    assert reference.scan(gate, zeros, initial, False).isfinite().all()
    states = kernels.scan(gate, zeros, initial, False)
    torch.testing.assert_close(states[:2], reference.scan(gate, zeros, initial, False)[:2])
    assert not states[2:].isfinite().any()
    value = torch.tensor([[math.inf], [1.0]])
    assert kernels.scan(zeros[:2], value, initial, False).flatten().tolist() == [math.inf, 1.0]
    assert reference.scan(zeros[:2], value, initial, False)[1].isnan()


@pytest.mark.parametrize("log_gate", [-1e-8, -1e-7])
def test_a_sum_of_small_logarithms_is_not_lost(log_gate):
    states = kernels.scan(torch.full((300, 1), log_gate), torch.zeros(300, 1), torch.ones(1), True)
    assert 1 - states[-1].item() == pytest.approx(-math.expm1(300 * log_gate), abs=6e-8)


def test_gates_near_1_and_0():
    value = torch.ones(30, 1)
    ones = kernels.scan(torch.ones(30, 1), value, torch.zeros(1), False)
    assert ones.flatten().tolist() == list(range(1, 31))
    kept = kernels.scan(torch.full((30, 1), -1e-9), value, torch.zeros(1), True)
    torch.testing.assert_close(kept, ones)
    shut = kernels.scan(torch.full((30, 1), -math.inf), value, torch.ones(1), True)
    assert torch.equal(shut, value)
