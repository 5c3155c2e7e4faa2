"""What a loss asks for: which outputs it rewards, and what it cannot tell apart, tested on the loss alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["CERTAIN", "Answers", "Confined", "Falling", "Value", "all_pairs", "answers"]

# A loss of outputs and, if they are given, other targets.
Value = Callable[..., float]
# Logits of this size make a softmax one-hot to the last bit of a float32.
CERTAIN = 100.0
# Sums in another order differ by less, relative to the loss.
SAME = 1e-5
# Rows that are answered wrongly one at a time.
ROWS = 4
# Rows that differ by less in what a wrong answer gains have no weights of their own.
EQUAL = 0.05
# A loss is taken for an error over all pairs if it is that error, times one number, to within this.
PROPORTIONAL = 1e-4
# More pairs than this are not formed, and so many at a time.
PAIRS, AT_ONCE = 1 << 27, 1 << 20
# What is broadcast by mistake: errors of numbers, of outputs less targets.
_ERRORS: dict[str, Callable[[Tensor], Tensor]] = {
    "squared": torch.square,
    "absolute": torch.abs,
    "smooth absolute": lambda apart: functional.smooth_l1_loss(apart, torch.zeros_like(apart), reduction="none"),
}
# Functions whose range has two ends, whatever their options.
_BOUNDED = {
    "sigmoid": (0.0, 1.0),
    "softmax": (0.0, 1.0),
    "hardsigmoid": (0.0, 1.0),
    "tanh": (-1.0, 1.0),
    "softsign": (-1.0, 1.0),
}


@dataclass(frozen=True, slots=True)
class Falling:
    """A loss that falls without end the more wrong the outputs are.

    Attributes:
        right: loss of what the targets ask for.
        wrong: loss of outputs that are far from it.
        far: loss of outputs that are ten times as far.
    """

    right: float
    wrong: float
    far: float


@dataclass(frozen=True, slots=True)
class Confined:
    """Outputs with a bounded range before a softmax.

    Attributes:
        floor: loss of the best outputs in the range.
        predicted: ln(1 + (C - 1) exp(low - high)).
        free: loss of large logits, certain and right.
    """

    floor: float
    predicted: float
    free: float


@dataclass(frozen=True, slots=True)
class Answers:
    """What the loss rewards; None where a test was not made, or where nothing is wrong.

    Attributes:
        falling: how the loss falls the more wrong the outputs are.
        unpaired: loss of outputs that equal their targets, and of the mean of the targets for every row, where the loss
            is the same whichever row a target stands in and a sum over the rows of the outputs.
        pairs: "squared", "absolute" or "smooth absolute", if the loss is that error over all pairs of outputs and
            targets; empty if it is another.
        numbers: loss of outputs that all equal the number of the class, and of the outputs as they are, where the loss
            is the same whichever output belongs to a class.
        across: dimension along which the loss takes its softmax, if it is not that of the classes.
        floor_across: loss of certain and right logits then, and the mean logarithm of how often a class stands along
            that dimension.
        confined: what a bounded last function leaves to a softmax.
        silenced: share of rows of which the right class's output is at zero behind a ReLU.
        dead: classes among the targets whose output is at zero in every row.
        raised: loss if the outputs of those are raised where they are right, less the loss as it is.
    """

    falling: Falling | None = None
    unpaired: tuple[float, float] | None = None
    pairs: str = ""
    numbers: tuple[float, float] | None = None
    across: int | None = None
    floor_across: tuple[float, float] | None = None
    confined: Confined | None = None
    silenced: float = 0.0
    dead: tuple[int, ...] = ()
    raised: float | None = None


def answers(
    value: Value, out: Tensor, targets: Any, last: str, classes: tuple[int, Tensor] | None, reads: bool
) -> Answers:
    """Put outputs that the targets ask for, and others, into a loss.

    Args:
        value: the loss of outputs and, if given, other targets.
        out: the outputs.
        targets: what they are compared with.
        last: name of the function that made the outputs.
        classes: the dimension of the classes and what is right, if the targets are classes or distributions over them.
        reads: whether other classes as targets give another loss.

    Example:
        >>> targets = torch.tensor([[0.0], [1.0], [5.0]])
        >>> def all_with_all(out: Tensor, targets: Tensor = targets) -> float:
        ...     return float((out[:, None] - targets).square().mean())
        >>> own, mean = answers(all_with_all, torch.ones(3, 1), targets, "linear", None, False).unpaired
        >>> round(own, 3), round(mean, 3)  # twice the variance, and the variance
        (9.333, 4.667)
    """
    told = Answers()
    if not isinstance(targets, Tensor) or targets.is_complex():
        return told
    if classes is not None and reads and out.shape[classes[0]] > 1:
        dim, right = classes
        told = replace(told, falling=_falling(value, CERTAIN * right, [-right], dim))
        if not targets.is_floating_point():
            told = _of_classes(told, value, out, targets, dim, right)
        if abs(value(out + 1) - value(out)) <= SAME * (1 + abs(value(out))):
            told = _limited(told, value, out, last, dim, right)
    if targets.is_floating_point() and targets.shape == out.shape:
        told = _of_numbers(told, value, out, targets)
    return told


def _same(one: float, other: float) -> bool:
    return abs(one - other) <= SAME * max(abs(one), abs(other))


def _noise(out: Tensor, seed: int) -> Tensor:
    drawn = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed)).to(out.device, out.dtype)
    return (float(out.double().square().mean().sqrt()) or 1.0) * drawn


def _others(out: Tensor) -> Iterator[Tensor]:
    """Yield outputs that no training has touched."""
    return (out + _noise(out, seed) for seed in range(3))


def _falling(value: Value, best: Tensor, away: Sequence[Tensor], dim: int | None) -> Falling | None:
    """Test whether the loss falls without end in all of these directions from the best outputs, in each row alike.

    A linear loss, as a critic's, falls without end in one direction and rises without end in the other; a policy's
    weights each row by what it was worth.
    """
    near, far = 2 * CERTAIN, 20 * CERTAIN
    here, losses = value(best), []
    for way in away:
        wrong, further = value(best + near * way), value(best + far * way)
        endless = math.isfinite(further) and here - further > 2 * (here - wrong) > 0
        if not endless or _same(here, wrong):
            return None
        losses.append((wrong, further))
    if len(away) == 1 and abs(value(best - near * away[0]) - here) > EQUAL * (here - losses[0][0]):
        return None
    return Falling(here, *losses[0]) if _each_row(value, best, near * away[0], dim) else None


def _each_row(value: Value, best: Tensor, away: Tensor, dim: int | None) -> bool:
    """Whether each of the first rows lowers the loss, and alike, if it alone is moved away."""
    asked = away.any(dim, keepdim=True).expand(away.shape) if dim is not None else away != 0
    index = away.narrow(dim, 0, 1) if dim is not None else away
    numbers = torch.arange(index.numel(), device=away.device).reshape(index.shape).expand(away.shape)
    here, rows = value(best), torch.unique(numbers[asked])[:ROWS].tolist()
    gains = [here - value(best + away * (numbers == row)) for row in rows]
    return bool(gains) and min(gains) > 0 and max(gains) <= (1 + EQUAL) * min(gains)


def _of_classes(told: Answers, value: Value, out: Tensor, targets: Tensor, dim: int, right: Tensor) -> Answers:
    """Test which output the loss takes for a class's, and along which dimension it compares outputs."""
    known = right.sum(dim) > 0
    if all(_same(value(other.roll(1, dim)), value(other)) for other in _others(out)):
        last = out.shape[dim] - 1
        number = targets.clamp(0, last).unsqueeze(dim).expand(out.shape).to(out.dtype)
        here, best = value(out), value(number)
        around = [value(number + 1), value(number - 1), value(CERTAIN * right), value(next(_others(out)))]
        # An embedding has no output for each class either, but to it the numbers of the classes are names.
        if abs(best) <= SAME * abs(here) and min(around) > best:
            told = replace(told, numbers=(best, here))
    for across in range(out.dim()):
        if across == dim or out.shape[across] < 2:
            continue
        if all(_same(value(other + other.narrow(across, 0, 1)), value(other)) for other in _others(out)):
            often = (right * right.sum(across, keepdim=True)).sum(dim)
            predicted = float(often[known].double().log().mean())
            told = replace(told, across=across, floor_across=(value(CERTAIN * right), predicted))
    return told


