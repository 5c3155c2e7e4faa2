"""What a layer of a connection costs beside its branch, counted: parameters, elements moved, activations kept.

What is counted here does not depend on the machine. The branch is free: what it returns is made beforehand.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import levada.connections
from levada.connection import Connection
from levada.ops._define import plain_operations

__all__ = ["DEPTH", "DIM", "LAYER", "OPTIONS", "Chain", "Costs", "costs", "listed"]

DIM, LAYER, DEPTH = 512, 12, 24
"""The reference: a layer in the middle, of a usual width."""

OPTIONS: dict[str, dict[str, Any]] = {
    "Dense": {"growth": 32},  # it has no default
    "StochasticDepth": {"survival": 1.0},  # a layer that is dropped costs nothing
}


def listed() -> dict[str, type[Connection]]:
    """Return every connection that `levada.connections` lists, by name."""
    named = vars(levada.connections).items()
    classes = {name: c for name, c in named if isinstance(c, type) and issubclass(c, Connection)}
    return {name: c for name, c in classes.items() if not inspect.isabstract(c)}


class _Free(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, out: Tensor, gradient: Tensor) -> Tensor:
        ctx.gradient = gradient
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.gradient, None, None


class FreeBranch(nn.Module):
    """Returns what was made beforehand, in both passes: it takes no time, and its output is a tensor of its own."""

    def __init__(self, tokens: int, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.out = torch.randn(tokens, dim_out)
        self.gradient = torch.randn(tokens, dim_in)
        self.values = torch.randn(tokens, dim_in)
        self.given: Tensor | None = None
        self.traffic: _Traffic | None = None

    mixes_values = False

    def forward(self, x: Tensor, *others: Tensor, mix_values: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        if self.traffic is not None:
            self.traffic.cross(x, *others)
        if mix_values is not None:
            mixed = mix_values(self.values)
            if self.traffic is not None:
                self.traffic.used.add(_key(mixed))
        return _Free.apply(x, self.out, self.gradient)


class Chain:
    """The layers of a network up to the reference layer, with free branches.

    Args:
        connection: the class.
        tokens: number of tokens.
        dim: width of the stream.
        layer: index of the last layer.
        depth: number of layers of the network of which these are the first.
        options: of the connection.
    """

    def __init__(
        self,
        connection: type[Connection],
        *,
        tokens: int,
        dim: int = DIM,
        layer: int = LAYER,
        depth: int = DEPTH,
        options: dict[str, Any] | None = None,
    ) -> None:
        options = OPTIONS.get(connection.__name__, {}) if options is None else options
        self.connections = [connection(dim, layer=i, depth=depth, **options) for i in range(layer + 1)]
        self.branches = [
            FreeBranch(tokens, c.dim_in, c.dim_out - c.dim_in if c.dim_out > c.dim_in else c.dim_in)
            for c in self.connections
        ]
        for c, branch in zip(self.connections, self.branches, strict=True):
            branch.mixes_values = getattr(c, "attends", False)  # as an attention does
        self.x = torch.randn(tokens, dim)

    @property
    def last(self) -> Connection:
        """The connection of the reference layer."""
        return self.connections[-1]

    def state(self) -> Any:
        """Return the state before the last layer, with tensors that are leaves of the graph."""
        with torch.no_grad():
            state = self.connections[0].begin(self.x)
            for connection, branch in zip(self.connections[:-1], self.branches, strict=False):
                state = connection.advance(state, branch)
        if isinstance(state, Tensor):
            return state.detach().requires_grad_()
        return tuple(s.detach().requires_grad_() if isinstance(s, Tensor) else s for s in state)

    def advance(self, state: Any) -> Any:
        """Take the last layer's step, from a state to which none was taken before (a buffer in it notes them)."""
        fresh = (
            state if isinstance(state, Tensor) else tuple(s if isinstance(s, Tensor) else copy.copy(s) for s in state)
        )
        return self.last.advance(fresh, self.branches[-1])


def _key(x: Tensor) -> int:
    return x.untyped_storage()._cdata


def _elements(x: Tensor) -> int:
    """Count the elements that a tensor has in memory: what is expanded is there once."""
    count = 1
    for size, stride in zip(x.shape, x.stride(), strict=True):
        count *= size if stride else min(size, 1)
    return count


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


@dataclass
class _Pass:
    """What the operations on one side of the branch took from outside, and made."""

    taken: dict[int, int] = field(default_factory=dict)
    made: dict[int, int] = field(default_factory=dict)


