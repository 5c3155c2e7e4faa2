"""Momentum and reversible networks: right gradients without kept activations."""

from __future__ import annotations

import gc
import weakref
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from levada import Stack
from levada._errors import UsageError
from levada.connections import Momentum, Reversible

BOTH = pytest.mark.parametrize("connection", [Momentum, Reversible])


def branch(dim: int) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, dim))


def build(connection, make=branch, *, depth: int = 6, recompute: bool = True, dim: int = 8, **options) -> Stack:
    torch.manual_seed(0)
    return Stack(make, connection, dim=dim, depth=depth, recompute=recompute, **options)


def batch(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(1), requires_grad=True)


def step(stack: Stack, *args: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Output, and gradients of inputs and parameters."""
    args = tuple(a.detach().requires_grad_(a.requires_grad) for a in args)
    stack.zero_grad()
    torch.manual_seed(5)
    y = stack(*args)
    y.square().sum().backward()
    inputs = {str(i): a.grad for i, a in enumerate(args) if a.requires_grad}
    return y.detach(), inputs | {n: p.grad.clone() for n, p in stack.named_parameters() if p.grad is not None}


def assert_same(connection, *args: Tensor, make=branch, dtype=torch.float64, rtol=1e-9, atol=1e-12, **options) -> None:
    recomputed, stored = (build(connection, make, recompute=r, **options).to(dtype) for r in (True, False))
    y, found = step(recomputed, *args)
    z, expected = step(stored, *args)
    assert torch.equal(y, z)
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


class Tracker(TorchDispatchMode):
    """Counts the bytes of storages that were made inside and are alive, and the most that there were."""

    def __init__(self, *outside: Tensor) -> None:
        super().__init__()
        self.outside = [tensor.untyped_storage() for tensor in outside]
        self.seen = {id(storage): 0 for storage in self.outside}
        self.alive = self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, Tensor) and id(tensor.untyped_storage()) not in self.seen:
                storage = tensor.untyped_storage()
                self.seen[id(storage)] = storage.nbytes()
                self.alive += storage.nbytes()
                weakref.finalize(storage, self.freed, id(storage))
        self.peak = max(self.peak, self.alive)
        return result

    def freed(self, storage: int) -> None:
        self.alive -= self.seen.pop(storage)


class Foreign(nn.Module):
    """Adds what it takes from elsewhere, or is given."""

    def __init__(self, take, width: int = 4) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.take = take

    def forward(self, x: Tensor, *given: Tensor) -> Tensor:
        return torch.tanh(self.linear(x)) * (given[0] if given else self.take())


@BOTH
@pytest.mark.parametrize("computed", [False, True], ids=["leaf", "computed"])
def test_a_tensor_from_elsewhere_that_needs_a_gradient_must_be_an_argument(connection, computed):
    width = 8 if connection is Momentum else 4
    leaf = torch.rand(width, dtype=torch.float64, requires_grad=True)
    held = {}

    def build_with(**options) -> Stack:
        return build(connection, lambda dim: Foreign(lambda: held["c"], dim), depth=3, **options).double()

    def gradient(stack: Stack, *args: Tensor) -> Tensor:
        leaf.grad = None
        held["c"] = leaf.exp() if computed else leaf
        stack(batch(3, 8), *(args and (held["c"],))).square().sum().backward()
        return leaf.grad

    with pytest.raises(UsageError, match=r"Pass it as an argument, stack\(x, c\)"):
        gradient(build_with())
    expected = gradient(build_with(recompute=False))
    torch.testing.assert_close(gradient(build_with(), leaf), expected)
    with torch.no_grad():
        held["c"] = leaf.exp()
    build_with()(batch(3, 8)).square().sum().backward()  # a constant may come from anywhere


@BOTH
def test_a_parameter_of_another_module_is_from_elsewhere(connection):
    other = nn.Linear(8, 8)

    class Borrows(nn.Module):
        def __init__(self, dim: int) -> None:
            super().__init__()
            self.borrowed = [nn.Linear(dim, dim)]  # in a list: not registered

        def forward(self, x: Tensor) -> Tensor:
            return self.borrowed[0](x)

    with pytest.raises(UsageError, match="takes a tensor from elsewhere"):
        build(connection, Borrows)(other(torch.randn(2, 8))).sum().backward()


@BOTH
def test_where_nothing_else_needs_a_gradient_what_is_taken_from_elsewhere_gets_its_own(connection):
    width = 8 if connection is Momentum else 4
    c = torch.rand(width, requires_grad=True)
    stack = build(connection, lambda dim: Foreign(lambda: c, dim), depth=1).requires_grad_(False)
    stack(torch.randn(3, 8)).square().sum().backward()
    assert c.grad.abs().min() > 0


@BOTH
def test_fifty_layers_recomputed_equal_stored(connection):
    assert_same(connection, batch(4, 8), depth=50)


@BOTH
def test_float32_stays_close(connection):
    assert_same(connection, batch(4, 8, dtype=torch.float32), depth=30, dtype=torch.float32, rtol=1e-3, atol=1e-4)


@BOTH
def test_memory_does_not_grow_with_depth(connection):
    def memory(depth: int, recompute: bool) -> tuple[int, int]:
        options = {"gamma": 0.99} if connection is Momentum else {}
        stack, x = build(connection, depth=depth, recompute=recompute, **options), torch.randn(512, 8)
        with Tracker(x, *stack.parameters()) as tracker:
            y = stack(x).sum()
            kept = tracker.alive
            y.backward()
            gradients = sum(p.grad.untyped_storage().nbytes() for p in stack.parameters())
            return kept, tracker.peak - gradients

    stream = 512 * 8 * 4
    short, long = memory(10, True), memory(100, True)
    assert long[0] == short[0] <= 3 * stream, "kept between the passes"
    assert long[1] == short[1] <= 20 * stream, "the most at any time"
    stored = memory(100, False)
    assert stored[0] > 50 * long[0]


def test_a_thousand_layers_train():
    stack = build(Reversible, lambda dim: nn.Sequential(nn.Linear(dim, dim), nn.Tanh()), depth=1000, dim=8)
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.mul_(0.03)
    optimizer = torch.optim.SGD(stack.parameters(), lr=1e-3)
    x = torch.randn(16, 8)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = (stack(x) - 1).square().mean()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    assert losses[1] < losses[0]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in stack.parameters())


@BOTH
def test_random_numbers_are_repeated(connection):
    def dropping(dim: int) -> nn.Module:
        return nn.Sequential(nn.Linear(dim, dim), nn.Dropout(0.5))

    assert_same(connection, batch(4, 8), make=dropping)
    # The second run leaves the random state as the backward pass of a stored network does.
    states = []
    for recompute in (True, False):
        step(build(connection, dropping, recompute=recompute).double(), batch(4, 8))
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


@BOTH
def test_autocast_is_repeated(connection):
    class Noting(nn.Linear):
        dtypes: ClassVar[list[torch.dtype]] = []

        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            self.dtypes.append(out.dtype)
            return out

    stacks = [build(connection, lambda dim: Noting(dim, dim), recompute=recompute) for recompute in (True, False)]
    x = batch(4, 8, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = [stack(x) for stack in stacks]
    for y in outputs:  # the backward pass is outside of autocast, as is usual
        y.square().sum().backward()
    assert set(Noting.dtypes) == {torch.bfloat16}
    assert len(Noting.dtypes) == 3 * 6
    for (name, p), q in zip(stacks[0].named_parameters(), stacks[1].parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=0.05, atol=0.05, msg=name)


def test_autocast_leaves_no_weight_behind_that_has_no_graph():
    shared = nn.Linear(4, 4)
    stack = Stack([shared], Reversible, dim=8)
    x = torch.randn(2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        stack(torch.randn(2, 8))
        shared(x).sum().backward()
    assert shared.weight.grad is not None


@BOTH
def test_buffers_count_once_and_start_where_they_did(connection):
    def normalised(dim: int) -> nn.Module:
        linear = nn.utils.parametrizations.spectral_norm(nn.Linear(dim, dim))
        return nn.Sequential(linear, nn.BatchNorm1d(dim))

    assert_same(connection, batch(6, 8), make=normalised, depth=4)
    stacks = [build(connection, normalised, recompute=r).double() for r in (True, False)]
    for stack in stacks:
        step(stack, batch(6, 8))
    for (name, a), b in zip(stacks[0].named_buffers(), stacks[1].buffers(), strict=True):
        assert torch.equal(a, b), name


@BOTH
def test_arguments_of_the_branch_get_gradients(connection):
    class Conditioned(nn.Module):
        def __init__(self, dim: int) -> None:
            super().__init__()
            self.linear = nn.Linear(dim, dim)

        def forward(self, x: Tensor, condition: dict[str, Tensor], mask: Tensor, power: int) -> Tensor:
            return (self.linear(x) + condition["shift"]) * mask**power

    class Calling(nn.Module):
        def __init__(self, stack: Stack) -> None:
            super().__init__()
            self.stack = stack

        def forward(self, x: Tensor, shift: Tensor, mask: Tensor) -> Tensor:
            return self.stack(x, {"shift": shift}, mask, 2)

    dim = build(connection, lambda dim: nn.Linear(dim, dim))[0].connection.dim_in
    results = []
    for recompute in (True, False):
        model = Calling(build(connection, Conditioned, recompute=recompute).double())
        results.append(step(model, batch(4, 8), batch(4, dim), torch.rand(dim, dtype=torch.float64)))
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-12)
    assert {"0", "1"} <= results[0][1].keys()
    assert "2" not in results[0][1]


@BOTH
def test_hooks_see_gradients_and_run_once(connection):
    new = 0 if connection is Momentum else 1  # what the layer made; the other half is handed on as it came
    results = []
    for recompute in (True, False):
        stack, boundaries = build(connection, recompute=recompute).double(), []

        def watch(_module: nn.Module, _inputs: object, state: tuple, seen: list[Tensor] = boundaries) -> None:
            state[new].register_hook(lambda gradient: seen.append(gradient.clone()))

        for layer in stack.layers:
            layer.register_forward_hook(watch)
        weight = stack[2].branch[1].weight
        weight.register_hook(lambda g: 2 * g)
        step(stack, batch(4, 8))
        results.append([*boundaries, weight.grad.clone()])
    assert len(results[0]) == 7
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-12)


@BOTH
def test_shared_and_frozen_parameters_and_an_input_without_gradient(connection):
    def results(recompute: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        one = branch(8 if connection is Momentum else 4)
        one[1].weight.requires_grad_(False)
        return step(Stack([one] * 5, connection, dim=8, recompute=recompute).double(), batch(4, 8).detach())[1]

    found, expected = results(True), results(False)
    assert not any("1.weight" in name for name in found)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@BOTH
def test_a_state_in_the_middle_can_be_used_too(connection):
    def losses(stack: Stack, x: Tensor) -> Tensor:
        state, total = stack[0].connection.begin(x), 0.0
        for layer in stack.layers:
            state = layer(state)
            total = total + state[0].square().sum()
        left, right = stack[0](state), stack[1](state)  # a fork: two chains from one state
        return total + left[1].sin().sum() + right[0].cos().sum()

    results = []
    for recompute in (True, False):
        stack, x = build(connection, recompute=recompute).double(), batch(4, 8)
        results.append(torch.autograd.grad(losses(stack, x), [x, *stack.parameters()]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-12)


@BOTH
def test_what_would_give_wrong_numbers_raises(connection):
    stack, x = build(connection), batch(4, 8, dtype=torch.float32)
    y = stack(x).sum()
    y.backward(retain_graph=True)
    with pytest.raises(UsageError, match="serves one backward pass"):
        y.backward()

    states = []
    stack[2].register_forward_hook(lambda _module, _inputs, state: states.append(state[0]))
    stack(x)
    with pytest.raises(UsageError, match="from the middle of the chain"):
        states[0].sum().backward()

    y = stack(x).sum()
    with torch.no_grad():
        stack[1].branch[1].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()

    y = stack(x).sum()
    stack.eval()
    with pytest.raises(UsageError, match="from training=True to False"):
        y.backward()

    layer = stack[0]
    first, second, _ = layer(layer.connection.begin(x))
    with torch.no_grad():
        second.zero_()
    with pytest.raises(UsageError, match="must not be changed in place"):
        (first.sum() + second.sum()).backward()

    gradient = torch.autograd.grad(stack(x).square().sum(), x, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()

    with pytest.raises(UsageError, match="shape that it was given"):
        build(connection, lambda dim: nn.Linear(dim, 1))(x)


@BOTH
def test_stored_goes_backward_twice(connection):
    stack, x = build(connection, recompute=False).double(), batch(4, 8)
    y = stack(x).sum()
    first = torch.autograd.grad(y, x, retain_graph=True)
    assert torch.equal(first[0], torch.autograd.grad(y, x)[0])


@BOTH
def test_no_cycle_keeps_states_alive(connection):
    stack, x = build(connection), batch(4, 8, dtype=torch.float32)
    gc.disable()
    try:
        with Tracker(x, *stack.parameters()) as tracker:
            y = stack(x)
            assert tracker.alive > 0
            del y
            assert tracker.alive == 0
            y = stack(x).sum()
            y.backward()
            gradients = sum(p.grad.nbytes for p in (x, *stack.parameters()))
            del y
            assert tracker.alive == gradients
    finally:
        gc.enable()


def test_reversible_is_the_block_of_the_paper():
    f, g = nn.Linear(3, 3), nn.Linear(3, 3)
    x = torch.randn(2, 6)
    y1 = x[:, :3] + f(x[:, 3:])
    y2 = x[:, 3:] + g(y1)
    torch.testing.assert_close(Stack([f, g], Reversible, dim=6)(x), torch.cat((y1, y2), -1))
    images = Stack([nn.Conv2d(2, 2, 3, padding=1) for _ in range(2)], Reversible, dim=4, axis=1)
    assert images(torch.randn(1, 4, 5, 5)).shape == (1, 4, 5, 5)


def test_momentum_is_the_recurrence_of_the_paper():
    stack = Stack([nn.Linear(3, 3) for _ in range(5)], Momentum, dim=3, gamma=0.7)
    position = torch.randn(2, 3)
    velocity, y = torch.zeros(2, 3), stack(position)
    for layer in stack.layers:
        velocity = 0.7 * velocity + 0.3 * layer.branch(position)
        position = position + velocity
    torch.testing.assert_close(y, position)
    residual = Stack([nn.Identity()] * 5, Momentum, dim=3, gamma=0.0, recompute=False)
    assert torch.equal(residual(torch.ones(1, 3)), torch.full((1, 3), 32.0))


def test_momentum_refuses_what_rounding_would_spoil():
    x = batch(4, 8, dtype=torch.float32)
    deep = build(Momentum, lambda dim: nn.Linear(dim, dim), depth=120, gamma=0.9)
    with pytest.raises(UsageError, match="depth 120 recovered states would have a rounding error of about 4e-02"):
        deep(x)
    with torch.no_grad():
        deep(x)
    deep.double()(x.double()).sum().backward()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Momentum(4, gamma=1.0), r"in \[0, 1\), got 1.0"),
        (lambda: Momentum(4, gamma=-0.1), "got -0.1"),
        (lambda: Momentum(4, gamma=0.0), "cannot be undone"),
        (lambda: Reversible(5), "must be even"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(UsageError, match=message):
        make()
