"""Hooks at the blocks' outputs, there on sampled steps alone."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from typing import Any, ClassVar, Final, Protocol, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from levada.probe.hook import Hook
from levada.probe.recorder import tensors
from levada.watching.loop.places import ACTIVATIONS, Place, original
from levada.watching.loop.telling import warn
from levada.watching.measure.compiled import Buffers, Region, Switch, below, find_regions, replace, restore, tapped

__all__ = ["Listener", "Taps"]

_COMPILED: Final = (
    "If something is compiled, call levada.watch before the first compiled call, give it the module that torch.compile "
    "returned, or compile the blocks one by one."
)
_PAST_HOOKS: Final = (
    "something runs the blocks that calls no hooks, as block.forward(x) does, or reads their weights alone: call them "
    "as block(x)."
)
_SCRIPTED: Final = (
    "what torch.jit.script or torch.jit.trace made of a whole model calls none of its blocks' hooks. Watch the module "
    "that it was made of, or script the blocks one by one."
)
_BLIND: Final = 16  # sampled steps without a pass, of which the weights are measured then
_NO_PASS: Final = (
    f"{_BLIND} steps were made, and no pass of the model that may train it was seen. Passes under torch.no_grad or a "
    "transform of torch.func are none, nor are those of a copy, and so no block was seen"
)


class Listener(Protocol):
    """Who is told."""

    def counts(self) -> bool:
        """Return whether what runs now is to be told."""

    def see(self, place: int, tensor: Tensor, activation: bool, block: bool) -> None:
        """Hear of the output of an activation in a block, of that of the block, or of one that is both."""


class _Last(threading.local):
    """The block that ran last in one thread."""

    place = -1


@final
class Taps:
    """The hooks of a model's blocks.

    Args:
        model: the model, as the loop calls it.
        places: its blocks.
        listener: who is told.
    """

    def __init__(self, model: nn.Module, places: Sequence[Place], listener: Listener) -> None:
        self.last = _Last()
        self.listener = listener
        self.switch = Switch()
        self.searching = True
        self._model = model
        self._places = places
        self._buffers: list[Buffers] = []
        self._hooks: list[tuple[RemovableHandle, _TapHook]] = []
        self._regions: list[Region] = []
        self._outside: list[_Outside] = []
        self._scanned: Any = None
        self.unfit = ""  # what kind of numbers a block gave that cannot be measured
        self._told = False
        self._blind = 0  # sampled steps of which nothing was seen
        self._attached = False

    @property
    def order(self) -> list[int]:
        """The blocks in order of their first call, as far as seen while `searching`."""
        return self.switch.order

    @property
    def traced(self) -> bool:
        """Whether there are taps inside of something compiled."""
        return bool(self.switch.order) and (bool(self._regions) or self.switch.met)

    def attach(self) -> None:
        """Put the hooks on the modules, again by the handles of the first time, which is 10 times faster."""
        self.last = _Last()
        self.switch.on = True
        if self.searching:
            self._search()
        if not self._attached:
            for handle, hook in self._hooks:
                hook.own._forward_hooks[handle.id] = hook
        self._attached = True
        for region in self._regions:
            region.enter()
        for outside in self._outside:
            outside.enter()
        if self._regions or self.switch.met:
            torch._foreach_zero_([tensor for buffers in self._buffers for tensor in buffers.all()])

    def detach(self, *, for_good: bool = False) -> None:
        """Remove them; hooks that a compiler has met, and guards, stay as long as it watches."""
        self.switch.on = False
        for region in self._regions:
            region.leave()
        for outside in self._outside:
            outside.leave()
        if for_good or not self.switch.met:
            self._attached = False
            for handle, hook in self._hooks:
                hook.own._forward_hooks.pop(handle.id, None)

    def compiled(self, device: torch.device) -> Tensor | None:
        """Return what taps inside of compiled regions added up, as rows of a reading's table; None if there are none.

        Args:
            device: where to.
        """
        if not self.traced:
            return None
        flat = [tensor.to(device, non_blocking=True) for buffers in self._buffers for tensor in buffers.all()]
        return torch.stack(flat).view(len(self._buffers), -1)

    def restart(self) -> None:
        """Forget the gradients that arrived inside of compiled regions."""
        if self.traced:
            torch._foreach_zero_([buffers.gradient for buffers in self._buffers])

    # What is where.

    def _search(self) -> None:
        """Choose how each block is seen, as the model is now: it may have been compiled since the last time."""
        outermost, inside, whole = find_regions(self._model)
        scanned = [id(module) for _, module in outermost]
        if scanned == self._scanned:
            return
        for handle, _ in self._hooks:
            handle.remove()
        self._attached = True
        self._scanned, self._hooks, self._regions, self._outside = scanned, [], [], []
        device = next(original(self._model).parameters()).device
        self._buffers = [Buffers(next((p.device for p in place.parameters()), device)) for place in self._places]
        hidden: dict[int, str] = {}
        for index, place in enumerate(self._places):
            within = id(place.boundary) in inside
            opaque = not within and any(id(module) in whole for module in place.modules)
            activations = () if opaque else place.activations
            outside = not within and place.boundary._compiled_call_impl is not None
            for module in activations:
                if outside or module is not place.boundary:
                    self._register(module, index, activation=True, block=False)
            if outside:
                self._outside.append(_Outside(place.boundary, self._hook(place.boundary, index)))
            else:
                self._register(place.boundary, index, activation=place.boundary in activations)
            if within:
                hidden[index] = inside[id(place.boundary)]
        for module in self._loose():
            if id(module) not in whole:
                self._register(module, None, activation=True, block=False)
        names = set(hidden.values())
        self._regions = [Region(module, name, self.switch) for name, module in outermost if name in names]
        unknown = [region.name for region in self._regions if not region.known]
        if unknown:
            self._tell(f"{unknown[0] or 'the model'} was compiled in a way that cannot be repeated. {_COMPILED}")

    def blind(self, *, learned: bool) -> bool:
        """Return whether a step in which no block was seen is a sample all the same, of the weights alone; say why.

        Args:
            learned: whether a backward pass was this model's.
        """
        self._blind += 1
        if learned:
            self.tell_unseen()
        elif self._blind == _BLIND:
            self._tell(_NO_PASS)
        return learned or self._blind >= _BLIND

    def tell_unseen(self, some: Sequence[str] = ()) -> None:
        """Say why no block was seen in a sampled step.

        Args:
            some: the names of those that were not, if others were.
        """
        if some:
            named = ", ".join(some[:3]) + (f" and {len(some) - 3} more" if len(some) > 3 else "")
            past = f"{_COMPILED} If not, {_PAST_HOOKS}" if _compiles() else _PAST_HOOKS
            why = f"blocks that give {self.unfit} numbers are not measured" if self.unfit else past
            self._tell(f"{named} learned and {'were' if len(some) > 1 else 'was'} not seen to run: {why}")
        elif self.unfit:
            self._tell(f"the blocks of the model give {self.unfit} numbers, and what is measured is real")
        elif isinstance(original(self._model), torch.jit.ScriptModule):
            self._tell(_SCRIPTED)
        elif _compiles():
            self._tell(f"no block of the model was seen running. {_COMPILED} If not, {_PAST_HOOKS}")
        else:
            self._tell(f"no block of the model was called, though it learns: {_PAST_HOOKS}")

    def _tell(self, why: str) -> None:
        """Warn, once, that blocks cannot be measured."""
        if not self._told:
            self._told = True
            told = "Their signals and gradients are not measured (NaN); losses, and the weights, are."
            warn(f"watch: {why.removesuffix('.')}. {told}", of=self._model, stacklevel=2)

    def _loose(self) -> list[nn.Module]:
        """Return activations outside of all blocks: they belong to the block that ran last."""
        model = original(self._model)
        owned = {id(m) for place in self._places for m in place.activations}
        blocks = {id(m): m for place in self._places for m in place.modules if m is not model}
        within = {id(m) for block in blocks.values() for m in block.modules() if m is not block}
        loose = (m for m in model.modules() if isinstance(m, ACTIVATIONS))
        return [m for m in loose if id(m) not in owned and id(m) not in within]

    def _hook(self, module: nn.Module, index: int | None, *, activation: bool = False, block: bool = True) -> _TapHook:
        buffers = None if index is None else self._buffers[index]
        return _TapHook(self, module, index, buffers, activation=activation, block=block)

    def _register(self, module: nn.Module, index: int | None, *, activation: bool, block: bool = True) -> None:
        hook = self._hook(module, index, activation=activation, block=block)
        # What torch.jit made refuses the method, and calls the hook.
        self._hooks.append((nn.Module.register_forward_hook(module, hook), hook))


@final
class _TapHook:
    """A forward hook, which a copy of the model does not inherit."""

    __slots__ = ("activation", "block", "buffers", "index", "key", "own", "taps")
    measures: ClassVar = True

    def __init__(
        self,
        taps: Taps,
        own: nn.Module,
        index: int | None,
        buffers: Buffers | None,
        *,
        activation: bool,
        block: bool,
    ) -> None:
        self.taps = taps
        self.own = own
        self.index = index
        self.key = taps.switch.key
        self.buffers = buffers
        self.activation = activation
        self.block = block

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Tell of the output; while compiling, return it with a tap in it."""
        if torch.compiler.is_compiling():
            if torch.compiler.is_exporting():
                return None
            index, changed = -1 if self.index is None else self.index, None
            if self.activation:
                changed = tapped(self.key, index, self.buffers, output, activation=True)
            return tapped(self.key, index, self.buffers, output, activation=False) if self.block else changed
        taps = self.taps
        if module is not self.own or not taps.listener.counts():
            return None
        if not self.block or self.index is None:
            place = taps.last.place if self.index is None else self.index
            if place >= 0 and isinstance(output, Tensor):
                taps.listener.see(place, output, True, False)
            return None
        taps.last.place = self.index
        tensor = output if type(output) is Tensor and output.is_floating_point() else _main(output)
        if tensor is None:
            taps.unfit = taps.unfit or _complex(output)
        else:
            if taps.searching and taps.switch.on:
                taps.switch.order.append(self.index)
            taps.listener.see(self.index, tensor, self.activation, True)
        return None

    def __reduce__(self) -> tuple[Any, ...]:
        return Hook, (_ignore,)


