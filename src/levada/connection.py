"""The connection protocol: how a layer reads from, and writes to, what the layers before it left.

state = begin(x);   (read -> branch -> write) x depth;   y = output(end(state))
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from levada._errors import UsageError, require_at_least, require_number
from levada._names import meant

__all__ = [
    "Connection",
    "Layer",
    "Outputs",
    "ParameterRule",
    "SingleStream",
    "State",
    "require_input",
    "require_maker",
    "require_module",
    "require_options",
]

State: TypeAlias = Any  # a tensor, n streams, a pair or a list: only its connection looks inside


class Outputs(NamedTuple):
    """What a layer returns whose branch returns a tuple: the state, and what came after the tuple's first element.

    Attributes:
        state: the state after the layer.
        extra: the rest of the branch's tuple, such as attention weights, a cache or an auxiliary loss.
    """

    state: State
    extra: tuple[Any, ...]


class ParameterRule(NamedTuple):
    """How a paper says that a parameter of its connection is trained.

    Attributes:
        decay: whether weight decay applies.
        optimizer: "muon" where the paper orthogonalises the update of this matrix, else "adamw".
    """

    decay: bool
    optimizer: Literal["adamw", "muon"] = "adamw"


class Connection(nn.Module, ABC):
    """How one layer reads from and writes to the state.

    A subclass is final: it implements the abstract methods and overrides nothing else but `advance`, where the branch
    must not simply be called (recomputation, dropping a layer), `defers_to` and `defer`, where the next layer's reading
    can write, and `require_fit`, where it may change the shape.
    `begin` and `end` have no parameters; a learned scalar has shape `(1,)`, never `()`: sharded training needs both.
    What is compiled once for all layers needs that `read` and `write` use no number that differs by layer.

    `residual_start` says what `start_as_residual` makes of a residual model that gets this connection: "exact", the
    same function; "normalised", the same up to the epsilon of the normalisation with which each branch begins; "none",
    another function. `rules` says by a parameter's name how it is trained; those left out are matrices and vectors as
    any other.

    Args:
        dim: width of the stream.
        layer: index of the layer, counted from 0.
        depth: number of layers.
        dim_in: width of what `read` returns; `dim` if left out.
        dim_out: width of what `end` returns after this layer; `dim` if left out.

    Raises:
        UsageError: if a width or `depth` is below 1 or no integer, or `layer` is not in `[0, depth)`.
    """

    residual_start: ClassVar[Literal["exact", "normalised", "none"]] = "none"
    rules: ClassVar[Mapping[str, ParameterRule]] = {}

    def __init__(
        self, dim: int, *, layer: int = 0, depth: int = 1, dim_in: int | None = None, dim_out: int | None = None
    ) -> None:
        super().__init__()
        self.dim = dim
        self.layer = layer
        self.depth = depth
        self.dim_in = dim if dim_in is None else dim_in
        self.dim_out = dim if dim_out is None else dim_out
        name = type(self).__name__
        for quantity in ("dim", "depth", "dim_in", "dim_out"):
            require_at_least(name, quantity, getattr(self, quantity), 1)
        require_number(name, "layer", layer, whole=True)
        if not 0 <= layer < depth:
            raise UsageError(f"{name}: layer must be in [0, depth) with depth {depth}, got {layer}.")

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

    def start_as_residual(self) -> None:
        """Set the parameters so that a network of such layers is the residual one: `x' = x + f(x)`.

        Raises:
            UsageError: if this connection, or its options, cannot be.
        """
        raise UsageError(
            f"{type(self).__name__}: a residual model that gets this connection computes another function. "
            f"Train it from scratch, or convert with preserve=False."
        )

    def advance(self, state: State, branch: nn.Module, *args: Any, **kwargs: Any) -> State | Outputs:
        """Take one layer's step: `write(state, branch(read(state), *args, **kwargs))`.

        Returns:
            The state; or, where the branch returns a tuple, `Outputs`: its first element is written, the rest is handed
            on.

        Raises:
            UsageError: if the connection keeps the width and the branch returns another shape than it was given.
        """
        x = self.read(state)
        out = branch(x, *args, **kwargs)
        if isinstance(out, tuple):
            first = self.first_of(out)
            self.require_fit(x, first)
            return Outputs(self.write(state, first), out[1:])
        if out.shape != x.shape:
            self.require_fit(x, out)
        return self.write(state, out)

    def defers_to(self, after: Connection) -> bool:
        """Return whether the layer after this one can write what this one's branch returns, as it reads.

        Args:
            after: the next layer's connection, which is given what `defer` returns, by `defer` or `advance`.
        """
        return False

    def defer(self, state: State, branch: nn.Module, *args: Any, **kwargs: Any) -> State | Outputs:
        """Take one layer's step but for the writing, where `defers_to(after)`: the state is for that connection alone.

        A stack asks for it where nobody looks at the state between two layers when the first begins: a hook that the
        branch itself puts on the next layer comes too late, and is given what this returns.
        """
        raise NotImplementedError(f"{type(self).__name__} writes at once.")

    def first_of(self, out: tuple[Any, ...]) -> Tensor:
        """Return the tensor that is written of a branch's tuple."""
        if not out or not isinstance(out[0], Tensor):
            kinds = ", ".join(type(value).__name__ for value in out) or "nothing"
            raise UsageError(
                f"{type(self).__name__}: a branch that returns a tuple must put the tensor to be written first, "
                f"got {kinds}. Wrap the branch."
            )
        return out[0]

    def require_fit(self, x: Tensor, out: Tensor) -> None:
        """Raise if the branch changed the shape: one that ends in a single unit would be broadcast in silence."""
        if self.dim_out == self.dim and out.shape != x.shape:
            raise UsageError(
                f"{type(self).__name__}: a branch must return the shape that it was given, {tuple(x.shape)}, "
                f"got {tuple(out.shape)}. What changes the shape belongs before or after the stack."
            )

    def extra_repr(self) -> str:
        """Say the width alone: equal layers print as one."""
        return f"dim={self.dim}"


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
    """One connection and the branch it wraps: the unit of sharding, checkpointing, compilation and probing.

    `state' = write(state, branch(read(state), *args, **kwargs))`

    Args:
        connection: how the branch reads and writes.
        branch: what the layer computes; it keeps the shape of what it is given. Where it returns a tuple, its first
            element is written, and the layer returns `Outputs(state, extra)`.

    Example:
        >>> import torch, levada
        >>> layer = Layer(levada.Residual(2), torch.nn.ReLU())
        >>> layer(torch.tensor([[-1.0, 3.0]]))
        tensor([[-1.,  6.]])
    """

    compiled: Callable[..., State] | None = None  # on the class: the call below then costs one look-up, no __getattr__

    def __init__(self, connection: Connection, branch: nn.Module) -> None:
        super().__init__()
        self.connection = connection
        self.branch = branch

    def forward(self, state: State, *args: Any, **kwargs: Any) -> State | Outputs:
        """Advance the state by one layer; the other arguments go to the branch."""
        modules: dict[str, Any] = self._modules  # nn.Module.__getattr__ takes ten times as long
        if self.compiled is not None and not torch.compiler.is_compiling():
            return self.compiled(modules["connection"], state, modules["branch"], args, kwargs)
        return modules["connection"].advance(state, modules["branch"], *args, **kwargs)


