from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from levada._errors import UsageError
from levada.study.data import Dataset
from levada.study.devices import preferred_device
from levada.study.replicas import ReplicaConvolution, SignalNetwork
from levada.study.training import Recipe, batches, cosine, error, fit, held_out, measure_statistics, train

NOISE = torch.randn(96, 40, generator=torch.Generator().manual_seed(0))
TARGETS = torch.arange(96) % 2
# Slow waves and fast ones.
INPUTS = torch.sin(torch.outer(0.3 + 0.9 * TARGETS, torch.arange(40))) + 0.3 * NOISE


def network(kind, seeds, depth=8, channels=4):
    return SignalNetwork(kind, depth, channels=channels, num_classes=2, seeds=seeds)


@pytest.mark.parametrize("kind", ["plain", "residual", "plain pre-activation"])
def test_replicas_train_as_they_would_alone(kind):
    recipe = Recipe(steps=6, batch_size=16, lr=0.1)
    together = network(kind, [3, 4, 5]).double()
    curves = train(together, INPUTS.double(), TARGETS, recipe, [3, 4, 5])
    alone = network(kind, [4]).double()
    curve = train(alone, INPUTS.double(), TARGETS, recipe, [4])
    assert curves.loss[:, 1:2] == pytest.approx(curve.loss, rel=1e-9)
    assert torch.equal(curves.error[:, 1:2], curve.error)
    for weight, own in zip(together.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(weight.flatten().chunk(3)[1], own.flatten(), rtol=0, atol=1e-9)
    measure_statistics(together, INPUTS.double(), 3, chunk=32)
    measure_statistics(alone, INPUTS.double(), 1, chunk=32)
    assert error(together, INPUTS.double(), TARGETS, 3)[1] == error(alone, INPUTS.double(), TARGETS, 1)[0]


def test_a_replica_that_diverges_does_not_touch_the_others():
    net = network("plain", [0, 1])
    with torch.no_grad():
        net.first[0].weight[:4] = math.nan
    curves = train(net, INPUTS, TARGETS, Recipe(3, 16, 0.1), [0, 1])
    assert curves.loss[:, 0].isnan().all()
    assert curves.loss[:, 1].isfinite().all()


def test_a_step_is_sgd_with_momentum_and_weight_decay():
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor([[1.0, -1.0]], dtype=torch.float64))

        def forward(self, x):
            return x.mean(-1, keepdim=True) * self.w

    net, recipe = Mean(), Recipe(steps=3, batch_size=8, lr=0.5, momentum=0.9, weight_decay=0.1, schedule=cosine)
    curves = train(net, INPUTS.double(), TARGETS, recipe, [7])
    w, velocity = torch.tensor([[1.0, -1.0]], dtype=torch.float64, requires_grad=True), 0.0
    for step, index in zip(range(3), batches(96, 8, [7]), strict=False):
        logits = INPUTS.double()[index[:, 0]].mean(1, keepdim=True) * w
        loss = functional.cross_entropy(logits, TARGETS[index[:, 0]])
        assert curves.loss[step].item() == pytest.approx(loss.item(), rel=1e-12)
        (gradient,) = torch.autograd.grad(loss, w)
        velocity = 0.9 * velocity + gradient + 0.1 * w.detach()
        lr = 0.5 * (1 + math.cos(math.pi * step / 3)) / 2
        w = (w.detach() - lr * velocity).requires_grad_()
    assert net.w.detach() == pytest.approx(w.detach(), rel=1e-12)


def test_batches_take_every_example_once_an_epoch_in_each_seeds_own_order():
    stream = batches(20, 6, [0, 1])
    epoch = torch.cat([next(stream) for _ in range(3)])
    assert all(len(set(column)) == 18 for column in epoch.T.tolist())
    assert epoch[:, 0].tolist() != epoch[:, 1].tolist()
    again = torch.cat([index for index, _ in zip(batches(20, 6, [1]), range(3), strict=False)])
    assert again[:, 0].tolist() == epoch[:, 1].tolist()
    with pytest.raises(UsageError, match="num_examples must be at least 6"):
        next(batches(5, 6, [0]))


def test_statistics_are_those_of_the_whole_set():
    net = network("plain", [0, 1])
    measure_statistics(net, INPUTS, 2, chunk=96)
    convolution, norm = net.first[0], net.first[1]
    out = convolution(INPUTS[:, None, None].expand(-1, 2, -1, -1))
    assert norm.running_mean == pytest.approx(out.detach().mean((0, 2, 3)), abs=1e-6)
    assert norm.momentum == 0.1, "as it was"


@pytest.mark.parametrize(("there", "kind"), [(True, "cuda"), (False, "cpu")])
def test_networks_are_trained_on_cuda_where_it_is(there, kind, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert preferred_device() == torch.device(kind)


def test_gradients_by_layer_are_autograds():
    net = network("residual", [0, 1], depth=6).double()
    index = torch.tensor([[0, 5], [1, 6], [2, 7]])
    found = net.gradients(INPUTS.double()[index], TARGETS[index])
    assert found.shape == (2, 3)
    alone = network("residual", [1], depth=6).double()
    state = alone.first(INPUTS.double()[index[:, 1]][:, None, None])
    loss = functional.cross_entropy(alone.classify(alone.stack(state))[:, 0], TARGETS[index[:, 1]])
    assert found[1, 0].item() == pytest.approx(torch.autograd.grad(loss, state)[0].norm().item(), rel=1e-10)


def test_the_plain_pre_activation_network_is_the_residual_one_without_shortcut():
    plain, residual = network("plain pre-activation", [0]), network("residual", [0])
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), residual.parameters(), strict=True))
    x = INPUTS[:8, None]
    assert not torch.allclose(plain(x), residual(x))
    num_weights = sum(isinstance(m, ReplicaConvolution) for m in plain.modules()) + 1
    assert num_weights == 8, "depth counts layers with weights"


def test_fit_measures_and_held_out_keeps_the_test_set_out():
    data = Dataset("toy", INPUTS[:64], TARGETS[:64], INPUTS[64:], TARGETS[64:])
    chosen = held_out(data, 48)
    assert torch.equal(torch.cat([chosen.train_inputs, chosen.test_inputs]), data.train_inputs)
    values = fit(network("residual", [0, 1]), data, Recipe(60, 16, 0.05), [0, 1])
    assert len(values) == 2
    assert all(v["train_error"] < 0.2 and 0 <= v["test_error"] <= 1 for v in values)
    assert values[0]["curves"]["steps"][-1] == 60
    with pytest.raises(UsageError, match="held out must be at least 1"):
        held_out(data, 64)


@pytest.mark.parametrize("arguments", [("plain", 7), ("plain", 2), ("dense", 8)])
def test_bad_networks(arguments):
    with pytest.raises(UsageError, match="SignalNetwork"):
        network(arguments[0], [0], depth=arguments[1])
    with pytest.raises(UsageError, match="steps must be at least 1"):
        Recipe(0, 16, 0.1)
