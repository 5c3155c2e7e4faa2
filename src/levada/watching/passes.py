"""Forward passes of the watched model: where one begins and ends, and what is kept of the last one."""

from __future__ import annotations

import copy
import dataclasses
import functools
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle, unserializable_hook

from levada.probe.hook import Hook
from levada.probe.recorder import first_floating
from levada.watching.alike import Alike
from levada.watching.losses import in_backward
from levada.watching.parts import Parts
from levada.watching.places import original, plain_name
from levada.watching.scripting import close_scripting, open_scripting
from levada.watching.skipped import Skips, continues
from levada.watching.tracing import symbolic

__all__ = ["Pass", "Passes"]

_DEEPEST, _MOST = 32, 10_000  # levels and values of a nest of inputs: one that holds itself has no end
_BUFFERS = 16 * 2**20  # bytes of buffers that are copied
_CALL: Final = nn.Module._call_impl.__code__


@final
@dataclass(frozen=True, slots=True)
class Pass:
    """A forward pass, as far as it is kept, to run it again.

    Attributes:
        step: the optimizer step that it belongs to.
        args: what the model was called with, detached; None if that is larger than the cap, was overwritten since, or
            could not be read.
        kwargs: the same.
        random_state: device -> state of its generator when the pass began.
        output_gradient: gradient of the (scaled) loss that arrived at the model's output; None if none did, or as
            above.
        autocast: type of device -> name of the number type of an autocast that the pass began in.
        buffers: name -> value when the pass began, of each buffer that was written since; None above the cap.
        number: which pass with gradients of its step it is, from 1.
    """

    step: int
    args: tuple[Any, ...] | None
    kwargs: Mapping[str, Any] | None
    random_state: Mapping[str, Tensor]
    output_gradient: Tensor | None
    autocast: Mapping[str, str] = field(default_factory=dict)
    buffers: Mapping[str, Tensor | None] = field(default_factory=dict)
    number: int = 1


class _Kept:
    """Detached tensors, with their versions: who writes into them later must not be believed."""

    def __init__(self, value: Any, cap: int) -> None:
        self._held: list[Tensor] = []
        self._left = _MOST
        self._value: Any = None
        self._versions: list[tuple[Tensor, int]] = []
        try:
            value = self._detached(value, 0)
            if sum(t.numel() * t.element_size() for t in self._held if t.layout is torch.strided) <= cap:
                self._versions = [(t, t._version) for t in self._held if not t.is_inference()]
                self._value = value
        except Exception:  # a mapping that reads from a disk, a list that holds itself: the loop may do as it likes
            self._value = None
        self._held = []

    def get(self) -> Any:
        return self._value if all(t._version == version for t, version in self._versions) else None

    def _detached(self, value: Any, depth: int) -> Any:
        self._left -= 1
        if depth > _DEEPEST or self._left < 0:
            raise ValueError("too deep, or too many values")
        if isinstance(value, Tensor):
            self._held.append(value.detach())  # of the same memory and version, and without the graph before it
            return self._held[-1]
        if isinstance(value, Mapping):
            return {key: self._detached(item, depth + 1) for key, item in value.items()}
        if isinstance(value, tuple | list):
            items = [self._detached(item, depth + 1) for item in value]
            if not isinstance(value, tuple):
                return items
            return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            made = copy.copy(value)
            for entry in dataclasses.fields(value):
                object.__setattr__(made, entry.name, self._detached(getattr(value, entry.name, None), depth + 1))
            return made
        return value


