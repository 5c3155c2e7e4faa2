"""Memory that stacked layers hold from one pass to the next."""

from __future__ import annotations

import torch
from tests.stacking.stacks import DIM, pair
from torch import nn

from levada.stacking import chunks


def narrow() -> nn.Module:
    return nn.Sequential(nn.Linear(DIM, DIM), nn.ReLU())


def test_memory_of_chunks_is_that_of_a_pass(batch):
    _, stacked = pair(narrow)

    def train(x: torch.Tensor, graphs: int = 1) -> int:
        sum(stacked(x).sum() for _ in range(graphs)).backward()
        return stacked.stacked.cache["runner"].rooms.num_bytes

    once = train(batch)
    assert once > 0
    assert [train(batch) for _ in range(3)] == [once] * 3
    assert train(batch, graphs=4) > 2 * once
    assert [train(batch) for _ in range(2 * chunks._MOST_PASSES)][-1] == once
    wide = train(batch.repeat(100, 1))
    assert wide > 10 * once
    assert train(batch) == wide  # each of the two may come again
    assert [train(batch) for _ in range(2 * chunks._MOST_PASSES)][-1] == once


def test_memory_of_two_shapes_in_turn_is_used_again(batch):
    _, stacked = pair(narrow)
    rooms: set[int] = set()
    for _ in range(3):
        for x in (batch, batch[:2], batch.double()[:1].float()):
            stacked(x).sum().backward()
            held = stacked.stacked.cache["runner"].rooms._free
            found = {room.whole.data_ptr() for free in held.values() for _, room in free}
            rooms |= found
    assert rooms == found
