"""Ordinary layers of which programs are made: scalars, values used twice, operations in place."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from tests.stacking.stacks import DIM, gradients, is_recorded, pair
from torch import Tensor, nn

from levada.connections import HyperConnection, Plain, Residual
from levada.stacking import recorder
from levada.stacking.program import Program, program_of

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


def _none(*_) -> Program:
    raise RecursionError("no end\nto this")


def _broken(*given) -> Program:
    return dataclasses.replace(program_of(*given), forward_keeping=lambda *_: v26)  # noqa: F821


@pytest.mark.parametrize(
    ("made", "told"), [(_none, "RecursionError: no end to this"), (_broken, "NameError: name 'v26'")]
)
def test_layers_of_which_no_program_can_be_made_run_one_by_one(made, told, batch, monkeypatch):
    monkeypatch.setattr(recorder, "program_of", made)
    plain, stacked = pair()
    with pytest.warns(UserWarning, match=rf"one by one.*no program can be made \({told}"):
        found = gradients(stacked, batch)
    torch.testing.assert_close(found, gradients(plain, batch), rtol=0, atol=0)
    assert not is_recorded(stacked)  # and says so once


def test_an_error_of_the_layers_is_theirs(batch):
    plain, stacked = pair(lambda: nn.Linear(DIM, DIM))
    for stack in (plain, stacked):
        with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
            stack(batch[:, 1:])
    assert is_recorded(stacked)