def _main(output: Any) -> Tensor | None:
    """Return the first floating tensor that has a gradient, which a mask beside it has not; else the first one."""
    if isinstance(output, Tensor):
        return output if output.is_floating_point() else None
    found = [tensor for tensor in tensors(output) if tensor.is_floating_point()]
    return next((tensor for tensor in found if tensor.requires_grad), found[0] if found else None)


def _compiles() -> bool:
    """Return whether something was compiled in this process, as the compiler counts it."""
    utils = sys.modules.get("torch._dynamo.utils")
    counters = getattr(utils, "counters", None)
    return utils is not None and (counters is None or bool(counters.get("frames")))


def _complex(output: Any) -> str:
    """Return the type of the first complex tensor in an output that has no floating one; empty if there is none."""
    return next((str(t.dtype).removeprefix("torch.") for t in tensors(output) if t.is_complex()), "")


def _ignore(*_: Any) -> None:
    return None


@final
class _Outside:
    """A tap around a block after `block.compile()`, whose hooks would be compiled with it."""

    def __init__(self, module: nn.Module, hook: _TapHook) -> None:
        self._module, self._hook = module, hook
        self._put = self._run  # one object, to be found again

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        output = below(self._module, "_compiled_call_impl", self._put)(*args, **kwargs)
        self._hook(self._module, args, output)
        return output

    def enter(self) -> None:
        replace(self._module, "_compiled_call_impl", self._put)

    def leave(self) -> None:
        restore(self._module, "_compiled_call_impl", self._put)
