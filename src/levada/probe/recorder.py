"""Record one forward pass: the calls of modules as a tree, the calls of functions as a graph of numbered values."""

from __future__ import annotations

import dataclasses
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from levada.connection import Layer
from levada.probe.functions import canonical_name, describe
from levada.probe.hook import Hook
from levada.probe.operation import Operation
from levada.stacking import LayerParameters, parameters_of

_transform = getattr(torch._C._functorch, "peek_interpreter_stack", lambda: None)  # private: else such models fail

__all__ = ["Event", "Frame", "Recorder", "Sighting", "first_floating", "tensors", "transformed"]


def transformed() -> bool:
    """Return whether a transform of `torch.func` is under way: its tensors cannot be read."""
    return _transform() is not None


def tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in a nest of tuples, lists, mappings and dataclasses, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for entry in dataclasses.fields(value):
            yield from tensors(getattr(value, entry.name, None))


def first_floating(value: Any) -> Tensor | None:
    """Return the first floating tensor in a nest, or None."""
    if isinstance(value, Tensor):
        return value if value.is_floating_point() else None
    return next((tensor for tensor in tensors(value) if tensor.is_floating_point()), None)


@dataclass(slots=True, eq=False)
class Event:
    """An operation with everything that it returned, and the frame in which it ran."""

    operation: Operation
    outputs: tuple[int, ...]
    frame: Frame
    function: str  # name as called, before "clamp" became "relu"
    ordinal: int  # among the calls of this function in its frame
    matrix: bool  # whether it read a parameter of two or more dimensions


@dataclass(slots=True, eq=False)
class Frame:
    """One call of a module."""

    module: nn.Module
    name: str
    call: int
    parent: Frame | None
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    output: int | None = None
    events: list[Frame | Event] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def frames(self) -> list[Frame]:
        """Return the calls of modules made directly by this one."""
        return [event for event in self.events if isinstance(event, Frame)]

    def walk(self) -> Iterator[Event]:
        """Yield all operations inside, in order."""
        for event in self.events:
            if isinstance(event, Frame):
                yield from event.walk()
            else:
                yield event


@dataclass(frozen=True, slots=True)
class Sighting:
    """Where a value passes a module: as the output of a call, or as an argument (`key`) of it."""

    module: str
    call: int
    key: int | str | None = None


