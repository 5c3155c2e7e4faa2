"""Residual streams whose activations have a mean: the law that mean-field theory misses, against finite networks."""

from __future__ import annotations

import math

import pytest
import torch

from levada import theory

ACTIVATIONS = {"relu": torch.relu, "sigmoid": torch.sigmoid, "tanh": torch.tanh}


def measured(activation, weight_variance, depth, dim, alignment, seed):
    generator = torch.Generator().manual_seed(seed)
    state = torch.randn(dim, generator=generator, dtype=torch.float64).requires_grad_()
    states = [state]
    for _ in range(depth):
        weight = torch.randn(dim, dim, generator=generator, dtype=torch.float64) * (weight_variance / dim) ** 0.5
        states.append(states[-1] + ACTIVATIONS[activation](weight @ states[-1]))
    last = states[-1].detach()
    along, rest = last / last.norm(), torch.randn(dim, generator=generator, dtype=torch.float64)
    rest -= (rest @ along) * along
    top = math.sqrt(alignment) * along + math.sqrt(1 - alignment) * rest / rest.norm()
    gradients = torch.autograd.grad(states[-1], states, top)
    return torch.stack([gradient.norm() for gradient in gradients]), state.detach()


@pytest.mark.parametrize(
    ("activation", "weight_variance", "alignment"), [("relu", 2.0, 0.05), ("relu", 1 / 3, 0.0), ("sigmoid", 4.0, 0.05)]
)
def test_it_holds_in_finite_networks_where_mean_field_does_not(activation, weight_variance, alignment):
    depth, dim = 10, 700
    logs = []
    for seed in range(3):
        norms, state = measured(activation, weight_variance, depth, dim, alignment, seed)
        predicted = theory.coherent_residual_gradient(
            activation, weight_variance, 0.0, depth, float(state.square().mean()), float(state.mean()), alignment
        )
        logs.append((norms / predicted).log())
    assert torch.stack(logs).mean(0).abs().max() < 0.1


def test_without_mean_or_alignment_it_is_mean_field():
    coherent = theory.coherent_residual_gradient("tanh", 1.0, 0.0, depth=8)
    plain = theory.propagate_residual("tanh", 1.0, 0.0, 8, activation_first=False).cumulative
    assert coherent.numpy() == pytest.approx(plain.numpy(), rel=1e-6)


def test_alignment_is_a_share():
    with pytest.raises(ValueError, match="between 0 and 1, got 2"):
        theory.coherent_residual_gradient("relu", 2.0, 0.0, depth=3, alignment=2)
