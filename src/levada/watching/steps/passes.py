"""Forward passes of the watched model: where one begins and ends, and what is kept of the last one."""

from __future__ import annotations

import functools
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle, unserializable_hook

from levada.probe.hook import Hook
from levada.probe.recorder import first_floating, tensors
from levada.watching.loop.losses import in_backward
from levada.watching.loop.scripting import close_scripting, open_scripting
from levada.watching.loop.telling import unwatched, watched
from levada.watching.loop.tracing import symbolic
from levada.watching.steps.alike import Alike
from levada.watching.steps.kept_pass import Buffers, Kept, Pass
from levada.watching.steps.moved import Moved
from levada.watching.steps.parts import Parts
from levada.watching.steps.skipped import Skips, continues

if TYPE_CHECKING:
    from levada.watching.verdict.left_out import LeftOut

__all__ = ["Passes"]

_BUFFERS = 16 * 2**20  # bytes of buffers that are copied
_PATIENCE = 32  # passes without an update, beyond four times the most that one took, that end a pause
_CALL: Final = nn.Module._call_impl.__code__


def _counted(method: Callable[..., None]) -> Callable[..., None]:
    """Count the time in a hook, and let an error in it end the watching and not the training."""

    @functools.wraps(method)
    def run(self: Passes, *args: Any) -> None:
        if torch.compiler.is_compiling() or self.paused:
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
    apart = False  # of a thread that calls no backward pass, while another runs the model and calls them


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
        self.skips, self.moved, self.alike, self._parts = Skips(model), Moved(model), Alike(), Parts(model)
        self._under = _Under()
        self.seen = self.backward = 0  # passes with gradients, and backward passes
        self.counted = 0  # passes in the mode in which the model learns
        self.left_out: LeftOut | None = None  # hears of one without a backward pass
        self._ran, self._learners = set[int](), set[int]()  # threads: of passes, and those that call backward too
        self._beside = 0  # passes of other threads since a backward pass
        self._model = model
        self._cap = cap
        self._begin, self._end, self._spent, self._fail = begin, end, spent, fail
        self._handles: list[RemovableHandle] = []
        self.awake: Callable[[], None] = lambda: None  # called where a pause lasts too many passes
        self.idle = 0  # passes since an optimizer stepped
        self.paused, self._patience = False, _PATIENCE
        self._step = self._next = self._number = 0
        self._keeps = self._continues = False
        self._waited = False  # whether a pass came behind one without a backward pass
        self._given: dict[int | str, weakref.ref[Tensor]] = {}
        self._output: weakref.ref[Tensor] | None = None
        self._inputs: Kept | None = None
        self._earlier: tuple[int, Kept, dict[str, Tensor], dict[str, str]] | None = None  # of the step before
        self._of = 0  # the step of what is kept
        self._gradient: Kept | None = None
        self._buffers: Buffers | None = None
        self._states: dict[str, Tensor] = {}
        self._autocast: dict[str, str] = {}
        self._devices = sorted({p.device.index for p in model.parameters() if p.is_cuda and p.device.index is not None})

    def attach(self) -> None:
        """Put the hooks on the model."""
        open_scripting(self)
        watched(self._model)
        keep = self._handles.append
        called, (after, left) = self.hooks
        model, each = self._model, nn.Module  # what torch.jit made refuses its own methods, and calls the hooks
        keep(each.register_forward_pre_hook(model, called, with_kwargs=True, prepend=True))
        keep(each.register_forward_hook(model, after))
        keep(each.register_forward_hook(model, left, always_call=True))

    @property
    def hooks(self) -> tuple[Hook, tuple[Hook, Hook]]:
        """What is called before a pass, and behind one."""
        return Hook(self._called), (Hook(self._after), Hook(self._left))

    def detach(self) -> None:
        """Remove them, and let go of what was kept."""
        close_scripting(self)
        if self._handles:
            unwatched(self._model)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._parts.detach()
        self._forget()
        self._inputs = self._gradient = self._buffers = self._earlier = None
        self._states, self._given, self._output = {}, {}, None

    def pause(self) -> None:
        """Hear nothing but how many passes come without an update, and let go of what was kept."""
        self._forget()
        self.idle, self._patience = 0, _PATIENCE + 4 * self.skips.most
        self._inputs = self._gradient = self._earlier = None
        self._given, self._output = {}, None
        self.paused = True

    def resume(self) -> None:
        """Hear of passes again."""
        self.paused = False

    def wake(self) -> None:
        """Let the next pass with gradients end the pause."""
        self._patience = self.idle

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
            self._before_it(),
        )

    def _before_it(self) -> Pass | None:
        if self._earlier is None:
            return None
        step, inputs, states, autocast = self._earlier
        args, kwargs = inputs.get() or (None, None)
        return Pass(step, args, kwargs, dict(states), None, autocast)

    def inputs(self) -> dict[int | str, Tensor]:
        """Return the tensors that the last pass with gradients of this step was called with, as far as they are there.

        Where the model itself is not called, those of its first part that is.
        """
        if not self.seen:
            return self._parts.given()
        if self._step != self._next:  # none of this step was seen
            return {}
        return {key: tensor for key, given in self._given.items() if (tensor := given()) is not None}

    def step(self, step: int) -> None:
        """Say which step the passes from now on belong to."""
        if self.seen:
            self._parts.detach()
        elif step > self._next and self._handles:  # a step was made, and the model was not called
            self._parts.step()
        self._next = step
        self._forget()

    @property
    def waits(self) -> bool:
        """Whether the last pass is the first without a backward pass."""
        return self.skips.waits and not self._waited

    def waiting(self) -> Tensor | None:
        """Return what the last pass gave, if it is the first without a backward pass and the loop still holds it."""
        return None if self._output is None or not self.waits else self._output()

    def learned(self, roots: Sequence[Tensor]) -> None:
        """Hear that a backward pass was this model's.

        Args:
            roots: the scalars at which it began.
        """
        own = threading.get_ident()
        if self._beside and self._step < self._next:  # of this step only the passes that were held to be apart
            self._learners.clear()
            self._ran.discard(own)
        self._beside = 0
        self._learners |= {own} & self._ran
        self.backward += 1
        self.skips.learned(roots)
        self.moved.learned()

    def updated(self, step: int) -> None:
        """Hear of an update.

        Args:
            step: its number.
        """
        self.skips.updated(step)
        self.moved.updated(step)

    def inside(self) -> bool:
        """Return whether a pass with gradients is under way."""
        return self._under.depth > 0 and self._under.learning

    def apart(self) -> bool:
        """Return whether this thread calls no backward pass, while another runs the model and calls them."""
        return bool(self._learners) and threading.get_ident() not in self._learners

    def counts(self) -> bool:
        """Return whether what runs now is of a pass that may train the model: not an evaluation, nor a tracer's."""
        return (torch.is_grad_enabled() or self.inside() or in_backward()) and not symbolic()

    def _forget(self) -> None:
        under = self._under
        under.depth, under.learning, under.returned = 0, False, False

    def _called(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling():
            return
        if self.paused:
            self.idle += torch.is_grad_enabled() and not self.apart()
            if self.idle <= self._patience:
                return
            self.awake()
        self._before(module, args, kwargs)

    @_counted
    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module is not self._model:
            return
        self.idle += torch.is_grad_enabled() and not self.apart()
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
        under.apart = self.apart()
        if under.learning:
            self._ran.add(threading.get_ident())
        if under.learning and under.apart:
            self._beside += 1
            self._begin()
        elif under.learning:
            self.look()
            self.seen += 1
            self._waited |= self.skips.waits
            self._number = self._number + 1 if self._step == self._next and self.seen > 1 else 1
            self._step = self._next
            called: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
            self._given = {key: weakref.ref(t) for key, t in called.items() if isinstance(t, Tensor)}
            self.alike.see(called.items())
            if self._keeps:
                self._keep(args, kwargs)
            self._continues = continues(called.values())
            self._begin()

    def look(self) -> None:
        """Let the last pass be looked at, if it was left without a backward pass."""
        if self.left_out is not None:
            self.left_out.begins()

    def _keep(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._inputs is not None and self._of != self._step:
            self._earlier = self._of, self._inputs, self._states, self._autocast
        self._of = self._step
        self._inputs, self._gradient = Kept((args, kwargs), self._cap), None
        self._states = dict(self._random_states())
        self._autocast = dict(self._autocasts())
        if self._buffers is None:
            self._buffers = Buffers(self._model, _BUFFERS)
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
            if under.apart:
                return
            if not self._continues:
                self.skips.returned(output, training=module.training)
            value = first_floating(output)
            if not self._continues and module.training == self.skips.counted:
                self.counted += 1
                if self.left_out is not None:
                    self.left_out.returned(_first_complex(output) if value is None else value)
            self._output = None if value is None else weakref.ref(value)
            keeps = self._keeps and self._inputs is not None
            if keeps and value is not None and value.requires_grad and not value.is_leaf:
                arrived = unserializable_hook(functools.partial(self._arrived, self._inputs))  # type: ignore[no-untyped-call]
                value.register_hook(arrived)  # type: ignore[no-untyped-call]

    def _left(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Hear that a pass is left, perhaps by an exception; as a rule it returned, and that was heard."""
        if torch.compiler.is_compiling() or self.paused or module is not self._model:
            return
        under = self._under
        returned, under.returned = under.returned, False
        if not returned and under.depth:
            self._broken_off()

    @_counted
    def _broken_off(self) -> None:
        under = self._under
        under.depth -= 1
        if under.depth == 0 and under.learning:
            under.learning = False
            self._end(False)

    @_counted
    def _arrived(self, inputs: Kept, gradient: Tensor | None) -> None:
        if inputs is self._inputs and gradient is not None:
            self._gradient = Kept(gradient, self._cap)

    def _random_states(self) -> Iterator[tuple[str, Tensor]]:
        yield "cpu", torch.get_rng_state()
        for index in self._devices:
            yield f"cuda:{index}", torch.cuda.get_rng_state(index)

    def _autocasts(self) -> Iterator[tuple[str, str]]:
        for device in ("cpu", "cuda") if self._devices else ("cpu",):
            if torch.is_autocast_enabled(device):
                yield device, str(torch.get_autocast_dtype(device)).removeprefix("torch.")


def _first_complex(output: Any) -> Tensor | None:
    return next((tensor for tensor in tensors(output) if tensor.is_complex()), None)


def _calls_of(module: nn.Module) -> int:
    """Return how many calls of a module are under way in this thread."""
    found, frame = 0, sys._getframe()
    while frame is not None:
        found += frame.f_code is _CALL and frame.f_locals.get("self") is module
        frame = frame.f_back  # type: ignore[assignment]
    return found