class Recorder(TorchFunctionMode):
    """Hooks on every module, and a function mode that is on while the model itself runs.

    The first call of the model is recorded, later ones are not. A value is a tensor at one version, so that an
    operation in place makes a new one; values are numbered in the order in which they were first seen.

    Args:
        model: the model.
        on_value: called with number and tensor for each new floating activation, when it was just produced.
        on_activation: called with number, tensor, operation and channel dimension after each activation function.
        on_start: called before the model's forward; says whether to record it.
        on_end: called after the model's forward; says whether it returned normally.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        on_value: Callable[[int, Tensor], None] | None = None,
        on_activation: Callable[[int, Tensor, Operation, int], None] | None = None,
        on_start: Callable[[], bool] | None = None,
        on_end: Callable[[bool], None] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.finished = False
        self._on_value, self._on_activation = on_value, on_activation
        self._on_start, self._on_end = on_start, on_end
        self._buffers = list(model.buffers())  # held, so that their ids stay theirs
        self._fixed = {id(buffer) for buffer in self._buffers}
        named = [*parameters_of(model)]
        self._parameters = {id(p): name for name, p in (*model.named_parameters(), *named)}
        self._wide = {name for name, p in named if p.dim() >= 2}
        self._stacked: list[Tensor] = []  # what stacked layers read in this pass; held, as the buffers are
        self._handles: list[RemovableHandle] = []
        self._entered = False
        self._reset()

    def _reset(self) -> None:
        self.root: Frame | None = None
        self.producers: dict[int, Event] = {}
        self.floating: set[int] = set()
        self.shape_of: dict[int, tuple[int, ...]] = {}
        self.sightings: dict[int, list[Sighting]] = {}
        self.changed: set[int] = set()  # values that were overwritten in place
        self.channel_dim: dict[int, int] = {}  # output of an activation -> the dimension that counts its units
        self._stack: list[Frame] = []
        self._calls: dict[int, int] = {}
        self._numbers: dict[tuple[int, int], tuple[weakref.ref[Tensor], int]] = {}
        self._derived: dict[int, tuple[str, ...]] = {}  # values computed from parameters alone
        self._constants: set[int] = set()
        self._bare: set[int] = set()  # constants that had no graph when they were made
        self.transformed = False  # whether floating values were made inside of vmap or another function transform
        self._busy = False
        self._convolutional = False
        self._count = 0
        self._last: int | None = None

    def attach(self) -> None:
        """Put the hooks on the modules."""
        inside = {
            id(m) for outer in self.model.modules() if isinstance(outer, ParametrizationList) for m in outer.modules()
        }
        for name, module in self.model.named_modules():
            if id(module) in inside:  # they compute a parameter, not a signal
                continue
            self._handles.append(module.register_forward_pre_hook(Hook(self._opener(name)), with_kwargs=True))
            self._handles.append(module.register_forward_hook(Hook(self._closer()), always_call=True))

    def detach(self) -> None:
        """Remove the hooks and leave the function mode."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._stack.clear()
        if self._entered:
            self._entered = False
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def _opener(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self.finished or self._busy or not (self._stack or module is self.model):
                return
            if transformed():  # its values are behind a transform and cannot be read
                return
            if not self._stack and self._on_start is not None and not self._on_start():
                return
            call = self._calls[id(module)] = self._calls.get(id(module), 0) + 1
            parent = self._stack[-1] if self._stack else None
            frame = Frame(module, name, call, parent)
            self._stack.append(frame)
            if isinstance(module, Layer):
                self._name_stacked(module, name)
            if parent is None:
                self.root = frame
            else:
                parent.events.append(frame)
            self._busy = True
            frame.inputs = tuple(dict.fromkeys(self._activations((args, kwargs), parent)))
            keyed: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
            for key, value in keyed:
                if isinstance(value, Tensor):
                    self.sightings.setdefault(self._number(value), []).append(Sighting(name, call, key))
            self._busy = False
            if parent is None:
                self._entered = True
                self.__enter__()  # type: ignore[no-untyped-call]

        return hook

    def parameters_in(self, module: nn.Module) -> dict[str, bool]:
        """Return the names of a module's parameters, and whether they have two or more dimensions."""
        names = (self._parameters[id(p)] for _, p in parameters_of(module))
        return {name: name in self._wide for name in names}

    def _name_stacked(self, layer: nn.Module, prefix: str) -> None:
        """Learn the tensors that a stacked layer reads in this pass: they have a graph, and are new in each."""
        for path, module in layer.named_modules(prefix=prefix):
            if isinstance(module._parameters, LayerParameters):
                read = {n: t for n in module._parameters.names() if (t := module._parameters[n]) is not None}
                self._stacked.extend(read.values())
                self._parameters.update((id(tensor), f"{path}.{name}") for name, tensor in read.items())

    def _closer(self) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if self._busy or transformed() or all(frame.module is not module for frame in self._stack):
                return
            frame = self._stack.pop()
            while frame.module is not module:  # of another thread, which began inside of this call and ends after it
                frame = self._stack.pop()
            self._busy = True
            returned = list(tensors(output))
            frame.outputs = tuple(dict.fromkeys(self._number(t) for t in returned))
            opaque = [t for t in returned if self._unexplained(self._number(t), t, frame)]
            if opaque:  # made by something that shows no function: a custom autograd function, a scripted module
                self._append(frame, Operation("other", type(module).__name__, frame.name, frame.inputs, 0), opaque)
            main = first_floating(output)
            if main is not None:
                frame.output = self._number(main)
                self.sightings.setdefault(frame.output, []).append(Sighting(frame.name, frame.call))
            self._busy = False
            if not self._stack:
                self._entered = False
                self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
                self.finished = output is not None
                if not self.finished:
                    self._reset()
                if self._on_end is not None:
                    self._on_end(self.finished)

        return hook

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the function, and note it if it makes a tensor from tensors."""
        kwargs = kwargs or {}
        if self._busy or not self._stack:
            return function(*args, **kwargs)
        if transformed():
            result = function(*args, **kwargs)
            self.transformed |= any(t.is_floating_point() for t in tensors(result))
            return result
        name = canonical_name(function)
        self._busy = True
        frame = self._stack[-1]
        frame.counts[name] += 1
        given = list(tensors((args, kwargs)))
        before = [(t, self._number(t)) for t in given]
        inputs = tuple(self._activations(given, frame))
        names = tuple(dict.fromkeys(n for t, k in before for n in self._names(t, k)))
        self._busy = False
        result = function(*args, **kwargs)
        if name == "grad":
            return result
        self._busy = True
        written = [(t, number) for t, number in before if self._number(t) != number and id(t) not in self._fixed]
        self.changed.update(number for _, number in written)
        returned = list(dict.fromkeys((*tensors(result), *(t for t, _ in written))))
        called = name
        if returned:
            kind, name, options = describe(name, args, kwargs)
            self._append(frame, Operation(kind, name, frame.name, inputs, 0, names, options), returned, called)
        self._busy = False
        return result

    def _append(self, frame: Frame, draft: Operation, returned: list[Tensor], function: str = "") -> None:
        """Number what an operation returned, and put it into the graph."""
        numbers = tuple(dict.fromkeys(self._number(t) for t in returned))
        fresh = [n for n in numbers if n not in draft.inputs and n not in self.producers]
        if not draft.inputs and not draft.parameters:
            self._constants.update(fresh)
            self._bare.update(n for t in returned if not t.requires_grad and (n := self._number(t)) in fresh)
            return
        if not draft.inputs and draft.kind not in ("conv", "embedding"):  # e.g. the product of two low-rank factors
            self._derived.update(dict.fromkeys(fresh, draft.parameters))
            return
        main = next((t for t in returned if t.is_floating_point()), returned[0])
        number = self._number(main)
        if number in draft.inputs:  # it gave back what it was given: `x.to(x.dtype)`, a cast that casts nothing
            return
        wide = any(name in self._wide for name in draft.parameters)
        operation = dataclasses.replace(draft, output=number, shape=tuple(main.shape))
        event = Event(operation, numbers, frame, function, frame.counts[function], wide)
        frame.events.append(event)
        self.producers.update(dict.fromkeys(fresh, event))
        if operation.kind in ("conv", "linear", "embedding", "attention", "recurrent"):
            self._convolutional = operation.kind == "conv"
        if not main.is_floating_point():
            return
        self._last = number
        for tensor in returned if self._on_value is not None else ():
            if self._on_value is not None and tensor.is_floating_point() and self._number(tensor) in fresh:
                self._on_value(self._number(tensor), tensor)
        if operation.kind == "activation" and number in fresh:
            self.channel_dim[number] = 1 if self._convolutional and main.dim() > 2 else main.dim() - 1
            if self._on_activation is not None:
                self._on_activation(number, main, operation, self.channel_dim[number])

    def _number(self, tensor: Tensor) -> int:
        version = 0 if tensor.is_inference() else tensor._version
        if type(tensor) is not Tensor and isinstance(tensor, nn.Parameter):  # the second test alone is slow
            version = 0
        known = self._numbers.get((id(tensor), version))
        if known is not None and known[0]() is tensor:
            return known[1]
        number, self._count = self._count, self._count + 1
        self._numbers[id(tensor), version] = weakref.ref(tensor), number
        self.shape_of[number] = tuple(tensor.shape)
        if tensor.is_floating_point():
            self.floating.add(number)
        return number

    def _names(self, tensor: Tensor, number: int) -> tuple[str, ...]:
        name = self._parameters.get(id(tensor))
        return (name,) if name is not None else self._derived.get(number, ())

    def _activations(self, value: Any, frame: Frame | None) -> Iterator[int]:
        """Yield the numbers of the tensors in `value` that are neither parameters nor constants."""
        for tensor in tensors(value):
            number = self._number(tensor)
            if self._names(tensor, number) or id(tensor) in self._fixed or number in self._constants:
                continue
            if frame is not None and self._unexplained(number, tensor, frame):
                if not tensor.requires_grad or not frame.inputs:
                    self._constants.add(number)
                    continue
                source = self._last if self._last is not None else frame.inputs[0]
                self._append(frame, Operation("other", "opaque", frame.name, (source,), 0), [tensor])
            yield number

    def _unexplained(self, number: int, tensor: Tensor, frame: Frame) -> bool:
        """Whether nothing that was seen made this value."""
        root = self.root
        if number in self._bare and tensor.grad_fn is not None:  # a custom autograd function wrote into memory it made
            self._bare.discard(number)
            self._constants.discard(number)
        known = number in self.producers or number in self._derived or number in self._constants
        given = number in frame.inputs or (root is not None and number in root.inputs)
        return not (known or given or id(tensor) in self._parameters or id(tensor) in self._fixed)
