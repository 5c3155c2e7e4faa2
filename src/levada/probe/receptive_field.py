r"""Which positions of an input one position of the output sees, and how much each of them counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor, nn

from levada._errors import MeasurementError, UsageError, require_at_least
from levada._seeding import reseed
from levada.inputs import Batch
from levada.probe.field_gradient import FieldGradient, counted
from levada.probe.field_shape import along, deviation, extent, measured, span
from levada.probe.memory import Interval
from levada.probe.untouched import first_batch, run_once, untouched

__all__ = ["ReceptiveField", "receptive_field"]

# What seems out of sight is changed by noise of so many times the input's size, and by the same noise with the other
# sign: large changes wake units at rest, and what one sign leaves at rest the other wakes.
SIZES = (1.0, 8.0, 64.0, 4096.0, 2.0**18)
ROUNDS = 48  # of changes at most


@final
@dataclass(frozen=True, slots=True, eq=False)
class ReceptiveField:
    r"""The exact and the effective receptive field of one position of the output.

    Attributes:
        position: of the output, one number for each axis; empty where the output has no positions.
        exact: which positions of the input change it, at these inputs or at those that `noise` led to; one axis for
            each axis of positions.
        confirmed: whether all the other positions, changed at once by that noise, left the output as it was up to
            rounding. What no such change wakes is not ruled out.
        noise: the largest change tried at which the output was finite, in standard deviations of the input; infinite
            where no position is left to change.
        clipped: whether the exact field reaches an end of the input, and may be larger in a longer one.
        wraps: for each axis, whether the last position is beside the first, as with circular padding; extent,
            deviation and span are then those on the circle.
        energy: $E_p = \mathbb E \lVert \partial (c^\top y) / \partial x_p \rVert^2$ by position, summing to 1; float64.
        deviation: standard deviation of the energy along each axis, in positions.
        span: length of the shortest interval that holds 95 % of the energy along each axis, in positions.
    """

    position: tuple[int, ...]
    exact: Tensor
    confirmed: bool
    noise: float
    clipped: bool
    wraps: tuple[bool, ...]
    energy: Tensor
    deviation: tuple[Interval, ...]
    span: tuple[Interval, ...]

    @property
    def extent(self) -> tuple[int, ...]:
        """From the first to the last position of the exact field, along each axis."""
        return tuple(extent(along(self.exact, axis), wraps) for axis, wraps in enumerate(self.wraps))


def receptive_field(
    model: nn.Module,
    batch: Any = None,
    *,
    axes: int | Sequence[int] | None = None,
    output_axes: int | Sequence[int] | None = None,
    position: int | Sequence[int] | None = None,
    draws: int = 16,
    seed: int = 0,
) -> ReceptiveField:
    r"""Measure the receptive field of one position of a model's output, exactly and by what counts.

    $$E_p = \mathbb E_c \sum \left( \partial (c^\top y) / \partial x_p \right)^2, \qquad c \sim N(0, 1)$$

    where $y$ is the output at the position, and rows and channels of $x$ at $p$ are summed over. The cotangents go back
    together in one backward pass.

    A position is in the exact field if its gradient is more than rounding: a gradient is linear in the cotangent, to
    the precision of the arithmetic however small it is, and rounding, as an FFT spreads it over all positions, is not.
    That holds at these inputs. Units at rest may hide some positions: so all others are changed at once, by noise of
    1 to 2^18 times the input's size and of both signs, and where that moves the output by more than rounding, or the
    gradient there tells of more positions, these are added. A unit that no such change wakes stays hidden: the field is
    that at and around these inputs, and no bound for all.

    The model is run in evaluation mode and, where it can be, in double precision, on copies of its parameters and
    buffers: nothing of it changes.

    Args:
        model: any module, on signals or images: one or two axes of positions, or more.
        batch: inputs, as `levada.check` takes them; the first must be of floating point.
        axes: axes of the input that count positions, such as 1 in `(batch, steps, dim)`; left out, all after the
            channels of `(batch, channels, height, width)`.
        output_axes: axes of the output that count positions; left out, the same. An output with fewer axes than the
            input then has none, and the whole of it is asked.
        position: of the output, one number for each axis, negative ones from the end; the middle if left out.
        draws: number of random cotangents.
        seed: of the cotangents, and of random numbers in the forward pass.

    Returns:
        The `ReceptiveField`; intervals are 95 % jackknife intervals over cotangents.

    Cost:
        16 forward passes, one backward pass of `draws + 4` cotangents at once and two of 6, in double precision; one
        more of both each time that units at rest hid something, or rounding moved the output, and some where the field
        may wrap.

    Raises:
        UsageError: if the model or the batch cannot be used, an axis or the position is not there, or the output's
            positions are found on another axis.
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
    theirs = (output_axes,) if isinstance(output_axes, int) else output_axes
    with untouched(model, seed):
        model.eval()
        run, given = _precise(model, given, seed)
        look = FieldGradient(model, run, given, places, None if theirs is None else tuple(theirs), position)
        found = look.back(look.x, draws, seed)
        if found is None:
            raise MeasurementError(f"{owner}: the gradient is not finite. Look for the block that makes it so.")
        exact, energy = found
        if not bool(exact.any()):
            raise MeasurementError(
                f"{owner}: the output does not depend on the input at this batch: its gradient is zero, at every scale "
                "of the cotangents that the arithmetic has."
            )
        if output_axes is None:
            _require_axes(look, seed)
        exact, confirmed, noise = _confirm(look, exact, draws, seed)
        wraps = tuple(_wraps(model, look, exact, axis, seed) for axis in range(exact.dim()))
    seen = [along(exact, axis) for axis in range(exact.dim())]
    return ReceptiveField(
        look.position,
        exact,
        confirmed,
        noise,
        any(bool(s.all() if wrap else s[0] | s[-1]) for s, wrap in zip(seen, wraps, strict=True)),
        wraps,
        energy.mean(0) / energy.mean(0).sum(),
        tuple(measured(energy, axis, wrap, deviation) for axis, wrap in enumerate(wraps)),
        tuple(measured(energy, axis, wrap, span) for axis, wrap in enumerate(wraps)),
    )