class _Traffic(TorchDispatchMode):
    """Counts what operations read and write, views apart: all of it, and what would be left if each side were fused."""

    def __init__(self, parameters: list[Tensor]) -> None:
        super().__init__()
        self.parameters = {_key(p) for p in parameters}
        self.moved = 0
        self.passes = [_Pass()]
        self.used: set[int] = set()  # by the branch, beside what it is given
        self.kept: list[Tensor] = []  # so that no storage's address is used twice

    def cross(self, *inputs: Tensor) -> None:
        self.given = {_key(x) for x in inputs}
        self.passes.append(_Pass())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        changed = {
            _key(args[i])
            for i, argument in enumerate(func._schema.arguments[: len(args)])
            if argument.alias_info is not None and argument.alias_info.is_write and isinstance(args[i], Tensor)
        }
        given = {_key(x) for x in _tensors((args, kwargs))}
        results = [x for x in _tensors(out) if _key(x) not in given or _key(x) in changed]
        if not results or func.overloadpacket.__name__.startswith(("empty", "new_empty")):  # nothing but a view
            return out
        here = self.passes[-1]
        for x in _tensors((args, kwargs)):
            key = _key(x)
            if key in self.parameters or (key in changed and func.overloadpacket.__name__ == "copy_"):
                continue
            self.moved += _elements(x)
            if key not in here.made:
                here.taken[key] = max(here.taken.get(key, 0), _elements(x))
        for x in results:
            self.moved += _elements(x)
            here.made[_key(x)] = max(here.made.get(_key(x), 0), _elements(x))
        self.kept += [*results, *_tensors((args, kwargs))]
        return out

    def least(self, state: Any) -> int:
        """Return what is moved if all that lies on one side of the branch is one kernel."""
        before, after = self.passes
        handed_on = {*self.given, *after.taken}
        left = {_key(x) for x in _tensors(state)} | self.used
        written = sum(n for key, n in before.made.items() if key in handed_on)
        written += sum(n for key, n in after.made.items() if key in left)
        return sum(before.taken.values()) + sum(after.taken.values()) + written


@dataclass(frozen=True)
class Costs:
    """What one layer costs, in elements.

    Attributes:
        parameters: number of the layer's parameters.
        state: elements per token of the state before the layer.
        growth: by how much the layer makes the state larger.
        moved: elements per token that eager operations read and write in the forward pass.
        fused: what would be left of them with one kernel on each side of the branch.
        saved: elements per token that are kept for the backward pass and were not kept before.
    """

    parameters: int
    state: float
    growth: float
    moved: float
    fused: float
    saved: float


def costs(connection: type[Connection], *, tokens: int = 256, **chain: Any) -> Costs:
    """Count what one layer of a connection costs, in training and float32.

    Args:
        connection: the class.
        tokens: number of tokens; what does not grow with it is shared among them.
        chain: what `Chain` takes.
    """
    layers = Chain(connection, tokens=tokens, **chain)
    state = layers.state()
    traffic = _Traffic([*layers.last.parameters(), *layers.last.buffers()])
    layers.branches[-1].traffic = traffic
    with torch.no_grad(), plain_operations(), traffic:
        new = layers.advance(state)
    layers.branches[-1].traffic = None
    before, after = _held(state), _held(new)
    return Costs(
        parameters=sum(p.numel() for p in layers.last.parameters()),
        state=before / tokens,
        growth=(after - before) / tokens,
        moved=traffic.moved / tokens,
        fused=traffic.least(new) / tokens,
        saved=_saved(layers) / tokens,
    )


def _held(state: Any) -> int:
    held: dict[int, int] = {}
    for x in _tensors(state):
        held[_key(x)] = max(held.get(_key(x), 0), _elements(x))
    return sum(held.values())


def _saved(layers: Chain) -> int:
    """Count the elements that the last layer is the first one to keep."""
    known = {_key(p) for connection in layers.connections for p in connection.parameters()}
    kept: list[Tensor] = []
    new = 0

    def keep(x: Tensor) -> Tensor:
        nonlocal new
        if _key(x) not in known:
            known.add(_key(x))
            kept.append(x)
            new += x.untyped_storage().nbytes() // x.element_size()
        return x

    with saved_tensors_hooks(keep, lambda x: x):
        state = layers.connections[0].begin(layers.x.requires_grad_())
        for connection, branch in zip(layers.connections, layers.branches, strict=True):
            new = 0
            state = connection.advance(state, branch)
    return new