def require_input(owner: str, x: Tensor, dim: int, axis: int = -1) -> Tensor:
    """Return what a network is given, if it fits.

    Args:
        owner: the class that asks.
        x: what came.
        dim: number of channels.
        axis: their axis.

    Raises:
        UsageError: if `x` is not of floating point, or has another number of channels.

    Example:
        >>> require_input("Residual", torch.zeros(2, 3), 4)
        Traceback (most recent call last):
        levada._errors.UsageError: Residual: the input must have 4 channels at axis -1, got (2, 3). Change dim or axis.
    """
    if not x.is_floating_point():
        raise UsageError(f"{owner}: the input must be of floating point, got {x.dtype}. Embed or convert it first.")
    if x.ndim == 0 or not -x.ndim <= axis < x.ndim or x.shape[axis] != dim:
        raise UsageError(
            f"{owner}: the input must have {dim} channels at axis {axis}, got {tuple(x.shape)}. Change dim or axis."
        )
    return x


def require_module(model: object, owner: str) -> nn.Module:
    """Return `model` if it is one.

    Args:
        model: what the user gave.
        owner: class or function that asks, as the user typed it.

    Raises:
        UsageError: if it is not an `nn.Module`.

    Example:
        >>> require_module(3, "Probe")
        Traceback (most recent call last):
        levada._errors.UsageError: Probe: model must be an nn.Module, got int.
    """
    if not isinstance(model, nn.Module):
        hint = " Call it, and give what it returns." if callable(model) else ""
        raise UsageError(f"{owner}: model must be an nn.Module, got {type(model).__name__}.{hint}")
    return model


def require_maker(made: object, owner: str, example: str) -> None:
    """Raise if a module came where what makes one is needed: each layer has its own.

    Args:
        made: what the user gave.
        owner: class and argument that ask, as the user typed them.
        example: what can be given.

    Raises:
        UsageError: if it is a module, or nothing that can be called.

    Example:
        >>> require_maker(nn.ReLU(), "Convolution: activation", "nn.ReLU")
        Traceback (most recent call last):
        levada._errors.UsageError: Convolution: activation must make a module, such as nn.ReLU, got an instance of ReLU.
    """
    if isinstance(made, nn.Module) or not callable(made):
        raise UsageError(f"{owner} must make a module, such as {example}, got an instance of {type(made).__name__}.")


def require_options(connection: Any, options: Mapping[str, Any], own: Iterable[str] = ()) -> None:
    """Raise unless options fit a connection's class.

    Args:
        connection: a class, called as `connection(dim, layer=, depth=, **options)`.
        options: what the user gave beside the width.
        own: other names that the user may have meant, of whoever takes the options.

    Raises:
        UsageError: if it is an instance or no connection, or an option is unknown or missing.
    """
    if isinstance(connection, nn.Module) or not callable(connection):
        raise UsageError(
            f"connection must be a class, of which each layer gets an instance, got an instance of "
            f"{type(connection).__name__}. Pass the class, and its options beside it."
        )
    kind = getattr(connection, "func", connection)  # of functools.partial
    if isinstance(kind, type) and not issubclass(kind, Connection):
        raise UsageError(f"connection must be a class of Connection, such as levada.Residual, got {kind.__name__}.")
    name = getattr(connection, "__name__", None) or repr(connection)
    parameters = inspect.signature(connection).parameters.values()
    named = [p for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    # The first is `dim`; these are the stack's or the connection's own business.
    takes = {p.name: p for p in named[1:] if p.name not in ("dim", "layer", "depth", "dim_in", "dim_out")}
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for option in options:
        if option not in takes and not open_ended:
            near = meant(option, [*takes, *own])
            raise UsageError(f"{name} takes no option {option!r}; it takes: {', '.join(takes) or 'none'}.{near}")
    for option, parameter in takes.items():
        if parameter.default is parameter.empty and option not in options:
            raise UsageError(f"{name} needs the option {option!r}. Add {option}=.")
