r"""Which positions of an input one position of the output sees, and how much each of them counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor, nn

from levada._errors import MeasurementError, UsageError, require_at_least, require_number
from levada.inputs import Batch
from levada.probe.cotangent import Value
from levada.probe.jacobian import pull_back
from levada.probe.linearisation import tracked
from levada.probe.memory import Interval, jackknifed
from levada.probe.recorder import first_floating
from levada.probe.untouched import first_batch, run_once, untouched

__all__ = ["ReceptiveField", "receptive_field"]

SHARE = 0.95  # of the energy, in a span
# What seems out of sight is changed by noise of so many times the input's size: large changes wake units at rest.
SIZES = (1.0, 8.0, 64.0)
ROUNDS = 24  # of changes at most


@final
@dataclass(frozen=True, slots=True, eq=False)
class ReceptiveField:
    r"""The exact and the effective receptive field of one position of the output.

    Attributes:
        position: of the output, one number for each axis; empty where the output has no positions.
        exact: which positions of the input can change it; one axis for each axis of positions.
        confirmed: whether changing all the other positions at once left the output as it was, bit by bit.
        clipped: whether the exact field reaches an end of the input, and may be larger in a longer one.
        energy: $E_p = \mathbb E \lVert \partial (c^\top y) / \partial x_p \rVert^2$ by position, summing to 1; float64.
        deviation: standard deviation of the energy along each axis, in positions.
        span: length of the shortest interval that holds 95 % of the energy along each axis, in positions.
    """

    position: tuple[int, ...]
    exact: Tensor
    confirmed: bool
    clipped: bool
    energy: Tensor
    deviation: tuple[Interval, ...]
    span: tuple[Interval, ...]

    @property
    def extent(self) -> tuple[int, ...]:
        """From the first to the last position of the exact field, along each axis."""
        return tuple(last - first + 1 for first, last in _bounds(self.exact))


def receptive_field(
    model: nn.Module,
    batch: Any = None,
    *,
    axes: int | Sequence[int] | None = None,
    position: int | Sequence[int] | None = None,
    draws: int = 16,
    seed: int = 0,
) -> ReceptiveField:
    r"""Measure the receptive field of one position of a model's output, exactly and by what counts.

    $$E_p = \mathbb E_c \sum \left( \partial (c^\top y) / \partial x_p \right)^2, \qquad c \sim N(0, 1)$$

    where $y$ is the output at the position, and rows and channels of $x$ at $p$ are summed over. The cotangents go back
    together in one backward pass. A position is in the exact field if its gradient is not zero. Units at rest may hide
    some: so all other positions are changed at once, by noise of 1, 8 and 64 times the input's size, and where that
    changes the output, the gradient is taken there too. The model is run in evaluation mode and, where it can be, in
    double precision, on copies of its parameters and buffers: nothing of it changes.

    Args:
        model: any module, on signals or images: one or two axes of positions, or more.
        batch: inputs, as `levada.check` takes them; the first must be of floating point.
        axes: axes of the input that count positions, such as 1 in `(batch, steps, dim)`; left out, all after the
            channels of `(batch, channels, height, width)`. The output has its positions on the same axes; one with
            fewer axes has none, and the whole of it is asked.
        position: of the output, one number for each axis, negative ones from the end; the middle if left out.
        draws: number of random cotangents.
        seed: of the cotangents, and of random numbers in the forward pass.

    Returns:
        The `ReceptiveField`; intervals are 95 % jackknife intervals over cotangents.

    Cost:
        Seven forward passes and one backward pass of `draws` cotangents at once, in double precision; one more of both
        each time that units at rest hid something.

    Raises:
        UsageError: if the model or the batch cannot be used, or an axis or the position is not there.
        MeasurementError: if the output does not depend on the input, or is not finite.

    Example:
        >>> net = nn.Sequential(nn.Conv1d(2, 4, 3, padding=2, dilation=2), nn.ReLU(), nn.Conv1d(4, 2, 3, padding=1))
        >>> field = receptive_field(net, torch.randn(8, 2, 21), axes=2)
        >>> field.position, field.exact.nonzero().flatten().tolist(), field.extent
        ((10,), [7, 8, 9, 10, 11, 12, 13], (7,))

    Source: Luo, Li, Urtasun and Zemel 2016, arXiv 1701.04128 (effective field).
    """
    owner = "receptive_field"
    require_at_least(owner, "draws", draws, 2)
    given = first_batch(model, batch, owner)
    x = given.args[0] if given.args else None
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise UsageError(
            f"{owner}: the model's first input must be a tensor of floating point, got {given.describe()}. "
            "Of a model on tokens, give the part after the embedding and what the embedding returns."
        )
    places = _axes(x, axes)
    with untouched(model, seed):
        model.eval()
        run, given = _precise(model, given, seed)
        look = _Look(model, run, given, places, position)
        exact, energy = look.back(given.args[0], draws, seed)
        if not bool(exact.any()):
            raise MeasurementError(f"{owner}: the output does not depend on the input at this batch: no gradient.")
        exact, confirmed = _confirm(look, exact, draws, seed)
    bounds = _bounds(exact)
    ends = [(first, length - 1 - last) for (first, last), length in zip(bounds, exact.shape, strict=True)]
    return ReceptiveField(
        look.position,
        exact,
        confirmed,
        any(0 in pair for pair in ends),
        energy.mean(0) / energy.mean(0).sum(),
        tuple(_jackknife(energy, axis, _deviation) for axis in range(exact.dim())),
        tuple(_jackknife(energy, axis, _span) for axis in range(exact.dim())),
    )


def _axes(x: Tensor, axes: int | Sequence[int] | None) -> tuple[int, ...]:
    owner = "receptive_field"
    if axes is None:
        if x.dim() < 4:
            raise UsageError(
                f"{owner}: axes must be given for an input of shape {tuple(x.shape)}. "
                "Use axes=1 for (batch, steps, dim), axes=2 for (batch, channels, length)."
            )
        return tuple(range(2, x.dim()))
    wanted = [axes] if isinstance(axes, int) else list(axes)
    if not wanted or len({axis % x.dim() for axis in wanted}) < len(wanted):
        raise UsageError(f"{owner}: axes must be one or more different axes, got {axes}.")
    if any(not -x.dim() <= axis < x.dim() for axis in wanted):
        raise UsageError(f"{owner}: axes must be in [0, {x.dim()}) for an input of shape {tuple(x.shape)}, got {axes}.")
    return tuple(sorted(axis % x.dim() for axis in wanted))


def _precise(model: nn.Module, given: Batch, seed: int) -> tuple[Callable[[Batch], Any], Batch]:
    """Return what runs the model, and its batch, in double precision, or in its own if it insists on it."""
    values = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    doubles = {name: _double(value.detach()) for name, value in values.items()}

    def run(moved: Batch) -> Any:
        torch.manual_seed(seed)
        return torch.func.functional_call(model, doubles, moved.args, dict(moved.kwargs))

    def run_own(moved: Batch) -> Any:
        torch.manual_seed(seed)
        return run_once(model, moved, "receptive_field")

    moved = replace(
        given,
        args=tuple(_double(value) for value in given.args),
        kwargs={key: _double(value) for key, value in given.kwargs.items()},
    )
    try:
        with torch.no_grad():
            run(moved)
    except Exception:  # whatever a model with constants of its own precision raises; its own error is raised below
        with torch.no_grad():
            run_own(given)
        return run_own, given
    return run, moved


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


class _Look:
    """One position of the output, seen from inputs that may differ."""

    def __init__(
        self,
        model: nn.Module,
        run: Callable[[Batch], Any],
        given: Batch,
        axes: tuple[int, ...],
        position: int | Sequence[int] | None,
    ) -> None:
        self._model, self._run, self.given, self._axes = model, run, given, axes
        with torch.no_grad():
            y = self._forward(given)
        has_positions = y.dim() == given.args[0].dim()
        lengths = [y.shape[axis] for axis in axes] if has_positions else []
        self.position = _position(lengths, position)
        self._index: list[slice | int] = [slice(None)] * y.dim()
        for axis, place in zip(axes, self.position, strict=False):
            self._index[axis] = place

    def _forward(self, batch: Batch) -> Tensor:
        y = first_floating(self._run(batch))
        if y is None or not bool(y.isfinite().all()):
            what = "holds no tensor of floating point" if y is None else "is not finite"
            raise MeasurementError(f"receptive_field: the output of {type(self._model).__name__} {what} at this batch.")
        return y

    def value(self, x: Tensor) -> Tensor:
        """Return the output at the position."""
        with torch.no_grad():
            return self._forward(self._with(x))[tuple(self._index)]

    def back(self, x: Tensor, draws: int, seed: int) -> tuple[Tensor, Tensor]:
        """Return which positions have a gradient, and its square by position, for each cotangent."""
        with tracked(self._model, self._with(x)) as (batch, first):
            assert first is not None  # its type was asked before
            y = self._forward(batch)
            cotangents = torch.zeros(draws, *y.shape, dtype=y.dtype)
            at = (slice(None), *self._index)
            generator = torch.Generator().manual_seed(seed)
            cotangents[at] = torch.randn(cotangents[at].shape, generator=generator, dtype=y.dtype)
            found = pull_back("the receptive field", Value.of(first), Value.of(y), cotangents.to(y.device))
        found = found.detach().double().movedim([axis + 1 for axis in self._axes], list(range(-len(self._axes), 0)))
        found = found.reshape(draws, -1, *found.shape[-len(self._axes) :]).cpu()
        if not bool(found.isfinite().all()):
            raise MeasurementError("receptive_field: the gradient is not finite. Look for the block that makes it so.")
        return (found != 0).any(1).any(0), found.square().sum(1)

    def changed(self, x: Tensor, hidden: Tensor, times: float, seed: int) -> Tensor:
        """Return `x` with noise of so many times its own size at some positions."""
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32).to(x)
        shape = [x.shape[axis] if axis in self._axes else 1 for axis in range(x.dim())]
        size = x.std() if x.numel() > 1 and bool(x.std() > 0) else torch.ones_like(x.sum())
        return torch.where(hidden.to(x.device).reshape(shape), x + times * size * noise, x)

    def _with(self, x: Tensor) -> Batch:
        return replace(self.given, args=(x, *self.given.args[1:]))


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


def _confirm(look: _Look, exact: Tensor, draws: int, seed: int) -> tuple[Tensor, bool]:
    """Change all that seems out of sight, and take the gradient where the output moves, until no size moves it."""
    x, quiet = look.given.args[0], 0
    before = look.value(x)
    for turn in range(ROUNDS):
        if bool(exact.all()):
            return exact, True
        other = look.changed(x, ~exact, SIZES[turn % len(SIZES)], seed + turn + 1)
        if torch.equal(look.value(other), before):
            quiet += 1
            if quiet == len(SIZES):
                return exact, True
        else:
            quiet, exact = 0, exact | look.back(other, draws, seed)[0]
    return exact, False


def _bounds(exact: Tensor) -> list[tuple[int, int]]:
    places = exact.nonzero()
    return list(zip(places.amin(0).tolist(), places.amax(0).tolist(), strict=True))


def _jackknife(energy: Tensor, axis: int, quantity: Callable[[Tensor], float]) -> Interval:
    others = [other + 1 for other in range(energy.dim() - 1) if other != axis]
    along = energy.sum(others) if others else energy
    value = quantity(along.mean(0))
    left_out = [quantity(torch.cat([along[:draw], along[draw + 1 :]]).mean(0)) for draw in range(len(along))]
    low, high = jackknifed(value, left_out)
    return Interval(value, max(low, 0.0), high)


def _deviation(energy: Tensor) -> float:
    share, place = energy / energy.sum(), torch.arange(len(energy), dtype=torch.float64)
    mean = (share * place).sum()
    return float((share * (place - mean).square()).sum().sqrt())


def _span(energy: Tensor) -> float:
    """Length of the shortest interval that holds 95 % of the energy."""
    sums = torch.cat([torch.zeros(1, dtype=torch.float64), (energy / energy.sum()).cumsum(0)])
    ends = torch.searchsorted(sums, sums + SHARE - 1e-12)
    lengths = ends - torch.arange(len(sums))
    return float(lengths[ends < len(sums)].min())