def _axes(x: Tensor, axes: int | Sequence[int] | None) -> tuple[int, ...]:
    if axes is not None:
        return counted("axes", axes, x)
    if x.dim() < 4:
        raise UsageError(
            f"receptive_field: axes must be given for an input of shape {tuple(x.shape)}. "
            "Use axes=1 for (batch, steps, dim), axes=2 for (batch, channels, length)."
        )
    return tuple(range(2, x.dim()))


def _precise(model: nn.Module, given: Batch, seed: int) -> tuple[Callable[[Batch], Any], Batch]:
    """Return what runs the model, and its batch, in double precision, or in its own if it insists on it."""
    values = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    doubles = {name: _double(value.detach()) for name, value in values.items()}

    def run(moved: Batch) -> Any:
        reseed(seed)
        return torch.func.functional_call(model, doubles, moved.args, dict(moved.kwargs))

    def run_own(moved: Batch) -> Any:
        reseed(seed)
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


def _require_axes(look: FieldGradient, seed: int) -> None:
    """Raise if the field stays as it is all along the output's axes of positions, and moves along another one."""
    axes = look.output_axes
    if not axes or max(look.lengths) == 1 or not torch.equal(*_ends(look, axes, seed)):
        return
    for axis in range(1, len(look.shape)):
        if axis in axes or look.shape[axis] == 1:
            continue
        first, last = _ends(look, (axis,), seed)
        if bool(first.any() & last.any()) and not torch.equal(first, last):
            named = axes[0] if len(axes) == 1 else axes
            raise UsageError(
                f"receptive_field: the output must count positions on the axes that the input does, and all along "
                f"{named} of an output of shape {look.shape} the same is seen, along {axis} not. "
                f"Give output_axes={axis}, or output_axes={named} if that is right."
            )


def _ends(look: FieldGradient, axes: tuple[int, ...], seed: int) -> tuple[Tensor, Tensor]:
    """Return what the first and the last place along some axes of the output see."""
    found = [look.at(axes, [0 if end == 0 else look.shape[axis] - 1 for axis in axes]) for end in (0, 1)]
    first, last = (one.back(look.x, 2, seed) for one in found)
    nothing = torch.zeros(())
    return (nothing if first is None else first[0]), (nothing if last is None else last[0])


def _confirm(look: FieldGradient, exact: Tensor, draws: int, seed: int) -> tuple[Tensor, bool, float]:
    """Change all that seems out of sight, and take the gradient where the output moves, until no size moves it."""
    start = look.value(look.x)
    assert start is not None  # it was finite
    changes = [(size, sign) for size in SIZES for sign in (1, -1)]
    quiet, largest = 0, 0.0
    for turn in range(ROUNDS):
        if bool(exact.all()):
            return exact, True, math.inf
        size, sign = changes[turn % len(changes)]
        other = look.changed(look.x, ~exact, sign * size, seed + turn // 2 + 1)
        after = look.value(other)
        if after is not None and not torch.equal(after[0], start[0]):
            found = look.back(other, draws, seed)
            more = exact if found is None else exact | found[0]
            if not torch.equal(more, exact) or float((after[0] - start[0]).abs().max()) > after[1]:
                quiet, largest, exact = 0, 0.0, more
                continue
        quiet += 1
        largest = max(largest, size if after is not None else 0.0)
        if quiet == len(changes):
            return exact, largest > 0, largest
    return exact, False, largest


def _wraps(model: nn.Module, look: FieldGradient, exact: Tensor, axis: int, seed: int) -> bool:
    """Whether the field goes on from the last position of an axis to the first: moved half around, it is turned."""
    seen = along(exact, axis)
    if len(look.lengths) != exact.dim():
        return False
    if bool(seen.all()):  # nothing to be seen turning
        return any(getattr(module, "padding_mode", "") == "circular" for module in model.modules())
    if extent(seen, wraps=True) == extent(seen, wraps=False):
        return False
    common = math.gcd(len(seen), look.lengths[axis])
    turns = common // 2
    moved = list(look.position)
    moved[axis] = (moved[axis] + turns * (look.lengths[axis] // common)) % look.lengths[axis]
    there = look.at(look.output_axes, moved)
    found = there.back(look.x, 2, seed)
    if turns == 0 or found is None:
        return False
    return torch.equal(_confirm(there, found[0], 2, seed)[0], exact.roll(turns * (len(seen) // common), axis))
