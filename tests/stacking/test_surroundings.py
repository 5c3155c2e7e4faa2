"""Stacked layers inside of what transforms, watches, checkpoints or shares them."""

from __future__ import annotations

import threading

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from tests.stacking.stacks import DIM, gradients, is_recorded, pair
from torch import Tensor, nn
from torch.autograd.functional import hessian, jacobian
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from levada._errors import UsageError
from levada.connections import Residual


def dropping() -> nn.Module:
    return nn.Sequential(nn.Linear(DIM, DIM), nn.Dropout(0.5), nn.Tanh())


def by_batched_cotangents(y: Tensor, x: Tensor, cotangents: Tensor) -> Tensor:
    return torch.autograd.grad(y, x, cotangents, is_grads_batched=True, retain_graph=True)[0]


def by_vmap(y: Tensor, x: Tensor, cotangents: Tensor) -> Tensor:
    return torch.func.vmap(lambda g: torch.autograd.grad(y, x, g, retain_graph=True)[0])(cotangents)


@pytest.mark.parametrize("segments", [0, 2])
@pytest.mark.parametrize("ask", [by_batched_cotangents, by_vmap])
def test_gradients_for_many_cotangents_at_once(ask, segments, batch):
    found, drawn = [], []
    plain, stacked = pair(dropping)
    for stack in (plain, stacked.arrange(checkpoint=segments)):
        x = batch.clone().requires_grad_()
        torch.manual_seed(1)
        y = stack(x)
        cotangents = torch.eye(y.numel()).view(-1, *y.shape)
        found.append([ask(y, x, cotangents) for _ in range(2)])
        found[-1].append(torch.stack([torch.autograd.grad(y, x, g, retain_graph=True)[0] for g in cotangents]))
        drawn.append(torch.rand(2))
    torch.testing.assert_close(*found)
    torch.testing.assert_close(found[1][0], found[1][2])
    assert torch.equal(*drawn)


def test_jacobians_and_hessians_at_once(batch):
    plain, stacked = pair()
    torch.testing.assert_close(jacobian(stacked, batch, vectorize=True), jacobian(plain, batch))
    loss, expected = (lambda x, s=s: s(x).square().sum() for s in (stacked, plain))
    torch.testing.assert_close(hessian(loss, batch, vectorize=True), hessian(expected, batch), rtol=1e-4, atol=1e-4)


def test_gradcheck_of_many_at_once():
    _, stacked = pair()
    x = torch.randn(2, DIM, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(stacked.double(), x, check_batched_grad=True)


def test_a_cotangent_that_has_a_tangent(batch):
    found = []
    for stack in pair():
        x = batch.clone().requires_grad_()
        y = stack(x)
        with forward_ad.dual_level():
            (gradient,) = torch.autograd.grad(y, x, forward_ad.make_dual(torch.ones_like(y), y.detach()))
            found.append([*forward_ad.unpack_dual(gradient)])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("reentrant", [False, True])
def test_inside_a_checkpoint(reentrant, batch):
    found = []
    for stack in pair(dropping):
        x = batch.clone().requires_grad_()
        torch.manual_seed(1)
        y = checkpoint(stack, x, use_reentrant=reentrant)
        assert type(y.grad_fn).__name__ != "LayersBackward"  # its activations would be kept beside
        y.square().sum().backward()
        found.append(x.grad)
        assert stack._stacked is None or is_recorded(stack)
    torch.testing.assert_close(*found)


def test_who_packs_what_is_saved_is_given_all_of_it(batch):
    packed: list[int] = []

    def pack(saved: Tensor) -> Tensor:
        packed[-1] += saved.nbytes
        return saved.clone()

    found = []
    for stack in pair():
        packed.append(0)
        with torch.autograd.graph.saved_tensors_hooks(pack, Tensor.clone):
            found.append(gradients(stack, batch))
        assert is_recorded(stack) is (stack._stacked is not None)
    torch.testing.assert_close(*found, rtol=0, atol=0)
    assert packed[0] == packed[1] > 0


class Checkpointed(nn.Linear):
    """Computes itself again in its backward pass, by one that may not run inside of `torch.autograd.grad`."""

    def __init__(self) -> None:
        super().__init__(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(super().forward, x, use_reentrant=True).tanh()


def test_what_cannot_be_recorded_backward_runs_one_by_one(batch):
    plain, stacked = pair(Checkpointed)
    with pytest.warns(UserWarning, match="its backward pass raises RuntimeError"):
        found = gradients(stacked, batch)
    torch.testing.assert_close(found, gradients(plain, batch))


def test_an_empty_batch(batch):
    plain, stacked = pair()
    torch.testing.assert_close(gradients(stacked, batch[:0]), gradients(plain, batch[:0]))
    assert is_recorded(stacked)


class Doubling(TorchFunctionMode):
    """Doubles what tanh returns."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        return result * 2 if function in (torch.tanh, Tensor.tanh) else result


def test_modes_see_every_operation_of_every_layer(batch):
    plain, stacked = pair()
    assert is_recorded(stacked)
    with Doubling():
        assert torch.equal(stacked(batch), plain(batch))
    flops = []
    for stack in (plain, stacked):
        with FlopCounterMode(display=False) as counter:
            stack(batch).sum().backward()
        flops.append(counter.get_total_flops())
    assert flops[0] == flops[1] > 0
    with torch.device("cpu"):  # a mode too, for what is made without a device
        assert is_recorded(stacked)


def test_threads_share_a_stack():
    plain, stacked = pair(lambda: nn.Sequential(nn.Linear(DIM, DIM), nn.ReLU()), Residual)
    found: dict[int, list[Tensor]] = {}

    def work(i: int) -> None:
        x = torch.full((2 + i, DIM), 1.0 + i).requires_grad_()  # each is recorded
        for _ in range(3):
            y = stacked(x)
            found[i] = [y.detach(), *torch.autograd.grad(y.square().sum(), x)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(6):
        x = torch.full((2 + i, DIM), 1.0 + i).requires_grad_()
        y = plain(x)
        torch.testing.assert_close(found[i], [y.detach(), *torch.autograd.grad(y.square().sum(), x)])


def test_a_stacked_tensor_that_is_no_parameter_any_more_is_an_error(batch):
    _, stacked = pair(lambda: nn.Linear(DIM, DIM))
    nn.utils.parametrizations.weight_norm(stacked.stacked.branch)
    with pytest.raises(UsageError, match=r"'branch\.weight', which is no parameter now.* arrange\(stacked=False\)"):
        stacked(batch)
