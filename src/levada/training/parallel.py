"""How a network is spread over processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, final

from torch import nn

__all__ = ["Parallel", "parallelise", "process_mesh"]


@final
@dataclass(frozen=True, slots=True)
class Parallel:
    """How the training is spread over processes.

    Attributes:
        kind: "none" for one process; "ddp" for replicas; "fsdp" for sharded parameters (FSDP2).
    """

    kind: Literal["none", "ddp", "fsdp"] = "none"


def process_mesh(parallel: Parallel, device: str = "cpu") -> Any:
    """Return all processes in a row."""
    import torch.distributed as dist

    return None if parallel.kind == "none" else dist.init_device_mesh(device, (dist.get_world_size(),))


def parallelise(model: nn.Module, mesh: Any, parallel: Parallel) -> nn.Module:
    """Return the model spread over the processes of a mesh."""
    if parallel.kind == "ddp":
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(model, process_group=mesh.get_group())
    if parallel.kind == "fsdp":
        from torch.distributed.fsdp import fully_shard

        for layer in model.stack.layers:  # type: ignore[union-attr, operator]
            fully_shard(layer, mesh=mesh)
        return fully_shard(model, mesh=mesh)
    return model
