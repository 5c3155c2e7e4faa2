"""The stream of a converted model: what its code passes around in place of the tensor, and adds to."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils._pytree import register_pytree_node, tree_map

from levada._errors import UsageError
from levada.connection import Connection, State
from levada.connections.streams import Coefficients, MultiStream
from levada.conversion.recording import ADDITIONS, IN_PLACE

__all__ = ["Place", "Route", "Stream", "begin_after", "enter", "finish"]


@final
@dataclass(frozen=True, slots=True)
class Place:
    """Where a connection of a chain is registered: it is looked up there, so that it can be replaced or replicated.

    Attributes:
        owner: the block.
        name: attribute of the block that holds its connections, a `ModuleList`.
        index: which of them.
        block: the block's qualified name.
    """

    owner: nn.Module
    name: str
    index: int
    block: str


@final
class Route:
    """The connections of one chain, in order, and what lies between them.

    The modules are registered where they are used; this only says in which order.

    Attributes:
        places: one for each addition.
        after: for each addition the functions that act on every stream before the next branch reads.
        inside: for each addition whether the one before it lies in the same block.
        output: what follows `end` after the last addition, a module of the last block; None for nothing.
        entry: `("args", index)`, `("kwargs", name)`, or None for what the module returns.
        written: positions that were written, while that is noted.
    """

    def __init__(
        self,
        places: Sequence[Place],
        after: Sequence[tuple[Any, ...]],
        output: str | None,
        entry: tuple[str, int | str] | None,
    ) -> None:
        self.places = list(places)
        self.after = list(after)
        owners = [place.owner for place in places]
        self.inside = [i > 0 and owner is owners[i - 1] for i, owner in enumerate(owners)]
        self.output = output
        self.entry = entry
        self.written: set[int] | None = None

    def connection(self, position: int) -> Connection:
        """Return the connection of an addition."""
        place = self.places[position]
        found: Connection = getattr(place.owner, place.name)[place.index]
        return found

    def begin(self, x: Any) -> Any:
        """Return the stream that begins with a tensor; what is a stream already goes on."""
        if isinstance(x, Stream) or not isinstance(x, Tensor):
            return x
        return Stream(self, self.connection(0).begin(x), 0, 0)

    def end(self, state: State) -> Any:
        """Return what the stream ends in."""
        y = self.connection(-1).end(state)
        return y if self.output is None else getattr(self.places[-1].owner, self.output)(y)


@final
@dataclass(eq=False, repr=False)  # sharding looks for tensors in the fields of what modules are given and return
class Stream:
    """The state of a chain, in place of the residual stream of the code that it runs through.

    Adding a tensor writes it: `stream + f` is the stream after the layer, and after the last layer a tensor. Everything
    else reads: a function that is called with a stream is given what the next branch reads, and so is what asks for an
    attribute of a tensor. A function that gives back what it was given leaves the stream a stream.
    """

    route: Route
    state: State
    position: int
    passed: int

    def __post_init__(self) -> None:
        self.coefficients: Coefficients | None = None
        self.read: Tensor | None = None

    def tensor(self) -> Tensor:
        """Return what the next branch reads."""
        if self.read is None:
            connection = self.route.connection(self.position)
            if isinstance(connection, MultiStream) and _shares_coefficients(connection):
                self.coefficients = connection.coefficients(connection.require_streams(self.state))
                self.read = connection.combine(self.coefficients.read, self.state)
            else:
                self.read = connection.read(self.state)
        return self.read

    def ready(self) -> Stream:
        """Return the stream, read as soon as its block runs: what is read later may be run again, and read no more."""
        self.tensor()
        return self

    def write(self, out: Any) -> Any:
        """Return the stream after a layer, or after the last one the tensor that it ends in."""
        x = self.tensor()
        if not isinstance(out, Tensor) or out.shape != x.shape or self.position == len(self.route.places):
            return x + _read(out)
        if not torch.is_grad_enabled() and x.requires_grad and x.grad_fn is not None:
            raise UsageError(
                "convert: the stream of a converted model needs a gradient, and its layers run without, as in "
                "reentrant checkpointing, which would lose it. Pass use_reentrant=False, or detach the input."
            )
        route, connection = self.route, self.route.connection(self.position)
        if route.written is not None:
            route.written.add(self.position)
        if isinstance(connection, MultiStream) and self.coefficients is not None:
            state = connection.update(self.coefficients, self.state, out)
        else:
            state = connection.write(self.state, out)
        following = self.position + 1
        if following == len(route.places):
            return route.end(state)
        stream = Stream(route, state, following, 0)
        return stream.ready() if route.inside[following] and not route.after[self.position] else stream

    def write_in_place(self, out: Any) -> Stream:
        """Go on as the stream after a layer, as a tensor that is added to in place does."""
        new = self.write(out)
        if isinstance(new, Stream):
            self.state, self.position, self.passed = new.state, new.position, new.passed
            self.coefficients, self.read = new.coefficients, new.read
        else:
            self.state, self.position, self.coefficients, self.read = None, len(self.route.places), None, new
        return self

    def across(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Stream:
        """Return the stream after a function that acts on every stream, such as the activation after an addition."""

        def each(state: Tensor) -> Any:
            given = [state if value is self else _read(value) for value in args]
            named = {key: state if value is self else _read(value) for key, value in kwargs.items()}
            return function(*given, **named)

        stream = Stream(self.route, tree_map(each, self.state), self.position, self.passed + 1)
        done = stream.passed == len(self.route.after[self.position - 1])
        return stream.ready() if self.route.inside[self.position] and done else stream

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in ADDITIONS and kwargs.get("alpha", 1) == 1:
            operands = [*args, *(kwargs[key] for key in ("input", "other") if key in kwargs)]
            if len(operands) == 2:
                one, other = operands if isinstance(operands[0], Stream) else reversed(operands)
                return one.write_in_place(other) if func in IN_PLACE and one is operands[0] else one.write(other)
        first = args[0] if args else kwargs.get("input")
        if isinstance(first, Stream) and 0 < first.position < len(first.route.places):
            after = first.route.after[first.position - 1]
            if first.passed < len(after) and func is after[first.passed]:
                return first.across(func, args, kwargs)
        result = func(*[_read(value) for value in args], **{key: _read(value) for key, value in kwargs.items()})
        # As `.contiguous()` of what is contiguous, or dropout in evaluation.
        return first if isinstance(first, Stream) and result is first.read else result

    def __add__(self, out: Any) -> Any:
        return self.write(out)

    def __radd__(self, out: Any) -> Any:
        return self.write(out)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        method = getattr(Tensor, name, None)
        if callable(method):
            return functools.partial(_call_method, method, self)
        return getattr(self.tensor(), name)

    def __len__(self) -> int:
        return len(self.tensor())

    def __setitem__(self, index: Any, value: Any) -> None:
        raise UsageError(
            "convert: what a layer reads of a converted model's stream cannot be assigned to, as it is made of several "
            "streams. Assign before the first block, or to a clone."
        )

    def __repr__(self) -> str:
        return f"Stream(position={self.position} of {len(self.route.places)})"


def _call_method(method: Any, stream: Stream, *args: Any, **kwargs: Any) -> Any:
    return Stream.__torch_function__(method, (), (stream, *args), kwargs)


def _reading(operation: Callable[..., Any]) -> Callable[..., Any]:
    def read(self: Stream, *others: Any) -> Any:
        return operation(self.tensor(), *[_read(other) for other in others])

    return read


def _reversed(operation: Callable[..., Any]) -> Callable[..., Any]:
    def read(self: Stream, other: Any) -> Any:
        return operation(_read(other), self.tensor())

    return read


_BINARY = ["mul", "sub", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor", "lshift", "rshift"]
for _name in _BINARY:
    _operation = getattr(operator, f"{_name}_" if _name in ("and", "or") else _name)
    setattr(Stream, f"__{_name}__", _reading(_operation))
    setattr(Stream, f"__r{_name}__", _reversed(_operation))
for _name in ("lt", "le", "gt", "ge", "ne", "eq", "neg", "pos", "abs", "invert", "getitem"):
    setattr(Stream, f"__{_name}__", _reading(getattr(operator, _name)))
for _kind in (bool, int, float, complex):
    setattr(Stream, f"__{_kind.__name__}__", _reading(_kind))


def _read(value: Any) -> Any:
    if isinstance(value, Stream):
        return value.tensor()
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_read(item) for item in value))
    if isinstance(value, tuple | list):
        return type(value)(_read(item) for item in value)
    if not _holds_stream(value):
        return value
    if isinstance(value, dict):
        items = {key: _read(item) for key, item in value.items()}
        return items if type(value) is dict else type(value)(**items)
    return dataclasses.replace(value, **{f.name: _read(getattr(value, f.name)) for f in dataclasses.fields(value)})


def _shares_coefficients(connection: MultiStream) -> bool:
    """Whether what was made to read serves to write; not where a connection is sharded, which gathers for each call."""
    kind = type(connection)
    own = kind.read is MultiStream.read and kind.write is MultiStream.write
    return own and "read" not in vars(connection)


def _flatten(stream: Stream) -> tuple[list[Any], Any]:
    return [stream.state], (stream.route, stream.position, stream.passed)


def _unflatten(values: Any, context: Any) -> Stream:
    route, position, passed = context
    return Stream(route, next(iter(values)), position, passed)


# So do checkpointing, and sharding in other versions of torch, in pytrees.
register_pytree_node(Stream, _flatten, _unflatten)


def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Begin streams at the first block of their chains, and renew them at every block; the hook before a block."""
    for route in getattr(module, "levada_routes", ()):
        kind, key = route.entry
        if kind == "args" and key < len(args):
            args = (*args[:key], route.begin(args[key]), *args[key + 1 :])
        elif kind == "kwargs" and key in kwargs:
            kwargs = {**kwargs, key: route.begin(kwargs[key])}
        else:
            raise UsageError(
                f"{type(module).__name__}: the stream must be given as when the model was converted, as "
                f"{f'argument {key}' if kind == 'args' else key}, and it is missing. Convert with a batch like this."
            )
    return tuple(_renewed(value, module) for value in args), {k: _renewed(v, module) for k, v in kwargs.items()}


