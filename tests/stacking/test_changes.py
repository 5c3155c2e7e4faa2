"""What is changed between a forward and its backward pass is seen, as autograd sees it."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.stacking.stacks import DEPTH, DIM, gradients, is_recorded, pair
from torch import Tensor, nn

from levada.connection import SingleStream
from levada.connections import Plain


class Seen(nn.Module):
    """Returns a view of what its backward pass reads."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).tanh().flatten(0, -2).unflatten(0, x.shape[:-1])


class Masked(nn.Linear):
    """Multiplies by a buffer."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__(DIM, DIM)
        self.register_buffer("mask", torch.rand(DIM))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).tanh() * self.mask


class Averaging(nn.Linear):
    """Writes into a buffer, and reads what it has written."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__(DIM, DIM)
        self.register_buffer("mean", torch.ones(DIM))

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        self.mean.mul_(0.9).add_(0.1 * y.detach().mean(0))
        return y.tanh() * self.mean


class Delayed(SingleStream):
    """Passes on what the layer before returned, and gives the branch what came before that."""

    def begin(self, x: Tensor):
        return x * 2, x * 3

    def read(self, state):
        return state[1]

    def write(self, state, out: Tensor):
        return out, state[0]

    def end(self, state) -> Tensor:
        return state[1]


@pytest.mark.parametrize("change", [lambda y: y.mul_(2), lambda y: y[0].zero_(), lambda y: y.detach().add_(1)])
def test_an_output_that_is_a_view_must_not_be_changed(change, batch):
    for stack in pair(Seen, Plain):
        y = stack(batch[:, None])
        change(y.view(-1, DIM))
        with pytest.raises(RuntimeError, match="at version"):
            y.sum().backward()


@pytest.mark.parametrize("checkpoint", [0, DEPTH])
def test_an_output_that_layers_pass_on_must_not_be_changed(checkpoint, batch):
    plain, stacked = pair(lambda: nn.Sequential(nn.Linear(DIM, DIM), nn.Tanh()), Delayed)
    torch.testing.assert_close(gradients(stacked, batch), gradients(plain, batch))
    for stack in (plain, stacked.arrange(checkpoint=checkpoint)):
        x = batch.clone().requires_grad_()
        y = stack(x)
        y.detach().zero_()
        with pytest.raises(RuntimeError, match="at version"):
            y.sum().backward()
    assert is_recorded(stacked)


@pytest.mark.parametrize("checkpoint", [False, 2])
def test_an_output_that_nobody_needs_may_be_changed(checkpoint, batch):
    plain, stacked = pair(checkpoint=checkpoint)
    for stack in (plain, stacked):
        x = batch.clone().requires_grad_()
        y = stack(x)
        y.mul_(2)
        y.sum().backward()
        stack.found = x.grad
    torch.testing.assert_close(stacked.found, plain.found)


@pytest.mark.parametrize("checkpoint", [False, 2])
def test_a_buffer_that_is_needed_must_not_be_changed(checkpoint, batch):
    plain, stacked = pair(Masked, checkpoint=checkpoint)
    for stack in (stacked,) if checkpoint else (plain, stacked):  # torch's checkpoint does not see it
        y = stack(batch).sum()
        stack[3].branch.mask.zero_()
        with pytest.raises(RuntimeError, match=r"at version \d+.* expected"):
            y.backward()
    assert is_recorded(stacked)


def test_a_buffer_may_be_replaced_before_the_backward_pass(batch):
    found = []
    for stack in pair(Masked):
        x = batch.clone().requires_grad_()
        y = stack(x).square().sum()
        for layer in stack:
            layer.branch.mask = layer.branch.mask + 1
        (first,) = torch.autograd.grad(y, x, create_graph=True)
        found.append((first, *torch.autograd.grad(first.square().sum(), x)))
    torch.testing.assert_close(*found)


