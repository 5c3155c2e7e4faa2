"""Jacobians against torch.func, closed forms and random matrix theory."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import jacrev
from torch.nn.attention import SDPBackend, sdpa_kernel

from levada.probe import (
    largest_singular_value,
    linearise,
    singular_values,
)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.attend = nn.LayerNorm(4), nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        y = self.norm(x)
        return x + self.attend(y, y, y, need_weights=False)[0]


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 5)

    def forward(self, x):
        x = x.mul_(2.0)
        y = torch.tanh_(self.linear(x.clone()))
        return y.add_(x).relu_()


class Cube(torch.autograd.Function):
    """No forward mode, no batching rule."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * gradient


class CubeOnce(Cube):
    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * gradient


class Custom(nn.Module):
    def __init__(self, function=Cube, dim=5):
        super().__init__()
        self.function, self.first, self.second = function, nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x):
        return self.second(self.function.apply(self.first(x)))


MODELS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 3)), (4, 6)),
    "convolution": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 3), nn.Flatten()),
        (3, 2, 5, 5),
    ),
    "attention": (lambda: nn.Sequential(Attention(), nn.Linear(4, 4), Attention()), (3, 3, 4)),
    "layer norm": (lambda: nn.Sequential(nn.Linear(5, 5), nn.LayerNorm(5), nn.SiLU(), nn.Linear(5, 5)), (4, 5)),
    "batch norm, evaluated": (lambda: nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5), nn.ReLU()).eval(), (4, 5)),
    "lstm": (lambda: nn.Sequential(nn.Linear(3, 3), Last(nn.LSTM(3, 4, batch_first=True))), (2, 4, 3)),
    "one sample": (lambda: nn.Sequential(nn.Linear(5, 5), nn.Softplus(), nn.Linear(5, 5)), (1, 5)),
}


class Last(nn.Module):
    def __init__(self, recurrent):
        super().__init__()
        self.recurrent = recurrent

    def forward(self, x):
        return self.recurrent(x)[0][:, -1]


def exact(model, x):
    """Jacobians of each sample, from torch.func."""
    with sdpa_kernel(SDPBackend.MATH):
        found = torch.stack([jacrev(lambda one: model(one[None])[0])(one) for one in x])
    return found.reshape(len(x), -1, x[0].numel())


def in_double(make, shape):
    torch.manual_seed(0)
    return make().double(), torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("name", MODELS)
def test_matrices_and_values_are_those_of_torch_func(name):
    model, x = in_double(*MODELS[name])
    jacobian = linearise(model, x).jacobian()
    expected = exact(model, x)
    torch.testing.assert_close(jacobian.matrix(), expected, rtol=1e-10, atol=1e-12)
    values = torch.linalg.svdvals(expected)
    torch.testing.assert_close(singular_values(jacobian).values, values, rtol=1e-9, atol=1e-11)
    fresh = linearise(model, x).jacobian()
    krylov = singular_values(fresh, steps=200, method="lanczos")
    assert krylov.method == "lanczos"
    known = ~krylov.values.isnan()
    torch.testing.assert_close(krylov.values[known], values[known], rtol=1e-8, atol=1e-8)
    power = largest_singular_value(fresh, tolerance=1e-6, max_iterations=5000)
    assert power.converged
    torch.testing.assert_close(power.value, values[:, 0], rtol=1e-6, atol=0)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's own, at first use
@pytest.mark.parametrize("name", MODELS)
def test_products_are_adjoint_and_agree_with_forward_mode(name):
    model, x = in_double(*MODELS[name])
    jacobian = linearise(model, x).jacobian()
    v = torch.randn(jacobian.samples, jacobian.inputs, dtype=torch.float64)
    u = torch.randn(jacobian.samples, jacobian.outputs, dtype=torch.float64)
    forward, back = jacobian.jvp(v), jacobian.vjp(u)
    torch.testing.assert_close((u * forward).sum(1), (back * v).sum(1))
    if name != "lstm":  # no forward mode in its fused kernel
        with sdpa_kernel(SDPBackend.MATH):
            _, expected = torch.func.jvp(model, (x,), (v.reshape(x.shape),))
        torch.testing.assert_close(forward, expected.reshape(forward.shape))
