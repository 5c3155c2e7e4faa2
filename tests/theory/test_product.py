from __future__ import annotations

import math

import pytest
import torch

from levada._errors import UsageError
from levada.theory import gaussian_drift, orthogonal_tanh


def test_the_drift_of_one_layer_is_that_of_chi_squared():
    # ln(chi^2_2 / 2) / 2 has mean -gamma / 2 and variance pi^2 / 24: chi squared with 2 degrees is exponential.
    drift = gaussian_drift(1, 2)
    assert drift.mean == pytest.approx(-0.5772156649 / 2)
    assert drift.deviation == pytest.approx(math.pi / math.sqrt(24))
    deep = gaussian_drift(900, 64)
    assert deep.mean == pytest.approx(-900 / 128, rel=0.02)
    assert deep.deviation == pytest.approx(math.sqrt(900 / 128), rel=0.02)


def test_products_of_gaussian_matrices_drift_as_predicted():
    dim, depth, count = 6, 30, 800
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, dim, 1, generator=generator, dtype=torch.float64)
    first = x.norm(dim=1)
    for _ in range(depth):
        x = torch.randn(count, dim, dim, generator=generator, dtype=torch.float64) / dim**0.5 @ x
    logs = (x.norm(dim=1) / first).log()
    drift = gaussian_drift(depth, dim)
    assert logs.mean().item() == pytest.approx(drift.mean, abs=4 * drift.deviation / count**0.5)
    assert logs.std().item() == pytest.approx(drift.deviation, rel=0.1)


@pytest.mark.parametrize("dim", [4, 32])
def test_orthogonal_tanh_networks_shrink_as_predicted(dim):
    depth, count, q = 400, 12, 1 / 800
    generator = torch.Generator().manual_seed(1)
    x = q**0.5 * torch.randn(count, 64, dim, generator=generator, dtype=torch.float64)
    x = x / x.square().mean(-1, keepdim=True).sqrt() * q**0.5
    states = [x.requires_grad_()]
    for _ in range(depth):
        weight = torch.linalg.qr(torch.randn(count, dim, dim, generator=generator, dtype=torch.float64)).Q
        states.append(torch.tanh(states[-1] @ weight))
    top = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    (bottom,) = torch.autograd.grad(states[-1], states[0], top, retain_graph=True)
    found = orthogonal_tanh(depth, dim, q)
    assert (states[-1].norm() / x.norm()).item() == pytest.approx(found.signal, rel=0.01)
    assert (bottom.norm() / top.norm()).item() == pytest.approx(found.gradient, rel=0.01)
    (along,) = torch.autograd.grad(states[-1], states[0], states[-1].detach())
    assert (along.norm() / states[-1].norm()).item() == pytest.approx(found.signal**3, rel=0.02)


def test_sizes_below_one_are_refused():
    for wrong in (lambda: gaussian_drift(0, 4), lambda: gaussian_drift(4, 0), lambda: orthogonal_tanh(0, 4, 0.1),
                  lambda: orthogonal_tanh(4, 0, 0.1), lambda: orthogonal_tanh(4, 4, -0.1)):  # fmt: skip
        with pytest.raises(UsageError):
            wrong()