def _limited(told: Answers, value: Value, out: Tensor, last: str, dim: int, right: Tensor) -> Answers:
    """Test what the range of the last function leaves to a loss that takes a softmax."""
    low, high = _BOUNDED.get(last, (0.0, math.inf))
    if not bool(((out >= low) & (out <= high)).all()):
        return told
    if last in _BOUNDED:
        floor, predicted = value(low + (high - low) * right), math.log1p((out.shape[dim] - 1) * math.exp(low - high))
        free = min(value(size * right) for size in (5.0, 10.0, CERTAIN))
        return replace(told, confined=Confined(floor, predicted, free))
    if last != "relu":
        return told
    rows, asked, still = out.shape[dim], right.movedim(dim, 0) > 0, out.movedim(dim, 0) == 0
    dead = still.reshape(rows, -1).all(1) & asked.reshape(rows, -1).any(1)
    raised = out.movedim(dim, 0) + (asked & dead.reshape(-1, *[1] * (out.dim() - 1))).to(out.dtype)
    return replace(
        told,
        silenced=float((asked & still).sum()) / max(1, int(asked.sum())),
        dead=tuple(dead.nonzero()[:, 0].tolist()),
        raised=value(raised.movedim(0, dim)) - value(out) if bool(dead.any()) else None,
    )


