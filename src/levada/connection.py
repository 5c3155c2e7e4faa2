"""The connection protocol: how a layer reads from, and writes to, what the layers before it left.

    state = begin(x);   (read -> branch -> write) x depth;   y = output(end(state))
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from torch import Tensor, nn

from levada._errors import UsageError, require_at_least

__all__ = ["Connection", "Layer", "SingleStream", "Stack", "State"]

State: TypeAlias = Any  # a tensor, n streams, a pair or a list: only its connection looks inside


class Connection(nn.Module, ABC):
    """How one layer reads from and writes to the state.

    A subclass is final: it implements the abstract methods and overrides nothing else but, where the branch must not
    simply be called (recomputation, dropping a layer), `advance`. `begin` and `end` have no parameters; a learned
    scalar has shape `(1,)`, never `()`: sharded training needs both.

    Args:
        dim: width of the stream.
        layer: index of the layer, counted from 0.
        depth: number of layers.
        dim_in: width of what `read` returns; `dim` if left out.
        dim_out: width of what `end` returns after this layer; `dim` if left out.

    Raises:
        UsageError: if `dim` or `depth` is below 1, or `layer` is not in `[0, depth)`.
    """

    def __init__(
        self, dim: int, *, layer: int = 0, depth: int = 1, dim_in: int | None = None, dim_out: int | None = None
    ) -> None:
        super().__init__()
        name = type(self).__name__
        require_at_least(name, "dim", dim, 1)
        require_at_least(name, "depth", depth, 1)
        if not 0 <= layer < depth:
            raise UsageError(f"{name}: layer must be in [0, depth) with depth {depth}, got {layer}.")
        self.dim = dim
        self.layer = layer
        self.depth = depth
        self.dim_in = dim if dim_in is None else dim_in
        self.dim_out = dim if dim_out is None else dim_out

    @abstractmethod
    def begin(self, x: Tensor) -> State:
        """Turn the network's input into the first state. Has no parameters."""

    @abstractmethod
    def read(self, state: State) -> Tensor:
        """Give the branch its input, of width `dim_in`."""

    @abstractmethod
    def write(self, state: State, out: Tensor) -> State:
        """Put the branch's output into the state."""

    @abstractmethod
    def end(self, state: State) -> Tensor:
        """Turn the last state into the network's output, of width `dim_out`. Has no parameters."""

    @abstractmethod
    def output(self, dim: int) -> nn.Module:
        """Return the module, maybe learned, that follows `end` after the last layer."""

    def advance(self, state: State, branch: nn.Module, args: tuple[Any, ...]) -> State:
        """Take one layer's step: `write(state, branch(read(state), *args))`."""
        return self.write(state, branch(self.read(state), *args))


class SingleStream(Connection):
    """A connection whose state is one tensor, the stream itself."""

    def begin(self, x: Tensor) -> Tensor:
        """Return `x`."""
        return x

    def read(self, state: Tensor) -> Tensor:
        """Return the stream."""
        return state

    def end(self, state: Tensor) -> Tensor:
        """Return the stream."""
        return state

    def output(self, dim: int) -> nn.Module:
        """Return the identity: nothing is learned after the last layer."""
        return nn.Identity()


class Layer(nn.Module):
    """One connection and the branch it wraps: the unit of sharding, checkpointing, compilation and probing."""

    def __init__(self, connection: Connection, branch: nn.Module) -> None:
        super().__init__()
        self.connection = connection
        self.branch = branch

    def forward(self, state: State, *args: Any) -> State:
        """Advance the state by one layer; `args` go to the branch."""
        return self.connection.advance(state, self.branch, args)


class Stack(nn.Module):
    """Branches, one after the other, each behind a connection of its own."""

    def __init__(
        self,
        branches: Iterable[nn.Module] | Callable[[int], nn.Module],
        connection: Callable[..., Connection],
        *,
        dim: int,
        depth: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if callable(branches) and not isinstance(branches, nn.Module):
            require_at_least("Stack", "depth", depth or 0, 1)
            connections = [connection(dim, layer=i, depth=depth, **options) for i in range(depth or 0)]
            modules = [branches(c.dim_in) for c in connections]
        else:
            modules = list(branches)  # type: ignore[arg-type]
            connections = [connection(dim, layer=i, depth=len(modules), **options) for i in range(len(modules))]
        self.layers = nn.ModuleList(Layer(c, b) for c, b in zip(connections, modules, strict=True))
        self.output = connections[-1].output(dim)

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        """Run all layers; `args` go to every branch."""
        state = self.layers[0].connection.begin(x)
        for layer in self.layers:
            state = layer(state, *args)
        return self.output(self.layers[-1].connection.end(state))
