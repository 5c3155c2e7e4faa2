"""Stacked layers seen as layers with parameters of their own: for what is stored, loaded or looked at by layer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from levada._errors import UsageError
from levada.stacking.parameters import StackedParameters
from levada.stacking.sharded import divided_as

__all__ = ["after_loading", "as_layers", "before_loading", "require_by_layer"]


def before_loading(stack: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Give each layer of a stack its own parameters, for what loads by layer.

    Values that are whole, or divided in another way, are divided among processes as the layers are.

    Args:
        stack: a Stack.
        state: what is loaded.
        prefix: of the stack's names in it.
    """
    stacked = stack._modules.get("stacked")
    if not isinstance(stacked, StackedParameters):
        return
    for name, own in stacked.named_parameters():
        # torch.distributed.checkpoint.state_dict adds what the model has to what it was given.
        if state.get(f"{prefix}stacked.{name}") is own:
            del state[f"{prefix}stacked.{name}"]
    stack.__dict__["_spread"] = stacked, stacked.spread(sharded=True)
    del stack._modules["stacked"]
    for name, own in stack.named_parameters():
        value = state.get(prefix + name)
        # PyTorch tells of another shape.
        if isinstance(value, Tensor) and hasattr(own, "placements") and value.shape == own.shape:
            state[prefix + name] = divided_as(own, value)


def after_loading(stack: nn.Module, *_: Any) -> None:
    """Take over what was loaded.

    Args:
        stack: a Stack.
    """
    stacked, spread = stack.__dict__.pop("_spread", (None, None))
    if stacked is not None:
        stack._modules["stacked"] = stacked
        stacked.gather(spread)


def require_by_layer(model: nn.Module, owner: str) -> None:
    """Raise if a model has stacked layers, where each must hold its own parameters.

    Args:
        model: any module.
        owner: function that asks, as the user typed it.

    Raises:
        UsageError: if it has.
    """
    if any(isinstance(module, StackedParameters) for module in model.modules()):
        raise UsageError(
            f"{owner}: every layer must hold its own parameters, and a Stack of {type(model).__name__} holds them "
            "stacked. Call arrange(stacked=False) on it before."
        )


@contextlib.contextmanager
def as_layers(
    model: nn.Module, *, sharded: bool = False, copied: bool = False, written: bool = True
) -> Iterator[dict[nn.Parameter, list[nn.Parameter]]]:
    """Run the inside with every stacked stack of a model as a plain one, its parameters by layer in the same memory.

    Args:
        model: any module.
        sharded: as in `StackedParameters.spread`.
        copied: as there.
        written: as in `StackedParameters.gather`.

    Returns:
        The layers' parameters, by the stacked one.
    """
    stacks = [m for m in model.modules() if isinstance(m._modules.get("stacked"), StackedParameters)]
    with contextlib.ExitStack() as undo:  # each is put back, also where another is refused
        layers: dict[nn.Parameter, list[nn.Parameter]] = {}
        for stack in stacks:
            stacked: Any = stack._modules["stacked"]
            spread = stacked.spread(sharded=sharded, copied=copied)
            del stack._modules["stacked"]
            undo.callback(stacked.gather, spread, written=written)
            undo.callback(stack._modules.__setitem__, "stacked", stacked)
            layers |= {p: spread[key] for key, p in stacked.each()}
        yield layers
