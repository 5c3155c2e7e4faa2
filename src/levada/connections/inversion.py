"""Layers that can be undone: their activations are computed again in the backward pass instead of being kept."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias, final

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.utils._pytree import register_pytree_node, tree_flatten, tree_unflatten
from torch.utils.checkpoint import get_device_states, set_device_states

from levada._errors import UsageError
from levada.connection import Connection

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


class Invertible(Connection):
    """A connection with a state of two tensors, from whose next value, and the branch, it can be recovered.

    With `recompute`, one autograd function per layer keeps the parameters and no activation; its backward pass undoes
    the layer, runs the branch once more with a graph, and leaves the recovered state for the layer before it. Inside
    `torch.compile` and `torch.export`, and where no gradient is recorded, the layer is computed in the ordinary way:
    a compiler cannot follow states that pass from one layer's backward to another's, and decides on recomputation
    itself.

    The branch's own parameters and arguments get gradients; a tensor that the branch takes from elsewhere does not.
    Random numbers, autocast and buffers are in the second run as they were in the first one; hooks inside of the
    branch run twice.
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

    def advance(self, state: _State, branch: nn.Module, args: tuple[Any, ...]) -> _State:
        """Take one layer's step, keeping no activation if the step can be undone."""
        if not self.recompute or torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return super().advance(state, branch, args)  # type: ignore[no-any-return]
        leaves, structure = tree_flatten(args)
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        names, parameters = [], []
        for name, parameter in branch.named_parameters():
            if parameter.requires_grad:
                names.append(name)
                parameters.append(parameter)
        call = _Call(self, branch, state[2] or Slot(), names)
        call.leaves = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        call.places, call.structure = places, structure
        first, second = _Step.apply(call, state[0], state[1], *(leaves[i] for i in places), *parameters)  # type: ignore[no-untyped-call]
        return first, second, call.after


@final
class _Call:
    """One run of a layer: what its backward pass needs to run the branch again."""

    leaves: list[Any]
    places: list[int]
    structure: Any

    def __init__(self, connection: Invertible, branch: nn.Module, before: Slot, names: list[str]) -> None:
        self.connection = connection
        self.branch = branch
        self.before = before
        self.after = Slot()
        self.names = names

    def arguments(self, tensors: Sequence[Tensor]) -> tuple[Any, ...]:
        leaves = list(self.leaves)
        for place, tensor in zip(self.places, tensors, strict=True):
            leaves[place] = tensor
        return tree_unflatten(leaves, self.structure)  # type: ignore[no-any-return]

    def first_run(self, x: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        """Run the branch, and note the surroundings that it had."""
        buffers = dict(self.branch.named_buffers()) if self.branch.training else {}
        before = {name: (buffer._version, buffer.clone()) for name, buffer in buffers.items()}
        self.autocast = [
            (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
            for kind in {"cpu", x.device.type}
            if torch.amp.is_autocast_available(kind)
        ]
        random = torch.get_rng_state(), *get_device_states(x)
        with _autocast(self.autocast):
            out: Tensor = self.branch(x, *self.arguments(tensors))
        # Batch statistics are counted once, and an iteration that is kept in a buffer starts where it did. All buffers
        # of a module that changed one are taken: batch normalisation changes its means without a new version.
        changed = {_owner(name) for name, (version, _) in before.items() if buffers[name]._version != version}
        self.buffers = {name: copy for name, (_, copy) in before.items() if _owner(name) in changed}
        same = torch.equal(random[0], torch.get_rng_state()) and all(
            torch.equal(a, b) for a, b in zip(random[2], get_device_states(x)[1], strict=True)
        )
        self.random = None if same else random
        if out.shape != x.shape:
            raise UsageError(
                f"{type(self.connection).__name__}: a branch must return the shape that it was given, "
                f"{tuple(x.shape)}, got {tuple(out.shape)}. What changes the shape belongs before or after the stack."
            )
        return out

    def second_run(self, x: Tensor, tensors: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
        """Run the branch again with these parameters, so that hooks on the user's own run only once."""
        # Cloned: these are changed by the run.
        values = {name: buffer.clone() for name, buffer in self.buffers.items()}
        values.update(zip(self.names, parameters, strict=True))
        with torch.enable_grad(), _random(self.random, x.device.type), _autocast(self.autocast):
            return functional_call(self.branch, values, (x, *self.arguments(tensors)))  # type: ignore[no-any-return]


@final
class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: _Call, first: Tensor, second: Tensor, *inputs: Tensor) -> Pair:
        ctx.call = call
        ctx.save_for_backward(*inputs)  # the branch's parameters and arguments: others keep them anyway
        state = first, second, None
        out = call.first_run(call.connection.read(state), inputs[: len(call.places)])
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
        out = call.second_run(x, inputs[: len(call.places)], inputs[len(call.places) :])
        call.before.put(connection.undo(new, out.detach()))
        wanted = [tensor for tensor in (x, *inputs) if tensor.requires_grad]
        found: list[Tensor | None] = [None] * len(wanted)
        if out.requires_grad and wanted:
            gradient = connection.branch_gradient(pair).to(out.dtype)
            found = list(torch.autograd.grad(out, wanted, gradient, allow_unused=True))
        result = [found.pop(0) if tensor.requires_grad else None for tensor in (x, *inputs)]
        states: tuple[Tensor | None, Tensor | None] = None, None
        if needs_state:
            states = connection.state_gradient(pair, torch.zeros_like(x) if result[0] is None else result[0])
        return None, *states, *result[1:]


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


@contextlib.contextmanager
def _autocast(kinds: list[tuple[str, bool, torch.dtype]]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for kind, enabled, dtype in kinds:
            # Without its cache: a weight that is cast where no gradient is recorded must not be taken from it later.
            stack.enter_context(torch.autocast(kind, dtype, enabled, cache_enabled=False))
        yield


@contextlib.contextmanager
def _random(state: tuple[Any, ...] | None, kind: str) -> Iterator[None]:
    if state is None:
        yield
        return
    cpu, devices, states = state
    with torch.random.fork_rng(devices, device_type=None if kind == "cpu" else kind):
        torch.set_rng_state(cpu)
        if devices:
            set_device_states(devices, states, device_type=kind)
        yield
