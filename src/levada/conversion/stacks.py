"""Conversion of what is a stack already: its layers get other connections."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from levada._errors import UsageError
from levada.connection import Connection
from levada.connections.gated import GatedRead
from levada.connections.residual import Residual
from levada.stack import Stack
from levada.stacking import require_by_layer

__all__ = ["replace_in_stack", "stacks_of", "start"]


def stacks_of(net: nn.Module) -> dict[str, Stack]:
    """Return a model's stacks by name.

    Args:
        net: the model.

    Raises:
        UsageError: if the layers of one are not connected by `Residual`, or hold their parameters stacked.
    """
    require_by_layer(net, "convert")
    found = {}
    for name, module in net.named_modules():
        if isinstance(module, Stack):
            plain = all(
                type(layer.connection) is Residual
                and layer.connection.shortcut is None
                and layer.connection.activation is None
                for layer in module
            )
            if not plain:
                kind = type(module[0].connection).__name__
                raise UsageError(
                    f"convert: the layers of a stack must be connected by Residual, without shortcut and activation, "
                    f"and those of {name or 'the model'} are by {kind}. Build the stack with the connection you want."
                )
            found[name] = module
    return found


def replace_in_stack(
    stack: Stack,
    connection: Callable[..., Connection],
    preserve: bool,
    options: dict[str, Any],
    undo: list[Callable[[], None]],
) -> None:
    """Give each layer of a stack another connection.

    Args:
        stack: the stack.
        connection: the class.
        preserve: whether to start as the residual one.
        options: of the connection.
        undo: where what undoes it is noted.
    """
    parameter = next(stack.parameters(), None)
    new = [connection(stack.dim, layer=i, depth=stack.depth, **options) for i in range(stack.depth)]
    output = new[-1].output(stack.dim)
    start([*new, output], parameter, preserve)
    for layer, made in zip(stack, new, strict=True):
        if made.dim_in != stack.dim or made.dim_out != stack.dim:
            raise UsageError(f"convert: {type(made).__name__} changes the width that branches read, which are built.")
        old = layer.connection
        undo.append(lambda layer=layer, old=old: setattr(layer, "connection", old))  # type: ignore[misc]
        layer.connection = made.train(layer.training)
    old_output = stack.output
    undo.append(lambda: setattr(stack, "output", old_output))
    stack.output = output.train(stack.training)


def start(modules: Sequence[nn.Module], like: Tensor | None, preserve: bool) -> None:
    """Bring new modules to the model's device, in float32 or float64, and start them.

    Args:
        modules: connections, and what follows the last one.
        like: a parameter of the model; None where it has none.
        preserve: whether to start as the residual connection.
    """
    for module in modules:
        if like is not None:
            module.to(like.device, torch.float64 if like.dtype == torch.float64 else None)
        if preserve and isinstance(module, Connection | GatedRead):
            module.start_as_residual()
