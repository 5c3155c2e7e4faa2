"""Weights that look wrong and are right: gates that start closed, a SIREN of any frequency, kernels that blur."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, weight_norm

import levada
from levada.diagnose import check
from levada.diagnose.scales import suspects

RULE = "misscaled_weights"
X = torch.randn(128, 16, generator=torch.Generator().manual_seed(0))
Y = torch.randint(4, (128,), generator=torch.Generator().manual_seed(1))


class Highway(nn.Module):
    def __init__(self, dim, bias):
        super().__init__()
        self.h, self.t = nn.Linear(dim, dim), nn.Linear(dim, dim)
        nn.init.constant_(self.t.bias, bias)

    def forward(self, x):
        gate = self.t(x).sigmoid()
        return x + gate * (torch.relu(self.h(x)) - x)


class Sine(nn.Module):
    def __init__(self, inputs, outputs, omega, *, first=False):
        super().__init__()
        self.linear, self.omega = nn.Linear(inputs, outputs), omega
        bound = 1 / inputs if first else math.sqrt(6 / inputs) / omega
        nn.init.uniform_(self.linear.weight, -bound, bound)

    def forward(self, x):
        return torch.sin(self.omega * self.linear(x))


class Blur(nn.Conv2d):
    def __init__(self, channels):
        super().__init__(channels, channels, 3, stride=2, padding=1, groups=channels, bias=False)
        row = torch.tensor([1.0, 2.0, 1.0])
        self.weight.data.copy_((row[:, None] * row / 16).expand_as(self.weight))


def highway(layers, bias):
    return nn.Sequential(nn.Linear(16, 64), *[Highway(64, bias) for _ in range(layers)], nn.Linear(64, 4))


def stacked(bias):
    branches = [nn.Sequential(nn.Linear(64, 64), nn.ReLU()) for _ in range(8)]
    return nn.Sequential(nn.Linear(16, 64), levada.Stack(branches, levada.Highway, dim=64, bias=bias), nn.Linear(64, 4))


def siren(omega):
    last = nn.Linear(64, 1)
    nn.init.uniform_(last.weight, -math.sqrt(6 / 64) / omega, math.sqrt(6 / 64) / omega)
    return nn.Sequential(Sine(2, 64, omega, first=True), Sine(64, 64, omega), Sine(64, 64, omega), last)


def blurred():
    made = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), Blur(16), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), Blur(32)]
    return nn.Sequential(*made, nn.Flatten(), nn.Linear(32 * 16, 4))


AXIS = torch.linspace(-1, 1, 24)
GRID = torch.cartesian_prod(AXIS, AXIS)
PICTURE = torch.sin(8 * GRID[:, :1] * GRID[:, 1:]) + torch.cos(11 * GRID[:, :1])
IMAGES = torch.randn(64, 1, 16, 16, generator=torch.Generator().manual_seed(2))

HEALTHY = {
    "highway, 5 layers, -3": (lambda: highway(5, -3.0), (X, Y), 1e-3),
    "highway, 10 layers, -3": (lambda: highway(10, -3.0), (X, Y), 1e-3),
    "highway, 10 layers, -4": (lambda: highway(10, -4.0), (X, Y), 1e-3),
    "levada's highway, -3": (lambda: stacked(-3.0), (X, Y), 1e-3),
    "levada's highway, -4": (lambda: stacked(-4.0), (X, Y), 1e-3),
    "SIREN, omega 100": (lambda: siren(100), (GRID, PICTURE), 1e-4),
    "SIREN, omega 100, parts": (lambda: siren(100), [(GRID[i::4], PICTURE[i::4]) for i in range(4)], 1e-4),
    "blur": (blurred, (IMAGES, Y[:64]), 1e-3),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_model_is_let_alone(name):
    build, batch, lr = HEALTHY[name]
    torch.manual_seed(0)
    report = check(build(), batch, loss=nn.functional.mse_loss if "SIREN" in name else None, optimizer="Adam", lr=lr)
    assert report.verdict == "healthy", str(report)


@pytest.mark.parametrize(("bias", "hit"), [(-10.0, False), (-3.0, False), (-11.0, True), (3.0, True)])
def test_a_constant_from_minus_ten_to_zero_is_a_closed_gate(bias, hit):
    layer = nn.Linear(16, 16)
    nn.init.constant_(layer.bias, bias)
    with torch.no_grad():
        layer.weight.mul_(0.1)
    assert bool(suspects(layer, lambda: layer(X))) is hit
    assert not suspects(layer, lambda: layer(X).sigmoid())
    assert not suspects(layer, lambda: nn.Sigmoid()(layer(X)))


@pytest.mark.parametrize(("factor", "hit"), [(1.0, True), (100.0, False), (1e6, True)])
def test_small_weights_are_judged_with_the_number_that_makes_up_for_them(factor, hit):
    layer = nn.Linear(16, 16)
    with torch.no_grad():
        layer.weight.mul_(0.01)
    assert bool(suspects(layer, lambda: torch.sin(factor * layer(X)))) is hit
    assert bool(suspects(layer, lambda: torch.sin(layer(X) * factor))) is hit


def test_equal_kernels_are_suspected_unless_each_channel_has_its_own():
    grouped, whole = Blur(8), nn.Conv2d(8, 8, 3)
    nn.init.constant_(whole.weight, 0.1)
    assert not suspects(grouped, lambda: None)
    assert [s.name for s in suspects(whole, lambda: None)] == ["weight"]


def pruned(name):
    def wrap(layer):
        return prune.random_unstructured(layer, name, amount=0.2)

    return wrap


WRAPPED = {
    "weight_norm": weight_norm,
    "parametrised": parametrizations.weight_norm,
    "spectral": parametrizations.spectral_norm,
    "pruned weight": pruned("weight"),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", WRAPPED)
def test_a_large_bias_of_a_layer_whose_weight_is_computed_is_found(kind):
    torch.manual_seed(0)
    layer = nn.Linear(16, 16)
    nn.init.constant_(layer.bias, 20.0)
    layer = WRAPPED[kind](layer)
    assert "bias" in [s.name for s in suspects(layer, lambda: layer(X))]


def test_a_bias_that_is_computed_is_passed_over():
    layer = nn.Linear(16, 16)
    nn.init.constant_(layer.bias, 20.0)
    layer = pruned("bias")(layer)
    assert not suspects(layer, lambda: layer(X))


def test_pruned_norms_and_gates_raise_nothing():
    norm = nn.LayerNorm(16)
    nn.init.constant_(norm.bias, -9.0)
    pruned("weight")(norm)
    assert [s.name for s in suspects(norm, lambda: norm(X))] == ["bias"]
    cell = pruned("bias_hh")(nn.LSTMCell(16, 16))
    assert not suspects(cell, lambda: cell(X))
