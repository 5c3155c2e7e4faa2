"""Blocks inside of what `torch.compile` made: taps that are part of the graph, there on sampled steps alone.

A module that was given compiled runs, on sampled steps, through a second compiled function of its own, in which the
taps are; its own function stays as it is. Where the compiler meets the hooks by itself, because the loop compiles what
it calls, their taps are guarded by a switch that the compiler reads: it makes two graphs, and no more after that.
"""

from __future__ import annotations

import itertools
import types
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, final

import torch
from torch import Tensor, nn

from levada.connection import Layer

__all__ = ["Buffers", "Region", "Switch", "below", "find_regions", "replace", "restore", "tapped"]


@dataclass(slots=True)
class _State:
    on: bool = False
    within: bool = False  # a function of ours is being compiled or run
    met: bool = False  # the compiler met a hook in something that is not ours
    order: list[int] = field(default_factory=list)


class Switch:
    """Whether the taps of a watch measure; a global that the compiler guards, unlike what a hook holds."""

    def __init__(self) -> None:
        self._state = _State()
        self.key = next(_keys)
        _switches[self.key] = self._state  # not the switch itself, so that its end is seen
        weakref.finalize(self, _switches.pop, self.key, None)

    @property
    def on(self) -> bool:
        """Whether they measure now."""
        return self._state.on

    @on.setter
    def on(self, on: bool) -> None:
        self._state.on = on

    @property
    def within(self) -> bool:
        """Whether a function of ours is being compiled or run."""
        return self._state.within

    @within.setter
    def within(self, within: bool) -> None:
        self._state.within = within

    @property
    def met(self) -> bool:
        """Whether the compiler met a hook in something that is not ours."""
        return self._state.met

    @property
    def order(self) -> list[int]:
        """The blocks in the order in which they were met."""
        return self._state.order


_keys = itertools.count()
_switches: Final[dict[int, _State]] = {}


