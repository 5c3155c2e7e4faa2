"""Dense connections: one buffer, right gradients, linear memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from levada import Stack
from levada._errors import UsageError
from levada.connections import Dense

DIM, GROWTH, DEPTH = 5, 3, 6


def build(*, in_place: bool = True, axis: int = -1, depth: int = DEPTH) -> Stack:
    def branch(dim: int) -> nn.Module:
        return nn.Linear(dim, GROWTH) if axis == -1 else nn.Conv2d(dim, GROWTH, 3, padding=1)

    torch.manual_seed(0)
    return Stack(branch, Dense, dim=DIM, depth=depth, growth=GROWTH, in_place=in_place, axis=axis).double()


def features(axis: int = -1, seed: int = 1) -> Tensor:
    shape = (4, DIM) if axis == -1 else (2, DIM, 4, 4)
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed), requires_grad=True)


def gradients(loss: Tensor, stack: Stack, *inputs: Tensor, retain: bool = False) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, [*inputs, *stack.parameters()], retain_graph=retain)


def measured(stack: Stack, x: Tensor) -> int:
    """Bytes that the backward pass keeps alive, counting each storage once and leaving out parameters."""
    parameters = {p.untyped_storage().data_ptr() for p in stack.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = tensor  # held, so that no other storage gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = stack(x)
        total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
        del y
    return total


@pytest.mark.parametrize("axis", [-1, 1])
def test_equals_concatenation(axis):
    shared, naive = build(axis=axis), build(in_place=False, axis=axis)
    x = features(axis)
    y, expected = shared(x), naive(x)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    assert y.shape[axis] == shared.dim_out == DIM + DEPTH * GROWTH
    assert torch.equal(y.narrow(axis, 0, DIM), x)
    weights = torch.randn_like(y)
    found = gradients((y**2 * weights).sum(), shared, x)
    torch.testing.assert_close(found, gradients((expected**2 * weights).sum(), naive, x), rtol=1e-12, atol=1e-12)


def test_memory_is_linear_in_depth_where_concatenation_is_quadratic():
    x = features()
    shared = [measured(build(depth=depth), x) for depth in (25, 50, 100)]
    naive = [measured(build(depth=depth, in_place=False), x) for depth in (25, 50, 100)]
    element = x.element_size() * x.shape[0]
    # Everything that is kept: the network's input, which the first branch read, and the buffer.
    assert shared == [element * (2 * DIM + depth * GROWTH) for depth in (25, 50, 100)]
    # What the layers read: the sum over layers of their widths.
    assert naive == [element * sum(DIM + i * GROWTH for i in range(depth)) for depth in (25, 50, 100)]
    assert shared[2] < 0.03 * naive[2]


def test_two_backward_passes_and_gradients_of_gradients():
    stack, x = build(), features()
    y = stack(x)
    first = gradients(y.square().sum(), stack, x, retain=True)
    again = gradients(y.square().sum(), stack, x)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.autograd.gradgradcheck(lambda x: stack(x).tanh(), x, fast_mode=True)


def test_two_passes_before_the_backward_have_a_buffer_each():
    stack, a, b = build(), features(seed=1), features(seed=2)
    expected = [gradients(stack(x).square().sum(), stack, x) for x in (a, b)]
    ya, yb = stack(a), stack(b)
    loss = ya.square().sum() + yb.square().sum()
    found = gradients(loss, stack, a, b)
    torch.testing.assert_close(found[0], expected[0][0])
    torch.testing.assert_close(found[1], expected[1][0])
    for together, one, other in zip(found[2:], expected[0][1:], expected[1][1:], strict=True):
        torch.testing.assert_close(together, one + other)


@pytest.mark.parametrize("grad", [True, False])
def test_a_state_that_is_appended_to_twice(grad):
    """Two branches from one state, the first of them used again after the second."""

    def forked(stack: Stack, x: Tensor) -> Tensor:
        first, second, third = list(stack.layers)[:3]
        start = first.connection.begin(x)
        state = first(start)
        left, right = second(state), second.connection.write(state, state[0].narrow(-1, 0, GROWTH) * 2)
        also = first(start)
        ends = third(left), third(right), third(second(also))
        return torch.cat([end[0] for end in ends], -1)

    shared, naive = build(), build(in_place=False)
    with torch.set_grad_enabled(grad):
        x = features()
        y, expected = forked(shared, x), forked(naive, x)
        torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    if grad:
        used = [p for layer in list(shared.layers)[:3] for p in layer.parameters()]
        same = [p for layer in list(naive.layers)[:3] for p in layer.parameters()]
        found = torch.autograd.grad(y.square().sum(), [x, *used])
        torch.testing.assert_close(found, torch.autograd.grad(expected.square().sum(), [x, *same]))


def test_one_buffer_serves_a_stack():
    stack, x = build(), features()
    seen = []
    for layer in stack.layers:
        layer.register_forward_hook(lambda _module, _inputs, state: seen.append(state[0]))
    y = stack(x)
    assert {state.data_ptr() for state in seen} == {y.data_ptr()}
    assert [state.shape[-1] for state in seen] == [DIM + (i + 1) * GROWTH for i in range(DEPTH)]
    assert {state._version for state in seen} == {seen[0]._version}
    assert y.untyped_storage().nbytes() == y.numel() * y.element_size()


def test_changing_features_in_place_raises():
    class InPlace(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.relu_())

    stack = Stack(lambda dim: InPlace(dim, GROWTH), Dense, dim=DIM, depth=2, growth=GROWTH)
    with pytest.raises(RuntimeError, match="modified inplace"):
        stack(torch.randn(2, DIM))
    with torch.no_grad():  # where nothing is kept, nothing can be spoilt
        assert stack(torch.randn(2, DIM)).shape == (2, stack.dim_out)
    y = build()(features())
    with pytest.raises(RuntimeError, match="modified inplace"):
        y.mul_(2)
    with torch.no_grad():
        y.mul_(2)
    with pytest.raises(RuntimeError, match="has been modified inplace"):
        y.sum().backward()
    total = (y := build()(features())).sum()
    with torch.no_grad():
        y.mul_(2)
    with pytest.raises(RuntimeError, match="has been modified inplace"):
        total.backward()


def test_types_are_promoted_as_concatenation_does():
    x = torch.randn(2, DIM, dtype=torch.bfloat16)
    connection = Dense(DIM, growth=GROWTH)
    out = torch.randn(2, GROWTH, requires_grad=True)
    y = connection.end(connection.write(connection.begin(x), out))
    assert torch.equal(y, torch.cat((x, out), -1))
    y.sum().backward()
    assert out.grad.dtype == torch.float32


@pytest.mark.parametrize("width", [1, GROWTH + 1])
def test_a_branch_of_another_width_is_refused(width):
    stack = Stack(lambda dim: nn.Linear(dim, width), Dense, dim=DIM, depth=2, growth=GROWTH)
    with pytest.raises(UsageError, match=r"must return the shape \(2, 3\)"):
        stack(torch.randn(2, DIM))
    with pytest.raises(UsageError, match="growth must be at least 1"):
        Dense(DIM, growth=0)
