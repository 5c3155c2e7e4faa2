"""Random cotangents against float64 and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from levada._errors import MeasurementError
from levada.probe import cotangent_rms
from levada.probe.cotangent import Cotangents


def sigmoids(depth, dim=16):
    torch.manual_seed(0)
    return nn.Sequential(*[layer for _ in range(depth) for layer in (nn.Linear(dim, dim), nn.Sigmoid())])


def test_deep_sigmoids_far_below_float32_agree_with_float64():
    net, x = sigmoids(120), torch.randn(4, 16)
    _, logs = cotangent_rms(net, lambda: net(x), draws=2, seed=3)
    wide = sigmoids(120).double()
    _, exact = cotangent_rms(wide, lambda: wide(x.double()), draws=2, seed=3)
    assert exact[:, 0].max() < -80
    torch.testing.assert_close(logs, exact, rtol=0, atol=1e-3)
    assert (logs[0] != logs[1]).any()
    assert all(p.grad is None for p in net.parameters())


def test_explosion_beyond_float32():
    net = nn.Sequential(*[nn.Linear(8, 8, bias=False) for _ in range(30)])
    for layer in net:
        layer.weight.data.copy_(1e3 * torch.eye(8))
    _, logs = cotangent_rms(net, lambda: net(1e-40 * torch.ones(4, 8)), draws=1)
    expected = logs[0, -1] + 3.0 * torch.arange(29, -1, -1, dtype=torch.float64)
    torch.testing.assert_close(logs[0], expected, rtol=0, atol=1e-4)


def test_skip_around_everything_is_not_lost():
    """The first block reaches the output through a vanishing chain and, around it, through a skip of gain 1e-45."""

    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(8, 8)
            self.chain = nn.ModuleList(nn.Linear(8, 8) for _ in range(6))

        def forward(self, x):
            start = y = self.first(x)
            for layer in self.chain:
                y = 1e-10 * layer(y)
            return y + 1e-20 * (1e-25 * start)

    torch.manual_seed(0)
    net, x = Skip(), torch.randn(4, 8)
    _, logs = cotangent_rms(net, lambda: net(x), draws=1, seed=1)
    wide = Skip().double()
    wide.load_state_dict(net.state_dict())
    _, exact = cotangent_rms(wide, lambda: wide(x.double()), draws=1, seed=1)
    assert exact[0, 0] == pytest.approx(-45, abs=0.3)
    torch.testing.assert_close(logs, exact, rtol=0, atol=1e-3)


def test_overwritten_boundary_is_measured_before_it_is_overwritten():
    class Inplace(nn.Module):
        def __init__(self, inplace):
            super().__init__()
            self.layers, self.inplace = nn.ModuleList(nn.Linear(8, 8) for _ in range(4)), inplace

        def forward(self, x):
            x = torch.relu(self.layers[0](x))
            for layer in self.layers[1:]:
                y = layer(x.clone())
                x = x.add_(y) if self.inplace else x + y
            return x

    results = []
    for inplace in (False, True):
        torch.manual_seed(0)
        net = Inplace(inplace)
        x = torch.randn(4, 8)
        results.append(cotangent_rms(net, lambda net=net, x=x: net(x), draws=1)[1])
    torch.testing.assert_close(results[0], results[1])


def test_no_path_and_no_graph():
    class Detached(nn.Module):
        def __init__(self):
            super().__init__()
            self.frozen = nn.Linear(4, 4).requires_grad_(False)
            self.cut, self.last = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.last(torch.relu(self.cut(self.frozen(x)) * 0.0) + 1.0)

    net = Detached()
    execution, logs = cotangent_rms(net, lambda: net(torch.ones(2, 4)), draws=1)
    assert [site.name for site in execution.sites] == ["frozen", "cut", "last"]
    assert math.isnan(logs[0, 0])
    state = torch.get_rng_state()
    cotangent_rms(net, lambda: net(torch.ones(2, 4)), draws=3)
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(MeasurementError, match="with a graph"):
        cotangent_rms(net.frozen, lambda: net.frozen(torch.ones(2, 4)))


def test_later_draws_are_those_of_a_recorded_pass():
    net, x = sigmoids(60), torch.randn(4, 16)
    cotangents = Cotangents(net)
    for seed in range(3):
        execution, logs = cotangents.draw(lambda: net(x + seed), seed)  # noqa: B023
        again, expected = cotangent_rms(net, lambda: net(x + seed), draws=1, seed=seed)  # noqa: B023
        torch.testing.assert_close(logs, expected[0], rtol=0, atol=1e-12)
        assert execution.sites == again.sites
    assert cotangents.recorded == 1


class Fork(nn.Module):
    """The boundaries are the same on both paths, and only on one of them does a skip go around all of them."""

    def __init__(self):
        super().__init__()
        self.first, self.skip, self.last = nn.Linear(8, 8), False, nn.Linear(8, 8)
        self.chain = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        start = y = self.first(x)
        for layer in self.chain:
            y = 1e-15 * layer(y)
        return self.last(y + 1e-35 * start if self.skip else y)


def test_a_pass_on_another_path_is_recorded_again():
    torch.manual_seed(0)
    net, x = Fork(), torch.randn(4, 8)
    cotangents = Cotangents(net)
    plain = cotangents.draw(lambda: net(x), 0)[1]
    net.skip = True
    around = cotangents.draw(lambda: net(x), 0)[1]
    assert cotangents.recorded == 2
    assert plain[0] < -42
    assert around[0] == pytest.approx(-35, abs=1.5)
    torch.testing.assert_close(around, cotangent_rms(net, lambda: net(x), draws=1, seed=0)[1][0])
