"""Stacks with stacked parameters on two processes: averaged gradients, and checkpoints by layer."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import levada

DIM, DEPTH = 6, 4


def build(stacked: bool = True) -> levada.Stack:
    torch.manual_seed(0)
    branches = [nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, DIM), nn.Tanh()) for _ in range(DEPTH)]
    return levada.Stack(branches, levada.ReZero, dim=DIM, stacked=stacked)


def batch() -> Tensor:
    return torch.randn(8, DIM, generator=torch.Generator().manual_seed(1))


def train(net: nn.Module, x: Tensor) -> None:
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()


@pytest.fixture(scope="module")
def found(two_processes) -> dict:
    return two_processes(__file__)


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    plain = build(stacked=False)
    before = plain.state_dict()["layers.3.branch.1.weight"].clone()
    train(plain, batch())
    assert (plain.state_dict()["layers.3.branch.1.weight"] - before).abs().max() > 0.1
    return plain.state_dict()


def test_averaged_gradients_train_it_as_a_single_process_does(found, expected):
    torch.testing.assert_close(found["averaged"], expected)


def test_a_whole_state_is_set_by_layer(found, expected):
    torch.testing.assert_close(found["set"], expected)


@pytest.mark.parametrize("into", ["stacked", "plain"])
def test_a_checkpoint_has_the_layers_names(into, found, expected):
    assert sorted(found["names"]) == sorted(expected)
    torch.testing.assert_close(found["loaded"][into], expected)


def work(rank: int, folder: Path) -> None:
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
    from torch.nn.parallel import DistributedDataParallel

    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    half = batch().chunk(2)[rank]
    averaged = build()
    train(DistributedDataParallel(averaged), half)
    result: dict = {"averaged": averaged.state_dict(), "loaded": {}}
    dcp.save({"model": averaged.state_dict()}, checkpoint_id=str(folder / "checkpoint"))
    stored = dcp.FileSystemReader(str(folder / "checkpoint")).read_metadata().state_dict_metadata
    result["names"] = [name.removeprefix("model.") for name in stored]
    for into in ("stacked", "plain"):
        fresh = build(stacked=into == "stacked")
        state = {name: torch.zeros_like(value) for name, value in fresh.state_dict().items()}
        dcp.load({"model": state}, checkpoint_id=str(folder / "checkpoint"))
        fresh.load_state_dict(state)
        result["loaded"][into] = fresh.state_dict()
    fresh = build()
    set_model_state_dict(fresh, averaged.state_dict(), options=StateDictOptions(full_state_dict=True))
    result["set"] = fresh.state_dict()
    if rank == 0:
        torch.save(result, folder / "found.pt")
    dist.barrier()  # a process that ends while the other still talks to it aborts
    dist.destroy_process_group()


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))
    os._exit(0)  # gloo's threads sometimes outlive the interpreter and abort it
