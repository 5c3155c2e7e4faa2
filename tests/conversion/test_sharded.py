"""A converted model under FSDP2: two processes give the gradients of one."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import levada
from levada.conversion import convert


def build(kind: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, norm_first=kind == "pre-norm")
    model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    batch = torch.randn(4, 5, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    net = convert(model.double(), levada.HyperConnection, batch=batch)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net.double(), batch


def gradients(net: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    net(batch).square().mean().backward()
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


@pytest.fixture(scope="module")
def sharded(two_processes) -> dict[str, dict[str, Tensor]]:
    return two_processes(__file__)


@pytest.mark.parametrize("kind", ["pre-norm", "post-norm"])
def test_sharded_gradients_equal_a_single_process(kind, sharded):
    net, batch = build(kind)
    torch.testing.assert_close(sharded[kind], gradients(net, batch), rtol=1e-9, atol=1e-12)
    assert any("connections" in name for name in sharded[kind])


def shard(rank: int, folder: Path) -> None:
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    mesh = dist.init_device_mesh("cpu", (2,))
    found = {}
    for kind in ("pre-norm", "post-norm"):
        net, batch = build(kind)
        for layer in net.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(net, mesh=mesh)
        found[kind] = {name: g.full_tensor() for name, g in gradients(net, batch.chunk(2)[rank]).items()}
    if rank == 0:
        torch.save(found, folder / "found.pt")
    dist.barrier()  # a process that ends while the other still talks to it aborts
    dist.destroy_process_group()


if __name__ == "__main__":
    shard(int(sys.argv[1]), Path(sys.argv[2]))
    os._exit(0)  # gloo's threads sometimes outlive the interpreter and abort it