@final
class Buffers:
    """What the taps of a block add up: sums of squares, and numbers of elements.

    Args:
        device: of the block.
    """

    __slots__ = ("gradient", "signal", "zeros")

    def __init__(self, device: torch.device) -> None:
        wide = torch.float32 if device.type == "mps" else torch.float64
        # One by one: two views of one tensor, both written to, are more than the compiler likes.
        self.signal = torch.zeros(2, dtype=wide, device=device)
        self.gradient = torch.zeros(2, dtype=wide, device=device)
        self.zeros = torch.zeros(2, dtype=wide, device=device)

    def all(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return them in the order of a reading's table."""
        return self.signal, self.gradient, self.zeros


def _add_squares(total: Tensor, tensor: Tensor) -> None:
    norm = torch.linalg.vector_norm(tensor.detach(), dtype=total.dtype)
    total[0].add_(norm * norm)
    total[1].add_(tensor.numel())


class _Tap(torch.autograd.Function):
    """The identity, which adds what passes to buffers that the graph only refers to."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, signal: Tensor, gradient: Tensor) -> Tensor:
        ctx.gradient = gradient
        _add_squares(signal, tensor)
        return tensor.clone()  # a view could not be written to by what comes next, as in `x += 1`

    @staticmethod
    def backward(ctx: Any, *arrived: Any) -> Any:
        _add_squares(ctx.gradient, arrived[0])
        return arrived[0], None, None


def _tap(tensor: Tensor, buffers: Buffers) -> Tensor:
    if tensor.requires_grad:
        return _Tap.apply(tensor, buffers.signal, buffers.gradient)  # type: ignore[no-untyped-call, no-any-return]
    _add_squares(buffers.signal, tensor)
    return tensor


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # run once, when the compiler comes by
def _note(key: int, index: int) -> bool:
    switch = _switches[key]
    switch.met |= not switch.within
    switch.order.append(index)
    return True


def tapped(key: int, index: int, buffers: Buffers | None, output: Any, *, activation: bool) -> Any:
    """Return a block's output with a tap in it; None if it stays as it is. To be called while compiling.

    Args:
        key: of the switch.
        index: of the block.
        buffers: where to add.
        output: of the module.
        activation: whether the module is an activation, whose zeros are counted.
    """
    if (
        (not activation and not _note(key, index))
        or not _switches[key].on
        or buffers is None
        or not torch.is_grad_enabled()
    ):
        return None
    if activation:
        if isinstance(output, Tensor) and output.is_floating_point():
            buffers.zeros[0].add_((output.detach() == 0).sum())
            buffers.zeros[1].add_(output.numel())
        return None
    if isinstance(output, Tensor):
        return _tap(output, buffers) if output.is_floating_point() else None
    if type(output) is tuple and output and isinstance(output[0], Tensor) and output[0].is_floating_point():
        return (_tap(output[0], buffers), *output[1:])
    return None


@final
class Region:
    """A compiled module with blocks inside.

    Args:
        module: what `torch.compile` returned, or a module after `module.compile()`.
        name: its qualified name.
        switch: of the watch.
    """

    def __init__(self, module: nn.Module, name: str, switch: Switch) -> None:
        self.module = module
        self.name = name
        self._wrapped = "_orig_mod" in module._modules
        self._attribute = "forward" if self._wrapped else "_compiled_call_impl"
        self._ours: Callable[..., Any] | None = None
        context = module.__dict__.get("dynamo_ctx") if self._wrapped else _context(module._compiled_call_impl)
        if callable(context):
            self._ours = _compile_again(context, module._orig_mod if self._wrapped else module._call_impl, switch)

    @property
    def known(self) -> bool:
        """Whether it was found how it was compiled, without which nothing inside can be seen."""
        return self._ours is not None

    def enter(self) -> None:
        """Let the module run through the function with the taps."""
        if self._ours is not None:
            replace(self.module, self._attribute, self._ours)

    def leave(self) -> None:
        """Let it run as it was."""
        if self._ours is not None:
            restore(self.module, self._attribute, self._ours)


_replaced: Final[dict[tuple[int, str], list[Any]]] = {}


def replace(module: nn.Module, attribute: str, function: Any) -> None:
    """Put a function into a module, over what others put there.

    Args:
        module: whose attribute it is.
        attribute: its name, in the module's own dictionary.
        function: what to put there; nothing happens if it is there.
    """
    stack = _replaced.setdefault((id(module), attribute), [module.__dict__[attribute]])
    if function not in stack:
        stack.append(function)
        module.__dict__[attribute] = function


def below(module: nn.Module, attribute: str, function: Any) -> Any:
    """Return what a function that was put into a module is to call: what is there without it."""
    stack = _replaced.get((id(module), attribute), [])
    # Another thread may have taken it out since this one began to call it.
    return stack[stack.index(function) - 1] if function in stack else module.__dict__[attribute]


def restore(module: nn.Module, attribute: str, function: Any) -> None:
    """Take a function out of a module again, in whatever order; nothing happens if it is not there."""
    stack = _replaced.get((id(module), attribute), [])
    if function not in stack:
        return
    ours = module.__dict__.get(attribute) is stack[-1]  # else someone compiled it again
    stack.remove(function)
    if ours:
        module.__dict__[attribute] = stack[-1]
    if len(stack) == 1:
        del _replaced[id(module), attribute]


def _context(function: Any) -> Any:
    """Return what `torch.compile` was called with, which the function that it returned keeps in its closure."""
    while function is not None:
        cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=False))
        found = cells["self"].cell_contents if "self" in cells else None
        if type(found).__module__.startswith("torch._dynamo"):
            return found
        function = getattr(function, "__wrapped__", None)
        function = function if isinstance(function, types.FunctionType) else None
    return None


_numbers = itertools.count()


def _call(call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return call(*args, **kwargs)


def _compile_again(context: Any, call: Any, switch: Switch) -> Callable[..., Any]:
    # The compiler keeps what it made by code object, up to a limit: this one is nobody else's.
    code = _call.__code__.replace(co_name=f"watched_{next(_numbers)}")
    compiled = context(types.FunctionType(code, globals()))

    def run(*args: Any, **kwargs: Any) -> Any:
        switch.within = True
        try:
            return compiled(call, args, kwargs)
        finally:
            switch.within = False

    return run


def find_regions(model: nn.Module) -> tuple[list[tuple[str, nn.Module]], dict[int, str], set[int]]:
    """Return what is compiled in a model.

    Args:
        model: as the loop calls it.

    Returns:
        the outermost compiled modules with their names; by id of each module strictly inside of one, that one's name;
        the ids of modules that run compiled as a whole.
    """
    outermost: list[tuple[str, nn.Module]] = []
    inside: dict[int, str] = {}
    whole: set[int] = set()
    pending: list[tuple[str, nn.Module, str | None]] = [("", model, None)]
    seen: set[int] = set()
    while pending:
        name, module, region = pending.pop()
        if region is not None:
            inside.setdefault(id(module), region)
        if id(module) in seen:
            continue
        seen.add(id(module))
        wrapped = "_orig_mod" in module._modules
        compiled = wrapped or module._compiled_call_impl is not None
        compiled |= isinstance(module, Layer) and module.compiled is not None
        if compiled:
            whole.add(id(module))
            if region is None:
                outermost.append((name, module))
        for key, child in module._modules.items():
            if child is not None:
                path = name if key == "_orig_mod" else f"{name}.{key}".lstrip(".")
                pending.append((path, child, region if region is not None else name if compiled else None))
    return outermost, inside, whole
