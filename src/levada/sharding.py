"""Sharded training: connections whose parameters stay float32, and stacked layers of which each process has a part."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

from levada._errors import UsageError
from levada.connection import Connection, Layer
from levada.stack import Stack
from levada.stacking import StackedParameters

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import Shard

__all__ = ["connection_units", "shard_connections", "stacked_placement"]


def shard_connections(model: nn.Module, **options: Any) -> nn.Module:
    """Make every connection a unit of sharding of its own (FSDP2), in the precision of its parameters.

    A unit with `MixedPrecisionPolicy(param_dtype=torch.bfloat16)` computes with its parameters rounded to bfloat16,
    also those of the connections in it: coefficients, whose errors multiply over depth, would be made of eight bits.
    Call this first, then `fully_shard` on layers and model with any policy. The streams are then what the policy says,
    and the coefficients are made of float32 parameters, in float32. In a `Stack` that compiles its layers, parameters
    are gathered before what is compiled, and freed after it. In a stacked `Stack` the connections of all layers are
    one unit; call `fully_shard` on the stack then, not on its layers, which have no parameters of their own.

    Args:
        model: a model with layers of levada, or a converted one.
        options: go to `torch.distributed.fsdp.fully_shard`, such as `mesh`; `mp_policy`, if given, replaces the one
            that keeps the parameters as they are, and `shard_placement_fn` the one of `stacked_placement`.

    Returns:
        The model. Connections without parameters are left to the units around them.

    Raises:
        UsageError: if the model has no connection with parameters, or layers are sharded already.

    Example:
        >>> import levada
        >>> net = levada.Stack([nn.Linear(8, 8) for _ in range(2)], levada.HyperConnection, dim=8)
        >>> def shard(net, mesh):  # in each process
        ...     from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
        ...     levada.shard_connections(net, mesh=mesh)
        ...     for layer in net.layers:
        ...         fully_shard(layer, mesh=mesh, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
        ...     return fully_shard(net, mesh=mesh)

    Source: arXiv 2512.24880 (mHC) and the code released with DeepSeek-V4, which keep them in float32.
    """
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    options = {"mp_policy": MixedPrecisionPolicy(cast_forward_inputs=False), **options}
    layers = [module for module in model.modules() if isinstance(module, Layer)]
    inside = {layer.connection for layer in layers}
    learned, stacked = connection_units(model)
    if not learned and not stacked:
        raise UsageError(
            f"shard_connections: the model must have connections with parameters, and {type(model).__name__} has none. "
            "Leave it out."
        )
    if any(isinstance(module, FSDPModule) for module in model.modules()):
        raise UsageError(
            "shard_connections: it must come before fully_shard, and parts of the model are sharded already. "
            "Call it first."
        )
    for connection in learned:
        fully_shard(connection, **options)
        # A layer enters its connection once; the code of a converted model reads and writes.
        for method in ("advance",) if connection in inside else ("read", "write"):
            register_fsdp_forward_method(connection, method)
    for layer in layers:
        inner: Any = layer.connection
        if layer.compiled is not None and inner in learned:
            inner.advance_compiled = functools.partial(layer.compiled, inner)
            register_fsdp_forward_method(inner, "advance_compiled")
            layer.compiled = _advance_compiled
    if stacked:
        placed = {"shard_placement_fn": stacked_placement(model, options.get("mesh")), **options}
        for held in stacked:
            fully_shard(held, **placed)
            register_fsdp_forward_method(held, "run")
    for output in _outputs(model):
        fully_shard(output, **options)
    return model


def connection_units(model: nn.Module) -> tuple[list[nn.Module], list[nn.Module]]:
    """Return the connections that have parameters, and what holds those of stacked connections, one of each stack.

    Args:
        model: any module.
    """
    stacks = [m._modules.get("connection") for m in model.modules() if isinstance(m, StackedParameters)]
    connections = [m for m in model.modules() if isinstance(m, Connection)]
    one, many = (
        [m for m in modules if m is not None and any(True for _ in m.parameters())] for modules in (connections, stacks)
    )
    return one, many


def stacked_placement(model: nn.Module, mesh: DeviceMesh | None = None) -> Callable[[nn.Parameter], Shard | None]:
    """Say how FSDP2 divides the tensors of stacked layers so that each process has a part of every layer.

    By itself `fully_shard` cuts `[depth, ...]` along the depth: a process holds some layers whole, and to read them by
    layer (`state_dict`, `load_state_dict`), all processes exchange them. With this they are cut along the first axis of
    the layers, as a plain stack's are, and read where they are. FSDP2 can do that only where the number of processes
    divides the axis: other tensors, such as those of a scale, stay cut along the depth.

    Args:
        model: a model with stacked stacks; stack, initialise and move it before.
        mesh: the processes, as `fully_shard` is given them; None for all.

    Returns:
        A function for `shard_placement_fn` of `fully_shard`.

    Example:
        >>> import levada
        >>> net = levada.Stack([nn.Linear(8, 8) for _ in range(4)], levada.Residual, dim=8, stacked=True)
        >>> def shard(net, mesh):  # in each process
        ...     from torch.distributed.fsdp import fully_shard
        ...     return fully_shard(net, mesh=mesh, shard_placement_fn=levada.stacked_placement(net, mesh))
    """
    import torch.distributed as dist
    from torch.distributed.tensor import Shard

    processes = dist.get_world_size() if mesh is None else mesh.size(mesh.ndim - 1)  # of two axes, the second cuts
    stacks = [module for module in model.modules() if isinstance(module, StackedParameters)]
    stacked = {parameter for stack in stacks for parameter in stack.parameters()}

    def placement(parameter: nn.Parameter) -> Shard | None:
        divides = parameter in stacked and parameter.dim() > 1 and parameter.shape[1] % processes == 0
        return Shard(1) if divides else None

    return placement


def _advance_compiled(connection: Any, *given: Any) -> Any:
    return connection.advance_compiled(*given)


def _outputs(model: nn.Module) -> list[nn.Module]:
    """Return what follows the last layers and has parameters."""
    found = [m.output if isinstance(m, Stack) else getattr(m, "stream_output", None) for m in model.modules()]
    return [m for m in found if isinstance(m, nn.Module) and any(True for _ in m.parameters())]
