"""Theory's gain for a given model: golden values, agreement with measurement, and silence where it has no answer."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import levada
from levada.diagnose import check


def plain(activation, depth=12, dim=128, *, norm=False, seed=0):
    torch.manual_seed(seed)
    layers = []
    for _ in range(depth):
        layers += [nn.Linear(dim, dim), *([nn.BatchNorm1d(dim)] if norm else []), activation()]
    return nn.Sequential(*layers, nn.Linear(dim, 10))


class PreNorm(nn.Module):
    def __init__(self, dim, scale=1.0):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.scale = scale

    def forward(self, x):
        return x + self.scale * self.down(torch.relu(self.up(self.norm(x))))


class ConvNormRelu(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x):
        return torch.relu(self.norm(self.conv(x)))


def hidden(report, key):
    return [block[key] for block in report.blocks[2:-1] if key in block]


@pytest.mark.parametrize(
    ("activation", "golden"),
    [(nn.ReLU, math.sqrt(1 / 6)), (nn.Sigmoid, 0.1415), (nn.GELU, math.sqrt(1 / 12)), (nn.Tanh, math.sqrt(1 / 3))],
)
def test_gain_of_default_initialisation(activation, golden):
    report = check(plain(activation, depth=20), torch.randn(32, 128))
    # Tanh and GELU reach their last gain only when the signal has died down to its biases.
    assert hidden(report, "gain_predicted")[-5:] == pytest.approx([golden] * 5, rel=0.04)
    decay = report.summary["gradient_decay_per_block"]
    assert decay["value"] == pytest.approx(decay["predicted"], rel=0.06)
    assert decay["predicted_share"] == 1.0


def test_fifty_relu_layers_lose_the_predicted_decades():
    report = check(plain(nn.ReLU, depth=50), torch.randn(16, 128))
    decay = report.summary["gradient_decay_per_block"]
    assert decay["predicted"] == pytest.approx(0.408, rel=0.01)
    assert decay["low"] <= decay["predicted"] <= decay["high"]
    # Over 48 hidden steps: 10^(48 log10 0.408) = 10^-18.7, a size that a float32 gradient cannot hold beside 1.
    assert report.summary["gradient_ratio_decades"] == pytest.approx(49 * math.log10(math.sqrt(1 / 6)), abs=0.6)
    predicted = [block["gradient_predicted"] for block in report.blocks]
    assert predicted[-1] == 1.0
    assert predicted[0] == pytest.approx(math.prod(b["gain_predicted"] for b in report.blocks[1:]), abs=0)


def test_batch_normalised_relu_layers_grow_by_the_golden_factor():
    report = check(plain(nn.ReLU, depth=12, dim=256, norm=True), torch.randn(128, 256))
    assert hidden(report, "gain_predicted") == pytest.approx([math.sqrt(math.pi / (math.pi - 1))] * 10, rel=2e-3)
    assert hidden(report, "signal_predicted") == pytest.approx([math.sqrt(0.5)] * 10, rel=2e-3)  # of max(N(0, 1), 0)
    assert report.summary["gradient_decay_per_block"]["value"] == pytest.approx(1.2112, abs=0.03)


def normalised_convolutions():
    blocks = [ConvNormRelu(32) for _ in range(6)]
    return nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), *blocks, nn.Flatten(), nn.Linear(2048, 10))


def strided_convolutions():
    shapes = ((3, 64, 2, 1), (64, 64, 1, 1), (64, 64, 1, 0))
    layers = [m for i, o, stride, pad in shapes for m in (nn.Conv2d(i, o, 3, stride, pad), nn.GELU())]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(1024, 10))


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: nn.Sequential(*[PreNorm(64) for _ in range(6)], nn.Linear(64, 10)), (32, 64)),
        (lambda: nn.Sequential(*[PreNorm(64, 0.3) for _ in range(6)], nn.Linear(64, 10)), (32, 64)),
        (normalised_convolutions, (32, 3, 8, 8)),
        (strided_convolutions, (32, 3, 12, 12)),
    ],
    ids=["pre-norm residual", "scaled residual", "convolution and batch norm", "strided and padded convolution"],
)
def test_predictions_agree_with_what_is_measured(build, shape):
    torch.manual_seed(0)
    report = check(build(), torch.randn(shape))
    for block in report.blocks[1:]:
        assert block["gain_measured"] == pytest.approx(block["gain_predicted"], rel=0.15), block
    for block in report.blocks[:-1]:  # ten outputs are too few for their size to be the mean one
        assert block["signal_rms"] == pytest.approx(block["signal_predicted"], rel=0.15), block


def test_the_spread_between_inputs_is_predicted_as_it_dies():
    report = check(plain(nn.Sigmoid, depth=5, dim=256), torch.randn(64, 256))
    for block in report.blocks[:-1]:
        assert block["signal_spread"] == pytest.approx(block["spread_predicted"], rel=0.1)


class Unknown(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.linear, self.kind = nn.Linear(16, 16), kind

    def forward(self, x):
        z = self.linear(x)
        if self.kind == "product":
            return z * torch.sigmoid(z)
        if self.kind == "two activations":
            return torch.relu(torch.tanh(z))
        if self.kind == "correlated skip":
            return z + torch.relu(z)
        return torch.relu(x) + torch.relu(z)


@pytest.mark.parametrize("kind", ["product", "two activations", "correlated skip", "coherent skip"])
def test_no_number_where_theory_has_none(kind):
    report = check(nn.Sequential(nn.Linear(16, 16), nn.Tanh(), Unknown(kind), nn.Linear(16, 4)), torch.randn(32, 16))
    block = next(b for b in report.blocks if b["site"].startswith("2"))
    assert "gain_predicted" not in block
    assert block["prediction_missing"]
    # What comes after starts afresh from what was measured, and says so.
    assert report.blocks[-1]["gain_predicted"] > 0
    assert kind == "coherent skip" or "prediction_from" in report.blocks[-1]


def test_weights_with_a_mean_are_no_mean_field():
    model = plain(nn.ReLU, depth=3, dim=32)
    with torch.no_grad():
        model[2].weight.abs_()
    report = check(model, torch.randn(32, 32))
    assert "mean" in report.blocks[1]["prediction_missing"]


def test_a_scaled_residual_stack_is_predicted_in_every_block():
    torch.manual_seed(0)
    branches = [nn.Sequential(nn.ReLU(), nn.Linear(128, 128)) for _ in range(20)]
    stack = levada.Stack(branches, levada.SkipInit, dim=128, init="depth")
    report = check(levada.initialise.he(nn.Sequential(nn.Linear(32, 128), stack)), torch.randn(64, 32))
    gains = [(b["gain_measured"], b["gain_predicted"]) for b in report.blocks[1:]]
    assert all(p == pytest.approx((1 + 1 / 20) ** 0.5, rel=0.03) for _, p in gains)
    assert [m for m, _ in gains] == pytest.approx([p for _, p in gains], rel=0.03)