class _Buffers:
    """The buffers of a model as they were when a pass began; copied are those that something writes."""

    def __init__(self, model: nn.Module, cap: int) -> None:
        self._cap = cap
        self._places = [
            (plain_name(f"{path}.{key}" if path else key), module, key)
            for path, module in original(model).named_modules()
            for key in module._buffers
        ]
        self._seen: dict[str, tuple[Tensor, int]] = {}
        self._copies: dict[str, Tensor] = {}

    def take(self) -> None:
        stale: list[tuple[str, Tensor]] = []
        for name, tensor in self._now():
            seen = self._seen.get(name)
            if seen is None or seen[0] is not tensor or seen[1] != tensor._version:
                self._seen[name] = tensor, tensor._version
                stale.append((name, tensor))
        held = {name for name, _ in stale}
        room = self._cap - sum(t.numel() * t.element_size() for n, t in self._copies.items() if n not in held)
        onto: list[Tensor] = []
        of: list[Tensor] = []
        for name, tensor in stale:
            room -= tensor.numel() * tensor.element_size()
            there = self._copies.get(name)
            if room < 0:
                self._copies.pop(name, None)
            elif there is None or there.shape != tensor.shape or there.dtype != tensor.dtype:
                self._copies[name] = tensor.detach().clone()
            else:
                onto.append(there)
                of.append(tensor.detach())
        if onto:
            torch._foreach_copy_(onto, of)

    def written(self) -> dict[str, Tensor | None]:
        """Return what was written since, as it was."""
        found: dict[str, Tensor | None] = {}
        for name, tensor in self._now():
            seen = self._seen.get(name)
            if seen is not None and (seen[0] is not tensor or seen[1] != tensor._version):
                there = self._copies.get(name)
                found[name] = None if there is None else there.clone()
        return found

    def _now(self) -> Iterator[tuple[str, Tensor]]:
        for name, module, key in self._places:
            tensor = module._buffers.get(key)
            if tensor is None or isinstance(tensor, nn.parameter.UninitializedBuffer) or hasattr(tensor, "placements"):
                continue
            if tensor.layout is torch.strided and not tensor.is_inference():
                yield name, tensor


def _counted(method: Callable[..., None]) -> Callable[..., None]:
    """Count the time in a hook, and let an error in it end the watching and not the training."""

    @functools.wraps(method)
    def run(self: Passes, *args: Any) -> None:
        if torch.compiler.is_compiling():
            return
        begun = time.perf_counter()
        try:
            method(self, *args)
        except Exception as error:  # whatever it is, training goes on
            self.detach()
            self._fail(error)
        self._spent(time.perf_counter() - begun)

    return run


class _Under(threading.local):
    """The pass that is under way in one thread: another may evaluate the model meanwhile."""

    depth = 0
    learning = returned = False


