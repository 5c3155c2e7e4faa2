"""Taps on layers with several streams: take what they read, mix and write, where they make their coefficients."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from levada.probe.collector import to_host
from levada.probe.compiled import is_compiled
from levada.probe.rounding import rounding_error

__all__ = ["Mixing", "Sample", "mixed_layers", "on_host", "reads_streams"]

MAX_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Sample:
    """One layer's coefficients in one pass, at some tokens; one row where nothing depends on the token.

    Attributes:
        name: qualified name of the connection.
        layer: its index in its stack, or None.
        mix: `(tokens, n, n)`, or None for the identity.
        read: size of each stream's weight, `(tokens, n)`.
        write: the same of what is written.
        gram: products of the streams with each other, divided by their width, `(tokens, n, n)`.
        rounding: relative error of read, mix and write made in bfloat16, the largest; NaN where it is not known.
        depth: number of layers in its stack, or None.
        width: of a stream.
        ahead: whether `read` is what the next layer reads.
    """

    name: str
    layer: int | None
    mix: Tensor | None
    read: Tensor
    write: Tensor
    gram: Tensor
    rounding: Tensor
    depth: int | None = None
    width: int = 0
    ahead: bool = False

    def tensors(self) -> list[Tensor]:
        """Return what lies on the device, each as one row."""
        held = (self.read, self.write, self.gram, self.rounding, self.mix)
        return [tensor.reshape(1, -1) for tensor in held if tensor is not None]

    def with_tensors(self, flat: Iterator[Tensor]) -> Sample:
        """Return the same in float64 on the host, from the next rows of `tensors`."""
        rows = [next(flat).double().reshape(held.shape) for held in (self.read, self.write, self.gram, self.rounding)]
        mix = next(flat).double().reshape(self.mix.shape) if self.mix is not None else None
        read, write, gram, rounding = rows
        return replace(self, mix=mix, read=read, write=write, gram=gram, rounding=rounding)

    def matrices(self) -> Tensor:
        """Return the mixing matrices, `(tokens, n, n)`, the identity written out."""
        if self.mix is not None:
            return self.mix
        return torch.eye(self.read.shape[-1], dtype=self.read.dtype, device=self.read.device)[None]


def mixed_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the modules that mix streams, by name: those with a method `coefficients` and an integer `streams`.

    Modules that run compiled are left out: what is put into them would be compiled, or compile them again.

    Args:
        model: any module.

    Example:
        >>> import levada
        >>> [name for name, _ in mixed_layers(nn.Sequential(nn.Linear(2, 2), levada.Residual(2)))]
        []
    """
    inside: list[str] = []
    if not _runs_as_written():
        inside = [name for name, module in model.named_modules() if is_compiled(module)]
    return [
        (name, module)
        for name, module in model.named_modules()
        if callable(getattr(type(module), "coefficients", None))
        and type(getattr(module, "streams", None)) is int
        and not any(name == outer or not outer or name.startswith(f"{outer}.") for outer in inside)
    ]


def _runs_as_written() -> bool:
    """Whether the compiler's stance is to run nothing compiled; private: without it, compiled layers go unmeasured."""
    frames = sys.modules.get("torch._dynamo.eval_frame")
    return getattr(getattr(frames, "_stance", None), "stance", "") == "force_eager"


@final
class Mixing:
    """Taps on the coefficients of a model's layers, while a step is sampled.

    The first call of each layer in a pass is taken: what is called again for the write, or in the backward pass to
    recompute a checkpoint, is the same.

    Args:
        model: any module.
        take: called with name, module, state and coefficients instead of keeping a `Sample`.
    """

    def __init__(self, model: nn.Module, take: Callable[[str, nn.Module, Tensor, Any], None] | None = None) -> None:
        self.samples: list[tuple[int, Sample]] = []  # with the number of the pass
        self._model = model
        self._take = take
        self._number = 0
        self._open = False
        self._seen: set[str] = set()
        self._taps: list[_Tap] = []

    def attach(self) -> None:
        """Put the taps on the modules."""
        if not self._taps:
            self._taps = [_Tap(module, self, name).put() for name, module in mixed_layers(self._model)]

    def detach(self) -> None:
        """Take them off, and forget what was taken."""
        for tap in self._taps:
            tap.remove()
        self._taps = []
        self.clear()

    def clear(self) -> None:
        """Forget what was taken."""
        self.samples = []
        self._open = False

    def begin(self, number: int) -> None:
        """Take what comes in this pass."""
        self._number, self._open = number, True
        self._seen.clear()

    def end(self) -> None:
        """Take nothing until the next pass."""
        self._open = False

    def see(self, name: str, module: nn.Module, state: Tensor, coefficients: Any) -> None:
        """Take a layer's coefficients, if it is the first time in this pass."""
        if not self._open or name in self._seen:
            return
        self._seen.add(name)
        if self._take is not None:
            self._take(name, module, state, coefficients)
            return
        # What is computed here is none of the model's operations, and none that a recorder should see, nor a checkpoint
        # that keeps the results of some operations: it would give them back in the place of its own.
        with torch.no_grad(), torch._C.DisableTorchFunction(), _disable_current_modes(), _no_autocast(state):
            self.samples.append((self._number, _sampled(name, module, state, coefficients)))


