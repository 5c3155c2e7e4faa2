"""The gradient that one position of the output sends to the positions of the input, apart from its rounding."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Self, final

import torch
from torch import Tensor, nn

from levada._errors import MeasurementError, UsageError, require_number
from levada.inputs import Batch
from levada.probe.cotangent import Value
from levada.probe.jacobian import pull_back
from levada.probe.linearisation import tracked
from levada.probe.recorder import first_floating

__all__ = ["FieldGradient", "counted"]

MIXTURES = 4  # of the cotangents, that go back with them
# A gradient is linear in its cotangent. Of a causal FFT convolution, rounding missed that by 4 % of itself and more in
# float64, at 1 to 4 channels and lengths 8 to 1024; what was seen missed it by less than 4e-16.
LINEAR = 1e-3
ROUNDING = 1024  # units in the last place of the largest output, within which the output did not move


@final
class FieldGradient:
    """One position of the output, seen from inputs that may differ.

    Args:
        module: the model.
        run: runs it on a batch.
        given: the batch; its first input is what is looked at.
        axes: of the input that count positions.
        output_axes: of the output; left out, the same, or none where the output has fewer axes.
        position: of the output; the middle if left out.

    Attributes:
        lengths: of the output, along its axes of positions.
        position: one number for each of them.

    Raises:
        UsageError: if an axis or the position is not there.
        MeasurementError: if the output is not finite.
    """

    def __init__(
        self,
        module: nn.Module,
        run: Callable[[Batch], Any],
        given: Batch,
        axes: tuple[int, ...],
        output_axes: tuple[int, ...] | None,
        position: int | Sequence[int] | None,
    ) -> None:
        self._module, self._run, self._given, self._axes = module, run, given, axes
        self.x: Tensor = given.args[0]
        with torch.no_grad():
            y = self._forward(given)
        if y is None:
            raise MeasurementError(
                f"receptive_field: the output of {type(module).__name__} is not finite at this batch, or holds no "
                "tensor of floating point."
            )
        if output_axes is None:
            output_axes = axes if y.dim() == self.x.dim() else ()
        self.output_axes = counted("output_axes", output_axes, y) if output_axes else ()
        self.shape = tuple(y.shape)
        self.lengths = tuple(y.shape[axis] for axis in self.output_axes)
        self.position = _position(self.lengths, position)
        self._index = self._at(self.output_axes, self.position)

    def at(self, axes: tuple[int, ...], places: Sequence[int]) -> Self:
        """Return the same for other places of the output, all of it along axes that are not named."""
        other = copy.copy(self)
        other._index = self._at(axes, places)
        return other

    def _at(self, axes: tuple[int, ...], places: Sequence[int]) -> tuple[slice | int, ...]:
        index: list[slice | int] = [slice(None)] * len(self.shape)
        for axis, place in zip(axes, places, strict=True):
            index[axis] = place
        return tuple(index)

    def _forward(self, batch: Batch) -> Tensor | None:
        y = first_floating(self._run(batch))
        return y if y is not None and bool(y.isfinite().all()) else None

    def value(self, x: Tensor) -> tuple[Tensor, float] | None:
        """Return the output at the position, and how far rounding may move it; None where it is not finite."""
        with torch.no_grad():
            y = self._forward(self._with(x))
        if y is None:
            return None
        return y[self._index], ROUNDING * _eps(x, y) * float(y.abs().max())

    def back(self, x: Tensor, draws: int, seed: int) -> tuple[Tensor, Tensor] | None:
        """Return which positions have a gradient, and its square by position, for each cotangent.

        The squares are relative to the largest gradient, so that none that counts underflows.

        Args:
            x: where.
            draws: number of cotangents.
            seed: of the cotangents.

        Returns:
            None where the gradient is not finite.
        """
        with tracked(self._module, self._with(x)) as (batch, first):
            assert first is not None  # its type was asked before
            y = self._forward(batch)
            if y is None:
                return None
            generator = torch.Generator().manual_seed(seed)
            cotangents = torch.zeros(draws + MIXTURES, *y.shape, dtype=y.dtype)
            at = (slice(None), *self._index)
            own = torch.randn(cotangents[:draws][at].shape, generator=generator, dtype=y.dtype)
            mixing = torch.randn(MIXTURES, draws, generator=generator, dtype=torch.float64)
            cotangents[at] = torch.cat([own, torch.tensordot(mixing, own.double(), 1).to(y.dtype)])
            found = _scaled(Value.of(first), Value.of(y), cotangents.to(y.device))
            eps = _eps(x, y)
        if found is None:
            return None
        found = found.movedim([axis + 1 for axis in self._axes], list(range(-len(self._axes), 0))).cpu()
        found = found.reshape(draws + MIXTURES, -1, *found.shape[-len(self._axes) :])
        single, mixed = found[:draws], found[draws:]
        size = torch.tensordot(mixing.abs(), single.abs(), 1).amax((0, 1))
        missed = (mixed - torch.tensordot(mixing, single, 1)).abs().amax((0, 1))
        exact = (size > 0) & (missed <= max(LINEAR, math.sqrt(eps)) * size)
        return exact, single.square().sum(1)

    def changed(self, x: Tensor, hidden: Tensor, times: float, seed: int) -> Tensor:
        """Return `x` with noise of so many times its own size at some positions."""
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32).to(x)
        shape = [x.shape[axis] if axis in self._axes else 1 for axis in range(x.dim())]
        size = x.std() if x.numel() > 1 and bool(x.std() > 0) else torch.ones_like(x.sum())
        return torch.where(hidden.to(x.device).reshape(shape), x + times * size * noise, x)

    def _with(self, x: Tensor) -> Batch:
        return replace(self._given, args=(x, *self._given.args[1:]))


def _scaled(source: Value, target: Value, cotangents: Tensor) -> Tensor | None:
    """Return the gradients relative to the largest one, in float64; other scales where they leave the range."""
    room = int(0.9 * math.log2(torch.finfo(target.dtype).max))
    found = pull_back("the receptive field", source, target, cotangents).detach().double()
    if not bool(found.isfinite().all()) or float(found.abs().max()) < 2.0 ** (-room / 2):
        exponent = room if bool(found.isfinite().all()) else -room
        other = pull_back("the receptive field", source, target, cotangents * 2.0**exponent).detach().double()
        if bool(other.isfinite().all()):
            found = other
    if not bool(found.isfinite().all()):
        return None
    largest = found.abs().max()
    return found / largest if float(largest) > 0 else found


def _eps(x: Tensor, y: Tensor) -> float:
    return max(torch.finfo(x.dtype).eps, torch.finfo(y.dtype).eps)


def counted(name: str, axes: int | Sequence[int], value: Tensor) -> tuple[int, ...]:
    """Return axes of a tensor, counted from 0 and in order.

    Args:
        name: of the argument.
        axes: one or more, negative ones from the end.
        value: the tensor.

    Raises:
        UsageError: if one is not there, or named twice.
    """
    owner, what = "receptive_field", "an output" if name == "output_axes" else "an input"
    wanted = [axes] if isinstance(axes, int) else list(axes)
    if not wanted or len({axis % value.dim() for axis in wanted}) < len(wanted):
        raise UsageError(f"{owner}: {name} must be one or more different axes, got {axes}.")
    if any(not -value.dim() <= axis < value.dim() for axis in wanted):
        shape = tuple(value.shape)
        raise UsageError(f"{owner}: {name} must be in [0, {value.dim()}) for {what} of shape {shape}, got {axes}.")
    return tuple(sorted(axis % value.dim() for axis in wanted))


def _position(lengths: Sequence[int], position: int | Sequence[int] | None) -> tuple[int, ...]:
    owner = "receptive_field"
    if position is None:
        return tuple(length // 2 for length in lengths)
    wanted = [position] if isinstance(position, int) else list(position)
    if len(wanted) != len(lengths):
        raise UsageError(f"{owner}: position must have one number for each of {len(lengths)} axes, got {position}.")
    for place, length in zip(wanted, lengths, strict=True):
        require_number(owner, "position", place, whole=True)
        if not -length <= place < length:
            raise UsageError(
                f"{owner}: position must be in the output, which is {length} long on this axis, got {place}."
            )
    return tuple(place % length for place, length in zip(wanted, lengths, strict=True))
