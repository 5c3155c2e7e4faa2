"""How a model is spread over processes: copies of it, shards of its parameters, or its layers in stages."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from levada._errors import UsageError
from levada.connection import Layer, require_module
from levada.networks import Network
from levada.sharding import connection_units, shard_connections, stacked_placement
from levada.stack import Stack
from levada.stacking import as_layers
from levada.training.spread import Parallel

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["materialise", "parallelise", "process_mesh"]


def process_mesh(parallel: Parallel, device: str = "cpu") -> DeviceMesh | None:
    """Return all processes in a row, as the kind of parallelism takes them.

    Args:
        parallel: how training is spread.
        device: type of the devices, such as `"cuda"`.

    Returns:
        A mesh with one axis, `"data"` or, of a pipeline, `"stage"`; None for one process.

    Raises:
        UsageError: if several processes are needed, and none were started.

    Example:
        >>> process_mesh(Parallel()) is None
        True
    """
    if parallel.kind == "none":
        return None
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    if not dist.is_initialized():
        raise UsageError(
            f"process_mesh: kind={parallel.kind!r} needs a process group, and there is none. Start with torchrun, and "
            "call torch.distributed.init_process_group() first."
        )
    name = "stage" if parallel.kind == "pipeline" else "data"
    return init_device_mesh(device, (dist.get_world_size(),), mesh_dim_names=(name,))


def parallelise(
    model: nn.Module,
    mesh: DeviceMesh | None,
    parallel: Parallel,
    *,
    weights: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """Spread a model over processes: as copies, or as shards.

    The order matters: a stack is first told what it keeps and whether its layers are compiled, then connections become
    units of sharding of their own (`shard_connections`), then layers, the stem and the head, then the rest. Parameters
    are thus gathered before what is compiled, and a layer that runs again in the backward pass finds them gathered.

    A model built under `torch.device("meta")` has no values yet, so that no process need hold all of it. It gets those
    of the first process's `weights` if they are given; else it stays as it is, for `materialise` or a checkpoint.

    Args:
        model: the model, the same in each process; for `"fsdp"` one with levada's layers.
        mesh: the processes, as `process_mesh` makes them.
        parallel: how training is spread.
        weights: a state dict of the whole model, on the first process; the others give an empty one.

    Returns:
        The model, changed in place; of `"ddp"`, the one that wraps it.

    Raises:
        UsageError: if the kind is `"pipeline"`, which `levada.training.Pipeline` builds; if `mesh` is missing; or if an
            option needs a `Stack` or layers, and there are none.

    Example:
        >>> import levada
        >>> net = levada.networks.mlp(4, 8, inputs=3, outputs=2, connection=levada.Residual)
        >>> parallelise(net, None, Parallel(checkpoint=True)).stack.segments
        2
    """
    require_module(model, "parallelise")
    if parallel.kind == "pipeline":
        raise UsageError(
            "parallelise: the stages of a pipeline are no model of their own. Use levada.training.Pipeline."
        )
    if mesh is None and parallel.kind != "none":
        raise UsageError(f"parallelise: kind={parallel.kind!r} needs a mesh, got None. Make it with process_mesh().")
    _arrange(model, parallel)
    if parallel.kind == "fsdp":
        assert mesh is not None
        _shard(model, mesh, parallel)
    if weights is not None:
        materialise(model, weights, device="cpu" if mesh is None else mesh.device_type)
    if parallel.kind != "ddp":
        return model
    assert mesh is not None
    place = next(model.parameters()).device
    devices = None if place.type in ("cpu", "meta") else [place]
    options: dict[str, Any] = {"process_group": mesh.get_group(), "gradient_as_bucket_view": True}
    # Running statistics are averaged when they are needed: those of the first process alone are not the batch's.
    known = inspect.signature(nn.parallel.DistributedDataParallel).parameters
    options["forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"] = False
    return nn.parallel.DistributedDataParallel(model, device_ids=devices, **options)


def materialise(model: nn.Module, weights: Mapping[str, Tensor], *, device: str | torch.device = "cpu") -> nn.Module:
    """Give a model the values of the first process, whether it has memory for them already or is on the meta device.

    Each process gets what it holds, one tensor at a time: only the first one needs memory for all.

    Args:
        model: the model, sharded or not.
        weights: a state dict of the whole model, on the first process; the others give an empty one.
        device: where a model on the meta device is made.

    Returns:
        The model.

    Raises:
        UsageError: if the model has tied weights or buffers outside of its state dict on the meta device.

    Example:
        >>> with torch.device("meta"):
        ...     net = nn.Linear(2, 1)
        >>> materialise(net, nn.Linear(2, 1).state_dict()).weight.device
        device(type='cpu')
    """
    import torch.distributed as dist
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    if any(parameter.is_meta for parameter in model.parameters()):
        _require_complete(model)
        model.to_empty(device=device)
    if not (dist.is_available() and dist.is_initialized()):
        model.load_state_dict(weights)
        return model
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=True)
    with as_layers(model, sharded=True):
        set_model_state_dict(model, dict(weights), options=options)
    return model


def _require_complete(model: nn.Module) -> None:
    """Raise unless the state dict makes a model on the meta device what it was meant to be."""
    uses = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
    if any(count > 1 for count in uses.values()):
        raise UsageError(
            "materialise: a model with tied weights must be built on a device, for on the meta device they would come "
            "apart. Leave torch.device('meta') out."
        )
    for name, module in model.named_modules():
        if module._non_persistent_buffers_set:
            buffer = ".".join(part for part in (name, *sorted(module._non_persistent_buffers_set)[:1]) if part)
            raise UsageError(
                f"materialise: the buffer {buffer} is not in the state dict, so that on the meta device its values are "
                "lost. Leave torch.device('meta') out."
            )


def _arrange(model: nn.Module, parallel: Parallel) -> None:
    """Tell each stack what it keeps and whether it is compiled or stacked, where `parallel` says so."""
    if not (parallel.checkpoint or parallel.compile or parallel.stacked):
        return
    stacks = [module for module in model.modules() if isinstance(module, Stack)]
    if not stacks:
        raise UsageError(
            f"parallelise: checkpoint, compile and stacked need a model with a Stack, and {type(model).__name__} has "
            "none. Leave them out."
        )
    for stack in stacks:
        stack.arrange(
            checkpoint=parallel.checkpoint or None,
            compile=parallel.compile or None,
            stacked=parallel.stacked or None,
        )


def _shard(model: nn.Module, mesh: DeviceMesh, parallel: Parallel) -> None:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    layers = [module for module in model.modules() if isinstance(module, Layer)]
    if not layers:
        raise UsageError(
            f"parallelise: kind='fsdp' gathers layer by layer, and {type(model).__name__} has no levada.Layer. Build "
            "it as a Stack, or shard it with torch.distributed.fsdp.fully_shard."
        )
    options: dict[str, Any] = {"mesh": mesh}
    stacks = [m for m in model.modules() if isinstance(m, Stack) and "stacked" in m._modules]
    if stacks:
        options["shard_placement_fn"] = stacked_placement(model, mesh)
    if any(connection_units(model)):
        shard_connections(model, **options, reshard_after_forward=parallel.reshard)
    if parallel.gather != "float32":
        options["mp_policy"] = MixedPrecisionPolicy(getattr(torch, parallel.gather), torch.float32)
    inside = {layer for stack in stacks for layer in stack}  # which have no parameters of their own
    units = [*(m for m in layers if m not in inside), *(m for m in stacks if m is not model), *_ends(model)]
    for unit in units:
        fully_shard(unit, **options, reshard_after_forward=parallel.reshard)
    fully_shard(model, **options)


def _ends(model: nn.Module) -> list[nn.Module]:
    """Return stem and head of a network as units of their own, unless they share weights."""
    if not isinstance(model, Network):
        return []
    ends = [end for end in (model.stem, model.head) if any(True for _ in end.parameters())]
    uses = Counter(id(p) for part in (*ends, model.stack) for p in part.parameters())
    return ends if all(count == 1 for count in uses.values()) else []
