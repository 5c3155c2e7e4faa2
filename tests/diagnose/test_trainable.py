"""The depth that can be trained against theory's, and how a check tells it."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

import levada
from levada import theory
from levada.diagnose.check import examine
from levada.diagnose.facts import facts_of
from levada.diagnose.trainable import GRADIENT_SCALES, SCALES, TrainableDepth, trainability, trainable_depth
from levada.report.depth import depth_lines

SGD = {"optimizer": "SGD", "lr": 0.1}


def network(activation: type[nn.Module], variance: float, bias: float, depth: int, *, dim: int = 128) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(*(m for _ in range(depth) for m in (nn.Linear(dim, dim), activation())), nn.Linear(dim, 4))
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, 0, math.sqrt(variance / dim))
            nn.init.normal_(layer.bias, 0, math.sqrt(bias))
    return net


def batch(dim: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(32, dim, generator=generator), torch.arange(32) % 4


def depth_of(net: nn.Module, **how: object) -> TrainableDepth:
    found = trainable_depth(examine(net, batch(), **{**SGD, **how})[1])
    assert isinstance(found, TrainableDepth)
    return found


def test_in_order_it_is_six_correlation_scales_as_measured_and_as_theory_walks_the_blocks():
    found, expected = depth_of(network(nn.Tanh, 1.0, 0.05, 40)), theory.trainable_depth("tanh", 1.0, 0.05)
    assert found.value == pytest.approx(expected, rel=0.1)
    assert found.predicted == pytest.approx(expected, rel=0.1)
    assert found.low < expected < found.high
    assert found.limited_by == "correlation"
    assert found.blocks == 40


def test_in_chaos_inputs_that_are_alike_are_driven_apart_by_chi():
    found, scales = depth_of(network(nn.Tanh, 4.0, 0.05, 20)), theory.depth_scales("tanh", 4.0, 0.05)
    assert scales.chi > 1.3
    assert found.value == pytest.approx(SCALES * scales.gradient, rel=0.15)
    assert found.predicted == pytest.approx(SCALES * scales.gradient, rel=0.05)


@pytest.mark.parametrize("variance", [1.0, 4.0])
def test_a_gradient_that_changes_with_the_signal_counts_unless_the_optimizer_rescales_it(variance):
    # ReLU multiplies signal and gradient by sqrt(variance / 2): what inputs do to each other stays as it is.
    net = network(nn.ReLU, variance, 0.0, 20)
    plain, rescaled = depth_of(net), depth_of(net, optimizer="AdamW", lr=1e-3)
    assert plain.value == pytest.approx(GRADIENT_SCALES / abs(math.log(variance / 2)), rel=0.1)
    assert plain.limited_by == "gradient"
    assert rescaled.value > 2 * plain.value
    assert rescaled.limited_by != "gradient"


def test_a_skip_makes_it_deeper_and_trainability_is_it_over_the_depth():
    blocks = [nn.Sequential(nn.Tanh(), nn.Linear(32, 32)) for _ in range(24)]
    nets = [
        nn.Sequential(levada.Stack(blocks, kind, dim=32), nn.Linear(32, 4)) for kind in (levada.Plain, levada.Residual)
    ]
    plain, residual = (examine(net, batch(32), **SGD)[1] for net in nets)
    assert 3 * trainability(plain) < trainability(residual)
    found = trainable_depth(plain)
    assert trainability(plain) == pytest.approx(found.value / 24)


def test_where_blocks_are_few_it_is_unknown_with_its_reason():
    report, trace = examine(network(nn.Tanh, 1.0, 0.05, 3), batch(), **SGD)
    assert "trainable_depth" not in report.summary
    assert "fewer than 4 blocks" in report.summary["unknown"]["trainable_depth"]
    assert trainability(trace) is None
    assert depth_lines(report.to_dict()["summary"]) == []


def test_the_report_tells_it_in_text_in_json_and_in_one_line():
    report = levada.check(network(nn.Tanh, 1.0, 0.05, 30), batch(), **SGD)
    told = json.loads(report.to_json())["summary"]["trainable_depth"]
    assert set(told) == {"value", "low", "high", "predicted", "limited_by", "blocks"}
    (line,) = depth_lines({"trainable_depth": told})
    assert line.startswith(f"trainable depth: about {told['value']:.0f} blocks of 30 (interval ")
    assert line.endswith("limited by what becomes of differences between inputs")
    assert line in str(report)


def test_what_nothing_limits_is_said_to_be_infinite():
    # An orthogonal linear chain changes neither gradient nor differences.
    net = nn.Sequential(*(nn.utils.parametrizations.orthogonal(nn.Linear(16, 16, bias=False)) for _ in range(8)))
    report = levada.check(net, (torch.randn(16, 16), torch.randn(16, 16)), **SGD)
    told = report.to_dict()["summary"]["trainable_depth"]
    assert told["high"] == "inf"
    assert told["value"] == "inf" or told["value"] > 100


def test_the_effective_depth_of_a_residual_model_is_that_of_its_paths():
    torch.manual_seed(0)
    branches = [nn.utils.parametrizations.orthogonal(nn.Linear(16, 16, bias=False)) for _ in range(12)]
    net = nn.Sequential(levada.Stack(branches, levada.Residual, dim=16), nn.Linear(16, 4))
    report = levada.check(net, batch(16), **SGD)
    found = report.summary["effective_depth"]
    assert found["value"] == pytest.approx(6.0, rel=0.02)  # each branch is as large as its skip: half of the blocks
    assert found["blocks"] == 12
    assert found["shortest"] <= 6 <= found["longest"]
    assert "effective depth: the gradient passes 6 of 12 residual blocks" in str(report)


def test_a_chain_has_no_effective_depth_and_a_model_without_lists_says_why():
    assert "effective_depth" not in levada.check(network(nn.Tanh, 1.0, 0.05, 6), batch(), **SGD).summary

    class ByHand(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.head = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4)

        def forward(self, x):
            x = x + self.first(x)
            return self.head(x + self.second(x))

    summary = levada.check(ByHand(), batch(16), **SGD).summary
    assert "no residual blocks were found" in summary["unknown"]["effective_depth"]


def test_the_directions_of_a_gradient_are_those_of_the_jacobian_s_singular_values():
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(32, 32, bias=False) for _ in range(9)), nn.Linear(32, 4))
    found = facts_of(examine(net, batch(32), **SGD)[1]).directions
    jacobian = torch.linalg.multi_dot([layer.weight.detach().double() for layer in reversed(net[1:9])])
    ones = torch.randn(2, 10_000, 32, dtype=torch.float64) * torch.linalg.svdvals(jacobian)
    expected = 1 / float(nn.functional.cosine_similarity(ones[0], ones[1]).square().mean())
    assert found.blocks == 8
    assert found.units == 32
    assert found.low < expected < found.high
    assert found.value == pytest.approx(expected, rel=0.25)


def test_the_depth_at_which_two_directions_are_left_does_not_hang_on_where_it_is_measured():
    values = []
    for depth in (12, 24):
        found = facts_of(examine(network(nn.Tanh, 2.0, 0.05, depth, dim=64), batch(64), **SGD)[1]).directions
        values.append(found.depth(found.value))
    assert values[0] == pytest.approx(values[1], rel=0.3)
    assert 30 < values[0] < 70  # tanh networks of width 64 stop to train between 40 and 80 blocks
