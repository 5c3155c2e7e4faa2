"""Conversion to connections that change the scale of the stream: what a normalisation hides, and what it does not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import levada
from levada._errors import UsageError
from levada.conversion import convert
from levada.conversion.preserved import without_epsilon

SCALING = pytest.mark.parametrize("connection", [levada.AttentionResidual, levada.GatedResidual])


class Block(nn.Module):
    def __init__(self, norm: nn.Module, factor: float = 1.0) -> None:
        super().__init__()
        self.norm, self.linear, self.factor = norm, nn.Linear(16, 16), factor

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(self.norm(x)) * self.factor


class Written(nn.Module):
    """As in nanoGPT: the epsilon is an argument of the function."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x, (16,), None, None, 1e-5)


class Named(nn.Module):
    """As in Llama: the epsilon has a name of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.variance_epsilon = 1e-5

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon)


def model(
    norm=lambda: nn.LayerNorm(16), odd: nn.Module | None = None, output: bool = True, factor: float = 1.0
) -> nn.Module:
    blocks = [Block(norm(), factor) for _ in range(4)]
    if odd is not None:
        blocks[2] = odd
    return nn.Sequential(*blocks, *([norm()] if output else []))


def batch(scale: float = 1.0) -> Tensor:
    return scale * torch.randn(8, 16, generator=torch.Generator().manual_seed(0))


@SCALING
def test_a_small_branch_without_a_normalisation_is_found(connection):
    """The epsilons of the others hide more than it changes."""
    assert convert(model(), connection, batch=batch()).levada_conversion.difference > 1e-6
    with pytest.raises(UsageError, match="not every branch and the output begin with a normalisation"):
        convert(model(odd=Block(nn.Identity(), 1e-3)), connection, batch=batch())


@SCALING
def test_an_output_without_a_normalisation_is_found(connection):
    with pytest.raises(UsageError, match="not every branch and the output begin with a normalisation"):
        convert(model(output=False), connection, batch=batch())


@SCALING
@pytest.mark.parametrize("norm", [lambda: nn.LayerNorm(16), Written, Named])
def test_an_epsilon_that_is_felt_is_named(connection, norm):
    words = "Pass scale='sum'" if connection is levada.AttentionResidual else "Use another connection"
    with pytest.raises(UsageError, match=f"the epsilon of the normalisations is felt, without which .*{words}"):
        convert(model(norm, factor=1e-3), connection, batch=batch(1e-3))


def test_the_remedy_that_is_named_helps():
    net = convert(model(factor=1e-3), levada.AttentionResidual, batch=batch(1e-3), scale="sum")
    assert net.levada_conversion.difference < 1e-12


def test_a_constant_input_is_no_branch_without_a_normalisation():
    """Its variance is 0 but for rounding, which an epsilon of 0 would blow up."""
    x = torch.cat([batch(), torch.full((1, 16), 0.1), torch.zeros(1, 16)])
    assert convert(model(), levada.AttentionResidual, batch=x).levada_conversion.difference < 1e-2


def test_epsilons_are_what_they_were_afterwards():
    net = nn.Sequential(nn.LayerNorm(16), nn.RMSNorm(16), Named())
    with without_epsilon(net):
        assert torch.allclose(net[0](batch(1e-6)).std(-1, correction=0), torch.ones(8))
    assert (net[0].eps, net[1].eps, net[2].variance_epsilon) == (1e-5, None, 1e-5)


@pytest.mark.parametrize("connection", [levada.AttentionResidual, levada.MultiwayDynamicDense])
def test_several_inputs_are_refused_by_name(connection):
    with pytest.raises(UsageError, match=r"must have inputs=1, got 3: the additions that convert replaces"):
        convert(model(), connection, batch=batch(), inputs=3)
