"""Ordinary layers of which programs are made: scalars, values used twice, operations in place."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.stacking.stacks import DIM, gradients, is_recorded, pair
from torch import Tensor, nn

from levada.connections import HyperConnection, Plain, Residual

CONNECTIONS = [Plain, Residual, HyperConnection]


def require_equal(make, connection, batch: Tensor) -> None:
    """Hold stacked layers, recorded, to the plain ones."""
    plain, stacked = (stack.double() for stack in pair(make, connection))
    assert is_recorded(stacked)
    x = batch.double()
    torch.testing.assert_close(gradients(stacked, x), gradients(plain, x), rtol=1e-9, atol=1e-9)


class Normed(nn.Linear):
    """Divides by a scalar of its weights."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / (self.weight.norm() + 1)


class Gained(nn.Linear):
    """Has a parameter without axes."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__(dim, out)
        self.gain = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.gain.tanh() / (1 + x.square().mean().sqrt())


@pytest.mark.parametrize("connection", CONNECTIONS)
@pytest.mark.parametrize("kind", [Normed, Gained])
def test_scalars_are_held_by_a_chunk_of_layers(kind, connection, batch):
    require_equal(lambda: kind(DIM, DIM), connection, batch)


class Doubled(nn.Linear):
    """Reads its input twice in one operation, whose gradient so adds a product to itself."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + x)


@pytest.mark.parametrize("connection", CONNECTIONS)
def test_a_product_that_is_added_to_itself(connection, batch):
    require_equal(lambda: Doubled(DIM, DIM), connection, batch)


IN_PLACE = [nn.ReLU(inplace=True), nn.SiLU(inplace=True), nn.Hardtanh(inplace=True), nn.Dropout(0.5, inplace=True)]


@pytest.mark.parametrize("last", IN_PLACE)
def test_a_last_operation_in_place(last, batch):
    require_equal(lambda: nn.Sequential(nn.Linear(DIM, DIM), copy.deepcopy(last)), Plain, batch)
