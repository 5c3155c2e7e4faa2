"""Hooks at the blocks' outputs, there on sampled steps alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, final

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from levada.probe.hook import Hook
from levada.probe.recorder import first_floating
from levada.watching.places import ACTIVATIONS, Place, original

__all__ = ["Listener", "Taps"]


class Listener(Protocol):
    """Who is told."""

    def see(self, place: int, tensor: Tensor) -> None:
        """Hear of a block's output."""

    def see_activation(self, place: int, tensor: Tensor) -> None:
        """Hear of the output of a block's activation."""


@final
class Taps:
    """The hooks of a model's blocks.

    Args:
        model: the model.
        places: its blocks.
        listener: who is told.
    """

    def __init__(self, model: nn.Module, places: Sequence[Place], listener: Listener) -> None:
        self._places = places
        self._listener = listener
        self._handles: list[RemovableHandle] = []
        self._last = -1
        self._loose = self._loose_activations(model)

    def _loose_activations(self, model: nn.Module) -> list[nn.Module]:
        """Return activations outside of all blocks: they belong to the block that ran last."""
        owned = {id(m) for place in self._places for m in place.activations}
        within = {
            id(m)
            for place in self._places
            for block in place.modules
            if block is not original(model)
            for m in block.modules()
            if m is not block
        }
        loose = (m for m in original(model).modules() if isinstance(m, ACTIVATIONS))
        return [m for m in loose if id(m) not in owned and id(m) not in within]

    def attach(self) -> None:
        """Put the hooks on the modules."""
        self._last = -1
        keep = self._handles.append
        for index, place in enumerate(self._places):
            for module in place.activations:
                keep(module.register_forward_hook(Hook(self._activation(module, index))))
            keep(place.boundary.register_forward_hook(Hook(self._output(place.boundary, index))))
        for module in self._loose:
            keep(module.register_forward_hook(Hook(self._activation(module, None))))

    def detach(self) -> None:
        """Remove them."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _output(self, own: nn.Module, index: int) -> Callable[..., None]:
        see = self._listener.see

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            self._last = index
            tensor = first_floating(output)
            if tensor is not None and module is own:
                see(index, tensor)

        return hook

    def _activation(self, own: nn.Module, index: int | None) -> Callable[..., None]:
        see = self._listener.see_activation

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            place = self._last if index is None else index
            if isinstance(output, Tensor) and module is own and place >= 0:
                see(place, output)

        return hook
