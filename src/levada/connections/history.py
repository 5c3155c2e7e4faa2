"""Connections that keep what all layers computed: what they share."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, TypeAlias

from torch import Tensor, nn

from levada._errors import UsageError, require_number
from levada.connection import Connection, require_input

__all__ = ["DepthHistory", "Sources"]

Sources: TypeAlias = tuple[Tensor, ...]


class DepthHistory(Connection):
    """A connection whose state is a tuple of tensors `(..., dim)`, channels last.

    Args:
        dim: width of the stream.
        layer: index of the layer, counted from 0.
        depth: number of layers.
        axis: axis of the channels in the network's input and output, and in what a branch is given and returns.
    """

    def __init__(self, dim: int, *, layer: int = 0, depth: int = 1, axis: int = -1) -> None:
        super().__init__(dim, layer=layer, depth=depth)
        require_number(type(self).__name__, "axis", axis, whole=True)
        self.axis = axis

    def first_source(self, x: Tensor) -> Tensor:
        """Return the network's input, channels last.

        Raises:
            UsageError: if it is not of floating point, or its width is not `dim`.
        """
        return self.from_axis(require_input(type(self).__name__, x, self.dim, self.axis))

    def to_axis(self, x: Tensor) -> Tensor:
        """Move the channels from the last axis to `axis`."""
        return x if self.axis == -1 else x.movedim(-1, self.axis)

    def from_axis(self, x: Tensor) -> Tensor:
        """Move the channels from `axis` to the last axis."""
        return x if self.axis == -1 else x.movedim(self.axis, -1)

    def called(self, branch: nn.Module, given: Sequence[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what a branch of several inputs returns.

        Raises:
            UsageError: if it does not take as many.
        """
        try:
            return branch(*given, *args, **kwargs)
        except TypeError as error:
            if _takes(branch, len(given) + len(args), kwargs):
                raise
            raise UsageError(
                f"{type(self).__name__}: with inputs={len(given)} a branch must take {len(given)} tensors, and "
                f"{type(branch).__name__} of layer {self.layer} does not. Leave inputs out."
            ) from error

    def require_sources(self, state: Sources) -> Sources:
        """Return the state.

        Raises:
            UsageError: if it is not a tuple of tensors `(..., dim)` of one shape.
        """
        good = isinstance(state, tuple) and bool(state) and all(isinstance(s, Tensor) for s in state)
        if not good or any(s.shape != state[0].shape or s.shape[-1] != self.dim for s in state):
            came = [tuple(s.shape) for s in state] if good else type(state).__name__
            raise UsageError(
                f"{type(self).__name__}: the state must be a tuple of tensors of one shape (..., {self.dim}), "
                f"got {came}. Make it with begin(x)."
            )
        return state


def _takes(branch: nn.Module, inputs: int, kwargs: dict[str, Any]) -> bool:
    try:
        inspect.signature(branch.forward).bind(*[None] * inputs, **kwargs)
    except TypeError:
        return False
    return True