def test_buffers_that_are_written_into(batch):
    plain, stacked = pair(Averaging)
    torch.testing.assert_close(gradients(stacked, batch), gradients(plain, batch))
    assert is_recorded(stacked)
    plain, stacked = pair(Averaging)
    found = []
    for stack in (plain, stacked):
        x = batch.clone().requires_grad_()
        (first,) = torch.autograd.grad(stack(x).square().sum(), x, create_graph=True)
        found.append((first, *torch.autograd.grad(first.square().sum(), x), stack[1].branch.mean))
    torch.testing.assert_close(*found)
    for stack in (plain, stacked):
        y = stack(batch).sum()
        stack(batch)
        with pytest.raises(RuntimeError, match="at version"):
            y.backward()


def test_a_buffer_that_layers_write_into_together_is_left_to_autograd(batch):
    plain, stacked = pair(Averaging)
    for stack in (plain, stacked):
        for layer in stack:
            layer.branch.mean = stack[0].branch.mean
    with pytest.warns(UserWarning, match="writes into a buffer that the backward pass of another one reads"):
        y = stacked(batch)
    assert torch.equal(y, plain(batch))
    with pytest.raises(RuntimeError, match="at version"):
        y.sum().backward()


def test_what_layers_count_is_counted_once_in_gradients_of_gradients(batch):
    plain, stacked = pair(lambda: nn.Sequential(nn.Linear(DIM, DIM), nn.BatchNorm1d(DIM), nn.Tanh()))
    for stack in (plain, stacked):
        x = batch.clone().requires_grad_()
        (first,) = torch.autograd.grad(stack(x).square().sum(), x, create_graph=True)
        first.sum().backward()
    torch.testing.assert_close(stacked.state_dict(), plain.state_dict())


def test_a_setting_that_changes_before_gradients_of_gradients_is_an_error(batch):
    plain, stacked = pair(lambda: nn.Sequential(nn.Linear(DIM, DIM), nn.Dropout(0.5), nn.Tanh()))
    x = batch.clone().requires_grad_()
    for change in (lambda: stacked.eval(), lambda: stacked[1].branch.register_forward_hook(lambda *_: None)):
        y = stacked.train()(x).sum()
        change()
        with pytest.raises(RuntimeError, match=r"run stacked layers again as they were .* another one now"):
            torch.autograd.grad(y, x, create_graph=True)
    torch.manual_seed(1)
    expected = torch.autograd.grad(plain(x).sum(), x)
    stacked = copy.deepcopy(plain).arrange(stacked=True)
    torch.manual_seed(1)
    y = stacked(x).sum()
    stacked.eval()  # first gradients need what was kept alone
    torch.testing.assert_close(torch.autograd.grad(y, x), expected)


def test_autocast_is_as_it_was_in_gradients_of_gradients(batch):
    found = []
    for stack in pair(lambda: nn.Sequential(nn.Linear(DIM, DIM), nn.Tanh())):
        x = batch.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = stack(x).square().sum()
        found += torch.autograd.grad(y, x, create_graph=True)
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_parameters_of_a_functional_call_are_those_of_its_gradients_of_gradients(batch):
    found = []
    for stack in pair():
        given = {name: (2 * p.detach().double()).requires_grad_() for name, p in stack.named_parameters()}
        x = batch.double().requires_grad_()
        y = torch.func.functional_call(stack, given, (x,)).square().sum()
        first = torch.autograd.grad(y, [x, *given.values()], create_graph=True)
        found.append((first[0], *torch.autograd.grad(sum(g.square().sum() for g in first), x)))
    torch.testing.assert_close(*found)


def test_a_state_that_is_made_of_the_parameters_counts_once_in_gradients_of_gradients(batch):
    found = []
    for stack in pair():
        stack.double()
        x = batch.double().requires_grad_()
        y = stack(stack(x @ stack[0].branch[1].weight)).square().sum()
        first = torch.autograd.grad(y, [x, *stack.parameters()], create_graph=True)
        norm = sum(g.square().sum() for g in first)
        found.append([y, norm, *torch.autograd.grad(norm, x)])
    torch.testing.assert_close(*found)
