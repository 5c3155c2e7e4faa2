"""Perceptrons of several seeds at once are those of each seed alone, and pieces are counted as by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from levada._errors import UsageError
from levada.study.perceptrons import ReplicaPerceptron
from levada.study.pieces import breakpoints, evaluate, num_crossings, num_pieces
from levada.study.training import Recipe, train
from levada.theory import most_pieces, sawtooth_layers

ACTIVATIONS = {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU}


def modules(network, index, activation, norm=False):
    """The same network of one seed, of torch's own layers."""
    layers = []
    pairs = network.replica(index)
    for place, (weight, bias) in enumerate(pairs):
        linear = nn.Linear(*weight.T.shape).to(weight.dtype)
        with torch.no_grad():
            linear.weight.copy_(weight)
            linear.bias.copy_(bias)
        layers.append(linear)
        if place < len(pairs) - 1:
            layers += [nn.BatchNorm1d(len(weight)).to(weight.dtype)] if norm else []
            layers.append(ACTIVATIONS[activation]())
    return nn.Sequential(*layers)


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu"])
@pytest.mark.parametrize("norm", [False, True])
def test_a_replica_is_the_network_of_its_seed(activation, norm):
    network = ReplicaPerceptron(
        [3, 6, 6, 4], activation, [0, 1, 2], norm=norm, initialisation="he", dtype=torch.float64
    )
    x = torch.randn(7, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    out = network(x)
    for index in range(3):
        twin = modules(network, index, activation, norm)
        torch.testing.assert_close(out[:, index], twin(x[:, index]), rtol=1e-10, atol=1e-10)


def test_hidden_layers_of_one_width_add_their_input():
    network = ReplicaPerceptron([3, 5, 5, 2], "tanh", [4], residual=True, dtype=torch.float64)
    x = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (first, second, last) = network.replica(0)
    state = torch.tanh(x @ first[0].T + first[1])
    state = state + torch.tanh(state @ second[0].T + second[1])
    torch.testing.assert_close(network(x.unsqueeze(1))[:, 0], state @ last[0].T + last[1])


@pytest.mark.parametrize(("initialisation", "variance", "biased"), [("standard", 1 / 3, True), ("glorot", 2 / 3, False),
                                                                    ("he", 2.0, False)])  # fmt: skip
def test_weights_have_the_variance_of_their_initialisation(initialisation, variance, biased):
    ((weight, bias),) = ReplicaPerceptron([400, 800], "relu", [0], initialisation=initialisation).replica(0)
    assert 400 * weight.var().item() == pytest.approx(variance, rel=0.02)
    assert bool(bias.abs().max() > 0) == biased
    if biased:
        assert bias.abs().max() <= 1 / 20


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD])
def test_a_replica_trains_as_alone(optimizer):
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(32, 5, generator=generator), torch.randint(3, (32,), generator=generator)
    trained = []
    for seeds in ([0, 1], [1]):
        network = ReplicaPerceptron([5, 8, 8, 3], "relu", seeds, norm=True)
        start = copy.deepcopy(network.replica(-1))
        train(network, inputs, targets, Recipe(5, 8, 0.1), seeds, optimizer(network.parameters(), lr=1.0))
        assert not torch.equal(network.replica(-1)[0][0], start[0][0])
        trained.append(network.replica(-1))
    for (together, bias), (alone, own) in zip(*trained, strict=True):
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(bias, own, rtol=1e-4, atol=1e-5)


def test_a_given_optimizer_is_used_and_takes_the_recipes_rate():
    inputs, targets = torch.eye(4), torch.tensor([0, 1, 0, 1])
    network = ReplicaPerceptron([4, 2], "relu", [0])
    before = network.replica(0)[0][0].clone()
    train(network, inputs, targets, Recipe(1, 4, 0.5), [0], torch.optim.Adam(network.parameters(), lr=9.0))
    moved = (network.replica(0)[0][0] - before).abs()
    assert moved.flatten().tolist() == pytest.approx([0.5] * 8, rel=1e-4), "Adam's first step has its rate's size"
    found = []
    for rate in (0.5, 123.0):
        network = ReplicaPerceptron([4, 2], "relu", [0])
        train(network, inputs, targets, Recipe(1, 4, 0.5), [0], torch.optim.SGD(network.parameters(), lr=rate))
        found.append(network.replica(0)[0][0])
    assert torch.equal(*found)


@pytest.mark.parametrize(("changes", "message"), [
    ({"widths": [3]}, "number of widths"), ({"activation": "gelu"}, "activation must be one of sigmoid, tanh, relu"),
    ({"initialisation": "lecun"}, "initialisation must be one of standard, glorot, he"),
])  # fmt: skip
def test_names_and_widths_are_checked(changes, message):
    given = {"widths": [3, 2], "activation": "relu", "initialisation": "he", **changes}
    with pytest.raises(UsageError, match=message):
        ReplicaPerceptron(given["widths"], given["activation"], [0], initialisation=given["initialisation"])


def hat(height=1.0, shift=0.0):
    """A hat between -1 and 1, as a network: [x+1] - 2[x] + [x-1]."""
    weight = torch.ones(3, 1)
    return [
        (weight, torch.tensor([1.0, 0.0, -1.0])),
        (height * torch.tensor([[1.0, -2.0, 1.0]]), torch.tensor([shift])),
    ]


def test_pieces_and_crossings_by_hand():
    assert breakpoints(hat(), -2.0, 2.0).tolist() == [-2.0, -1.0, 0.0, 1.0, 2.0]
    assert num_pieces(hat(), -2.0, 2.0) == 4
    assert num_pieces(hat(), -0.5, 0.5) == 2
    assert num_pieces(hat(height=0.0), -2.0, 2.0) == 1, "units without weight make no piece"
    assert num_crossings(hat(shift=-0.5), -2.0, 2.0) == 2
    assert num_crossings(hat(shift=-0.95), -2.0, 2.0) == 2, "small values have signs as well"
    assert num_crossings(hat(shift=0.5), -2.0, 2.0) == 0
    small = [(1e-4 * weight, 1e-4 * bias) for weight, bias in hat()[:1]] + hat()[1:]
    assert breakpoints(small, -2.0, 2.0).tolist() == pytest.approx([-2.0, -1.0, 0.0, 1.0, 2.0])
    assert evaluate(hat(), torch.tensor([[0.5]])).item() == 0.5


@pytest.mark.parametrize("seed", range(5))
def test_pieces_are_those_that_a_fine_grid_shows(seed):
    layers = ReplicaPerceptron([1, 5, 5, 1], "relu", [seed]).replica(0)
    x = torch.linspace(-3, 3, 300_001, dtype=torch.float64)
    bends = evaluate(layers, x.unsqueeze(1)).flatten().diff().diff().abs() > 1e-11
    # A kink within a step bends two differences: count runs.
    runs = int(bends[0]) + int((bends[1:] & ~bends[:-1]).sum())
    assert num_pieces(layers, -3.0, 3.0) == runs + 1 > 2
    assert num_pieces(layers, -3.0, 3.0) <= most_pieces([5, 5])


@pytest.mark.parametrize("folds", [1, 3, 9])
def test_the_construction_has_two_to_the_folds_pieces(folds):
    layers = sawtooth_layers(folds)
    assert num_pieces(layers, 0.0, 1.0) == 2**folds
    assert breakpoints(layers, 0.0, 1.0).tolist() == [i / 2**folds for i in range(2**folds + 1)]
    *before, (weight, bias) = layers
    assert num_crossings([*before, (weight, bias - 0.5)], 0.0, 1.0) == 2**folds