def _no_autocast(x: Tensor) -> Any:
    return torch.autocast(x.device.type, enabled=False)


class _Tap:
    """Stands in the place of one module's `coefficients`. In a copy of the model it calls the copy's, and no one else.

    Args:
        module: the module.
        mixing: who is told, or None.
        name: the module's name.
    """

    def __init__(self, module: nn.Module, mixing: Mixing | None = None, name: str = "") -> None:
        self._module = module
        self._mixing = mixing
        self._name = name
        self._before: Any = vars(module).get("coefficients")

    def put(self) -> Self:
        self._module.__dict__["coefficients"] = self
        return self

    def remove(self) -> None:
        self._mixing = None  # where a module of the same name holds it still
        if vars(self._module).get("coefficients") is not self:
            return
        if self._before is None:
            del self._module.__dict__["coefficients"]
        else:
            self._module.__dict__["coefficients"] = self._before

    def by_class(self) -> bool:
        """Whether the class's own method makes the coefficients, and no attribute of the module."""
        return self._before is None

    def __call__(self, state: Tensor) -> Any:
        module = self._module
        made = self._before(state) if self._before is not None else type(module).coefficients(module, state)  # type: ignore[attr-defined]
        if self._mixing is not None and not torch.compiler.is_compiling():
            self._mixing.see(self._name, module, state, made)
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> _Tap:
        return _Tap(copy.deepcopy(self._module, memo))

    def __reduce__(self) -> tuple[Any, ...]:
        return _Tap, (self._module,)


def reads_streams(module: nn.Module, read: Tensor, state: Tensor) -> bool:
    """Whether what is read has one weight for each stream; else there is one for each of its elements, or parts.

    Of weights for `(parts, streams)` no shape tells: a module that has them says so by an attribute `reads_parts`.

    Args:
        module: the connection.
        read: its weights.
        state: the streams.
    """
    return not getattr(module, "reads_parts", False) and read.ndim < state.ndim


def _sampled(name: str, module: nn.Module, state: Tensor, coefficients: Any) -> Sample:
    lead = state.shape[:-2]
    count = math.prod(lead)
    kept = min(count, MAX_TOKENS)
    index = torch.arange(kept, device=state.device) * count // max(kept, 1)
    places = torch.unravel_index(index, lead) if lead else ()

    def rows(tensor: Tensor, own: int) -> Tensor:
        tensor = tensor.detach()
        if tensor.ndim <= own or not lead:
            return tensor.reshape(1, *tensor.shape[tensor.ndim - own :])
        taken: Tensor = tensor.expand(*lead, *tensor.shape[tensor.ndim - own :])[places]
        return taken

    read, mix, write = coefficients
    own = 1 if reads_streams(module, read, state) else 2
    weights = [rows(read, own), rows(write, 1)]
    mixes = rows(mix, 2) if mix is not None else None
    streams = rows(state, 2)
    tap = vars(module).get("coefficients")
    made = isinstance(tap, _Tap) and tap.by_class()
    exact = (weights[0], mixes, weights[1])
    rounding = rounding_error(module, streams, exact) if made else streams.new_full((), math.nan)
    size = weights[0].abs()
    if own == 2:  # of each stream in each part of what the branch reads; or of each element of each stream
        size = size.sum(-2) if getattr(module, "reads_parts", False) else size.mean(-1)
    wide = torch.float32 if state.device.type == "mps" else torch.float64
    streams = streams.to(wide)
    gram = streams @ streams.mT / streams.shape[-1]
    layer, depth = getattr(module, "layer", None), getattr(module, "depth", None)
    return Sample(
        name,
        layer if type(layer) is int else None,
        mixes.clone() if mixes is not None else None,
        size,
        weights[1].abs(),
        gram,
        rounding.float().reshape(1),
        depth if type(depth) is int else None,
        state.shape[-1],
        bool(getattr(module, "reads_ahead", False)),
    )


def on_host(samples: Sequence[Sample]) -> Callable[[], list[Sample]]:
    """Pack samples on their device; the function returned copies them to the host."""
    copied = to_host([tensor for sample in samples for tensor in sample.tensors()])

    def unpack() -> list[Sample]:
        flat = iter(copied())
        return [sample.with_tensors(flat) for sample in samples]

    return unpack