def _renewed(value: Any, block: nn.Module | None = None) -> Any:
    """Return a stream that this block has read itself: a block that is run again must compute the same again."""
    if not isinstance(value, Stream) or value.position == len(value.route.places):
        return value
    route, expected = value.route, value.route.places[value.position]
    if block is not None and expected.owner is not block and any(place.owner is block for place in route.places):
        raise UsageError(
            f"{type(block).__name__}: the blocks of a converted model must run in the order in which they were "
            f"converted, and {expected.block or 'the model'} was left out before this one. Switch off what drops "
            "layers."
        )
    return Stream(route, value.state, value.position, value.passed).ready()


def begin_after(module: nn.Module, args: tuple[Any, ...], result: Any) -> Any:
    """Turn what a module returns into a stream; the hook after the module that makes it."""
    for route in module.levada_streams:  # type: ignore[union-attr]
        if isinstance(result, tuple):
            return (_renewed(route.begin(result[0])), *result[1:])
        result = _renewed(route.begin(result))
    return result


def finish(module: nn.Module, args: tuple[Any, ...], result: Any) -> Any:
    """Give the caller of the model tensors where it returns streams, such as all hidden states; the last hook."""
    return _read(result) if _holds_stream(result) else result


def _holds_stream(value: Any) -> bool:
    if isinstance(value, Tensor | nn.Module | type):
        return False
    if isinstance(value, dict):
        return any(_holds_stream(item) for item in value.values())
    if dataclasses.is_dataclass(value) and not isinstance(value, Stream):
        return any(_holds_stream(getattr(value, field.name, None)) for field in dataclasses.fields(value))
    return isinstance(value, Stream) or (isinstance(value, tuple | list) and any(_holds_stream(v) for v in value))
