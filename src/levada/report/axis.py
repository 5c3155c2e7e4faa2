"""Axes: where a value stands, which ticks are worth a label."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from levada.report.words import short, superscript

__all__ = ["Axis", "Edge", "Tick", "category_axis", "linear_axis", "log_axis"]

Edge: TypeAlias = Literal["zero", "below", "above", "nan"]


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark on an axis: its place between 0 and 1, and its label ("" for a minor one)."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis from `low` to `high`, which are logarithms to base 10 where `scale` is "log"."""

    label: str
    scale: str
    low: float
    high: float
    ticks: tuple[Tick, ...]

    def place(self, value: float) -> float | Edge:
        """Give the place between 0 and 1, or the edge at which a value without one is drawn.

        Example:
            >>> axis = log_axis("gradient", [1e-4, 1.0])
            >>> axis.place(1e-2), axis.place(0.0), axis.place(float("inf"))
            (0.5, 'zero', 'above')
        """
        if math.isnan(value):
            return "nan"
        if math.isinf(value):
            return "above" if value > 0 else "below"
        if self.scale == "log":
            if value <= 0:
                return "zero" if value == 0 else "below"
            value = math.log10(value)
        return (value - self.low) / (self.high - self.low)


def _nice_step(span: float, count: int) -> float:
    rough = span / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)


def linear_axis(label: str, values: Iterable[float], *, count: int = 6, whole: bool = False, pad: float = 0.04) -> Axis:
    """Make a linear axis that holds the finite values.

    Args:
        label: quantity and unit.
        values: what is to be drawn.
        count: about how many ticks.
        whole: whether only whole numbers get a tick.
        pad: free space at both ends, as a share of the span.

    Example:
        >>> [tick.label for tick in linear_axis("block", range(50), whole=True).ticks]
        ['0', '10', '20', '30', '40', '50']
    """
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    if not math.isfinite(high - low):
        low, high = max(low, -1e300), min(high, 1e300)
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        middle = max(abs(low) / 2, 0.5)
        low, high = low - middle, high + middle
    span = high - low
    step = _nice_step(span, count)
    if whole:
        step = max(1.0, float(round(step)))
    low, high = low - pad * span, high + pad * span
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    ticks = tuple(
        Tick((i * step - low) / (high - low), short(round(i * step, 12 - math.floor(math.log10(step)))))
        for i in range(first, last + 1)
    )
    return Axis(label, "linear", low, high, ticks)


def log_axis(label: str, values: Iterable[float], *, count: int = 6) -> Axis:
    """Make a logarithmic axis that holds the positive finite values.

    Args:
        label: quantity and unit.
        values: what is to be drawn.
        count: at most about how many labels.

    Example:
        >>> [tick.label for tick in log_axis("gradient", [1e-12, 1.0]).ticks if tick.label]
        ['10⁻¹²', '10⁻¹⁰', '10⁻⁸', '10⁻⁶', '10⁻⁴', '10⁻²', '1']
    """
    logs = [math.log10(value) for value in values if math.isfinite(value) and value > 0] or [-1.0, 1.0]
    low, high = min(logs), max(logs)
    if high - low > 3:
        low, high = math.floor(low + 0.02), math.ceil(high - 0.02)
        every = next(s for s in (1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 500) if (high - low) / s <= count)
        ticks = [
            Tick((e - low) / (high - low), _power(e) if e % every == 0 else "")
            for e in range(low, high + 1)
            if every <= 10 or e % every == 0
        ]
        return Axis(label, "log", low, high, tuple(ticks))
    extreme = low < -300 or high > 300  # where a float can no longer be scaled by ten
    if high - low < (1.0 if extreme else 0.05):
        room = 0.5 if extreme else 0.15
        low, high = low - room, high + room
    pad = 0.06 * (high - low)
    low, high = low - pad, high + pad
    factors = (1,) if high - low > 2.2 else (1, 2, 5)
    marks = [(e + math.log10(m), m, e) for e in range(math.floor(low), math.ceil(high) + 1) for m in factors]
    ticks = [Tick((at - low) / (high - low), _product(m, e)) for at, m, e in marks if low <= at <= high]
    if len(ticks) < 3 and not extreme:
        step = _nice_step(10**high - 10**low, count - 1)
        multiples = range(math.ceil(10**low / step), math.floor(10**high / step) + 1)
        ticks = [
            Tick((math.log10(i * step) - low) / (high - low), short(float(f"{i * step:.6g}")))
            for i in multiples
            if i > 0
        ]
    return Axis(label, "log", low, high, tuple(ticks))


def _product(factor: int, exponent: int) -> str:
    if -3 <= exponent < 5:
        return short(float(f"{factor}e{exponent}"))
    return superscript(exponent) if factor == 1 else f"{factor}×{superscript(exponent)}"


def _power(exponent: int) -> str:
    return {0: "1", 1: "10"}.get(exponent, superscript(exponent))


def category_axis(label: str, names: Sequence[str]) -> Axis:
    """Make an axis of names, in their order.

    Example:
        >>> [round(tick.at, 3) for tick in category_axis("connection", ["plain", "residual"]).ticks]
        [0.25, 0.75]
    """
    size = max(len(names), 1)
    return Axis(
        label, "category", -0.5, size - 0.5, tuple(Tick((i + 0.5) / size, name) for i, name in enumerate(names))
    )