def _of_numbers(told: Answers, value: Value, out: Tensor, targets: Tensor) -> Answers:
    """Test whether a loss of numbers is least where they are right, and compares each row with its own."""
    right, spread = targets.to(out.dtype), float(targets.double().std(correction=0))
    if not spread > 0 or _same(value(out, targets + spread), value(out)):
        return told
    if told.falling is None:
        one, noise = torch.ones_like(right), _noise(torch.ones_like(right), 0)
        falling = _falling(value, right, [spread * way for way in (one, -one, noise, -noise)], None)
        if falling is None and bool(((targets == 0) | (targets == 1)).all()):
            falling = _falling(value, CERTAIN * (2 * right - 1), [1 - 2 * right], None)
        told = replace(told, falling=falling)
    if len(out) < 3 or not bool((targets != targets[:1]).any()):
        return told
    exchanged = targets.roll(1, 0), targets.flip(0)
    if not all(_same(value(other, moved), value(other)) for other in _others(out) for moved in exchanged):
        return told
    own, mean = value(right), value(right.mean(0, keepdim=True).expand_as(right).contiguous())
    if own <= mean or _same(own, mean):
        return told
    pairs = all_pairs(value, out, targets)
    return told if pairs is None else replace(told, unpaired=(own, mean), pairs=pairs)


def all_pairs(value: Value, out: Tensor, targets: Tensor) -> str | None:
    """Name the error over all pairs of outputs and targets that a loss is; None if it is no sum over the outputs.

    Outputs and targets of unlike shapes are paired as they broadcast, and those of one shape row by row. A loss that is
    the same whichever row a target stands in may be meant, as one of proportions, moments or distances between
    distributions. Such a loss is no sum over the outputs, each on its own. Empty: it is such a sum, of another error.

    Example:
        >>> targets, out = torch.tensor([[0.0], [1.0], [5.0]]), torch.ones(3, 1)
        >>> def all_with_all(out: Tensor, targets: Tensor = targets) -> float:
        ...     return float((out[:, None] - targets).square().mean())
        >>> def means(out: Tensor, targets: Tensor = targets) -> float:
        ...     return float((out.mean() - targets.mean()).square() + 0.1 * out.var())
        >>> all_pairs(all_with_all, out, targets), all_pairs(means, out, targets)
        ('squared', None)
    """
    scale = float(targets.double().std(correction=0))
    away = scale * _noise(torch.ones_like(out), 1).abs() + scale
    one = (torch.arange(len(out), device=out.device) % 2 == 0).reshape(-1, *[1] * (out.dim() - 1))
    here, both = value(out), value(out + away)
    first, second = value(out + away * one), value(out + away * ~one)
    moved = abs(first - here) + abs(second - here)
    if not moved > 0 or not abs(both - first - second + here) <= PROPORTIONAL * moved:
        return None
    twice = targets[torch.arange(len(targets), device=targets.device) // 2]  # the first half of them, each twice
    wide = 3 * scale * _noise(torch.ones_like(out), 2)
    cases = [(out, targets), (wide, twice), (out + away, targets)]
    for name, error in _ERRORS.items():
        sizes = [_over_pairs(error, *case) for case in cases]
        if min(sizes) > 0:
            factors = [value(*case) / size for case, size in zip(cases, sizes, strict=True)]
            if min(factors) > 0 and max(factors) - min(factors) <= PROPORTIONAL * max(factors):
                return name
    return ""


def _over_pairs(error: Callable[[Tensor], Tensor], out: Tensor, targets: Tensor) -> float:
    """Return the mean error of all pairs; zero if there are too many."""
    left = out.unsqueeze(1) if out.shape == targets.shape else out
    shape = torch.broadcast_shapes(left.shape, targets.shape)  # type: ignore[no-untyped-call]
    size, total = int(math.prod(shape)), 0.0
    if size > PAIRS:
        return 0.0
    rows = max(1, AT_ONCE * shape[0] // size)
    for start in range(0, shape[0], rows):
        one, other = (t.expand(shape)[start : start + rows].cpu().double() for t in (left, targets))
        total += float(error(one - other).sum())
    return total / size
