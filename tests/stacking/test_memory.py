"""Memory that stacked layers hold from one pass to the next."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from tests.stacking.stacks import DIM, pair
from torch import nn

from levada.stacking import chunks, function


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


class Interrupted(dict):
    """Memory of gradients of which another thread asks for the same, whenever one has asked or answered."""

    def __init__(self, parameter: torch.Tensor) -> None:
        self.parameter, self.others, self.asking = parameter, [], False

    def interrupt(self) -> None:
        if not self.asking:
            self.asking = True
            self.others.append(function._memory_for(self.parameter, self, 0))
            self.asking = False

    def pop(self, *given):
        found = super().pop(*given)
        self.interrupt()
        return found

    def __setitem__(self, place, held) -> None:
        super().__setitem__(place, held)
        self.interrupt()


def test_threads_are_never_given_the_same_memory(monkeypatch):
    parameter = torch.zeros(2**18)
    memory = Interrupted(parameter)
    alone = function._is_alone

    def asked(held: torch.Tensor) -> bool:
        answer = alone(held)
        memory.interrupt()
        return answer

    monkeypatch.setattr(function, "_is_alone", asked)
    for _ in range(3):
        given = function._memory_for(parameter, memory, 0)
        places = [given.data_ptr(), *(other.data_ptr() for other in memory.others)]
        assert len({*places}) == len(places)
        memory.others.clear()
        del given


@pytest.mark.parametrize("hold", [torch.Tensor.numpy, torch.Tensor.untyped_storage, torch.Tensor.detach, None])
def test_memory_that_somebody_holds_is_not_written_over(hold):
    parameter, memory = torch.zeros(2**18), {}
    given = function._memory_for(parameter, memory, 0)
    place, held = given.data_ptr(), None if hold is None else hold(given)
    del given
    again = function._memory_for(parameter, memory, 0)
    assert (again.data_ptr() == place) is (held is None)


def test_memory_that_another_process_may_read_is_not_written_over():
    parameter, memory = torch.zeros(2**18), {}
    given = function._memory_for(parameter, memory, 0).share_memory_()
    assert given.is_shared()
    del given
    assert not function._memory_for(parameter, memory, 0).is_shared()
    assert not function._memory_for(parameter, memory, 0).is_shared()


class Scaled(nn.Linear):
    """Looks at a value, and so runs one by one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * float(x.sum())


@pytest.mark.filterwarnings("ignore:Stack. stacked layers run one by one")
def test_layers_that_run_one_by_one_hold_no_batch():
    _, stacked = pair(lambda: Scaled(DIM, DIM))
    held = []
    for _ in range(3):
        x = torch.randn(3, DIM)
        held.append(weakref.ref(x))
        stacked(x)
        del x
    gc.collect()
    assert [batch() for batch in held] == [None] * 3
