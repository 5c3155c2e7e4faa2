"""Layers that can be undone: their activations are computed again in the backward pass instead of being kept."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias, final

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._pytree import register_pytree_node, tree_flatten, tree_unflatten
from torch.utils.checkpoint import get_device_states, set_device_states

from levada._errors import UsageError
from levada.connection import Connection, Outputs
from levada.stacking import LayerParameters

__all__ = ["Invertible", "Pair", "Slot"]

Pair: TypeAlias = tuple[Tensor, Tensor]


@final
class Slot:
    """Where the state between two layers is, as long as it cannot be recovered from the state after the next layer.

    Only the newest state of a chain is in a slot. The backward pass of a layer takes the state after it and leaves the
    state before it.
    """

    def __init__(self) -> None:
        self._tensors: Pair | None = None
        self._versions = (0, 0)

    def put(self, tensors: Pair) -> None:
        """Keep the newest state."""
        # Detached: they share memory and version with what the user sees, and keep no graph alive.
        self._tensors = tensors[0].detach(), tensors[1].detach()
        self._versions = tensors[0]._version, tensors[1]._version

    def clear(self) -> None:
        """Let go of a state that can be recovered."""
        self._tensors = None

    def take(self, name: str) -> Pair:
        """Hand over the state, once; `name` is the connection's, for errors."""
        if self._tensors is None:
            raise UsageError(
                f"{name}: the state after a layer serves one backward pass through all the layers after it, and it is "
                "gone. To go backward twice, or from the middle of the chain, pass recompute=False."
            )
        if self._versions != (self._tensors[0]._version, self._tensors[1]._version):
            raise UsageError(
                f"{name}: the layers' outputs must not be changed in place, the backward pass recovers the states "
                "before them. Clone the output first, or pass recompute=False."
            )
        tensors, self._tensors = self._tensors, None
        return tensors


# Sharding and checkpointing look for tensors in the state and put it together again; a slot holds none for them.
register_pytree_node(Slot, lambda slot: ([], slot), lambda _, slot: slot)

_State: TypeAlias = tuple[Tensor, Tensor, Slot | None]

# The node at a leaf of autograd's graph.
_ACCUMULATE = torch._C._functions.AccumulateGrad  # type: ignore[attr-defined]


class Invertible(Connection):
    """A connection with a state of two tensors, from whose next value, and the branch, it can be recovered.

    With `recompute`, one autograd function per layer keeps the parameters and no activation; its backward pass undoes
    the layer, runs the branch once more with a graph, and leaves the recovered state for the layer before it. Inside
    `torch.compile` and `torch.export`, and where no gradient is recorded, the layer is computed in the ordinary way:
    a compiler cannot follow states that pass from one layer's backward to another's, and decides on recomputation
    itself.

    Gradients go to the branch's own parameters and to its arguments. A tensor that it takes from elsewhere would get
    none, so the backward pass raises where that one needs a gradient; it can be an argument instead. Random numbers,
    autocast and buffers are in the second run as they were in the first one; hooks inside of the branch run twice.
    Transforms of `torch.func` cannot follow either and raise: pass `recompute=False` there.
    """

    recompute: bool

    @abstractmethod
    def input_of(self, new: Pair) -> Tensor:
        """Recover what the branch read from the state after the layer."""

    @abstractmethod
    def undo(self, new: Pair, out: Tensor) -> Pair:
        """Recover the state before the layer from the state after it and the branch's output."""

    @abstractmethod
    def branch_gradient(self, gradients: Pair) -> Tensor:
        """Return the gradient at the branch's output from the gradient at the state after the layer."""

    @abstractmethod
    def state_gradient(self, gradients: Pair, read: Tensor) -> Pair:
        """Return the gradient at the state before the layer; `read` is that at the branch's input."""

    @abstractmethod
    def write(self, state: _State, out: Tensor) -> _State:
        """Put the branch's output into the state."""

    def advance(self, state: _State, branch: nn.Module, *args: Any, **kwargs: Any) -> _State | Outputs:
        """Take one layer's step, keeping no activation if the step can be undone."""
        if not self.recompute or torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return super().advance(state, branch, *args, **kwargs)
        call = _Call(self, branch, (args, kwargs), state[2] or Slot())
        tensors = call.tensors((args, kwargs))
        if not any(tensor.requires_grad for tensor in (*state[:2], *tensors)):
            # There is nothing to keep, or the branch takes from elsewhere what needs a gradient: it is recorded.
            return super().advance(state, branch, *args, **kwargs)
        first, second = _Step.apply(call, state[0], state[1], *tensors)  # type: ignore[no-untyped-call]
        return first, second, call.after


