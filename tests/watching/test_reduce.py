"""Who trains together, on meshes of any shape; and the messages between them."""

from __future__ import annotations

import math
import sys

import pytest
import torch
import torch.distributed as dist
from torch import nn

import levada
from levada._errors import UsageError
from levada.watching.measure.parameters import ParameterNorms
from levada.watching.measure.reduce import Message, Peers, Reduction, find_peers


@pytest.fixture
def four(monkeypatch):
    """As if this were the first of four processes; what is sent goes nowhere."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # it is replaced by one that names the rank
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    yield
    dist.destroy_process_group()


def sharded(sizes: tuple[int, ...], names: tuple[str, ...] | None = None) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    mesh = dist.init_device_mesh("cpu", sizes, mesh_dim_names=names)
    return fully_shard(nn.Linear(8, 8), mesh=mesh)


def packed(model: nn.Module):
    norms = ParameterNorms(model)
    norms.before()
    return norms.after()


def test_one_process_has_no_peers():
    assert find_peers(nn.Linear(1, 1)) is None


def test_copies_of_shards_count_once(four):
    net = sharded((2, 2), ("replicate", "shard"))
    assert find_peers(net) == Peers((0, 1, 2, 3), 4)
    found = packed(net)
    assert found.shards.tolist() == [2.0, 2.0]
    assert found.values[:, 3].tolist() == [32.0, 4.0], "half of the rows are here"
    # Two copies of each half: over four processes, each half counts half.
    assert (found.values[:, 3] * found.shares(4) * 4).tolist() == [64.0, 8.0]


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("use_orig_params", [False, True])
def test_parameters_that_are_flattened_are_refused(four, use_orig_params, inside):
    from torch.distributed.fsdp import FullyShardedDataParallel

    inner = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
    outer = FullyShardedDataParallel(inner, device_id=torch.device("cpu"), use_orig_params=use_orig_params)
    model = inner if inside else outer  # as trainers give it to their callbacks
    optimizer = torch.optim.SGD(outer.parameters(), lr=0.1)
    with pytest.raises(UsageError, match=r"FSDP1\) has flattened them. Shard with .*fully_shard \(FSDP2\)"):
        levada.watch(model, optimizer)
    assert not model._forward_hooks


def test_tensor_parallel_processes_see_the_same_batch(four):
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    mesh = dist.init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    net = nn.Sequential(nn.Linear(8, 8))
    parallelize_module(net, mesh["tp"], {"0": ColwiseParallel()})
    assert find_peers(net) == Peers((0, 1), 1)
    fully_shard(net, mesh=mesh["dp"])
    assert find_peers(net) == Peers((0, 1, 2, 3), 2)
    assert packed(net).shards.tolist() == [4.0, 4.0]


def test_a_gradient_that_is_a_partial_sum_has_no_column(four):
    from torch.distributed.tensor import DTensor, Partial, Replicate

    mesh = dist.init_device_mesh("cpu", (4,))
    weight = nn.Parameter(DTensor.from_local(torch.ones(3, 3), mesh, [Replicate()]))
    weight.grad = DTensor.from_local(torch.ones(3, 3), mesh, [Partial()])
    norms = ParameterNorms([("weight", weight)])
    norms.before()
    found = norms.after()
    assert found.measured.tolist() == [[True, False, True]]
    assert found.values[0, 0] == 9.0
    assert found.values[0, 1].isnan()
    assert found.shards.tolist() == [1.0]


def test_messages_add_up():
    sums = torch.arange(3, dtype=torch.float64)
    first = Message(7, sums, 20, ((5, 1.0), (7, 3.0)), (0.0, 2.0))
    second = Message(7, sums * 10, 30, ((6, math.inf), (7, 5.0)), (1.0, 0.0))
    reduced = first.unpack(first.pack(0, 2) + second.pack(1, 2), 2)
    assert reduced.sums.tolist() == [0.0, 11.0, 22.0]
    assert reduced.losses == ((5, 1.0), (6, math.inf), (7, 4.0))
    assert (reduced.distance, reduced.marks, reduced.complete) == (30, ((0.0, 2.0), (1.0, 0.0)), True)


def test_messages_have_one_length_however_many_losses_there_are():
    def length(count: int) -> int:
        losses = tuple((step, 1.0) for step in range(count))
        return len(Message(count - 1, torch.zeros(4, dtype=torch.float64), 1, losses).pack(0, 3))

    assert length(1) == length(2000)
    many = Message(1999, torch.zeros(4, dtype=torch.float64), 1, tuple((step, float(step)) for step in range(2000)))
    losses = many.unpack(many.pack(0, 1), 1).losses
    assert losses[-1] == (1999, 1999.0)
    assert losses[0] == (2000 - 512, 2000.0 - 512)


def test_messages_of_other_steps_or_of_who_leaves_are_refused():
    def unpack(step: int) -> None:
        own = Message(3, torch.zeros(1, dtype=torch.float64), 1)
        other = Message(step, torch.zeros(1, dtype=torch.float64), 1)
        own.unpack(own.pack(0, 2) + other.pack(1, 2), 2)

    unpack(3)
    with pytest.raises(RuntimeError, match=r"they are at different steps: \[3, 4\]"):
        unpack(4)
    with pytest.raises(RuntimeError, match="process 1 of 2 has stopped to watch"):
        unpack(-1)


def test_a_process_alone_gets_back_what_it_sent():
    reduction = Reduction(None, marks=1)
    assert reduction.collect() is None
    reduction.send(Message(0, torch.ones(2, dtype=torch.float64), 5, ((0, 1.0),), (3.0,)), "form")
    assert reduction.pending
    reduced = reduction.collect(0)
    assert (reduced.sums.tolist(), reduced.distance, reduced.marks, reduced.complete) == (
        [1.0, 1.0],
        5,
        ((3.0,),),
        True,
    )
    assert not reduction.pending
    reduction.close()
