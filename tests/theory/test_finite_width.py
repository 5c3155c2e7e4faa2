"""Infinite-width predictions against networks of finite width, by backward passes with random cotangents."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from levada.theory import (
    batch_norm_gradient_gain,
    batch_norm_residual_gradient,
    default_variances,
    gradient_correlation,
    propagate,
    propagate_correlation,
    propagate_residual,
)

FUNCTIONS = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "gelu": functional.gelu,
    "erf": torch.erf,
    "silu": functional.silu,
}


def layer(dim, weight_variance, bias_variance, generator):
    weight = torch.randn(dim, dim, generator=generator) * math.sqrt(weight_variance / dim)
    return weight, torch.randn(dim, generator=generator) * math.sqrt(bias_variance)


def rms(x):
    return x.square().mean().sqrt().item()


@pytest.mark.parametrize(
    ("name", "weights", "biases"),
    [
        ("sigmoid", 1.0, 0.0),
        ("sigmoid", 16.0, 0.1),
        ("tanh", *default_variances(512)),
        ("tanh", 2.5, 0.05),
        ("relu", 2.0, 0.0),
        ("relu", *default_variances(512)),
        ("gelu", 1.0, 0.1),
        ("erf", 1.0, 0.05),
        ("silu", 2.0, 0.0),
    ],
)
def test_gradient_gain_per_layer(name, weights, biases):
    generator = torch.Generator().manual_seed(0)
    dim, depth, batch = 512, 5, 32
    log_gains, signals = [], []
    for _ in range(6):
        first = torch.randn(batch, dim, generator=generator).requires_grad_()
        z = first
        for _ in range(depth):
            weight, bias = layer(dim, weights, biases, generator)
            z = functional.linear(FUNCTIONS[name](z), weight, bias)
        (gradient,) = torch.autograd.grad(z, first, torch.randn(batch, dim, generator=generator))
        log_gains.append(math.log(rms(gradient)) / depth)
        signals.append(z.detach().square().mean().item())
    predicted = propagate(name, weights, biases, depth)
    gain = math.exp(sum(log_gains) / len(log_gains))
    assert gain == pytest.approx(predicted.cumulative[0].item() ** (1 / depth), rel=0.02)
    assert sum(signals) / len(signals) == pytest.approx(predicted.q[-1].item(), rel=0.08)


@pytest.mark.parametrize(
    ("name", "weights", "first"),
    [("tanh", 1.0, True), ("relu", 2.0, True), ("tanh", 1.0, False), ("sigmoid", 1.0, False)],
)
def test_gradient_gain_of_residual_blocks(name, weights, first):
    generator = torch.Generator().manual_seed(1)
    dim, depth, phi = 512, 8, FUNCTIONS[name]
    stream = start = torch.randn(32, dim, generator=generator).requires_grad_()
    for _ in range(depth):
        weight, _ = layer(dim, weights, 0.0, generator)
        stream = stream + 0.7 * (phi(stream) @ weight.T if first else phi(stream @ weight.T))
    (gradient,) = torch.autograd.grad(stream, start, torch.randn(32, dim, generator=generator))
    predicted = propagate_residual(name, weights, 0.0, depth, multiplier=0.7, activation_first=first)
    assert rms(gradient) ** (1 / depth) == pytest.approx(predicted.cumulative[0].item() ** (1 / depth), rel=0.02)
    assert stream.square().mean().item() == pytest.approx(predicted.q[-1].item(), rel=0.08)


@pytest.mark.parametrize(("name", "weights", "biases"), [("relu", 2.0, 0.0), ("tanh", 2.0, 0.05)])
def test_signals_grow_alike_and_gradients_shatter(name, weights, biases):
    generator = torch.Generator().manual_seed(2)
    dim, depth, pairs = 512, 4, 64
    signal = gradient = 0.0
    for _ in range(3):
        first = torch.randn(2, pairs, dim, generator=generator).requires_grad_()  # independent inputs
        z = first
        for _ in range(depth):
            weight, bias = layer(dim, weights, biases, generator)
            z = functional.linear(FUNCTIONS[name](z), weight, bias)
        cotangent = torch.randn(pairs, dim, generator=generator).expand(2, -1, -1)
        (g,) = torch.autograd.grad(z, first, cotangent)
        signal += functional.cosine_similarity(z[0], z[1], dim=-1).mean().item() / 3
        gradient += functional.cosine_similarity(g[0], g[1], dim=-1).mean().item() / 3
    assert signal == pytest.approx(propagate_correlation(name, weights, biases, depth)[-1].item(), abs=0.02)
    assert gradient == pytest.approx(gradient_correlation(name, weights, biases, depth)[-1].item(), abs=0.02)


def test_batch_norm_explodes_without_skips():
    generator = torch.Generator().manual_seed(3)
    dim, batch, depth = 384, 256, 10
    h, boundaries = torch.randn(batch, dim, generator=generator).requires_grad_(), []
    for _ in range(depth):
        weight, _ = layer(dim, 2.0, 0.0, generator)
        h = torch.relu(functional.batch_norm(h @ weight.T, None, None, training=True))
        boundaries.append(h)
    ends = torch.autograd.grad(h, [boundaries[1], boundaries[-2]], torch.randn(batch, dim, generator=generator))
    assert (rms(ends[0]) / rms(ends[1])) ** (1 / (depth - 3)) == pytest.approx(
        batch_norm_gradient_gain("relu"), rel=0.02
    )


@pytest.mark.parametrize("branch_layers", [1, 2])
def test_batch_norm_grows_as_a_power_of_depth_with_skips(branch_layers):
    generator = torch.Generator().manual_seed(4)
    dim, batch, depth = 256, 192, 16
    stream = start = torch.randn(batch, dim, generator=generator).requires_grad_()
    for _ in range(depth):
        branch = stream
        for _ in range(branch_layers):
            weight, _ = layer(dim, 2.0, 0.0, generator)
            branch = torch.relu(functional.batch_norm(branch, None, None, training=True)) @ weight.T
        stream = stream + branch
    (gradient,) = torch.autograd.grad(stream, start, torch.randn(batch, dim, generator=generator))
    predicted = batch_norm_residual_gradient(depth, branch_layers=branch_layers)[0].item()
    assert rms(gradient) == pytest.approx(predicted, rel=0.06)
