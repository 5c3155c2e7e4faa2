from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from levada._errors import UsageError
from levada.initialise import gaussian, he, orthogonal, pytorch_default
from levada.study.deep_replicas import (
    DeepReplicas,
    Descent,
    Design,
    ReplicaDense,
    descend,
    profile,
    thin,
    training_loss,
)
from levada.study.training import batches, cross_entropies

ARMS = ("plain", "plain with norm", "residual", "pre-norm residual", "ReZero")


def build(arm, seeds, **options):
    return DeepReplicas(Design(arm, 5, 6, inputs=4, outputs=3, draw=he, **options), seeds)


def scaled(network, value):
    for layer in network.stack:
        if hasattr(layer.connection, "scale"):
            nn.init.constant_(layer.connection.scale, value)
    return network


def by_hand(network, arm, replica, x, scale):
    """The network's formula for one replica, from its weights."""

    def linear(layer, h):
        return h @ layer.weight[replica] + layer.bias[replica]

    h = network.scale_in * linear(network.first, x)
    for layer in network.stack:
        read = functional.layer_norm(h, (6,)) if arm == "pre-norm residual" else h
        out = linear(layer.branch, read)
        out = (functional.layer_norm(out, (6,)) if arm == "plain with norm" else out).relu()
        h = out if arm.startswith("plain") else h + (scale * out if arm == "ReZero" else out)
    return linear(network.last, h / network.scale_in)


@pytest.mark.parametrize("arm", ARMS)
def test_a_replica_is_the_network_of_its_seed_by_its_formula(arm):
    both = scaled(build(arm, seeds=[3, 7], scale_in=0.5), 0.3)
    alone = scaled(build(arm, seeds=[7], scale_in=0.5), 0.3)
    x = torch.randn(9, 2, 4)
    logits = both(x)
    torch.testing.assert_close(logits[:, 1:], alone(x[:, 1:]))
    for replica in (0, 1):
        torch.testing.assert_close(logits[:, replica], by_hand(both, arm, replica, x[:, replica], 0.3))


@pytest.mark.parametrize("draw", [he, orthogonal, pytorch_default, partial(gaussian, weight_variance=2.0)])
def test_weights_are_drawn_as_those_of_a_linear_layer(draw):
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    layers = [ReplicaDense(6, 6, draw, generators) for _ in range(2)]
    generator = torch.Generator().manual_seed(1)
    for layer in layers:
        linear = draw(nn.Linear(6, 6), generator=generator)
        assert torch.equal(layer.weight[1], linear.weight.T)
        assert torch.equal(layer.bias[1, 0], linear.bias)


def test_the_branch_of_two_weights_ends_without_an_activation():
    network = build("residual", seeds=[0], weights=2)
    first, second = network.stack[0].branch
    x = torch.randn(1, 9, 6)
    torch.testing.assert_close(network.stack[0](x), x + second(first(x)))
    assert first.activation is torch.relu
    assert second.activation is None


def test_unknown_names_are_refused():
    with pytest.raises(UsageError, match="arm must be one of plain"):
        build("dense", seeds=[0])
    with pytest.raises(UsageError, match="optimizer must be one of Adagrad, Adam, SGD"):
        Descent("LBFGS", 1.0, 1, 3)


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "Adagrad"])
def test_replicas_train_as_each_alone_would_by_pytorch(optimizer):
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(40, 4, generator=generator), torch.randint(3, (40,), generator=generator)
    seen = []
    network = build("ReZero", seeds=[3, 7])
    losses = descend(network, inputs, targets, Descent(optimizer, 0.02, 4, 8), [3, 7],
                     lambda: seen.append(network.first.weight.grad.norm().item()))  # fmt: skip
    assert len(seen) == 4
    assert min(seen) > 0

    single = build("ReZero", seeds=[7])
    descent = getattr(torch.optim, optimizer)(single.parameters(), lr=0.02)
    expected = []
    for _, index in zip(range(4), batches(40, 8, [7]), strict=False):
        loss = functional.cross_entropy(single(inputs[index])[:, 0], targets[index[:, 0]])
        descent.zero_grad()
        loss.backward()
        descent.step()
        expected.append(loss.item())
    assert losses.dtype == torch.float64
    assert losses[:, 1].tolist() == pytest.approx(expected, rel=1e-4)
    own = functional.cross_entropy(single(inputs[:, None])[:, 0], targets).item()
    found = training_loss(network, inputs, targets, 2, chunk=16)
    assert found[1] == pytest.approx(own, rel=1e-4)
    assert found[0] != pytest.approx(own, rel=1e-3)


def test_a_loss_that_is_no_number_is_infinite():
    network = build("plain", seeds=[0, 1])
    nn.init.constant_(network.last.bias[0], math.nan)
    first, second = training_loss(network, torch.randn(8, 4), torch.zeros(8, dtype=torch.long), 2)
    assert first == math.inf
    assert 0 < second < math.inf


@pytest.mark.parametrize("segments", [1, 2, 5])
@pytest.mark.parametrize("arm", ARMS)
def test_the_profile_is_what_autograd_gives_at_every_boundary(arm, segments):
    network = scaled(build(arm, seeds=[0, 1]), 0.3).double()
    x, targets = torch.randn(7, 2, 4, dtype=torch.float64), torch.randint(3, (7, 2))
    states = [network.begin(x)]
    for layer in network.stack:
        states.append(layer(states[-1]))
    losses = [functional.cross_entropy(network.end(states[-1])[:, r], targets[:, r]) for r in (0, 1)]
    gradients = torch.autograd.grad(sum(losses), states)
    forward, backward = profile(network, x, targets, segments)
    for found, expected in ((forward, states), (backward, gradients)):
        sizes = torch.stack([own.detach().square().mean((1, 2)).sqrt() for own in expected], 1)
        torch.testing.assert_close(found, sizes, rtol=1e-12, atol=0)


def test_the_profile_needs_a_layer_in_each_segment():
    network = build("plain", seeds=[0])
    x, targets = torch.randn(7, 1, 4), torch.zeros(7, 1, dtype=torch.long)
    for segments in (0, 6):
        with pytest.raises(UsageError):
            profile(network, x, targets, segments)


def test_cross_entropies_are_means_over_examples():
    logits, targets = torch.randn(6, 2, 3), torch.randint(3, (6, 2))
    expected = [functional.cross_entropy(logits[:, r], targets[:, r]).item() for r in (0, 1)]
    assert cross_entropies(logits, targets).tolist() == pytest.approx(expected)


def test_a_thinned_series_keeps_its_end_and_takes_the_summary():
    values = torch.tensor([1.0, 5.0, 2.0, 0.0, 4.0])
    assert thin(values, 2) == {"steps": [2, 4, 5], "values": [3.0, 1.0, 4.0]}
    assert thin(values, 2, torch.amax)["values"] == [5.0, 2.0, 4.0]
    assert thin(values)["steps"] == [1, 2, 3, 4, 5]