@final
class Passes:
    """Hooks on the model itself, for as long as it is watched: three calls of Python in each forward pass.

    Nothing of a pass is kept, but weak references to its inputs, until `last` was called once.

    Args:
        model: the model that the loop calls.
        cap: bytes of inputs, and of the output's gradient, that may be kept.
        begin: called before a pass with gradients.
        end: called after it; says whether it returned.
        spent: called with the seconds of each hook.
        fail: called with what a hook raised.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        cap: int,
        begin: Callable[[], None],
        end: Callable[[bool], None],
        spent: Callable[[float], None],
        fail: Callable[[Exception], None],
    ) -> None:
        self.skips, self.alike, self._parts = Skips(model), Alike(), Parts(model)
        self._under = _Under()
        self.seen = 0
        self._model = model
        self._cap = cap
        self._begin, self._end, self._spent, self._fail = begin, end, spent, fail
        self._handles: list[RemovableHandle] = []
        self._step = self._next = self._number = 0
        self._keeps = self._continues = False
        self._waited = False  # whether a pass came behind one without a backward pass
        self._given: dict[int | str, weakref.ref[Tensor]] = {}
        self._output: weakref.ref[Tensor] | None = None
        self._inputs: _Kept | None = None
        self._gradient: _Kept | None = None
        self._buffers: _Buffers | None = None
        self._states: dict[str, Tensor] = {}
        self._autocast: dict[str, str] = {}
        self._devices = sorted({p.device.index for p in model.parameters() if p.is_cuda and p.device.index is not None})

    def attach(self) -> None:
        """Put the hooks on the model."""
        open_scripting(self)
        keep = self._handles.append
        keep(self._model.register_forward_pre_hook(Hook(self._before), with_kwargs=True, prepend=True))
        keep(self._model.register_forward_hook(Hook(self._after)))
        keep(self._model.register_forward_hook(Hook(self._left), always_call=True))

    def detach(self) -> None:
        """Remove them, and let go of what was kept."""
        close_scripting(self)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._parts.detach()
        self._forget()
        self._inputs = self._gradient = self._buffers = None
        self._states, self._given, self._output = {}, {}, None

    def last(self) -> Pass | None:
        """Return the last pass with gradients; None before the first that began after this was called once."""
        self._keeps = True
        if self._inputs is None or self._buffers is None:
            return None
        args, kwargs = self._inputs.get() or (None, None)
        gradient = None if self._gradient is None else self._gradient.get()
        return Pass(
            self._step,
            args,
            kwargs,
            dict(self._states),
            gradient,
            self._autocast,
            self._buffers.written(),
            self._number,
        )

    def inputs(self) -> dict[int | str, Tensor]:
        """Return the tensors that the last pass with gradients was called with, as far as they are still there.

        Where the model itself is not called, those of its first part that is.
        """
        if not self.seen:
            return self._parts.given()
        return {key: tensor for key, given in self._given.items() if (tensor := given()) is not None}

    def step(self, step: int) -> None:
        """Say which step the passes from now on belong to."""
        if self.seen:
            self._parts.detach()
        elif step > self._next and self._handles:  # a step was made, and the model was not called
            self._parts.step()
        self._next = step
        self._forget()

    def waiting(self) -> Tensor | None:
        """Return what the last pass gave, if it is the first without a backward pass and the loop still holds it."""
        return None if self._output is None or self._waited or not self.skips.waits else self._output()

    def inside(self) -> bool:
        """Return whether a pass with gradients is under way."""
        return self._under.depth > 0 and self._under.learning

    def counts(self) -> bool:
        """Return whether what runs now is of a pass that may train the model: not an evaluation, nor a tracer's."""
        return (torch.is_grad_enabled() or self.inside() or in_backward()) and not symbolic()

    def _forget(self) -> None:
        under = self._under
        under.depth, under.learning, under.returned = 0, False, False

    @_counted
    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module is not self._model:
            return
        under = self._under
        if under.depth and _calls_of(module) < 2:  # Ctrl-C in forward calls no hook: that pass is over
            ended = under.learning
            self._forget()
            if ended:
                self._end(False)
        under.depth += 1
        if under.depth > 1:
            return
        under.returned = False
        under.learning = torch.is_grad_enabled() and not in_backward() and not symbolic()
        if under.learning:
            self.seen += 1
            self._waited |= self.skips.waits
            self._number = self._number + 1 if self._step == self._next and self.seen > 1 else 1
            self._step = self._next
            called: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
            self._given = {key: weakref.ref(t) for key, t in called if isinstance(t, Tensor)}
            self.alike.see(called)
            if self._keeps:
                self._keep(args, kwargs)
            self._continues = continues((*args, *kwargs.values()))
            self._begin()

    def _keep(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._inputs, self._gradient = _Kept((args, kwargs), self._cap), None
        self._states = dict(self._random_states())
        self._autocast = dict(self._autocasts())
        if self._buffers is None:
            self._buffers = _Buffers(self._model, _BUFFERS)
        self._buffers.take()

    @_counted
    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Hear that a pass returned, be it None."""
        under = self._under
        if module is not self._model or under.depth == 0:
            return
        under.returned = True
        under.depth -= 1
        if under.depth == 0 and under.learning:
            under.learning = False
            self._end(True)
            if not self._continues:
                self.skips.returned(output, training=module.training)
            value = first_floating(output)
            self._output = None if value is None else weakref.ref(value)
            keeps = self._keeps and self._inputs is not None
            if keeps and value is not None and value.requires_grad and not value.is_leaf:
                arrived = unserializable_hook(functools.partial(self._arrived, self._inputs))  # type: ignore[no-untyped-call]
                value.register_hook(arrived)  # type: ignore[no-untyped-call]

    @_counted
    def _left(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Hear that a pass is left, perhaps by an exception."""
        if module is not self._model:
            return
        under = self._under
        returned, under.returned = under.returned, False
        if returned or under.depth == 0:
            return
        under.depth -= 1
        if under.depth == 0 and under.learning:
            under.learning = False
            self._end(False)

    @_counted
    def _arrived(self, inputs: _Kept, gradient: Tensor | None) -> None:
        if inputs is self._inputs and gradient is not None:
            self._gradient = _Kept(gradient, self._cap)

    def _random_states(self) -> Iterator[tuple[str, Tensor]]:
        yield "cpu", torch.get_rng_state()
        for index in self._devices:
            yield f"cuda:{index}", torch.cuda.get_rng_state(index)

    def _autocasts(self) -> Iterator[tuple[str, str]]:
        for device in ("cpu", "cuda") if self._devices else ("cpu",):
            if torch.is_autocast_enabled(device):
                yield device, str(torch.get_autocast_dtype(device)).removeprefix("torch.")


def _calls_of(module: nn.Module) -> int:
    """Return how many calls of a module are under way in this thread."""
    found, frame = 0, sys._getframe()
    while frame is not None:
        found += frame.f_code is _CALL and frame.f_locals.get("self") is module
        frame = frame.f_back  # type: ignore[assignment]
    return found
