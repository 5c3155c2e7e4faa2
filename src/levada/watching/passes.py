"""Forward passes of the watched model: where one begins and ends, and what is kept of the last one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from levada.probe.hook import Hook
from levada.probe.recorder import first_floating, tensors
from levada.watching.losses import in_backward

__all__ = ["Pass", "Passes"]


@final
@dataclass(frozen=True, slots=True)
class Pass:
    """A forward pass, as far as it is kept, to run it again.

    Attributes:
        step: the optimizer step that it belongs to.
        args: what the model was called with; None if that is larger than the cap, or was overwritten since.
        kwargs: the same.
        random_state: device -> state of its generator when the pass began.
        output_gradient: gradient of the (scaled) loss that arrived at the model's output; None if none did, or as
            above.
        autocast: type of device -> name of the number type of an autocast that the pass began in.
    """

    step: int
    args: tuple[Any, ...] | None
    kwargs: Mapping[str, Any] | None
    random_state: Mapping[str, Tensor]
    output_gradient: Tensor | None
    autocast: Mapping[str, str] = field(default_factory=dict)


class _Kept:
    """References to tensors, with their versions: who writes into them later must not be believed."""

    def __init__(self, value: Any, cap: int) -> None:
        held = list(tensors(value))
        small = sum(t.numel() * t.element_size() for t in held if t.layout is torch.strided) <= cap
        self._value = value if small else None
        self._versions = [(t, t._version) for t in held if not t.is_inference()] if small else []

    def get(self) -> Any:
        return self._value if all(t._version == version for t, version in self._versions) else None


@final
class Passes:
    """Hooks on the model itself, for as long as it is watched: two calls of Python in each forward pass.

    Args:
        model: the model that the loop calls.
        cap: bytes of inputs, and of the output's gradient, that may be kept.
        begin: called before a pass with gradients.
        end: called after it; says whether it returned.
    """

    def __init__(self, model: nn.Module, *, cap: int, begin: Callable[[], None], end: Callable[[bool], None]) -> None:
        self.depth = 0
        self.learning = False
        self._model = model
        self._cap = cap
        self._begin, self._end = begin, end
        self._handles: list[RemovableHandle] = []
        self._step = 0
        self._inputs: _Kept | None = None
        self._gradient: _Kept | None = None
        self._states: dict[str, Tensor] = {}
        self._autocast: dict[str, str] = {}
        self._devices = sorted({p.device.index for p in model.parameters() if p.is_cuda and p.device.index is not None})

    def attach(self) -> None:
        """Put the hooks on the model."""
        keep = self._handles.append
        keep(self._model.register_forward_pre_hook(Hook(self._before), with_kwargs=True, prepend=True))
        keep(self._model.register_forward_hook(Hook(self._after), always_call=True))

    def detach(self) -> None:
        """Remove them."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.depth, self.learning = 0, False

    def last(self) -> Pass | None:
        """Return the last pass with gradients, None before the first."""
        if self._inputs is None:
            return None
        args, kwargs = self._inputs.get() or (None, None)
        gradient = None if self._gradient is None else self._gradient.get()
        return Pass(self._step, args, kwargs, dict(self._states), gradient, self._autocast)

    def step(self, step: int) -> None:
        """Say which step the passes from now on belong to."""
        self._next = step

    def inside(self) -> bool:
        """Return whether a pass with gradients is under way."""
        return self.depth > 0 and self.learning

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling() or module is not self._model:
            return
        self.depth += 1
        if self.depth > 1:
            return
        self.learning = torch.is_grad_enabled() and not in_backward()
        if self.learning:
            self._step = self._next
            self._inputs, self._gradient = _Kept((args, kwargs), self._cap), None
            self._states = dict(self._random_states())
            self._autocast = dict(self._autocasts())
            self._begin()

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if torch.compiler.is_compiling() or module is not self._model or self.depth == 0:
            return
        self.depth -= 1
        if self.depth == 0 and self.learning:
            self.learning = False
            self._end(output is not None)
            value = first_floating(output)
            if value is not None and value.requires_grad and not value.is_leaf:
                inputs = self._inputs
                value.register_hook(lambda gradient: self._arrived(inputs, gradient))  # type: ignore[no-untyped-call]

    def _arrived(self, inputs: _Kept | None, gradient: Tensor | None) -> None:
        if inputs is self._inputs and gradient is not None:
            self._gradient = _Kept(gradient.detach(), self._cap)

    def _random_states(self) -> Iterator[tuple[str, Tensor]]:
        yield "cpu", torch.get_rng_state()
        for index in self._devices:
            yield f"cuda:{index}", torch.cuda.get_rng_state(index)

    def _autocasts(self) -> Iterator[tuple[str, str]]:
        for device in ("cpu", "cuda") if self._devices else ("cpu",):
            if torch.is_autocast_enabled(device):
                yield device, str(torch.get_autocast_dtype(device)).removeprefix("torch.")