_Arguments: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]
_Entry: TypeAlias = tuple[dict[str, Any], str, Any]  # where a module holds a parameter or buffer, and what to put there


@final
class _Call:
    """One run of a layer: what its backward pass needs to run the branch again."""

    def __init__(self, connection: Invertible, branch: nn.Module, arguments: _Arguments, before: Slot) -> None:
        self.connection = connection
        self.branch = branch
        self.before = before
        self.after = Slot()
        leaves, self.structure = tree_flatten(arguments)
        self.places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        self.leaves = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]  # tensors are saved by autograd
        self.entries: list[_Entry] = []  # of parameters, with their place among the distinct ones

    def tensors(self, arguments: _Arguments) -> list[Tensor]:
        """List the tensors among the arguments, then the branch's parameters that learn, each once."""
        distinct: dict[Tensor, int] = {}
        for module in self.branch.modules():
            if isinstance(module._parameters, LayerParameters):
                raise UsageError(
                    f"{type(self.connection).__name__}: a branch that is run again in the backward pass needs "
                    "parameters of its own, and those of stacked layers are one tensor. Pass recompute=False, or "
                    "leave stacked out."
                )
            for name, parameter in module._parameters.items():
                if parameter is not None and parameter.requires_grad:
                    place = distinct.setdefault(parameter, len(distinct))
                    self.entries.append((module._parameters, name, place))
        leaves = tree_flatten(arguments)[0]
        return [*(leaves[place] for place in self.places), *distinct]

    def arguments(self, tensors: Sequence[Tensor]) -> _Arguments:
        """Put the arguments together again."""
        leaves = list(self.leaves)
        for place, tensor in zip(self.places, tensors, strict=False):  # parameters follow
            leaves[place] = tensor
        return tree_unflatten(leaves, self.structure)  # type: ignore[no-any-return]

    def first_run(self, x: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        """Run the branch, and note the surroundings that it had."""
        self.autocast, self.training = _autocast_state(x), self.branch.training
        random, buffers = _random_state(x), self._buffers()
        args, kwargs = self.arguments(tensors)
        out: Tensor = self.branch(x, *args, **kwargs)
        if isinstance(out, tuple):
            raise UsageError(
                f"{type(self.connection).__name__}: a branch that is run again must return a tensor, got a tuple. "
                "Return the tensor alone, or pass recompute=False."
            )
        # Batch statistics are counted once, and an iteration that is kept in a buffer starts where it did. All buffers
        # of a module that changed one are taken: batch normalisation changes its means without a new version.
        changed = {id(held) for held, name, (_, version) in buffers if held[name]._version != version}
        self.buffers = [(held, name, copy) for held, name, (copy, _) in buffers if id(held) in changed]
        self.random = None if _same(random, _random_state(x)) else random
        if out.shape != x.shape:
            raise UsageError(
                f"{type(self.connection).__name__}: a branch must return the shape that it was given, "
                f"{tuple(x.shape)}, got {tuple(out.shape)}. What changes the shape belongs before or after the stack."
            )
        return out

    def second_run(self, x: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        """Run the branch again, with these tensors as its parameters: hooks on the user's own must run only once."""
        if self.branch.training != self.training:
            raise UsageError(
                f"{type(self.connection).__name__}: a branch must be in the same mode in the forward and the backward "
                f"pass, which runs it again; it went from training={self.training} to {self.branch.training}. "
                "Call train() or eval() after the backward pass, or pass recompute=False."
            )
        parameters = tensors[len(self.places) :]
        entries = [(held, name, parameters[place]) for held, name, place in self.entries]
        # Cloned: the run changes them.
        entries += [(held, name, buffer.clone()) for held, name, buffer in self.buffers]
        surroundings = _exchanged(entries), _random(x, self.random), _autocast(x, self.autocast), torch.enable_grad()
        with contextlib.ExitStack() as stack:
            for surrounding in surroundings:
                stack.enter_context(surrounding)
            args, kwargs = self.arguments(tensors)
            return self.branch(x, *args, **kwargs)  # type: ignore[no-any-return]

    def _buffers(self) -> list[_Entry]:
        if not self.branch.training:
            return []
        held = [module._buffers for module in self.branch.modules() if module._buffers]
        return [(h, name, (b.clone(), b._version)) for h in held for name, b in h.items() if b is not None]


@final
class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: _Call, first: Tensor, second: Tensor, *inputs: Tensor) -> Pair:
        ctx.call = call
        ctx.save_for_backward(*inputs)  # the branch's parameters and arguments: others keep them anyway
        state = first, second, None
        out = call.first_run(call.connection.read(state), inputs)
        new: Pair = call.connection.write(state, out)[:2]
        call.before.clear()
        call.after.put(new)
        return new

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        call: _Call = ctx.call
        connection = call.connection
        pair = gradients[0], gradients[1]
        new = call.after.take(type(connection).__name__)
        needs_state = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        x = connection.input_of(new).detach().requires_grad_(needs_state)
        inputs = [
            tensor.detach().requires_grad_(needed)
            for tensor, needed in zip(ctx.saved_tensors, ctx.needs_input_grad[3:], strict=True)
        ]
        out = call.second_run(x, inputs)
        call.before.put(connection.undo(new, out.detach()))
        wanted = [tensor for tensor in (x, *inputs) if tensor.requires_grad]
        _require_known_leaves(out, wanted, type(connection).__name__)
        found: list[Tensor | None] = [None] * len(wanted)
        if out.requires_grad and wanted:
            gradient = connection.branch_gradient(pair).to(out.dtype)
            found = list(torch.autograd.grad(out, wanted, gradient, allow_unused=True))
        result = [found.pop(0) if tensor.requires_grad else None for tensor in (x, *inputs)]
        states: tuple[Tensor | None, Tensor | None] = None, None
        if needs_state:
            states = connection.state_gradient(pair, torch.zeros_like(x) if result[0] is None else result[0])
        return None, *states, *result[1:]


def _require_known_leaves(out: Tensor, known: Sequence[Tensor], name: str) -> None:
    """Raise if the graph of a branch's output reaches a leaf whose gradient would be lost."""
    own = {id(tensor) for tensor in known}
    seen = {None, out.grad_fn}
    nodes: list[Any] = [out.grad_fn] if out.grad_fn is not None else []
    while nodes:
        node = nodes.pop()
        if isinstance(node, _ACCUMULATE) and id(node.variable) not in own:
            raise UsageError(
                f"{name}: a branch is run again in the backward pass, and only its parameters and arguments get "
                "gradients; it takes a tensor from elsewhere that needs one. Pass it as an argument, stack(x, c), "
                "detach it, or pass recompute=False."
            )
        for following, _ in node.next_functions:
            if following not in seen:
                seen.add(following)
                nodes.append(following)


_Autocast: TypeAlias = list[tuple[str, bool, torch.dtype]]
_Random: TypeAlias = tuple[Tensor, list[int], list[Tensor]]


def _autocast_state(x: Tensor) -> _Autocast:
    kinds = ("cpu",) if x.device.type == "cpu" else ("cpu", x.device.type)
    available = [kind for kind in kinds if torch.amp.is_autocast_available(kind)]
    return [(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in available]


@contextlib.contextmanager
def _autocast(x: Tensor, state: _Autocast) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for (kind, enabled, dtype), (_, now, _) in zip(state, _autocast_state(x), strict=True):
            if enabled or now:
                stack.enter_context(torch.autocast(kind, dtype, enabled))
        yield


def _random_state(x: Tensor) -> _Random:
    if x.device.type == "cpu":
        return torch.get_rng_state(), [], []
    devices, states = get_device_states(x)
    return torch.get_rng_state(), devices, states


def _same(before: _Random, after: _Random) -> bool:
    return all(torch.equal(a, b) for a, b in zip((before[0], *before[2]), (after[0], *after[2]), strict=True))


@contextlib.contextmanager
def _random(x: Tensor, state: _Random | None) -> Iterator[None]:
    if state is None:
        yield
        return
    cpu, devices, states = state
    kind = x.device.type
    with torch.random.fork_rng(devices, device_type=kind):
        torch.set_rng_state(cpu)
        if devices:
            set_device_states(devices, states, device_type=kind)
        yield


@contextlib.contextmanager
def _exchanged(entries: Sequence[_Entry]) -> Iterator[None]:
    originals = [held[name] for held, name, _ in entries]
    try:
        for held, name, tensor in entries:
            held[name] = tensor
        yield
    finally:
        for (held, name, _), original in zip(entries, originals, strict=True):
            held[name] = original
