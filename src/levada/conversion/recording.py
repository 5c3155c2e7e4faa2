"""What one forward pass computed from what: a graph of the functions that were called, as calls see them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_flatten

__all__ = ["ADDITIONS", "FORMAL", "IN_PLACE", "Node", "Recording", "record"]

IN_PLACE: frozenset[Any] = frozenset({Tensor.add_, Tensor.__iadd__})
ADDITIONS: frozenset[Any] = frozenset({torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__}) | IN_PLACE
# What changes how a tensor is held and not what it says.
FORMAL: frozenset[Any] = frozenset(
    {Tensor.contiguous, Tensor.to, Tensor.type, Tensor.type_as, Tensor.float, Tensor.double, Tensor.half}
    | {Tensor.bfloat16, Tensor.clone, torch.clone, Tensor.requires_grad_}
)
# What may return the tensor that it was given, and then would leave no trace of where it was called.
_MAY_DO_NOTHING = FORMAL | {functional.dropout, torch.dropout}


@final
@dataclass(slots=True)
class Node:
    """One value: what a call returned, or a tensor that came from outside.

    Attributes:
        index: place in the order of execution; the inputs of a node have smaller ones.
        function: what was called; None for a tensor from outside.
        inputs: the values it was computed from, parameters left out.
        shape: shape of the tensor.
        learned: whether a parameter was among the arguments.
        calls: numbers of the module calls that were running, from the outermost.
        alpha: whether the call has a factor on one of its operands.
    """

    index: int
    function: Callable[..., Any] | None
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    learned: bool
    calls: tuple[int, ...]
    alpha: bool = False

    @property
    def name(self) -> str:
        """Name of the function, as in a message."""
        return resolve_name(self.function) or getattr(self.function, "__name__", "?") if self.function else "input"


@final
@dataclass(slots=True)
class Call:
    """One call of a module.

    Attributes:
        module: the module.
        name: its qualified name.
        inputs: place of each tensor argument, and its node: `("args", 0)` or `("kwargs", "hidden_states")`.
        outputs: the nodes of the tensors that it returned.
    """

    module: nn.Module
    name: str
    inputs: dict[tuple[str, int | str], int] = field(default_factory=dict)
    outputs: tuple[int, ...] = ()


@final
class Recording:
    """Nodes in order of execution, and the module calls in which they were computed.

    Attributes:
        nodes: by index.
        calls: by number.
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.calls: list[Call] = []
        self._of: dict[int, int] = {}
        self._kept: list[Tensor] = []  # an object that is gone gives its id to another
        self._running: list[int] = []
        self._versions: dict[int, int] = {}  # counts changes in place

    def node_of(self, tensor: Tensor) -> int:
        """Return the index of a tensor's latest value; a tensor that was never seen comes from outside."""
        if id(tensor) not in self._of:
            self._add(tensor, Node(len(self.nodes), None, (), tuple(tensor.shape), False, tuple(self._running)))
        return self._of[id(tensor)]

    def called(self, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
        """Note a call of a function; one that returned what it was given, unchanged, computed nothing."""
        given = _tensors((args, kwargs))
        same = {id(t) for t in given if self._versions.get(id(t)) == t._version}
        outputs = [t for t in _tensors(result) if not (id(t) in same and id(t) in self._of)]
        if not outputs:
            return
        learned = any(isinstance(t, nn.Parameter) for t in given)
        inputs = tuple(dict.fromkeys(self.node_of(t) for t in given if not isinstance(t, nn.Parameter)))
        alpha = kwargs.get("alpha", 1) != 1 or len(args) > 2
        for tensor in outputs:
            running = tuple(self._running)
            self._add(tensor, Node(len(self.nodes), function, inputs, tuple(tensor.shape), learned, running, alpha))

    def entered(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Note that a module is called."""
        call = Call(module, name)
        places: list[tuple[str, int | str]] = [("args", i) for i in range(len(args))]
        places += [("kwargs", key) for key in kwargs]
        for place, value in zip(places, (*args, *kwargs.values()), strict=True):
            if isinstance(value, Tensor):
                call.inputs[place] = self.node_of(value)
        self._running.append(len(self.calls))
        self.calls.append(call)

    def left(self, result: Any) -> None:
        """Note that the innermost module returned: what no function explains comes from all that it was given."""
        call = self.calls[self._running[-1]]
        outputs = [t for t in _tensors(result) if not isinstance(t, nn.Parameter)]
        for tensor in outputs:
            if id(tensor) not in self._of:
                learned = any(True for _ in call.module.parameters())
                inputs, running = tuple(dict.fromkeys(call.inputs.values())), tuple(self._running)
                unseen = type(call.module).__call__
                self._add(tensor, Node(len(self.nodes), unseen, inputs, tuple(tensor.shape), learned, running))
        call.outputs = tuple(self._of[id(t)] for t in outputs)
        self._running.pop()

    def _add(self, tensor: Tensor, node: Node) -> None:
        self.nodes.append(node)
        self._of[id(tensor)] = node.index
        self._versions[id(tensor)] = tensor._version
        self._kept.append(tensor)

    def between(self, first: int, last: int) -> list[int]:
        """Return what lies on the ways from one value to another, both included, in order; empty if there is no way."""
        reached = {first}
        for index in range(first + 1, last + 1):
            if any(i in reached for i in self.nodes[index].inputs):
                reached.add(index)
        if last not in reached:
            return []
        needed = {last}
        for index in range(last, first, -1):
            if index in needed:
                needed.update(i for i in self.nodes[index].inputs if i in reached)
        return sorted(needed & reached)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [leaf for leaf in tree_flatten(value)[0] if isinstance(leaf, Tensor)]


@final
class _Mode(TorchFunctionMode):
    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self.recording = recording

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _MAY_DO_NOTHING and isinstance(result, Tensor) and any(result is a for a in args):
            result = result.view_as(result)
        self.recording.called(func, args, kwargs or {}, result)
        return result


@contextmanager
def record(model: nn.Module) -> Iterator[Recording]:
    """Record what the model computes inside the context.

    Args:
        model: the model; hooks are on its modules until the context ends.

    Example:
        >>> model, x = nn.Sequential(nn.Linear(2, 2), nn.ReLU()), torch.ones(1, 2)
        >>> with record(model) as recording:
        ...     _ = model(x)
        >>> [node.name for node in recording.nodes]
        ['input', 'torch.nn.functional.linear', 'torch.nn.functional.relu']
    """
    recording = Recording()
    handles = []
    try:
        for name, module in model.named_modules():

            def enter(module: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
                recording.entered(name, module, args, kwargs)

            def leave(module: nn.Module, args: Any, result: Any) -> None:
                recording.left(result)

            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(module.register_forward_hook(leave))
        with _Mode(recording):
            yield recording
    finally:
        for handle in handles:
            handle.remove()
