"""Figures as data: what to draw, not how; the report draws them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias, final

from levada._errors import UsageError
from levada.study.results import Results

__all__ = ["Axis", "Figure", "Series", "measured_series"]

Scale: TypeAlias = Literal["linear", "log"]
Style: TypeAlias = Literal["measured", "predicted", "bound", "band", "reference"]


@final
@dataclass(frozen=True, slots=True)
class Axis:
    """One axis.

    Attributes:
        label: what it shows, with the unit.
        scale: "linear" or "log".
    """

    label: str
    scale: Scale = "linear"


@final
@dataclass(frozen=True, slots=True)
class Series:
    """One line, band or cloud of points.

    Attributes:
        label: its name in the legend.
        style: what it is: "measured", "predicted", "bound", "band" or "reference".
        x: positions.
        y: values, as many as `x`.
        group: series of one group share a colour; the label if left out.
        low: lower edge of a band, as many as `x`.
        high: upper edge.
        seed: the seed, where the series is one.

    Raises:
        UsageError: if the lengths differ.

    Example:
        >>> Series("measured", "measured", [1, 2], [0.5])
        Traceback (most recent call last):
        levada._errors.UsageError: Series 'measured': x, y, low and high have one length, got 2 and 1.
    """

    label: str
    style: Style
    x: Sequence[float]
    y: Sequence[float]
    group: str = ""
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        for values in (self.y, self.low, self.high):
            if values is not None and len(values) != len(self.x):
                raise UsageError(
                    f"Series {self.label!r}: x, y, low and high have one length, got {len(self.x)} and {len(values)}."
                )


@final
@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of a study.

    Attributes:
        id: short name, unique in its study.
        title: what it shows.
        caption: how to read it.
        x: the horizontal axis.
        y: the vertical axis.
        series: what is drawn.
    """

    id: str
    title: str
    caption: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]

    def to_event(self) -> dict[str, Any]:
        """Return the fields of the event "figure"."""
        event = asdict(self)
        event["series"] = [{**asdict(s), "group": s.group or s.label} for s in self.series]
        return event


def measured_series(
    results: Results,
    config: Mapping[str, Any],
    group: str,
    points: Callable[[Mapping[str, Any]], tuple[Sequence[float], Sequence[float]]],
) -> list[Series]:
    """Return one measured series for each seed of a configuration.

    Args:
        results: what was measured.
        config: the configuration.
        group: its name.
        points: values of one seed -> (x, y).

    Returns:
        The series, by seed.
    """
    return [
        Series(f"{group}, seed {seed}", "measured", *points(values), group=group, seed=seed)
        for seed, values in results.where(**config)
    ]
