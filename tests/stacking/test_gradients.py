"""Gradients of stacked layers: which there are, how often, and what may not change before."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
from tests.stacking.stacks import DIM, gradients, is_recorded, pair
from torch import Tensor, nn

from levada._errors import UsageError
from levada.connections import Plain, ReZero
from levada.stacking import as_layers


def test_frozen_parameters_get_no_gradient(batch):
    plain, stacked = pair()
    for layer in plain:
        layer.branch[1].weight.requires_grad_(False)
    stacked.stacked.branch.get_submodule("1").weight.requires_grad_(False)
    torch.testing.assert_close(gradients(stacked, batch), gradients(plain, batch), rtol=0, atol=0)


@pytest.mark.parametrize(
    "part",
    [
        lambda stack: stack[0],
        lambda stack: stack[3].branch,
        lambda stack: stack[3].branch[1],
        lambda stack: stack[3].connection,
        lambda stack: stack.layers,
    ],
)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_a_part_that_is_frozen_is_an_error(part, requires_grad, batch):
    _, stacked = pair(connection=ReZero)
    for stack in (stacked, copy.deepcopy(stacked), pickle.loads(pickle.dumps(stacked))):
        for _ in range(2):
            with pytest.raises(UsageError, match=rf"got requires_grad_\({requires_grad}\) .* arrange\(stacked=False\)"):
                part(stack).requires_grad_(requires_grad)
            stack.state_dict()  # goes by layer
        with as_layers(stack):
            part(stack).requires_grad_(True)
    assert is_recorded(stacked)
    stacked.arrange(stacked=False)
    part(stacked).requires_grad_(False)
    assert {p.requires_grad for p in part(stacked).parameters()} == {False}


def test_all_layers_can_be_frozen_together(batch):
    plain, stacked = pair()
    for freeze in (stacked.requires_grad_, stacked.stacked.requires_grad_, nn.Sequential(stacked).requires_grad_):
        freeze(False)
        assert not any(p.requires_grad for p in stacked.parameters())
        assert torch.equal(stacked(batch), plain(batch))
        freeze(True)
        assert is_recorded(stacked)
    stacked[0].branch[2].requires_grad_(False)  # has nothing to freeze


def test_gradients_of_gradients(batch):
    plain, stacked = pair()
    found = []
    for stack in (plain, stacked):
        x = batch.clone().requires_grad_()
        (first,) = torch.autograd.grad(stack(x).square().sum(), x, create_graph=True)
        first.square().sum().backward()
        found.append(x.grad)
    torch.testing.assert_close(*found)


def test_gradcheck():
    _, stacked = pair()
    stacked.double()
    assert torch.autograd.gradcheck(stacked, torch.randn(2, DIM, dtype=torch.float64, requires_grad=True))


def test_a_graph_that_is_kept_goes_backward_twice(batch):
    _, stacked = pair()
    y = stacked(batch).sum()
    weight = stacked.stacked.branch.get_submodule("1").weight
    first = torch.autograd.grad(y, weight, retain_graph=True)
    assert torch.equal(*first, *torch.autograd.grad(y, weight))
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()


def test_an_output_that_is_needed_must_not_be_changed(batch):
    _, stacked = pair(lambda: nn.Sequential(nn.Linear(DIM, DIM), nn.Tanh()), Plain)
    y = stacked(batch)
    y.mul_(2)
    with pytest.raises(RuntimeError, match="changed in place"):
        y.sum().backward()


def test_weights_that_changed_before_the_backward_pass_are_an_error(batch):
    _, stacked = pair()
    y = stacked(batch).sum()
    with torch.no_grad():
        stacked.stacked.branch.get_submodule("1").weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_memory_of_gradients_is_used_again_once_they_are_gone(batch, monkeypatch):
    monkeypatch.setattr("levada.stacking.function._LARGE", 0)
    _, stacked = pair()
    weight = stacked.stacked.branch.get_submodule("1").weight

    def gradient() -> Tensor:
        stacked.zero_grad()
        stacked(batch).square().sum().backward()
        return weight.grad

    first = gradient()
    value = first.clone()
    second = gradient()  # while the first is still held
    place = second.data_ptr()
    assert first.data_ptr() != place
    assert torch.equal(first, value)
    del second
    assert gradient().data_ptr() == place
    stacked(batch).square().sum().backward()  # accumulated
    torch.testing.assert_close(weight.grad, 2 * value)


def test_nothing_is_kept_alive(batch):
    _, stacked = pair(lambda: nn.Sequential(nn.Linear(DIM, DIM), nn.Tanh()), Plain)
    x = batch.clone().requires_grad_()
    gc.disable()
    try:
        y = stacked(x)
        gone = weakref.ref(y.grad_fn)
        del y
        assert gone() is None
    finally:
        gc.enable()


def test_other_shapes_and_functional_calls(batch):
    plain, stacked = pair()
    for x in (batch, batch[:2], torch.randn(2, 4, DIM)):
        assert torch.equal(stacked(x), plain(x))
    doubled = {n: 2 * p.detach() for n, p in stacked.named_parameters()}
    expected = torch.func.functional_call(plain, {n: 2 * p.detach() for n, p in plain.named_parameters()}, batch)
    torch.testing.assert_close(torch.func.functional_call(stacked, doubled, batch), expected)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # what torch loads for jvp says so
def test_transforms_run_the_layers_as_they_are_written(batch):
    plain, stacked = pair()
    torch.testing.assert_close(torch.func.jacrev(stacked)(batch), torch.func.jacrev(plain)(batch))
    torch.testing.assert_close(torch.func.jvp(stacked, (batch,), (batch,)), torch.func.jvp(plain, (batch,), (batch,)))
    torch.testing.assert_close(torch.func.vmap(stacked)(batch), plain(batch))
