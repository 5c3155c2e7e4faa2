"""Connections under sharded training: what they multiply the streams by stays in float32."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from levada._errors import UsageError
from levada.connection import Connection, Layer
from levada.stack import Stack
from levada.stacking import require_by_layer

__all__ = ["shard_connections"]


def shard_connections(model: nn.Module, **options: Any) -> nn.Module:
    """Make every connection a unit of sharding of its own (FSDP2), in the precision of its parameters.

    A unit with `MixedPrecisionPolicy(param_dtype=torch.bfloat16)` computes with its parameters rounded to bfloat16,
    also those of the connections in it: coefficients, whose errors multiply over depth, would be made of eight bits.
    Call this first, then `fully_shard` on layers and model with any policy. The streams are then what the policy says,
    and the coefficients are made of float32 parameters, in float32. In a `Stack` that compiles its layers, parameters
    are gathered before what is compiled, and freed after it.

    Args:
        model: a model with layers of levada, or a converted one.
        options: go to `torch.distributed.fsdp.fully_shard`, such as `mesh`; `mp_policy`, if given, replaces the one
            that keeps the parameters as they are.

    Returns:
        The model. Connections without parameters are left to the units around them.

    Raises:
        UsageError: if the model has no connection with parameters, or layers are sharded already, or hold their
            parameters stacked.

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

    require_by_layer(model, "shard_connections")
    options = {"mp_policy": MixedPrecisionPolicy(cast_forward_inputs=False), **options}
    layers = [module for module in model.modules() if isinstance(module, Layer)]
    inside = {layer.connection for layer in layers}
    learned = [m for m in model.modules() if isinstance(m, Connection) and any(True for _ in m.parameters())]
    if not learned:
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
    for output in _outputs(model):
        fully_shard(output, **options)
    return model


def _advance_compiled(connection: Any, *given: Any) -> Any:
    return connection.advance_compiled(*given)


def _outputs(model: nn.Module) -> list[nn.Module]:
    """Return what follows the last layers and has parameters."""
    found = [m.output if isinstance(m, Stack) else getattr(m, "stream_output", None) for m in model.modules()]
    return [m for m in found if isinstance(m, nn.Module) and any(True for _ in m.parameters())]
